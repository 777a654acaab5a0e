//! Disks of a pair: copied whole while they are written, and what becomes of the pair where one of them fails.

use std::time::Instant;

use anyhow::{Result, ensure};
use lockstep_integration::gate::{require_file, require_loop_device, require_root_net, rounds};
use lockstep_integration::pair::{
    Alone, FailingDisk, Fault, FaultyDisk, Journal, LIMIT, Node, Protected, Proxy, SOME, Scene, Setup, Weather,
};
use lockstep_integration::random::Random;

/// Reads what the guest has not read before.
const READ: &str = "dd if=/dev/vda of=/dev/null bs=65536 count=16 skip=400 && echo HAS''READ || echo CANNOT''READ\n";

/// Writes much that is written only once: what a copy lacks is not made good later.
const WRITE: &str =
    "for i in $(seq 6); do dd if=/bin/busybox of=/data/f$i bs=4096 count=16 skip=$i; fsync /data/f$i; done &\n";

/// The programs tell so many messages of one place in their code ...
const MOST_TOLD: usize = 30;
/// ... in so many seconds.
const WINDOW: usize = 10;

/// Has the guest's shell wait for a newline before it does `what`. Typed text enters bit by bit, and where a disk fails first,
/// what Redis writes may have the machine handed over before all of it has: the rest would be lost with the host.
fn type_ahead(node: &mut Node, what: &str) -> Result<()> {
    node.run.type_text(&format!("echo WAIT''ING; read GO; {what}"))?;
    node.run.wait_for("WAITING", LIMIT)
}

/// Keeps the guest's kernel from telling of errors between the letters of what a test waits for.
fn quiet(node: &mut Node) -> Result<()> {
    node.run.type_text("dmesg -n 1; echo QUI''ET\n")?;
    node.run.wait_for("QUIET", LIMIT)
}

/// The guest writes while its disk is copied to a blank one, over a network where what is sent later often comes first.
#[test]
fn a_disk_is_copied_whole_while_it_is_written() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let weather = Weather {
        late: 300,
        ..Weather::default()
    };
    let mut scene = Setup::new("pair-copy").disk().build()?;
    let namespace = &scene.pair.network.hosts[0].namespace;
    let proxy = Proxy::start(namespace, scene.pair.address(1), weather, Random::seeded())?;
    scene.pair.route(0, proxy.address());
    let mut primary = scene.start_primary(0)?;
    Journal::start(&mut primary)?;
    primary.run.type_text(WRITE)?;
    let backup = scene.start_backup(1)?;
    primary.wait_until_protected_by(&backup)?;
    let overtaken = proxy.overtaken();
    println!("{overtaken} packets were overtaken");
    ensure!(
        overtaken > SOME,
        "{overtaken} packets were overtaken: this network keeps an order"
    );
    let counter = scene.count()?;
    Protected::new(scene, primary, backup, counter)?.settle_with_disks()
}

/// Hosts, with a disk that can fail on `host`, and what makes it fail.
fn scene_with_failing_disk(name: &str, host: usize) -> Result<(Scene, FailingDisk)> {
    let mut scene = Setup::new(name).disk().build()?;
    let failing = FailingDisk::new(scene.pair.dir())?;
    if let Some(disks) = &mut scene.disks {
        scene.pair.prepare(host, failing.script(&disks[host]));
        disks[host] = failing.image();
    }
    Ok((scene, failing))
}

/// The same with a protected machine.
fn with_failing_disk(name: &str, host: usize) -> Result<(Protected, FailingDisk)> {
    let (scene, failing) = scene_with_failing_disk(name, host)?;
    Ok((scene.open()?, failing))
}

/// The backup's disk fails as soon as the guest does `what`: the session ends and says why, and the primary goes on with
/// all that it has.
fn backup_fails(name: &str, what: &str) -> Result<()> {
    if !require_root_net() || !require_loop_device() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let (protected, failing) = with_failing_disk(name, 1)?;
        protected.check_one_live()?;
        failing.fail(&protected.backup)?;
        let Protected {
            mut primary,
            backup,
            counter,
            mut scene,
            ..
        } = protected;
        primary.run.type_text(what)?;
        primary.wait_for_state("not-protected (refused: this node's disk has failed", LIMIT)?;
        backup.run.messages.wait_for("disk request failed", LIMIT)?;
        counter.wait_for(SOME, LIMIT)?;
        scene.kill(backup)?;
        println!("{}", primary.state());
        ensure!(counter.finish()?.broken == 0, "the connection broke");
    }
    Ok(())
}

#[test]
fn a_backup_that_cannot_read_its_disk_ends_the_session() -> Result<()> {
    backup_fails("pair-read-error", READ)
}

#[test]
fn a_backup_that_cannot_write_its_disk_ends_the_session() -> Result<()> {
    backup_fails(
        "pair-write-error",
        "echo text >/data/file && fsync /data/file && echo WRIT''TEN\n",
    )
}

/// The primary's disk fails: the guest does not notice, as the backup, whose disk is good, goes on with it.
#[test]
fn a_primary_that_cannot_read_its_disk_hands_over() -> Result<()> {
    if !require_root_net() || !require_loop_device() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let (protected, failing) = with_failing_disk("pair-primary-error", 0)?;
        let Protected {
            mut primary,
            backup,
            counter,
            scene,
            ..
        } = protected;
        type_ahead(&mut primary, READ)?;
        failing.fail(&primary)?;
        primary.run.type_text("\n")?;
        let mut live = Alone::new(scene, backup, counter)?;
        // The first may have come too late; a shell takes one more for nothing.
        live.live.run.type_text("\n")?;
        live.live.run.wait_for("HASREAD", LIMIT)?;
        primary.wait_for_state("frozen (lost-term)", LIMIT)?;
        ensure!(!primary.run.console.text().contains("CANNOTREAD"), "the guest was told");
        live.settle()?;
    }
    Ok(())
}

/// Without a backup the guest is told, as by a disk of its own.
#[test]
fn a_machine_alone_is_told_of_its_disk() -> Result<()> {
    if !require_root_net() || !require_loop_device() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let (mut protected, failing) = with_failing_disk("pair-alone-error", 0)?;
        quiet(&mut protected.primary)?;
        // Its Redis would write, which fails, too.
        protected.counter.set_silent(true);
        let done = protected.scene.pair.operate(0, &["suspend"])?;
        ensure!(done.status.success(), "{done:?}");
        let primary = &mut protected.primary;
        primary.wait_for_state("not-protected (suspended-by-user) term=2", LIMIT)?;
        failing.fail(primary)?;
        primary.run.type_text(READ)?;
        primary.run.wait_for("CANNOTREAD", LIMIT)?;
    }
    Ok(())
}

/// What a guest can have its host tell again and again does not fill the host's log.
#[test]
fn a_guest_that_reads_a_failing_disk_on_and_on_is_told_of_now_and_then() -> Result<()> {
    if !require_root_net() || !require_loop_device() {
        return Ok(());
    }
    let (scene, failing) = scene_with_failing_disk("pair-log-limit", 0)?;
    let mut primary = scene.start_primary(0)?;
    primary.wait_for_state("not-protected (need-backup)", LIMIT)?;
    quiet(&mut primary)?;
    failing.fail(&primary)?;
    let begin = Instant::now();
    primary.run.type_text(
        "dd if=/dev/vda of=/dev/null bs=4096 count=200 skip=6400 iflag=direct conv=noerror 2>/dev/null; echo ALL-$((100 + 100))\n",
    )?;
    primary.run.wait_for("ALL-200", LIMIT)?;
    primary.run.messages.wait_for("more suppressed", LIMIT)?;
    let windows = begin.elapsed().as_secs() as usize / WINDOW + 1;
    let told = primary.run.messages.text().matches("disk request failed").count();
    println!("told {told} times in {windows} windows");
    ensure!(
        told >= MOST_TOLD && told <= MOST_TOLD * windows,
        "told {told} times in {windows} windows"
    );
    Ok(())
}

/// A disk that cannot be copied is no reason for the machine to end.
#[test]
fn a_primary_whose_disk_cannot_be_copied_goes_on_alone() -> Result<()> {
    if !require_root_net() || !require_loop_device() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let (scene, failing) = scene_with_failing_disk("pair-copy-error", 0)?;
        let mut primary = scene.start_primary(0)?;
        primary.wait_for_state("not-protected (need-backup)", LIMIT)?;
        quiet(&mut primary)?;
        failing.fail(&primary)?;
        let _backup = scene.start_backup(1)?;
        primary
            .run
            .messages
            .wait_for("a join has failed: this host's disk", LIMIT)?;
        primary.run.type_text("echo ALI''VE\n")?;
        primary.run.wait_for("ALIVE", LIMIT)?;
    }
    Ok(())
}

/// A backup's disk with less room than the machine's has data.
#[test]
fn a_backup_without_room_is_refused_and_joins_when_it_has_some() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let mut scene = Setup::new("pair-no-room").disk().build()?;
        let Some([_, second]) = scene.disks.clone() else {
            return Ok(());
        };
        let small = scene.pair.dir().join("small");
        std::fs::create_dir(&small)?;
        let (small, image) = (small.display(), small.join("disk.img"));
        let bytes = std::fs::metadata(&second)?.len();
        let script = format!(
            "mount -t tmpfs -o size=256k none {small}; truncate -s {bytes} {}",
            image.display()
        );
        scene.pair.prepare(1, script);
        let backup = scene.pair.start_backup(1, |run| run.disk(&image))?;
        let primary = scene.start_primary(0)?;
        primary.wait_for_state("not-protected (refused: ", LIMIT)?;
        ensure!(
            primary.state().contains("No space left on device"),
            "{}",
            primary.state()
        );
        let counter = scene.count()?;
        scene.kill(backup)?;
        scene.pair.prepare(1, ":".into());
        let backup = scene.start_backup(1)?;
        primary.wait_for_state("protected", LIMIT)?;
        Protected::new(scene, primary, backup, counter)?.settle_with_disks()?;
    }
    Ok(())
}

/// A primary's disk with less room than the guest then wants: it is handed over, and does not notice.
#[test]
fn a_primary_without_room_hands_over() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let mut scene = Setup::new("pair-primary-no-room").disk().build()?;
        let small = scene.pair.dir().join("small");
        std::fs::create_dir(&small)?;
        if let Some(disks) = &mut scene.disks {
            let image = small.join("disk.img");
            // What the machine has on it takes 300 KiB.
            let script = format!(
                "mount -t tmpfs -o size=1m none {}; cp --sparse=always {} {}",
                small.display(),
                disks[0].display(),
                image.display()
            );
            scene.pair.prepare(0, script);
            disks[0] = image;
        }
        let Protected {
            mut primary,
            backup,
            counter,
            scene,
            ..
        } = scene.open()?;
        primary
            .run
            .type_text("cat /bin/busybox /bin/busybox >/data/big && fsync /data/big && echo WRIT''TEN\n")?;
        let alone = Alone::new(scene, backup, counter)?;
        alone.live.run.wait_for("WRITTEN", LIMIT)?;
        primary.run.messages.wait_for("No space left on device", LIMIT)?;
        alone.settle()?;
    }
    Ok(())
}

/// Writes something, and has it on the disk before it says so.
const WRITE_AND_SYNC: &str = "echo text >/data/file && fsync /data/file && echo WRIT''TEN || echo CANNOT''WRITE\n";

/// A protected machine whose image on `host` fails when it is told to.
fn with_faulty_disk(name: &str, host: usize) -> Result<(Protected, FaultyDisk)> {
    let mut scene = Setup::new(name).disk().build()?;
    let Some(disks) = &mut scene.disks else {
        anyhow::bail!("the machine has no disk");
    };
    let faulty = FaultyDisk::new(&disks[host])?;
    faulty.path().clone_into(&mut disks[host]);
    Ok((scene.open()?, faulty))
}

/// The primary's disk refuses to write or to sync: the guest does not notice, as the backup does what it asked for.
fn primary_fails(name: &str, fault: Fault) -> Result<()> {
    if !require_root_net() || !require_file("/dev/fuse", "none: FUSE of the kernel") {
        return Ok(());
    }
    for _ in 0..rounds() {
        let (protected, faulty) = with_faulty_disk(name, 0)?;
        let Protected {
            mut primary,
            backup,
            counter,
            scene,
            ..
        } = protected;
        type_ahead(&mut primary, WRITE_AND_SYNC)?;
        faulty.fail(fault);
        primary.run.type_text("\n")?;
        let mut live = Alone::new(scene, backup, counter)?;
        // The first may have come too late; a shell takes one more for nothing.
        live.live.run.type_text("\n")?;
        live.live.run.wait_for("WRITTEN", LIMIT)?;
        primary.run.messages.wait_for("disk request failed", LIMIT)?;
        primary.wait_for_state("frozen (lost-term)", LIMIT)?;
        for node in [&primary, &live.live] {
            let console = node.run.console.text();
            ensure!(!console.contains("CANNOTWRITE"), "the guest was told: {console}");
        }
        live.settle()?;
    }
    Ok(())
}

/// The backup's disk refuses: the session ends and says why, and the machine goes on where it is.
fn backup_refuses(name: &str, fault: Fault) -> Result<()> {
    if !require_root_net() || !require_file("/dev/fuse", "none: FUSE of the kernel") {
        return Ok(());
    }
    for _ in 0..rounds() {
        let (protected, faulty) = with_faulty_disk(name, 1)?;
        faulty.fail(fault);
        let Protected {
            mut primary,
            backup,
            counter,
            scene,
            ..
        } = protected;
        primary.run.type_text(WRITE_AND_SYNC)?;
        primary.wait_for_state("not-protected (refused: this node's disk has failed", LIMIT)?;
        backup.run.messages.wait_for("disk request failed", LIMIT)?;
        primary.run.wait_for("WRITTEN", LIMIT)?;
        counter.wait_for(SOME, LIMIT)?;
        let tally = counter.finish()?;
        ensure!(tally.broken == 0 && tally.jumps == 0, "{tally:?}");
        drop((primary, backup, scene));
    }
    Ok(())
}

#[test]
fn a_primary_whose_writes_fail_hands_over() -> Result<()> {
    primary_fails("pair-primary-write", Fault::Writes)
}

#[test]
fn a_primary_whose_syncs_fail_hands_over() -> Result<()> {
    primary_fails("pair-primary-sync", Fault::Syncs)
}

#[test]
fn a_backup_whose_writes_fail_ends_the_session() -> Result<()> {
    backup_refuses("pair-backup-write", Fault::Writes)
}

#[test]
fn a_backup_whose_syncs_fail_ends_the_session() -> Result<()> {
    backup_refuses("pair-backup-sync", Fault::Syncs)
}
