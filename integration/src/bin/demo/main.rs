//! `lockstep-demo`: a pair runs Redis; a client counts on one connection while both hosts are killed, one after the
//! other.

mod display;
mod logs;
mod stage;
mod table;

use std::process::ExitCode;

use lockstep_integration::signals;

fn main() -> ExitCode {
    let result = signals::on_end().and_then(|stopped| stage::play(&stopped));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("lockstep-demo: {error:#}");
            ExitCode::from(1)
        }
    }
}
