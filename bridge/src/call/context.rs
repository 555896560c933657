//! What every part of a call writes to: timers, things to do, events, the transcript.

use super::downlink::Downlink;
use super::event::{CallEvent, Counts, EndReason};
use super::io::Transmit;
use super::settings::{CallConfig, ms};
use super::timers::{Timer, Timers};
use super::transcript::Transcript;
use crate::audio::Companding;
use crate::wire::realtime::{ClientEvent, Effective, SERVER_VAD, ServerEvent, TurnDetection};
use crate::wire::twilio::ToTwilio;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Characters of a server's word that are repeated in a log.
const NAME_MAX: usize = 40;

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

    /// One complete `session.update` after `session.created`; caller audio only once what it asks for is confirmed.
    /// `asked`: it was sent.
    pub(super) fn configure(&mut self, asked: bool, event: &ServerEvent) -> Result<Configured, Failure> {
        match event {
            ServerEvent::SessionCreated { id, expires_at } if !asked => {
                if let Some(id) = id.clone() {
                    self.event(CallEvent::Session { id });
                }
                let settings = Box::new(self.config.session());
                self.send_to_model(ClientEvent::SessionUpdate { event_id: "update_1".into(), settings });
                return Ok(Configured::Asked { expires_at: *expires_at });
            }
            ServerEvent::SessionUpdated { session, expires_at } if asked => {
                self.check_session(session)?;
                return Ok(Configured::Confirmed { expires_at: *expires_at });
            }
            ServerEvent::Error(error) => {
                let refused = if asked { EndReason::SessionRefused } else { EndReason::ModelRefused };
                let reason = fatal(error.name()).unwrap_or(refused);
                return Err(Failure { reason, detail: error.in_words() });
            }
            ServerEvent::Other { kind, known: false } => {
                self.unknown_event(kind);
            }
            // Nothing else means anything before the session is configured.
            ServerEvent::SessionCreated { .. }
            | ServerEvent::SessionUpdated { .. }
            | ServerEvent::SpeechStarted { .. }
            | ServerEvent::SpeechStopped { .. }
            | ServerEvent::Committed { .. }
            | ServerEvent::ItemAdded { .. }
            | ServerEvent::Truncated { .. }
            | ServerEvent::Transcribed { .. }
            | ServerEvent::TranscriptionFailed { .. }
            | ServerEvent::ResponseCreated { .. }
            | ServerEvent::ResponseDone(_)
            | ServerEvent::AudioDelta { .. }
            | ServerEvent::AudioDone { .. }
            | ServerEvent::AgentWords { .. }
            | ServerEvent::AgentWordsDone { .. }
            | ServerEvent::OutputItemDone { .. }
            | ServerEvent::Other { .. } => {}
        }
        Ok(Configured::NotYet)
    }

    /// The session is as it was asked for. Formats have to be confirmed, because audio in another one is noise. Of the
    /// rest only what the server echoes is held against what was asked for, because not every server echoes all of it.
    pub(super) fn check_session(&self, session: &Effective) -> Result<(), Failure> {
        let refused = |detail: String| Err(Failure { reason: EndReason::SessionRefused, detail });
        let asked = self.config.session();
        let format = self.config.format.wire_name();
        for (way, got) in [("input", &session.formats.input), ("output", &session.formats.output)] {
            if got.as_deref() != Some(format) {
                let got = got.as_deref().unwrap_or("none");
                return refused(format!("the {way} format is {got} where {format} was asked for"));
            }
        }
        // A session that tells no turns, or answers otherwise than is reckoned with, leaves both ends waiting.
        match &session.turns {
            TurnDetection::NotEchoed => {}
            TurnDetection::Off => {
                return refused(format!("turn_detection is off where {SERVER_VAD} was asked for"));
            }
            TurnDetection::By { kind, create_response, interrupt_response } => {
                if let Some(kind) = kind.as_ref().filter(|kind| *kind != SERVER_VAD) {
                    let kind: String = kind.chars().take(NAME_MAX).collect();
                    return refused(format!(
                        "turn_detection.type is {kind} where {SERVER_VAD} was asked for"
                    ));
                }
                for (field, got, asked) in [
                    ("create_response", create_response, asked.vad.create_response),
                    ("interrupt_response", interrupt_response, asked.vad.interrupt_response),
                ] {
                    if got.is_some_and(|got| got != asked) {
                        return refused(format!(
                            "turn_detection.{field} is {} where {asked} was asked for",
                            !asked
                        ));
                    }
                }
            }
        }
        // A server may offer functions of its own beside ours.
        if let Some(tools) = &session.tools {
            let lacks = |name: &&str| tools.iter().all(|tool| tool != name);
            let lacking: Vec<&str> =
                asked.tools.iter().map(|tool| tool.name.as_str()).filter(lacks).collect();
            if !lacking.is_empty() {
                return refused(format!("tools lack {}", lacking.join(", ")));
            }
        }
        Ok(())
    }
}

/// How far the settling of a session has come.
pub(super) enum Configured {
    NotYet,
    /// The `session.update` was sent.
    Asked {
        expires_at: Option<i64>,
    },
    /// It was accepted: the formats are the wire's.
    Confirmed {
        expires_at: Option<i64>,
    },
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
