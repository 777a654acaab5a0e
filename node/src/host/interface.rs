//! What the kernel says of the network interfaces of this network namespace (rtnetlink(7)). /sys may show another one.

use std::io;

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// `NLMSG_ERROR`, `RTM_NEWLINK`, `RTM_GETLINK` and `NLM_F_REQUEST` (linux/netlink.h, linux/rtnetlink.h).
const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const REQUEST: u16 = 1;
/// Attributes of an interface (linux/if_link.h).
const NAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const EXT_MASK: u16 = 29;
/// Inside of `LINK_INFO`: what kind of interface it is.
const KIND: u16 = 1;
/// `RTEXT_FILTER_SKIP_STATS`: an answer without counters.
const SKIP_STATS: u32 = 8;
/// Attributes that hold others, or that are in network order, say so in their type.
const TYPE_MASK: u16 = 0x3fff;
/// `struct nlmsghdr`, and with `struct ifinfomsg`.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 16;
/// `struct rtattr`.
const ATTRIBUTE: usize = 4;
/// Far more than an answer about one interface has; what is longer is cut, and refused.
const MOST: usize = 32 << 10;
/// Bytes of a name, with the zero at its end (`IFNAMSIZ`).
const NAME_SIZE: usize = 16;

/// An interface as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number, which no other one has while this process runs.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// It was brought up.
    pub is_up: bool,
    /// What it is a port of.
    pub master: Option<u32>,
    /// It is a bridge of the kernel's own.
    pub is_bridge: bool,
    /// Most bytes of a packet.
    pub mtu: u32,
}

/// Asks the kernel of the network namespace in which it was opened.
pub struct Interfaces {
    socket: OwnedFd,
    asked: u32,
}

impl Interfaces {
    /// A socket to ask by.
    pub fn open() -> io::Result<Self> {
        // The protocol is NETLINK_ROUTE, whose number is 0.
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot ask the kernel for its interfaces: {error}; a unit's RestrictAddressFamilies= needs AF_NETLINK"),
                )
            })?;
        Ok(Self { socket, asked: 0 })
    }

    /// The interface with this name, if there is one.
    pub fn by_name(&mut self, name: &str) -> io::Result<Option<Interface>> {
        if name.is_empty() || name.len() >= NAME_SIZE || name.contains('\0') {
            return Ok(None);
        }
        let with_zero = [name.as_bytes(), &[0]].concat();
        self.ask(0, &[(NAME, &with_zero)])
    }

    /// The one with this number, if there is one.
    pub fn by_index(&mut self, index: u32) -> io::Result<Option<Interface>> {
        self.ask(index, &[])
    }

    fn ask(&mut self, index: u32, attributes: &[(u16, &[u8])]) -> io::Result<Option<Interface>> {
        self.asked = self.asked.wrapping_add(1);
        let request = request(self.asked, index, attributes);
        send(&self.socket, &request, SendFlags::empty())?;
        let mut buffer = vec![0; MOST];
        loop {
            // The kernel has answered when it has taken the request. An answer to an older one is passed over.
            let (_, length) = recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC)?;
            let message = buffer.get(..length).ok_or_else(|| wrong("is too long"))?;
            if number(message, 8)? == self.asked {
                return answer(message);
            }
        }
    }
}

fn request(number: u32, index: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; HEADERS];
    message[4..6].copy_from_slice(&GET_LINK.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    message[8..12].copy_from_slice(&number.to_ne_bytes());
    message[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
    for (kind, value) in attributes.iter().chain(&[(EXT_MASK, &SKIP_STATS.to_ne_bytes()[..])]) {
        message.extend(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(*value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// What a message of the kernel's says: `None` where there is no such interface.
fn answer(message: &[u8]) -> io::Result<Option<Interface>> {
    let kind = (number(message, 4)? & 0xffff) as u16;
    if kind == ERROR {
        let code = -(number(message, HEADER)? as i32);
        return match code {
            libc::ENODEV => Ok(None),
            _ => Err(io::Error::from_raw_os_error(code)),
        };
    }
    if kind != NEW_LINK || message.len() < HEADERS {
        return Err(wrong("is of another kind"));
    }
    let mut interface = Interface {
        index: number(message, HEADER + 4)?,
        name: String::new(),
        is_up: number(message, HEADER + 8)? & libc::IFF_UP as u32 != 0,
        master: None,
        is_bridge: false,
        mtu: 0,
    };
    for (kind, value) in attributes(&message[HEADERS..]) {
        match kind {
            NAME => interface.name = text(value),
            MTU => interface.mtu = number(value, 0)?,
            MASTER => interface.master = Some(number(value, 0)?),
            LINK_INFO => {
                interface.is_bridge = attributes(value).any(|(kind, value)| kind == KIND && text(value) == "bridge");
            }
            _ => {}
        }
    }
    Ok(Some(interface))
}

/// The attributes in `bytes`, up to the first that is not whole.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..ATTRIBUTE)?.try_into().ok()?) & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn number(bytes: &[u8], at: usize) -> io::Result<u32> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_ne_bytes).ok_or_else(|| wrong("is too short"))
}

fn wrong(how: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("what the kernel says of an interface {how}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_known_by_name_and_number() {
        let mut interfaces = Interfaces::open().unwrap();
        let lo = interfaces.by_name("lo").unwrap().unwrap();
        assert_eq!((lo.name.as_str(), lo.master, lo.is_bridge), ("lo", None, false));
        assert!(lo.mtu > 0);
        assert_eq!(interfaces.by_index(lo.index).unwrap(), Some(lo));
        for absent in ["no-such-nic", "", "a-name-that-is-too-long", "l\0o"] {
            assert_eq!(interfaces.by_name(absent).unwrap(), None, "{absent:?}");
        }
        assert_eq!(interfaces.by_index(0x7fff_fff0).unwrap(), None);
    }

    #[test]
    fn an_answer_that_is_cut_is_refused_or_says_less() {
        let mut message = request(7, 3, &[(NAME, b"t0\0"), (MASTER, &9_u32.to_ne_bytes())]);
        message[4..6].copy_from_slice(&NEW_LINK.to_ne_bytes());
        let whole = answer(&message).unwrap().unwrap();
        assert_eq!((whole.index, whole.name.as_str(), whole.master), (3, "t0", Some(9)));
        for length in 0..message.len() {
            match answer(&message[..length]) {
                Ok(Some(part)) => assert_eq!(part.index, 3),
                Ok(None) => panic!("{length}"),
                Err(error) => assert!(length < HEADERS, "{error}"),
            }
        }
    }
}
