//! What a node tells over its socket, asked now and then.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};
use lockstep_integration::pair::{number, status};

use crate::pairs::median;

/// From one look at the lag to the next.
const EVERY: Duration = Duration::from_millis(50);

/// Looks at a primary's lag, in a thread.
pub struct LagWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<f64>>>,
}

impl LagWatch {
    /// Begins.
    pub fn start(socket: PathBuf) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::Builder::new().name("lag".into()).spawn(move || {
            let mut lags = Vec::new();
            while !told.load(Ordering::Relaxed) {
                lags.push(number(&status(&socket)?, "lag_ms")?);
                std::thread::sleep(EVERY);
            }
            Ok(lags)
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends. Returns the lags in milliseconds.
    pub fn finish(self) -> Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(lags) => lags,
            Err(_) => bail!("the thread that looks at the lag panicked"),
        }
    }
}

/// A value that `share` (0 to 1) of the values do not exceed.
pub fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let wanted = (values.len() as f64 * share).ceil() as usize;
    values.get(wanted.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// How much more the lag is in the last third of a run than in the first, in the middle.
pub fn growth(lags: &[f64]) -> f64 {
    let third = lags.len() / 3;
    median(lags[lags.len() - third..].iter().copied()) - median(lags[..third].iter().copied())
}
