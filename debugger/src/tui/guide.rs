//! The machine behind the screen: a thread that takes the timeline where the cursor is.
//!
//! Invariant: only the last place that was asked for counts. A walk to another one is given up, so that the screen never
//! waits for a replay.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lockstep_proto::quantity::StopNumber;

use super::scene::{Printed, Scene};
use crate::show::{self, kernel::Kernel};
use crate::timeline::{Goal, Point, Reached, Timeline, TimelineOptions};

/// What the thread tells.
pub enum News {
    /// It stands where it was sent.
    Arrived(Box<Scene>),
    /// It is on its way, at this stop.
    Walking(StopNumber),
    /// The replay has failed, for this reason: nothing comes any more.
    Failed(String),
}

/// Where to go.
#[derive(Default)]
struct Wish {
    stop: Option<StopNumber>,
    quit: bool,
}

/// The thread.
pub struct Guide {
    wish: Arc<(Mutex<Wish>, Condvar)>,
    /// What it tells.
    pub news: Receiver<News>,
    /// What the guest has printed, as far as it was replayed.
    pub printed: Arc<Mutex<Printed>>,
    thread: Option<JoinHandle<()>>,
}

impl Guide {
    /// Opens the recording. Returns when it is open.
    pub fn start(directory: PathBuf, options: TimelineOptions, vmlinux: Option<PathBuf>) -> Result<Self> {
        let wish = Arc::new((Mutex::new(Wish::default()), Condvar::new()));
        let printed = Arc::new(Mutex::new(Printed::default()));
        let (tell, news) = channel();
        let (opened, is_open) = channel();
        let (wishes, console) = (wish.clone(), printed.clone());
        let thread = std::thread::Builder::new().name("guide".into()).spawn(move || {
            // The machine belongs to the thread that opens it.
            let parts = Timeline::open(&directory, &options).and_then(|timeline| {
                let kernel = show::kernel(vmlinux.as_deref(), timeline.identity())?;
                Ok((timeline, kernel))
            });
            let (timeline, kernel) = match parts {
                Ok(parts) => {
                    let _ = opened.send(Ok(()));
                    parts
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                    return;
                }
            };
            if let Err(error) = lead(timeline, kernel.as_ref(), &wishes, &console, &tell) {
                let _ = tell.send(News::Failed(format!("{error:#}")));
            }
        })?;
        is_open.recv().context("the replay's thread has ended")??;
        Ok(Self {
            wish,
            news,
            printed,
            thread: Some(thread),
        })
    }

    /// Sends it to a stop.
    pub fn go(&self, stop: StopNumber) {
        let (wish, bell) = &*self.wish;
        wish.lock().unwrap_or_else(PoisonError::into_inner).stop = Some(stop);
        bell.notify_one();
    }
}

impl Drop for Guide {
    fn drop(&mut self) {
        let (wish, bell) = &*self.wish;
        wish.lock().unwrap_or_else(PoisonError::into_inner).quit = true;
        bell.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lead(
    mut timeline: Timeline,
    kernel: Option<&Kernel>,
    wishes: &(Mutex<Wish>, Condvar),
    printed: &Arc<Mutex<Printed>>,
    tell: &Sender<News>,
) -> Result<()> {
    let console = printed.clone();
    timeline.on_console(move |stop, bytes| {
        console.lock().unwrap_or_else(PoisonError::into_inner).add(stop, bytes);
    });
    let (wish, bell) = wishes;
    loop {
        let stop = {
            let waiting = wish.lock().unwrap_or_else(PoisonError::into_inner);
            let mut waiting = bell
                .wait_while(waiting, |wish| wish.stop.is_none() && !wish.quit)
                .unwrap_or_else(PoisonError::into_inner);
            match waiting.stop.take() {
                Some(stop) if !waiting.quit => stop,
                _ => return Ok(()),
            }
        };
        let begin = Instant::now();
        let mut told = begin;
        let goal = Goal::Point(Point::at(stop));
        let reached = timeline.seek(goal, &mut |timeline| {
            if told.elapsed() > Duration::from_millis(200) {
                told = Instant::now();
                // A screen that is gone is told by `quit`.
                let _ = tell.send(News::Walking(timeline.point().stop));
            }
            let wish = wish.lock().unwrap_or_else(PoisonError::into_inner);
            wish.stop.is_none() && !wish.quit
        })?;
        match reached {
            Reached::Interrupted => {}
            Reached::Goal | Reached::End => {
                let scene = Scene::of(&mut timeline, kernel, begin.elapsed())?;
                if tell.send(News::Arrived(Box::new(scene))).is_err() {
                    bail!("the screen is gone");
                }
            }
        }
    }
}
