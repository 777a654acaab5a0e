//! Where a machine of a pair is asked: its operations API, its metrics, and what it tells at the arbiter.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::again::start_over;
use super::pair::PairArgs;
use super::sockets;
use crate::api::{ApiServer, Exporter, Identity};
use crate::control::Control;
use crate::fleet::Presence;
use crate::status::{Card, Status};

/// Where a machine of a pair is asked.
#[derive(Args, Clone, Debug)]
pub struct ApiArgs {
    /// Socket of the operations API [default: /run/lockstep/NAME.sock].
    #[arg(long, value_name = "SOCKET", requires = "peer")]
    pub api: Option<PathBuf>,
    /// Where to serve metrics for Prometheus and the process' health (TCP). Whoever reaches it may read them: prefer an
    /// address of the loopback or of a network for management.
    #[arg(long, value_name = "IP:PORT", requires = "peer")]
    pub metrics: Option<SocketAddr>,
}

impl ApiArgs {
    /// Serves the API of this end of a pair, and its metrics. `cards`: the machine's, as it is booted here.
    pub fn serve(&self, pair: &PairArgs, cards: Vec<Card>, status: &Status, control: &Control) -> Result<Served> {
        let path = self.api.clone().unwrap_or_else(|| sockets::of(&pair.name));
        status.tell_cards(cards);
        let identity = Identity {
            machine: pair.name.clone(),
            node: pair.node.clone(),
            pki: pair.pki.clone(),
        };
        // First, so that nothing stands behind the API's socket where this fails.
        let start = |address| Exporter::start(address, identity.clone(), status.clone());
        let metrics = self.metrics.map(start).transpose()?;
        let api = self.serve_api(&path, &identity, status, control)?;
        let presence = pair
            .gateway()?
            .map(|gateway| Presence::start(gateway, identity, status.clone()));
        Ok(Served {
            _api: api,
            _metrics: metrics,
            _presence: presence.transpose()?,
        })
    }

    /// `None`: only the default directory may not be used; the machine runs anyway.
    fn serve_api(
        &self,
        path: &Path,
        identity: &Identity,
        status: &Status,
        control: &Control,
    ) -> Result<Option<ApiServer>> {
        match ApiServer::start(path, identity.clone(), status.clone(), control.clone(), vanish) {
            Ok(server) => Ok(Some(server)),
            Err(error) if self.api.is_none() && error.is_permission() => {
                tracing::warn!("{error}; this machine can be asked nothing. --api names a socket elsewhere");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What is served for as long as this lives.
pub struct Served {
    _api: Option<ApiServer>,
    _metrics: Option<Exporter>,
    _presence: Option<Presence>,
}

/// Ends this process as a crash would, for a drill.
fn vanish() {
    tracing::warn!("a drill: this process vanishes");
    let error = start_over();
    tracing::error!("{error:#}");
}
