//! Both arbiters through one suite; then what each can suffer: writers and servers that are killed or stopped, and
//! certificates that are wrong.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::etcd::{Etcd, Tls};
use lockstep_integration::gate::require_program;
use lockstep_node::arbiter::{Arbiter, ArbiterError, Outcome, REQUEST_TIMEOUT, Record, Spec, TlsFiles, open};
use lockstep_node::pki::{self, Validity};
use lockstep_proto::quantity::Term;
use rustix::process::Signal;

const ROUNDS: u64 = 200;
/// What a request takes beyond its limit on a host that stands still now and then.
const STALL: Duration = Duration::from_secs(10);
/// How long an arbiter may be out of reach for the same reason.
const LIMIT: Duration = Duration::from_secs(120);
/// From one try to reach it to the next.
const AGAIN: Duration = Duration::from_millis(100);

fn record(term: u64, owner: &str) -> Record {
    Record {
        term: Term::new(term),
        owner: owner.into(),
        peer: None,
    }
}

fn require_etcd() -> bool {
    require_program("etcd", "etcd-server")
}

fn open_file(directory: &Path, machine: &str) -> Result<Box<dyn Arbiter>> {
    Ok(open(&Spec::File(directory.into()), None, None, machine)?)
}

fn open_etcd(url: &str, tls: Option<&TlsFiles>, machine: &str) -> Result<Box<dyn Arbiter>> {
    Ok(open(&format!("etcd:{url}").parse()?, tls, None, machine)?)
}

/// Asks again, as nodes do, while the arbiter is out of reach: what was done already is done.
fn persist<T>(mut ask: impl FnMut() -> Result<T, ArbiterError>) -> Result<T, ArbiterError> {
    let begin = Instant::now();
    loop {
        match ask() {
            Err(error) if error.is_unreachable() && begin.elapsed() < LIMIT => {
                eprintln!("once more: {error}");
                std::thread::sleep(AGAIN);
            }
            answer => return answer,
        }
    }
}

/// What every arbiter must do. `open` opens a machine's record, `damage` makes it unreadable behind the arbiter's back.
fn suite(open: &dyn Fn(&str) -> Result<Box<dyn Arbiter>>, damage: &dyn Fn(&str) -> Result<()>) -> Result<()> {
    sets_happen_only_against_what_is_there(open)?;
    one_of_two_wins(open)?;
    a_damaged_record_is_an_error(open, damage)
}

fn sets_happen_only_against_what_is_there(open: &dyn Fn(&str) -> Result<Box<dyn Arbiter>>) -> Result<()> {
    let (mut a, mut b) = (open("one")?, open("one")?);
    let (first, second) = (record(1, "a"), record(2, "b"));
    ensure!(a.read()?.is_none());
    ensure!(
        a.compare_and_set(Some(&first), &second)? == Outcome::Changed(None),
        "a missing record is not any record"
    );
    ensure!(a.read()?.is_none());
    ensure!(a.compare_and_set(None, &first)? == Outcome::Done);
    ensure!(b.read()? == Some(first.clone()));
    ensure!(
        b.compare_and_set(None, &second)? == Outcome::Changed(Some(first.clone())),
        "a record that is there was made again"
    );
    let synced = first.with_peer("b");
    ensure!(a.compare_and_set(Some(&first), &synced)? == Outcome::Done);
    ensure!(b.compare_and_set(Some(&first), &second)? == Outcome::Changed(Some(synced.clone())));
    ensure!(b.compare_and_set(Some(&synced), &second)? == Outcome::Done);
    // As if the answer had been lost; also after the record was made, and when what was expected is long gone.
    ensure!(b.compare_and_set(Some(&synced), &second)? == Outcome::Done);
    ensure!(b.compare_and_set(None, &second)? == Outcome::Done);
    ensure!(a.compare_and_set(Some(&synced), &record(2, "a"))? == Outcome::Changed(Some(second.clone())));
    ensure!(a.read()? == Some(second));
    ensure!(open("two")?.read()?.is_none(), "machines have a record each");
    let unwritable = a.compare_and_set(None, &record(3, "a b"));
    ensure!(matches!(unwritable, Err(ArbiterError::Config { .. })), "{unwritable:?}");
    Ok(())
}

fn one_of_two_wins(open: &dyn Fn(&str) -> Result<Box<dyn Arbiter>>) -> Result<()> {
    let start = Arc::new(Barrier::new(2));
    let compete = |name: &'static str| -> Result<_> {
        let (mut arbiter, start) = (open("race")?, start.clone());
        Ok(std::thread::spawn(move || -> Result<Vec<bool>> {
            let mut last: Option<Record> = None;
            let mut wins = Vec::new();
            for round in 1..=ROUNDS {
                let mine = record(round, name);
                start.wait();
                // The barrier wants both threads in every round, so an error is told after the last.
                match persist(|| arbiter.compare_and_set(last.as_ref(), &mine)) {
                    Ok(Outcome::Done) => {
                        wins.push(true);
                        last = Some(mine);
                    }
                    Ok(Outcome::Changed(now)) => {
                        wins.push(false);
                        last = now;
                    }
                    Err(error) => eprintln!("{name}, round {round}: {error}"),
                }
            }
            ensure!(persist(|| arbiter.read())? == last, "{name} remembers another record");
            Ok(wins)
        }))
    };
    let (a, b) = (compete("a")?, compete("b")?);
    let (a, b) = (
        a.join().ok().context("a panicked")??,
        b.join().ok().context("b panicked")??,
    );
    ensure!(
        a.len() as u64 == ROUNDS && b.len() as u64 == ROUNDS,
        "some rounds had no answer"
    );
    for (round, (a, b)) in a.iter().zip(&b).enumerate() {
        ensure!(a != b, "round {round}: a has won: {a}, b has won: {b}");
    }
    println!("a has won {} of {ROUNDS} rounds", a.iter().filter(|won| **won).count());
    Ok(())
}

fn a_damaged_record_is_an_error(
    open: &dyn Fn(&str) -> Result<Box<dyn Arbiter>>,
    damage: &dyn Fn(&str) -> Result<()>,
) -> Result<()> {
    let mut arbiter = open("damaged")?;
    let first = record(1, "a");
    ensure!(arbiter.compare_and_set(None, &first)? == Outcome::Done);
    damage("damaged")?;
    for _ in 0..2 {
        let read = arbiter.read();
        ensure!(matches!(read, Err(ArbiterError::Damaged { .. })), "{read:?}");
        for expected in [None, Some(&first)] {
            let set = arbiter.compare_and_set(expected, &record(2, "b"));
            ensure!(matches!(set, Err(ArbiterError::Damaged { .. })), "{set:?}");
        }
    }
    Ok(())
}

#[test]
fn the_file_arbiter_passes_the_suite() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let damage = |machine: &str| Ok(std::fs::write(directory.path().join(format!("{machine}.record")), "1")?);
    suite(&|machine| open_file(directory.path(), machine), &damage)
}

#[test]
fn the_etcd_arbiter_passes_the_suite() -> Result<()> {
    if !require_etcd() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let etcd = Etcd::start(directory.path(), None)?;
    let damage = |machine: &str| {
        // `lockstep/damaged/record` and `1`.
        ensure!(machine == "damaged");
        let body = r#"{"key":"bG9ja3N0ZXAvZGFtYWdlZC9yZWNvcmQ=","value":"MQ=="}"#;
        let answer = etcd.post("/v3/kv/put", body)?;
        ensure!(answer.contains("200 OK"), "{answer}");
        Ok(())
    };
    suite(&|machine| open_etcd(&etcd.url(), None, machine), &damage)
}

#[test]
fn a_writer_that_is_killed_at_any_moment_leaves_a_whole_record() -> Result<()> {
    const WRITER: &str = "LOCKSTEP_TEST_WRITER";
    if let Some(directory) = std::env::var_os(WRITER) {
        // The child: takes one term after the other and says so, until it is killed.
        let mut arbiter = open_file(Path::new(&directory), "killed")?;
        let mut now = arbiter.read()?;
        loop {
            let next = now.clone().unwrap_or_default().alone("child");
            ensure!(arbiter.compare_and_set(now.as_ref(), &next)? == Outcome::Done);
            println!("\ndone {}", next.term);
            now = Some(next);
        }
    }
    let directory = tempfile::tempdir()?;
    let mut arbiter = open_file(directory.path(), "killed")?;
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe()?)
            .args([
                "--exact",
                "--nocapture",
                "a_writer_that_is_killed_at_any_moment_leaves_a_whole_record",
            ])
            .env(WRITER, directory.path())
            .stdout(Stdio::piped())
            .spawn()?;
        let said = BufReader::new(child.stdout.take().context("no output")?);
        let mut done = said
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("done ")?.parse::<u64>().ok());
        let mut told = done.nth(round % 5).context("the child did nothing")?;
        // Somewhere in the next term.
        std::thread::sleep(Duration::from_micros(round as u64 * 97));
        child.kill()?;
        child.wait()?;
        told = done.last().unwrap_or(told);
        let found = arbiter.read()?.context("the record is gone")?;
        ensure!(
            found.term == Term::new(told) || found.term == Term::new(told).next(),
            "term {} after {told} was done",
            found.term
        );
    }
    Ok(())
}

#[test]
fn an_etcd_that_is_killed_stopped_or_not_there_is_unreachable_and_a_repeated_set_is_done() -> Result<()> {
    if !require_etcd() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let mut etcd = Etcd::start(directory.path(), None)?;
    let mut arbiter = open_etcd(&etcd.url(), None, "m")?;
    let (first, second, third) = (record(1, "a"), record(2, "a"), record(3, "a"));
    ensure!(arbiter.compare_and_set(None, &first)? == Outcome::Done);

    // Stopped: the request reaches its socket, and may be carried out when it goes on.
    etcd.signal(Signal::STOP)?;
    let begin = Instant::now();
    let set = arbiter.compare_and_set(Some(&first), &second);
    ensure!(matches!(&set, Err(error) if error.is_unreachable()), "{set:?}");
    let took = begin.elapsed();
    ensure!(took < REQUEST_TIMEOUT + STALL, "it took {took:?}");
    etcd.signal(Signal::CONT)?;
    let set = persist(|| arbiter.compare_and_set(Some(&first), &second))?;
    ensure!(set == Outcome::Done, "{set:?}");

    // Killed: what was done is there when it is started again.
    etcd.kill();
    let set = arbiter.compare_and_set(Some(&second), &third);
    ensure!(matches!(&set, Err(error) if error.is_unreachable()), "{set:?}");
    etcd.run()?;
    ensure!(persist(|| arbiter.read())? == Some(second.clone()));
    let set = persist(|| arbiter.compare_and_set(Some(&second), &third))?;
    ensure!(set == Outcome::Done, "{set:?}");

    // Beside one that is not there.
    let spare = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut both = open_etcd(&format!("http://{spare},{}", etcd.url()), None, "m")?;
    ensure!(both.read()? == Some(third));
    Ok(())
}

#[test]
fn another_cluster_than_before_is_not_asked() -> Result<()> {
    if !require_etcd() {
        return Ok(());
    }
    let (one, two) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut first = Etcd::start(one.path(), None)?;
    let second = Etcd::start(two.path(), None)?;
    let mut arbiter = open_etcd(&format!("{},{}", first.url(), second.url()), None, "m")?;
    ensure!(arbiter.compare_and_set(None, &record(1, "a"))? == Outcome::Done);
    first.kill();
    let read = arbiter.read();
    ensure!(
        matches!(&read, Err(error) if error.to_string().contains("another etcd cluster")),
        "{read:?}"
    );
    Ok(())
}

#[test]
fn etcd_with_tls_wants_certificates_of_its_own_ca_and_takes_renewed_ones() -> Result<()> {
    if !require_etcd() {
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let (ours, theirs) = (root.path().join("ours"), root.path().join("theirs"));
    let day = Validity::days(1)?;
    for directory in [&ours, &theirs] {
        pki::init(directory)?;
        for name in ["localhost", "node"] {
            pki::issue(directory, name, day)?;
        }
    }
    let tls = Tls {
        ca: ours.join("ca.pem"),
        cert: ours.join("localhost.pem"),
        key: ours.join("localhost.key"),
    };
    let etcd = Etcd::start(root.path(), Some(tls))?;
    let files = |ca: &Path, client: Option<&Path>| {
        let file = |name: &str| client.map(|directory| directory.join(name));
        TlsFiles::from_paths(Some(ca.join("ca.pem")), file("node.pem"), file("node.key"))
    };

    let good = files(&ours, Some(&ours))?;
    let mut arbiter = open_etcd(&etcd.url(), good.as_ref(), "m")?;
    let first = record(1, "a");
    ensure!(arbiter.compare_and_set(None, &first)? == Outcome::Done);
    ensure!(arbiter.read()? == Some(first.clone()));

    // By an address that its certificate does not have; and with other certificates than it or we should have.
    let by_address = format!("https://{}", etcd.address());
    for (url, tls, reason) in [
        (&by_address, good, "not valid for name"),
        (&etcd.url(), files(&theirs, Some(&ours))?, "UnknownIssuer"),
        (
            &etcd.url(),
            files(&ours, Some(&theirs))?,
            "does not accept this node's certificate",
        ),
        (
            &etcd.url(),
            files(&ours, None)?,
            "does not accept this node's certificate",
        ),
    ] {
        let set = open_etcd(url, tls.as_ref(), "m")?.compare_and_set(Some(&first), &record(2, "b"));
        let refused = matches!(&set, Err(ArbiterError::Refused { reason: why, .. }) if why.contains(reason));
        ensure!(refused, "{reason}: {set:?}");
    }

    // What replaces the files is used at once, and what is no certificate is not.
    std::fs::write(ours.join("node.pem"), "no certificate")?;
    ensure!(arbiter.read()? == Some(first.clone()));
    for file in ["node.pem", "node.key"] {
        std::fs::copy(theirs.join(file), ours.join(file))?;
    }
    ensure!(matches!(arbiter.read(), Err(ArbiterError::Refused { .. })));
    for file in ["node.pem", "node.key"] {
        std::fs::remove_file(ours.join(file))?;
    }
    pki::issue(&ours, "node", day)?;
    ensure!(arbiter.read()? == Some(first));
    Ok(())
}
