//! What a natural stop costs: a guest of two instructions that does nothing but stop.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lockstep_integration::{Run, work_dir};

use crate::Scale;
use crate::table::{Row, Table};
use lockstep_integration::cpu::cpu_ns;

/// `out 0x80, al` and back: nothing is listening there, so nothing is logged.
const PORT: &[u8] = &[0xe6, 0x80, 0xeb, 0xfc];
/// What a kernel's RDTSC is turned into (vmm/src/loader/trap.rs), and back: a clock value is logged each time.
const CLOCK: &[u8] = &[0xe5, 0xa8, 0xeb, 0xfc];
/// Where the code is loaded and begins: 16 MiB.
const ADDRESS: u64 = 16 << 20;

pub fn run(scale: Scale, table: &mut Table) -> Result<()> {
    let dir = work_dir("bench-loop")?;
    for (name, code) in [("port write", PORT), ("logged clock", CLOCK)] {
        let kernel = dir.join("kernel.elf");
        fs::write(&kernel, elf(code))?;
        for recorded in [false, true] {
            let log = dir.join(format!("log-{}", name.replace(' ', "-")));
            let (mut rates, mut cpu) = (Vec::new(), f64::INFINITY);
            let mut bytes = 0.0;
            for _ in 0..scale.pick(3, 2) {
                let (report, share) = stops(&kernel, recorded.then_some(log.as_path()))?;
                let count = report["stops"].as_f64().context("stops")?;
                rates.push(count / report["wall_seconds"].as_f64().context("wall_seconds")?);
                cpu = cpu.min(share * 1e6 / rates[rates.len() - 1]);
                bytes = report["log_batch_bytes"].as_f64().unwrap_or(0.0) / count;
            }
            let kind = if recorded { "recorded" } else { "unrecorded" };
            // The best: what the loop needs, and not what else the machine does.
            let best = rates.iter().copied().fold(0.0, f64::max);
            let row = Row::new(format!("natural stops, {name}, {kind}"), best / 1e3, "k/s");
            let note = format!(
                "best of {}; {:.2} us each, {cpu:.2} us of CPU time",
                rates.len(),
                1e6 / best
            );
            let note = if recorded {
                format!("{note}, {bytes:.2} bytes of log each")
            } else {
                note
            };
            table.add(row.note(note).data(serde_json::json!(rates)));
        }
    }
    Ok(())
}

/// The report of such a run, and the part of a core that its vCPU's thread had.
fn stops(kernel: &Path, log: Option<&Path>) -> Result<(serde_json::Value, f64)> {
    let kernel = kernel.to_str().context("the path is no text")?;
    let mut run = Run::bare()?.args(["--kernel", kernel, "--memory-mib", "32", "--for", "30"]);
    if let Some(log) = log {
        let _ = fs::remove_dir_all(log);
        run = run.record(log);
    }
    let run = run.start()?;
    // Reading the kernel and the snapshot that a recording begins with.
    sleep(Duration::from_millis(500));
    let (begin, cpu) = (Instant::now(), cpu_ns(run.pid())?);
    sleep(Duration::from_millis(1500));
    let share = (cpu_ns(run.pid())? - cpu) / begin.elapsed().as_nanos() as f64;
    Ok((run.terminate()?.report()?, share))
}

/// An ELF file with one segment.
fn elf(code: &[u8]) -> Vec<u8> {
    let size = code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // ET_EXEC, EM_X86_64, version.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [ADDRESS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    // Flags; sizes of the header and of a program header, and one of those; no sections.
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0x1000, ADDRESS, ADDRESS, size, size, 0x1000] {
        file.extend(u64::to_le_bytes(word));
    }
    file.resize(0x1000, 0);
    file.extend(code);
    file
}
