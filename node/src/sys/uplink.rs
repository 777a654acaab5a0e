//! `SIOCGIFFLAGS` (Linux, netdevice(7)): whether an interface has a carrier.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};

/// `struct ifreq` as SIOCGIFFLAGS reads and writes it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: libc::c_short,
    padding: [u8; 22],
}

/// Whether there is an interface `name` in this thread's network namespace. /sys may show another one.
pub fn is_there(name: &str) -> bool {
    rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .and_then(|socket| name_to_index(socket, name))
        .is_ok()
}

/// Whether the interface `name` of this thread's network namespace is up and has a carrier (IFF_RUNNING).
pub fn has_carrier(name: &str) -> io::Result<bool> {
    if name.is_empty() || name.len() > 15 || name.bytes().any(|byte| byte == 0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an interface name has 1 to 15 bytes",
        ));
    }
    // Any socket will do; it sends nothing.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: 0,
        padding: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the fd is open; SIOCGIFFLAGS reads and writes at most the 40 bytes of struct ifreq, which `request` has.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) };
    if rc < 0 {
        return Err(io::Error::other(format!(
            "cannot look at interface {name}: {}",
            io::Error::last_os_error()
        )));
    }
    let wanted = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    Ok(request.flags & wanted == wanted)
}
