//! Logs: every byte of a step's streams, whatever it is.

use super::{exec, probe, sh, with_probe};
use crate::check::{Ending, equal, sha256};
use crate::harness::Test;
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub(super) const TESTS: &[Test] = &[
    Test::both("logs_are_byte_exact", byte_exact),
    Test::both("a_mebibyte_on_each_stream_is_kept_whole", mebibyte),
    Test::both("log_over_its_limit_is_cut_in_the_middle_and_counted", cut),
    Test::both("terminal_gets_prefixed_lines_without_control_bytes", terminal),
    Test::both("raw_passes_the_bytes_through", raw),
    Test::both("closed_streams_are_no_reason_to_wait", closed),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// What `probe pattern` writes.
fn pattern(bytes: usize, salt: usize) -> Vec<u8> {
    (0..bytes).map(|n| ((n * 7 + n / 256 + salt) % 256).to_le_bytes()[0]).collect()
}

/// The report's entry of a stream.
fn stream<'v>(report: &'v Value, name: &str) -> Result<&'v Value> {
    let logs = report["steps"][0]["logs"].as_array().context("no logs")?;
    logs.iter().find(|l| l["stream"] == name).with_context(|| format!("no {name} in {logs:?}"))
}

fn byte_exact(lab: &Lab) -> Result<()> {
    let script = r"printf 'a\000b\377\376\r\n\033[2J::warning::x\n\n  '; printf 'no newline' >&2";
    let ran = lab.run_job(&sh("a", script))?.ended(&SUCCEEDED)?;
    let expected = b"a\0b\xff\xfe\r\n\x1b[2J::warning::x\n\n  ";
    equal("stdout", ran.log("0-a.stdout")?.as_slice(), expected.as_slice())?;
    equal("stderr", ran.log("0-a.stderr")?.as_slice(), b"no newline")?;
    let report = ran.report()?;
    let out = stream(&report, "stdout")?;
    equal("bytes", &out["bytes"], &Value::from(expected.len()))?;
    equal("sha256", &out["sha256"], &Value::from(sha256(expected)))?;
    let both = ran.log("0-a.log")?;
    equal("both", &both.len(), &(expected.len() + 10))
}

fn mebibyte(lab: &Lab) -> Result<()> {
    let size = 1 << 20;
    let text = size.to_string();
    let ran =
        lab.run_job(&(with_probe(lab)? + &probe("a", &["pattern", &text, &text])))?.ended(&SUCCEEDED)?;
    ensure!(ran.log("0-a.stdout")? == pattern(size, 1), "stdout differs");
    ensure!(ran.log("0-a.stderr")? == pattern(size, 2), "stderr differs");
    let report = ran.report()?;
    equal("sha256", &stream(&report, "stderr")?["sha256"], &Value::from(sha256(&pattern(size, 2))))
}

fn cut(lab: &Lab) -> Result<()> {
    let (size, kept) = (3 << 20, 1 << 20);
    let text = size.to_string();
    let body = with_probe(lab)? + &probe("a", &["pattern", &text]) + "[limits]\nlog = \"1MiB\"\n";
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let (whole, log) = (pattern(size, 1), ran.log("0-a.stdout")?);
    let report = ran.report()?;
    let out = stream(&report, "stdout")?;
    equal("bytes", &out["bytes"], &Value::from(size))?;
    equal("sha256 of the whole stream", &out["sha256"], &Value::from(sha256(&whole)))?;
    equal("cut bytes", &out["cut_bytes"], &Value::from(size - log.len()))?;
    ensure!(log.len() <= kept && log.len() >= kept - 4096, "{} bytes are kept of {kept}", log.len());
    let head = log.iter().zip(&whole).take_while(|(a, b)| a == b).count();
    let tail = log.iter().rev().zip(whole.iter().rev()).take_while(|(a, b)| a == b).count();
    ensure!(
        head + tail >= log.len() && head >= 1024 && tail >= 1024,
        "kept {head} at the head, {tail} at the tail"
    );
    let statement = ran.statement("run.intoto.jsonl")?;
    let attested = &statement["predicate"]["steps"][0]["logs"][0];
    equal("attested", &attested["cutBytes"], &Value::from((size - log.len()).to_string()))
}

fn terminal(lab: &Lab) -> Result<()> {
    let script = r"printf 'plain\n\033]0;title\007\n::set-output::x\n##[group]y\na\tb\n'; printf 'half' >&2";
    let ran = lab.run_job(&sh("build", script))?.ended(&SUCCEEDED)?;
    for line in ["build | plain", "build | half"] {
        ensure!(ran.stderr.lines().any(|l| l == line), "no line {line:?}:\n{}", ran.stderr);
    }
    // A tab moves nothing but the cursor, and compilers print many.
    let bad = ran.stderr.chars().find(|c| c.is_control() && !matches!(*c, '\n' | '\t'));
    ensure!(bad.is_none(), "a control character reaches the terminal: {bad:?}");
    // At the start of a line, and for some systems at any place of it.
    let starts = ran.stderr.lines().any(|l| l.trim_start().starts_with("::") || l.starts_with("##"));
    let holds = ["##[", "##vso[", "##teamcity["].iter().any(|c| ran.stderr.contains(c));
    ensure!(!starts && !holds, "a CI command:\n{}", ran.stderr);
    ensure!(ran.stdout.is_empty(), "stdout is for data: {}", ran.stdout_text());
    // Escaped once: a reader must be able to tell what was written.
    ensure!(!ran.stderr.contains(r"\\u{"), "escaped twice:\n{}", ran.stderr);
    Ok(())
}

fn raw(lab: &Lab) -> Result<()> {
    let job = lab.job(&sh("a", r"printf 'a\000\377\033[1m'; printf 'err\001' >&2"))?;
    let ran = lab.run(&job).arg("--raw").end()?.ended(&SUCCEEDED)?;
    equal("stdout", ran.stdout.as_slice(), b"a\0\xff\x1b[1m".as_slice())?;
    ensure!(ran.stderr.contains("err\u{1}"), "stderr lacks the bytes:\n{}", ran.stderr);
    Ok(())
}

fn closed(lab: &Lab) -> Result<()> {
    let body = sh("a", "exec >&- 2>&-; sleep 0.2; true") + &exec("b", &["true"]);
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal("stdout", ran.log("0-a.stdout")?.as_slice(), b"".as_slice())
}
