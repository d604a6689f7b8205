//! What lasts is told: to a program in objects, to a person with a bar that leaves nothing behind.

use super::{input, output, sh};
use crate::check::{Ending, Ran, equal, sha256};
use crate::harness::Test;
use crate::lab::Lab;
use crate::serve::Server;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("slow_download_is_told_in_objects_that_increase", download),
    Test::both("imports_and_outputs_are_told_with_what_is_known", rest),
    Test::both("terminal_has_a_bar_and_is_clean_afterwards", terminal),
    Test::both("nobody_at_a_terminal_is_told_nothing", pipe),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
const LASTS: Duration = Duration::from_secs(3);
const BYTES: usize = 500_000;

/// A job with a download that takes three seconds, and its server.
fn slow(lab: &Lab) -> Result<(Server, std::path::PathBuf)> {
    let body: Vec<u8> = (0..BYTES).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let digest = sha256(&body);
    let server = Server::start_slowly("200 OK", body, LASTS)?;
    lab.list(&server.url(""))?;
    let source = format!("http = {{ url = \"{}\", sha256 = \"{digest}\" }}", server.url("big"));
    let job = input("big", &source, "/build/big", false)
        + &sh("a", "echo it ran; cp /build/big /build/x")
        + &output("x", "/build/x");
    let job = lab.job(&job)?;
    Ok((server, job))
}

/// The objects that tell of one kind of work.
fn told(ran: &Ran, work: &str) -> Result<Vec<Value>> {
    let lines = ran.json_lines()?;
    Ok(lines.into_iter().filter(|line| line["event"] == "progress" && line["work"] == work).collect())
}

fn increases(told: &[Value], at_least: usize) -> Result<()> {
    ensure!(told.len() >= at_least, "told {} times: {told:?}", told.len());
    let bytes: Vec<_> = told.iter().map(|line| line["bytes"].as_u64().unwrap_or(u64::MAX)).collect();
    ensure!(bytes.windows(2).all(|pair| pair[0] <= pair[1]), "{bytes:?}");
    ensure!(bytes.first() < bytes.last(), "nothing came: {bytes:?}");
    let ended: Vec<_> = told.iter().map(|line| line["ended"] == true).collect();
    let (last, before) = ended.split_last().context("nothing was told")?;
    ensure!(*last && !before.contains(&true), "{ended:?}");
    Ok(())
}

fn download(lab: &Lab) -> Result<()> {
    let (_server, job) = slow(lab)?;
    let ran = lab.run(&job).arg("--json").end()?.ended(&SUCCEEDED)?;
    let told = told(&ran, "fetch")?;
    increases(&told, 8)?;
    // Ten a second, and not in the first one.
    ensure!(told.len() <= 35, "told {} times", told.len());
    let first = &told[0];
    equal("what", &first["what"], &Value::from("input big"))?;
    equal("total", &first["total"], &Value::from(BYTES))?;
    ensure!(first["bytes"].as_u64().is_some_and(|bytes| bytes > BYTES as u64 / 10), "{first}");
    let lines = ran.json_lines()?;
    let at = |event: &str| lines.iter().position(|line| line["event"] == event).context(event.to_owned());
    ensure!(at("importing")? < at("progress")? && at("progress")? < at("admitted")?, "out of order");
    equal("the last", &lines.last().context("nothing")?["event"], &Value::from("result"))
}

fn rest(lab: &Lab) -> Result<()> {
    // Nothing on a disk, and long enough to be told of.
    std::fs::File::create(lab.write("alone", "")?)?.set_len(700 << 20)?;
    std::fs::File::create(lab.write("dir/first", "")?)?.set_len(700 << 20)?;
    let path = |name: &str| format!("path = '{}'", lab.path(name).display());
    let body = input("alone", &path("alone"), "/build/alone", false)
        + &input("dir", &path("dir"), "/build/dir", false)
        + &sh("a", "mkdir /build/out; truncate -s 1500M /build/out/big")
        + &output("out", "/build/out")
        + &output("none", "/build/none")
        + "[limits]\ndisk = \"6GiB\"\n";
    // The second output is not there, so that nothing of the first is written anywhere.
    let ran = lab.run(&lab.job(&body)?).arg("--json").end()?.ended(&Ending("failed", "output.missing", 1))?;
    let imports = told(&ran, "import")?;
    let of = |what: &str| imports.iter().filter(|line| line["what"] == what).cloned().collect::<Vec<_>>();
    let (alone, dir) = (of("input alone"), of("input dir"));
    increases(&alone, 2)?;
    increases(&dir, 2)?;
    equal("total of a file", &alone[0]["total"], &Value::from(700_u64 << 20))?;
    ensure!(dir[0]["total"].is_null(), "nobody has counted a directory before it was read: {}", dir[0]);
    let outputs = told(&ran, "outputs")?;
    increases(&outputs, 2)?;
    equal("what", &outputs[0]["what"], &Value::from("the outputs"))
}

/// What is to be seen on a terminal in the end.
fn screen(bytes: &str) -> Vec<String> {
    let (mut lines, mut row, mut column) = (vec![Vec::<char>::new()], 0_usize, 0_usize);
    let mut letters = bytes.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                column = 0;
            }
            '\u{1b}' if letters.peek() == Some(&'[') => {
                letters.next();
                let mut number = String::new();
                let end = loop {
                    match letters.next() {
                        Some(letter) if letter.is_ascii_digit() || letter == ';' || letter == '?' => {
                            number.push(letter);
                        }
                        other => break other,
                    }
                };
                let count = number.parse().unwrap_or(1);
                match end {
                    Some('A') => row = row.saturating_sub(count),
                    Some('B') => row += count,
                    Some('K') => lines[row].truncate(if number == "2" { 0 } else { column }),
                    _ => {}
                }
            }
            letter => {
                let line = &mut lines[row];
                while line.len() <= column {
                    line.push(' ');
                }
                line[column] = letter;
                column += 1;
            }
        }
        while lines.len() <= row {
            lines.push(Vec::new());
        }
    }
    let shown = lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned());
    shown.collect()
}

/// `ampoule run JOB` on a terminal of its own: what it wrote there.
fn on_terminal(lab: &Lab, job: &std::path::Path, env: &[(&str, &str)]) -> Result<String> {
    let (log, out) = (lab.path("typescript"), lab.path(&format!("out-{}", env.len())));
    let command = format!(
        "stty cols 100; exec '{}' run '{}' --state '{}' --out '{}' --sources '{}'",
        lab.program("ampoule").display(),
        job.display(),
        lab.state().display(),
        out.display(),
        lab.sources().display()
    );
    let mut call = lab.call("script").args(["-qefc", &command]).arg(&log).env("TERM", "xterm");
    for (name, value) in env {
        call = call.env(name, value);
    }
    call.end()?.exits(0)?;
    let log = String::from_utf8_lossy(&crate::check::read(&log)?).into_owned();
    // What `script` itself says at the beginning and at the end is not on the terminal.
    let begun = log.split_once('\n').map_or(log.as_str(), |(_, rest)| rest);
    Ok(begun.rsplit_once("\nScript done").map_or(begun, |(rest, _)| rest).to_owned())
}

fn terminal(lab: &Lab) -> Result<()> {
    let (_server, job) = slow(lab)?;
    let written = on_terminal(lab, &job, &[("NO_COLOR", "1")])?;
    ensure!(written.contains("fetching input big") && written.contains("[=="), "no bar: {written:?}");
    let colours = written
        .split("\u{1b}[")
        .skip(1)
        .filter(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'));
    equal("colours", &colours.count(), &0)?;
    let seen = screen(&written);
    let text = seen.join("\n");
    ensure!(!text.contains("fetching") && !text.contains('['), "left on the terminal:\n{text}");
    let at = |what: &str| seen.iter().position(|line| line.starts_with(what)).with_context(|| text.clone());
    ensure!(at("importing input big")? < at("step a started")?, "{text}");
    ensure!(at("a | it ran")? < at("job succeeded")?, "{text}");
    ensure!(!seen[..at("job succeeded")?].iter().skip(1).any(String::is_empty), "holes:\n{text}");
    // A terminal that cannot draw has no bar.
    let (_server, job) = slow(lab)?;
    std::fs::remove_dir_all(lab.state().join("store"))?;
    let written = on_terminal(lab, &job, &[("TERM", "dumb"), ("A", "b")])?;
    ensure!(!written.contains("fetching") && !written.contains('\u{1b}'), "{written:?}");
    Ok(())
}

fn pipe(lab: &Lab) -> Result<()> {
    let (_server, job) = slow(lab)?;
    let ran = lab.run(&job).end()?.ended(&SUCCEEDED)?;
    ensure!(!ran.stderr.contains("fetching") && !ran.stderr.contains('\u{1b}'), "{}", ran.stderr);
    ensure!(ran.took > LASTS, "it did not last");
    equal("stdout", &ran.stdout_text(), &String::new())
}
