//! Harness of the whole-system tests.

pub mod guest;
pub mod harness;
