//! Handles of namespaces, to show later that one is gone (name_to_handle_at(2), nsfs since Linux 6.18).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `FD_NSFS_ROOT` (linux/fcntl.h, 6.18): stands for the root of nsfs without an open descriptor of it.
const NSFS_ROOT: libc::c_int = -10003;
/// `MAX_HANDLE_SZ` (linux/exportfs.h).
const HANDLE_BYTES: usize = 128;

/// A name of a namespace that does not keep it alive.
#[derive(Debug, Clone)]
pub struct NamespaceHandle {
    raw: Raw,
}

#[derive(Debug, Clone)]
#[repr(C, align(8))]
struct Raw {
    bytes: u32,
    kind: i32,
    data: [u8; HANDLE_BYTES],
}

impl NamespaceHandle {
    /// Names the namespace that `namespace` refers to.
    ///
    /// # Errors
    /// `EOPNOTSUPP` before Linux 6.18.
    pub fn of(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let mut raw = Raw { bytes: 128, kind: 0, data: [0; HANDLE_BYTES] };
        let mut mount_id: libc::c_int = 0;
        // SAFETY: `raw` has the layout of `struct file_handle` with room for `raw.bytes` bytes after the two
        // head fields; the path is a NUL-terminated constant; `mount_id` is writable.
        let done = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                namespace.as_raw_fd(),
                c"".as_ptr(),
                &raw mut raw,
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        crate::check(done)?;
        Ok(Self { raw })
    }

    /// The handle as bytes, to be kept outside of this process; its kind comes first.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = usize::try_from(self.raw.bytes).unwrap_or(HANDLE_BYTES).min(HANDLE_BYTES);
        let data = self.raw.data.iter().take(length);
        self.raw.kind.to_le_bytes().iter().chain(data).copied().collect()
    }

    /// What [`NamespaceHandle::to_bytes`] gave; none if these bytes cannot be that.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, data) = bytes.split_first_chunk()?;
        let mut raw = Raw {
            bytes: u32::try_from(data.len()).ok()?,
            kind: i32::from_le_bytes(*kind),
            data: [0; HANDLE_BYTES],
        };
        raw.data.get_mut(..data.len())?.copy_from_slice(data);
        Some(Self { raw })
    }

    /// Whether no reference to the namespace is left.
    ///
    /// # Errors
    /// Any errno but `ESTALE`, as where the kernel has no handles of namespaces.
    pub fn is_gone(&self) -> io::Result<bool> {
        let mut raw = self.raw.clone();
        // SAFETY: `raw` is a `struct file_handle` as the kernel filled it in; the call reads it only.
        let opened = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                NSFS_ROOT,
                &raw mut raw,
                libc::O_CLOEXEC | libc::O_RDONLY,
            )
        };
        match crate::check(opened) {
            Ok(number) => {
                let number = libc::c_int::try_from(number).unwrap_or(-1);
                // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
                drop(unsafe { OwnedFd::from_raw_fd(number) });
                Ok(false)
            }
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
