//! One machine in three ways: unprotected, recorded and protected.

use std::path::PathBuf;

use anyhow::Result;
use lockstep_integration::pair::{Node, Scene, Setup, status};
use lockstep_integration::{Booted, Kind, Namespace, Run, Running, work_dir};
use serde_json::Value;

use super::cores::Cores;
use crate::pairs::{LIMIT, PROMPT, Sample, bench};

/// How a machine is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Unprotected,
    Recorded,
    Protected,
}

/// A running machine, its vCPU on a core of its own. On the other core its backup does what it does; where it has none, an
/// unprotected machine that is given the same load: what two cores share (caches, power, hyperthreads) is then no gain of
/// the one without a backup.
pub struct Machine {
    // Dropped in this order: programs, then their networks.
    /// The machine.
    pub node: Node,
    /// Its backup, if it has one.
    pub backup: Option<Node>,
    /// The machine beside it.
    pub beside: Option<Beside>,
    /// Its hosts.
    pub scene: Scene,
}

/// The machine on the other core.
pub struct Beside {
    run: Running,
    /// Its clients' network.
    pub namespace: Namespace,
}

impl Machine {
    /// Starts one, from the snapshot and with the disk that belongs to it.
    pub fn start(cores: &Cores, kind: Kind, way: Way) -> Result<Self> {
        let setup = Setup::new("bench-pair").busy();
        let setup = if kind == Kind::Redis { setup.disk() } else { setup };
        let scene = setup.build()?;
        let (mut node, backup, mut beside) = match way {
            Way::Protected => {
                let backup = scene.start_backup(1)?;
                (scene.start_primary(0)?, Some(backup), None)
            }
            Way::Unprotected | Way::Recorded => {
                let mut run = Run::inside(&scene.pair.network.hosts[0].namespace)?.restore(&scene.snapshot());
                if let Some([disk, _]) = &scene.disks {
                    run = run.disk(disk);
                }
                if way == Way::Recorded {
                    run = run.record(&scene.pair.dir().join("log"));
                }
                let node = Node {
                    run: run.start()?,
                    host: 0,
                };
                (node, None, Some(Beside::start(kind)?))
            }
        };
        if way == Way::Protected {
            node.wait_for_state("protected", LIMIT)?;
        }
        for run in [Some(&mut node.run), beside.as_mut().map(|beside| &mut beside.run)]
            .into_iter()
            .flatten()
        {
            // The prompt may have been printed before the snapshot was made.
            run.type_text("\n")?;
            run.wait_for(PROMPT, LIMIT)?;
        }
        cores.pin(node.run.pid())?;
        Ok(Self {
            node,
            backup,
            beside,
            scene,
        })
    }

    /// Types a `bench` command, also beside.
    pub fn bench(&mut self, arguments: &str) -> Result<Sample> {
        if let Some(beside) = &mut self.beside {
            beside.run.type_text(&format!("bench {arguments}\n"))?;
        }
        let sample = bench(&mut self.node.run, arguments)?;
        if let Some(beside) = &self.beside {
            let name = arguments.split(' ').next().unwrap_or_default();
            beside.run.wait_for(&format!("BENCH {name} work="), LIMIT)?;
            beside.run.wait_for(PROMPT, LIMIT)?;
        }
        Ok(sample)
    }

    /// The primary's socket.
    pub fn socket(&self) -> PathBuf {
        self.scene.pair.socket(self.node.host)
    }

    /// What the primary tells.
    pub fn status(&self) -> Result<Value> {
        status(&self.socket())
    }
}

impl Beside {
    fn start(kind: Kind) -> Result<Self> {
        let (namespace, dir) = (Namespace::create()?, work_dir("bench-pair-beside")?);
        let machine = Booted::get(kind)?;
        let run = if kind == Kind::Redis {
            machine.go_on_inside(&namespace, &dir)?
        } else {
            Run::inside(&namespace)?.restore(&machine.snapshot())
        };
        Ok(Self {
            run: run.start()?,
            namespace,
        })
    }
}

/// What one round gave: unprotected, recorded, protected.
pub type Round<T> = [T; 3];

/// Rounds in which each way comes once, in this order and then the other one around: a drift of the machine's speed then favours
/// none.
pub fn rounds<T>(count: usize, mut run: impl FnMut(Way) -> Result<T>) -> Result<Vec<Round<T>>> {
    let mut rounds = Vec::new();
    for number in 0..count {
        rounds.push(if number % 2 == 0 {
            [run(Way::Unprotected)?, run(Way::Recorded)?, run(Way::Protected)?]
        } else {
            let (protected, recorded) = (run(Way::Protected)?, run(Way::Recorded)?);
            [run(Way::Unprotected)?, recorded, protected]
        });
    }
    Ok(rounds)
}
