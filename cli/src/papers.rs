//! Man pages and completions, for who makes packages. They are made of the grammar itself, so they say what holds.

use crate::args::{Args, PapersArgs};
use crate::failure::Failed;
use ampoule_agent::daemon::args::Args as DaemonArgs;
use ampoule_spec::Code;
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};
use std::fs;
use std::io;
use std::path::Path;

/// Shells that completions are made for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Fish, Shell::Zsh];

/// Writes `man/` and `completions/` into a directory.
pub(crate) fn papers(args: &PapersArgs) -> Result<u8, Failed> {
    let written = write(&args.dir);
    written.map_err(|e| Failed::new(Code::FileUnusable, format!("{}: {e}", args.dir.display())))?;
    Ok(0)
}

fn write(dir: &Path) -> io::Result<()> {
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    for dir in [&man, &completions] {
        fs::create_dir_all(dir)?;
    }
    for command in [Args::command(), DaemonArgs::command()] {
        let name = command.get_name().to_owned();
        for shell in SHELLS {
            generate_to(shell, &mut command.clone(), &name, &completions)?;
        }
    }
    clap_mangen::generate_to(Args::command().disable_help_subcommand(true), &man)?;
    // Daemons are in section 8 (man-pages(7)).
    clap_mangen::Man::new(DaemonArgs::command()).section("8").generate_to(&man)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    /// Every visible command below one, by the name of its page, with its long options.
    fn named(command: &Command, name: &str, found: &mut Vec<(String, Vec<String>)>) {
        let options = command.get_arguments().filter(|arg| !arg.is_hide_set());
        let options = options.filter_map(|arg| arg.get_long().map(str::to_owned)).collect();
        found.push((name.to_owned(), options));
        for below in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            named(below, &format!("{name}-{}", below.get_name()), found);
        }
    }

    #[test]
    fn every_command_has_a_page_with_every_option_and_completions() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let mut commands = Vec::new();
        named(&Args::command(), "ampoule", &mut commands);
        assert!(commands.len() > 10);
        named(&DaemonArgs::command(), "ampouled", &mut commands);
        for (name, options) in &commands {
            let section = if name == "ampouled" { 8 } else { 1 };
            let page = fs::read_to_string(dir.path().join(format!("man/{name}.{section}"))).unwrap();
            let page = page.replace("\\-", "-");
            for option in options {
                assert!(page.contains(&format!("--{option}")), "{name}.{section} lacks --{option}");
            }
        }
        assert_eq!(fs::read_dir(dir.path().join("man")).unwrap().count(), commands.len());
        for file in
            ["ampoule.bash", "ampoule.fish", "_ampoule", "ampouled.bash", "ampouled.fish", "_ampouled"]
        {
            let text = fs::read_to_string(dir.path().join("completions").join(file)).unwrap();
            let wanted = if file.contains("ampouled") { "check-config" } else { "doctor" };
            assert!(text.contains(wanted), "{file}");
        }
    }
}
