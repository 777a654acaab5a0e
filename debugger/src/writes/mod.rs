//! `lockstep-debug writes`: who changed a range of the guest's memory, and when.

mod search;

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::Args;
use lockstep_node::{say, tell};
use serde_json::Value;

use crate::asked::{Asked, Stretch, name, require_stops, task_json};
use crate::replay::hex;
use crate::show::kernel::Kernel;
use crate::show::memory::{Place, length};
use crate::timeline::MAX_WATCH;
use search::{Search, Who, Write};

/// Changed bytes that a line shows; `--json` has all.
const SHOWN: usize = 16;

#[derive(Args)]
pub struct WritesOptions {
    #[command(flatten)]
    asked: Asked,
    /// A virtual address as ring 0 sees it where the stretch begins, `phys:` and a physical one, or a variable of vmlinux. What is
    /// not mapped there is waited for.
    #[arg(value_name = "ADDR")]
    address: String,
    /// Bytes, at most 4096.
    #[arg(value_name = "LEN")]
    length: String,
    /// End after so many.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

pub fn run(options: &WritesOptions) -> Result<ExitCode> {
    let length = length(&options.length)? as u64;
    ensure!(
        length <= MAX_WATCH,
        "{length} bytes cannot be watched: give 1 to {MAX_WATCH}"
    );
    require_stops()?;
    let stretch = options.asked.open()?;
    let place = place(&options.address, &stretch)?;
    let Stretch { walker, to, kernel } = stretch;
    let mut search = Search::begin(walker, kernel.as_ref(), to, place, length)?;
    if !options.asked.json {
        say!(
            "{:>10}  {:>16}  {:>8}  {:<20}  what was there -> what is then, where",
            "stop",
            "guest time",
            "step",
            "task"
        );
    }
    let mut count = 0u64;
    search.run(&mut |write| {
        if options.asked.json {
            say!("{}", json(write, kernel.as_ref()));
        } else {
            say!("{}", text(write, kernel.as_ref()));
        }
        count += 1;
        options.limit.is_none_or(|limit| count < limit)
    })?;
    if options.limit.is_some_and(|limit| count >= limit) {
        tell!("lockstep-debug: ended after {count} changes, as asked by --limit");
    }
    Ok(ExitCode::SUCCESS)
}

fn place(text: &str, stretch: &Stretch) -> Result<Place> {
    if text.starts_with("phys:") || text.starts_with(|first: char| first.is_ascii_digit()) {
        return text.parse();
    }
    match stretch.kernel()?.symbol(text) {
        Some(address) => Ok(Place::Virtual(address)),
        None => bail!("`{text}` is neither an address (0x1000, phys:0x1000) nor a symbol of the guest's vmlinux"),
    }
}

fn symbol(kernel: Option<&Kernel>, address: u64) -> Option<String> {
    let (name, offset) = kernel?.function(address)?;
    Some(format!("{name}+{offset:#x}"))
}

/// The bytes that changed, from the first to the last.
fn difference(write: &Write) -> (usize, &[u8], &[u8]) {
    let differs = |(one, other): (&u8, &u8)| one != other;
    let first = write.old.iter().zip(&write.new).position(differs).unwrap_or(0);
    let last = write.old.iter().zip(&write.new).rposition(differs).unwrap_or(first);
    (first, &write.old[first..=last], &write.new[first..=last])
}

fn shown(bytes: &[u8]) -> String {
    let dots = if bytes.len() > SHOWN { "..." } else { "" };
    hex(&bytes[..bytes.len().min(SHOWN)]) + dots
}

fn text(write: &Write, kernel: Option<&Kernel>) -> String {
    let (offset, old, new) = difference(write);
    let step = write.who.step().map_or_else(String::new, |step| step.to_string());
    let place = match &write.who {
        Who::Instruction { rip, .. } => match symbol(kernel, *rip) {
            Some(symbol) => format!("ring 0 at {rip:#x} {symbol}"),
            None => format!("ring 0 at {rip:#x}"),
        },
        Who::User { .. } => "ring 3: user code, before it came into the kernel".into(),
        Who::Stop { rip, .. } => {
            let symbol = symbol(kernel, *rip)
                .map(|symbol| format!(" {symbol}"))
                .unwrap_or_default();
            format!("where the machine stopped, at {rip:#x}{symbol}: the instruction itself, or a device")
        }
        Who::Device => "a device, while the guest was halted".into(),
        Who::Delta { until } => format!(
            "in what a delta carried up to {} s: no instruction was executed here",
            until.seconds()
        ),
    };
    let offset = if offset == 0 {
        String::new()
    } else {
        format!("+{offset:#x} ")
    };
    format!(
        "{:>10}  {:>16}  {step:>8}  {:<20}  {offset}{} -> {}, {place}",
        write.at.point.stop,
        write.at.seconds(),
        name(write.task.as_ref()),
        shown(old),
        shown(new)
    )
}

fn json(write: &Write, kernel: Option<&Kernel>) -> Value {
    let mut value = write.at.json();
    value["task"] = task_json(write.task.as_ref());
    value["old"] = hex(&write.old).into();
    value["new"] = hex(&write.new).into();
    if let Some(step) = write.who.step() {
        value["step"] = step.into();
    }
    match &write.who {
        Who::Instruction { rip, .. } => {
            value["by"] = "kernel".into();
            value["ring"] = 0.into();
            value["rip"] = format!("{rip:#x}").into();
            value["symbol"] = symbol(kernel, *rip).into();
        }
        Who::User { .. } => {
            value["by"] = "user".into();
            value["ring"] = 3.into();
        }
        Who::Stop { rip, .. } => {
            value["by"] = "stop".into();
            value["rip"] = format!("{rip:#x}").into();
            value["symbol"] = symbol(kernel, *rip).into();
        }
        Who::Device => value["by"] = "device".into(),
        Who::Delta { until } => {
            value["by"] = "delta".into();
            value["until"] = until.json();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::StopNumber;

    use super::*;
    use crate::asked::Here;
    use crate::timeline::Point;

    fn write(old: &[u8], new: &[u8], who: Who) -> Write {
        Write {
            at: Here {
                point: Point::at(StopNumber::new(12)),
                guest_ns: 1_500_000_000,
            },
            task: None,
            old: old.to_vec(),
            new: new.to_vec(),
            who,
        }
    }

    #[test]
    fn only_what_changed_is_shown_and_all_of_it_is_in_json() {
        let long = write(&[0; 40], &[[0; 4].as_slice(), &[1; 30], &[0; 6]].concat(), Who::Device);
        let line = text(&long, None);
        assert!(
            line.contains("+0x4 00000000000000000000000000000000... -> 0101"),
            "{line}"
        );
        assert_eq!(json(&long, None)["new"].as_str().unwrap().len(), 80);
        let line = text(&write(&[0, 0, 0, 0], &[0, 1, 0, 0], Who::Device), None);
        assert!(line.contains("+0x1 00 -> 01, a device"), "{line}");
        let who = Who::Instruction {
            rip: 0xffff_ffff_8100_0000,
            step: 7,
        };
        let line = text(&write(&[0; 4], &[1; 4], who), None);
        assert!(line.contains("7  ?"), "{line}");
        assert!(
            line.ends_with("00000000 -> 01010101, ring 0 at 0xffffffff81000000"),
            "{line}"
        );
    }
}
