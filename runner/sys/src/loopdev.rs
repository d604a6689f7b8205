//! Loop devices: a file as a block device (loop(4)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `LOOP_GET_STATUS64` (linux/loop.h).
const GET_STATUS64: libc::Ioctl = 0x4c05;
/// `LOOP_SET_DIRECT_IO` (linux/loop.h).
const SET_DIRECT_IO: libc::Ioctl = 0x4c08;
/// `LOOP_CONFIGURE` (linux/loop.h, 5.8).
const CONFIGURE: libc::Ioctl = 0x4c0a;
/// `LOOP_CTL_GET_FREE` (linux/loop.h).
const CTL_GET_FREE: libc::Ioctl = 0x4c82;
/// `LO_FLAGS_AUTOCLEAR`
const AUTOCLEAR: u32 = 4;

/// Logical block size of the devices in bytes.
///
/// The block size of our file systems: direct I/O is then aligned for every disk that there is, and mount(2)
/// need not change the device's block size, which drops what of it is cached.
pub const BLOCK_BYTES: u32 = 4096;

/// The longest name of a device in bytes: `LO_NAME_SIZE` less the NUL.
pub const NAME_BYTES_MAX: usize = 63;

/// `struct loop_info64` (linux/loop.h).
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME_BYTES_MAX + 1],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` (linux/loop.h).
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

impl Info {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; NAME_BYTES_MAX + 1],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// The number of a device that nothing is bound to, made if there is none. `control` is `/dev/loop-control`.
///
/// Nothing is held: somebody else may be given the same number, and whoever comes second to [`configure`] gets
/// `EBUSY`.
///
/// # Errors
/// `EACCES` or `EPERM` for a descriptor that is not ours to use, `ENOTTY` if it is something else.
pub fn free_number(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches no memory of ours.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), CTL_GET_FREE) };
    let number = crate::check(number.into())?;
    u32::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::ERANGE))
}

/// Binds a device to the whole of a file, whose length is a multiple of [`BLOCK_BYTES`], and names it.
///
/// The device lets go of the file when the last descriptor and mount of the device is gone (`AUTOCLEAR`), so
/// that nobody has to be alive to do it.
///
/// # Errors
/// `EBUSY` if the device has been bound by somebody else; `EINVAL` for a longer name than [`NAME_BYTES_MAX`], an
/// empty one, one with a NUL, or on Linux before 5.8.
pub fn configure(device: BorrowedFd<'_>, backing: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut info = Info { flags: AUTOCLEAR, ..Info::EMPTY };
    for (slot, byte) in info.file_name.iter_mut().zip(name.bytes()) {
        *slot = byte;
    }
    let fd = u32::try_from(backing.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let config = Config { fd, block_size: BLOCK_BYTES, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, whose layout `Config` has, and writes nothing.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const config) };
    crate::check(done.into()).map(drop)
}

/// Has a bound device read and write past the page cache of the backing file's file system from now on. What is
/// dirty there is synced before.
///
/// # Errors
/// `EINVAL` if that file system cannot do it; `ENXIO` if nothing is bound to the device.
pub fn set_direct_io(device: BorrowedFd<'_>) -> io::Result<()> {
    const ON: libc::c_ulong = 1;
    // SAFETY: LOOP_SET_DIRECT_IO takes a number and touches no memory of ours.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), SET_DIRECT_IO, ON) };
    crate::check(done.into()).map(drop)
}

/// The name that a device was bound under; none if nothing is bound to it. Another program's name need not be
/// UTF-8; what is not is replaced.
///
/// # Errors
/// `ENOTTY` for what is no loop device, and what the backing file's file system says of a failed stat(2).
pub fn name(device: BorrowedFd<'_>) -> io::Result<Option<String>> {
    let mut info = Info::EMPTY;
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, which `info` is, and every bit pattern is valid
    // for its integers.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), GET_STATUS64, &raw mut info) };
    match crate::check(done.into()) {
        Ok(_) => {
            let name: Vec<u8> = info.file_name.into_iter().take_while(|byte| *byte != 0).collect();
            Ok(Some(String::from_utf8_lossy(&name).into_owned()))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
        result.unwrap_err().raw_os_error()
    }

    #[test]
    fn descriptor_that_is_no_loop_device_is_enotty() {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert_eq!(errno(free_number(null.as_fd())), Some(libc::ENOTTY));
        assert_eq!(errno(configure(null.as_fd(), null.as_fd(), "a")), Some(libc::ENOTTY));
        assert_eq!(errno(name(null.as_fd())), Some(libc::ENOTTY));
    }

    #[test]
    fn name_that_does_not_fit_is_refused_and_one_that_fits_is_not() {
        let null = File::open("/dev/null").unwrap();
        let longest = "x".repeat(NAME_BYTES_MAX);
        for bad in ["", "a\0b", &format!("{longest}x")] {
            assert_eq!(errno(configure(null.as_fd(), null.as_fd(), bad)), Some(libc::EINVAL));
        }
        assert_eq!(errno(configure(null.as_fd(), null.as_fd(), &longest)), Some(libc::ENOTTY));
    }
}
