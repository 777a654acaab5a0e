//! An arbiter on its own thread, so that neither the vCPU nor the network ever waits for one.
//!
//! Invariants:
//! - A request is either not taken, or answered exactly once, on the arbiter's thread: even if that thread dies.
//! - Requests are done one after the other, in the order in which they were taken.
//! - At most [`QUEUE`] requests wait.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use thiserror::Error;

use super::{Arbiter, ArbiterError, Outcome, Record};
use crate::sandbox::{self, Kind};

/// Most requests that wait. A session has one under way, and looks at the record now and then for its status.
pub const QUEUE: usize = 4;

/// What is called with the answer, on the arbiter's thread: it hands it on and returns, since others wait for it.
pub type Answer<T> = Box<dyn FnOnce(Result<T, ArbiterError>) + Send>;

/// Why a request was not taken. Its answer is never called.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NotQueued {
    /// As many requests as may wait are waiting.
    #[error("{QUEUE} requests are already waiting for the arbiter; ask again when one of them was answered")]
    Busy,
    /// The thread is gone.
    #[error("the arbiter's thread has ended; start this process again")]
    Stopped,
}

enum Request {
    Read(Reply<Option<Record>>),
    Set(Option<Record>, Record, Reply<Outcome>),
}

/// An answer that is given even if nobody lives to give it.
struct Reply<T> {
    answer: Option<Answer<T>>,
    arbiter: String,
}

impl<T> Reply<T> {
    fn give(mut self, result: Result<T, ArbiterError>) {
        if let Some(answer) = self.answer.take() {
            answer(result);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer(Err(ArbiterError::Unreachable {
                arbiter: std::mem::take(&mut self.arbiter),
                reason: "this process' arbiter thread has ended".into(),
            }));
        }
    }
}

/// A handle to an arbiter's thread. The thread ends when the last handle is dropped and what it had taken is done; a
/// drop does not wait for that.
#[derive(Clone, Debug)]
pub struct ArbiterThread {
    requests: Sender<Request>,
    description: String,
}

impl ArbiterThread {
    /// Starts the thread.
    pub fn start(arbiter: Box<dyn Arbiter>) -> io::Result<Self> {
        let (requests, taken) = bounded(QUEUE);
        let description = arbiter.describe();
        sandbox::spawn(Kind::Network, "arbiter", move || serve(arbiter, &taken))?;
        Ok(Self { requests, description })
    }

    /// Asks for the record. Never waits.
    pub fn read(
        &self,
        answer: impl FnOnce(Result<Option<Record>, ArbiterError>) + Send + 'static,
    ) -> Result<(), NotQueued> {
        self.send(Request::Read(self.reply(answer)))
    }

    /// Asks for a compare-and-set. Never waits.
    pub fn compare_and_set(
        &self,
        expected: Option<Record>,
        new: Record,
        answer: impl FnOnce(Result<Outcome, ArbiterError>) + Send + 'static,
    ) -> Result<(), NotQueued> {
        self.send(Request::Set(expected, new, self.reply(answer)))
    }

    /// As [`Arbiter::describe`].
    pub fn describe(&self) -> &str {
        &self.description
    }

    fn reply<T>(&self, answer: impl FnOnce(Result<T, ArbiterError>) + Send + 'static) -> Reply<T> {
        Reply {
            answer: Some(Box::new(answer)),
            arbiter: self.description.clone(),
        }
    }

    fn send(&self, request: Request) -> Result<(), NotQueued> {
        let (mut request, why) = match self.requests.try_send(request) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(request)) => (request, NotQueued::Busy),
            Err(TrySendError::Disconnected(request)) => (request, NotQueued::Stopped),
        };
        // The caller learns it from the return value, and from that alone.
        match &mut request {
            Request::Read(reply) => drop(reply.answer.take()),
            Request::Set(_, _, reply) => drop(reply.answer.take()),
        }
        Err(why)
    }
}

fn serve(mut arbiter: Box<dyn Arbiter>, requests: &Receiver<Request>) {
    for request in requests {
        // A panic ends this one request; the next may well succeed, and without an arbiter no failover would.
        let done = catch_unwind(AssertUnwindSafe(|| match request {
            Request::Read(reply) => reply.give(arbiter.read()),
            Request::Set(expected, new, reply) => reply.give(arbiter.compare_and_set(expected.as_ref(), &new)),
        }));
        if done.is_err() {
            tracing::error!("a request to the arbiter {} panicked", arbiter.describe());
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::Term;

    use super::*;
    use std::time::Duration;

    /// Waits for permission before each answer; panics on a record of term 13.
    struct Slow(Receiver<()>);

    impl Arbiter for Slow {
        fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
            let _ = self.0.recv();
            Ok(None)
        }

        fn compare_and_set(&mut self, _: Option<&Record>, new: &Record) -> Result<Outcome, ArbiterError> {
            assert_ne!(new.term, Term::new(13), "as the test wants it");
            Ok(Outcome::Changed(Some(new.clone())))
        }

        fn describe(&self) -> String {
            "slow".into()
        }
    }

    const LONG: Duration = Duration::from_secs(10);

    fn term(term: u64) -> Record {
        Record {
            term: Term::new(term),
            ..Record::default()
        }
    }

    #[test]
    fn requests_do_not_wait_are_answered_in_order_and_are_bounded() {
        let (allow, allowed) = bounded(100);
        let (tell, told) = bounded(100);
        let thread = ArbiterThread::start(Box::new(Slow(allowed))).unwrap();
        assert_eq!(thread.describe(), "slow");
        let mut queued = 0;
        // One is taken from the queue sooner or later, all others wait in it.
        let refused = loop {
            let tell = tell.clone();
            match thread.read(move |answer| {
                // Fails only when the test has.
                let _ = tell.send((queued, answer.is_ok()));
            }) {
                Ok(()) => queued += 1,
                Err(why) => break why,
            }
            assert!(queued <= QUEUE + 1, "the queue is not bounded");
        };
        assert_eq!(refused, NotQueued::Busy);
        assert!(queued >= QUEUE);
        assert!(told.try_recv().is_err(), "answered before the arbiter did");
        for _ in 0..queued {
            allow.send(()).unwrap();
        }
        for index in 0..queued {
            assert_eq!(told.recv_timeout(LONG).unwrap(), (index, true));
        }
    }

    #[test]
    fn a_panic_is_an_answer_too_and_the_next_request_is_served() {
        let (_allow, allowed) = bounded(1);
        let (tell, told) = bounded(2);
        let thread = ArbiterThread::start(Box::new(Slow(allowed))).unwrap();
        for number in [13, 14] {
            let tell = tell.clone();
            let answer = move |answer| drop(tell.send(answer));
            thread.compare_and_set(None, term(number), answer).unwrap();
        }
        let first = told.recv_timeout(LONG).unwrap().unwrap_err();
        assert!(first.is_unreachable(), "{first}");
        assert_eq!(
            told.recv_timeout(LONG).unwrap().unwrap(),
            Outcome::Changed(Some(term(14)))
        );
    }

    #[test]
    fn what_was_taken_is_done_after_the_last_handle_is_gone() {
        let (allow, allowed) = bounded(1);
        let (tell, told) = bounded(1);
        let thread = ArbiterThread::start(Box::new(Slow(allowed))).unwrap();
        thread.read(move |answer| drop(tell.send(answer))).unwrap();
        drop(thread);
        allow.send(()).unwrap();
        assert_eq!(told.recv_timeout(LONG).unwrap().unwrap(), None);
    }
}
