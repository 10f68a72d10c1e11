//! Harness of the whole-system tests, and the hypercall reference.

pub mod guest;
pub mod harness;
pub mod reference;
pub mod repository;
