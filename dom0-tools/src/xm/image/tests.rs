//! Names, sizes, configuration files; what is used is not deleted. Whole images
//! are made by the system tests.

use super::create::parse_size;

#[test]
fn sizes() {
    assert_eq!(parse_size("1024"), Ok(1 << 30));
    assert_eq!(parse_size("600m"), Ok(600 << 20));
    assert_eq!(parse_size("8G"), Ok(8 << 30));
    for wrong in ["", "G", "8X", "-1G", "99999999999999T", "1M", "é", "17T"] {
        parse_size(wrong).expect_err(wrong);
    }
}
