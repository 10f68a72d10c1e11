//! One macro that writes down a C structure together with the proof that Rust
//! lays it out as C does.

/// Declares `#[repr(C)]` structures with the offset of every field in front
/// of it, as a table in a manual has it, and asserts at compile time that
/// those offsets and the size in brackets are the real ones.
///
/// Every structure is plain old data: any bytes are a valid value
/// (`FromBytes`), and there is no padding that could leak (`IntoBytes`
/// refuses it), so C's padding appears as fields named `_pad`. The default
/// value is all zeroes.
macro_rules! layout {
    ($(
        $(#[$meta:meta])*
        struct $name:ident [$size:literal] {
            $( $(#[$field_meta:meta])* $offset:literal => $field:ident: $ty:ty, )*
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes,
            zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $ty, )*
        }

        impl Default for $name {
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            $( assert!(core::mem::offset_of!($name, $field) == $offset); )*
        };
    )*};
}
pub(crate) use layout;
