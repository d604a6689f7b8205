//! What the guard lets through.

use super::*;

#[test]
fn redirected_never_leaves_https_nor_the_web() {
    let to = |from: &str, location| {
        redirected(&Url::parse(from).unwrap(), location).map(String::from).map_err(|e| e.code())
    };
    let denied = Err(ampoule_spec::Code::InputSourceDenied);
    assert_eq!(to("http://h/a/b", Some("c")), Ok("http://h/a/c".to_owned()));
    assert_eq!(to("http://h/a", Some("https://i/c")), Ok("https://i/c".to_owned()));
    assert_eq!(to("https://h/a", Some("//i/c")), Ok("https://i/c".to_owned()));
    for location in ["http://h/a", "ftp://h/a", "file:///etc/passwd", "https://u@h/a", "data:,x", "https://"]
    {
        assert_eq!(to("https://h/a", Some(location)), denied, "{location}");
    }
    assert_eq!(to("http://h/a", Some("file:///etc/passwd")), denied);
    assert_eq!(to("http://h/a", None), denied);
}
