//! A system call's arguments and result as text.
//!
//! What the guest's memory does not have here (it is paged out, or no address at all) is shown as the bare address. Everything that
//! is read of it is bounded.

use syscalls::x86_64::Sysno;

use super::flags as f;
use super::memory::{Memory, buffer, bytes, pointer, text, word};
use super::structs as s;
use super::table::{Arg, arguments, returns_address};

/// Results from this on are errors.
const ERRORS: i64 = 4095;

/// A system call that a program makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub number: u64,
    pub arguments: [u64; 6],
}

impl Call {
    /// Which one it is, if Linux has it.
    fn known(&self) -> Option<Sysno> {
        Sysno::new(usize::try_from(self.number).ok()?)
    }

    /// `openat`, or `syscall_0x1f4`.
    pub fn name(&self) -> String {
        self.known()
            .map_or_else(|| format!("syscall_{:#x}", self.number), |call| call.name().to_owned())
    }

    /// It does not come back.
    pub fn is_exit(&self) -> bool {
        matches!(self.known(), Some(Sysno::exit | Sysno::exit_group))
    }

    /// The arguments that are known when it is made: up to the first that it fills.
    pub fn begin(&self, memory: &dyn Memory) -> Vec<String> {
        if let Some(special) = self.special(memory) {
            return special;
        }
        let shown = self
            .specified()
            .into_iter()
            .enumerate()
            .take_while(|(_, arg)| !arg.is_out());
        shown
            .filter_map(|(index, arg)| self.argument(index, arg, None, memory))
            .collect()
    }

    /// The others, when it has returned `result`.
    pub fn end(&self, result: i64, memory: &dyn Memory) -> Vec<String> {
        if self.special(memory).is_some() {
            return Vec::new();
        }
        let shown = self
            .specified()
            .into_iter()
            .enumerate()
            .skip_while(|(_, arg)| !arg.is_out());
        shown
            .filter_map(|(index, arg)| self.argument(index, arg, Some(result), memory))
            .collect()
    }

    /// Whether arguments are known only when it has returned.
    pub fn has_more(&self) -> bool {
        !matches!(self.known(), Some(Sysno::clone | Sysno::futex)) && self.specified().iter().any(|arg| arg.is_out())
    }

    fn specified(&self) -> Vec<Arg> {
        match self.known().and_then(arguments) {
            Some(arguments) => arguments.to_vec(),
            None => vec![Arg::Hex; 6],
        }
    }

    /// Calls whose arguments depend on each other.
    fn special(&self, memory: &dyn Memory) -> Option<Vec<String>> {
        let [first, second, third, fourth, fifth, sixth] = self.arguments;
        match self.known()? {
            Sysno::clone => {
                let (flags, signal) = (first & !0xff, first & 0xff);
                let mut names = f::joined(f::CLONE, flags, "");
                if signal != 0 {
                    let bar = if names.is_empty() { "" } else { "|" };
                    names = format!("{names}{bar}{}", f::signal(signal));
                }
                let mut shown = vec![
                    format!("child_stack={}", pointer(second)),
                    format!("flags={}", if names.is_empty() { "0" } else { &names }),
                ];
                for (flag, name, value) in [
                    (libc::CLONE_PARENT_SETTID, "parent_tid", third),
                    (libc::CLONE_SETTLS, "tls", fifth),
                    (
                        libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID,
                        "child_tidptr",
                        fourth,
                    ),
                ] {
                    if flags & u64::from(flag.cast_unsigned()) != 0 {
                        shown.push(format!("{name}={}", pointer(value)));
                    }
                }
                Some(shown)
            }
            Sysno::futex => {
                let operation = self.argument(1, Arg::FutexOperation, None, memory)?;
                let value = |value: u64| (value as u32).to_string();
                let mut shown = vec![pointer(first), operation, value(third)];
                match (second & 0x7f) as i32 {
                    libc::FUTEX_WAIT | libc::FUTEX_LOCK_PI => shown.push(s::timespec(memory, fourth)),
                    libc::FUTEX_WAIT_BITSET => {
                        shown.extend([
                            s::timespec(memory, fourth),
                            pointer(fifth),
                            format!("{:#x}", sixth as u32),
                        ]);
                    }
                    libc::FUTEX_WAKE | libc::FUTEX_FD | libc::FUTEX_UNLOCK_PI | libc::FUTEX_TRYLOCK_PI => {}
                    _ => shown.extend([value(fourth), pointer(fifth), value(sixth)]),
                }
                Some(shown)
            }
            _ => None,
        }
    }

    fn argument(&self, index: usize, arg: Arg, result: Option<i64>, memory: &dyn Memory) -> Option<String> {
        let value = *self.arguments.get(index)?;
        let number = |index: usize| self.arguments.get(index).copied().unwrap_or(0);
        // What a call has filled, if it has not failed.
        let filled = match result {
            Some(result) if !is_error(result) => Some(result),
            _ => None,
        };
        let out = |show: &dyn Fn(i64) -> Option<String>| match filled {
            Some(result) if value != 0 => show(result).unwrap_or_else(|| pointer(value)),
            _ => pointer(value),
        };
        Some(match arg {
            Arg::Long => value.cast_signed().to_string(),
            Arg::Size => value.to_string(),
            Arg::Hex if value == 0 => "0".into(),
            Arg::Hex => format!("{value:#x}"),
            Arg::Pointer => pointer(value),
            Arg::Fd if value as i32 == libc::AT_FDCWD => "AT_FDCWD".into(),
            Arg::Int | Arg::Fd => (value as i32).to_string(),
            Arg::Text => text(memory, value),
            Arg::Bytes(length) => buffer(memory, value, number(length)),
            Arg::BytesOut => out(&|result| Some(buffer(memory, value, result.max(0).cast_unsigned()))),
            Arg::TextOut => out(&|_| Some(text(memory, value))),
            Arg::Mode => f::octal(value as u32),
            Arg::ModeOf(flags) => {
                let flags = number(flags) as i32;
                if flags & libc::O_CREAT == 0 && flags & libc::O_TMPFILE != libc::O_TMPFILE {
                    return None;
                }
                f::octal(value as u32)
            }
            Arg::Open => f::open(u64::from(value as u32)),
            Arg::Bits(names, zero) => f::joined(names, u64::from(value as u32), zero),
            Arg::One(names) => f::name_or_hex(names, u64::from(value as u32)),
            Arg::Signal => f::signal(value),
            Arg::Signals => s::signals(memory, value),
            Arg::SignalsOut => out(&|_| Some(s::signals(memory, value))),
            Arg::Action => s::action(memory, value),
            Arg::ActionOut => out(&|_| Some(s::action(memory, value))),
            Arg::Timespec => s::timespec(memory, value),
            Arg::TimespecOut => match (self.known(), result) {
                // What is left of a sleep is written only if a signal ended it.
                (Some(Sysno::nanosleep | Sysno::clock_nanosleep), Some(0)) => pointer(value),
                (Some(Sysno::nanosleep | Sysno::clock_nanosleep), Some(_)) => s::timespec(memory, value),
                _ => out(&|_| Some(s::timespec(memory, value))),
            },
            Arg::TimevalOut => out(&|_| s::timeval(memory, value)),
            Arg::StatOut => out(&|_| s::stat(memory, value)),
            Arg::WaitOut => out(&|result| (result > 0).then(|| s::wait_status(memory, value)).flatten()),
            Arg::PairOut => out(&|_| {
                let pair: [u8; 8] = bytes(memory, value)?;
                Some(format!("[{}, {}]", word(&pair, 0) as i32, word(&pair, 4) as i32))
            }),
            Arg::Texts => s::texts(memory, value),
            Arg::Environment => s::environment(memory, value),
            Arg::Address(length) => s::address(memory, value, number(length)),
            Arg::AddressOut(length) => out(&|_| {
                let length: [u8; 4] = bytes(memory, number(length))?;
                Some(s::address(memory, value, u64::from(word(&length, 0))))
            }),
            Arg::IntOut => out(&|_| Some(format!("[{}]", word(&bytes::<4>(memory, value)?, 0) as i32))),
            Arg::SocketType => {
                let flags = f::joined(f::SOCKET_FLAGS, value & !0xf, "");
                let kind = f::name_or_hex(f::SOCKET, value & 0xf);
                if flags.is_empty() {
                    kind
                } else {
                    format!("{kind}|{flags}")
                }
            }
            Arg::Polls(length) => s::polls(memory, value, number(length)),
            Arg::EpollEvent => s::epoll_event(memory, value),
            Arg::EpollEventsOut => out(&|result| s::epoll_events(memory, value, result.max(0).cast_unsigned())),
            Arg::FutexOperation => {
                let name = f::name_or_hex(f::FUTEX, value & 0x7f);
                let private = if value & 0x80 == 0 { "" } else { "_PRIVATE" };
                let clock = if value & 0x100 == 0 {
                    ""
                } else {
                    "|FUTEX_CLOCK_REALTIME"
                };
                format!("{name}{private}{clock}")
            }
            Arg::UtsOut => out(&|_| s::uts(memory, value)),
            Arg::DirentsOut => out(&|result| s::entries(memory, value, result.max(0).cast_unsigned())),
            Arg::Fcntl => match number(1) as i32 {
                libc::F_GETFD | libc::F_GETFL | libc::F_GETOWN | 1032 => return None,
                libc::F_SETFD => f::joined(f::FD, value, "0"),
                libc::F_SETFL => f::open(u64::from(value as u32)),
                libc::F_DUPFD | libc::F_DUPFD_CLOEXEC | libc::F_SETOWN | 1031 => (value as i32).to_string(),
                _ => pointer(value),
            },
            Arg::Clone3 => s::clone3(memory, value),
            Arg::Rlimit => s::limits(memory, value),
            Arg::RlimitOut => out(&|_| Some(s::limits(memory, value))),
            Arg::Vectors(length) => s::vectors(memory, value, number(length), None),
            Arg::VectorsOut(length) => out(&|result| {
                let filled = result.max(0).cast_unsigned();
                Some(s::vectors(memory, value, number(length), Some(filled)))
            }),
        })
    }

    /// What it returned.
    pub fn result(&self, result: i64, memory: &dyn Memory) -> String {
        if is_error(result) {
            return f::error(-result);
        }
        match self.known() {
            Some(call) if returns_address(call) => pointer(result.cast_unsigned()).replace("NULL", "0"),
            Some(Sysno::fcntl) if self.arguments[1] as i32 == libc::F_GETFL => {
                format!("{result:#x} (flags {})", f::open(result.cast_unsigned()))
            }
            Some(Sysno::fcntl) if self.arguments[1] as i32 == libc::F_GETFD && result != 0 => {
                format!("{result:#x} (flags {})", f::joined(f::FD, result.cast_unsigned(), "0"))
            }
            Some(Sysno::umask) => f::octal(result as u32),
            Some(Sysno::poll | Sysno::ppoll) if result == 0 => "0 (Timeout)".into(),
            Some(Sysno::poll | Sysno::ppoll) => match s::polled(memory, self.arguments[0], self.arguments[1]) {
                Some(polled) => format!("{result} ({polled})"),
                None => result.to_string(),
            },
            _ => result.to_string(),
        }
    }
}

/// Whether what a call returned is the negative number of an error.
pub fn is_error(result: i64) -> bool {
    (-ERRORS..0).contains(&result)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Pages that are there.
    struct Pages(BTreeMap<u64, Vec<u8>>);

    impl Pages {
        /// A page of zeroes with these bytes at these places.
        fn with(places: &[(u64, &[u8])]) -> Self {
            let mut pages = BTreeMap::new();
            for (address, bytes) in places {
                let page: &mut Vec<u8> = pages.entry(address & !0xfff).or_insert_with(|| vec![0; 0x1000]);
                let at = (address & 0xfff) as usize;
                page[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self(pages)
        }
    }

    impl Memory for Pages {
        fn read(&self, address: u64, data: &mut [u8]) -> usize {
            for (index, byte) in data.iter_mut().enumerate() {
                let at = address.wrapping_add(index as u64);
                let Some(page) = self.0.get(&(at & !0xfff)) else {
                    return index;
                };
                *byte = page[(at & 0xfff) as usize];
            }
            data.len()
        }
    }

    fn call(call: Sysno, arguments: [u64; 6]) -> Call {
        Call {
            number: call as u64,
            arguments,
        }
    }

    /// All of a call: what is known before and after it, and what it gave.
    fn shown(call: &Call, result: i64, memory: &Pages) -> String {
        let mut all = call.begin(memory);
        all.extend(call.end(result, memory));
        format!("{}({}) = {}", call.name(), all.join(", "), call.result(result, memory))
    }

    const HERE: u64 = 0x7000_1000;
    const AWAY: u64 = 0x7000_9000;

    #[test]
    fn paths_flags_and_errors() {
        let memory = Pages::with(&[(HERE, b"/etc/passwd\0"), (HERE + 0xffe, b"ab")]);
        let at = libc::AT_FDCWD as u64;
        let open = |path, flags: i32| call(Sysno::openat, [at, path, flags as u64, 0o644, 0, 0]);
        assert_eq!(
            shown(&open(HERE, libc::O_CLOEXEC), -2, &memory),
            "openat(AT_FDCWD, \"/etc/passwd\", O_RDONLY|O_CLOEXEC) = -1 ENOENT (No such file or directory)"
        );
        assert_eq!(
            shown(&open(HERE, libc::O_WRONLY | libc::O_CREAT), 3, &memory),
            "openat(AT_FDCWD, \"/etc/passwd\", O_WRONLY|O_CREAT, 0644) = 3"
        );
        // Not there, and not there to its end.
        for address in [AWAY, HERE + 0xffe] {
            assert_eq!(
                shown(&open(address, 0), -14, &memory),
                format!("openat(AT_FDCWD, {address:#x}, O_RDONLY) = -1 EFAULT (Bad address)")
            );
        }
    }

    #[test]
    fn buffers_are_bounded_and_known_when_they_are_filled() {
        let long = [b'x'; 40];
        let memory = Pages::with(&[(HERE, &long), (HERE + 0x100, b"a\x1b]\n")]);
        let write = |address, length| call(Sysno::write, [1, address, length, 0, 0, 0]);
        assert_eq!(
            shown(&write(HERE + 0x100, 4), 4, &memory),
            "write(1, \"a\\33]\\n\", 4) = 4"
        );
        let dots = format!("write(1, \"{}\"..., 40) = 40", "x".repeat(32));
        assert_eq!(shown(&write(HERE, 40), 40, &memory), dots);
        assert_eq!(
            shown(&write(AWAY, u64::MAX), -14, &memory).split(" = ").next(),
            Some("write(1, 0x70009000, 18446744073709551615)")
        );
        let read = call(Sysno::read, [0, HERE + 0x100, 4096, 0, 0, 0]);
        assert!(read.has_more() && read.begin(&memory) == ["0"]);
        assert_eq!(shown(&read, 1, &memory), "read(0, \"a\", 4096) = 1");
        assert_eq!(shown(&read, 0, &memory), "read(0, \"\", 4096) = 0");
        assert_eq!(
            shown(&read, -512, &memory),
            "read(0, 0x70001100, 4096) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)"
        );
    }

    #[test]
    fn structures_are_looked_into() {
        let mut stat = [0; 144];
        stat[24..28].copy_from_slice(&0o100_644u32.to_le_bytes());
        stat[48..56].copy_from_slice(&2996u64.to_le_bytes());
        let two = |one: u64, other: u64| [one.to_le_bytes(), other.to_le_bytes()].concat();
        let address = [2, 0, 0, 80, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        let poll = [3, 0, 0, 0, 1, 0, 1, 0];
        let memory = Pages::with(&[
            (HERE, &stat),
            (HERE + 0x100, &two(1, 500)),
            (HERE + 0x200, &address),
            (HERE + 0x300, &two(4 << 32 | 3, 0x300)),
            (HERE + 0x400, &poll),
            (HERE + 0x500, &two(1 << 1 | 1 << 14, 0)),
            (HERE + 0x600, &two(HERE + 0x700, 0)),
            (HERE + 0x700, b"sh\0"),
        ]);
        for (call, result, text) in [
            (
                call(Sysno::fstat, [3, HERE, 0, 0, 0, 0]),
                0,
                "fstat(3, {st_mode=S_IFREG|0644, st_size=2996, ...}) = 0",
            ),
            (
                call(Sysno::fstat, [3, HERE, 0, 0, 0, 0]),
                -9,
                "fstat(3, 0x70001000) = -1 EBADF (Bad file descriptor)",
            ),
            (
                call(Sysno::nanosleep, [HERE + 0x100, 0, 0, 0, 0, 0]),
                0,
                "nanosleep({tv_sec=1, tv_nsec=500}, NULL) = 0",
            ),
            (
                call(Sysno::connect, [3, HERE + 0x200, 16, 0, 0, 0]),
                0,
                "connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr(\"10.0.0.1\")}, 16) = 0",
            ),
            (
                call(Sysno::pipe2, [HERE + 0x300, 0, 0, 0, 0, 0]),
                0,
                "pipe2([3, 4], 0) = 0",
            ),
            (
                call(Sysno::wait4, [u64::MAX, HERE + 0x308, 0, 0, 0, 0]),
                7,
                "wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 3}], 0, NULL) = 7",
            ),
            (
                call(Sysno::wait4, [u64::MAX, HERE, 1, 0, 0, 0]),
                0,
                "wait4(-1, 0x70001000, WNOHANG, NULL) = 0",
            ),
            (
                call(Sysno::poll, [HERE + 0x400, 1, u64::MAX, 0, 0, 0]),
                1,
                "poll([{fd=3, events=POLLIN}], 1, -1) = 1 ([{fd=3, revents=POLLIN}])",
            ),
            (
                call(Sysno::rt_sigprocmask, [0, HERE + 0x500, 0, 8, 0, 0]),
                0,
                "rt_sigprocmask(SIG_BLOCK, [INT TERM], NULL, 8) = 0",
            ),
            (
                call(Sysno::execve, [HERE + 0x700, HERE + 0x600, HERE + 0x608, 0, 0, 0]),
                0,
                "execve(\"sh\", [\"sh\"], 0x70001608 /* 0 vars */) = 0",
            ),
            (
                call(Sysno::clone, [0x0120_0011, 0, 0, AWAY, 0, 0]),
                9,
                "clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x70009000) = 9",
            ),
            (
                call(Sysno::futex, [HERE, 0x80, 2, 0, 5, 5]),
                0,
                "futex(0x70001000, FUTEX_WAIT_PRIVATE, 2, NULL) = 0",
            ),
            (
                call(Sysno::fcntl, [3, 3, 99, 0, 0, 0]),
                2,
                "fcntl(3, F_GETFL) = 0x2 (flags O_RDWR)",
            ),
            (call(Sysno::brk, [0, 0, 0, 0, 0, 0]), 0x5000, "brk(NULL) = 0x5000"),
        ] {
            assert_eq!(shown(&call, result, &memory), text);
        }
    }

    #[test]
    fn what_is_not_known_is_shown_raw() {
        let memory = Pages::with(&[]);
        let unknown = Call {
            number: 0x1f40,
            arguments: [1, 0, 0x10, 0, 0, 6],
        };
        assert_eq!(
            shown(&unknown, -38, &memory),
            "syscall_0x1f40(0x1, 0, 0x10, 0, 0, 0x6) = -1 ENOSYS (Function not implemented)"
        );
    }

    #[test]
    fn whatever_a_program_passes_is_survived() {
        // Every call with every argument at the end of the last page that there is, and with sizes beyond all.
        let memory = Pages::with(&[(HERE, &[0xff; 0x1000])]);
        for number in 0..1000 {
            for value in [0, 1, HERE, HERE + 0xfff, u64::MAX, 1 << 63] {
                let call = Call {
                    number,
                    arguments: [value; 6],
                };
                for result in [0, 1, -1, i64::MAX, i64::MIN] {
                    let text = shown(&call, result, &memory);
                    assert!(text.len() < 1 << 16, "{} bytes: {}", text.len(), call.name());
                }
            }
        }
    }
}
