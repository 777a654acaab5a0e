//! Arguments that both programs take: devices, policy, and how long to run.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lockstep_logcodec::WriterOptions;
use lockstep_proto::model::MTUS;

use crate::policy::Policy;
use crate::recording::Place;
use crate::recording::ring::Limits;
use crate::start::{DiskOption, NicOption};

/// The host's side of a machine's devices.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// A disk: a raw image; `FILE,ro` for a read-only one. Can be given several times.
    #[arg(long, value_name = "FILE[,ro]", value_parser = parse_disk)]
    pub disk: Vec<DiskOption>,
    /// A network card on an existing tap device: `tap=NAME[,mac=XX:XX:XX:XX:XX:XX][,mtu=BYTES]`.
    /// Without an address it has one that follows from the machine's name and the card's number. An MTU is what the guest is
    /// told; without one it takes packets of 1500 bytes. Can be given several times.
    #[arg(long, value_name = "tap=NAME[,mac=MAC][,mtu=BYTES]", value_parser = parse_nic)]
    pub net: Vec<NicOption>,
}

/// How the machine is recorded.
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    /// Milliseconds of host time in an epoch, after which dirtied memory is hashed for comparison.
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub epoch_ms: u64,
    /// Microseconds that something may be due before the guest is stopped by force to serve it, in user code; kernel
    /// code, where a stop is near, is given time for 30,000 instructions.
    #[arg(long, value_name = "US", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=1_000_000))]
    pub grace_us: u64,
    /// Stop the guest by force this often a second, though nothing is due.
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000), hide = true)]
    pub force_hz: Option<u32>,
}

impl PolicyArgs {
    /// The policy; `grace_ns` is what the probe advises for kernel code, `epochs` whether anybody compares them.
    pub fn policy(&self, grace_ns: u64, epochs: bool, epoch_detail: bool) -> Policy {
        Policy {
            grace: self.grace_us * 1000,
            patience: grace_ns.max(self.grace_us * 1000),
            epoch: epochs.then_some(self.epoch_ms * 1_000_000),
            epoch_detail,
            beat: self.force_hz.map(|rate| 1_000_000_000 / u64::from(rate)),
        }
    }
}

/// How long the machine runs, and who disturbs it.
#[derive(Args, Clone, Debug)]
pub struct SpanArgs {
    /// End the run after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub r#for: Option<f64>,
    /// End the run when the guest has printed this on its console.
    #[arg(long, value_name = "TEXT")]
    pub until: Option<String>,
    /// Stop the vCPU at random moments, on average this often a second: what it executes must not depend on it.
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=100_000), hide = true)]
    pub kicks: Option<u32>,
    /// Print the report as JSON, on standard error.
    #[arg(long)]
    pub json: bool,
}

/// Where to record.
#[derive(Args, Clone, Debug)]
pub struct RecordArgs {
    /// Record into this directory. It is new or empty, or, with a limit, a ring that goes on.
    #[arg(long, value_name = "DIR")]
    pub record: Option<PathBuf>,
    /// Record as a ring: its parts take no more than this on the disk, start states included, and the oldest ones go.
    #[arg(long, value_name = "BYTES", requires = "record", value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub record_max_bytes: Option<u64>,
    /// Record as a ring: parts that are older go.
    #[arg(long, value_name = "SECONDS", requires = "record", value_parser = clap::value_parser!(u64).range(1..=3_153_600_000))]
    pub record_max_age_seconds: Option<u64>,
    /// Compress finished segments of the log.
    #[arg(long, requires = "record")]
    pub compress: bool,
    /// Log the hash of each dirtied page, so that a divergence names the pages.
    #[arg(long, requires = "record")]
    pub epoch_detail: bool,
}

impl RecordArgs {
    /// Where to record, if anywhere.
    pub fn place(&self) -> Option<Place> {
        let limits = Limits {
            max_bytes: self.record_max_bytes,
            max_age: self.record_max_age_seconds.map(Duration::from_secs),
        };
        let directory = self.record.clone()?;
        Some(Place { directory, limits })
    }

    /// How the log's files are written.
    pub fn log_options(&self) -> WriterOptions {
        WriterOptions {
            compress: self.compress,
            ..WriterOptions::default()
        }
    }
}

/// A disk as `--disk` has it.
pub fn parse_disk(text: &str) -> Result<DiskOption, String> {
    let (path, read_only) = text.strip_suffix(",ro").map_or((text, false), |path| (path, true));
    if path.is_empty() {
        return Err("the image's path is missing".into());
    }
    Ok(DiskOption {
        path: path.into(),
        read_only,
    })
}

fn parse_nic(text: &str) -> Result<NicOption, String> {
    let (mut tap, mut mac, mut mtu) = (None, None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("tap", name)) if !name.is_empty() => tap = Some(name.to_owned()),
            Some(("mac", text)) => mac = Some(parse_mac(text)?),
            Some(("mtu", text)) => mtu = Some(parse_mtu(text)?),
            _ => {
                return Err(format!(
                    "`{part}` is not `tap=NAME`, `mac=XX:XX:XX:XX:XX:XX` or `mtu=BYTES`"
                ));
            }
        }
    }
    Ok(NicOption {
        tap: tap.ok_or("`tap=NAME` is missing")?,
        mac,
        mtu,
    })
}

fn parse_mtu(text: &str) -> Result<u32, String> {
    let mtu = text.parse().ok().filter(|mtu| MTUS.contains(mtu));
    mtu.ok_or_else(|| format!("`{text}` is not an MTU from {} to {}", MTUS.start(), MTUS.end()))
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("`{text}` is not a MAC address like 52:4c:53:00:00:01"))?;
    let mac: [u8; 6] = bytes.try_into().map_err(|_| format!("`{text}` has not six bytes"))?;
    if mac[0] & 1 == 1 {
        return Err(format!(
            "`{text}` is a multicast address: the first byte of a NIC's is even"
        ));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nics_and_disks_are_parsed() {
        let nic = parse_nic("tap=t0,mac=52:00:00:00:00:0a").unwrap();
        assert_eq!((nic.tap.as_str(), nic.mac), ("t0", Some([0x52, 0, 0, 0, 0, 0xa])));
        assert_eq!(nic.mtu, None);
        assert_eq!(parse_nic("tap=t0,mtu=9000").unwrap().mtu, Some(9000));
        for wrong in ["", "1279", "65522", "-1", "9000.0", "4294968296"] {
            assert!(parse_nic(&format!("tap=t0,mtu={wrong}")).is_err(), "{wrong}");
        }
        assert!(parse_nic("tap=").is_err());
        assert!(parse_nic("mac=52:00:00:00:00:0a").is_err());
        assert!(parse_nic("tap=t0,mac=01:00:00:00:00:00").is_err(), "multicast");
        assert!(parse_nic("tap=t0,mac=5:0:0:0:0:0").is_err());
        assert!(parse_nic("tap=t0,speed=10").is_err());
        assert!(parse_disk("a.img,ro").unwrap().read_only);
        assert!(parse_disk(",ro").is_err());
    }
}
