//! The hypercalls: each in a file of its Xen name.

pub mod event_channel_op;

#[cfg(test)]
pub(crate) mod test_guest;
