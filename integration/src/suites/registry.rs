//! Images from Debian's docker-registry, put there by skopeo and umoci.

use super::images::root;
use super::{exec, output};
use crate::check::{Ending, anything_holds, equal, read, sha256};
use crate::harness::Test;
use crate::image::{Entry, oci_layout, plain_layout, tar};
use crate::lab::Lab;
use crate::registry::{Blobs, LOGIN, Registry, Wants};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("image_is_pulled_by_its_digest_and_nothing_is_asked_for_twice", once),
    Test::both("layers_come_in_gzip_zstd_and_plain_and_manifests_in_either_kind", kinds),
    Test::both("umocis_whiteouts_and_links_are_the_root_and_attributes_are_not_kept", umoci),
    Test::both("token_service_that_is_listed_gives_the_token_and_another_is_not_asked", tokens),
    Test::both("blobs_on_another_host_are_fetched_without_credentials", elsewhere),
    Test::both("failures_name_registry_repository_reference_and_remedy", failures),
    Test::both("bytes_that_the_registry_lost_or_changed_are_refused", lost),
    Test::both("image_for_another_platform_and_schema_1_are_refused", not_for_us),
    Test::both("cancelled_pull_leaves_nothing", cancelled),
    Test::both("pin_writes_the_digest_that_a_tag_has_now", pin),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

fn layers(lab: &Lab) -> Result<[Vec<u8>; 2]> {
    let upper = tar(&[Entry::Dir("opt/"), Entry::File("opt/changed", 0o644, b"upper\n")])?;
    Ok([root(&read(&lab.probe()?)?)?, upper])
}

/// A job that shows that the image is the one of [`layers`].
fn body() -> String {
    exec("changed", &["/bin/probe", "cat", "/opt/changed"])
        + &exec("x", &["/bin/probe", "write", "/build/x", "made"])
        + &output("x", "/build/x")
}

fn start<'a>(lab: &'a Lab<'a>) -> Result<Registry<'a>> {
    Registry::start(lab, Wants::Password, Blobs::Here)
}

fn once(lab: &Lab) -> Result<()> {
    let registry = start(lab)?;
    oci_layout(&lab.path("layout"), &layers(lab)?)?;
    let digest = registry.copy("oci:layout:base", "team/base:v1", &["--format", "oci"])?;
    let image = format!("docker://{}/team/base:v1@sha256:{digest}", registry.host());
    let job = lab.job_of(&image, &body())?;
    let ran = registry.run(&job).end()?.ended(&SUCCEEDED)?;
    equal("file of the upper layer", &ran.log_text("0-changed.stdout")?, &"upper\n".to_owned())?;
    let statement = ran.statement("x.intoto.jsonl")?;
    let named = &statement["predicate"]["buildDefinition"]["resolvedDependencies"][0];
    equal("digest", &named["digest"]["sha256"], &Value::from(digest.as_str()))?;
    equal("URI", &named["uri"], &Value::from(format!("oci://{}/team/base:v1", registry.host())))?;
    ran.verifies_output("x")?;
    for secret in ["s3cret", "bWU6czNjcmV0"] {
        let found = anything_holds(&ran.out, secret.as_bytes())?;
        ensure!(found.is_none() && !ran.stderr.contains(secret), "the password is in {found:?}");
    }
    let asked = registry.asked()?;
    let of =
        |method: &str, part: &str| asked.iter().filter(|a| a.starts_with(method) && a.contains(part)).count();
    equal(
        "blobs that were fetched",
        &asked.iter().filter(|a| a.contains("/blobs/") && a.ends_with("200")).count(),
        &3,
    )?;
    ensure!(of("PUT", "") + of("POST", "") == 0 && of("GET", "/tags/") == 0, "{asked:?}");
    registry.run(&job).end()?.ended(&SUCCEEDED)?;
    equal("what a second run asked", &registry.asked()?.len(), &asked.len())?;
    // A layer that is here is not fetched for another image.
    let more = tar(&[Entry::Dir("opt/"), Entry::File("opt/more", 0o644, b"more\n")])?;
    oci_layout(&lab.path("more"), &[layers(lab)?.to_vec(), vec![more]].concat())?;
    let digest = registry.copy("oci:more:base", "team/more:v1", &["--format", "oci"])?;
    let image = format!("docker://{}/team/more@sha256:{digest}", registry.host());
    registry.run(&lab.job_of(&image, &body())?).end()?.ended(&SUCCEEDED)?;
    let blobs =
        registry.asked()?.iter().filter(|a| a.contains("team/more/blobs/") && a.ends_with("200")).count();
    equal("blobs for an image of one layer more", &blobs, &2)?;
    by_index(lab, &registry)
}

/// An index, put there with curl: the second run asks for the index alone.
fn by_index(lab: &Lab, registry: &Registry<'_>) -> Result<()> {
    let manifest = registry.get("team/base/manifests/v1")?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": kind, "digest": format!("sha256:{}", sha256(&manifest)), "size": manifest.len(),
            "platform": {"os": "linux", "architecture": "amd64"}}],
    }))?;
    let file = lab.write("index.json", &index)?;
    lab.call("curl")
        .args(["--silent", "--fail", "--user", LOGIN, "--request", "PUT", "--cacert"])
        .arg(registry.path("ca.pem"))
        .args(["--header", "Content-Type: application/vnd.oci.image.index.v1+json", "--data-binary"])
        .arg(format!("@{}", file.display()))
        .arg(format!("https://{}/v2/team/base/manifests/many", registry.host()))
        .end()?
        .exits(0)?;
    let before = registry.asked()?.len();
    let image = format!("docker://{}/team/base:many@sha256:{}", registry.host(), sha256(&index));
    let ran = registry.run(&lab.job_of(&image, &body())?).end()?.ended(&SUCCEEDED)?;
    let named = &ran.statement("x.intoto.jsonl")?["predicate"]["buildDefinition"]["resolvedDependencies"][0];
    equal("manifest of the index", &named["digest"]["sha256"], &Value::from(sha256(&manifest)))?;
    let asked = registry.asked()?;
    let new: Vec<_> = asked.iter().skip(before).filter(|a| a.ends_with("200")).collect();
    ensure!(new.len() == 2 && new.iter().all(|a| a.contains("/manifests/sha256:")), "{new:?}");
    Ok(())
}

fn kinds(lab: &Lab) -> Result<()> {
    let registry = start(lab)?;
    let [lower, _] = layers(lab)?;
    for (name, packed, flags, layer_type) in [
        ("docker", true, &["--format", "v2s2"][..], "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        ("oci", true, &["--format", "oci"], "application/vnd.oci.image.layer.v1.tar+gzip"),
        (
            "zstd",
            false,
            &["--format", "oci", "--dest-compress-format", "zstd"],
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
        ("plain", false, &["--preserve-digests"], "application/vnd.oci.image.layer.v1.tar"),
    ] {
        // Every image has a layer of its own.
        let upper = tar(&[Entry::Dir("opt/"), Entry::File("opt/changed", 0o644, name.as_bytes())])?;
        let write = if packed { oci_layout } else { plain_layout };
        write(&lab.path(name), &[lower.clone(), upper])?;
        let digest = registry.copy(&format!("oci:{name}:base"), &format!("kinds/{name}:v1"), flags)?;
        let bytes = registry.get(&format!("kinds/{name}/manifests/sha256:{digest}"))?;
        let manifest: Value = serde_json::from_slice(&bytes)?;
        equal("kind of the layers", &manifest["layers"][0]["mediaType"], &Value::from(layer_type))?;
        let image = format!("docker://{}/kinds/{name}@sha256:{digest}", registry.host());
        let ran = registry.run(&lab.job_of(&image, &body())?).end()?.ended(&SUCCEEDED)?;
        equal(name, &ran.log_text("0-changed.stdout")?, &name.to_owned())?;
    }
    Ok(())
}

fn umoci(lab: &Lab) -> Result<()> {
    let registry = start(lab)?;
    let call = |args: &[&str]| -> Result<()> {
        let rootless: &[&str] = if lab.is_root() { &[] } else { &["--rootless"] };
        let (command, rest) = args.split_first().context("no command")?;
        let flags = if *command == "unpack" { rootless } else { &[] };
        lab.call("umoci").args(command.split(' ')).args(flags).args(rest).end()?.exits(0).map(drop)
    };
    call(&["init", "--layout", "made"])?;
    call(&["new", "--image", "made:base"])?;
    call(&["unpack", "--image", "made:base", "bundle"])?;
    let tree = lab.path("bundle/rootfs");
    fs::create_dir_all(tree.join("opt/opaque"))?;
    fs::create_dir_all(tree.join("bin"))?;
    fs::copy(lab.probe()?, tree.join("bin/probe"))?;
    for name in ["opt/gone", "opt/one", "opt/opaque/lower"] {
        fs::write(tree.join(name), "lower\n")?;
    }
    fs::hard_link(tree.join("opt/one"), tree.join("opt/two"))?;
    let attribute = "import os, sys; os.setxattr(sys.argv[1], 'user.kept', b'no')";
    lab.call("/usr/bin/python3").args(["-c", attribute]).arg(tree.join("opt/one")).end()?.exits(0)?;
    call(&["repack", "--refresh-bundle", "--image", "made:base", "bundle"])?;
    fs::remove_file(tree.join("opt/gone"))?;
    call(&["repack", "--image", "made:base", "bundle"])?;
    let opaque = tar(&[
        Entry::Dir("opt/opaque/"),
        Entry::File("opt/opaque/.wh..wh..opq", 0o644, b""),
        Entry::File("opt/opaque/upper", 0o644, b"upper\n"),
    ])?;
    let opaque = lab.write("opaque.tar", opaque)?.display().to_string();
    call(&["raw add-layer", "--image", "made:base", &opaque])?;
    let search =
        "for blob in made/blobs/sha256/*; do gzip -dcfq $blob; done | grep -qa SCHILY.xattr.user.kept";
    lab.call("sh").args(["-c", search]).end()?.exits(0)?;
    let digest = registry.copy("oci:made:base", "made/by/umoci:v1", &["--format", "oci"])?;
    let image = format!("docker://{}/made/by/umoci:v1@sha256:{digest}", registry.host());
    let body = exec("opt", &["/bin/probe", "list", "/opt"])
        + &exec("opaque", &["/bin/probe", "list", "/opt/opaque"])
        + &exec("two", &["/bin/probe", "cat", "/opt/two"])
        + &exec("attributes", &["/bin/probe", "attributes", "/opt/one"]);
    let ran = registry.run(&lab.job_of(&image, &body)?).end()?.ended(&SUCCEEDED)?;
    let listed = ran.log_text("0-opt.stdout")?;
    ensure!(listed.contains("one") && listed.contains("two") && !listed.contains("gone"), "/opt: {listed}");
    equal("opaque directory", &ran.log_text("1-opaque.stdout")?, &"/opt/opaque=upper \n".to_owned())?;
    equal("second name of a file", &ran.log_text("2-two.stdout")?, &"lower\n".to_owned())?;
    equal("extended attributes", &ran.log_text("3-attributes.stdout")?, &"/opt/one=\n".to_owned())
}

fn tokens(lab: &Lab) -> Result<()> {
    let registry = Registry::start(lab, Wants::Token, Blobs::Here)?;
    registry.list_all()?;
    oci_layout(&lab.path("layout"), &layers(lab)?)?;
    // skopeo asks the token service too, so it must be there before it is listed for us.
    let digest = registry.copy("oci:layout:base", "team/base:v1", &["--format", "oci"])?;
    let before = registry.asked_beside("tokens")?.len();
    let image = format!("docker://{}/team/base@sha256:{digest}", registry.host());
    let job = lab.job_of(&image, &body())?;
    registry.list(&[])?;
    let ran = registry.run(&job).end()?.exits(77)?;
    ran.says(&["input.source_denied", "for a token", "[origin.NAME] with url"])?;
    equal("what the token service was asked", &registry.asked_beside("tokens")?.len(), &before)?;
    registry.list_all()?;
    registry.run(&job).end()?.ended(&SUCCEEDED)?;
    let asked = registry.asked_beside("tokens")?;
    let new: Vec<_> = asked.iter().skip(before).collect();
    let [(path, shown)] = new.as_slice() else { anyhow::bail!("{new:?}") };
    ensure!(path.ends_with("scope=repository%3Ateam%2Fbase%3Apull"), "{path}");
    equal("what it was shown", shown, &"Basic bWU6czNjcmV0".to_owned())?;
    fs::write(registry.path("auth.json"), registry.credentials("me:wrong"))?;
    let image = format!("docker://{}/team/base@sha256:{}", registry.host(), sha256(b"another"));
    registry
        .run(&lab.job_of(&image, &body())?)
        .end()?
        .exits(77)?
        .says(&["does not accept the credentials"])
        .map(drop)
}

fn elsewhere(lab: &Lab) -> Result<()> {
    let registry = Registry::start(lab, Wants::Password, Blobs::Elsewhere)?;
    oci_layout(&lab.path("layout"), &layers(lab)?)?;
    let digest = registry.copy("oci:layout:base", "team/base:v1", &["--format", "oci"])?;
    let image = format!("docker://{}/team/base@sha256:{digest}", registry.host());
    let job = lab.job_of(&image, &body())?;
    registry.run(&job).end()?.exits(77)?.says(&["input.source_denied", "blob", "[origin.NAME]"])?;
    equal("what was asked elsewhere", &registry.asked_beside("files")?.len(), &0)?;
    registry.list_all()?;
    registry.run(&job).end()?.ended(&SUCCEEDED)?;
    let asked = registry.asked_beside("files")?;
    ensure!(asked.len() == 3 && asked.iter().all(|(_, shown)| shown.is_empty()), "{asked:?}");
    Ok(())
}

fn failures(lab: &Lab) -> Result<()> {
    let registry = start(lab)?;
    oci_layout(&lab.path("layout"), &layers(lab)?)?;
    let digest = registry.copy("oci:layout:base", "team/base:v1", &["--format", "oci"])?;
    let none = sha256(b"no such image");
    let at = |host: &str, rest: &str| format!("docker://{host}/{rest}");
    let host = registry.host();
    let own = registry.path("auth.json");
    let wrong = lab.write("wrong.json", registry.credentials("me:wrong"))?;
    let helper = lab.write("helper.json", format!("{{\"credHelpers\": {{\"{host}\": \"vault\"}}}}"))?;
    let open = lab.write("open.json", registry.credentials(LOGIN))?;
    for (path, mode) in [(&wrong, 0o600), (&helper, 0o600), (&open, 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let good = format!("team/base:v1@sha256:{digest}");
    for (image, auth, exit, says) in [
        (at(&host, "team/base:v1"), None, 64, &["input.unpinned", "ampoule pin"][..]),
        (at("debian", "x"), None, 64, &["job.invalid", "there is no default registry"]),
        (at(&host, &good), None, 77, &["input.source_denied", "401", "--registry-auth FILE"]),
        (
            at(&host, &good),
            Some(&wrong),
            77,
            &["input.source_denied", "401", "does not accept the credentials"],
        ),
        (at(&host, &good), Some(&helper), 64, &["input.refused", "vault", "no program is executed"]),
        (at(&host, &good), Some(&open), 64, &["file.unusable", "chmod 600"]),
        (
            at(&host, &format!("team/base@sha256:{none}")),
            Some(&own),
            64,
            &["input.missing", "404, MANIFEST_UNKNOWN"],
        ),
        (
            at(&host, &format!("team/none@sha256:{none}")),
            Some(&own),
            64,
            &["input.missing", "404", "team/none"],
        ),
        (at("localhost:1", &good), Some(&own), 77, &["input.source_denied", "localhost:1", "registry = "]),
    ] {
        let job = lab.job_of(&image, &body())?;
        let call = lab.run(&job);
        let call = match auth {
            Some(auth) => call.arg("--registry-auth").arg(auth),
            None => call,
        };
        let ran = call.end()?.exits(exit)?.says(says)?;
        ensure!(!ran.out.exists(), "{image}: there is an output directory");
        ensure!(!ran.stderr.contains("s3cret") && !ran.stderr.contains("wrong\""), "{}", ran.stderr);
        if exit == 77 || image.contains(&none) {
            let (repository, _) = image.split_once(['@']).unwrap_or_default();
            let repository = repository.trim_end_matches(":v1");
            ensure!(ran.stderr.contains(repository) && ran.stderr.contains("sha256:"), "{}", ran.stderr);
        }
    }
    // Authorities that know nothing of this one; a host that nobody knows.
    let job = lab.job_of(&at(&host, &good), &body())?;
    let text = fs::read_to_string(lab.sources())?;
    fs::write(lab.sources(), text.replace("registry/ca.pem", "registry/token.pem"))?;
    registry.run(&job).end()?.exits(75)?.says(&[
        "input.unreachable",
        "certificate is not trusted",
        "ca = ",
    ])?;
    fs::write(lab.sources(), text.replace(&host, "no-such-registry.invalid"))?;
    let job = lab.job_of(&at("no-such-registry.invalid", &good), &body())?;
    registry.run(&job).end()?.exits(75)?.says(&["input.unreachable", "host is not known"]).map(drop)
}

fn lost(lab: &Lab) -> Result<()> {
    let registry = start(lab)?;
    oci_layout(&lab.path("layout"), &layers(lab)?)?;
    let digest = registry.copy("oci:layout:base", "team/base:v1", &["--format", "oci"])?;
    let manifest: Value = serde_json::from_slice(&registry.get("team/base/manifests/v1")?)?;
    let of = |part: &Value| -> Result<String> {
        let digest = part["digest"].as_str().context("no digest")?;
        Ok(digest.trim_start_matches("sha256:").to_owned())
    };
    let job = lab.job_of(&format!("docker://{}/team/base@sha256:{digest}", registry.host()), &body())?;
    let (layer, config) = (of(&manifest["layers"][0])?, of(&manifest["config"])?);
    let flipped = |bytes: &[u8]| -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.last_mut().into_iter().for_each(|byte| *byte ^= 1);
        bytes
    };
    for (digest, change, exit, says) in [
        (&layer, "flip", 65, "layer sha256:"),
        (&config, "flip", 65, "configuration sha256:"),
        (&layer, "cut", 64, "descriptor says"),
        (&layer, "remove", 64, "404"),
    ] {
        let path = registry.blob(digest)?;
        let kept = read(&path)?;
        match change {
            "flip" => fs::write(&path, flipped(&kept))?,
            "cut" => fs::write(&path, kept.get(..kept.len() / 2).unwrap_or_default())?,
            _ => fs::remove_file(&path)?,
        }
        let ran = registry.run(&job).end()?.exits(exit)?.says(&[says, "team/base"])?;
        ensure!(!ran.out.exists(), "{change}: there is an output directory");
        fs::write(&path, kept)?;
    }
    registry.run(&job).end()?.ended(&SUCCEEDED).map(drop)
}

fn not_for_us(lab: &Lab) -> Result<()> {
    let registry = start(lab)?;
    oci_layout(&lab.path("layout"), &layers(lab)?)?;
    let run = |digest: &str, says: &[&str]| -> Result<()> {
        let image = format!("docker://{}/team/odd@sha256:{digest}", registry.host());
        registry.run(&lab.job_of(&image, &body())?).end()?.exits(64)?.says(says).map(drop)
    };
    // skopeo makes a schema 1 manifest only of a configuration with a history: umoci's.
    for args in [&["init", "--layout", "made"][..], &["new", "--image", "made:base"]] {
        lab.call("umoci").args(args).end()?.exits(0)?;
    }
    let layer = lab.write("layer.tar", tar(&[Entry::Dir("opt/")])?)?;
    lab.call("umoci").args(["raw", "add-layer", "--image", "made:base"]).arg(layer).end()?.exits(0)?;
    let digest = registry.copy("oci:made:base", "team/odd:v1", &["--format", "v2s1"])?;
    run(&digest, &["input.refused", "schema 1"])?;
    lab.call("umoci").args(["config", "--image", "made:base", "--architecture", "arm64"]).end()?.exits(0)?;
    let digest = registry.copy("oci:made:base", "team/odd:v1", &["--format", "oci"])?;
    run(&digest, &["input.refused", "for linux/arm64"])
}

fn cancelled(lab: &Lab) -> Result<()> {
    let registry = start(lab)?;
    oci_layout(&lab.path("layout"), &layers(lab)?)?;
    let digest = registry.copy("oci:layout:base", "team/base:v1", &["--format", "oci"])?;
    let job = lab.job_of(&format!("docker://{}/team/base@sha256:{digest}", registry.host()), &body())?;
    // It takes connections and says nothing.
    registry.signal(Signal::STOP)?;
    let mut live = registry.run(&job).start()?;
    std::thread::sleep(Duration::from_millis(700));
    ensure!(live.is_running(), "it does not wait for the registry");
    live.signal(Signal::INT)?;
    let ran = live.end()?.exits(3)?.says(&["job.cancelled"])?;
    ensure!(ran.took < Duration::from_secs(20) && !ran.out.exists(), "{:?}", ran.took);
    registry.signal(Signal::CONT)?;
    registry.run(&job).end()?.ended(&SUCCEEDED).map(drop)
}

fn pin(lab: &Lab) -> Result<()> {
    let registry = start(lab)?;
    let [lower, upper] = layers(lab)?;
    oci_layout(&lab.path("layout"), &[lower.clone(), upper])?;
    let digest = registry.copy("oci:layout:base", "team/base:v1", &["--format", "oci"])?;
    let job = lab.job_of(&format!("docker://{}/team/base:v1", registry.host()), &body())?;
    let pin = || lab.ampoule().arg("pin").arg(&job).arg("--sources").arg(lab.sources());
    pin().end()?.exits(77)?.says(&["input.source_denied", "401", "team/base:v1"])?;
    let auth = registry.path("auth.json");
    pin().arg("--registry-auth").arg(&auth).end()?.exits(0)?;
    let text = fs::read_to_string(&job)?;
    ensure!(text.contains(&format!("team/base:v1@sha256:{digest}\"")), "{text}");
    // The tag moves, and the job does not.
    oci_layout(&lab.path("other"), &[lower])?;
    let moved = registry.copy("oci:other:base", "team/base:v1", &["--format", "oci"])?;
    ensure!(moved != digest, "the tag has not moved");
    registry.run(&job).end()?.ended(&SUCCEEDED).map(drop)
}
