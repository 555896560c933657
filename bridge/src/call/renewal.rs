//! Another session takes over before the server ends the one that runs.
//!
//! A session has a longest duration, a call may have a longer one. From some time before the end on, the first quiet
//! moment is taken to replace it: the old session is closed, a new one is dialled and configured like the first, is
//! told what was said and heard so far, and goes on without a greeting. There is never more than one: what the caller
//! says meanwhile waits in the uplink, as it does while the first one is dialled, and so do keys. A try that fails is
//! repeated; when none succeeds the call ends as if the model had been lost.

use super::context::{Configured, Failure};
use super::event::{CallEvent, DialOutcome, EndReason, RenewalOutcome};
use super::io::Leg;
use super::phase::{Phase, Renewing, Step};
use super::settings::{Renewal, ms};
use super::timers::Timer;
use super::{Call, LegState, NORMAL};
use crate::wire::realtime::{ClientEvent, ServerEvent};
use std::time::Instant;

impl Call {
    /// Plans to renew the session, which begins now.
    pub(super) fn plan_renewal(&mut self, now: Instant) {
        let Some(renewal) = &self.cx.config.renewal else { return };
        let window = match self.expires {
            // A session that is hardly longer than the time before its end is not renewed all the time.
            Some(expires) => {
                let left = expires.saturating_duration_since(now);
                now + left.saturating_sub(ms(renewal.before_ms)).max(left / 2)
            }
            None => match renewal.after_ms {
                Some(after_ms) => now + ms(after_ms),
                None => return,
            },
        };
        self.renewable = false;
        self.cx.timers.set(Timer::Quiet, window);
    }

    /// Once the session may be renewed, sees to it that a moment is noticed that has been quiet for long enough.
    pub(super) fn watch_quiet(&mut self, now: Instant) {
        let Some(Renewal { quiet_ms, .. }) = &self.cx.config.renewal else { return };
        if !self.renewable {
            return;
        }
        if self.is_idle(now) {
            self.cx.timers.set_if_unset(Timer::Quiet, now + ms(*quiet_ms));
        } else {
            self.cx.timers.stop(Timer::Quiet);
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        let Phase::Live { conversation, .. } = &self.phase else { return false };
        let flows = self.model.state == LegState::Open && !self.model.backpressured;
        flows && self.uplink.waiting() == 0 && conversation.is_idle(&self.cx.timers, now)
    }

    /// [`Timer::Quiet`] fired.
    pub(super) fn quiet(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.renewable, true) || !self.is_idle(now) {
            return; // the watch begins
        }
        let Phase::Live { stream, conversation } = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        self.cx.event(CallEvent::Renewing);
        self.renewable = false;
        self.renewing_since = Some(now);
        let renewing = Renewing { step: Step::Closing, tries: 0 };
        self.phase = Phase::Renewing { stream, conversation, renewing };
        self.leave_model(now);
    }

    fn renewing(&mut self) -> Option<&mut Renewing> {
        if let Phase::Renewing { renewing, .. } = &mut self.phase { Some(renewing) } else { None }
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
        self.expires = None;
        self.close_leg(Leg::Model, NORMAL);
        if let Some(renewing) = self.renewing() {
            renewing.step = Step::Closing;
        }
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
        let rest = ms(self.cx.config.timeouts.retry_ms);
        let Some(renewing) = self.renewing() else { return };
        if renewing.tries == 0 {
            return self.redial(now);
        }
        renewing.step = Step::Resting;
        self.cx.timers.set(Timer::Renewal, now + rest);
    }

    /// The model does not answer our close.
    pub(super) fn closing_overdue(&mut self, now: Instant) {
        if self.renewing().is_some() {
            self.drop_leg(Leg::Model);
            self.left_model(now);
        } else if !self.expects_last_words() {
            self.drop_legs();
        } else if self.caller.state != LegState::Gone {
            self.drop_leg(Leg::Caller);
        }
    }

    fn redial(&mut self, now: Instant) {
        let Some(Renewal { try_ms, .. }) = self.cx.config.renewal else { return };
        let Phase::Renewing { stream, renewing, .. } = &mut self.phase else { return };
        renewing.step = Step::Dialing;
        renewing.tries += 1;
        let call_sid = stream.call_sid.clone();
        self.cx.timers.set(Timer::Renewal, now + ms(try_ms));
        self.send_dial(call_sid, now);
    }

    /// [`Timer::Renewal`] fired.
    pub(super) fn renewal_due(&mut self, now: Instant) {
        let Some(Renewing { step, .. }) = self.renewing() else { return };
        match step {
            Step::Resting => self.redial(now),
            Step::Dialing => {
                self.dialed(DialOutcome::TimedOut, now);
                self.try_failed(EndReason::DialFailed, "the connection did not come in time".to_owned(), now);
            }
            Step::Configuring { .. } => {
                self.try_failed(
                    EndReason::SessionTimeout,
                    "the session did not come in time".to_owned(),
                    now,
                );
            }
            Step::Closing => {}
        }
    }

    /// The model's connection is gone, or there never was one.
    pub(super) fn renewal_lost(&mut self, reason: EndReason, detail: String, now: Instant) {
        match self.renewing().map(|renewing| renewing.step) {
            Some(Step::Closing) => self.left_model(now),
            Some(Step::Dialing | Step::Configuring { .. }) => self.try_failed(reason, detail, now),
            Some(Step::Resting) | None => {}
        }
    }

    fn try_failed(&mut self, reason: EndReason, detail: String, now: Instant) {
        let most = self.cx.config.renewal.as_ref().map_or(0, |renewal| renewal.tries);
        let Some(renewing) = self.renewing() else { return };
        if renewing.tries < most {
            self.cx.tolerate(&format!("a try to renew the session failed: {}", reason.name()));
            return self.leave_model(now);
        }
        self.renewal_over(RenewalOutcome::Failed, 0, now);
        self.fail(reason, detail, now);
    }

    /// The new connection is open.
    pub(super) fn renewal_open(&mut self, now: Instant) {
        if let Some(renewing) = self.renewing().filter(|renewing| renewing.step == Step::Dialing) {
            renewing.step = Step::Configuring { asked: false };
            self.dialed(DialOutcome::Connected, now);
            self.model.state = LegState::Open;
        }
    }

    /// The new session is settled like the first one. What the old one still has to say is nobody's business.
    pub(super) fn reconfigure(&mut self, event: &ServerEvent, now: Instant) {
        let Phase::Renewing { renewing, .. } = &mut self.phase else { return };
        let Step::Configuring { asked } = &mut renewing.step else { return };
        match self.cx.configure(*asked, event) {
            Ok(Configured::NotYet) => {}
            Ok(Configured::Asked { expires_at }) => {
                *asked = true;
                self.expires_at(expires_at, now);
            }
            Ok(Configured::Confirmed { expires_at }) => {
                self.expires_at(expires_at, now);
                self.renewed(now);
            }
            Err(Failure { reason, detail }) => self.try_failed(reason, detail, now),
        }
    }

    /// The new session takes over.
    fn renewed(&mut self, now: Instant) {
        let Some(limits) = &self.cx.config.renewal else { return };
        let history = self.cx.transcript.history(limits);
        self.renewal_over(RenewalOutcome::Renewed, history.len(), now);
        self.cx.timers.stop(Timer::Renewal);
        self.cx.timers.set(Timer::ModelPing, now + ms(self.cx.config.timeouts.ping_ms));
        history.into_iter().for_each(|past| self.cx.send_to_model(ClientEvent::History(past)));
        if let Phase::Renewing { stream, mut conversation, .. } =
            std::mem::replace(&mut self.phase, Phase::Over)
        {
            let keys = std::mem::take(&mut self.early_keys);
            conversation.resume_on_new_session(&mut self.cx, &mut self.uplink, &keys, now);
            self.phase = Phase::Live { stream, conversation };
        }
        self.plan_renewal(now);
    }

    /// The renewal is over, if there was one.
    pub(super) fn renewal_over(&mut self, outcome: RenewalOutcome, items: usize, now: Instant) {
        if let Some(since) = self.renewing_since.take() {
            let tries = self.renewing().map_or(0, |renewing| renewing.tries);
            self.cx.event(CallEvent::Renewal { outcome, took: now - since, tries, items });
        }
    }
}
