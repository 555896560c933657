//! What every part of a call writes to: timers, things to do, events, the transcript.

use super::downlink::Downlink;
use super::event::{CallEvent, Counts, EndReason};
use super::io::Transmit;
use super::settings::{CallConfig, ms};
use super::timers::{Timer, Timers};
use super::transcript::Transcript;
use super::uplink::Uplink;
use crate::audio::Companding;
use crate::wire::realtime::ClientEvent;
use crate::wire::twilio::ToTwilio;
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

/// The stream Twilio announced.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) sid: Arc<str>,
    pub(super) call_sid: String,
    pub(super) companding: Companding,
}

/// What every phase writes to.
pub(super) struct CallContext {
    pub(super) config: Arc<CallConfig>,
    pub(super) began: Instant,
    /// Unix seconds at `began`.
    pub(super) unix_began: i64,
    pub(super) timers: Timers,
    pub(super) outbox: VecDeque<Transmit>,
    pub(super) events: VecDeque<CallEvent>,
    pub(super) counts: Counts,
    pub(super) transcript: Transcript,
    pub(super) scratch: Vec<ToTwilio>,
}

impl CallContext {
    pub(super) fn event(&mut self, event: CallEvent) {
        self.events.push_back(event);
    }

    pub(super) fn tolerate(&mut self, what: &str) {
        self.event(CallEvent::Tolerated { what: what.to_owned() });
    }

    /// A vendor sent a kind of message this bridge does not know: counted, and the call goes on.
    pub(super) fn unknown_event(&mut self, kind: &str) {
        self.counts.unknown += 1;
        self.tolerate(&format!("unknown event {kind}"));
    }

    pub(super) fn send_to_model(&mut self, event: ClientEvent) {
        self.outbox.push_back(Transmit::Model(event));
    }

    pub(super) fn send_to_caller(&mut self, stream: &Stream, message: ToTwilio) {
        if let ToTwilio::Media { audio } = &message {
            self.counts.sent_ms += audio.len() as u64 / 8;
        }
        self.outbox.push_back(Transmit::Caller { stream_sid: stream.sid.clone(), message });
    }

    /// Sends the audio that may be sent and sets the timers for the rest.
    pub(super) fn pump(
        &mut self,
        downlink: &mut Downlink,
        stream: &Stream,
        backpressured: bool,
        now: Instant,
    ) {
        self.timers.stop(Timer::Pace);
        if !backpressured {
            let mut out = std::mem::take(&mut self.scratch);
            if let Some(at) = downlink.pump(now, &mut out) {
                self.timers.set(Timer::Pace, at);
            }
            out.drain(..).for_each(|message| self.send_to_caller(stream, message));
            self.scratch = out;
        }
        match downlink.marks_due(ms(self.config.timeouts.mark_ms)) {
            Some(at) => self.timers.set(Timer::Mark, at),
            None => self.timers.stop(Timer::Mark),
        }
    }
}

/// What the conversation works with while one input is handled.
pub(super) struct Cx<'a> {
    pub(super) call: &'a mut CallContext,
    pub(super) uplink: &'a mut Uplink,
    pub(super) stream: &'a Stream,
    pub(super) caller_backpressured: bool,
    pub(super) model_backpressured: bool,
    pub(super) now: Instant,
}

impl Cx<'_> {
    /// Sets a timer so many milliseconds from now.
    pub(super) fn set_timer(&mut self, timer: Timer, after_ms: u64) {
        self.call.timers.set(timer, self.now + ms(after_ms));
    }

    /// The same, unless it is set already: the first deadline stands.
    pub(super) fn set_timer_if_unset(&mut self, timer: Timer, after_ms: u64) {
        self.call.timers.set_if_unset(timer, self.now + ms(after_ms));
    }
}

impl Deref for Cx<'_> {
    type Target = CallContext;

    fn deref(&self) -> &CallContext {
        self.call
    }
}

impl DerefMut for Cx<'_> {
    fn deref_mut(&mut self) -> &mut CallContext {
        self.call
    }
}

/// Why the conversation cannot go on.
pub(super) struct Failure {
    pub(super) reason: EndReason,
    pub(super) detail: String,
}

/// Errors that end the session, and what to call it.
pub(super) fn fatal(code: &str) -> Option<EndReason> {
    match code {
        "invalid_api_key"
        | "insufficient_permissions"
        | "missing_model"
        | "invalid_model"
        | "model_not_found"
        | "beta_api_shape_disabled"
        | "insufficient_quota"
        | "billing_hard_limit_reached"
        | "account_deactivated" => Some(EndReason::ModelRefused),
        "session_expired" => Some(EndReason::SessionExpired),
        _ => None,
    }
}
