//! The sections of a job file, key by key.

use super::error::{JobFileError, shown};
use super::git;
use super::image::{self, ImageRef};
use super::model::{
    InputEntry, JobFile, OutputEntry, Param, ParamType, PathDigest, SourceEntry, StepEntry, Text, name_of,
};
use super::params::{self, Misuse};
use super::read::{Reader, Table, Value};
use super::{mirrors, secrets, suggest, upstream, values};
use crate::inputs::exclude::check_pattern;
use crate::inputs::parse_url;
use ampoule_spec::{
    EnvName, LimitsRequest, LogOverflow, Name, OutputForm, OutputKind, OutputName, OutputWhen, ParamValue,
    SandboxPath, Sha256, StepUser,
};
use std::collections::BTreeMap;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

type Result<T> = std::result::Result<T, JobFileError>;
type Params = BTreeMap<Name, Param>;

const JOB_KEYS: &[&str] = &[
    "ampoule",
    "name",
    "profile",
    "image",
    "user",
    "source_date_epoch",
    "env",
    "params",
    "input",
    "secret",
    "step",
    "output",
    "limits",
];
const PARAM_KEYS: &[&str] = &["type", "default", "description"];
const SOURCE_KEYS: &[&str] = &["path", "http", "git", "tar", "oci", "attestation"];
const INPUT_KEYS: &[&str] = &[
    "name",
    "mount",
    "writable",
    "exclude",
    "path",
    "sha256",
    "tree_sha256",
    "http",
    "git",
    "tar",
    "oci",
    "attestation",
];
const HTTP_KEYS: &[&str] = &["url", "sha256", "unpack", "mirrors"];
const TAR_KEYS: &[&str] = &["path", "sha256"];
const STEP_KEYS: &[&str] = &["name", "run", "cwd", "env", "timeout", "secrets"];
const OUTPUT_KEYS: &[&str] = &["name", "path", "form", "when", "kind", "optional"];
const LIMIT_KEYS: &[&str] =
    &["memory", "cpus", "pids", "disk", "inodes", "log", "log_overflow", "timeout", "open_files"];

/// Reads the whole document.
pub(crate) fn job<'r>(reader: &'r Reader<'r>, document: &'r Spanned<DeTable<'r>>) -> Result<JobFile> {
    let root = Table::root(reader, document);
    // Before anything else: another version may have other keys.
    version(&root)?;
    root.only(JOB_KEYS)?;
    let name = root.need("name", "\"my-job\"")?.parsed("a name", "\"my-job\"", Name::parse)?;
    let profile = optional(&root, "profile", |v| v.parsed("a profile's name", "\"hermetic\"", Name::parse))?;
    let image = image(&root.need("image", "\"host\"")?)?;
    let user = optional(&root, "user", |v| {
        v.one_of(&[StepUser::Build, StepUser::Root].map(|user| (user.as_str(), user)))
    })?;
    let source_date_epoch = optional(&root, "source_date_epoch", epoch)?;
    let params = optional(&root, "params", parameters)?.unwrap_or_default();
    let env = optional(&root, "env", |v| environment(v, &params))?.unwrap_or_default();
    let inputs = tables(&root, "input", input)?;
    let (source_date_epoch, epoch_of_commit) = match source_date_epoch {
        Some(Epoch::Seconds(seconds)) => (Some(seconds), false),
        Some(Epoch::Commit) => (None, true),
        None => (None, false),
    };
    if epoch_of_commit && !inputs.iter().any(|input| matches!(input.source, SourceEntry::Git(_))) {
        let value = root.need("source_date_epoch", "1700000000")?;
        return Err(value.wrong("\"commit\" needs a git input", "write seconds since 1970, as in 1700000000"));
    }
    let secrets = tables(&root, "secret", secrets::secret)?;
    let steps = tables(&root, "step", |t| step(t, &params))?;
    let outputs = tables(&root, "output", output)?;
    let (limits, log_overflow) = optional(&root, "limits", limits)?.unwrap_or_default();
    let fields = reader.fields();
    Ok(JobFile {
        name,
        profile,
        image,
        user,
        source_date_epoch,
        epoch_of_commit,
        env,
        params,
        inputs,
        secrets,
        steps,
        outputs,
        limits,
        log_overflow,
        fields,
    })
}

pub(super) fn optional<'r, T>(
    table: &Table<'r>,
    key: &str,
    read: impl FnOnce(&Value<'r>) -> Result<T>,
) -> Result<Option<T>> {
    table.get(key).map(|value| read(&value)).transpose()
}

fn tables<'r, T>(root: &Table<'r>, key: &str, read: impl Fn(&Table<'r>) -> Result<T>) -> Result<Vec<T>> {
    match root.get(key) {
        None => Ok(Vec::new()),
        Some(value) => value.tables()?.iter().map(read).collect(),
    }
}

fn version(root: &Table<'_>) -> Result<()> {
    let value = root.need("ampoule", "1")?;
    let version = value.integer("the version of the format, an integer", "ampoule = 1")?;
    let known = i64::from(ampoule_spec::FORMAT);
    if version == known {
        return Ok(());
    }
    let (what, remedy) = if version > known {
        ("newer than", "use a newer ampoule")
    } else {
        ("not a version that ever was; this is", "write ampoule = 1")
    };
    Err(value.wrong(format!("version {version} is {what} what this build reads, version {known}"), remedy))
}

fn image(value: &Value<'_>) -> Result<ImageRef> {
    let text = value.text("an image", "\"host\" or \"oci:DIR:TAG@sha256:DIGEST\"")?;
    ImageRef::parse(text).map_err(|e: image::ImageError| {
        if e.unpinned { value.unpinned(&e.reason, e.remedy) } else { value.wrong(e.reason, e.remedy) }
    })
}

/// Seconds, or the time of the commit of the first git input.
enum Epoch {
    Seconds(u64),
    Commit,
}

fn epoch(value: &Value<'_>) -> Result<Epoch> {
    let rule = "write seconds since 1970, as in 1700000000";
    if let DeValue::String(text) = value.scalar() {
        return match text.as_ref() {
            "commit" => Ok(Epoch::Commit),
            _ => Err(value.not_a("an integer or \"commit\"", rule)),
        };
    }
    let seconds = value.integer("an integer or \"commit\"", "1700000000")?;
    u64::try_from(seconds)
        .map(Epoch::Seconds)
        .map_err(|_| value.wrong(format!("{seconds} lies before 1970"), rule))
}

fn parameters(value: &Value<'_>) -> Result<Params> {
    let mut params = Params::new();
    for (key, value) in value.table("[params.version]")?.entries() {
        let name = Name::parse(key).map_err(|e| value.wrong(e.to_string(), ""))?;
        params.insert(name, parameter(&value)?);
    }
    Ok(params)
}

fn parameter(value: &Value<'_>) -> Result<Param> {
    let table = value.table("{ type = \"string\" }")?;
    table.only(PARAM_KEYS)?;
    let kind = table.need("type", "\"string\", \"integer\" or \"bool\"")?.one_of(&[
        ("string", ParamType::String),
        ("integer", ParamType::Integer),
        ("bool", ParamType::Bool),
    ])?;
    let default = optional(&table, "default", |v| match (kind, v.scalar()) {
        (ParamType::String, _) => {
            v.text("a string, as type says", "\"1.3.1\"").map(|t| ParamValue::String(t.to_owned()))
        }
        (ParamType::Integer, _) => {
            v.integer("an integer, as type says", "default = 1").map(ParamValue::Integer)
        }
        (ParamType::Bool, DeValue::Boolean(value)) => Ok(ParamValue::Bool(*value)),
        (ParamType::Bool, _) => Err(v.not_a("true or false, as type says", "write it without quotes")),
    })?;
    let description = optional(&table, "description", |v| {
        v.raw_text("a text", "\"the version to build\"").map(str::to_owned)
    })?;
    Ok(Param { kind, default, description })
}

/// A text in which a parameter may be used.
fn text(value: &Value<'_>, params: &Params, example: &str) -> Result<Text> {
    let raw = value.raw_text("a string", example)?;
    let text = params::text(raw).map_err(|misuse| match misuse {
        Misuse::Part => value.wrong(format!("{} uses a parameter as a part", shown(raw)), params::RULE),
        Misuse::NoName(reason) => value.wrong(reason, params::RULE),
    })?;
    if let Text::Param(name) = &text
        && !params.contains_key(name)
    {
        let remedy = match suggest::nearest(name.as_str(), params.keys().map(Name::as_str)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("declare it: [params.{name}] with type = \"string\""),
        };
        return Err(value.wrong(format!("the parameter {:?} is not declared", name.as_str()), remedy));
    }
    Ok(text)
}

fn environment(value: &Value<'_>, params: &Params) -> Result<BTreeMap<EnvName, Text>> {
    let mut env = BTreeMap::new();
    for (key, value) in value.table("{ LANG = \"C.UTF-8\" }")?.entries() {
        let name = EnvName::parse(key).map_err(|e| value.wrong(e.to_string(), ""))?;
        env.insert(name, text(&value, params, "\"1\"")?);
    }
    Ok(env)
}

fn sandbox_path(value: &Value<'_>) -> Result<SandboxPath> {
    value.parsed("an absolute path in the sandbox", "\"/build/src\"", SandboxPath::parse)
}

pub(super) fn host_path(value: &Value<'_>) -> Result<String> {
    let path = value.text("a path", "\"./src\"")?;
    if path.is_empty() || path.chars().any(char::is_control) {
        return Err(value.wrong("the path is empty or holds a control character", ""));
    }
    Ok(path.to_owned())
}

fn sha256(table: &Table<'_>, whole: &Value<'_>, how: &str) -> Result<Sha256> {
    let Some(value) = table.get("sha256") else {
        return Err(whole.unpinned("not pinned by a digest", format!("{how} and add sha256 = \"DIGEST\"")));
    };
    digits(&value)
}

fn digits(value: &Value<'_>) -> Result<Sha256> {
    let text = value.text("64 hexadecimal digits", "\"9f86d0…\"")?;
    Sha256::parse(text)
        .map_err(|e| value.wrong(e.to_string(), "write 64 digits of 0-9 and a-f and nothing before them"))
}

/// The digest of a `path`, beside it.
fn path_digest(table: &Table<'_>) -> Result<Option<PathDigest>> {
    match (table.get("sha256"), table.get("tree_sha256")) {
        (None, None) => Ok(None),
        (Some(file), None) => Ok(Some(PathDigest::File(digits(&file)?))),
        (None, Some(tree)) => Ok(Some(PathDigest::Tree(digits(&tree)?))),
        (Some(_), Some(second)) => Err(second.wrong(
            "a path is a file with a sha256 or a directory with a tree_sha256",
            "write the one that it is",
        )),
    }
}

fn input(table: &Table<'_>) -> Result<InputEntry> {
    table.only(INPUT_KEYS)?;
    let name = table.need("name", "\"src\"")?.parsed("a name", "\"src\"", Name::parse)?;
    let mount = sandbox_path(&table.need("mount", "\"/build/src\"")?)?;
    let writable = optional(table, "writable", Value::boolean)?;
    let named: Vec<_> =
        SOURCE_KEYS.iter().filter_map(|key| table.get(key).map(|value| (*key, value))).collect();
    let forms = "name exactly one of path, http, git, tar and attestation";
    let (key, value) = match named.as_slice() {
        [] => return Err(table.wrong("the input has no source", forms)),
        [one] => (one.0, &one.1),
        [(first, _), (second, value), ..] => {
            return Err(value.wrong(format!("the input has two sources, {first} and {second}"), forms));
        }
    };
    if key != "path"
        && let Some(digest) = table.get("sha256").or_else(|| table.get("tree_sha256"))
    {
        let remedy = format!("write what {key} needs inside its braces");
        return Err(digest.wrong("a digest stands here beside a path alone", remedy));
    }
    let source = match key {
        "path" => SourceEntry::Path { path: host_path(value)?, digest: path_digest(table)? },
        "http" => http(value)?,
        "tar" => {
            let tar = value.table("{ path = \"src.tar.gz\", sha256 = \"DIGEST\" }")?;
            tar.only(TAR_KEYS)?;
            let path = host_path(&tar.need("path", "\"src.tar.gz\"")?)?;
            SourceEntry::Tar {
                path,
                sha256: sha256(&tar, value, "run `ampoule pin`, or run `sha256sum FILE`")?,
            }
        }
        "git" => SourceEntry::Git(git::entry(value, host_path)?),
        "oci" => return Err(value.unsupported("oci inputs", "use http with sha256 or path")),
        _ => SourceEntry::Attestation(upstream::upstream(value)?),
    };
    let exclude = optional(table, "exclude", |v| exclude(v, &source))?.unwrap_or_default();
    Ok(InputEntry { name, mount, writable, source, exclude })
}

fn exclude(value: &Value<'_>, source: &SourceEntry) -> Result<Vec<String>> {
    if !matches!(source, SourceEntry::Path { .. }) {
        return Err(value.wrong("patterns are for a path that is a directory", "remove the key"));
    }
    let patterns = value.items("a list of patterns as in .gitignore", "[\"target/\", \"*.o\"]")?;
    let pattern = |v: &Value<'_>| {
        v.parsed("a pattern as in .gitignore", "\"target/\"", |text| {
            check_pattern(text).map(|()| text.to_owned())
        })
    };
    patterns.iter().map(pattern).collect()
}

fn http(value: &Value<'_>) -> Result<SourceEntry> {
    let table = value.table("{ url = \"https://…\", sha256 = \"DIGEST\" }")?;
    table.only(HTTP_KEYS)?;
    let url = table.need("url", "\"https://…\"")?;
    let text = url.text("a URL", "\"https://example.org/src.tar.gz\"")?;
    parse_url(text).map_err(|reason| url.wrong(reason, ""))?;
    let sha256 = sha256(&table, value, "run `ampoule pin`, or download it, run `sha256sum FILE`")?;
    let unpack = optional(&table, "unpack", Value::boolean)?;
    let mirrors = optional(&table, "mirrors", |v| mirrors::read(v, text))?.unwrap_or_default();
    Ok(SourceEntry::Http { url: text.to_owned(), sha256, unpack, mirrors })
}

fn step(table: &Table<'_>, params: &Params) -> Result<StepEntry> {
    table.only(STEP_KEYS)?;
    let name = optional(table, "name", |v| v.parsed("a name", "\"build\"", Name::parse))?;
    let run = table.need("run", "[\"make\", \"all\"]")?;
    let run = run.items(
        "a list of strings; there is no implicit shell",
        "[\"sh\", \"-ec\", \"make && make check\"]",
    )?;
    let run = run.iter().map(|v| text(v, params, "\"make\"")).collect::<Result<Vec<_>>>()?;
    let cwd = optional(table, "cwd", sandbox_path)?;
    let env = optional(table, "env", |v| environment(v, params))?.unwrap_or_default();
    let timeout_ms = optional(table, "timeout", duration)?;
    let secrets = optional(table, "secrets", secrets::names)?.unwrap_or_default();
    Ok(StepEntry { name, run, cwd, env, timeout_ms, secrets })
}

fn output(table: &Table<'_>) -> Result<OutputEntry> {
    table.only(OUTPUT_KEYS)?;
    let name = optional(table, "name", |v| v.parsed("an output's name", "\"libz.a\"", OutputName::parse))?;
    let place = table.need("path", "\"/build/src/libz.a\"")?;
    let path = sandbox_path(&place)?;
    let form = optional(table, "form", |v| v.one_of(&OutputForm::ALL.map(|form| (form.as_str(), form))))?;
    if name.is_none() && path.as_str() != "/" && name_of(&path, form).is_none() {
        let reason = format!("{} does not end in a name that an output can have", shown(path.as_str()));
        return Err(place.wrong(reason, "add name = \"…\""));
    }
    let when = optional(table, "when", |v| {
        v.one_of(&[("success", OutputWhen::Success), ("always", OutputWhen::Always)])
    })?;
    let kind = optional(table, "kind", |v| {
        v.one_of(&[("artifact", OutputKind::Artifact), ("report", OutputKind::Report)])
    })?;
    let optional = optional(table, "optional", Value::boolean)?;
    Ok(OutputEntry { name, path, form, when, kind, optional })
}

fn duration(value: &Value<'_>) -> Result<u64> {
    value.in_units("duration", values::DURATION_RULE, values::duration_ms)
}

fn size(value: &Value<'_>) -> Result<u64> {
    value.in_units("size", values::SIZE_RULE, values::size)
}

fn limits(value: &Value<'_>) -> Result<(LimitsRequest, Option<LogOverflow>)> {
    let table = value.table("[limits]")?;
    table.only(LIMIT_KEYS)?;
    let cpus = |v: &Value<'_>| {
        let number = v.number(values::CPUS_RULE)?;
        values::cpu_millis(number)
            .ok_or_else(|| v.wrong(format!("{number} is not allowed"), values::CPUS_RULE))
    };
    let request = LimitsRequest {
        memory_bytes: optional(&table, "memory", size)?,
        cpu_millis: optional(&table, "cpus", cpus)?,
        pids: optional(&table, "pids", |v| v.count("512"))?,
        disk_bytes: optional(&table, "disk", size)?,
        disk_inodes: optional(&table, "inodes", |v| v.count("100000"))?,
        log_bytes: optional(&table, "log", size)?,
        timeout_ms: optional(&table, "timeout", duration)?,
        open_files: optional(&table, "open_files", |v| v.count("1024"))?,
    };
    if let Some(refused) = request.too_low()
        && let Some(value) = table.get(refused.limit)
    {
        let reason = format!("{} is not allowed", refused.unit.shown(refused.asked));
        return Err(value.wrong(reason, format!("ask for {}", refused.range())));
    }
    let log_overflow = optional(&table, "log_overflow", |v| {
        v.one_of(&[LogOverflow::Cut, LogOverflow::Fail].map(|overflow| (overflow.as_str(), overflow)))
    })?;
    Ok((request, log_overflow))
}
