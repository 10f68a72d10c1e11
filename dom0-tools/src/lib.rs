//! The control domain of Domus.
