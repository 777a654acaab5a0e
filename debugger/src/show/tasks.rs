//! The tasks of a Linux guest, read from its memory.

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use super::view::View;

/// Tasks that are listed; a damaged list must end, too.
const MAX_TASKS: usize = 100_000;
const COMM_BYTES: usize = 16;

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub address: u64,
    pub pid: u32,
    pub tgid: u32,
    pub parent: Option<u32>,
    pub comm: String,
    pub state: &'static str,
    /// It has no user memory.
    pub is_kernel_thread: bool,
}

/// Why the task that runs is not known.
pub const NO_CURRENT: &str =
    "this vmlinux has no variable `current_task`: kernels for one CPU up to 6.1 have it, as Lockstep's guests do";

/// The task that runs.
pub fn current(view: &View<'_>, kernel: &Kernel) -> Result<Task> {
    at(view, kernel, pointer(view, kernel)?)
}

/// Where it has its `task_struct`.
pub fn pointer(view: &View<'_>, kernel: &Kernel) -> Result<u64> {
    let at = kernel.symbol("current_task").context(NO_CURRENT)?;
    view.word(at)
}

/// All processes, as the kernel lists them, the idle task first.
pub fn list(view: &View<'_>, kernel: &Kernel) -> Result<Vec<Task>> {
    let init = kernel.symbol("init_task").context("this vmlinux has no `init_task`")?;
    let tasks = kernel.offset("task_struct", "tasks")?;
    let next = kernel.offset("list_head", "next")?;
    let mut found = vec![self::at(view, kernel, init)?];
    let mut at = view.word(init.wrapping_add(tasks + next))?.wrapping_sub(tasks);
    while at != init {
        ensure!(
            found.len() < MAX_TASKS,
            "the list of tasks does not end: it is damaged here"
        );
        found.push(self::at(view, kernel, at)?);
        at = view.word(at.wrapping_add(tasks + next))?.wrapping_sub(tasks);
    }
    Ok(found)
}

/// The task at an address.
pub fn at(view: &View<'_>, kernel: &Kernel, address: u64) -> Result<Task> {
    let member = |name| {
        kernel
            .offset("task_struct", name)
            .map(|offset| address.wrapping_add(offset))
    };
    let mut comm = [0; COMM_BYTES];
    view.read(member("comm")?, &mut comm)?;
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(COMM_BYTES);
    let pid = member("pid")?;
    let parent = view.word(member("real_parent")?)?;
    let pid_of = kernel.offset("task_struct", "pid")?;
    Ok(Task {
        address,
        pid: view.half(pid)?,
        tgid: view.half(member("tgid")?)?,
        parent: view.half(parent.wrapping_add(pid_of)).ok(),
        comm: String::from_utf8_lossy(&comm[..end]).into_owned(),
        state: state(view.half(member("__state")?)?),
        is_kernel_thread: view.word(member("mm")?)? == 0,
    })
}

/// include/linux/sched.h
fn state(bits: u32) -> &'static str {
    match bits {
        0 => "running",
        bits if bits & 1 != 0 => "sleeping",
        bits if bits & 0x402 == 0x402 => "idle",
        bits if bits & 2 != 0 => "waiting",
        bits if bits & 4 != 0 => "stopped",
        bits if bits & 8 != 0 => "traced",
        _ => "ending",
    }
}
