//! What an origin knows us by, read from its file each time: a token may be exchanged while a job waits.

use crate::inputs::InputError;
use crate::sources::Auth;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::fs::File;
use std::io::{Error, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zeroize::Zeroizing;

/// The longest secret, in bytes.
const SECRET_BYTES_MAX: u64 = 16 << 10;

/// The header that holds it. It is marked as sensitive, so that no message repeats it.
pub(super) fn header(auth: &Auth) -> Result<(HeaderName, HeaderValue), InputError> {
    let file = auth.file();
    let unusable =
        |source: Error| InputError::File { what: format!("the secret in {}", file.display()), source };
    let secret = read(file).map_err(unusable)?;
    let (name, value) = match auth {
        Auth::Basic(_) if !secret.contains(':') => {
            return Err(unusable(Error::other("not USER:PASSWORD")));
        }
        Auth::Basic(_) => {
            let encoded = Zeroizing::new(STANDARD.encode(secret.as_bytes()));
            (AUTHORIZATION, Zeroizing::new(format!("Basic {}", *encoded)))
        }
        Auth::Bearer(_) => (AUTHORIZATION, Zeroizing::new(format!("Bearer {}", *secret))),
        Auth::Header(name, _) => {
            let name = HeaderName::try_from(name).map_err(|e| unusable(Error::other(e)))?;
            (name, secret)
        }
    };
    let wrong = |_| unusable(Error::other("it holds a character that no header can have"));
    let mut value = HeaderValue::from_str(&value).map_err(wrong)?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// The first line, which is all.
fn read(path: &Path) -> Result<Zeroizing<String>, Error> {
    // Opening a FIFO would wait for a writer.
    let fd = openat(CWD, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let file = File::from(fd);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(Error::other("not a file"));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(Error::other("others can read or write it; chmod it to 0600"));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > SECRET_BYTES_MAX {
        return Err(Error::other(format!("more than {SECRET_BYTES_MAX} bytes")));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.chars().any(char::is_control) {
        return Err(Error::other("not one line of text"));
    }
    Ok(Zeroizing::new(line.to_owned()))
}
