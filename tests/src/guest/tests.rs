//! The prepared guest, looked at from outside. Needs Debian's apt, and its
//! network the first time.

use std::io::Read;

use flate2::read::GzDecoder;

use super::*;

#[test]
fn a_kernel_and_a_user_space_are_there() {
    let guest = prepare().unwrap();
    let kernel = fs::read(&guest.kernel).unwrap();
    // Linux' boot protocol: the setup header's magic.
    assert_eq!(&kernel[0x202..0x206], b"HdrS", "{:?}", guest.kernel);

    let packed = fs::File::open(&guest.initramfs).unwrap();
    let mut image = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut image).unwrap();
    for name in [
        "init\0",
        "sbin/poweroff\0",
        "sbin/reboot\0",
        "bin/sh\0",
        "dev/console\0",
        "etc/inittab\0",
    ] {
        let found = image.windows(name.len()).any(|w| w == name.as_bytes());
        assert!(found, "{name}");
    }
    assert!(
        image
            .windows(READY.len())
            .any(|window| window == READY.as_bytes())
    );
    // And a second call finds what is there.
    assert_eq!(prepare().unwrap().kernel, guest.kernel);
}

#[test]
fn a_program_that_fails_is_named() {
    let error = output(Command::new("ls").arg("/no/such/file")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("ls /no/such/file"), "{text}");
    assert!(text.contains("No such file"), "{text}");
}
