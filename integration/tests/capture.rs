//! `export-pcap`: what tshark makes of a machine's traffic is what its client saw.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_program, require_root_net};
use lockstep_integration::net::{GUEST_IP, inside};
use lockstep_integration::process::check;
use lockstep_integration::{Booted, Debug, Kind, Namespace, Run, work_dir};

const LIMIT: Duration = Duration::from_secs(180);
const REDIS: u16 = 6379;

/// What a connection sent, and what came back.
type Streams = (Vec<u8>, Vec<u8>);

/// Talks to Redis: small values, and one that takes many segments.
fn talk() -> Result<Streams> {
    let mut stream = TcpStream::connect((GUEST_IP, REDIS))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let large = "0123456789abcdef".repeat(1000);
    for (command, answer) in [
        ("PING\r\n".to_owned(), "+PONG\r\n".to_owned()),
        ("SET key value-1\r\n".into(), "+OK\r\n".into()),
        ("GET key\r\n".into(), "$7\r\nvalue-1\r\n".into()),
        (
            format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n$16000\r\n{large}\r\n"),
            "+OK\r\n".into(),
        ),
        ("GET large\r\n".into(), format!("$16000\r\n{large}\r\n")),
    ] {
        stream.write_all(command.as_bytes())?;
        sent.extend(command.as_bytes());
        let mut bytes = vec![0; answer.len()];
        stream.read_exact(&mut bytes)?;
        ensure!(
            bytes == answer.as_bytes(),
            "{command}: {}",
            String::from_utf8_lossy(&bytes)
        );
        received.extend(bytes);
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_to_end(&mut received)?;
    Ok((sent, received))
}

fn fields(file: &str, names: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r", file, "-T", "fields"]);
    command.args(names.iter().flat_map(|name| ["-e", name]));
    let text = check(&mut command)?;
    Ok(text
        .lines()
        .map(|line| line.split('\t').map(ToOwned::to_owned).collect())
        .collect())
}

/// Seconds with nine digits behind the point, in ns: a float is too coarse to compare the last frame with the end.
fn nanoseconds(seconds: &str) -> Result<u64> {
    let (whole, part) = seconds.split_once('.').context("no point")?;
    ensure!(part.len() == 9, "{seconds}");
    Ok(whole.parse::<u64>()? * 1_000_000_000 + part.parse::<u64>()?)
}

/// The bytes of a conversation as tshark reassembles them: the client's lines are not indented, the server's are.
fn follow(file: &str, stream: usize) -> Result<Streams> {
    let text = check(Command::new("tshark").args(["-n", "-r", file, "-q", "-z", &format!("follow,tcp,raw,{stream}")]))?;
    let mut streams = Streams::default();
    for line in text.lines() {
        let digits = line.trim();
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            continue;
        }
        let bytes = digits
            .as_bytes()
            .chunks(2)
            .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
        let bytes = bytes.collect::<Result<Vec<_>>>()?;
        if line.starts_with('\t') {
            streams.1.extend(bytes);
        } else {
            streams.0.extend(bytes);
        }
    }
    Ok(streams)
}

#[test]
fn tshark_reassembles_what_the_client_saw() -> Result<()> {
    if !require_root_net() || !require_program("tshark", "tshark") {
        return Ok(());
    }
    let dir = work_dir("capture")?;
    let log = dir.join("log");
    let namespace = Namespace::create()?;
    let run = Run::inside(&namespace)?.restore(&Booted::get(Kind::Memory)?.snapshot());
    let run = run.record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    let talked = [inside(namespace.name(), talk)?, inside(namespace.name(), talk)?];
    run.terminate()?.report()?;

    let file = dir.join("machine.pcapng").to_string_lossy().into_owned();
    let log = log.to_string_lossy().into_owned();
    let said = Debug::run(["export-pcap", &log, &file])?;
    said.expect(0, "frames received")?;
    for (number, (sent, received)) in talked.iter().enumerate() {
        let (to, from) = follow(&file, number)?;
        println!(
            "stream {number}: {} bytes to Redis, {} bytes back",
            to.len(),
            from.len()
        );
        ensure!(
            to == *sent,
            "stream {number} to Redis: {} bytes of {}",
            to.len(),
            sent.len()
        );
        ensure!(
            from == *received,
            "stream {number} back: {} bytes of {}",
            from.len(),
            received.len()
        );
    }

    // Directions, times, interface and comments, of every frame.
    let names = [
        "frame.time_epoch",
        "frame.packet_flags_direction",
        "frame.interface_name",
        "ip.dst",
        "frame.comment",
    ];
    let frames = fields(&file, &names)?;
    let info = Debug::run(["info", &log, "--json"])?.json()?;
    let start = info["start_ns"].as_u64().context("start_ns")?;
    let took = info["guest_seconds"].as_f64().context("guest_seconds")?;
    let end = start + (took * 1e9).round() as u64;
    let mut times = Vec::new();
    for frame in &frames {
        let [time, direction, interface, destination, comment] = &frame[..] else {
            anyhow::bail!("{frame:?}");
        };
        let inbound = u64::from_str_radix(direction.trim_start_matches("0x"), 16)? == 1;
        ensure!(
            destination.is_empty() || (destination == GUEST_IP) == inbound,
            "{frame:?}"
        );
        ensure!(interface == "nic0" && comment.starts_with("stop "), "{frame:?}");
        times.push(nanoseconds(time).with_context(|| format!("{frame:?}"))?);
    }
    ensure!(
        times.is_sorted() && times.first() >= Some(&start) && times.last() <= Some(&end),
        "{start} {end} {times:?}"
    );
    let inbound = frames.iter().filter(|frame| frame[1].ends_with('1')).count();
    ensure!(
        Some(inbound as u64) == info["frames"].as_u64(),
        "{inbound} frames in: {info:#}"
    );
    ensure!(
        said.messages.contains(&format!(
            "{inbound} frames received and {} sent",
            frames.len() - inbound
        )),
        "{}",
        said.messages
    );

    // A part of it.
    let half = dir.join("half.pcapng").to_string_lossy().into_owned();
    let middle = &frames[frames.len() / 2][0];
    Debug::run(["export-pcap", &log, &half, "--to", &format!("{middle}s")])?.expect(0, "")?;
    let some = fields(&half, &names)?;
    ensure!(
        some.len() < frames.len() && frames[..some.len()] == some && some.len() >= frames.len() / 2,
        "{}",
        some.len()
    );
    Ok(())
}
