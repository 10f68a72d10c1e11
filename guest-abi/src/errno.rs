//! Xen's error numbers (`public/errno.h`). A hypercall that fails returns the
//! negative of one of these.
//!
//! ```
//! use guest_abi::errno::Errno;
//!
//! assert_eq!(Errno::from_return(5), Ok(5));
//! assert_eq!(Errno::from_return(-16), Err(Errno::EBUSY));
//! assert_eq!(Errno::EBUSY.to_return(), -16);
//! assert_eq!(Errno::EBUSY.name(), Some("EBUSY"));
//! assert_eq!(Errno(999).name(), None);
//! ```

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// A positive Xen error number.
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct Errno(pub u16);

        impl Errno {
            $($(#[$doc])* #[doc = $text] pub const $name: Errno = Errno($value);)*

            /// The C name, or `None` for a number that Xen does not define.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($value => Some(stringify!($name)),)* _ => None }
            }

            /// What it means, in a few words.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self.0 { $($value => $text,)* _ => "unknown error" }
            }
        }
    };
}

errnos! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such file or directory";
    ESRCH = 3, "no such process or domain";
    EINTR = 4, "interrupted system call";
    EIO = 5, "I/O error";
    ENXIO = 6, "no such device or address";
    E2BIG = 7, "argument list too long";
    ENOEXEC = 8, "exec format error";
    EBADF = 9, "bad file number";
    ECHILD = 10, "no child processes";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "permission denied";
    EFAULT = 14, "bad address";
    EBUSY = 16, "device or resource busy";
    EEXIST = 17, "file exists";
    EXDEV = 18, "cross-device link";
    ENODEV = 19, "no such device";
    ENOTDIR = 20, "not a directory";
    EISDIR = 21, "is a directory";
    EINVAL = 22, "invalid argument";
    ENFILE = 23, "file table overflow";
    EMFILE = 24, "too many open files";
    ENOSPC = 28, "no space left";
    EROFS = 30, "read-only file system";
    EMLINK = 31, "too many links";
    EDOM = 33, "argument out of domain";
    ERANGE = 34, "result not representable";
    EDEADLK = 35, "deadlock would occur";
    ENAMETOOLONG = 36, "name too long";
    ENOLCK = 37, "no locks available";
    ENOSYS = 38, "function not implemented";
    ENOTEMPTY = 39, "directory not empty";
    ENODATA = 61, "no data available";
    ETIME = 62, "timer expired";
    EBADMSG = 74, "not a data message";
    EOVERFLOW = 75, "value too large";
    EILSEQ = 84, "illegal byte sequence";
    ERESTART = 85, "interrupted, to be restarted";
    ENOTSOCK = 88, "not a socket";
    EMSGSIZE = 90, "message too large";
    EOPNOTSUPP = 95, "operation not supported";
    EADDRINUSE = 98, "address in use";
    EADDRNOTAVAIL = 99, "address not available";
    ENOBUFS = 105, "no buffer space";
    EISCONN = 106, "already connected";
    ENOTCONN = 107, "not connected";
    ETIMEDOUT = 110, "timed out";
    ECONNREFUSED = 111, "connection refused";
}

impl Errno {
    /// The value that a failed hypercall leaves in `rax`.
    #[must_use]
    pub const fn to_return(self) -> i64 {
        -(self.0 as i64)
    }

    /// Splits a hypercall's return value into its success and error halves.
    /// Values in -4095..=-1 are errors.
    ///
    /// # Errors
    /// The error number, if `ret` is one.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // -ret is in 1..=4095
    pub const fn from_return(ret: i64) -> Result<i64, Errno> {
        if ret < 0 && ret > -4096 {
            Err(Errno(-ret as u16))
        } else {
            Ok(ret)
        }
    }
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{self:?} ({})", self.text())
    }
}

impl core::error::Error for Errno {}
