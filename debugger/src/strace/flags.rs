//! Names of flags and values that system calls take (include/uapi/linux).

/// Names by their bits or values.
pub type Names = &'static [(u64, &'static str)];

macro_rules! names {
    // Arguments of 32 bits: what is negative there has no upper half.
    ($($name:ident)*) => { &[$((libc::$name as u64 & 0xffff_ffff, stringify!($name))),*] };
}

pub const OPEN: Names = &[
    (libc::O_CREAT as u64, "O_CREAT"),
    (libc::O_EXCL as u64, "O_EXCL"),
    (libc::O_NOCTTY as u64, "O_NOCTTY"),
    (libc::O_TRUNC as u64, "O_TRUNC"),
    (libc::O_APPEND as u64, "O_APPEND"),
    (libc::O_NONBLOCK as u64, "O_NONBLOCK"),
    (libc::O_SYNC as u64, "O_SYNC"),
    (libc::O_DSYNC as u64, "O_DSYNC"),
    (libc::O_ASYNC as u64, "O_ASYNC"),
    (libc::O_DIRECT as u64, "O_DIRECT"),
    // libc has none for programs of 64 bits.
    (0o100_000, "O_LARGEFILE"),
    (libc::O_NOFOLLOW as u64, "O_NOFOLLOW"),
    (libc::O_NOATIME as u64, "O_NOATIME"),
    (libc::O_CLOEXEC as u64, "O_CLOEXEC"),
    (libc::O_PATH as u64, "O_PATH"),
    (libc::O_TMPFILE as u64, "O_TMPFILE"),
    (libc::O_DIRECTORY as u64, "O_DIRECTORY"),
];
pub const PROT: Names = names!(PROT_READ PROT_WRITE PROT_EXEC PROT_GROWSDOWN PROT_GROWSUP);
pub const MAP: Names = names!(MAP_SHARED MAP_PRIVATE MAP_FIXED MAP_ANONYMOUS MAP_GROWSDOWN MAP_DENYWRITE MAP_LOCKED MAP_NORESERVE MAP_POPULATE MAP_NONBLOCK MAP_STACK MAP_HUGETLB MAP_FIXED_NOREPLACE);
pub const MREMAP: Names = names!(MREMAP_MAYMOVE MREMAP_FIXED);
pub const MADVISE: Names = names!(MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MADV_DONTNEED MADV_FREE MADV_HUGEPAGE MADV_NOHUGEPAGE MADV_DONTFORK MADV_DOFORK);
pub const ACCESS: Names = names!(F_OK R_OK W_OK X_OK);
pub const AT: Names = names!(AT_SYMLINK_NOFOLLOW AT_REMOVEDIR AT_SYMLINK_FOLLOW AT_NO_AUTOMOUNT AT_EMPTY_PATH);
pub const CLONE: Names = names!(CLONE_VM CLONE_FS CLONE_FILES CLONE_SIGHAND CLONE_PTRACE CLONE_VFORK CLONE_PARENT CLONE_THREAD CLONE_NEWNS CLONE_SYSVSEM CLONE_SETTLS CLONE_PARENT_SETTID CLONE_CHILD_CLEARTID CLONE_UNTRACED CLONE_CHILD_SETTID CLONE_NEWCGROUP CLONE_NEWUTS CLONE_NEWIPC CLONE_NEWUSER CLONE_NEWPID CLONE_NEWNET CLONE_IO);
pub const WAIT: Names = names!(WNOHANG WUNTRACED WCONTINUED WEXITED WNOWAIT);
pub const WHENCE: Names = names!(SEEK_SET SEEK_CUR SEEK_END SEEK_DATA SEEK_HOLE);
pub const HOW: Names = names!(SIG_BLOCK SIG_UNBLOCK SIG_SETMASK);
pub const SIGACTION: Names = &[
    (0x0400_0000, "SA_RESTORER"),
    (libc::SA_NOCLDSTOP as u64, "SA_NOCLDSTOP"),
    (libc::SA_NOCLDWAIT as u64, "SA_NOCLDWAIT"),
    (libc::SA_SIGINFO as u64, "SA_SIGINFO"),
    (libc::SA_ONSTACK as u64, "SA_ONSTACK"),
    (libc::SA_RESTART as u64, "SA_RESTART"),
    (libc::SA_NODEFER as u64, "SA_NODEFER"),
    (libc::SA_RESETHAND as u32 as u64, "SA_RESETHAND"),
];
pub const POLL: Names =
    names!(POLLIN POLLPRI POLLOUT POLLERR POLLHUP POLLNVAL POLLRDNORM POLLRDBAND POLLWRNORM POLLWRBAND POLLRDHUP);
pub const EPOLL: Names = &[
    (libc::EPOLLIN as u64, "EPOLLIN"),
    (libc::EPOLLPRI as u64, "EPOLLPRI"),
    (libc::EPOLLOUT as u64, "EPOLLOUT"),
    (libc::EPOLLERR as u64, "EPOLLERR"),
    (libc::EPOLLHUP as u64, "EPOLLHUP"),
    (libc::EPOLLRDNORM as u64, "EPOLLRDNORM"),
    (libc::EPOLLWRNORM as u64, "EPOLLWRNORM"),
    (libc::EPOLLRDHUP as u64, "EPOLLRDHUP"),
    (1 << 28, "EPOLLEXCLUSIVE"),
    (1 << 29, "EPOLLWAKEUP"),
    (1 << 30, "EPOLLONESHOT"),
    (1 << 31, "EPOLLET"),
];
pub const EPOLL_OPERATION: Names = names!(EPOLL_CTL_ADD EPOLL_CTL_DEL EPOLL_CTL_MOD);
pub const EPOLL_CREATE: Names = names!(EPOLL_CLOEXEC);
pub const EVENTFD: Names = names!(EFD_SEMAPHORE EFD_CLOEXEC EFD_NONBLOCK);
pub const FAMILY: Names = names!(AF_UNSPEC AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET AF_VSOCK);
pub const SOCKET: Names = names!(SOCK_STREAM SOCK_DGRAM SOCK_RAW SOCK_RDM SOCK_SEQPACKET);
pub const SOCKET_FLAGS: Names = names!(SOCK_CLOEXEC SOCK_NONBLOCK);
pub const PROTOCOL: Names = names!(IPPROTO_IP IPPROTO_ICMP IPPROTO_TCP IPPROTO_UDP IPPROTO_ICMPV6);
pub const MSG: Names = names!(MSG_OOB MSG_PEEK MSG_DONTROUTE MSG_CTRUNC MSG_TRUNC MSG_DONTWAIT MSG_EOR MSG_WAITALL MSG_CONFIRM MSG_ERRQUEUE MSG_NOSIGNAL MSG_MORE MSG_CMSG_CLOEXEC);
pub const SHUTDOWN: Names = names!(SHUT_RD SHUT_WR SHUT_RDWR);
pub const LEVEL: Names = &[
    (1, "SOL_SOCKET"),
    (0, "SOL_IP"),
    (6, "SOL_TCP"),
    (17, "SOL_UDP"),
    (41, "SOL_IPV6"),
];
pub const OPTION: Names = names!(SO_DEBUG SO_REUSEADDR SO_TYPE SO_ERROR SO_DONTROUTE SO_BROADCAST SO_SNDBUF SO_RCVBUF SO_KEEPALIVE SO_OOBINLINE SO_LINGER SO_REUSEPORT SO_RCVTIMEO SO_SNDTIMEO SO_ACCEPTCONN SO_BINDTODEVICE);
pub const CLOCK: Names = names!(CLOCK_REALTIME CLOCK_MONOTONIC CLOCK_PROCESS_CPUTIME_ID CLOCK_THREAD_CPUTIME_ID CLOCK_MONOTONIC_RAW CLOCK_REALTIME_COARSE CLOCK_MONOTONIC_COARSE CLOCK_BOOTTIME CLOCK_REALTIME_ALARM CLOCK_BOOTTIME_ALARM CLOCK_TAI);
pub const TIMER: Names = names!(TIMER_ABSTIME);
pub const FUTEX: Names = names!(FUTEX_WAIT FUTEX_WAKE FUTEX_FD FUTEX_REQUEUE FUTEX_CMP_REQUEUE FUTEX_WAKE_OP FUTEX_LOCK_PI FUTEX_UNLOCK_PI FUTEX_TRYLOCK_PI FUTEX_WAIT_BITSET FUTEX_WAKE_BITSET);
pub const FCNTL: Names = &[
    (0, "F_DUPFD"),
    (1, "F_GETFD"),
    (2, "F_SETFD"),
    (3, "F_GETFL"),
    (4, "F_SETFL"),
    (5, "F_GETLK"),
    (6, "F_SETLK"),
    (7, "F_SETLKW"),
    (8, "F_SETOWN"),
    (9, "F_GETOWN"),
    (1030, "F_DUPFD_CLOEXEC"),
    (1031, "F_SETPIPE_SZ"),
    (1032, "F_GETPIPE_SZ"),
];
pub const FD: Names = names!(FD_CLOEXEC);
pub const IOCTL: Names = &[
    (0x5401, "TCGETS"),
    (0x5402, "TCSETS"),
    (0x5403, "TCSETSW"),
    (0x5404, "TCSETSF"),
    (0x5409, "TCSBRK"),
    (0x540b, "TCFLSH"),
    (0x540e, "TIOCSCTTY"),
    (0x540f, "TIOCGPGRP"),
    (0x5410, "TIOCSPGRP"),
    (0x5413, "TIOCGWINSZ"),
    (0x5414, "TIOCSWINSZ"),
    (0x541b, "FIONREAD"),
    (0x5421, "FIONBIO"),
    (0x5422, "TIOCNOTTY"),
    (0x5429, "TIOCGSID"),
    (0x5450, "FIONCLEX"),
    (0x5451, "FIOCLEX"),
    (0x8913, "SIOCGIFFLAGS"),
    (0x8914, "SIOCSIFFLAGS"),
    (0x8916, "SIOCSIFADDR"),
];
pub const RESOURCE: Names = names!(RLIMIT_CPU RLIMIT_FSIZE RLIMIT_DATA RLIMIT_STACK RLIMIT_CORE RLIMIT_RSS RLIMIT_NPROC RLIMIT_NOFILE RLIMIT_MEMLOCK RLIMIT_AS RLIMIT_LOCKS RLIMIT_SIGPENDING RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME);
pub const ARCH: Names = &[
    (0x1001, "ARCH_SET_GS"),
    (0x1002, "ARCH_SET_FS"),
    (0x1003, "ARCH_GET_FS"),
    (0x1004, "ARCH_GET_GS"),
    (0x1011, "ARCH_GET_CPUID"),
    (0x1012, "ARCH_SET_CPUID"),
];
pub const FLOCK: Names = names!(LOCK_SH LOCK_EX LOCK_UN LOCK_NB);
pub const MOUNT: Names = names!(MS_RDONLY MS_NOSUID MS_NODEV MS_NOEXEC MS_SYNCHRONOUS MS_REMOUNT MS_BIND MS_MOVE MS_REC MS_SILENT MS_PRIVATE MS_SHARED MS_RELATIME);
pub const RANDOM: Names = names!(GRND_NONBLOCK GRND_RANDOM);
pub const WHO: Names = names!(RUSAGE_SELF RUSAGE_CHILDREN RUSAGE_THREAD);
pub const ITIMER: Names = names!(ITIMER_REAL ITIMER_VIRTUAL ITIMER_PROF);
const SIGNALS: Names = names!(SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE SIGALRM SIGTERM SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF SIGWINCH SIGIO SIGPWR SIGSYS);
const FILE_TYPES: Names = names!(S_IFIFO S_IFCHR S_IFDIR S_IFBLK S_IFREG S_IFLNK S_IFSOCK);
/// What the kernel does when a signal has interrupted a call; programs never see it.
const RESTARTS: [(i64, &str); 4] = [
    (512, "ERESTARTSYS (To be restarted if SA_RESTART is set)"),
    (513, "ERESTARTNOINTR (To be restarted)"),
    (514, "ERESTARTNOHAND (To be restarted if no handler)"),
    (516, "ERESTART_RESTARTBLOCK (Interrupted by signal)"),
];

/// The name of a value.
pub fn one_of(names: Names, value: u64) -> Option<&'static str> {
    names.iter().find(|(known, _)| *known == value).map(|(_, name)| *name)
}

/// The name of a value, or the value.
pub fn name_or_hex(names: Names, value: u64) -> String {
    one_of(names, value).map_or_else(|| format!("{value:#x}"), str::to_owned)
}

/// `A|B|0x100`; `zero` where there is none.
pub fn joined(names: Names, value: u64, zero: &str) -> String {
    let mut rest = value;
    let mut found: Vec<String> = Vec::new();
    for (bits, name) in names {
        if *bits != 0 && rest & bits == *bits {
            rest &= !bits;
            found.push((*name).to_owned());
        }
    }
    if rest != 0 {
        found.push(format!("{rest:#x}"));
    }
    if found.is_empty() {
        return zero.to_owned();
    }
    found.join("|")
}

/// Flags of open(2).
pub fn open(value: u64) -> String {
    let access = match value & 3 {
        0 => "O_RDONLY",
        1 => "O_WRONLY",
        2 => "O_RDWR",
        _ => "O_ACCMODE",
    };
    match value & !3 {
        0 => access.to_owned(),
        flags => format!("{access}|{}", joined(OPEN, flags, "")),
    }
}

/// `SIGINT`.
pub fn signal(number: u64) -> String {
    match number {
        32..=64 => format!("SIGRT_{}", number - 32),
        _ => one_of(SIGNALS, number).map_or_else(|| number.to_string(), str::to_owned),
    }
}

/// `[INT TERM]`; where most are in it, those that are not, as `~[KILL STOP]`.
pub fn signal_set(bits: u64) -> String {
    let (mark, shown) = if bits.count_ones() > 32 {
        ("~", !bits)
    } else {
        ("", bits)
    };
    let names = (1..=64).filter(|number| shown >> (number - 1) & 1 == 1).map(|number| {
        let name = signal(number);
        name.strip_prefix("SIG").map_or(name.clone(), str::to_owned)
    });
    format!("{mark}[{}]", names.collect::<Vec<_>>().join(" "))
}

/// `0644`, and `000` for none.
pub fn octal(value: u32) -> String {
    format!("0{value:02o}")
}

/// `S_IFREG|0644`.
pub fn mode(value: u32) -> String {
    let kind = one_of(FILE_TYPES, u64::from(value & libc::S_IFMT));
    let rest = octal(value & !libc::S_IFMT);
    kind.map_or(rest.clone(), |kind| format!("{kind}|{rest}"))
}

/// `-1 ENOENT (No such file or directory)`, of a number that the kernel gave.
pub fn error(number: i64) -> String {
    if let Some((_, text)) = RESTARTS.iter().find(|(known, _)| *known == number) {
        return format!("? {text}");
    }
    let name = error_name(number);
    let text = std::io::Error::from_raw_os_error(number as i32).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    match name {
        Some(name) => format!("-1 {name} ({text})"),
        None => format!("-1 (errno {number})"),
    }
}

/// `ENOENT`.
pub fn error_name(number: i64) -> Option<&'static str> {
    syscalls::Errno::new(number as i32).name()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_their_names() {
        assert_eq!(open(0), "O_RDONLY");
        assert_eq!(open(0o2_001_101), "O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC");
        assert_eq!(open(0x8000_0002), "O_RDWR|0x80000000");
        assert_eq!(joined(PROT, 0, "PROT_NONE"), "PROT_NONE");
        assert_eq!(joined(MAP, 0x22, "0"), "MAP_PRIVATE|MAP_ANONYMOUS");
        assert_eq!(name_or_hex(FUTEX, 99), "0x63");
    }

    #[test]
    fn signals_and_modes() {
        assert_eq!(
            [signal(2), signal(17), signal(0), signal(34), signal(99)],
            ["SIGINT", "SIGCHLD", "0", "SIGRT_2", "99"]
        );
        assert_eq!(signal_set(0), "[]");
        assert_eq!(signal_set(1 << 1 | 1 << 14), "[INT TERM]");
        assert_eq!(signal_set(!(1 << 8 | 1 << 18)), "~[KILL STOP]");
        assert_eq!(mode(0o100_644), "S_IFREG|0644");
        assert_eq!(mode(0o20_620), "S_IFCHR|0620");
        assert_eq!([mode(0), octal(0o22)], ["000", "022"]);
    }

    #[test]
    fn errors_are_those_of_the_library() {
        assert_eq!(error(2), "-1 ENOENT (No such file or directory)");
        assert_eq!(error(11), "-1 EAGAIN (Resource temporarily unavailable)");
        assert_eq!(error(512), "? ERESTARTSYS (To be restarted if SA_RESTART is set)");
        assert_eq!(error(4000), "-1 (errno 4000)");
    }
}
