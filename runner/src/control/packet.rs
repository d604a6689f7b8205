//! One packet of the control socket: read with its limits, and the values beside it held against what they must be.

use ampoule_spec::control::{
    CONTROL_BYTES_MAX, FAILED_BYTES_MAX, ROTATE, RotateSecret, SECRETS, SecretsFailed, StepSecrets,
};
use ampoule_spec::wire::CANCEL;
use ampoule_spec::{Code, Name, SECRET_BYTES_MAX, SECRET_BYTES_MIN, SECRETS_MAX, STEP_SECRET_BYTES_MAX};
use rustix::fs::{Mode, OFlags, SealFlags, fcntl_get_seals, fstat, open};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

/// What somebody has said.
#[derive(Debug)]
pub(super) enum Said {
    Nothing,
    Cancel,
    Secrets(StepSecrets, Vec<OwnedFd>),
    Rotate(RotateSecret, Vec<OwnedFd>),
    /// A packet of a kind that there is, which cannot be read: why.
    Unreadable(String),
    Other,
    /// He has left, or sent a packet without bytes, which looks the same (unix(7)).
    End,
}

/// Hears a connection. Does not wait.
pub(super) fn listen_to(connection: &OwnedFd) -> Said {
    let mut bytes = [0; CONTROL_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SECRETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = match recvmsg(connection, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
        Ok(got) => got,
        Err(Errno::AGAIN | Errno::INTR) => return Said::Nothing,
        Err(_) => return Said::End,
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let Some((kind, text)) = bytes.get(..got.bytes).and_then(<[u8]>::split_first) else { return Said::End };
    let is_cut = got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    match *kind {
        CANCEL if text.is_empty() => Said::Cancel,
        SECRETS | ROTATE if is_cut => {
            let most = format!("at most {CONTROL_BYTES_MAX} bytes and {SECRETS_MAX} descriptors are read");
            Said::Unreadable(most)
        }
        SECRETS => read(text, descriptors, Said::Secrets),
        ROTATE => read(text, descriptors, Said::Rotate),
        _ => Said::Other,
    }
}

fn read<T: serde::de::DeserializeOwned>(
    text: &[u8],
    descriptors: Vec<OwnedFd>,
    said: impl FnOnce(T, Vec<OwnedFd>) -> Said,
) -> Said {
    match serde_json::from_slice(text) {
        Ok(packet) => said(packet, descriptors),
        Err(error) => Said::Unreadable(format!("the packet cannot be read: {error}")),
    }
}

/// A value, of which nothing changes any more.
#[derive(Debug)]
pub(crate) struct Value {
    pub(crate) file: OwnedFd,
    pub(crate) bytes: usize,
}

/// Takes the values that came with a packet, if each is what it must be and they are those that are wanted.
pub(super) fn values<'n>(
    said: impl ExactSizeIterator<Item = (&'n Name, u64)>,
    descriptors: Vec<OwnedFd>,
    wanted: &[Name],
) -> Result<Vec<Value>, String> {
    if said.len() != wanted.len() || descriptors.len() != wanted.len() {
        return Err(format!(
            "{} secrets are wanted; a name and a descriptor for each are to come",
            wanted.len()
        ));
    }
    let mut all = 0;
    let mut values = Vec::new();
    for (((name, bytes), file), wanted) in said.zip(descriptors).zip(wanted) {
        if name != wanted {
            return Err(format!("{name} came at the place of {wanted}: the order is the step's"));
        }
        let value = value(&file, bytes).map_err(|why| format!("secret {name}: {why}"))?;
        all += value.bytes;
        values.push(value);
    }
    if all > STEP_SECRET_BYTES_MAX {
        return Err(format!("a step's secrets have at most {STEP_SECRET_BYTES_MAX} bytes together"));
    }
    Ok(values)
}

/// Opens a sealed file anew, for reading: what others do with theirs does not move it.
fn value(file: &OwnedFd, bytes: u64) -> Result<Value, String> {
    let sealed = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    // Whatever is no memory file has no seals to ask for.
    if !fcntl_get_seals(file).is_ok_and(|seals| seals.contains(sealed)) {
        return Err("its descriptor is no memory file with the seals SEAL, SHRINK, GROW and WRITE".to_owned());
    }
    let length = fstat(file).map_err(|e| e.to_string())?.st_size;
    if u64::try_from(length) != Ok(bytes) {
        return Err("its file has another length than the packet says".to_owned());
    }
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes) {
        let most = format!("a value has {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes");
        return Err(format!("{most}; a shorter one cannot be masked"));
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| e.to_string())?;
    if !is_long_enough(&file).map_err(|e| e.to_string())? {
        let least = format!("a value has {SECRET_BYTES_MIN} bytes at least before the blanks at its end");
        return Err(format!("{least}; a shorter one cannot be masked"));
    }
    Ok(Value { file, bytes })
}

/// Whether anything but blanks stands behind what is too short. Of nothing else in a value is taken notice here.
fn is_long_enough(file: &OwnedFd) -> Result<bool, Errno> {
    let mut part = [0; 64];
    let mut at = SECRET_BYTES_MIN as u64 - 1;
    let found = loop {
        let count = rustix::io::pread(file, &mut part, at)?;
        let read = part.get(..count).unwrap_or_default();
        if read.is_empty() || !read.trim_ascii_start().is_empty() {
            break !read.is_empty();
        }
        at += count as u64;
    };
    part.fill(0);
    std::hint::black_box(&mut part);
    Ok(found)
}

/// Whether a step may end for this reason.
pub(super) fn check_failed(failed: &SecretsFailed) -> Result<(), String> {
    if !matches!(failed.code, Code::SecretDenied | Code::SecretUnavailable) {
        return Err("a step gets no secrets with secret.denied or secret.unavailable alone".to_owned());
    }
    if failed.message.len() > FAILED_BYTES_MAX || failed.message.chars().any(char::is_control) {
        return Err(format!("a message has at most {FAILED_BYTES_MAX} bytes, no control character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn blanks_at_the_end_do_not_make_a_value_long_enough() {
        let is_long = |value: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(value).unwrap();
            is_long_enough(&OwnedFd::from(file)).unwrap()
        };
        let blanks = [b"1234567".as_slice(), &[b' '; 5000]].concat();
        for short in [b"1234567".as_slice(), b"1234567\n", b"       \n\n\n", &blanks] {
            assert!(!is_long(short), "{short:?}");
        }
        for long in [b"12345678".as_slice(), b"12345678\n", b"       8", &[&blanks[..], b"x"].concat()] {
            assert!(is_long(long), "{long:?}");
        }
    }
}
