//! A position, for people.

use std::fmt::Write;

use kvm_bindings::{kvm_regs, kvm_sregs};
use lockstep_node::out::one_line;

use super::Shown;
use super::kernel::Kernel;
use super::tasks::Task;
use crate::position::Position;

/// General registers, in the order of their display.
pub fn registers(regs: &kvm_regs) -> Vec<(&'static str, u64)> {
    vec![
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", regs.rsp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", regs.rip),
        ("rflags", regs.rflags),
    ]
}

/// Segments and control registers.
pub fn control(sregs: &kvm_sregs) -> Vec<(&'static str, u64)> {
    vec![
        ("cs", sregs.cs.selector.into()),
        ("ss", sregs.ss.selector.into()),
        ("ds", sregs.ds.selector.into()),
        ("es", sregs.es.selector.into()),
        ("fs", sregs.fs.selector.into()),
        ("gs", sregs.gs.selector.into()),
        ("fs_base", sregs.fs.base),
        ("gs_base", sregs.gs.base),
        ("gdt", sregs.gdt.base),
        ("idt", sregs.idt.base),
        ("tr_base", sregs.tr.base),
        ("efer", sregs.efer),
        ("cr0", sregs.cr0),
        ("cr2", sregs.cr2),
        ("cr3", sregs.cr3),
        ("cr4", sregs.cr4),
    ]
}

/// `name+0x12`.
pub fn name(kernel: Option<&Kernel>, address: u64) -> Option<String> {
    let (name, offset) = kernel?.function(address)?;
    Some(if offset == 0 {
        name.to_owned()
    } else {
        format!("{name}+{offset:#x}")
    })
}

fn columns(out: &mut String, list: &[(&'static str, u64)]) {
    for row in list.chunks(4) {
        let cells: Vec<_> = row
            .iter()
            .map(|(name, value)| format!("{name:>7} {value:016x}"))
            .collect();
        // A string takes all that is written.
        let _ = writeln!(out, "{}", cells.join(" "));
    }
}

fn task_line(task: &Task) -> String {
    format!(
        "{:>6} {:>6} {:<9}{} {}",
        task.pid,
        task.parent.map_or("-".into(), |parent| parent.to_string()),
        task.state,
        if task.is_kernel_thread {
            " [kernel]"
        } else {
            "         "
        },
        one_line(&task.comm)
    )
}

impl Shown {
    /// All of it.
    pub fn text(&self, kernel: Option<&Kernel>) -> String {
        let mut out = String::new();
        // A string takes all that is written.
        let mut line = |text: &str| {
            let _ = writeln!(out, "{text}");
        };
        line(&format!(
            "stop {}{}, {} of guest time, ring {}{}",
            self.stop,
            if self.turn > 0 {
                format!(" turn {}", self.turn)
            } else {
                String::new()
            },
            Position::Time(self.guest_ns),
            if self.is_user { 3 } else { 0 },
            if self.halted { ", halted" } else { "" }
        ));
        columns(&mut out, &self.registers);
        columns(&mut out, &self.control);
        let mut line = |text: &str| {
            let _ = writeln!(out, "{text}");
        };
        for (index, code) in self.code.iter().enumerate() {
            let mark = if index == 0 { "=>" } else { "  " };
            let name = name(kernel, code.address).map_or(String::new(), |name| format!(" <{name}>"));
            line(&format!("{mark} {:#x}{name}:  {}", code.address, code.text));
        }
        if self.is_user {
            line("user code is interrupted: its call stack is not known");
        } else {
            line("call stack, by frame pointers (wrong where code was built without them):");
            for (index, address) in self.stack.iter().enumerate() {
                let name = name(kernel, *address).unwrap_or_default();
                line(&format!("#{index:<3} {address:#x} {name}"));
            }
        }
        match &self.current {
            Some(Ok(task)) => line(&format!("current task: {} (pid {})", one_line(&task.comm), task.pid)),
            Some(Err(why)) => line(&format!("current task: not known: {why}")),
            None => line("current task: not known without the guest's vmlinux (--vmlinux)"),
        }
        if let Some(tasks) = &self.tasks {
            line("   pid parent state              command");
            for task in tasks {
                line(&task_line(task));
            }
        }
        for dump in &self.memory {
            line(dump.text().trim_end());
        }
        if let Some(devices) = &self.devices {
            line(devices);
        }
        if let Some(digest) = &self.digest {
            line(&format!("digest {digest}"));
        }
        out
    }
}
