//! Certificates that end and are renewed while a pair runs.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::{require_root_net, soak};
use lockstep_integration::pair::{LIMIT, Pair, Protected, SOME, Setup};
use lockstep_integration::paths::program;
use lockstep_integration::process::check;

/// Renews both hosts' certificates; with the usual length if none is given.
fn renew(pair: &Pair, length: Option<Duration>) -> Result<()> {
    for node in ["a", "b"] {
        let mut command = Command::new(program("lockstep-primary")?);
        command
            .args(["pki", "renew", node, "--dir"])
            .arg(pair.dir().join("pki"));
        if let Some(length) = length {
            command.args(["--seconds", &length.as_secs().to_string()]);
        }
        check(&mut command)?;
    }
    Ok(())
}

fn ask(protected: &Protected, word: &str) -> Result<()> {
    let done = protected.scene.pair.operate(protected.primary.host, &[word])?;
    ensure!(
        done.status.success(),
        "{word}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// A certificate that ends does not end the protection that it was used for; a new connection is refused, with the
/// reason, until there is a new one, which both programs take by themselves.
#[test]
fn a_certificate_ends_and_is_renewed() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let length = Duration::from_secs(if soak() { 120 } else { 5 });
    let protected = Setup::new("pair-certificates").open()?;
    let pair = &protected.scene.pair;
    renew(pair, Some(length))?;
    protected
        .backup
        .run
        .messages
        .wait_for("the renewed certificate is in use", LIMIT)?;
    // The only event is that time goes by.
    std::thread::sleep(length + Duration::from_secs(1));
    ensure!(
        protected.primary.state() == "protected term=1",
        "{}",
        protected.primary.state()
    );
    protected.counter.wait_for(SOME, LIMIT)?;
    ask(&protected, "suspend")?;
    protected
        .primary
        .wait_for_state("not-protected (suspended-by-user) term=2", LIMIT)?;
    ask(&protected, "resume")?;
    protected.primary.run.messages.wait_for("certificate expired", LIMIT)?;
    ensure!(
        protected.primary.state().starts_with("not-protected"),
        "{}",
        protected.primary.state()
    );
    renew(pair, None)?;
    protected.primary.wait_for_state("protected term=2", LIMIT)?;
    protected.kill_primary()?.settle()
}
