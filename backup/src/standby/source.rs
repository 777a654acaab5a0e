//! The log of a primary that is still writing.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use crossbeam_channel::{Receiver, select};
use lockstep_logcodec::{Ending, LogError, Record as LogRecord, StreamChecker};
use lockstep_replay::feed::Source;

use super::{Inlet, Order, Queued, Takeover};

/// Why a live log ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The term is won.
    Promoted(Takeover),
    /// The machine is to be thrown away.
    Discarded,
    /// The process is to end.
    Quit,
}

/// What the one who replays learns about a live log.
#[derive(Debug, Default)]
pub struct Fate {
    /// Why it ended; `None`: it has not.
    pub ended: Option<Ended>,
    /// When its last record came.
    pub last_record: Option<Instant>,
}

/// A log that comes over the link.
pub struct LiveSource {
    inlet: Inlet,
    orders: Receiver<Order>,
    checker: StreamChecker,
    fate: Rc<RefCell<Fate>>,
}

impl LiveSource {
    pub fn new(inlet: Inlet, orders: Receiver<Order>, checker: StreamChecker) -> (Self, Rc<RefCell<Fate>>) {
        let fate = Rc::new(RefCell::new(Fate::default()));
        let source = Self {
            inlet,
            orders,
            checker,
            fate: fate.clone(),
        };
        (source, fate)
    }

    fn take(&mut self, queued: Queued) -> Result<Option<LogRecord>, LogError> {
        self.inlet.rooms.log.give_back(queued.weight);
        self.fate.borrow_mut().last_record = Some(queued.came);
        self.checker.take(&queued.record).map_err(LogError::Refused)?;
        Ok(Some(queued.record))
    }

    fn end(&mut self, why: Ended) {
        self.fate.borrow_mut().ended = Some(why);
    }
}

impl Source for LiveSource {
    fn next_record(&mut self) -> Result<Option<LogRecord>, LogError> {
        loop {
            if let Ok(queued) = self.inlet.log.try_recv() {
                return self.take(queued);
            }
            if self.fate.borrow().ended.is_some() {
                return Ok(None);
            }
            let order = select! {
                recv(self.inlet.log) -> queued => match queued {
                    Ok(queued) => return self.take(queued),
                    // The connection is gone; an order says what becomes of the machine.
                    Err(_) => self.orders.recv(),
                },
                recv(self.orders) -> order => order,
            };
            // Without a link there is nobody to go live for.
            if self.order(order.unwrap_or(Order::Quit)) {
                return Ok(None);
            }
        }
    }

    fn ending(&self) -> Ending {
        Ending::Unfinished
    }

    fn is_given_up(&mut self) -> bool {
        while let Ok(order) = self.orders.try_recv() {
            self.order(order);
        }
        matches!(self.fate.borrow().ended, Some(Ended::Discarded | Ended::Quit))
    }
}

impl LiveSource {
    /// Takes an order in. True when the log ends at once; a promotion first wants what has come.
    fn order(&mut self, order: Order) -> bool {
        match order {
            Order::Promote(takeover) => {
                self.end(Ended::Promoted(takeover));
                false
            }
            Order::Discard => {
                self.end(Ended::Discarded);
                true
            }
            Order::Quit => {
                self.end(Ended::Quit);
                true
            }
            // Nothing of a join comes for a machine that is built.
            Order::Prepare(..) | Order::Pages(..) | Order::Chunk(..) | Order::Build(_) => false,
        }
    }
}
