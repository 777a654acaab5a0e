//! Where a machine's effects go: straight out, or through the gate of a pair.

use lockstep_node::host::outputs::Outputs;
use lockstep_node::status::pulse::Pulse;
use lockstep_proto::quantity::LogPosition;
use lockstep_vmm::devices::Effect;

use crate::link::LinkPort;

/// The way out.
pub enum Outlet {
    /// Straight: nobody has to have the log first.
    Direct(Outputs),
    /// Through the link's gate.
    Gated(Box<LinkPort>),
}

impl Outlet {
    /// Whether effects wait for a backup.
    pub fn is_gated(&self) -> bool {
        matches!(self, Self::Gated(_))
    }

    /// Whether a backup gets the log.
    pub fn is_logging(&self) -> bool {
        matches!(self, Self::Gated(port) if port.is_logging())
    }

    /// The link, if there is one.
    pub fn port(&mut self) -> Option<&mut LinkPort> {
        match self {
            Self::Direct(_) => None,
            Self::Gated(port) => Some(port),
        }
    }

    /// Whether the link wants something of the vCPU thread.
    pub fn has_errand(&self) -> bool {
        matches!(self, Self::Gated(port) if port.has_errand())
    }

    /// Lets effects go straight out.
    pub fn emit(&mut self, effects: &[Effect]) {
        if let Self::Direct(outputs) = self {
            for effect in effects {
                outputs.emit(effect);
            }
        }
    }

    /// Hands effects to the gate, and waits while it is full. False when it is gone.
    pub fn gate(&self, vcpu: &Pulse, position: LogPosition, effects: Vec<Effect>) -> bool {
        matches!(self, Self::Gated(port) if port.effects(vcpu, position, effects))
    }
}
