//! The policy of one project: which origin a URL belongs to.

use super::origin::{Fit, Origin, Prefix, Purpose};
use reqwest::Url;
use std::path::PathBuf;

/// The project of a job that names none.
pub const PROJECT_DEFAULT: &str = "default";

/// What a project may fetch from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The file and its project, for messages; none: the rules that hold without a file.
    pub(super) file: Option<(String, String)>,
    pub(super) origins: Vec<Origin>,
    /// Whether every public address is an origin too.
    pub(super) public: bool,
}

impl Policy {
    /// The rules without a file: every `http` and `https` URL, at public addresses alone.
    pub fn built_in() -> Self {
        Self { file: None, origins: Vec::new(), public: true }
    }

    /// The rules of who fetches nothing.
    pub fn nothing() -> Self {
        Self { file: None, origins: Vec::new(), public: false }
    }

    /// The origin that a URL belongs to; none if it belongs to no listed one and every public address is allowed.
    ///
    /// The longest prefix decides, and one of this purpose before one for all.
    ///
    /// # Errors
    /// Why it is not allowed, with the remedy.
    pub fn admit(&self, purpose: Purpose, url: &Url) -> Result<Option<&Origin>, String> {
        let mut best: Option<(usize, bool, &Origin)> = None;
        let mut two_ways = None;
        for origin in self.origins.iter().filter(|origin| origin.serves(purpose)) {
            match origin.prefix.fit(url) {
                Fit::No => {}
                Fit::TwoWays => two_ways = Some(origin),
                Fit::Yes(length) => {
                    let rank = (length, origin.purpose.is_some());
                    if best.is_none_or(|(length, own, _)| rank > (length, own)) {
                        best = Some((rank.0, rank.1, origin));
                    }
                }
            }
        }
        match (best, two_ways) {
            (Some((_, _, origin)), _) => Ok(Some(origin)),
            (None, Some(origin)) => Err(format!(
                "its path may mean another one to the server (an encoded slash or a dot segment), and origin {:?} of {} \
                 allows a part of that host only",
                origin.name,
                self.rule()
            )),
            (None, None) if self.public => Ok(None),
            (None, None) => Err(self.not_listed(purpose, url)),
        }
    }

    /// Where the operator's mirrors have what `url` names, in the order of the project's list.
    pub fn mirrors(&self, url: &Url) -> Vec<Url> {
        let of = |origin: &Origin| -> Option<Url> {
            let mirrored = |of: &Prefix| origin.prefix.instead_of(of, url);
            origin.mirror_of.iter().find_map(mirrored)
        };
        self.origins.iter().filter(|origin| origin.serves(Purpose::Http)).filter_map(of).collect()
    }

    /// The project whose rules these are.
    pub fn project(&self) -> &str {
        self.file.as_ref().map_or(PROJECT_DEFAULT, |(_, project)| project)
    }

    /// The same rules, with another name of their file in messages.
    #[must_use]
    pub fn called(mut self, name: &str) -> Self {
        if let Some((file, _)) = &mut self.file {
            *file = name.to_owned();
        }
        self
    }

    /// The same rules without the origins to which something secret is shown.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        self.origins.retain(|origin| origin.auth.is_none());
        self
    }

    /// The files that hold what we are known by.
    pub fn secrets(&self) -> impl Iterator<Item = &PathBuf> {
        self.origins.iter().filter_map(|origin| origin.auth.as_ref()).map(super::Auth::file)
    }

    /// The rules' place, for messages.
    pub(crate) fn rule(&self) -> String {
        match &self.file {
            Some((file, project)) => format!("project {project:?} in {file}"),
            None => "the built-in rules".to_owned(),
        }
    }

    /// What lets an address in.
    pub(crate) fn address_remedy(&self, origin: Option<&Origin>, purpose: Purpose, url: &Url) -> String {
        let what = |file: &str| match origin {
            Some(origin) => {
                format!("if that is right, add it to addresses of [origin.{}] in {file}", origin.name)
            }
            None => format!(
                "if that is right, list it in {file}: {} and addresses = [\"ADDRESS\"]",
                entry(purpose, url)
            ),
        };
        match &self.file {
            Some((file, _)) => what(file),
            None => what("a sources file (--sources FILE)"),
        }
    }

    fn not_listed(&self, purpose: Purpose, url: &Url) -> String {
        let (file, project) = match &self.file {
            Some((file, project)) => (file.as_str(), project.as_str()),
            None => ("a sources file", PROJECT_DEFAULT),
        };
        format!(
            "not an origin of {}; if it is to be one, write {} into {file} and NAME into allow of [project.{project}]",
            self.rule(),
            entry(purpose, url)
        )
    }
}

/// How a URL's host is listed.
fn entry(purpose: Purpose, url: &Url) -> String {
    let origin = url.origin().ascii_serialization();
    match purpose {
        Purpose::Http => format!("[origin.NAME] with url = \"{origin}/\""),
        Purpose::Git => format!("[origin.NAME] with git = \"{origin}/\""),
        Purpose::Registry => {
            let host = origin.strip_prefix("https://").unwrap_or(&origin);
            format!("[origin.NAME] with registry = \"{host}\" (or url, for where it redirects to)")
        }
    }
}
