//! One vCPU of the KVM API, as plain data: enter, answer, complete, inject, get and set state.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR, kvm_interrupt, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuFd};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};

use super::kick::Kicks;
use super::requests::{KVM_INTERRUPT, KVM_RUN};

/// Most bytes that one port I/O exit can carry: `kvm_run` keeps them in one page.
pub const MAX_IO_BYTES: usize = 4096;

/// Why `KVM_RUN` returned. The fields have the names and units of `struct kvm_run` (KVM API, 5).
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// IN or INS: `count` elements of `size` bytes are wanted.
    In { port: u16, size: u8, count: u32 },
    /// OUT or OUTS.
    Out { port: u16, size: u8, data: Vec<u8> },
    /// A load from an address without memory.
    MmioRead { addr: u64, len: u8 },
    /// A store to an address without memory.
    MmioWrite { addr: u64, len: u8, data: [u8; 8] },
    /// RDMSR of a filtered or unknown MSR.
    ReadMsr { index: u32 },
    /// WRMSR of a filtered or unknown MSR.
    WriteMsr { index: u32, value: u64 },
    /// HLT.
    Halt,
    /// Triple fault.
    Shutdown,
    /// The interrupt window that was asked for is open.
    Window,
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// Single-step or breakpoint.
    Debug { dr6: u64, rip: u64 },
    /// KVM's emulator declined the instruction at RIP.
    EmulationFailed,
    /// Anything else: the exit reason and a detail.
    Other { reason: u32, detail: u64 },
}

/// What KVM shares in `kvm_run` (KVM API, `KVM_CAP_SYNC_REGS`).
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// General registers.
    pub regs: kvm_regs,
    /// Special registers.
    pub sregs: kvm_sregs,
    /// Pending events.
    pub events: kvm_vcpu_events,
}

/// A vCPU and its `kvm_run` page.
pub struct RawVcpu {
    fd: VcpuFd,
    has_sync_regs: bool,
    /// General registers that KVM gets with the next `KVM_RUN`.
    pending: Cell<Option<kvm_regs>>,
}

impl RawVcpu {
    /// Wraps `fd`. `sync_regs`: KVM copies registers and events into `kvm_run` when asked (`KVM_CAP_SYNC_REGS`).
    pub fn new(mut fd: VcpuFd, sync_regs: bool) -> Self {
        if sync_regs {
            fd.set_sync_valid_reg(SyncReg::Register);
        }
        Self {
            fd,
            has_sync_regs: sync_regs,
            pending: Cell::new(None),
        }
    }

    /// The file descriptor, for the ioctls that need no `unsafe`.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Lets kicks interrupt this vCPU's `KVM_RUN`. The vCPU must not move or end before [`RawVcpu::detach`].
    pub fn attach(&mut self, kicks: &Kicks) {
        kicks.aim(&raw mut self.fd.get_kvm_run().immediate_exit);
    }

    /// Ends what [`RawVcpu::attach`] began.
    pub fn detach(kicks: &Kicks) {
        kicks.aim(std::ptr::null_mut());
    }

    /// Enters the guest. Returns [`Exit::Interrupted`] at once if a kick is pending.
    pub fn enter(&mut self, kicks: Option<&Kicks>) -> io::Result<Exit> {
        self.fd.set_kvm_immediate_exit(0);
        if kicks.is_some_and(Kicks::take) {
            return Ok(Exit::Interrupted);
        }
        let exit = self.run()?;
        if exit == Exit::Interrupted {
            // The flag and the return are one and the same kick.
            if let Some(kicks) = kicks {
                kicks.take();
            }
        }
        Ok(exit)
    }

    /// Completes the last exit without running the guest. `Some` when the completion itself is another exit, as the
    /// second half of a 16-byte MMIO store is.
    pub fn complete(&mut self) -> io::Result<Option<Exit>> {
        self.fd.set_kvm_immediate_exit(1);
        let exit = self.run();
        self.fd.set_kvm_immediate_exit(0);
        Ok(match exit? {
            Exit::Interrupted => None,
            other => Some(other),
        })
    }

    fn run(&mut self) -> io::Result<Exit> {
        if let Some(regs) = self.pending.take() {
            self.fd.sync_regs_mut().regs = regs;
            self.fd.set_sync_dirty_reg(SyncReg::Register);
        }
        // SAFETY: the fd is a vCPU; KVM_RUN writes only to the mapped kvm_run page and to guest memory.
        let rc = unsafe { ioctl(&self.fd, KVM_RUN()) };
        if rc < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => Ok(Exit::Interrupted),
                _ => Err(error),
            };
        }
        Ok(self.decode())
    }

    fn decode(&mut self) -> Exit {
        let run = self.fd.get_kvm_run();
        let base: *const u8 = std::ptr::from_mut(run).cast::<u8>();
        match run.exit_reason {
            KVM_EXIT_IO => {
                // SAFETY: exit_reason says that `io` is the member in force.
                let io = unsafe { run.__bindgen_anon_1.io };
                if u32::from(io.direction) == KVM_EXIT_IO_OUT {
                    let len = (io.size as usize * io.count as usize).min(MAX_IO_BYTES);
                    // SAFETY: KVM puts size * count bytes, at most a page, at data_offset within the mapped area.
                    let data = unsafe { std::slice::from_raw_parts(base.add(io.data_offset as usize), len) }.to_vec();
                    Exit::Out {
                        port: io.port,
                        size: io.size,
                        data,
                    }
                } else {
                    Exit::In {
                        port: io.port,
                        size: io.size,
                        count: io.count,
                    }
                }
            }
            KVM_EXIT_MMIO => {
                // SAFETY: exit_reason says that `mmio` is the member in force.
                let mmio = unsafe { run.__bindgen_anon_1.mmio };
                let len = mmio.len.min(8) as u8;
                if mmio.is_write != 0 {
                    Exit::MmioWrite {
                        addr: mmio.phys_addr,
                        len,
                        data: mmio.data,
                    }
                } else {
                    Exit::MmioRead {
                        addr: mmio.phys_addr,
                        len,
                    }
                }
            }
            KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => {
                // SAFETY: exit_reason says that `msr` is the member in force.
                let msr = unsafe { run.__bindgen_anon_1.msr };
                if run.exit_reason == KVM_EXIT_X86_RDMSR {
                    Exit::ReadMsr { index: msr.index }
                } else {
                    Exit::WriteMsr {
                        index: msr.index,
                        value: msr.data,
                    }
                }
            }
            KVM_EXIT_HLT => Exit::Halt,
            KVM_EXIT_SHUTDOWN => Exit::Shutdown,
            KVM_EXIT_IRQ_WINDOW_OPEN => Exit::Window,
            KVM_EXIT_INTR => Exit::Interrupted,
            KVM_EXIT_DEBUG => {
                // SAFETY: exit_reason says that `debug` is the member in force.
                let debug = unsafe { run.__bindgen_anon_1.debug };
                Exit::Debug {
                    dr6: debug.arch.dr6,
                    rip: debug.arch.pc,
                }
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: exit_reason says that `internal` is the member in force.
                let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
                // KVM_INTERNAL_ERROR_EMULATION
                if suberror == 1 {
                    Exit::EmulationFailed
                } else {
                    Exit::Other {
                        reason: KVM_EXIT_INTERNAL_ERROR,
                        detail: suberror.into(),
                    }
                }
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: exit_reason says that `fail_entry` is the member in force.
                let detail = unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
                Exit::Other {
                    reason: KVM_EXIT_FAIL_ENTRY,
                    detail,
                }
            }
            reason => Exit::Other { reason, detail: 0 },
        }
    }

    /// Answers [`Exit::In`] with the elements' bytes, one after the other. Bytes beyond what was asked are ignored.
    pub fn answer_in(&mut self, data: &[u8]) {
        let run = self.fd.get_kvm_run();
        let base: *mut u8 = std::ptr::from_mut(run).cast::<u8>();
        if run.exit_reason != KVM_EXIT_IO {
            return;
        }
        // SAFETY: exit_reason says that `io` is the member in force; KVM reads size * count bytes, at most a page, at
        // data_offset within the mapped area, and no more than that is written.
        unsafe {
            let io = run.__bindgen_anon_1.io;
            let len = (io.size as usize * io.count as usize).min(MAX_IO_BYTES).min(data.len());
            std::ptr::copy_nonoverlapping(data.as_ptr(), base.add(io.data_offset as usize), len);
        }
    }

    /// Answers [`Exit::MmioRead`].
    pub fn answer_mmio(&mut self, data: [u8; 8]) {
        let run = self.fd.get_kvm_run();
        if run.exit_reason == KVM_EXIT_MMIO {
            run.__bindgen_anon_1.mmio.data = data;
        }
    }

    /// Answers [`Exit::ReadMsr`] or [`Exit::WriteMsr`]; `None` makes the instruction fault with #GP.
    pub fn answer_msr(&mut self, value: Option<u64>) {
        let run = self.fd.get_kvm_run();
        if run.exit_reason == KVM_EXIT_X86_RDMSR || run.exit_reason == KVM_EXIT_X86_WRMSR {
            let is_read = run.exit_reason == KVM_EXIT_X86_RDMSR;
            // SAFETY: exit_reason says that `msr` is the member in force.
            let msr = unsafe { &mut run.__bindgen_anon_1.msr };
            msr.error = u8::from(value.is_none());
            if let (true, Some(value)) = (is_read, value) {
                msr.data = value;
            }
        }
    }

    /// RFLAGS.IF as of the last return.
    pub fn if_flag(&mut self) -> bool {
        self.fd.get_kvm_run().if_flag != 0
    }

    /// Whether [`RawVcpu::interrupt`] would be accepted: IF=1, no shadow, nothing else pending.
    pub fn ready_for_interrupt(&mut self) -> bool {
        let run = self.fd.get_kvm_run();
        run.ready_for_interrupt_injection != 0 && run.if_flag != 0
    }

    /// Asks for [`Exit::Window`] as soon as an interrupt could be injected.
    pub fn request_window(&mut self, wanted: bool) {
        self.fd.get_kvm_run().request_interrupt_window = u8::from(wanted);
    }

    /// Injects the external interrupt `vector` at the next entry.
    pub fn interrupt(&mut self, vector: u8) -> io::Result<()> {
        let argument = kvm_interrupt { irq: vector.into() };
        // SAFETY: the fd is a vCPU and KVM only reads the argument.
        let rc = unsafe { ioctl_with_ref(&self.fd, KVM_INTERRUPT(), &argument) };
        if rc < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// General registers as of the last return of `KVM_RUN` (or as set since by nobody but KVM).
    pub fn regs_at_exit(&mut self) -> io::Result<kvm_regs> {
        if let Some(regs) = self.pending.get() {
            Ok(regs)
        } else if self.has_sync_regs {
            // SAFETY: kvm_valid_regs asks for the registers, so KVM fills this union member at every return.
            Ok(unsafe { self.fd.get_kvm_run().s.regs.regs })
        } else {
            Ok(self.fd.get_regs()?)
        }
    }

    /// General and special registers and pending events by one call instead of three; `None` where this KVM does not
    /// share them. Only at a completed stop: the call enters KVM with `immediate_exit`, which would complete it.
    pub fn shared_registers(&mut self) -> io::Result<Option<Registers>> {
        if !self.has_sync_regs {
            return Ok(None);
        }
        self.fd.set_sync_valid_reg(SyncReg::SystemRegister);
        self.fd.set_sync_valid_reg(SyncReg::VcpuEvents);
        // KVM sets the bit of an interrupt that waits to be delivered, and never clears that of an earlier one here.
        self.fd.sync_regs_mut().sregs.interrupt_bitmap = [0; 4];
        let completed = self.complete();
        self.fd.clear_sync_valid_reg(SyncReg::SystemRegister);
        self.fd.clear_sync_valid_reg(SyncReg::VcpuEvents);
        if let Some(exit) = completed?.filter(|exit| *exit != Exit::Window) {
            return Err(io::Error::other(format!("an exit was left to complete: {exit:?}")));
        }
        let shared = self.fd.sync_regs();
        Ok(Some(Registers {
            regs: shared.regs,
            sregs: shared.sregs,
            events: shared.events,
        }))
    }

    /// Sets the general registers, where KVM can take them along with the next `KVM_RUN`: on some hosts each call to
    /// KVM costs as much as entering the guest. Until then the descriptor's own calls do not see them: see
    /// [`RawVcpu::settle`].
    pub fn set_regs(&self, regs: &kvm_regs) -> io::Result<()> {
        if self.has_sync_regs {
            self.pending.set(Some(*regs));
            return Ok(());
        }
        Ok(self.fd.set_regs(regs)?)
    }

    /// Gives KVM now what waits for the next `KVM_RUN`.
    pub fn settle(&self) -> io::Result<()> {
        match self.pending.take() {
            Some(regs) => Ok(self.fd.set_regs(&regs)?),
            None => Ok(()),
        }
    }

    /// Forgets what waits for the next `KVM_RUN`: another state replaces it.
    pub fn forget(&self) {
        self.pending.set(None);
    }

    /// Sets the XSAVE area. `area` must be as large as KVM's `struct kvm_xsave` without extensions (4096 bytes).
    pub fn set_xsave(&self, area: &kvm_xsave) -> io::Result<()> {
        // SAFETY: no extended features (AMX) are enabled by arch_prctl, so KVM reads exactly 4096 bytes.
        unsafe { self.fd.set_xsave(area) }?;
        Ok(())
    }

    /// The descriptor's number, for messages.
    pub fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}
