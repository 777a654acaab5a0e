//! What operators ask of a running node. The end of the link that runs just now hears it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// What an operator asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Let the backup go on with the machine; this node becomes its backup.
    Switchover,
    /// End this process as a crash would: a drill.
    TestFailover,
    /// Give protection up until [`Request::Resume`]: the machine goes on alone.
    Suspend,
    /// Take a backup again.
    Resume,
    /// Ask the guest to shut down, and end it by force after this long; with zero, at once.
    Shutdown(Duration),
}

/// A request, and where its answer goes: `Ok` when it was begun, or why it was not.
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// Requests on their way to whichever end of the link runs.
#[derive(Clone, Default)]
pub struct Control(Arc<Mutex<Option<mpsc::UnboundedSender<Asked>>>>);

impl Control {
    /// Requests come to the caller from now on.
    pub fn connect(&self) -> mpsc::UnboundedReceiver<Asked> {
        let (sender, requests) = mpsc::unbounded_channel();
        if let Ok(mut current) = self.0.lock() {
            *current = Some(sender);
        }
        requests
    }

    /// Asks, and waits for nothing.
    pub fn tell(&self, request: Request) {
        let (answer, _) = oneshot::channel();
        if let Ok(current) = self.0.lock()
            && let Some(sender) = current.as_ref()
        {
            // Who has ended needs not hear it.
            let _ = sender.send(Asked { request, answer });
        }
    }

    /// Asks, and waits until it was begun or refused; the reason then. Not for threads of a tokio runtime.
    pub fn ask(&self, request: Request) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let sent = match self.0.lock() {
            Ok(current) => current.as_ref().map(|sender| sender.send(Asked { request, answer })),
            Err(_) => None,
        };
        match sent {
            Some(Ok(())) => answered
                .blocking_recv()
                .unwrap_or_else(|_| Err("this node is ending".into())),
            _ => Err("this node runs no machine and stands by for none".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_hears_before_and_after() {
        let control = Control::default();
        assert!(control.ask(Request::Switchover).is_err());
        drop(control.connect());
        assert!(control.ask(Request::Switchover).is_err());
    }

    #[test]
    fn the_newest_end_hears() {
        let control = Control::default();
        let mut old = control.connect();
        let mut new = control.connect();
        let asker = std::thread::spawn(move || control.ask(Request::Suspend));
        let asked = new.blocking_recv().unwrap();
        assert_eq!(asked.request, Request::Suspend);
        asked.answer.send(Err("no".into())).unwrap();
        assert_eq!(asker.join().unwrap(), Err("no".into()));
        assert!(old.blocking_recv().is_none());
    }
}
