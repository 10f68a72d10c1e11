//! The hypercalls: each in a file of its Xen name.

pub mod event_channel_op;
pub mod grant_table_op;

#[cfg(test)]
pub(crate) mod test_guest;
