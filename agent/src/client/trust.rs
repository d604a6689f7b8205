//! Whether client and daemon believe each other's certificates: found out before a connection counts as one, and said in
//! words, since nothing of it passes by being tried again.
//!
//! In TLS 1.3 a client has shaken hands before the daemon has looked at its certificate (RFC 8446 §4.4.2.4): the refusal is
//! the first thing that it reads. A daemon that takes it speaks first too (RFC 9113 §3.4), so waiting for that costs nothing.

use ampoule_spec::Code;
use rustls::{AlertDescription, Error};
use std::io::{Cursor, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// How long a daemon's first bytes are waited for. What waits for ours instead is used all the same.
const FIRST_WITHIN: Duration = Duration::from_secs(2);
/// The most of them that are read at once.
const FIRST_BYTES_MAX: usize = 4 << 10;

/// One does not believe the other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Distrust {
    /// We the daemon.
    #[error("the daemon's certificate is refused: {0}; AMPOULE_CA names the authorities that are believed")]
    Ours(String),
    /// The daemon us.
    #[error("the daemon refuses the client's certificate: {0}")]
    Theirs(&'static str),
    /// The system us: who may ask is who may write to the socket.
    #[error("the daemon's socket {} is not for this user; be one of its group (ls -l says which), or ask over the network", .0.display())]
    Socket(PathBuf),
}

impl Distrust {
    /// The bounded code.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Ours(_) => Code::VerifyRefused,
            Self::Theirs(_) => Code::CallerUnknown,
            Self::Socket(_) => Code::CallDenied,
        }
    }

    /// What an error of rustls says of trust; none: it is about something else.
    fn of(error: &std::io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref::<Error>()? {
            Error::InvalidCertificate(reason) => Some(Self::Ours(reason.to_string())),
            Error::AlertReceived(alert) => theirs(*alert).map(Self::Theirs),
            _ => None,
        }
    }
}

fn theirs(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        AlertDescription::CertificateRequired => {
            Some("none was shown, and it wants one; set AMPOULE_CERT and AMPOULE_KEY")
        }
        AlertDescription::CertificateExpired => Some("it has expired, or is not good yet; renew it"),
        AlertDescription::UnknownCA => Some("it is from no authority that the daemon believes"),
        AlertDescription::CertificateRevoked => Some("it was revoked"),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => Some("it is not one for a client of this daemon"),
        _ => None,
    }
}

/// Why there is no connection.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An error of a handshake, or of what follows it.
pub(super) fn told(error: std::io::Error) -> Failure {
    match Distrust::of(&error) {
        Some(distrust) => Box::new(distrust),
        None => Box::new(error),
    }
}

/// An error of connecting to a socket.
pub(super) fn closed(path: &Path, error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::PermissionDenied => Box::new(Distrust::Socket(path.to_owned())),
        kind => Box::new(std::io::Error::new(kind, format!("{}: {error}", path.display()))),
    }
}

/// Waits until the daemon has said something: that it takes the certificate, or does not. What it said is read again.
pub(super) async fn begun<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut stream: S,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, Failure> {
    let mut first = vec![0; FIRST_BYTES_MAX];
    match tokio::time::timeout(FIRST_WITHIN, stream.read(&mut first)).await {
        Ok(count) => first.truncate(count.map_err(told)?),
        Err(_) => first.clear(),
    }
    let (reader, writer) = tokio::io::split(stream);
    Ok(tokio::io::join(Cursor::new(first).chain(reader), writer))
}
