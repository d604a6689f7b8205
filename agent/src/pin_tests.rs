//! What `pin` changes in a file, and when it leaves it alone.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

const D: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// Of "bytes".
const BYTES: &str = "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9";

fn dir_with(job: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.tar"), "bytes").unwrap();
    let path = dir.path().join("job.toml");
    fs::write(&path, job.replace("DIR", &dir.path().display().to_string())).unwrap();
    (dir, path)
}

fn pin(path: &Path) -> Result<Vec<Pinned>, PinError> {
    PinFile::load(path)?.pin(&Policy::built_in(), None, &mut |_| {})
}

#[test]
fn digests_are_written_and_nothing_else_changes() {
    let job = r#"# Top.
ampoule = 1   # version
name    = "j"
image   = 'tar:a.tar'   # the root

# Inputs.
[[input]]
name = "one"   # first
mount = "/build/one"
http = { url = "file://DIR/a.tar", unpack = true }  # after

[[input]]
name = "two"
mount = "/build/two"
tar = {path="a.tar"}

[[input]]
name = "three"
mount = "/build/three"
[input.http]
# within
url = "file://DIR/a.tar"   # there

[[input]]
name = "four"
mount = "/build/four"
tar.path = "a.tar"

[[input]]
name = "five"
mount = "/build/five"
tar = { path = "none.tar", sha256 = "PINNED" }

[[step]]
run   = [ "true" , ]
"#
    .replace("PINNED", D);
    let (dir, path) = dir_with(&job);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let pinned = pin(&path).unwrap();
    let fields: Vec<_> = pinned.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(fields, ["image", "input[0].http", "input[1].tar", "input[2].http", "input[3].tar"]);
    assert!(pinned.iter().all(|p| p.pin == format!("sha256:{BYTES}")));
    let expected = job
        .replace("'tar:a.tar'", &format!("\"tar:a.tar@sha256:{BYTES}\""))
        .replace("unpack = true }", &format!("unpack = true, sha256 = \"{BYTES}\" }}"))
        .replace("{path=\"a.tar\"}", &format!("{{path=\"a.tar\", sha256 = \"{BYTES}\"}}"))
        .replace("# there\n", &format!("# there\nsha256 = \"{BYTES}\"\n"))
        .replace("tar.path = \"a.tar\"\n", &format!("tar.path = \"a.tar\"\ntar.sha256 = \"{BYTES}\"\n"))
        .replace("DIR", &dir.path().display().to_string());
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    // Once more there is nothing to do, and nothing is written.
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(pin(&path).unwrap(), []);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something is left");
}

#[test]
fn commit_takes_the_place_of_a_branch_and_stands_beside_a_tag() {
    for (written, pinned) in [
        (
            "git = { url = \"https://h/r\", ref = \"main\" } # why",
            "git = { url = \"https://h/r\", commit = \"ID\" } # why",
        ),
        (
            "git = { branch = \"b\", url = \"https://h/r\" }",
            "git = { url = \"https://h/r\", commit = \"ID\" }",
        ),
        (
            "git = { url = \"https://h/r\", tag = \"v1\", allowed_signers = \"s\" }",
            "git = { url = \"https://h/r\", tag = \"v1\", allowed_signers = \"s\", commit = \"ID\" }",
        ),
        (
            "[input.git]\nurl = \"https://h/r\"\nrev = \"v1\"",
            "[input.git]\nurl = \"https://h/r\"\ncommit = \"ID\"",
        ),
        ("git.url = \"https://h/r\"\ngit.ref = \"v1\"", "git.url = \"https://h/r\"\ngit.commit = \"ID\""),
    ] {
        let text = format!("[[input]]\nname = \"a\"\n{written}\n");
        let mut document = Document::parse(&text).unwrap();
        let found = document.unpinned();
        assert_eq!(found.len(), 1, "{text}");
        document.pin(&found[0], "ID");
        assert_eq!(document.text(), text.replace(written, pinned));
        assert_eq!(document.unpinned(), []);
    }
    // Which of two is meant is for people.
    let two = "[[input]]\ngit = { url = \"https://h/r\", ref = \"a\", branch = \"b\" }\n";
    assert_eq!(Document::parse(two).unwrap().unpinned(), []);
}

#[test]
fn inputs_in_one_list_and_tables_over_lines_are_pinned_too() {
    let job = "ampoule = 1\nname = \"j\"\nimage = \"host\"\n\
               input = [{ name = \"a\", mount = \"/build/a\", tar = { path = \"a.tar\" } }]\n\
               [[step]]\nrun = [\"true\"]\n";
    let (_dir, path) = dir_with(job);
    assert_eq!(pin(&path).unwrap().len(), 1);
    let expected = job.replace("\"a.tar\" }", &format!("\"a.tar\", sha256 = \"{BYTES}\" }}"));
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    let job = "ampoule = 1\nname = \"j\"\nimage = \"host\"\n[[input]]\nname = \"a\"\nmount = \"/build/a\"\n\
               tar = {\n  path = \"a.tar\", # why\n}\n[[step]]\nrun = [\"true\"]\n";
    let (_dir, path) = dir_with(job);
    assert_eq!(pin(&path).unwrap().len(), 1);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("# why") && text.contains(&format!("sha256 = \"{BYTES}\"")), "{text}");
    crate::jobfile::load(&path).unwrap();
}

#[test]
fn file_stays_as_it_was_if_anything_fails() {
    let head = "ampoule = 1\nname = \"j\"\nimage = \"tar:a.tar\"\n";
    let step = "[[step]]\nrun = [\"true\"]\n";
    let input =
        |source: &str| format!("{head}[[input]]\nname = \"a\"\nmount = \"/build/a\"\n{source}\n{step}");
    for (job, code, says) in [
        ("not toml".to_owned(), Code::JobInvalid, ":1:"),
        (format!("{head}nmae = 1\n{step}"), Code::JobInvalid, "nmae"),
        (input("tar = { path = \"none.tar\" }"), Code::InputMissing, "input[0].tar"),
        (input("http = { url = \"file://DIR/none\" }"), Code::InputMissing, "input[0].http"),
        (input("http = { url = \"https://127.0.0.1:1/x\" }"), Code::InputSourceDenied, "input[0].http"),
        (input("http = { url = \"http://pkg.example/x\" }"), Code::InputSourceDenied, "plain http"),
        (format!("ampoule = 1\nname = \"j\"\nimage = \"oci:none:v1\"\n{step}"), Code::InputMissing, "image"),
    ] {
        let (dir, path) = dir_with(&job);
        let before = fs::read(&path).unwrap();
        let error = pin(&path).expect_err(&job);
        let text = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert_eq!(error.code(), code, "{job}: {text}");
        assert!(text.contains(says), "{text}");
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something is left");
    }
}

#[test]
fn what_somebody_else_has_written_meanwhile_is_kept() {
    let job = "ampoule = 1\nname = \"j\"\nimage = \"tar:a.tar\"\n[[step]]\nrun = [\"true\"]\n";
    let (dir, path) = dir_with(job);
    let file = PinFile::load(&path).unwrap();
    let theirs = job.replace("\"j\"", "\"theirs\"");
    let error = file.pin(&Policy::built_in(), None, &mut |_| fs::write(&path, &theirs).unwrap()).unwrap_err();
    assert!(error.to_string().contains("changed meanwhile"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), theirs);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something is left");
}

#[test]
fn link_to_a_file_stays_a_link() {
    let job = "ampoule = 1\nname = \"j\"\nimage = \"tar:a.tar\"\n[[step]]\nrun = [\"true\"]\n";
    let (dir, path) = dir_with(job);
    let link = dir.path().join("link.toml");
    std::os::unix::fs::symlink("job.toml", &link).unwrap();
    pin(&link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&path).unwrap().contains(BYTES));
}
