//! `TUNSETIFF` (Linux, Documentation/networking/tuntap.rst).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

/// The ioctl; the macro makes a function without documentation.
#[allow(missing_docs)]
mod requests {
    use super::ioctl_iow_nr;

    ioctl_iow_nr!(TUNSETIFF, b'T' as u32, 202, i32);
}
use requests::TUNSETIFF;

/// An Ethernet device (IFF_TAP) without the packet information header (IFF_NO_PI).
const FLAGS: u16 = 0x0002 | 0x1000;

/// The head of `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

/// Binds an open /dev/net/tun to the tap device `name` (at most 15 bytes).
pub fn bind(tun: &File, name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() > 15 || name.bytes().any(|byte| byte == 0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an interface name has 1 to 15 bytes",
        ));
    }
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: FLAGS,
        padding: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the fd is open; TUNSETIFF reads and writes at most the 40 bytes of struct ifreq, which `request` has.
    let rc = unsafe { ioctl_with_ref(&tun.as_raw_fd(), TUNSETIFF(), &request) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
