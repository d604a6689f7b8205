//! Secrets on the wire: their names, and where steps want them.

use super::convert::{FieldError, parsed, unknown, wrong};
use ampoule_proto::v1 as wire;
use ampoule_spec::{Delivery, EnvName, Name, RotateSignal, SandboxPath, Secret};

type Result<T> = std::result::Result<T, FieldError>;

pub(super) fn secret(field: &str, secret: wire::Secret) -> Result<Secret> {
    use wire::secret::Delivery as Wire;
    let at = |name: &str| format!("{field}.{name}");
    let delivery = match secret.delivery {
        None => return Err(wrong(field, "it is delivered by one of file, fd and env")),
        Some(Wire::File(path)) => Delivery::File(parsed(&at("file"), &path, SandboxPath::parse)?),
        Some(Wire::Fd(name)) => Delivery::Fd(parsed(&at("fd"), &name, EnvName::parse)?),
        Some(Wire::Env(name)) => Delivery::Env(parsed(&at("env"), &name, EnvName::parse)?),
    };
    let on_rotate = match wire::RotateSignal::try_from(secret.on_rotate) {
        Ok(wire::RotateSignal::Unspecified) => None,
        Ok(wire::RotateSignal::Sighup) => Some(RotateSignal::Hup),
        Ok(wire::RotateSignal::Sigusr1) => Some(RotateSignal::Usr1),
        Ok(wire::RotateSignal::Sigusr2) => Some(RotateSignal::Usr2),
        Err(_) => return Err(unknown(at("on_rotate"), secret.on_rotate)),
    };
    Ok(Secret { name: parsed(&at("name"), &secret.name, Name::parse)?, delivery, on_rotate })
}

pub(super) fn names(field: &str, names: &[String]) -> Result<Vec<Name>> {
    let name = |(at, name): (usize, &String)| parsed(&format!("{field}.secrets[{at}]"), name, Name::parse);
    names.iter().enumerate().map(name).collect()
}

pub(super) fn wire_secret(secret: &Secret) -> wire::Secret {
    use wire::secret::Delivery as Wire;
    let delivery = match &secret.delivery {
        Delivery::File(path) => Wire::File(path.to_string()),
        Delivery::Fd(name) => Wire::Fd(name.to_string()),
        Delivery::Env(name) => Wire::Env(name.to_string()),
    };
    let on_rotate = match secret.on_rotate {
        None => wire::RotateSignal::Unspecified,
        Some(RotateSignal::Hup) => wire::RotateSignal::Sighup,
        Some(RotateSignal::Usr1) => wire::RotateSignal::Sigusr1,
        Some(RotateSignal::Usr2) => wire::RotateSignal::Sigusr2,
    };
    wire::Secret { name: secret.name.to_string(), delivery: Some(delivery), on_rotate: on_rotate.into() }
}
