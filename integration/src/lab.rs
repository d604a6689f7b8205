//! What a test works with: a directory of its own, the programs under test, and runs of them.

use crate::check::Ran;
use crate::harness::Mode;
use crate::procs;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long any one program under test may take on a loaded machine, before [`procs::patience`].
const PATIENCE: Duration = Duration::from_secs(120);
/// The program that tries things inside a sandbox.
const PROBE: [(&str, &str); 3] = [
    ("main.c", include_str!("probe/main.c")),
    ("attacks.c", include_str!("probe/attacks.c")),
    ("poison.c", include_str!("probe/poison.c")),
];

/// What all tests share.
pub(crate) struct Kit {
    base: TempDir,
    mode: Mode,
    programs: PathBuf,
    probe: Mutex<Option<Result<PathBuf, String>>>,
    number: AtomicU32,
}

impl Kit {
    pub(crate) fn make(mode: Mode) -> Result<Self> {
        let programs = match std::env::var_os("AMPOULE_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => {
                let own = std::env::current_exe()?;
                own.parent().context("this program lies nowhere")?.to_owned()
            }
        };
        for name in ["ampoule", "ampoule-runner"] {
            let path = programs.join(name);
            ensure!(path.is_file(), "{} is missing; build it, or set AMPOULE_BIN_DIR", path.display());
        }
        let base = tempfile::Builder::new().prefix("ampoule-it-").tempdir()?;
        // The runner refuses a directory that others can write to, not one that they can read.
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self { base, mode, programs, probe: Mutex::new(None), number: AtomicU32::new(0) })
    }

    pub(crate) fn base(&self) -> &Path {
        self.base.path()
    }

    /// The probe as a static program; built on first use.
    fn probe(&self) -> Result<PathBuf> {
        let mut built = self.probe.lock().unwrap_or_else(PoisonError::into_inner);
        let result = built.get_or_insert_with(|| self.build_probe().map_err(|e| format!("{e:#}")));
        result.clone().map_err(anyhow::Error::msg)
    }

    fn build_probe(&self) -> Result<PathBuf> {
        let program = self.base().join("probe");
        let mut compile = Command::new("cc");
        compile.args(["-O1", "-static", "-pthread", "-Wall", "-Werror", "-o"]).arg(&program);
        for (name, text) in PROBE {
            let source = self.base().join(name);
            fs::write(&source, text)?;
            compile.arg(source);
        }
        let made = compile.output().context("cc")?;
        ensure!(made.status.success(), "cc: {}", String::from_utf8_lossy(&made.stderr));
        Ok(program)
    }
}

/// One test's place.
pub(crate) struct Lab<'a> {
    kit: &'a Kit,
    dir: PathBuf,
    number: AtomicU32,
    leaves_jobs: AtomicBool,
    token: OnceLock<String>,
    listed: Mutex<Vec<String>>,
}

impl<'a> Lab<'a> {
    pub(crate) fn new(kit: &'a Kit, name: &str) -> Result<Self> {
        let number = kit.number.fetch_add(1, Ordering::SeqCst);
        let dir = kit.base().join(format!("{number:03}-{}", name.replace('/', "-")));
        fs::create_dir(&dir)?;
        fs::create_dir(dir.join("tmp"))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        let sources = "sources = 1\n[project.default]\npublic = true\nallow = []\n";
        fs::write(dir.join("sources.toml"), sources)?;
        Ok(Self {
            kit,
            dir,
            number: AtomicU32::new(0),
            leaves_jobs: AtomicBool::new(false),
            token: OnceLock::new(),
            listed: Mutex::default(),
        })
    }

    pub(crate) fn is_root(&self) -> bool {
        self.kit.mode == Mode::Root
    }

    /// The profile that this user can have.
    pub(crate) fn profile(&self) -> &'static str {
        if self.is_root() { "hermetic" } else { "dev" }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The development public key.
    pub(crate) fn key(&self) -> PathBuf {
        self.state().join("keys/development.pub")
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.kit.programs.join(name)
    }

    pub(crate) fn probe(&self) -> Result<PathBuf> {
        self.kit.probe()
    }

    /// A file of the repository that is tested; the programs may run where it is at another place than
    /// where they were built.
    pub(crate) fn repository(&self, path: &str) -> PathBuf {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        let root = std::env::var_os("AMPOULE_REPOSITORY").map_or(built.to_owned(), PathBuf::from);
        root.join(path)
    }

    /// A text that occurs nowhere else on this machine.
    pub(crate) fn token(&self) -> &str {
        self.token.get_or_init(|| {
            let bytes = fs::read("/proc/sys/kernel/random/uuid").unwrap_or_default();
            String::from_utf8_lossy(&bytes).trim().replace('-', "")
        })
    }

    /// A number of seconds, far away, that no other process sleeps for.
    pub(crate) fn marker(&self) -> String {
        let digits: String = self.token().bytes().map(|b| char::from(b'0' + b % 10)).collect();
        format!("3600.{digits}")
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// A job file over the host's own toolchain.
    pub(crate) fn job(&self, body: &str) -> Result<PathBuf> {
        self.job_of("host", body)
    }

    /// A job file over another image.
    pub(crate) fn job_of(&self, image: &str, body: &str) -> Result<PathBuf> {
        let number = self.number.fetch_add(1, Ordering::SeqCst);
        let head =
            format!("ampoule = 1\nname = \"test\"\nprofile = \"{}\"\nimage = \"{image}\"\n", self.profile());
        self.write(&format!("job-{number}.toml"), head + body)
    }

    /// An `ampoule` command with nothing on its standard input.
    pub(crate) fn ampoule(&self) -> Call<'_> {
        self.call(self.program("ampoule"))
    }

    pub(crate) fn call(&self, program: impl AsRef<std::ffi::OsStr>) -> Call<'_> {
        let mut command = Command::new(program);
        command
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("XDG_STATE_HOME")
            .env("TMPDIR", self.path("tmp"));
        Call { lab: self, command, out: self.path("out") }
    }

    /// `ampoule run JOB` with a new output directory in the test's own state directory.
    pub(crate) fn run(&self, job: &Path) -> Call<'_> {
        self.run_with(&self.program("ampoule"), job)
    }

    /// The same with another copy of the command line.
    pub(crate) fn run_with(&self, program: &Path, job: &Path) -> Call<'_> {
        let number = self.number.fetch_add(1, Ordering::SeqCst);
        let mut call = self.call(program).arg("run").arg(job);
        call.out = self.path(&format!("out-{number}"));
        let out = call.out.clone();
        // The host's own rules are none of the test's.
        let sources = self.sources();
        call.arg("--state").arg(self.state()).arg("--out").arg(out).arg("--sources").arg(sources)
    }

    /// The rules of where inputs may come from: public addresses, and what was [listed](Self::list).
    pub(crate) fn sources(&self) -> PathBuf {
        self.path("sources.toml")
    }

    /// Allows inputs from the server of a URL with an address in it.
    pub(crate) fn list(&self, url: &str) -> Result<()> {
        let (scheme, rest) = url.split_once("://").context("no URL")?;
        let server = format!("{scheme}://{}/", rest.split('/').next().unwrap_or_default());
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if !listed.contains(&server) {
            listed.push(server);
        }
        let names: Vec<String> = (0..listed.len()).map(|at| format!("\"s{at}\"")).collect();
        let mut text =
            format!("sources = 1\n[project.default]\npublic = true\nallow = [{}]\n", names.join(", "));
        for (at, server) in listed.iter().enumerate() {
            text += &format!("[origin.s{at}]\nurl = \"{server}\"\n");
        }
        self.write("sources.toml", text).map(drop)
    }

    /// Runs a job to its end.
    pub(crate) fn run_job(&self, body: &str) -> Result<Ran> {
        self.run(&self.job(body)?).end()
    }

    /// This test leaves jobs in its state directory for a next run that never comes.
    pub(crate) fn leaves_jobs(&self) {
        self.leaves_jobs.store(true, Ordering::SeqCst);
    }

    /// Checks that nothing of the test is left, and removes its directory.
    pub(crate) fn finish(&self) -> Result<()> {
        let place = self.dir.display().to_string();
        let running = || procs::with_args(&place).into_iter().filter(|p| p.comm.starts_with("ampoule"));
        let gone = procs::eventually(Duration::from_secs(10), "no process of the test is left", || {
            running().next().is_none()
        });
        if let Err(error) = gone {
            let left: Vec<_> = running().map(|p| format!("{} {}", p.pid, p.args)).collect();
            for process in running() {
                let _ = procs::signal(process.pid, Signal::KILL);
            }
            return Err(error.context(left.join(", ")));
        }
        let names = |dir: PathBuf| -> Vec<String> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        };
        let jobs = names(self.state().join("jobs"));
        let scratch = names(self.path("tmp"));
        let staging = names(self.state().join("store/staging"));
        fs::remove_dir_all(&self.dir).with_context(|| format!("remove {place}"))?;
        ensure!(
            jobs.is_empty() || self.leaves_jobs.load(Ordering::SeqCst),
            "job directories are left: {jobs:?}"
        );
        ensure!(scratch.is_empty(), "files are left in TMPDIR: {scratch:?}");
        ensure!(staging.is_empty(), "imports are left half done: {staging:?}");
        Ok(())
    }
}

/// A program about to be started.
pub(crate) struct Call<'a> {
    lab: &'a Lab<'a>,
    pub(crate) command: Command,
    out: PathBuf,
}

impl<'a> Call<'a> {
    pub(crate) fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn within(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Has it begun by another program, which is given it as its last arguments.
    pub(crate) fn through(mut self, program: &str, args: &[&str]) -> Self {
        let inner = std::mem::replace(&mut self.command, Command::new(program));
        self.command.args(args).arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => self.command.env(name, value),
                None => self.command.env_remove(name),
            };
        }
        if let Some(dir) = inner.get_current_dir() {
            self.command.current_dir(dir);
        }
        self
    }

    /// Starts it with its streams in files, so that it never waits for us.
    pub(crate) fn start(mut self) -> Result<Live<'a>> {
        let number = self.lab.number.fetch_add(1, Ordering::SeqCst);
        let stdout = self.lab.path(&format!("stdout-{number}"));
        let stderr = self.lab.path(&format!("stderr-{number}"));
        self.command.stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let begun = Instant::now();
        let child = self.command.spawn().with_context(|| format!("{:?}", self.command.get_program()))?;
        let out = self.out.clone();
        Ok(Live { lab: self.lab, child, begun, stdout, stderr, out })
    }

    /// Says where it puts what it makes.
    pub(crate) fn out(mut self, out: PathBuf) -> Self {
        self.out = out;
        self
    }

    /// Runs it to its end.
    pub(crate) fn end(self) -> Result<Ran> {
        self.start()?.end()
    }
}

/// A running program.
pub(crate) struct Live<'a> {
    lab: &'a Lab<'a>,
    child: Child,
    begun: Instant,
    stdout: PathBuf,
    pub(crate) stderr: PathBuf,
    out: PathBuf,
}

impl Live<'_> {
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until its standard error holds a text.
    pub(crate) fn until_says(&mut self, text: &str) -> Result<()> {
        self.until_says_times(text, 1)
    }

    /// The same of what it says so often.
    pub(crate) fn until_says_times(&mut self, text: &str, times: usize) -> Result<()> {
        let stderr = self.stderr.clone();
        let said = || String::from_utf8_lossy(&fs::read(&stderr).unwrap_or_default()).into_owned();
        let mut ended = false;
        procs::eventually(PATIENCE, text, || {
            ended = !self.is_running();
            ended || said().matches(text).count() >= times
        })?;
        ensure!(said().matches(text).count() >= times, "it ended and never said {text:?}: {}", said());
        Ok(())
    }

    /// Waits until a process with these arguments runs.
    pub(crate) fn until_runs(&mut self, args: &str) -> Result<()> {
        let stderr = self.stderr.clone();
        let runs = || procs::with_args(args).iter().any(|process| process.is_program(args));
        procs::eventually(PATIENCE, args, || runs() || !self.is_running())?;
        let said = String::from_utf8_lossy(&fs::read(stderr)?).into_owned();
        ensure!(self.is_running(), "it ended instead of running {args:?}: {said}");
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        procs::signal(self.pid(), signal)
    }

    /// Ends it, whatever it does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn end(mut self) -> Result<Ran> {
        let deadline = self.begun + procs::patience(PATIENCE);
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                self.kill();
                let said = String::from_utf8_lossy(&fs::read(&self.stderr)?).into_owned();
                bail!("it does not end; it said: {said}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Ok(Ran {
            program: self.lab.program("ampoule"),
            status: status.code(),
            signal: status.signal(),
            stdout: fs::read(&self.stdout)?,
            stderr: String::from_utf8_lossy(&fs::read(&self.stderr)?).into_owned(),
            out: self.out,
            key: self.lab.key(),
            took: self.begun.elapsed(),
        })
    }
}

/// Every file below a directory, relative, sorted; a directory without entries with a slash.
pub(crate) fn tree(dir: &Path) -> Result<Vec<String>> {
    fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) -> std::io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                let before = found.len();
                walk(&entry.path(), &format!("{name}/"), found)?;
                if found.len() == before {
                    found.push(format!("{name}/"));
                }
            } else {
                found.push(name);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(dir, "", &mut found).with_context(|| dir.display().to_string())?;
    found.sort();
    Ok(found)
}

/// The permission bits of a file.
pub(crate) fn mode_of(path: &Path) -> Result<u32> {
    Ok(fs::symlink_metadata(path).with_context(|| path.display().to_string())?.mode() & 0o7777)
}
