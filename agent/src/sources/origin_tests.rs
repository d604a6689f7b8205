//! Which URLs belong to a prefix, and which spellings only look so.

use super::*;

fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

/// Whether a prefix holds a URL that parses.
fn holds(prefix: &str, text: &str) -> Fit {
    Prefix::parse(prefix).unwrap().fit(&url(text))
}

#[test]
fn prefix_holds_every_spelling_of_its_urls_and_no_neighbour() {
    let prefix = "https://pkg.example/team/a/";
    for same in [
        "https://pkg.example/team/a/x",
        "https://pkg.example/team/a",
        "https://pkg.example:443/team/a/x?y=z#f",
        "HTTPS://PKG.Example/team/a/x",
        "https://pkg.example./team/a/x",
        "https://pkg.example/%74eam/a/x",
        "https://pkg.example/b/../team/./a/x",
        "https://pkg.example/b/%2e%2e/team/a/x",
        "https:\\\\pkg.example\\team\\a\\x",
        "https:pkg.example/team/a/x",
        "https://p%6Bg.example/team/a/x",
        "https://user@pkg.example/team/a/x",
    ] {
        assert_eq!(holds(prefix, same), Fit::Yes(2), "{same}");
    }
    for other in [
        "http://pkg.example/team/a/x",
        "https://pkg.example:8443/team/a/x",
        "https://pkg.example:80/team/a/x",
        "https://pkg.example.evil.example/team/a/x",
        "https://evil-pkg.example/team/a/x",
        "https://sub.pkg.example/team/a/x",
        "https://pkg.example../team/a/x",
        "https://pkg.example@evil.example/team/a/x",
        "https://evil.example/https://pkg.example/team/a/x",
        "https://evil.example\\@pkg.example/team/a/x",
        "https://evil.example#@pkg.example/team/a/x",
        "https://evil.example?@pkg.example/team/a/x",
        "https://pkg.example/team/ab",
        "https://pkg.example/team/",
        "https://pkg.example/Team/a/x",
        "https://pkg.example//team/a/x",
        "https://pkg.example/team//a/x",
        "https://pkg.example/team/a/../b",
        "https://pkg.example/team/a/%2E%2e/b",
        "https://pkg.example/team%2Fa/x",
        "https://pkg-example/team/a/x",
    ] {
        assert_eq!(holds(prefix, other), Fit::No, "{other}");
    }
}

#[test]
fn path_that_servers_read_in_two_ways_is_below_no_prefix() {
    for path in [
        "..%2fb",
        "..%2Fb",
        "%2e%2e%2fb",
        "x%2f..%2f..%2fb",
        "%252e%252e/b",
        "%25252e%25252e/b",
        "..%5cb",
        "x%5c..%5cb",
        "..;/b",
        "..;x=1/b",
        "%2e%2e;/b",
        "x%00",
        "x%0d%0aHost:%20evil",
        "x%2fy",
    ] {
        let text = format!("https://h/a/{path}");
        assert_eq!(holds("https://h/a/", &text), Fit::TwoWays, "{text}");
        // Where the whole host is allowed there is nothing to escape from.
        assert_eq!(holds("https://h/", &text), Fit::Yes(0), "{text}");
    }
    for path in ["x%20y", "x;y=1", "a..b", "...", "%2541", "100%25", "x%", "@scope/x", "a+b~c"] {
        assert_eq!(holds("https://h/a/", &format!("https://h/a/{path}")), Fit::Yes(1), "{path}");
    }
}

#[test]
fn hosts_are_compared_as_what_they_mean() {
    for (prefix, text, same) in [
        ("https://bücher.example/", "https://xn--bcher-kva.example/x", true),
        ("https://BÜCHER.example/", "https://bu\u{308}cher.example/x", true),
        ("https://faß.example/", "https://fass.example/x", false),
        ("https://pаypal.example/", "https://paypal.example/x", false),
        ("https://pkg\u{3002}example/", "https://pkg.example/x", true),
        ("http://127.0.0.1/", "http://127.1/x", true),
        ("http://127.0.0.1/", "http://2130706433/x", true),
        ("http://127.0.0.1/", "http://0x7f.0.0.1/x", true),
        ("http://127.0.0.1/", "http://0177.0.0.01/x", true),
        ("http://127.0.0.1/", "http://127.0.0.1./x", true),
        ("http://127.0.0.1/", "http://[::ffff:127.0.0.1]/x", false),
        ("http://127.0.0.1/", "http://localhost/x", false),
        ("http://[::1]/", "http://[0:0::0:1]/x", true),
        ("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/x", true),
    ] {
        assert_eq!(holds(prefix, text) != Fit::No, same, "{prefix} {text}");
    }
}

#[test]
fn parse_refuses_prefixes_that_say_less_than_they_seem_to() {
    for bad in [
        "",
        "pkg.example",
        "https://",
        "https://u:p@h/",
        "https://h/?q",
        "https://h/#f",
        "ftp://h/",
        "file:///x",
        "https://*.example/",
        "https://h/a/../b",
        "https://h/a/%2e%2e/b",
        "https://h/a%2fb/",
        "https://h/a b",
    ] {
        assert!(Prefix::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn registry_is_its_api_below_its_repositories() {
    let fit = |registry: &str, text: &str| Prefix::parse_registry(registry).unwrap().fit(&url(text));
    let registry = "registry.example:5000/team";
    assert_eq!(fit(registry, "https://registry.example:5000/v2/"), Fit::Yes(1));
    assert_eq!(fit(registry, "https://registry.example:5000/v2/team/base/manifests/latest"), Fit::Yes(1));
    assert_eq!(fit(registry, "https://registry.example:5000/v2/team/..%2fother/blobs/x"), Fit::TwoWays);
    for other in [
        "https://registry.example:5000/v2/teams/base/manifests/latest",
        "https://registry.example:5000/v2/_catalog",
        "https://registry.example:5000/",
        "https://registry.example:5000/team/x",
        "https://registry.example/v2/team/x",
        "http://registry.example:5000/v2/team/x",
    ] {
        assert_eq!(fit(registry, other), Fit::No, "{other}");
    }
    assert_eq!(fit("http://127.0.0.1:5000", "http://127.0.0.1:5000/v2/any/blobs/x"), Fit::Yes(0));
}

#[test]
fn instead_of_keeps_what_lies_below_and_never_climbs() {
    let of = Prefix::parse("https://ftp.example/gnu/").unwrap();
    let at = "https://mirror.example/pub/gnu/";
    let mirror = Prefix::parse(at).unwrap();
    let to = |text: &str| mirror.instead_of(&of, &url(text)).map(String::from);
    assert_eq!(
        to("https://ftp.example/gnu/hello/hello-1.tar.gz?x=%2F#f"),
        Some("https://mirror.example/pub/gnu/hello/hello-1.tar.gz?x=%2F".to_owned())
    );
    assert_eq!(to("https://ftp.example/gnu/a%20b"), Some("https://mirror.example/pub/gnu/a%20b".to_owned()));
    assert_eq!(to("https://ftp.example/other/x"), None);
    assert_eq!(to("https://ftp.example/gnu/..%2f..%2fx"), None);
    let whole = Prefix::parse("https://ftp.example/").unwrap();
    assert_eq!(mirror.instead_of(&whole, &url("https://ftp.example/..%2fx")), None);
}
