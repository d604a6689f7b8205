//! The command line.

use crate::launcher::{Agent, Options};
use std::ffi::OsString;
use std::path::PathBuf;

/// What the runner is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Say which version it is.
    Version,
    /// Serve whoever is at the other end of standard input.
    Serve(Options),
    /// Take connections.
    Listen {
        /// How each is served.
        options: Options,
        /// Where the socket is bound; none: the service manager has bound it.
        socket: Option<PathBuf>,
    },
}

/// The most sandboxes that are kept ready: each holds namespaces, control groups and a loop device.
const POOL_MAX: usize = 64;

fn number<T>(flag: &str, text: &OsString, most: T) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let text = text.to_string_lossy();
    let found = text.parse().ok().filter(|number| *number <= most);
    found.ok_or_else(|| format!("{flag} wants a number up to {most}, not {text:?}"))
}

/// The runner works in `/`: what is meant is meant from where it was started.
fn path(flag: &str, text: OsString) -> Result<PathBuf, String> {
    std::path::absolute(&text).map_err(|e| format!("{flag} {}: {e}", text.display()))
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// For people: the option and what is wrong with it.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Command, String> {
    let mut args = args.into_iter();
    let listens = match args.next() {
        None => return Err("no command".to_owned()),
        Some(command) if command == "--version" => return Ok(Command::Version),
        Some(command) if command == "serve" => false,
        Some(command) if command == "listen" => true,
        Some(other) => return Err(format!("{} is not a command", other.display())),
    };
    let (mut state, mut profiles, mut pool) = (None, None, 0);
    let (mut socket, mut uid, mut group) = (None, None, None);
    while let Some(flag) = args.next() {
        let flag = flag.into_string().map_err(|flag| format!("{} is not an option", flag.display()))?;
        let mut value = || args.next().ok_or_else(|| format!("{flag} wants a value"));
        // -1 is what chown(2) takes for "leave it".
        let id = |value: OsString| number(&flag, &value, u32::MAX - 1);
        match flag.as_str() {
            "--state" => state = Some(path(&flag, value()?)?),
            "--profiles" => profiles = Some(path(&flag, value()?)?),
            "--pool" => pool = number(&flag, &value()?, POOL_MAX)?,
            "--socket" if listens => socket = Some(path(&flag, value()?)?),
            "--agent" if listens => uid = Some(id(value()?)?),
            "--group" if listens => group = Some(id(value()?)?),
            #[cfg(feature = "faults")]
            "--fault" => crate::faults::install(&value()?.to_string_lossy())?,
            other => return Err(format!("{other:?} is not an option")),
        }
    }
    let state = state.ok_or("--state is missing")?;
    let options = |agent| Options { state, profiles, pool, agent };
    if !listens {
        return Ok(Command::Serve(options(None)));
    }
    let uid = uid.ok_or("--agent is missing: the user id of the agent")?;
    Ok(Command::Listen { options: options(Some(Agent { uid, group })), socket })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Result<Command, String> {
        parse(text.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn parse_refuses_what_it_does_not_know() {
        assert_eq!(args("--version").unwrap(), Command::Version);
        let Command::Serve(options) = args("serve --state /s --pool 3").unwrap() else { panic!("not serve") };
        assert_eq!((options.pool, options.agent), (3, None));
        for text in [
            "",
            "serve",
            "serve --state",
            "serve --state /s --shell x",
            "run",
            "serve --state /s --pool",
            "serve --state /s --pool 65",
            "serve --state /s --pool -1",
            "serve --state /s --agent 1",
            "serve --state /s --socket /x",
            "listen --state /s",
            "listen --agent 1",
            "listen --state /s --agent nobody",
            "listen --state /s --agent 4294967295",
            "listen --state /s --agent 1 --group -1",
        ] {
            assert!(args(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn parse_of_listen_takes_user_and_group() {
        let asked = "listen --state /s --socket /run/x --agent 7 --group 8 --profiles /p";
        let Command::Listen { options, socket } = args(asked).unwrap() else { panic!("not listen") };
        assert_eq!(options.agent, Some(Agent { uid: 7, group: Some(8) }));
        assert_eq!((socket, options.profiles), (Some("/run/x".into()), Some("/p".into())));
    }
}
