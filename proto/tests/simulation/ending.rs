//! How a simulated machine ends: its guest resets or powers off, or an operator ends it. As in production `Ending` says when
//! the backup is told and when the process is over; what that does is here.

use lockstep_proto::quantity::SessionTime;
use lockstep_proto::session::{Ending, Freeze, PrimaryInput, PrimaryState, Record, Unprotected};

use super::bug::Bug;
use super::env::{Env, Event, NodeEvent};
use super::net;
use super::node::Node;
use super::plan::{MICRO, MILLI};
use super::primary::{Entry, PrimaryDriver, effect};

/// How a guest ends by itself. Whoever executes the log finds it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    Reset,
    PowerOff,
}

/// The times of an ending are those of people and processes: here they pass so many times as fast as the session's.
const HASTE: u64 = 20;
/// What the backup is told.
pub const HOW: &str = "the guest has ended";

/// What a primary's driver knows of its machine's end.
#[derive(Default)]
pub struct End {
    pub ending: Ending,
    /// The guest makes nothing any more.
    pub has_come: bool,
    /// It was a reset.
    resets: bool,
    /// An operator wants it.
    wanted: bool,
    /// The connection by which the backup was told.
    told_by: Option<usize>,
    /// It was hung up instead, for the machine to be booted anew.
    hung_up: bool,
    /// The backup of the last connection could take over, unless it was sent away.
    pub protected: bool,
    /// That backup's life.
    pub backup_life: u32,
}

impl Node {
    /// The time by which endings go.
    fn hasty(&self, env: &Env) -> SessionTime {
        SessionTime::from_ns(self.local(env).ns() * HASTE)
    }

    /// When the ending wants to be looked at.
    pub fn ending_wake(&mut self) -> Option<SessionTime> {
        let wake = self.primary()?.end.ending.wake()?;
        Some(SessionTime::from_ns(wake.ns().div_ceil(HASTE)))
    }

    pub fn ending_event(&mut self, env: &mut Env, event: &NodeEvent) {
        match *event {
            NodeEvent::ShutDown { patience } => self.shut_down(env, patience),
            NodeEvent::GuestEnds(how) => self.guest_ends(env, how),
            NodeEvent::EndByForce => self.end_by_force(env),
            NodeEvent::GuestEnded { resets } => self.guest_ended(env, resets),
            _ => {}
        }
    }

    /// An operator has the guest asked to shut down within `patience`, or ends the machine at once.
    fn shut_down(&mut self, env: &mut Env, patience: u64) {
        let now = self.hasty(env);
        let Some(primary) = self.primary() else { return };
        let state = primary.session.state();
        if state.is_being_handed_over() || (patience > 0 && matches!(state, PrimaryState::Frozen(_))) {
            return;
        }
        primary.end.wanted = true;
        if patience == 0 {
            primary.end.ending.force();
            return self.later(env, 0, NodeEvent::EndByForce);
        }
        primary.end.ending.ask(now, patience * HASTE);
        env.trace
            .line(env.now, || format!("{} is asked to shut down", self.name()));
        // The guest does, its own way, or not in time, or not at all.
        if env.rng.chance(700) {
            let takes = env.rng.below(patience * 3 / 2);
            let how = env.rng.pick(&[GuestEnd::Reset, GuestEnd::PowerOff]);
            self.later(env, takes, NodeEvent::GuestEnds(how));
        }
    }

    /// The guest makes the last entry of its log.
    fn guest_ends(&mut self, env: &mut Env, how: GuestEnd) {
        if !self.primary().is_some_and(|primary| primary.runs()) {
            return;
        }
        let input = env.rng.next();
        self.record(env, Entry { input, end: Some(how) });
        self.comes_to_its_end(env, how == GuestEnd::Reset);
    }

    fn end_by_force(&mut self, env: &mut Env) {
        let Some(primary) = self.primary() else { return };
        if primary.stalled {
            // Its thread hears when the guest makes a stop.
            self.later(env, 5 * MILLI, NodeEvent::EndByForce);
        } else if !primary.end.has_come {
            self.comes_to_its_end(env, false);
        }
    }

    /// The link hears of it a little later.
    fn comes_to_its_end(&mut self, env: &mut Env, resets: bool) {
        env.trace.line(env.now, || {
            let how = if resets { "resets" } else { "ends" };
            format!("{}'s guest {how}", self.name())
        });
        if let Some(primary) = self.primary() {
            primary.end.has_come = true;
        }
        let soon = env.rng.below(2 * MILLI);
        self.later(env, soon, NodeEvent::GuestEnded { resets });
    }

    fn guest_ended(&mut self, env: &mut Env, resets: bool) {
        if resets && env.bug == Some(Bug::RebootInItsTerm) {
            return self.reboot_in_its_term(env);
        }
        let now = self.hasty(env);
        if let Some(primary) = self.primary() {
            primary.end.resets = resets;
            primary.end.ending.guest_ended(now, HOW, resets);
        }
    }

    /// Tells the backup, when all has left; or hangs up, where the machine is booted anew. True where there is more to do.
    pub fn say_goodbye(&mut self, env: &mut Env) -> bool {
        let (name, conn) = (self.name(), self.conn);
        let early = env.bug == Some(Bug::GoodbyeTooEarly);
        let Some(primary) = self.primary() else { return false };
        let Some(end) = primary.end.ending.take_goodbye(early || primary.all_has_left()) else {
            return false;
        };
        if end.restarts {
            primary.end.hung_up = true;
            self.disconnect(env, "the guest has reset, and is booted anew");
            self.input(env, PrimaryInput::Disconnected);
            return true;
        }
        env.checker.ends(name, primary.history.len() as u64);
        primary.end.told_by = conn;
        primary.session.finish(end.how, end.shut_down);
        true
    }

    /// Does what time brings to an ending. False where the process is over.
    pub fn look_at_ending(&mut self, env: &mut Env) -> bool {
        let now = self.hasty(env);
        let has_peer = self.conn.is_some() && env.bug != Some(Bug::NoWaitForTheBackup);
        let Some(primary) = self.primary() else { return false };
        let state = primary.session.state();
        let all_has_left = primary.all_has_left();
        if primary.end.ending.is_over(now, all_has_left, has_peer, &state) {
            self.over(env);
            return false;
        }
        if primary.end.ending.forces(now, &state) {
            env.checker.counts.forced += 1;
            self.later(env, 0, NodeEvent::EndByForce);
        }
        true
    }

    /// The process of a machine that has ended has nothing to wait for: it starts over, or ends until somebody starts it.
    fn over(&mut self, env: &mut Env) {
        let (now, name, peer) = (self.hasty(env), self.name(), 1 - self.id);
        let conn = self.conn;
        let Some(primary) = self.primary() else { return };
        let end = &primary.end;
        let is_lost = primary.session.state() == PrimaryState::Frozen(Freeze::LostTerm);
        let boots_anew = end.resets && !end.ending.is_shut_down();
        let in_time = matches!(end.ending, Ending::Told { until, .. } if now < until);
        let shut_down = end.ending.is_shut_down();
        // The backup has heard, or this end has hung up: without having to, or as the term was to be taken from the backup.
        let is_told = end
            .told_by
            .is_some_and(|by| env.checker.heard_by == Some(by) || (conn == Some(by) && in_time));
        if is_told || (shut_down && end.hung_up && in_time && !is_lost) {
            env.checker.ended_at = primary.history.len() as u64;
            env.checker.counts.shut_down += u64::from(shut_down);
        }
        if boots_anew && !is_lost {
            env.checker.counts.resets += 1;
            if end.wanted {
                env.checker
                    .fail(format!("{name} boots anew what an operator has shut down"));
            }
            let acked = primary.session.ack().received;
            let has_it = env.holds[peer].is_some_and(|received| received >= acked);
            if end.protected && end.backup_life == env.lives[peer] && !has_it {
                env.checker.starts_over(name, acked);
            }
        }
        self.end_process(env, is_lost || boots_anew);
    }

    /// The process ends in order. It starts over at once, or somebody starts it after a while.
    pub fn end_process(&mut self, env: &mut Env, starts_over: bool) {
        env.trace.line(env.now, || {
            let how = if starts_over { "starts over" } else { "ends" };
            format!("{} {how}", self.name())
        });
        if let Some(conn) = self.conn.take() {
            net::close(env, conn, self.id);
        }
        self.die(env);
        if starts_over {
            self.start(env);
        } else {
            let off = env.rng.between(env.plan.fault_length);
            env.event_in(off, Event::Restart(self.id));
        }
    }

    /// The backup that won the term finds that its machine had ended: what may not have left does, and all is on the disk.
    pub fn ends_here(&mut self, env: &mut Env, record: &Record, history: Vec<u64>, released: u64, how: GuestEnd) {
        env.checker.counts.ended_at_backup += 1;
        let name = self.name();
        for (at, effect) in history.iter().enumerate().skip(released as usize) {
            let position = at as u64 + 1;
            env.checker
                .releases(env.now, name, record.term, position, *effect, &env.arbiter.record);
        }
        self.disk.history = history;
        self.disk.live = true;
        self.end_process(env, how == GuestEnd::Reset);
    }

    /// The planted bug: the machine is booted anew as if the term were still nobody else's to claim.
    fn reboot_in_its_term(&mut self, env: &mut Env) {
        let Some(primary) = self.primary() else { return };
        let record = Record {
            peer: None,
            ..primary.session.record().clone()
        };
        let mut history = std::mem::take(&mut primary.history);
        let released = history.len() as u64;
        if let Some(conn) = self.conn.take() {
            net::close(env, conn, self.id);
        }
        self.die(env);
        self.up = true;
        env.checker.excused = env.checker.excused.max(released);
        history.push(effect(history.last(), env.rng.next()));
        let driver = PrimaryDriver::new(self.id, &env.plan, record, history, released, Unprotected::NeedBackup);
        self.go_live(env, driver);
        self.later(env, 100 * MICRO, NodeEvent::Timer);
    }
}
