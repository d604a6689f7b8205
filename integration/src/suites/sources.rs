//! Where inputs come from: an island with servers inside and outside, and rules that say which of them is asked.

use super::{input, output, sh};
use crate::check::{Ending, Ran, equal, sha256};
use crate::harness::Test;
use crate::island::{INSIDE, Island, METADATA, OUTSIDE};
use crate::lab::Lab;
use anyhow::{Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub(super) const TESTS: &[Test] = &[
    Test::root("name_that_exists_inside_and_outside_is_asked_inside_alone", confusion),
    Test::root("credentials_and_authorities_belong_to_one_origin", secrets),
    Test::root("metadata_service_is_reached_by_no_name_and_no_redirect", metadata),
    Test::root("mirror_is_named_in_the_run_attestation_and_the_url_in_provenance", mirrors),
    Test::root("pin_asks_listed_origins_and_its_result_runs", pin),
    Test::both("rules_that_cannot_be_read_are_no_rules_to_go_without", rules),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
const NAME: &str = "acme-utils-1.0.tgz";

/// The operator's rules: what is inside, and what may be fetched from outside for whom.
fn write_rules(lab: &Lab, island: &Island<'_>) -> Result<()> {
    let ca = island.ca();
    let text = format!(
        "sources = 1
[project.default]
allow = [\"public\"]
[project.web]
allow = [\"packages\"]
[project.both]
allow = [\"packages\", \"public\", \"closed\"]
[origin.packages]
url = \"https://pkg.corp.test/\"
addresses = [\"10.1.0.0/16\"]
ca = '{0}'
mirror_of = [\"https://registry.public.test/mirrored/\"]
[origin.closed]
url = \"https://pkg.corp.test/closed/\"
addresses = [\"10.1.0.0/16\"]
ca = '{0}'
auth = {{ basic = \"secret\" }}
[origin.public]
url = \"https://registry.public.test/\"
ca = '{0}'
",
        ca.display()
    );
    lab.write("sources.toml", text)?;
    let secret = lab.write("secret", "builder:hush\n")?;
    fs::set_permissions(secret, fs::Permissions::from_mode(0o600)).map_err(Into::into)
}

fn job(lab: &Lab, url: &str, bytes: &str) -> Result<std::path::PathBuf> {
    let source = format!("http = {{ url = \"{url}\", sha256 = \"{}\" }}", sha256(bytes.as_bytes()));
    let body = input("src", &source, "/build/src", false) + &sh("a", "cat /build/src > /build/out");
    lab.job(&(body + &output("out", "/build/out")))
}

/// Runs a job of a project that takes one file.
fn run(lab: &Lab, island: &Island<'_>, project: &str, url: &str, bytes: &str) -> Result<Ran> {
    let call = lab.run(&job(lab, url, bytes)?).arg("--project").arg(project);
    island.within(call).end()
}

fn confusion(lab: &Lab) -> Result<()> {
    let island = Island::start(lab)?;
    write_rules(lab, &island)?;
    let names = [("pkg.corp.test", INSIDE), ("registry.public.test", OUTSIDE)];
    island.names(&names)?;
    island.file(INSIDE, NAME, "ours")?;
    island.file(OUTSIDE, NAME, "a stranger's")?;
    island.file(OUTSIDE, &format!("mirrored/{NAME}"), "a stranger's")?;
    let inside = format!("https://pkg.corp.test/{NAME}");
    let outside = format!("https://registry.public.test/{NAME}");
    let mirrored = format!("https://registry.public.test/mirrored/{NAME}");
    let ran = run(lab, &island, "web", &inside, "ours")?.ended(&SUCCEEDED)?;
    equal("bytes", &ran.output_text("out")?, &"ours".to_owned())?;
    // The name of outside, from inside. The bytes are in the store; so other ones are asked for.
    island.file(INSIDE, NAME, "ours, and newer")?;
    run(lab, &island, "web", &mirrored, "ours, and newer")?.ended(&SUCCEEDED)?;
    // Wrong bytes inside are no reason to look outside, where there are others.
    run(lab, &island, "web", &mirrored, "a stranger's")?.exits(65)?.says(&["input.digest_mismatch"])?;
    run(lab, &island, "web", &outside, "a stranger's")?
        .exits(77)?
        .says(&["[project.web]", "registry.public.test"])?;
    // Inside's name now leads outside, as a squatter would have it.
    island.names(&[("pkg.corp.test", OUTSIDE), ("registry.public.test", OUTSIDE)])?;
    run(lab, &island, "web", &inside, "a stranger's")?.exits(77)?.says(&["9.9.1.1", "[origin.packages]"])?;
    equal("connections outside", &island.connections(OUTSIDE)?, &0)?;
    // And the other way round: what is public for a project never leads inside.
    let before = island.connections(INSIDE)?;
    ensure!(before >= 3, "{before} connections inside");
    island.names(&[("pkg.corp.test", INSIDE), ("registry.public.test", INSIDE)])?;
    run(lab, &island, "default", &outside, "ours, too")?.exits(77)?.says(&["10.1.0.1", "private"])?;
    run(lab, &island, "default", &inside, "ours, too")?.exits(77)?.says(&["not an origin"])?;
    run(lab, &island, "wep", &inside, "ours, too")?.exits(77)?.says(&["did you mean \"web\"?"])?;
    equal("connections inside", &island.connections(INSIDE)?, &before)?;
    island.names(&names)?;
    run(lab, &island, "default", &outside, "a stranger's")?.ended(&SUCCEEDED)?;
    equal("connections outside", &island.connections(OUTSIDE)?, &1).map(drop)
}

fn secrets(lab: &Lab) -> Result<()> {
    let island = Island::start(lab)?;
    write_rules(lab, &island)?;
    island.names(&[("pkg.corp.test", INSIDE), ("registry.public.test", OUTSIDE)])?;
    island.file(INSIDE, "closed/a", "closed")?;
    island.file(OUTSIDE, "b", "open")?;
    run(lab, &island, "both", "https://pkg.corp.test/closed/a", "closed")?.ended(&SUCCEEDED)?;
    // Another spelling of a path below it is not below it: no password goes there.
    let odd = "https://pkg.corp.test/closed/..%2fclosed/a";
    let ran = run(lab, &island, "both", odd, "closed, too")?;
    ensure!(ran.status != Some(0), "{}", ran.stderr);
    let leads = "https://pkg.corp.test/to/registry.public.test/b";
    run(lab, &island, "both", leads, "open")?.ended(&SUCCEEDED)?;
    let (inside, outside) = (island.log(INSIDE)?, island.log(OUTSIDE)?);
    let shown: Vec<&str> = inside.lines().filter(|line| line.contains("Basic ")).collect();
    ensure!(shown.len() == 1 && shown[0].contains("/closed/a 200"), "{inside}");
    ensure!(outside.contains("/b 200 \"-\"") && !outside.contains("Basic"), "{outside}");
    // Whose certificate comes from elsewhere is not believed, and gets no password.
    let rules =
        fs::read_to_string(lab.sources())?.replace(&format!("ca = '{}'\n", island.ca().display()), "");
    lab.write("sources.toml", rules)?;
    run(lab, &island, "both", "https://pkg.corp.test/closed/a", "closed, three")?
        .exits(75)?
        .says(&["certificate"])?;
    equal("what was shown", &island.log(INSIDE)?.matches("Basic ").count(), &1)?;
    // Who else can read the secret: then it is none. A step must not read it either.
    fs::set_permissions(lab.path("secret"), fs::Permissions::from_mode(0o644))?;
    write_only_mode(lab, &island)?;
    write_rules(lab, &island)?;
    fs::create_dir(lab.path("tree"))?;
    fs::rename(lab.path("secret"), lab.path("tree/secret"))?;
    std::os::unix::fs::symlink("tree/secret", lab.path("secret"))?;
    let body = input("tree", &format!("path = '{}'", lab.path("tree").display()), "/build/tree", false);
    let call = lab.run(&lab.job(&(body + &sh("a", "cat /build/tree/secret")))?).args(["--project", "both"]);
    island.within(call).end()?.exits(64)?.says(&["an origin knows us by"]).map(drop)
}

fn write_only_mode(lab: &Lab, island: &Island<'_>) -> Result<()> {
    let ran = run(lab, island, "both", "https://pkg.corp.test/closed/a", "closed, four")?;
    ran.exits(64)?.says(&["others can read or write it", "0600"]).map(drop)
}

fn metadata(lab: &Lab) -> Result<()> {
    let island = Island::start(lab)?;
    island.names(&[("meta.test", METADATA), ("registry.public.test", OUTSIDE), ("pkg.corp.test", INSIDE)])?;
    island.file(METADATA, "latest/meta-data/role", "key")?;
    island.file(OUTSIDE, "c", "public")?;
    // The lab's own rules: every public address.
    let attempt = |url: &str| island.within(lab.run(&job(lab, url, "key")?)).end();
    let secret = "latest/meta-data/role";
    for url in [
        format!("http://169.254.169.254/{secret}"),
        format!("http://2852039166/{secret}"),
        format!("http://0xa9fea9fe/{secret}"),
        format!("http://[::ffff:169.254.169.254]/{secret}"),
        format!("http://meta.test/{secret}"),
        format!("http://registry.public.test/plain-to/meta.test/{secret}"),
        format!("http://registry.public.test/plain-to/169.254.169.254/{secret}"),
        "http://pkg.corp.test/x".to_owned(),
        "http://localhost/x".to_owned(),
        "http://127.0.0.1/x".to_owned(),
    ] {
        attempt(&url)?.exits(77)?.says(&["input.source_denied"])?;
    }
    for site in [METADATA, INSIDE] {
        equal(site.name, &island.connections(site)?, &0)?;
    }
    // So that it is seen that the public address can be asked at all.
    let ran = island.within(lab.run(&job(lab, "http://registry.public.test/c", "public")?)).end()?;
    ran.ended(&SUCCEEDED)?;
    equal("connections outside", &island.connections(OUTSIDE)?, &3).map(drop)
}

fn mirrors(lab: &Lab) -> Result<()> {
    let island = Island::start(lab)?;
    write_rules(lab, &island)?;
    island.names(&[("pkg.corp.test", INSIDE), ("registry.public.test", OUTSIDE)])?;
    island.file(OUTSIDE, "a", "something else")?;
    island.file(INSIDE, "copy", "right")?;
    let (url, mirror) = ("https://registry.public.test/a", "https://pkg.corp.test/copy");
    let source =
        format!("http = {{ url = \"{url}\", sha256 = \"{}\", mirrors = [\"{mirror}\"] }}", sha256(b"right"));
    let body = input("src", &source, "/build/src", false)
        + &sh("a", "cat /build/src > /build/out")
        + &output("out", "/build/out");
    let call = lab.run(&lab.job(&body)?).args(["--project", "both"]);
    let ran =
        island.within(call).end()?.ended(&SUCCEEDED)?.says(&["passed over", url, "input.digest_mismatch"])?;
    ran.verifies_output("out")?;
    let provenance = ran.statement("out.intoto.jsonl")?;
    let definition = &provenance["predicate"]["buildDefinition"];
    equal("uri", &definition["resolvedDependencies"][1]["uri"], &url.into())?;
    equal("mirrors", &definition["externalParameters"]["inputs"][0]["mirrors"][0], &mirror.into())?;
    let claimed = |ran: &Ran| -> Result<serde_json::Value> {
        let statement = ran.statement("run.intoto.jsonl")?;
        let text = statement["predicate"]["agentClaims"]["downloads"].as_str().unwrap_or_default().to_owned();
        Ok(serde_json::from_str::<serde_json::Value>(&text)?["src"].clone())
    };
    let first = claimed(&ran)?;
    ensure!(first["from"] == mirror && first["earlier"] == false, "{first}");
    // This project has had it from one of these places: nobody is asked, and that is claimed.
    let call = lab.run(&lab.job(&body)?).args(["--project", "both"]);
    let again = island.within(call).end()?.ended(&SUCCEEDED)?;
    let earlier = claimed(&again)?;
    ensure!(
        earlier["from"] == mirror && earlier["earlier"] == true && earlier["at"] == first["at"],
        "{earlier}"
    );
    // What the mirror gave is nothing to a job that names the URL alone.
    let alone = body.replace(&format!(", mirrors = [\"{mirror}\"]"), "");
    let call = lab.run(&lab.job(&alone)?).args(["--project", "both"]);
    island.within(call).end()?.exits(65)?.says(&["input.digest_mismatch"])?;
    // But the rules hold.
    let call = lab.run(&lab.job(&body)?).args(["--project", "web"]);
    island.within(call).end()?.exits(77)?.says(&["input.source_denied"]).map(drop)
}

fn pin(lab: &Lab) -> Result<()> {
    let island = Island::start(lab)?;
    write_rules(lab, &island)?;
    island.names(&[("pkg.corp.test", INSIDE), ("registry.public.test", OUTSIDE)])?;
    island.file(INSIDE, "closed/a", "closed")?;
    let body = input("src", "http = { url = \"https://pkg.corp.test/closed/a\" } # why", "/build/src", false)
        + &sh("a", "cat /build/src > /build/out")
        + &output("out", "/build/out");
    let job = lab.job(&body)?;
    let pin = |job: &Path, args: &[&str]| {
        let call = lab.ampoule().arg("pin").arg(job).arg("--sources").arg(lab.sources()).args(args);
        island.within(call).end()
    };
    lab.run(&job).end()?.exits(64)?.says(&["input.unpinned", "ampoule pin"])?;
    let checked = pin(&job, &["--check", "--json"])?.exits(64)?;
    let lines = checked.json_lines()?;
    equal("field", &lines[0]["field"], &"input[0].http".into())?;
    equal("code", &lines[1]["code"], &"input.unpinned".into())?;
    let before = fs::read(&job)?;
    pin(&job, &[])?.exits(77)?.says(&["input[0].http", "input.source_denied"])?;
    equal("the file", &fs::read(&job)?, &before)?;
    equal("connections", &island.connections(INSIDE)?, &0)?;
    let pinned = pin(&job, &["--project", "both", "--json"])?.exits(0)?.json_lines()?;
    let digest = sha256(b"closed");
    equal("pin", &pinned[0]["pin"], &format!("sha256:{digest}").into())?;
    let text = fs::read_to_string(&job)?;
    ensure!(text.contains(&format!("closed/a\", sha256 = \"{digest}\" }} # why")), "{text}");
    pin(&job, &["--check"])?.exits(0)?;
    let ran = island.within(lab.run(&job).args(["--project", "both"])).end()?.ended(&SUCCEEDED)?;
    equal("bytes", &ran.output_text("out")?, &"closed".to_owned())
}

fn rules(lab: &Lab) -> Result<()> {
    let job = lab.job(&sh("a", "true"))?;
    let attempt = |text: &str| {
        lab.write("sources.toml", text)?;
        lab.run(&job).end()
    };
    attempt("sources = 1\n[project.default]\nalow = []\n")?
        .exits(64)?
        .says(&["sources.toml:3:1", "\"allow\""])?;
    attempt("sources = 1\n[project.web]\nallow = []\n")?.exits(77)?.says(&["\"default\"", "--project"])?;
    fs::set_permissions(lab.sources(), fs::Permissions::from_mode(0o666))?;
    attempt("sources = 1\n[project.default]\nallow = []\n")?.exits(64)?.says(&["chmod go-w"])?;
    fs::remove_file(lab.sources())?;
    lab.run(&job).end()?.exits(64)?.says(&["sources.toml"])?;
    // The same in its own place, where it need not be named.
    let bare = |config: &Path| {
        let call = lab.ampoule().arg("run").arg(&job).arg("--state").arg(lab.state());
        call.env("XDG_CONFIG_HOME", config).end()
    };
    let config = lab.path("config");
    let place = lab.write("config/ampoule/sources.toml", "sources = 2\n")?;
    fs::set_permissions(&place, fs::Permissions::from_mode(0o600))?;
    // Root's HOME may be somebody else's, so there it is not looked at.
    bare(&config)?.exits(if lab.is_root() { 0 } else { 64 })?;
    fs::remove_file(&place)?;
    bare(&config)?.exits(0).map(drop)
}
