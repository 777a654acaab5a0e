//! Which arguments a system call of x86-64 takes (man-pages, section 2; include/linux/syscalls.h).

use syscalls::x86_64::Sysno;

use super::flags::{self as f, Names};

/// What an argument is. Those that the call fills are known when it has returned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A signed number of 32 bits.
    Int,
    /// A signed number of 64 bits.
    Long,
    /// An unsigned number.
    Size,
    /// An unsigned number, in hexadecimal.
    Hex,
    /// An address that is not followed.
    Pointer,
    /// A file descriptor, or AT_FDCWD.
    Fd,
    /// The address of a text that ends with a NUL.
    Text,
    /// The address of bytes, whose number is the argument with this index.
    Bytes(usize),
    /// The address of bytes that the call fills: as many as it returns.
    BytesOut,
    /// The same of a text whose length is what the call returns.
    TextOut,
    /// Permissions.
    Mode,
    /// Permissions, if the argument with this index creates a file.
    ModeOf(usize),
    /// open(2)'s.
    Open,
    /// Bits that have names, and what none of them is called.
    Bits(Names, &'static str),
    /// A value that has a name.
    One(Names),
    Signal,
    Signals,
    SignalsOut,
    Action,
    ActionOut,
    Timespec,
    TimespecOut,
    /// Seconds and microseconds.
    TimevalOut,
    StatOut,
    WaitOut,
    /// Two numbers of 32 bits.
    PairOut,
    /// The address of the addresses of texts, up to a null.
    Texts,
    /// The same, counted.
    Environment,
    /// A socket's address, whose length is the argument with this index.
    Address(usize),
    /// The same that the call fills, whose length is at the address in the argument with this index.
    AddressOut(usize),
    /// The address of a number of 32 bits that the call fills.
    IntOut,
    SocketType,
    /// An array of `pollfd`, whose length is the argument with this index.
    Polls(usize),
    EpollEvent,
    EpollEventsOut,
    FutexOperation,
    UtsOut,
    DirentsOut,
    /// fcntl(2)'s third.
    Fcntl,
    Clone3,
    Rlimit,
    RlimitOut,
    /// An array of `iovec`, whose length is the argument with this index.
    Vectors(usize),
    /// The same that the call fills.
    VectorsOut(usize),
}

use Arg::{
    Action, ActionOut, Address, AddressOut, Bits, Bytes, BytesOut, Clone3, DirentsOut, Environment, EpollEvent,
    EpollEventsOut, Fcntl, Fd, FutexOperation, Hex, Int, IntOut, Long, Mode, ModeOf, One, Open, PairOut, Pointer,
    Polls, Rlimit, RlimitOut, Signal, Signals, SignalsOut, Size, SocketType, StatOut, Text, TextOut, Texts, Timespec,
    TimespecOut, TimevalOut, UtsOut, Vectors, VectorsOut, WaitOut,
};

const AT: Arg = Bits(f::AT, "0");

/// Calls, and the arguments of each of them.
const CALLS: &[(&[Sysno], &[Arg])] = &[
    (&[Sysno::read], &[Fd, BytesOut, Size]),
    (&[Sysno::write], &[Fd, Bytes(2), Size]),
    (&[Sysno::pread64], &[Fd, BytesOut, Size, Long]),
    (&[Sysno::pwrite64], &[Fd, Bytes(2), Size, Long]),
    (&[Sysno::readv], &[Fd, VectorsOut(2), Size]),
    (&[Sysno::writev], &[Fd, Vectors(2), Size]),
    (&[Sysno::open], &[Text, Open, ModeOf(1)]),
    (&[Sysno::openat], &[Fd, Text, Open, ModeOf(2)]),
    (&[Sysno::creat], &[Text, Mode]),
    (
        &[
            Sysno::close,
            Sysno::fsync,
            Sysno::fdatasync,
            Sysno::syncfs,
            Sysno::fchdir,
            Sysno::epoll_create,
        ],
        &[Fd],
    ),
    (&[Sysno::stat, Sysno::lstat], &[Text, StatOut]),
    (&[Sysno::fstat], &[Fd, StatOut]),
    (&[Sysno::newfstatat], &[Fd, Text, StatOut, AT]),
    (&[Sysno::statx], &[Fd, Text, AT, Hex, Pointer]),
    (&[Sysno::statfs], &[Text, Pointer]),
    (&[Sysno::fstatfs], &[Fd, Pointer]),
    (&[Sysno::poll], &[Polls(1), Size, Int]),
    (&[Sysno::ppoll], &[Polls(1), Size, Timespec, Signals, Size]),
    (&[Sysno::select], &[Int, Pointer, Pointer, Pointer, Pointer]),
    (&[Sysno::pselect6], &[Int, Pointer, Pointer, Pointer, Timespec, Pointer]),
    (&[Sysno::lseek], &[Fd, Long, One(f::WHENCE)]),
    (
        &[Sysno::mmap],
        &[Pointer, Size, Bits(f::PROT, "PROT_NONE"), Bits(f::MAP, "0"), Fd, Hex],
    ),
    (&[Sysno::mprotect], &[Pointer, Size, Bits(f::PROT, "PROT_NONE")]),
    (&[Sysno::munmap, Sysno::mlock, Sysno::munlock], &[Pointer, Size]),
    (&[Sysno::mremap], &[Pointer, Size, Size, Bits(f::MREMAP, "0"), Pointer]),
    (&[Sysno::madvise], &[Pointer, Size, One(f::MADVISE)]),
    (&[Sysno::msync], &[Pointer, Size, Hex]),
    (&[Sysno::brk, Sysno::set_tid_address, Sysno::times], &[Pointer]),
    (&[Sysno::rt_sigaction], &[Signal, Action, ActionOut, Size]),
    (&[Sysno::rt_sigprocmask], &[One(f::HOW), Signals, SignalsOut, Size]),
    (&[Sysno::rt_sigpending], &[SignalsOut, Size]),
    (&[Sysno::rt_sigsuspend], &[Signals, Size]),
    (&[Sysno::rt_sigtimedwait], &[Signals, Pointer, Timespec, Size]),
    (&[Sysno::sigaltstack], &[Pointer, Pointer]),
    (&[Sysno::signalfd4], &[Fd, Signals, Size, Bits(f::OPEN, "0")]),
    (&[Sysno::ioctl], &[Fd, One(f::IOCTL), Pointer]),
    (&[Sysno::fcntl], &[Fd, One(f::FCNTL), Fcntl]),
    (&[Sysno::flock], &[Fd, Bits(f::FLOCK, "0")]),
    (&[Sysno::access], &[Text, Bits(f::ACCESS, "F_OK")]),
    (&[Sysno::faccessat], &[Fd, Text, Bits(f::ACCESS, "F_OK")]),
    (&[Sysno::faccessat2], &[Fd, Text, Bits(f::ACCESS, "F_OK"), AT]),
    (&[Sysno::pipe], &[PairOut]),
    (&[Sysno::pipe2], &[PairOut, Bits(f::OPEN, "0")]),
    (&[Sysno::dup], &[Fd]),
    (&[Sysno::dup2], &[Fd, Fd]),
    (&[Sysno::dup3], &[Fd, Fd, Bits(f::OPEN, "0")]),
    (&[Sysno::nanosleep], &[Timespec, TimespecOut]),
    (
        &[Sysno::clock_nanosleep],
        &[One(f::CLOCK), Bits(f::TIMER, "0"), Timespec, TimespecOut],
    ),
    (
        &[Sysno::clock_gettime, Sysno::clock_getres],
        &[One(f::CLOCK), TimespecOut],
    ),
    (&[Sysno::clock_settime], &[One(f::CLOCK), Timespec]),
    (&[Sysno::gettimeofday], &[TimevalOut, Pointer]),
    (&[Sysno::settimeofday], &[Pointer, Pointer]),
    (&[Sysno::time], &[Pointer]),
    (&[Sysno::alarm], &[Size]),
    (&[Sysno::getitimer], &[One(f::ITIMER), Pointer]),
    (&[Sysno::setitimer], &[One(f::ITIMER), Pointer, Pointer]),
    (
        &[
            Sysno::getpid,
            Sysno::gettid,
            Sysno::getppid,
            Sysno::getuid,
            Sysno::geteuid,
            Sysno::getgid,
            Sysno::getegid,
            Sysno::getpgrp,
            Sysno::setsid,
            Sysno::fork,
            Sysno::vfork,
            Sysno::pause,
            Sysno::sync,
            Sysno::sched_yield,
            Sysno::inotify_init,
            Sysno::munlockall,
            Sysno::rt_sigreturn,
        ],
        &[],
    ),
    (
        &[
            Sysno::getpgid,
            Sysno::getsid,
            Sysno::setuid,
            Sysno::setgid,
            Sysno::setfsuid,
            Sysno::setfsgid,
        ],
        &[Int],
    ),
    (&[Sysno::setpgid, Sysno::setreuid, Sysno::setregid], &[Int, Int]),
    (&[Sysno::setresuid, Sysno::setresgid], &[Int, Int, Int]),
    (&[Sysno::getresuid, Sysno::getresgid], &[IntOut, IntOut, IntOut]),
    (&[Sysno::getgroups, Sysno::setgroups], &[Int, Pointer]),
    (&[Sysno::kill, Sysno::tkill], &[Int, Signal]),
    (&[Sysno::tgkill], &[Int, Int, Signal]),
    (&[Sysno::clone3], &[Clone3, Size]),
    (&[Sysno::execve], &[Text, Texts, Environment]),
    (&[Sysno::execveat], &[Fd, Text, Texts, Environment, AT]),
    (&[Sysno::exit, Sysno::exit_group], &[Int]),
    (&[Sysno::wait4], &[Int, WaitOut, Bits(f::WAIT, "0"), Pointer]),
    (&[Sysno::waitid], &[Int, Int, Pointer, Bits(f::WAIT, "0"), Pointer]),
    (&[Sysno::uname], &[UtsOut]),
    (&[Sysno::sysinfo], &[Pointer]),
    (&[Sysno::getrusage], &[One(f::WHO), Pointer]),
    (&[Sysno::getrlimit], &[One(f::RESOURCE), RlimitOut]),
    (&[Sysno::setrlimit], &[One(f::RESOURCE), Rlimit]),
    (&[Sysno::prlimit64], &[Int, One(f::RESOURCE), Rlimit, RlimitOut]),
    (&[Sysno::getpriority], &[Int, Int]),
    (&[Sysno::setpriority], &[Int, Int, Int]),
    (&[Sysno::umask], &[Mode]),
    (
        &[
            Sysno::chdir,
            Sysno::chroot,
            Sysno::rmdir,
            Sysno::unlink,
            Sysno::swapoff,
            Sysno::acct,
        ],
        &[Text],
    ),
    (&[Sysno::getcwd], &[TextOut, Size]),
    (&[Sysno::mkdir, Sysno::chmod], &[Text, Mode]),
    (&[Sysno::mkdirat, Sysno::fchmodat], &[Fd, Text, Mode]),
    (&[Sysno::fchmod], &[Fd, Mode]),
    (&[Sysno::unlinkat], &[Fd, Text, AT]),
    (&[Sysno::rename, Sysno::link, Sysno::symlink], &[Text, Text]),
    (&[Sysno::renameat], &[Fd, Text, Fd, Text]),
    (&[Sysno::renameat2, Sysno::linkat], &[Fd, Text, Fd, Text, AT]),
    (&[Sysno::symlinkat], &[Text, Fd, Text]),
    (&[Sysno::readlink], &[Text, BytesOut, Size]),
    (&[Sysno::readlinkat], &[Fd, Text, BytesOut, Size]),
    (&[Sysno::chown, Sysno::lchown], &[Text, Int, Int]),
    (&[Sysno::fchown], &[Fd, Int, Int]),
    (&[Sysno::fchownat], &[Fd, Text, Int, Int, AT]),
    (&[Sysno::mknod], &[Text, Mode, Hex]),
    (&[Sysno::mknodat], &[Fd, Text, Mode, Hex]),
    (&[Sysno::truncate], &[Text, Long]),
    (&[Sysno::ftruncate], &[Fd, Long]),
    (&[Sysno::fallocate], &[Fd, Hex, Long, Long]),
    (&[Sysno::utimensat], &[Fd, Text, Pointer, AT]),
    (&[Sysno::getdents64, Sysno::getdents], &[Fd, DirentsOut, Size]),
    (&[Sysno::sendfile], &[Fd, Fd, Pointer, Size]),
    (&[Sysno::copy_file_range], &[Fd, Pointer, Fd, Pointer, Size, Hex]),
    (&[Sysno::splice], &[Fd, Pointer, Fd, Pointer, Size, Hex]),
    (&[Sysno::socket], &[One(f::FAMILY), SocketType, One(f::PROTOCOL)]),
    (
        &[Sysno::socketpair],
        &[One(f::FAMILY), SocketType, One(f::PROTOCOL), PairOut],
    ),
    (&[Sysno::bind, Sysno::connect], &[Fd, Address(2), Size]),
    (&[Sysno::listen], &[Fd, Int]),
    (
        &[Sysno::accept, Sysno::getsockname, Sysno::getpeername],
        &[Fd, AddressOut(2), IntOut],
    ),
    (
        &[Sysno::accept4],
        &[Fd, AddressOut(2), IntOut, Bits(f::SOCKET_FLAGS, "0")],
    ),
    (
        &[Sysno::sendto],
        &[Fd, Bytes(2), Size, Bits(f::MSG, "0"), Address(5), Size],
    ),
    (
        &[Sysno::recvfrom],
        &[Fd, BytesOut, Size, Bits(f::MSG, "0"), AddressOut(5), IntOut],
    ),
    (&[Sysno::sendmsg, Sysno::recvmsg], &[Fd, Pointer, Bits(f::MSG, "0")]),
    (&[Sysno::shutdown], &[Fd, One(f::SHUTDOWN)]),
    (
        &[Sysno::setsockopt],
        &[Fd, One(f::LEVEL), One(f::OPTION), Pointer, Size],
    ),
    (
        &[Sysno::getsockopt],
        &[Fd, One(f::LEVEL), One(f::OPTION), IntOut, IntOut],
    ),
    (&[Sysno::epoll_create1], &[Bits(f::EPOLL_CREATE, "0")]),
    (&[Sysno::epoll_ctl], &[Fd, One(f::EPOLL_OPERATION), Fd, EpollEvent]),
    (&[Sysno::epoll_wait], &[Fd, EpollEventsOut, Int, Int]),
    (&[Sysno::epoll_pwait], &[Fd, EpollEventsOut, Int, Int, Signals, Size]),
    (&[Sysno::eventfd], &[Size]),
    (&[Sysno::eventfd2], &[Size, Bits(f::EVENTFD, "0")]),
    (&[Sysno::timerfd_create], &[One(f::CLOCK), Bits(f::OPEN, "0")]),
    (&[Sysno::timerfd_settime], &[Fd, Bits(f::TIMER, "0"), Pointer, Pointer]),
    (&[Sysno::timerfd_gettime], &[Fd, Pointer]),
    (&[Sysno::futex], &[Pointer, FutexOperation, Size, Pointer, Pointer, Hex]),
    (&[Sysno::set_robust_list], &[Pointer, Size]),
    (&[Sysno::get_robust_list], &[Int, Pointer, Pointer]),
    (&[Sysno::rseq], &[Pointer, Size, Hex, Hex]),
    (&[Sysno::arch_prctl], &[One(f::ARCH), Hex]),
    (&[Sysno::prctl], &[Int, Hex, Hex, Hex, Hex]),
    (&[Sysno::getrandom], &[BytesOut, Size, Bits(f::RANDOM, "0")]),
    (&[Sysno::mount], &[Text, Text, Text, Bits(f::MOUNT, "0"), Pointer]),
    (&[Sysno::umount2], &[Text, Hex]),
    (&[Sysno::reboot], &[Hex, Hex, Hex, Pointer]),
    (&[Sysno::sethostname, Sysno::setdomainname], &[Bytes(1), Size]),
    (&[Sysno::syslog], &[Int, Pointer, Int]),
    (
        &[Sysno::sched_getaffinity, Sysno::sched_setaffinity],
        &[Int, Size, Pointer],
    ),
    (&[Sysno::inotify_init1], &[Bits(f::OPEN, "0")]),
    (&[Sysno::inotify_add_watch], &[Fd, Text, Hex]),
    (&[Sysno::inotify_rm_watch], &[Fd, Int]),
    (&[Sysno::memfd_create], &[Text, Hex]),
    (&[Sysno::membarrier], &[Int, Hex, Int]),
    (&[Sysno::restart_syscall], &[]),
];

/// The arguments of a call. `None`: they are not known, and there may be six.
pub fn arguments(call: Sysno) -> Option<&'static [Arg]> {
    let found = CALLS.iter().find(|(calls, _)| calls.contains(&call));
    found.map(|(_, arguments)| *arguments)
}

/// Whether what a call returns is an address.
pub fn returns_address(call: Sysno) -> bool {
    matches!(call, Sysno::mmap | Sysno::brk | Sysno::mremap | Sysno::shmat)
}

impl Arg {
    /// Whether it is known only when the call has returned.
    pub fn is_out(self) -> bool {
        matches!(
            self,
            BytesOut
                | TextOut
                | SignalsOut
                | ActionOut
                | TimespecOut
                | TimevalOut
                | StatOut
                | WaitOut
                | PairOut
                | AddressOut(_)
                | IntOut
                | EpollEventsOut
                | UtsOut
                | DirentsOut
                | RlimitOut
                | VectorsOut(_)
        )
    }
}
