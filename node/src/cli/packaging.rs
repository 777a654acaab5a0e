//! What packagers take from the programs: completions for shells, and manual pages.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use clap_complete::Shell;

use crate::out::Out;

/// Not for users: they are not in the help.
#[derive(Subcommand)]
pub enum PackagingCommand {
    /// Print this program's completions for a shell.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write this program's manual pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory; it is made if it is not there.
        directory: PathBuf,
    },
}

/// Does it for `program`.
pub fn run(command: &PackagingCommand, mut program: clap::Command) -> Result<()> {
    match command {
        PackagingCommand::Completions { shell } => {
            let name = program.get_name().to_owned();
            // clap_complete panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut program, name, &mut script);
            Out.write_all(&script)?;
            Ok(())
        }
        PackagingCommand::Man { directory } => std::fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(program, directory))
            .with_context(|| format!("cannot write manual pages into {}", directory.display())),
    }
}
