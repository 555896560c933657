//! The model's session, the first one and each that takes over from another.
//!
//! ```text
//!              the connection       session.created          session.updated
//!   Absent ──► Dialing ──────────► AwaitingCreated ───────► AwaitingUpdated ──► Ready
//!                 ▲                                                               │
//!                 │ at once, or after a Backoff when a try has failed             │ a quiet moment
//!                 └──────────────────── Closing ◄─────────────────────────────────┘
//! ```
//!
//! The first session has a deadline for each step, and the call fails with it. A renewal has one deadline for each try
//! (see `renewal`); a try that fails goes back to `Closing`.

use super::context::{CallContext, Failure, fatal};
use super::event::{CallEvent, EndReason};
use super::settings::{CallConfig, Renewal, ms};
use super::timers::Timer;
use crate::wire::realtime::{ApiError, ClientEvent, Effective, SERVER_VAD, ServerEvent, TurnDetection};
use std::time::{Duration, Instant};

/// Characters of a server's word that are repeated in a log.
const NAME_MAX: usize = 40;

/// How far the session has come.
#[derive(Debug)]
pub(super) enum Session {
    /// Nothing was dialled yet, a dial failed, or the call needs no session any more.
    Absent,
    Dialing {
        since: Instant,
    },
    /// The connection is open; `session.created` is due.
    AwaitingCreated,
    /// The `session.update` was sent; `session.updated` is due.
    AwaitingUpdated {
        expires: Option<Instant>,
    },
    /// The settings are confirmed. `expires`: when the server will end it, until that was announced. `renewable`: from
    /// now on, at the next quiet moment.
    Ready {
        expires: Option<Instant>,
        renewable: bool,
    },
    /// It is being closed, so that the next one can be dialled.
    Closing,
    /// A try to dial the next one failed a moment ago.
    Backoff,
}

/// What an event meant for the settling of a session.
pub(super) enum Configured {
    Nothing,
    /// The `session.update` was sent.
    Asked,
    /// It was accepted.
    Confirmed,
}

impl Session {
    /// One complete `session.update` after `session.created`; caller audio only once what it asks for is confirmed.
    pub(super) fn configure(
        &mut self,
        cx: &mut CallContext,
        event: &ServerEvent,
        now: Instant,
    ) -> Result<Configured, Failure> {
        match (&*self, event) {
            (Self::AwaitingCreated, ServerEvent::SessionCreated { id, expires_at }) => {
                if let Some(id) = id.clone() {
                    cx.event(CallEvent::Session { id });
                }
                let settings = Box::new(cx.config.session());
                cx.send_to_model(ClientEvent::SessionUpdate { event_id: "update_1".into(), settings });
                *self = Self::AwaitingUpdated { expires: expiry(cx, *expires_at, now) };
                Ok(Configured::Asked)
            }
            (Self::AwaitingUpdated { expires }, ServerEvent::SessionUpdated { session, expires_at }) => {
                check(&cx.config, session)?;
                let expires = expiry(cx, *expires_at, now).or(*expires);
                *self = Self::Ready { expires, renewable: false };
                Ok(Configured::Confirmed)
            }
            (Self::AwaitingCreated, ServerEvent::Error(error)) => {
                Err(refused(error, EndReason::ModelRefused))
            }
            (Self::AwaitingUpdated { .. }, ServerEvent::Error(error)) => {
                Err(refused(error, EndReason::SessionRefused))
            }
            (
                Self::AwaitingCreated | Self::AwaitingUpdated { .. },
                ServerEvent::Other { kind, known: false },
            ) => {
                cx.unknown_event(kind);
                Ok(Configured::Nothing)
            }
            // Nothing else means anything before the session is configured.
            _ => Ok(Configured::Nothing),
        }
    }

    /// When the server will end it. Known once: after that the time to announce it has come.
    pub(super) fn take_expiry(&mut self) -> Option<Instant> {
        if let Self::AwaitingUpdated { expires } | Self::Ready { expires, .. } = self {
            expires.take()
        } else {
            None
        }
    }

    /// From when on it may be renewed, if it begins now.
    pub(super) fn renewal_window(&self, renewal: &Renewal, now: Instant) -> Option<Instant> {
        if let Self::Ready { expires: Some(expires), .. } = self {
            // A session that is hardly longer than the time before its end is not renewed all the time.
            let left = expires.saturating_duration_since(now);
            return Some(now + left.saturating_sub(ms(renewal.before_ms)).max(left / 2));
        }
        renewal.after_ms.map(|after_ms| now + ms(after_ms))
    }
}

fn refused(error: &ApiError, reason: EndReason) -> Failure {
    Failure { reason: fatal(error.name()).unwrap_or(reason), detail: error.in_words() }
}

/// When a session ends of which the server says this. Sets the timer that announces it.
fn expiry(cx: &mut CallContext, unix: Option<i64>, now: Instant) -> Option<Instant> {
    let Some(left) = u64::try_from(unix? - cx.unix_began).ok().filter(|&left| left > 0) else {
        cx.tolerate("an expiry in the past: the clocks disagree");
        return None;
    };
    let expires = cx.began + Duration::from_secs(left);
    let warn = expires.checked_sub(ms(cx.config.timeouts.before_expiry_ms)).unwrap_or(now);
    cx.timers.set(Timer::Expiry, warn.max(now));
    Some(expires)
}

/// The session is as it was asked for. Formats have to be confirmed, because audio in another one is noise. Of the
/// rest only what the server echoes is held against what was asked for, because not every server echoes all of it.
pub(super) fn check(config: &CallConfig, session: &Effective) -> Result<(), Failure> {
    let refused = |detail: String| Err(Failure { reason: EndReason::SessionRefused, detail });
    let asked = config.session();
    let format = config.format.wire_name();
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
                return refused(format!("turn_detection.type is {kind} where {SERVER_VAD} was asked for"));
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
        let lacking: Vec<&str> = asked.tools.iter().map(|tool| tool.name.as_str()).filter(lacks).collect();
        if !lacking.is_empty() {
            return refused(format!("tools lack {}", lacking.join(", ")));
        }
    }
    Ok(())
}
