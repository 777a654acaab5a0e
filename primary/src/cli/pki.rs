//! `lockstep-primary pki`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use lockstep_node::pki::{self, DEFAULT_DAYS, Issued, MAX_DAYS, Validity};
use lockstep_node::say;

/// What to make.
#[derive(Args)]
pub struct PkiOptions {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Subcommand)]
enum PkiCommand {
    /// Make the deployment's CA: ca.pem, which every node needs, and ca.key, which stays here.
    Init {
        /// Directory of the certificates; it is made if it is not there.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make a certificate and a key for a node: NAME.pem and NAME.key.
    Issue(NodeOptions),
    /// Make a new certificate and a new key for a node that has them.
    Renew(NodeOptions),
}

#[derive(Args)]
struct NodeOptions {
    /// The node's name, which its peer expects: lower-case letters, digits, `-` and `.`.
    name: String,
    /// Directory of the certificates, with the CA's.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Days that the certificate is valid; never longer than the CA's.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_DAYS, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    days: u32,
    /// Seconds instead, for tests.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400), hide = true, conflicts_with = "days")]
    seconds: Option<u64>,
}

impl NodeOptions {
    fn validity(&self) -> Result<Validity, pki::PkiError> {
        match self.seconds {
            Some(seconds) => Validity::from_now(Duration::from_secs(seconds)),
            None => Validity::days(self.days),
        }
    }
}

/// Makes it.
pub fn run(options: &PkiOptions) -> Result<()> {
    match &options.command {
        PkiCommand::Init { dir } => {
            tell_issued(&pki::init(dir)?);
            say!(
                "next: lockstep-primary pki issue NAME --dir {}, once for each node",
                dir.display()
            );
        }
        PkiCommand::Issue(node) => {
            tell_issued(&pki::issue(&node.dir, &node.name, node.validity()?)?);
            say!("next: copy both and {} to that node", node.dir.join("ca.pem").display());
        }
        PkiCommand::Renew(node) => {
            tell_issued(&pki::renew(&node.dir, &node.name, node.validity()?)?);
            say!("next: copy both to that node; it reads them by itself, the key last");
        }
    }
    Ok(())
}

fn tell_issued(issued: &Issued) {
    let (cert, key) = (issued.cert.display(), issued.key.display());
    say!("{cert} is valid until {}; its key is {key}", issued.not_after);
}
