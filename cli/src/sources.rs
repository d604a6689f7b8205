//! Which rules hold for where inputs may come from.

use crate::args::SourcesArgs;
use crate::failure::Failed;
use ampoule_agent::sources::{Policy, SourcesFile};
use ampoule_spec::Code;
use std::path::PathBuf;

/// The policy of the file that was named, or lies in its place; without any, the built-in one.
pub(crate) fn policy(args: &SourcesArgs) -> Result<Policy, Failed> {
    let project = args.project.as_deref();
    if let Some(file) = &args.sources {
        return Ok(SourcesFile::load(file)?.policy(project)?);
    }
    for place in places() {
        // A file that is there and cannot be read is an error, and not as good as none.
        match place.symlink_metadata() {
            Ok(_) => return Ok(SourcesFile::load(&place)?.policy(project)?),
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(Failed::file(&place, &e)),
        }
    }
    match project {
        None => Ok(Policy::built_in()),
        Some(project) => Err(Failed::new(
            Code::InputSourceDenied,
            format!(
                "--project {project}: there is no sources file that knows it; name one with --sources FILE"
            ),
        )),
    }
}

fn places() -> Vec<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let own = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    // For root HOME may still be that of whoever called sudo.
    let own = own.filter(|_| !rustix::process::geteuid().is_root());
    own.into_iter().chain([PathBuf::from("/etc")]).map(|base| base.join("ampoule/sources.toml")).collect()
}
