//! What all tests share: whether there is a KVM, seeds, and what is compared.

use std::sync::OnceLock;

use kvm_bindings::kvm_regs;
use lockstep_proto::end::Reason;
use lockstep_proto::model::NEWEST_REVISION;
use lockstep_proto::quantity::{GuestTime, StopNumber};
use lockstep_proto::{MachineConfig, Turn, VcpuState};
use lockstep_vmm::cpu::profile::Profile;
use lockstep_vmm::cpu::state;
use lockstep_vmm::devices::Effect;
use lockstep_vmm::machine::{Chain, Counters, Delta, EpochReport, Machine, MachineError, Stop, StopKind};
use lockstep_vmm::probe;
use xxhash_rust::xxh3::Xxh3;

use super::guest::MEMORY_BYTES;
pub use super::record::Micro;
pub use super::replay::Recording;

/// More steps than any of these guests makes.
pub const MOST_STEPS: usize = 20_000;
/// The first stop, for patterns.
pub const FIRST_STOP: StopNumber = StopNumber::new(1);

/// Whether there is no KVM here; says so, or fails where `LOCKSTEP_REQUIRE_KVM=1`.
pub fn no_kvm() -> bool {
    match lockstep_vmm::cpu::vm::open() {
        Ok(_) => false,
        Err(error) if std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_some_and(|value| value == "1") => {
            panic!("LOCKSTEP_REQUIRE_KVM=1, but: {error}")
        }
        Err(error) => {
            println!("SKIPPED: {error}");
            true
        }
    }
}

/// Whether this host's KVM has to be given what guests write into some MSRs, as the programs do it.
pub fn gives_cut_msrs() -> bool {
    static GIVES: OnceLock<bool> = OnceLock::new();
    *GIVES.get_or_init(|| probe::at_start().expect("a probe").strategies.gives_cut_msrs)
}

/// Why a replay failed.
#[derive(Debug)]
pub enum Fault {
    Machine(MachineError),
    /// Step number, and what differs.
    Diverged(usize, &'static str),
    /// A slice does not end.
    Silent(usize),
}

impl From<MachineError> for Fault {
    fn from(error: MachineError) -> Self {
        Self::Machine(error)
    }
}

impl Fault {
    /// What differs, if that is the fault.
    pub fn differs(&self) -> Option<&'static str> {
        if let Self::Diverged(_, what) = self {
            Some(what)
        } else {
            None
        }
    }
}

/// Xorshift64: any generator will do, as long as a seed gives the same numbers again.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The seed of everything random here, printed; `LOCKSTEP_SEED` sets another.
pub fn seed() -> u64 {
    let seed = std::env::var("LOCKSTEP_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0x5eed_0001);
    println!("LOCKSTEP_SEED={seed}");
    seed
}

/// One turn, with what it led to.
#[derive(Clone, Debug)]
pub struct Step {
    pub stop: Stop,
    pub turn: Turn,
    pub delta: Option<Box<Delta>>,
    pub chain: Chain,
    pub regs: kvm_regs,
    pub interrupt: Option<u8>,
    pub effects: Vec<Effect>,
    pub epoch: Option<EpochReport>,
    pub ended: Option<Reason>,
}

impl Step {
    /// The number of a [`super::guest::mark`].
    pub fn mark(&self) -> Option<u16> {
        match self.stop.kind {
            StopKind::Port {
                port: port @ 0x80..=0x8f,
                write: true,
            } => Some(port - 0x80),
            _ => None,
        }
    }

    pub fn is_forced(&self) -> bool {
        self.stop.kind == StopKind::Forced
    }
}

/// 2 MiB of memory and this host's profile.
pub fn config() -> MachineConfig {
    MachineConfig {
        memory_bytes: MEMORY_BYTES,
        cpu_profile: Profile::for_this_host().expect("a profile for this host").name().into(),
        model_revision: NEWEST_REVISION,
        ..MachineConfig::default()
    }
}

/// A machine when all is over.
#[derive(Clone, Debug)]
pub struct Final {
    pub memory: [u8; 16],
    pub vcpu: VcpuState,
    pub devices: Vec<u8>,
    pub now: GuestTime,
    pub chain: Chain,
    pub counters: Counters,
}

impl Final {
    pub fn of(machine: &mut Machine) -> Result<Self, Fault> {
        let vcpu = machine.vcpu_state()?;
        let mut quick = state::save_often(&mut machine.vm().vcpu).expect("a state");
        assert_eq!(vcpu_digest(&quick), vcpu_digest(&vcpu), "read by fewer calls");
        quick.xsave.clone_from(&vcpu.xsave);
        quick.guest_tsd = vcpu.guest_tsd;
        assert_eq!(quick, vcpu, "read by fewer calls, beside the XSAVE area");
        Ok(Self {
            memory: machine.full_memory_digest(),
            vcpu,
            devices: machine.devices().save(),
            now: machine.now(),
            chain: machine.chain(),
            counters: machine.counters(),
        })
    }

    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        [
            (self.chain != other.chain, "final chain"),
            (self.memory != other.memory, "final memory"),
            (vcpu_digest(&self.vcpu) != vcpu_digest(&other.vcpu), "final vCPU state"),
            (self.devices != other.devices, "final devices"),
            (self.now != other.now, "final time"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}

/// Digest of what an epoch compares of a vCPU. The bytes of `KVM_GET_XSAVE` are not compared: `XSTATE_BV` in its header
/// differs from run to run (XINUSE), for the same register contents.
fn vcpu_digest(state: &VcpuState) -> u128 {
    let mut hasher = Xxh3::new();
    lockstep_vmm::cpu::state::digest_into(&mut hasher, state);
    hasher.digest128()
}
