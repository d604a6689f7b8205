//! Clients in Python against a daemon: stubs that are generated from our schema, and none of it at all.

use super::tools::{CLIENTS, interpreter};
use crate::ampouled::Ampouled;
use crate::check::{Ran, equal};
use crate::harness::Test;
use crate::lab::{Call, Lab};
use anyhow::{Result, ensure};
use std::fs;
use std::path::PathBuf;

/// What a machine may lack for all of these.
const PACKAGES: &str = "a Python with integration/requirements.txt that this user may run";

pub(super) const TESTS: &[Test] = &[
    Test::root("generated_client_does_everything_over_cut_connections", generated).may_lack(PACKAGES),
    Test::root("client_without_our_schema_asks_for_it_in_both_versions", reflected).may_lack(PACKAGES),
    Test::root("example_builds_verifies_and_keeps_what_it_was_promised", example).may_lack(PACKAGES),
];

/// A script with the stubs, the examples and its own folder on its path.
pub(super) fn script<'l>(lab: &'l Lab<'l>, name: &str) -> Result<Call<'l>> {
    let paths: Vec<String> =
        [stubs(lab)?, lab.repository("examples/python"), lab.repository("integration/python")]
            .iter()
            .map(|path| path.display().to_string())
            .collect();
    let call = lab.call(interpreter(lab, &CLIENTS)?).arg(lab.repository(name));
    // Nothing is written beside the sources.
    Ok(call.env("PYTHONPATH", paths.join(":")).env("PYTHONDONTWRITEBYTECODE", "1"))
}

/// Stubs as a stranger makes them: with the command that the documents show.
fn stubs(lab: &Lab) -> Result<PathBuf> {
    let stubs = lab.path("stubs");
    fs::create_dir_all(&stubs)?;
    let place = |path: &str| lab.repository(path).display().to_string();
    let call = lab.call(interpreter(lab, &CLIENTS)?).args(["-m", "grpc_tools.protoc"]);
    let call = call.args(["-I", &place("proto"), "--python_out=stubs", "--grpc_python_out=stubs"]);
    let files = ["job", "job_service", "content_service", "host_service"];
    call.args(files.map(|name| place(&format!("proto/ampoule/v1/{name}.proto")))).end()?.exits(0)?;
    Ok(stubs)
}

fn says(ran: Ran, text: &str) -> Result<()> {
    let ran = ran.exits(0)?;
    ensure!(ran.stdout_text().contains(text), "{}{}", ran.stdout_text(), ran.stderr);
    Ok(())
}

fn generated(lab: &Lab) -> Result<()> {
    let call = script(lab, "integration/python/generated.py")?;
    let daemon = Ampouled::start(lab)?;
    says(call.arg(daemon.socket()).arg(daemon.key()).arg(lab.path("")).end()?, "all of it")?;
    daemon.stop()
}

fn reflected(lab: &Lab) -> Result<()> {
    let call = script(lab, "integration/python/reflected.py")?;
    let shown = script(lab, "examples/python/reflect.py")?;
    let daemon = Ampouled::start(lab)?;
    says(call.arg(daemon.socket()).end()?, "both of them")?;
    let server = format!("unix://{}", daemon.socket().display());
    says(shown.arg(server).end()?, "ampoule.v1.JobService SubmitJob GetJob ListJobs WatchJob")?;
    daemon.stop()
}

fn example(lab: &Lab) -> Result<()> {
    let build = |out: &str, source: PathBuf, daemon: &Ampouled| -> Result<Ran> {
        let server = format!("unix://{}", daemon.socket().display());
        let call = script(lab, "examples/python/build.py")?.args(["--server", &server, "--project", "app"]);
        call.arg("--key").arg(daemon.key()).arg("--out").arg(lab.path(out)).arg(source).end()
    };
    interpreter(lab, &CLIENTS)?;
    let daemon = Ampouled::start(lab)?;
    let source =
        lab.write("hello.c", "#include <stdio.h>\nint main(void) { return puts(\"built\") < 0; }\n")?;
    let ran = build("built", source, &daemon)?.exits(0)?;
    ensure!(ran.stderr.contains("JOB_OUTCOME_SUCCEEDED"), "{}", ran.stderr);
    let program = lab.write("program", fs::read(lab.path("built/program"))?)?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    equal("the program says", &lab.call(program).end()?.exits(0)?.stdout_text(), &"built\n".to_owned())?;
    let wrong = lab.write("wrong.c", "int main(void) { return nothing; }\n")?;
    let ran = build("not-built", wrong, &daemon)?.exits(1)?;
    ensure!(ran.stderr.contains("step.exit_nonzero") && !lab.path("not-built").exists(), "{}", ran.stderr);
    daemon.stop()
}
