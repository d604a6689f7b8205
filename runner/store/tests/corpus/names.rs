//! Names and links.

use crate::case::{Case, OUT, accepted, accepted_image, accepted_layer, entries, image, layer};
use crate::common::*;

pub(crate) fn spellings() -> Vec<Case> {
    let mut cases = vec![
        accepted("./ before everything", &[dir("./"), dir("./d/"), file("./d/a", "x")]),
        accepted("the root as .", &[dir("."), file("a", "x")]),
        accepted("the root twice", &[dir("./"), dir("."), file("a", "x")]),
        accepted("two slashes", &[file("d//a", "x")]),
        accepted("dots within", &[file("d/./a", "x")]),
        accepted("many dots", &[file("././././a", "x")]),
        accepted("a directory with two slashes", &[dir("d//")]),
        accepted("a directory with slash and dot", &[dir("d/.")]),
        accepted(
            "a directory again, spelt otherwise",
            &[dir("d/"), dir("./d"), dir("d//"), file("d/a", "x")],
        ),
        accepted("a directory behind its files", &[file("d/a", "x"), dir("d/")]),
        accepted("small and capital", &[file("README", "1"), file("readme", "2"), file("Readme", "3")]),
        accepted("composed and decomposed", &[file("\u{e9}", "1"), file("e\u{301}", "2")]),
        accepted("Kelvin and K", &[file("\u{212a}", "1"), file("K", "2"), file("k", "3")]),
        accepted("right to left", &[file("a\u{202e}txt.exe", "x")]),
        accepted("no bytes of UTF-8", &[file(b"\xc3\x28", "x"), file(b"\xff", "y")]),
        accepted("overlong UTF-8", &[file(b"a\xc0\xafb", "x"), file(b"\xe0\x80\xae", "y")]),
        accepted("a surrogate", &[file(b"\xed\xa0\x80", "x")]),
        accepted("Latin 1", &[file(b"caf\xe9", "x")]),
        accepted("63 directories", &[pax(record("path", "d/".repeat(63) + "f")), file("a", "x")]),
        accepted("255 bytes", &[pax(record("path", vec![b'n'; 255])), file("a", "x")]),
        accepted("an executable", &[file("a", "x").mode(0o755)]),
        accepted(
            "set-id bits",
            &[file("a", "x").mode(0o6755), file("b", "x").mode(0o4644), dir("d/").mode(0o2755)],
        ),
        accepted("no bits at all", &[file("a", "x").mode(0), dir("d/").mode(0)]),
        accepted("execution for others alone", &[file("a", "x").mode(0o601), file("b", "x").mode(0o610)]),
        accepted("all bits", &[file("a", "x").mode(0o7777)]),
    ];
    for (what, name) in [
        ("a blank", " "),
        ("two blanks", "a  b"),
        ("a backslash", "a\\b"),
        ("backslashes that lead out", "..\\..\\victim"),
        ("a drive", "C:\\windows\\system32"),
        ("a host", "host:path"),
        ("an option", "--checkpoint-action=exec=sh"),
        ("a short option", "-rf"),
        ("a pattern", "*[a-z]?"),
        ("quotes", "a'b\"c`d"),
        ("a variable", "$HOME/${IFS}"),
        ("three dots", ".../..../a..b"),
        ("a tilde", "~root/.ssh"),
        ("an at sign", "@a"),
        ("the name of a long link", "@LongLink"),
        ("a PAX header's name", "PaxHeaders.0/a"),
        ("a sparse file's name", "GNUSparseFile.0/a"),
        ("control characters", "a\x1b[2J\x07\r\tb"),
        ("DEL", "a\x7fb"),
        ("a newline", "a\nb"),
        ("a newline alone", "\n"),
        ("a device of Windows", "CON/aux.txt"),
        ("a dot at the end", "a."),
        ("a blank at the end", "a "),
        ("a hidden file", ".hidden/.git"),
        ("a percent sign", "%s%n%2e%2e/a"),
        ("a whiteout's name in an input", ".wh.a"),
        ("an opaque mark's name in an input", "d/.wh..wh..opq"),
        ("digits alone", "0000644"),
        ("the magic of tar", "ustar"),
        ("a plus", "+a"),
    ] {
        cases.push(accepted(&format!("name with {what}"), &[file(name, "x"), file("z", "y")]));
    }
    cases
}

pub(crate) fn links() -> Vec<Case> {
    let target = |what: &str, target: &str| accepted(&format!("symlink to {what}"), &[symlink("l", target)]);
    vec![
        target("nothing", "nowhere"),
        target("the root", "/"),
        target("a file of the host", "/etc/passwd"),
        target("what lies above", "../../../../etc/passwd"),
        target("itself", "l"),
        target(".", "."),
        target("..", ".."),
        target("a process's root", "/proc/self/root"),
        target("a name with a slash at its end", "d/"),
        target("a name with a newline", "a\nb"),
        target("a name that is no UTF-8's neighbour", "ö/日本"),
        target("100 bytes", &"t".repeat(100)),
        accepted("symlink to no bytes of UTF-8", &[symlink("l", b"\xff\xfe")]),
        accepted("symlinks in a circle", &[symlink("a", "b"), symlink("b", "a")]),
        accepted("symlink below a directory", &[dir("d/"), symlink("d/l", "../..")]),
        entries("field", "symlink with a size of blanks", &[symlink("l", "t").put(124, "           \0")]),
        accepted("hard link to a file in a directory", &[file("d/a", "x"), hardlink("h", "d/a")]),
        accepted("hard link with another spelling", &[file("d/a", "x"), hardlink("h", "./d//a")]),
        accepted("hard link to a hard link", &[file("a", "x"), hardlink("b", "a"), hardlink("c", "b")]),
        accepted(
            "hard link with another mode",
            &[file("a", "x").mode(0o644), hardlink("b", "a").mode(0o644)],
        ),
        accepted("hard link to an empty file", &[file("a", ""), hardlink("b", "a")]),
        accepted("a thousand hard links", &{
            let links = (0..1000).map(|at| hardlink(format!("l{at}"), "a"));
            std::iter::once(file("a", "x")).chain(links).collect::<Vec<_>>()
        }),
        entries("through_symlink", "symlink, then a file below it", &[symlink("l", OUT), file("l/new", "x")]),
        entries("through_symlink", "symlink to ., then below it", &[symlink("l", "."), file("l/l/a", "x")]),
        entries(
            "through_symlink",
            "symlink in a directory, then below it",
            &[dir("d/"), symlink("d/l", ".."), file("d/l/a", "x")],
        ),
        entries(
            "through_symlink",
            "symlink by PAX, then below it",
            &[pax(record("linkpath", OUT)), symlink("l", "x"), file("l/a", "x")],
        ),
        entries(
            "through_symlink",
            "symlink by GNU, then below it",
            &[long(b'K', OUT), symlink("l", "x").gnu(), file("l/a", "x")],
        ),
        entries(
            "through_symlink",
            "two symlinks, then below both",
            &[symlink("a", "."), symlink("b", "a/.."), file("b/victim", "x")],
        ),
        entries(
            "through_symlink",
            "symlink, then another below it",
            &[symlink("a", ".."), symlink("a/b", ".."), file("a/b/x", "x")],
        ),
        entries(
            "duplicate",
            "symlink, then the same name as a file",
            &[symlink("l", format!("{OUT}/passwd")), file("l", "root::0:0")],
        ),
        entries(
            "duplicate",
            "symlink, then the same name as a directory",
            &[symlink("l", OUT), dir("l/"), file("l/a", "x")],
        ),
        entries("duplicate", "symlink twice", &[symlink("l", "a"), symlink("l", OUT)]),
        entries(
            "duplicate",
            "symlink, then a hard link of its name",
            &[file("a", "x"), symlink("l", OUT), hardlink("l", "a")],
        ),
        entries("duplicate", "directory, then symlink", &[dir("d/"), symlink("d", OUT), file("d/a", "x")]),
        entries("duplicate", "implied directory, then symlink", &[file("d/a", "x"), symlink("d", OUT)]),
        entries(
            "duplicate",
            "hard link, then a file of its name",
            &[file("a", "1"), hardlink("b", "a"), file("b", "2")],
        ),
        entries("duplicate", "composed twice", &[file("\u{e9}", "1"), file("\u{e9}", "2")]),
        entries("duplicate", "./a and a", &[file("./a", "1"), file("a", "2")]),
        entries("duplicate", "a by PAX and a", &[pax(record("path", "a")), file("b", "1"), file("a", "2")]),
        entries("duplicate", "the same entry twice", &[file("a", "1"), file("a", "1")]),
        entries(
            "hard_link_to_other",
            "hard link to a symlink that leads out",
            &[symlink("s", format!("{OUT}/passwd")), hardlink("h", "s"), file("h", "x")],
        ),
        entries("hard_link_to_other", "hard link to a directory", &[dir("d/"), hardlink("h", "d/")]),
        entries(
            "hard_link_to_other",
            "hard link below a symlink",
            &[symlink("s", OUT), hardlink("h", "s/passwd")],
        ),
        entries("hard_link_missing", "hard link to itself", &[hardlink("h", "h")]),
        entries("hard_link_missing", "hard links in a circle", &[hardlink("a", "b"), hardlink("b", "a")]),
        entries("hard_link_missing", "hard link before its file", &[hardlink("a", "b"), file("b", "x")]),
        entries("hard_link_missing", "hard link to another case", &[file("A", "x"), hardlink("h", "a")]),
        entries(
            "hard_link_missing",
            "hard link to a decomposed name",
            &[file("\u{e9}", "x"), hardlink("h", "e\u{301}")],
        ),
        entries("hard_link_outside", "hard link to a file of the host", &[hardlink("h", "/etc/shadow")]),
        entries(
            "hard_link_outside",
            "hard link up and down again",
            &[file("d/a", "x"), hardlink("h", "d/../d/a")],
        ),
        entries("link_target", "hard link to NUL", &[file("a", "x"), hardlink("h", "a\0b")]),
        entries("link_target", "symlink to a NUL behind a name", &[symlink("l", "a\0/etc/passwd")]),
    ]
}

pub(crate) fn layers() -> Vec<Case> {
    vec![
        accepted_layer("a whiteout", &[file(".wh.a", "")]),
        accepted_layer("a whiteout in a directory", &[dir("d/"), file("d/.wh.a", ""), file("d/b", "x")]),
        accepted_layer("a whiteout below an implied directory", &[file("d/e/.wh.a", "")]),
        accepted_layer("an opaque directory", &[dir("d/"), file("d/.wh..wh..opq", ""), file("d/b", "x")]),
        accepted_layer("an opaque mark behind the files", &[file("d/b", "x"), file("d/.wh..wh..opq", "")]),
        accepted_layer("a whiteout of a name with a dot", &[file(".wh..hidden", "")]),
        accepted_layer("a whiteout of three dots", &[file(".wh....", "")]),
        accepted_layer("a whiteout of a blank", &[file(".wh. ", "")]),
        accepted_layer("a whiteout by a long name", &[long(b'L', ".wh.long"), file("a", "").gnu()]),
        accepted_layer("a name that only looks like one", &[file(".whx", "x"), file("a.wh.b", "x")]),
        accepted_layer("an empty layer", &[]),
        accepted_layer("set-id and sticky", &[file("su", "x").mode(0o4755), dir("tmp/").mode(0o1777)]),
        accepted_layer(
            "devices below dev",
            &[
                dir("dev/"),
                H::new(b'3', "dev/null").put(329, "0000001\x000000003\0"),
                H::new(b'6', "dev/initctl"),
            ],
        ),
        accepted_image(
            "devices below dev in an image",
            &[H::new(b'4', "dev/sda").put(329, "0000010\x000000000\0"), file("a", "x")],
        ),
        accepted_image("a whiteout's name in an image", &[file(".wh.a", "x")]),
        layer(
            "special_file",
            "a device outside dev",
            &[H::new(b'3', "null").put(329, "0000001\x000000003\0")],
        ),
        layer(
            "special_file",
            "a whiteout of overlayfs",
            &[H::new(b'3', "etc/passwd").put(329, "0000000\x000000000\0")],
        ),
        layer("special_file", "a device at dev itself", &[H::new(b'3', "dev")]),
        layer("through_symlink", "dev as a symlink", &[symlink("dev", OUT), file("dev/x", "x")]),
        layer("whiteout", "with a PAX size", &[pax(record("size", "1")), file(".wh.a", "x")]),
        layer("slash_on_file", "a whiteout with a slash", &[file(".wh.a/", "")]),
        layer("whiteout", "of the opaque mark below another", &[file("d/.wh..wh..opq/x", "")]),
        layer("whiteout", "aufs's plink", &[dir(".wh..wh.plnk/")]),
        layer("whiteout", "aufs's orphans", &[dir(".wh..wh.orph/")]),
        layer("whiteout", "a FIFO", &[H::new(b'6', ".wh.a")]),
        layer("whiteout", "a device", &[H::new(b'3', ".wh.a")]),
        layer("duplicate", "whiteout, then directory", &[file(".wh.a", ""), dir("a/")]),
        layer("duplicate", "whiteout, then symlink", &[file(".wh.a", ""), symlink("a", OUT)]),
        layer("duplicate", "directory, then whiteout", &[dir("a/"), file(".wh.a", "")]),
        layer("below_file", "below a whiteout", &[file(".wh.a", ""), file("a/b/c", "x")]),
        image("field", "a socket by its mode", &[H::new(b'6', "run/sock").mode(0o140_755)]),
    ]
}
