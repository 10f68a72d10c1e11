//! Domain configuration files: xm's keys in xl's grammar.
//!
//! Law: a configuration file is data. It is parsed, never run; what used to
//! work because xm ran the file as Python is refused by name, with the line
//! and what to write in its place. Nothing in here touches the system: a
//! [`DomainConfig`] has been checked as far as its text alone tells.
//!
//! Reading order: [`source`] (texts and places in them), [`syntax`] (the
//! grammar), [`settings`] (keys with values, overrides merged), [`domain`] (the
//! typed result), then [`disk`], [`vdev`], [`vif`] and [`forward`].

pub mod action;
pub mod cpus;
pub mod disk;
pub mod domain;
pub mod forward;
pub mod keys;
pub mod name;
pub mod python;
pub mod settings;
pub mod source;
pub mod syntax;
pub mod throttle;
pub mod vdev;
pub mod vif;

pub use domain::{DomainConfig, Loaded, load};
pub use source::Diagnostic;
