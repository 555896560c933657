//! Another session takes over before the server ends the one that runs.
//!
//! A session has a longest duration, a call may have a longer one. From some time before the end on, the first quiet
//! moment is taken to replace it: the old session is closed, a new one is dialled and configured like the first, is
//! told what was said and heard so far, and goes on without a greeting. There is never more than one: what the caller
//! says meanwhile waits in the uplink, as it does while the first one is dialled, and so do keys. A try that fails is
//! repeated; when none succeeds the call ends as if the model had been lost.

use super::event::{CallEvent, EndReason, RenewalOutcome};
use super::io::Leg;
use super::phase::{Phase, Renewing};
use super::session::Session;
use super::settings::{Renewal, ms};
use super::timers::Timer;
use super::{Call, LegState, NORMAL};
use std::time::Instant;

impl Call {
    /// Plans to renew the session, which begins now.
    pub(super) fn plan_renewal(&mut self, now: Instant) {
        let Some(renewal) = &self.cx.config.renewal else { return };
        if let Some(window) = self.session.renewal_window(renewal, now) {
            self.cx.timers.set(Timer::Quiet, window);
        }
    }

    /// Once the session may be renewed, sees to it that a moment is noticed that has been quiet for long enough.
    pub(super) fn watch_quiet(&mut self, now: Instant) {
        let Some(Renewal { quiet_ms, .. }) = &self.cx.config.renewal else { return };
        if !matches!(self.session, Session::Ready { renewable: true, .. }) {
            return;
        }
        if self.is_idle(now) {
            self.cx.timers.set_if_unset(Timer::Quiet, now + ms(*quiet_ms));
        } else {
            self.cx.timers.stop(Timer::Quiet);
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        let Phase::Live { conversation, renewal: None, .. } = &self.phase else { return false };
        let flows = self.model.state == LegState::Open && !self.model.backpressured;
        flows && self.uplink.waiting() == 0 && conversation.is_idle(&self.cx.timers, now)
    }

    /// [`Timer::Quiet`] fired.
    pub(super) fn quiet(&mut self, now: Instant) {
        let Session::Ready { renewable, .. } = &mut self.session else { return };
        if !std::mem::replace(renewable, true) || !self.is_idle(now) {
            return; // the watch begins
        }
        self.cx.event(CallEvent::Renewing);
        if let Phase::Live { renewal, .. } = &mut self.phase {
            *renewal = Some(Renewing { since: now, tries: 0 });
        }
        self.leave_model(now);
    }

    /// The connection to the model, if there is one, is closed before the next is dialled.
    fn leave_model(&mut self, now: Instant) {
        for timer in [
            Timer::Expiry,
            Timer::Quiet,
            Timer::Renewal,
            Timer::ModelPing,
            Timer::ModelPong,
            Timer::ModelClogged,
        ] {
            self.cx.timers.stop(timer);
        }
        self.close_leg(Leg::Model, NORMAL);
        self.session = Session::Closing;
        if self.model.state == LegState::Gone {
            self.left_model(now);
        } else {
            let by = now + ms(self.cx.config.timeouts.closing_ms);
            self.cx.timers.set(Timer::Closing, by);
        }
    }

    /// It is gone.
    fn left_model(&mut self, now: Instant) {
        self.cx.timers.stop(Timer::Closing);
        self.cx.timers.stop(Timer::ModelClogged);
        self.model.backpressured = false;
        if self.phase.renewal().is_some_and(|renewal| renewal.tries == 0) {
            return self.dial(now);
        }
        self.session = Session::Backoff;
        self.cx.timers.set(Timer::Renewal, now + ms(self.cx.config.timeouts.retry_ms));
    }

    /// The model does not answer our close.
    pub(super) fn closing_overdue(&mut self, now: Instant) {
        if self.phase.renewal().is_some() {
            self.drop_leg(Leg::Model);
            self.left_model(now);
        } else if !self.expects_last_words() {
            self.drop_legs();
        } else if self.caller.state != LegState::Gone {
            self.drop_leg(Leg::Caller);
        }
    }

    /// [`Timer::Renewal`] fired.
    pub(super) fn renewal_due(&mut self, now: Instant) {
        match self.session {
            Session::Backoff => self.dial(now),
            Session::Dialing { .. } => self.session_overdue("the connection", now),
            Session::AwaitingCreated | Session::AwaitingUpdated { .. } => {
                self.session_overdue("the session", now)
            }
            Session::Absent | Session::Ready { .. } | Session::Closing => {}
        }
    }

    /// The model's connection is gone, or there never was one, while the session is renewed.
    pub(super) fn renewal_lost(&mut self, tries: u32, reason: EndReason, detail: String, now: Instant) {
        match self.session {
            Session::Closing => return self.left_model(now),
            Session::Backoff => return,
            Session::Absent
            | Session::Dialing { .. }
            | Session::AwaitingCreated
            | Session::AwaitingUpdated { .. }
            | Session::Ready { .. } => {}
        }
        if self.cx.config.renewal.as_ref().is_some_and(|renewal| tries < renewal.tries) {
            self.cx.tolerate(&format!("a try to renew the session failed: {}", reason.name()));
            return self.leave_model(now);
        }
        self.announce(reason, detail, RenewalOutcome::Failed, now);
    }

    /// The renewal is over, if there was one.
    pub(super) fn renewal_over(&mut self, outcome: RenewalOutcome, now: Instant) {
        if let Some(&mut Renewing { since, tries }) = self.phase.renewal() {
            self.cx.event(CallEvent::Renewal { outcome, took: now - since, tries, items: 0 });
        }
    }
}
