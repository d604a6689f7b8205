//! CI systems that run a real job through `ampoule submit --wait`, with the files of `examples/ci/`.

use super::tools::{CLIENTS, interpreter};
use super::{input, output, sh};
use crate::ampouled::Ampouled;
use crate::check::Ran;
use crate::harness::Test;
use crate::lab::{Call, Lab};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::TcpListener;
use std::path::Path;

/// What a machine may lack for all of these.
const PACKAGES: &str = "a Python with integration/requirements.txt that this user may run";

pub(super) const TESTS: &[Test] = &[
    Test::root("buildbot_builds_with_the_example_and_is_not_driven", buildbot).may_lack(PACKAGES),
    Test::root("act_builds_with_the_example_and_is_not_driven", act).may_lack(PACKAGES),
];

/// A step that writes what CI systems and terminals take for commands: each line of the corpus, escapes expanded.
const WRITES: &str = "while IFS= read -r line; do printf '%b\\n' \"$line\"; done < directives.txt";
/// A word that a mask would hide.
const WORD: &str = "plain-word";

/// Has a job file committed on the branch `main` of the repository; its name.
fn commit(lab: &Lab, end: &str) -> Result<String> {
    let dir = lab.path("app");
    fs::create_dir_all(&dir)?;
    fs::copy(lab.repository("integration/python/directives.txt"), dir.join("directives.txt"))?;
    let head = "ampoule = 1\nname = \"app\"\nprofile = \"hermetic\"\nimage = \"host\"\n";
    fs::write(dir.join("job.toml"), head.to_owned() + &job(end))?;
    let git = |args: &[&str]| {
        let call = lab.call("git").within(&dir).args(["-c", "user.name=a", "-c", "user.email=a@example"]);
        call.env("HOME", &dir).env("GIT_CONFIG_NOSYSTEM", "1").args(args).end()?.exits(0)
    };
    git(&["init", "--quiet", "--initial-branch=main"])?;
    git(&["add", "."])?;
    git(&["commit", "--quiet", "--message=x"])?;
    Ok(git(&["rev-parse", "HEAD"])?.stdout_text().trim().to_owned())
}

/// The job: reads the corpus, writes it, and ends in one way or the other.
fn job(end: &str) -> String {
    let script = format!("cp /build/src/directives.txt .; {WRITES}; echo {WORD} > out; {end}");
    input("src", "path = '.'\nexclude = ['.git', 'out']", "/build/src", false)
        + &sh("s", &script)
        + &output("made", "/build/out")
}

/// A call with what the example wants in its environment.
fn with_daemon<'l>(call: Call<'l>, lab: &Lab, daemon: &Ampouled) -> Result<Call<'l>> {
    let ampoule = lab.program("ampoule");
    let folder = ampoule.parent().context("ampoule is nowhere")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let call = call.env("AMPOULE_SERVER", format!("unix://{}", daemon.socket().display()));
    let call =
        call.env("AMPOULE_BUILDER_KEY", daemon.key()).env("PATH", format!("{}:{path}", folder.display()));
    Ok(call.env("HOME", lab.path("")).env("XDG_CACHE_HOME", lab.path("cache")))
}

/// Nothing of a text is what a CI system or a terminal would act on.
fn is_harmless(text: &str) -> Result<()> {
    ensure!(text.matches("s | ").count() > 25, "the step's lines are not there: {text}");
    for line in text.lines().filter(|line| line.contains("s | ")) {
        let (_, shown) = line.split_once("s | ").unwrap_or_default();
        let drives = line.trim_start().starts_with("::") || shown.chars().any(char::is_control);
        let azure = line.split_once("##").is_some_and(|(_, rest)| rest.contains('['));
        ensure!(!drives && !azure, "{line:?}");
    }
    Ok(())
}

fn buildbot(lab: &Lab) -> Result<()> {
    let python = interpreter(lab, &CLIENTS)?;
    let daemon = Ampouled::start_signing(lab)?;
    let (good, bad) = (commit(lab, "true")?, commit(lab, "exit 3")?);
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let call = lab.call(python).arg(lab.repository("integration/python/buildbot_run.py"));
    let call = call.arg(lab.repository("examples/ci/buildbot/master.cfg")).arg(lab.path("master")).arg(port);
    let call = call.env("APP_REPOSITORY", lab.path("app")).args([good, bad]);
    let text = with_daemon(call, lab, &daemon)?.end()?.exits(0)?.stdout_text();
    let (of_good, of_bad) =
        text.split_once("\nresult 2\n").with_context(|| format!("none failed: {text}"))?;
    ensure!(of_good.starts_with("result 0\n") && of_good.contains("\nstep ampoule 0\n"), "{text}");
    ensure!(of_good.contains("outputs and evidence: out"), "{text}");
    is_harmless(of_good)?;
    ensure!(of_bad.contains("\nstep ampoule 2\n") && of_bad.contains("step.exit_nonzero"), "{text}");
    daemon.stop()
}

/// Runs a workflow in a repository, on this host.
fn run(lab: &Lab, daemon: &Ampouled, dir: &Path, workflow: &str) -> Result<Ran> {
    let act = interpreter(lab, &CLIENTS)?.with_file_name("act");
    let path = dir.join("workflow.yml");
    fs::write(&path, workflow)?;
    let call = lab.call(act).within(dir).args(["push", "--rm", "-P", "ubuntu-latest=-self-hosted"]);
    let call = call.args(["--no-cache-server", "--cache-server-addr", "127.0.0.1", "-W"]).arg(path);
    // Without a network, so that nothing of it can be meant to come from elsewhere.
    with_daemon(call.through("unshare", &["-n"]), lab, daemon)?.end()
}

fn act(lab: &Lab) -> Result<()> {
    interpreter(lab, &CLIENTS)?;
    let daemon = Ampouled::start_signing(lab)?;
    commit(lab, "true")?;
    let dir = lab.path("app");
    let example = fs::read_to_string(lab.repository("examples/ci/act.yml"))?;
    // What a later step says is as it would be, had the job written nothing.
    let after = format!("      - run: echo \"after {WORD} [$TAKEN] [$PATH]\" && cat out/outputs/made\n");
    let ran = run(lab, &daemon, &dir, &(example.clone() + &after))?.exits(0)?;
    let text = ran.stdout_text();
    is_harmless(&text)?;
    let said = text.lines().find(|line| line.contains("| after ")).context("the later step is not there")?;
    ensure!(said.contains(&format!("after {WORD} [] [")) && !said.contains("/taken"), "{text}");
    // The same lines by a step of the workflow itself do hide the word: this reader can be driven.
    let (head, _) =
        example.split_once("      - run").context("the example has no step that runs something")?;
    let plain = format!("{head}      - run: {WRITES}\n{}", after.replace(" && cat out/outputs/made", ""));
    let driven = run(lab, &daemon, &dir, &plain)?.exits(0)?.stdout_text();
    ensure!(driven.contains("after ***"), "the corpus drives nobody: {driven}");
    commit(lab, "exit 3")?;
    let failed = run(lab, &daemon, &dir, &example.replace("gh-", "other-"))?;
    ensure!(failed.status == Some(1), "{:?} {}", failed.status, failed.stdout_text());
    ensure!(failed.stdout_text().contains("step.exit_nonzero"), "{}", failed.stdout_text());
    daemon.stop()
}
