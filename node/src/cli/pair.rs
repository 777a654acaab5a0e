//! Arguments of a pair, the same for both programs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use lockstep_proto::session::{Commit, Record, Timing, Unprotected, Verdict};

use super::role::{self, Part};
use super::sockets;
use crate::arbiter::{
    self, Arbiter, ArbiterThread, Gateway, HalfLogin, Kept, Login, Outcome, Seen, Spec, TlsError, TlsFiles, in_words,
};
use crate::control::Control;
use crate::host::size::seen_directory;
use crate::pair::Pair;
use crate::pki::Credentials;
use crate::reports::Reports;
use crate::status::Status;
use crate::watch::{ArbiterPort, Uplink};

/// Called once, by whichever of its holders comes to it first.
struct Once<T>(Arc<Mutex<Option<Then<T>>>>);

type Then<T> = Box<dyn FnOnce(T) + Send>;

impl<T> Once<T> {
    fn new(then: Then<T>) -> Self {
        Self(Arc::new(Mutex::new(Some(then))))
    }

    fn call(&self, answer: T) {
        if let Some(then) = self.0.lock().ok().and_then(|mut then| then.take()) {
            then(answer);
        }
    }
}

impl<T> Clone for Once<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Who this node is, where the other one is, and who decides between them.
// Nothing is flattened in here: clap would then take an `Option<PairArgs>` for not given, whatever is given.
#[derive(Args, Clone, Debug)]
pub struct PairArgs {
    /// Name of the machine that the pair protects.
    #[arg(long, value_name = "NAME", required = false, requires = "peer")]
    pub name: String,
    /// This node's name, as in its certificate.
    #[arg(long, value_name = "NODE", required = false, requires = "peer")]
    pub node: String,
    /// The other node's name, as in its certificate.
    #[arg(long, value_name = "NODE", required = false, requires = "peer")]
    pub peer_name: String,
    /// Where the other node listens (UDP) when it is the backup.
    #[arg(
        long,
        value_name = "IP:PORT",
        required = false,
        requires_all = ["name", "node", "peer_name", "pki", "arbiter"]
    )]
    pub peer: SocketAddr,
    /// Directory with ca.pem and this node's certificate and key (`lockstep-primary pki`).
    #[arg(long, value_name = "DIR", required = false, requires = "peer")]
    pub pki: PathBuf,
    /// Who decides which node is live: `etcd:URL[,URL...]`, or `file:DIR` on one host.
    #[arg(long, value_name = "SPEC", required = false, requires = "peer")]
    pub arbiter: Spec,
    /// CA of the arbiter's certificate (PEM).
    #[arg(long, value_name = "FILE")]
    pub arbiter_ca: Option<PathBuf>,
    /// This node's certificate for the arbiter (PEM).
    #[arg(long, value_name = "FILE", requires = "arbiter_ca")]
    pub arbiter_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "arbiter_ca")]
    pub arbiter_key: Option<PathBuf>,
    /// The user of an etcd that has users.
    #[arg(long, value_name = "USER", requires = "arbiter_password_file")]
    pub arbiter_user: Option<String>,
    /// File with its password, which nobody but its owner can read.
    #[arg(long, value_name = "FILE", requires = "arbiter_user")]
    pub arbiter_password_file: Option<PathBuf>,
    // No defaults for clap: they would count as given, and a machine that is not of a pair would need all the others.
    /// Milliseconds from one heartbeat to the next [default: 200].
    #[arg(long, value_name = "MS", requires = "peer", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub heartbeat_ms: Option<u64>,
    /// Milliseconds of silence after which the other node is suspected; at least twice the heartbeat [default: 1000].
    #[arg(long, value_name = "MS", requires = "peer", value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub deadline_ms: Option<u64>,
    /// When output may leave: `received`, when the backup has the log behind it, or `replayed`, when it has also executed
    /// and compared it [default: received].
    #[arg(long, value_name = "WHEN", requires = "peer", value_parser = parse_commit)]
    pub ack: Option<Commit>,
    /// The interface by which the service is reached: without a carrier for the grace, the machine is handed over.
    #[arg(long, value_name = "INTERFACE", requires = "peer")]
    pub uplink: Option<String>,
    /// Milliseconds that the uplink may be without a carrier [default: 5000].
    #[arg(long, value_name = "MS", requires = "uplink", value_parser = clap::value_parser!(u64).range(0..=600_000))]
    pub uplink_grace_ms: Option<u64>,
    /// Keep the last eight divergence reports in this directory [default: /run/lockstep/NAME.divergences].
    #[arg(long, value_name = "DIR", requires = "peer")]
    pub reports: Option<PathBuf>,
}

fn parse_commit(text: &str) -> Result<Commit, String> {
    match text {
        "received" => Ok(Commit::Received),
        "replayed" => Ok(Commit::Replayed),
        _ => Err("it is `received` or `replayed`".into()),
    }
}

impl PairArgs {
    /// How fast the other's death is noticed.
    pub fn timing(&self) -> Result<Timing> {
        let or = |given: Option<u64>, default| given.map_or(default, |ms| ms * 1_000_000);
        let timing = Timing {
            heartbeat_ns: or(self.heartbeat_ms, Timing::CALM.heartbeat_ns),
            deadline_ns: or(self.deadline_ms, Timing::CALM.deadline_ns),
        };
        if !timing.is_sound() {
            bail!(
                "--deadline-ms {} is less than twice --heartbeat-ms {}",
                timing.deadline_ns / 1_000_000,
                timing.heartbeat_ns / 1_000_000
            );
        }
        Ok(timing)
    }

    /// Opens the machine's record.
    pub fn open_arbiter(&self) -> Result<Box<dyn Arbiter>> {
        let (tls, login) = (self.arbiter_tls()?, self.login()?);
        Ok(arbiter::open(&self.arbiter, tls.as_ref(), login.as_ref(), &self.name)?)
    }

    /// To tell there how the machine is, where the arbiter is an etcd.
    pub fn gateway(&self) -> Result<Option<Gateway>> {
        let what = format!("how {} is on {}", self.name, self.node);
        Ok(arbiter::gateway(
            &self.arbiter,
            self.arbiter_tls()?,
            self.login()?,
            what,
        )?)
    }

    fn arbiter_tls(&self) -> Result<Option<TlsFiles>, TlsError> {
        TlsFiles::from_paths(
            self.arbiter_ca.clone(),
            self.arbiter_cert.clone(),
            self.arbiter_key.clone(),
        )
    }

    /// What this node has seen of the machine's record.
    pub fn kept(&self) -> Kept {
        Kept::new(&seen_directory(), &self.name, &self.node)
    }

    /// The arbiter's user.
    pub fn login(&self) -> Result<Option<Login>, HalfLogin> {
        Login::from_options(self.arbiter_user.clone(), self.arbiter_password_file.clone())
    }

    /// The service uplink.
    pub fn uplink(&self) -> Option<Uplink> {
        let grace = Duration::from_millis(self.uplink_grace_ms.unwrap_or(5000));
        let interface = self.uplink.clone()?;
        Some(Uplink { interface, grace })
    }

    /// Where divergence reports are kept.
    pub fn reports(&self) -> Reports {
        Reports::new(self.reports.clone().unwrap_or_else(|| sockets::reports_of(&self.name)))
    }

    /// Asks the arbiter from its own thread.
    pub fn arbiter_port(&self) -> Result<ArbiterPort> {
        let thread = ArbiterThread::start(self.open_arbiter()?).context("the arbiter's thread")?;
        let looker = thread.clone();
        // Answers come on one thread, in the order of the questions.
        let seen = Arc::new(Mutex::new(Seen::new(self.kept())));
        let looked = seen.clone();
        let look = Box::new(move |then: Box<dyn FnOnce(bool) + Send>| {
            let then = Once::new(then);
            let (answer, seen) = (then.clone(), looked.clone());
            let asked = looker.read(move |said| {
                let answers = seen.lock().is_ok_and(|mut seen| seen.look(said));
                answer.call(answers);
            });
            if asked.is_err() {
                // As many questions wait as may.
                then.call(false);
            }
        });
        let ask = Box::new(move |expected, new: Record, then| {
            let then = Once::new(then);
            let (answer, seen, wanted) = (then.clone(), seen.clone(), new.clone());
            let result = thread.compare_and_set(Some(expected), new, move |said| {
                let verdict = match said {
                    Ok(Outcome::Done) => Verdict::Won,
                    Ok(Outcome::Changed(found)) => {
                        let now = in_words(found.as_ref());
                        tracing::warn!("the arbiter's record was changed by another node (now: {now})");
                        Verdict::Lost
                    }
                    Err(error) => {
                        tracing::error!("{error}");
                        Verdict::Unknown
                    }
                };
                let has_won = verdict == Verdict::Won;
                answer.call(verdict);
                // Who has won does not wait for this disk.
                if has_won && let Ok(mut seen) = seen.lock() {
                    seen.set(wanted);
                }
            });
            if let Err(error) = result {
                tracing::error!("{error}");
                then.call(Verdict::Unknown);
            }
        });
        Ok(ArbiterPort { ask, look })
    }

    /// Takes the term for a machine that is booted here. Fails where another node holds it.
    pub fn take_term(&self) -> Result<Record> {
        let mut arbiter = self.open_arbiter()?;
        let part = role::look(
            arbiter.as_mut(),
            &self.kept(),
            &self.node,
            self.patience()?,
            &mut || Ok(()),
        )?;
        match part {
            Part::Primary(record) => Ok(record),
            Part::Backup(record) => bail!(
                "node `{}` holds term {} of machine `{}`: what it has is newer than this node's disk. Start this node as the \
                 backup: lockstep-backup run",
                record.owner,
                record.term,
                self.name
            ),
        }
    }

    /// How long a peer that may take over is waited for.
    pub fn patience(&self) -> Result<Duration> {
        Ok(Duration::from_nanos(self.timing()?.deadline_ns) * 3)
    }

    /// Who this node is to the other one; its certificate is looked at before anything runs.
    pub fn credentials(&self) -> Result<Credentials> {
        let credentials = Credentials::new(&self.pki, &self.node, &self.peer_name);
        credentials.client()?;
        Ok(credentials)
    }

    /// This end of the pair, which holds `record`.
    pub fn pair(&self, record: Record, why: Unprotected, status: Status, control: Control) -> Result<Pair> {
        Ok(Pair {
            node: self.node.clone(),
            machine_name: self.name.clone(),
            peer: self.peer,
            peer_name: self.peer_name.clone(),
            credentials: self.credentials()?,
            arbiter: self.arbiter_port()?,
            record,
            why,
            timing: self.timing()?,
            commit: self.ack.unwrap_or_default(),
            uplink: self.uplink(),
            reports: self.reports(),
            status,
            control,
        })
    }
}
