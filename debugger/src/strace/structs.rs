//! What system calls take and give by address (include/uapi/linux; x86-64's layouts).

use super::flags as f;
use super::memory::{Memory, buffer, bytes, double, pointer, short_text, word};
use crate::quote::quoted;

/// Elements of an array that are shown.
const MOST_ELEMENTS: u64 = 32;
/// Elements that are counted.
const MOST_COUNTED: usize = 4096;
/// Bytes of a directory's entries that are looked through.
const MOST_ENTRIES: u64 = 1 << 16;
/// An entry has at least so many.
const LEAST_ENTRY: u64 = 24;

/// Elements of `size` bytes each at `address`, each as `show` has it.
fn array<const SIZE: usize>(
    memory: &dyn Memory,
    address: u64,
    count: u64,
    show: impl Fn(&[u8; SIZE]) -> Option<String>,
) -> String {
    if address == 0 {
        return "NULL".into();
    }
    let mut shown = Vec::new();
    for index in 0..count.min(MOST_ELEMENTS) {
        match bytes::<SIZE>(memory, address.wrapping_add(index * SIZE as u64)) {
            Some(element) => shown.extend(show(&element)),
            None => return pointer(address),
        }
    }
    if count > MOST_ELEMENTS {
        shown.push("...".into());
    }
    format!("[{}]", shown.join(", "))
}

/// `{tv_sec=1, tv_nsec=0}`
pub fn timespec(memory: &dyn Memory, address: u64) -> String {
    match bytes::<16>(memory, address) {
        Some(time) => format!(
            "{{tv_sec={}, tv_nsec={}}}",
            double(&time, 0).cast_signed(),
            double(&time, 8).cast_signed()
        ),
        None => pointer(address),
    }
}

pub fn timeval(memory: &dyn Memory, address: u64) -> Option<String> {
    let time: [u8; 16] = bytes(memory, address)?;
    Some(format!(
        "{{tv_sec={}, tv_usec={}}}",
        double(&time, 0).cast_signed(),
        double(&time, 8).cast_signed()
    ))
}

/// What stat(2) tells that people look for.
pub fn stat(memory: &dyn Memory, address: u64) -> Option<String> {
    let stat: [u8; 144] = bytes(memory, address)?;
    let mode = word(&stat, 24);
    let what = match mode & libc::S_IFMT {
        libc::S_IFCHR | libc::S_IFBLK => {
            let device = double(&stat, 40);
            format!(
                "st_rdev=makedev({:#x}, {:#x})",
                device >> 8 & 0xfff,
                device & 0xff | device >> 12 & 0xf_ff00
            )
        }
        _ => format!("st_size={}", double(&stat, 48).cast_signed()),
    };
    Some(format!("{{st_mode={}, {what}, ...}}", f::mode(mode)))
}

/// `[{WIFEXITED(s) && WEXITSTATUS(s) == 0}]`
pub fn wait_status(memory: &dyn Memory, address: u64) -> Option<String> {
    let status = word(&bytes::<4>(memory, address)?, 0);
    let signal = u64::from(status & 0x7f);
    Some(match (status & 0xff, signal) {
        (0x7f, _) => format!(
            "[{{WIFSTOPPED(s) && WSTOPSIG(s) == {}}}]",
            f::signal(u64::from(status >> 8 & 0xff))
        ),
        (_, 0) => format!("[{{WIFEXITED(s) && WEXITSTATUS(s) == {}}}]", status >> 8 & 0xff),
        _ if status == 0xffff => "[{WIFCONTINUED(s)}]".into(),
        _ => {
            let core = if status & 0x80 == 0 { "" } else { " && WCOREDUMP(s)" };
            format!("[{{WIFSIGNALED(s) && WTERMSIG(s) == {}{core}}}]", f::signal(signal))
        }
    })
}

/// `[INT TERM]`
pub fn signals(memory: &dyn Memory, address: u64) -> String {
    match bytes::<8>(memory, address) {
        Some(bits) => f::signal_set(u64::from_le_bytes(bits)),
        None => pointer(address),
    }
}

/// The kernel's own sigaction.
pub fn action(memory: &dyn Memory, address: u64) -> String {
    let Some(action) = bytes::<32>(memory, address) else {
        return pointer(address);
    };
    let handler = match double(&action, 0) {
        0 => "SIG_DFL".into(),
        1 => "SIG_IGN".into(),
        handler => pointer(handler),
    };
    let (flags, restorer) = (double(&action, 8), double(&action, 16));
    let restorer = if flags & 0x0400_0000 == 0 {
        String::new()
    } else {
        format!(", sa_restorer={}", pointer(restorer))
    };
    format!(
        "{{sa_handler={handler}, sa_mask={}, sa_flags={}{restorer}}}",
        f::signal_set(double(&action, 24)),
        f::joined(f::SIGACTION, flags, "0")
    )
}

/// `["sh", "-c", "true"]`
pub fn texts(memory: &dyn Memory, address: u64) -> String {
    if address == 0 {
        return "NULL".into();
    }
    let mut shown = Vec::new();
    loop {
        let at = address.wrapping_add(shown.len() as u64 * 8);
        match bytes::<8>(memory, at).map(u64::from_le_bytes) {
            Some(0) => break,
            None if shown.is_empty() => return pointer(address),
            None => {
                shown.push(pointer(at));
                break;
            }
            Some(_) if shown.len() as u64 == MOST_ELEMENTS => {
                shown.push("...".into());
                break;
            }
            Some(text_at) => shown.push(short_text(memory, text_at)),
        }
    }
    format!("[{}]", shown.join(", "))
}

/// `0x7ffe00 /* 3 vars */`
pub fn environment(memory: &dyn Memory, address: u64) -> String {
    if address == 0 {
        return "NULL".into();
    }
    for count in 0..MOST_COUNTED {
        match bytes::<8>(memory, address.wrapping_add(count as u64 * 8)).map(u64::from_le_bytes) {
            Some(0) => {
                let plural = if count == 1 { "" } else { "s" };
                return format!("{address:#x} /* {count} var{plural} */");
            }
            Some(_) => {}
            None => break,
        }
    }
    pointer(address)
}

/// A socket's address.
pub fn address(memory: &dyn Memory, at: u64, length: u64) -> String {
    let mut found = vec![0; length.min(128) as usize];
    if at == 0 || found.len() < 2 || memory.read(at, &mut found) < found.len() {
        return pointer(at);
    }
    let family = u64::from(found[0]) | u64::from(found[1]) << 8;
    let name = f::name_or_hex(f::FAMILY, family);
    let port = || u16::from_be_bytes([found[2], found[3]]);
    match family as i32 {
        libc::AF_UNIX => {
            let path = &found[2..];
            let shown = match path.first() {
                None => return format!("{{sa_family={name}}}"),
                Some(0) => format!("@{}", quoted(&path[1..], false)),
                Some(_) => {
                    let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
                    quoted(&path[..end], false)
                }
            };
            format!("{{sa_family={name}, sun_path={shown}}}")
        }
        libc::AF_INET if found.len() >= 8 => format!(
            "{{sa_family={name}, sin_port=htons({}), sin_addr=inet_addr(\"{}.{}.{}.{}\")}}",
            port(),
            found[4],
            found[5],
            found[6],
            found[7]
        ),
        libc::AF_INET6 if found.len() >= 28 => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&found[8..24]);
            format!(
                "{{sa_family={name}, sin6_port=htons({}), sin6_flowinfo=htonl({}), inet_pton(AF_INET6, \"{}\", &sin6_addr), \
                 sin6_scope_id={}}}",
                port(),
                u32::from_be_bytes([found[4], found[5], found[6], found[7]]),
                std::net::Ipv6Addr::from(octets),
                word(&found, 24)
            )
        }
        _ => format!("{{sa_family={name}, sa_data={}}}", quoted(&found[2..], false)),
    }
}

/// What poll(2) is to wait for.
pub fn polls(memory: &dyn Memory, address: u64, count: u64) -> String {
    array::<8>(memory, address, count, |one| {
        let events = f::joined(f::POLL, u64::from(word(one, 4) & 0xffff), "0");
        Some(format!("{{fd={}, events={events}}}", word(one, 0) as i32))
    })
}

/// What it has found.
pub fn polled(memory: &dyn Memory, address: u64, count: u64) -> Option<String> {
    bytes::<8>(memory, address)?;
    Some(array::<8>(memory, address, count, |one| {
        let events = word(one, 4) >> 16;
        let names = f::joined(f::POLL, u64::from(events), "0");
        (events != 0).then(|| format!("{{fd={}, revents={names}}}", word(one, 0) as i32))
    }))
}

fn epoll(event: &[u8; 12]) -> String {
    let data = double(event, 4);
    format!(
        "{{events={}, data={{u32={}, u64={data}}}}}",
        f::joined(f::EPOLL, u64::from(word(event, 0)), "0"),
        data as u32
    )
}

pub fn epoll_event(memory: &dyn Memory, address: u64) -> String {
    bytes(memory, address).map_or_else(|| pointer(address), |event| epoll(&event))
}

pub fn epoll_events(memory: &dyn Memory, address: u64, count: u64) -> Option<String> {
    (count == 0 || bytes::<12>(memory, address).is_some())
        .then(|| array::<12>(memory, address, count, |event| Some(epoll(event))))
}

/// What uname(2) tells that people look for.
pub fn uts(memory: &dyn Memory, address: u64) -> Option<String> {
    let all: [u8; 130] = bytes(memory, address)?;
    let field = |at: usize| {
        let field = &all[at..at + 65];
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(65);
        quoted(&field[..end], false)
    };
    Some(format!("{{sysname={}, nodename={}, ...}}", field(0), field(65)))
}

/// `0x55d0 /* 12 entries */`, of so many bytes.
pub fn entries(memory: &dyn Memory, address: u64, length: u64) -> Option<String> {
    let (mut at, mut count) = (0, 0u64);
    while at < length.min(MOST_ENTRIES) {
        let header: [u8; 18] = bytes(memory, address.wrapping_add(at))?;
        let size = u64::from(header[16]) | u64::from(header[17]) << 8;
        if size < LEAST_ENTRY {
            return None;
        }
        at += size;
        count += 1;
    }
    let plural = if count == 1 { "entry" } else { "entries" };
    Some(format!("{address:#x} /* {count} {plural} */"))
}

/// What clone3(2) takes.
pub fn clone3(memory: &dyn Memory, address: u64) -> String {
    let Some(all) = bytes::<64>(memory, address) else {
        return pointer(address);
    };
    format!(
        "{{flags={}, child_tid={}, parent_tid={}, exit_signal={}, stack={}, stack_size={:#x}, ...}}",
        f::joined(f::CLONE, double(&all, 0), "0"),
        pointer(double(&all, 16)),
        pointer(double(&all, 24)),
        f::signal(double(&all, 32)),
        pointer(double(&all, 40)),
        double(&all, 48)
    )
}

/// `{rlim_cur=1024, rlim_max=RLIM64_INFINITY}`
pub fn limits(memory: &dyn Memory, address: u64) -> String {
    let Some(both) = bytes::<16>(memory, address) else {
        return pointer(address);
    };
    let limit = |at: usize| match double(&both, at) {
        u64::MAX => "RLIM64_INFINITY".to_owned(),
        limit if limit > 1024 && limit % 1024 == 0 => format!("{}*1024", limit / 1024),
        limit => limit.to_string(),
    };
    format!("{{rlim_cur={}, rlim_max={}}}", limit(0), limit(8))
}

/// An array of `iovec`, with what is in its buffers: all, or as many bytes as were filled.
pub fn vectors(memory: &dyn Memory, address: u64, count: u64, filled: Option<u64>) -> String {
    let left = std::cell::Cell::new(filled.unwrap_or(u64::MAX));
    array::<16>(memory, address, count, |vector| {
        let (base, length) = (double(vector, 0), double(vector, 8));
        let used = length.min(left.get());
        left.set(left.get() - used);
        Some(format!("{{iov_base={}, iov_len={length}}}", buffer(memory, base, used)))
    })
}
