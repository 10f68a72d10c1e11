//! `xm image`: disk images that a domain boots from.
//!
//! ```text
//!   create  bootstrap -> tree -> ext4 -> raw | qcow2, and a configuration file
//!   clone   a qcow2 image that reads its base, and a configuration file
//!   list    what lies in the directory of images
//!   delete  an image that nobody uses, and its configuration file
//! ```
//!
//! Law: nothing is mounted on the host, a file that is there is never written
//! to, and what a failed or interrupted command has made is removed.

pub mod apt;
pub mod bootstrap;
pub mod child;
pub mod create;
pub mod error;
pub mod filesystem;
pub mod guest_config;
pub mod job;
pub mod manage;
pub mod password;
pub mod store;
pub mod tree;
pub mod workshop;

use clap::{Parser, Subcommand as ClapSubcommand};

use super::{Session, error::XmError, table::Subcommand};
pub use error::ImageCommandError;

/// Make, list, clone and delete disk images that a domain boots from.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  xm image create web1                       a Debian in /var/lib/domus/images/web1.img, and web1.cfg
  xm image create web1 --size 8G --ssh-key ~/.ssh/id_ed25519.pub
  xm image create base --qcow2 --password-file pw && xm image clone base web1
  xm image list
  xm image delete web1
  xm create -c /var/lib/domus/images/web1.cfg

'xm image create -h' and so on explain each.")]
pub struct Image {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, ClapSubcommand)]
enum Action {
    /// Make a bootable Debian
    Create(create::Create),
    /// Make a copy-on-write child of an image
    Clone(child::Clone),
    /// List the images
    List(manage::List),
    /// Delete images and their configuration files
    Delete(manage::Delete),
}

impl Subcommand for Image {
    fn run(self, _: &Session) -> Result<(), XmError> {
        match self.action {
            Action::Create(create) => create.run(),
            Action::Clone(clone) => clone.run(),
            Action::List(list) => list.run(),
            Action::Delete(delete) => delete.run(),
        }
    }
}

#[cfg(test)]
mod tests;
