//! One phone call, as a value: no I/O, no clock, no randomness.
//!
//! What came in is a method, what is to be done is a queue, time is an argument. A ten-minute call therefore
//! runs in milliseconds, and a bug is a list of inputs. This file is the table of contents; in the order a
//! caller meets them:
//! * `phase`: where a call can be, and who may be heard there.
//! * `uplink`, `audio_clock`: caller to model: order, gaps, backlog, and when what was spoken.
//! * [`settings`]: every limit and every wait.
//! * `conversation`, `tool_calls`: turns, keypad, functions.
//! * `barge_in`: what interrupts the agent, who cancels, and what is owed to both ends.
//! * `responses`: at most one response asked for, and a fence around the interrupted ones.
//! * `session`, `renewal`: the model's session; another one takes over before the server ends the one that runs.
//! * [`hangup`], `last_words`: the model ends the call, or puts the caller through; the caller's words that came last.
//! * `downlink`, `sound`, `playback`: model to caller: framing, pacing, and the ledger of what was heard.
//! * [`timers`], [`event`], `transcript`: why to wake up, what happened, who said what.

mod audio_clock;
mod barge_in;
mod context;
mod conversation;
mod downlink;
pub mod event;
mod fifo;
pub mod hangup;
pub mod io;
mod keypad;
mod last_words;
mod phase;
mod playback;
mod renewal;
mod responses;
mod session;
pub mod settings;
mod sound;
pub mod timers;
mod tool_calls;
mod tools;
mod transcript;
mod uplink;

use crate::base::redact;
use crate::wire::realtime::{ClientEvent, ServerEvent};
use crate::wire::twilio::{self, FromTwilio};
use crate::wire::twiml::TOKEN_PARAMETER;
use context::{CallContext, Cx, Failure, Stream};
use conversation::Conversation;
use downlink::Downlink;
use event::{
    CallEvent, Counts, DialOutcome, EndReason, Floor, Private, ProtectionEnd, RenewalOutcome, ToolOutcome,
};
pub use io::{Control, Incoming, Leg, LegChange, StreamCredentials, ToolResult, Transmit, Waiting};
use phase::{Phase, Renewing};
use playback::Returned;
use session::{Configured, Session};
use settings::{CallConfig, Until, ms};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use timers::{Timer, Timers};
use tools::{Leftover, Run};
use transcript::Transcript;
use uplink::Uplink;

/// Close code of an ordinary end.
const NORMAL: u16 = 1_000;
/// Pings whose pongs are waited for. A far end that answers none is watched by other means.
const PINGS_MAX: usize = 16;
/// Close code towards whoever may not come in.
const POLICY_VIOLATION: u16 = 1_008;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LegState {
    Absent,
    Dialing,
    Open,
    Closing,
    Gone,
}

/// A connection, as the call sees it.
#[derive(Clone, Copy, Debug)]
struct LegStatus {
    state: LegState,
    backpressured: bool,
}

/// One phone call. Does no I/O, reads no clock, draws no randomness.
///
/// **After each `handle_*`, drain `poll_transmit` and `poll_event` to `None` before the next `handle_*`.**
pub struct Call {
    cx: CallContext,
    notice: Arc<[u8]>,
    phase: Phase,
    session: Session,
    uplink: Uplink,
    /// The stream had more audio than time has passed.
    outran_time: bool,
    /// When the pings to Twilio left whose pongs are not back, oldest first.
    pinged: VecDeque<Instant>,
    /// The smallest round trip to Twilio and back.
    round_trip: Option<Duration>,
    caller: LegStatus,
    model: LegStatus,
    /// The call's identity, once `start` has come and was believed.
    call_sid: Option<String>,
    /// As last told.
    floor: Floor,
    waiting: Waiting,
}

impl Call {
    /// A caller's WebSocket was opened. `notice` is what the caller hears when the call has to end early, in
    /// G.711 mu-law whatever the caller speaks. `unix_now` is the wall clock at `now`, Unix seconds: it is only used to place the session's
    /// `expires_at` on the monotonic clock.
    pub fn new(config: Arc<CallConfig>, notice: Arc<[u8]>, now: Instant, unix_now: i64) -> Self {
        let uplink = Uplink::new(&config, now);
        let mut timers = Timers::default();
        timers.set(Timer::Start, now + ms(config.timeouts.start_ms));
        timers.set(Timer::CallerSilent, now + ms(config.timeouts.caller_silent_ms));
        timers.set(Timer::CallerPing, now + ms(config.timeouts.ping_ms));
        timers.set(Timer::CallLimit, now + ms(config.timeouts.call_ms));
        Self {
            cx: CallContext {
                config,
                began: now,
                unix_began: unix_now,
                timers,
                outbox: VecDeque::new(),
                events: VecDeque::new(),
                counts: Counts::default(),
                transcript: Transcript::default(),
                scratch: Vec::new(),
            },
            notice,
            phase: Phase::AwaitingStart { requires_auth: false },
            session: Session::Absent,
            uplink,
            outran_time: false,
            pinged: VecDeque::new(),
            round_trip: None,
            caller: LegStatus { state: LegState::Open, backpressured: false },
            model: LegStatus { state: LegState::Absent, backpressured: false },
            call_sid: None,
            floor: Floor::default(),
            waiting: Waiting::default(),
        }
    }

    /// The stream has to be admitted: nothing is sent, dialled or claimed for it before [`Control::Admitted`].
    #[must_use]
    pub fn requires_auth(mut self, requires_auth: bool) -> Self {
        self.phase = Phase::AwaitingStart { requires_auth };
        self
    }

    /// A frame arrived.
    pub fn handle_frame(&mut self, leg: Leg, frame: Incoming<'_>, now: Instant) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        self.sign_of_life(leg, now);
        match frame {
            Incoming::Twilio(envelope) => self.handle_twilio(envelope, now),
            Incoming::Model(event) => self.handle_model(event, now),
            Incoming::Malformed(what) => self.malformed(leg, &what, now),
            Incoming::Binary(len) => self.malformed(leg, &format!("a binary frame of {len} bytes"), now),
        }
        self.maintain_invariants(now);
    }

    /// Something happened to a connection.
    pub fn handle_leg(&mut self, leg: Leg, change: LegChange, now: Instant) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        match change {
            LegChange::Pong => self.pong(leg, now),
            LegChange::Ping => self.sign_of_life(leg, now),
            LegChange::Backpressured => self.backpressured(leg, true, now),
            LegChange::Writable => self.backpressured(leg, false, now),
            LegChange::Open => self.model_open(now),
            LegChange::DialFailed { why } => {
                self.model.state = LegState::Gone;
                self.dialed(DialOutcome::Failed, now);
                self.lose_model(EndReason::DialFailed, why, now);
            }
            LegChange::Closed { code, reason } => {
                // A service that refuses a key may say which.
                let shown = redact::secrets(&reason);
                let detail = match code {
                    Some(code) => format!("closed with {code} {shown}"),
                    None => "closed without a code".to_owned(),
                };
                self.gone(leg, EndReason::CallerClosed, code, &reason, detail.trim_end().to_owned(), now);
            }
            LegChange::Lost { why } => self.gone(leg, EndReason::CallerLost, None, "", why, now),
        }
        self.maintain_invariants(now);
    }

    /// A function call ended.
    pub fn handle_tool(&mut self, result: ToolResult, now: Instant) {
        if let Some(run) = self.phase.leftover().and_then(|leftover| leftover.ended(&result.call_id)) {
            let outcome = if result.output.is_ok() { ToolOutcome::Done } else { ToolOutcome::Failed };
            let output = result.output.unwrap_or_else(|why| tools::failure(&why));
            self.run_out(run, outcome, output, now);
        } else if let Some((conversation, cx)) = &mut self.live(now)
            && let Err(Failure { reason, detail }) = conversation.tool_ended(cx, result)
        {
            self.end(reason, &detail, now);
        }
        self.maintain_invariants(now);
    }

    /// A function ended after its conversation: nobody is told but the record.
    fn run_out(&mut self, run: Run, outcome: ToolOutcome, output: String, now: Instant) {
        let Run { call_id, name, began, response: _ } = run;
        let (took, output) = (Some(now - began), Private::new(output));
        self.cx.event(CallEvent::ToolAnswered { call_id, name, outcome, took, why: None, output });
        self.watch_leftover();
    }

    fn watch_leftover(&mut self) {
        match self.phase.leftover().and_then(|leftover| leftover.due()) {
            Some(at) => self.cx.timers.set(Timer::Tool, at),
            None => self.cx.timers.stop(Timer::Tool),
        }
    }

    /// The world outside wants something.
    pub fn handle_control(&mut self, control: Control, now: Instant) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        match control {
            Control::Replaced => self.end(EndReason::Replaced, "another stream of this call", now),
            Control::HangUp => self.end(EndReason::HungUp, "by the operator", now),
            Control::Drain { by } => self.cx.timers.set(Timer::Drain, by),
            Control::Admitted => self.admitted(now),
            Control::Rejected { why } => self.rejected(why, now),
            Control::StreamOver { failed: true } => {
                self.lost_caller(EndReason::CallerLost, "Twilio reports that the stream failed", now);
            }
            Control::StreamOver { failed: false } => {
                self.end(EndReason::Stopped, "Twilio reports that the stream has stopped", now);
            }
        }
        self.maintain_invariants(now);
    }

    /// The time of [`Call::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.cx.timers.take_due(now) {
            self.on_timer(timer, now);
        }
        self.maintain_invariants(now);
    }

    /// The next thing to do, in order, for both legs.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.cx.outbox.pop_front()
    }

    /// What happened, for people.
    pub fn poll_event(&mut self) -> Option<CallEvent> {
        self.cx.events.pop_front()
    }

    /// When to come back, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        self.cx.timers.next()
    }

    /// Nothing is left to do: both legs are gone and [`CallEvent::Ended`] has been handed out.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over) && self.cx.events.is_empty() && self.cx.outbox.is_empty()
    }

    // ---------------------------------------------------------------------------------------- caller leg

    fn handle_twilio(&mut self, envelope: twilio::Envelope<'_>, now: Instant) {
        let twilio::Envelope { stream_sid, message, .. } = envelope;
        if let (Some(stream), Some(sid)) = (self.phase.stream(), &stream_sid)
            && *stream.sid != **sid
            && !matches!(message, FromTwilio::Start(_))
        {
            return self.malformed(Leg::Caller, "a message of another stream", now);
        }
        match message {
            FromTwilio::Connected => {}
            FromTwilio::Start(start) => self.started(start, now),
            FromTwilio::Media(media) => self.media(&media, now),
            FromTwilio::Dtmf { digit } => {
                if let Some((conversation, cx)) = &mut self.live(now) {
                    conversation.key(cx, digit);
                } else if !self.phase.is_ending() && !self.uplink.keep_key(digit) {
                    self.cx.tolerate("more keys than are kept for a model that is not ready");
                }
            }
            FromTwilio::Mark { name } => {
                let Some(downlink) = self.phase.downlink() else { return };
                match downlink.mark_returned(&name, now) {
                    Returned::Played | Returned::Flushed => {}
                    Returned::Silenced(after) => self.cx.event(CallEvent::Silenced { after }),
                    Returned::Early => {
                        self.cx.tolerate("a mark that came back before its audio could be played")
                    }
                    Returned::Unknown => self.cx.tolerate("a mark the bridge never sent"),
                }
                self.pump(now);
            }
            FromTwilio::Stop => self.end(EndReason::Stopped, "stop", now),
            FromTwilio::Unknown { event } => {
                self.cx.unknown_event(&event);
            }
        }
    }

    fn started(&mut self, start: twilio::Start, now: Instant) {
        let Phase::AwaitingStart { requires_auth } = self.phase else {
            // The first one stands: the stream's identity is settled.
            return self.cx.tolerate("a second start");
        };
        if requires_auth {
            self.cx.outbox.push_back(Transmit::VerifyStream(StreamCredentials {
                call_sid: start.call_sid.clone(),
                account_sid: start.account_sid.clone(),
                token: start.parameters.get(TOKEN_PARAMETER).cloned(),
            }));
            // The time limit of `start` goes on until the stream is admitted.
            self.phase = Phase::AwaitingAdmission { start };
            return;
        }
        self.begin_stream(start, now);
    }

    fn admitted(&mut self, now: Instant) {
        if let Phase::AwaitingAdmission { start } = &self.phase {
            let start = start.clone();
            self.begin_stream(start, now);
        }
    }

    fn rejected(&mut self, why: &str, now: Instant) {
        if matches!(self.phase, Phase::AwaitingAdmission { .. }) {
            self.end(EndReason::Unauthenticated, why, now);
        }
    }

    fn begin_stream(&mut self, start: twilio::Start, now: Instant) {
        self.cx.timers.stop(Timer::Start);
        self.call_sid = Some(start.call_sid.clone());
        // The first ping goes at once: the round trip is wanted before the first word is spoken.
        self.ping(Leg::Caller, now);
        self.cx.event(CallEvent::Started {
            call_sid: start.call_sid.clone(),
            stream_sid: start.stream_sid.clone(),
        });
        let Some(companding) = start.format.companding() else {
            let format = start.format;
            let detail =
                format!("{} at {} Hz, {} channels", format.encoding, format.sample_rate, format.channels);
            return self.end(EndReason::UnsupportedMedia, &detail, now);
        };
        let stream = Stream { sid: start.stream_sid.into(), call_sid: start.call_sid, companding };
        self.uplink.speaks(companding);
        let media_came = self.uplink.waiting() > 0;
        match self.cx.config.dial {
            settings::DialWhen::OnMedia if !media_came => {
                let by = now + ms(self.cx.config.timeouts.first_media_ms);
                self.cx.timers.set(Timer::FirstMedia, by);
                self.phase = Phase::AwaitingMedia { stream };
            }
            settings::DialWhen::OnMedia | settings::DialWhen::OnStart => self.dial_first(stream, now),
        }
    }

    fn dial_first(&mut self, stream: Stream, now: Instant) {
        self.cx.timers.stop(Timer::FirstMedia);
        self.phase = Phase::AwaitingSession { stream };
        self.dial(now);
    }

    /// Dials the model, for the first session or for one that takes over.
    fn dial(&mut self, now: Instant) {
        let Some(call_sid) = self.phase.stream().map(|stream| stream.call_sid.clone()) else { return };
        let (deadline, after_ms) = match (self.phase.renewal(), &self.cx.config.renewal) {
            (Some(renewal), Some(limits)) => {
                renewal.tries += 1;
                (Timer::Renewal, limits.try_ms)
            }
            (None, _) | (_, None) => (Timer::Dial, self.cx.config.timeouts.dial_ms),
        };
        self.cx.timers.set(deadline, now + ms(after_ms));
        self.cx.event(CallEvent::Dialing);
        self.cx.outbox.push_back(Transmit::Dial { call_sid });
        self.model.state = LegState::Dialing;
        self.session = Session::Dialing { since: now };
    }

    /// The dial is over, if there was one.
    fn dialed(&mut self, outcome: DialOutcome, now: Instant) {
        if let Session::Dialing { since } = self.session {
            self.cx.event(CallEvent::Dialed { outcome, took: now - since });
            self.session = Session::Absent;
        }
    }

    fn media(&mut self, media: &twilio::Media, now: Instant) {
        if self.phase.is_ending() {
            return; // the model is gone: what the caller says now is discarded quietly
        }
        self.cx.counts.caller_frames += 1;
        let taken = self.uplink.take(media, now);
        self.cx.counts.filled_ms += taken.filled_ms;
        self.cx.counts.dropped_uplink_ms += taken.dropped_ms;
        self.cx.counts.protected_ms += taken.silenced_ms;
        if let Some(protection) = self.cx.config.protects().filter(|_| self.uplink.is_protected()) {
            self.cx.timers.set_if_unset(Timer::Protection, now + ms(protection.at_most_ms));
        }
        if taken.repeated {
            return self.cx.tolerate("a repeated media chunk");
        }
        if taken.too_fast && !self.outran_time {
            self.outran_time = true; // once: there are thousands of them
            self.cx.tolerate("more caller audio than time has passed");
        }
        if let Phase::AwaitingMedia { stream } = &self.phase {
            let stream = stream.clone();
            self.dial_first(stream, now);
        } else {
            self.with_live(now, Conversation::caller_audio);
        }
    }

    // ---------------------------------------------------------------------------------------- model leg

    fn model_open(&mut self, now: Instant) {
        if !matches!(self.session, Session::Dialing { .. }) {
            return;
        }
        self.dialed(DialOutcome::Connected, now);
        self.model.state = LegState::Open;
        self.session = Session::AwaitingCreated;
        if self.phase.renewal().is_none() {
            let timeouts = &self.cx.config.timeouts;
            self.cx.timers.stop(Timer::Dial);
            self.cx.timers.set(Timer::SessionCreated, now + ms(timeouts.session_created_ms));
            self.cx.timers.set(Timer::ModelPing, now + ms(timeouts.ping_ms));
        }
    }

    fn handle_model(&mut self, event: ServerEvent, now: Instant) {
        if let Phase::Closing { words: Some(words), .. } = &mut self.phase {
            words.model_event(&mut self.cx, event);
        } else if matches!(self.session, Session::Ready { .. }) {
            self.with_conversation(now, |conversation, cx| conversation.model_event(cx, event));
        } else {
            self.configure(&event, now);
        }
    }

    /// The session is settled before the caller's audio is sent.
    fn configure(&mut self, event: &ServerEvent, now: Instant) {
        match self.session.configure(&mut self.cx, event, now) {
            Ok(Configured::Nothing) => {}
            Ok(Configured::Asked) => {
                if self.phase.renewal().is_none() {
                    self.cx.timers.stop(Timer::SessionCreated);
                    let by = now + ms(self.cx.config.timeouts.session_updated_ms);
                    self.cx.timers.set(Timer::SessionUpdated, by);
                }
            }
            Ok(Configured::Confirmed) => self.session_ready(now),
            Err(Failure { reason, detail }) => self.lose_model(reason, detail, now),
        }
    }

    /// A conversation begins, or goes on with what the new session is told of it.
    fn session_ready(&mut self, now: Instant) {
        if let Phase::Live { renewal, .. } = &mut self.phase
            && let Some(Renewing { since, tries }) = renewal.take()
            && let Some(limits) = &self.cx.config.renewal
        {
            let history = self.cx.transcript.history(limits);
            let (outcome, items) = (RenewalOutcome::Renewed, history.len());
            self.cx.event(CallEvent::Renewal { outcome, took: now - since, tries, items });
            self.cx.timers.stop(Timer::Renewal);
            self.cx.timers.set(Timer::ModelPing, now + ms(self.cx.config.timeouts.ping_ms));
            history.into_iter().for_each(|past| self.cx.send_to_model(ClientEvent::History(past)));
            self.on_new_session(now, Conversation::resume_on_new_session);
        } else if let Phase::AwaitingSession { stream } = &self.phase {
            let stream = stream.clone();
            self.cx.timers.stop(Timer::SessionUpdated);
            self.cx.event(CallEvent::Live { after: now - self.cx.began });
            let conversation = Box::new(Conversation::new(self.downlink_to(&stream)));
            self.phase = Phase::Live { stream, conversation, renewal: None };
            self.on_new_session(now, Conversation::begin);
        }
        self.plan_renewal(now);
    }

    /// Whatever waits is sent at once.
    fn on_new_session(&mut self, now: Instant, what: impl FnOnce(&mut Conversation, &mut Cx<'_>)) {
        self.with_live(now, |conversation, cx| {
            cx.model_backpressured = false;
            what(conversation, cx);
        });
    }

    /// A step of the session, or the whole of it, takes too long.
    fn session_overdue(&mut self, what: &str, now: Instant) {
        let is_dialing = matches!(self.session, Session::Dialing { .. });
        let reason = if is_dialing { EndReason::DialFailed } else { EndReason::SessionTimeout };
        self.dialed(DialOutcome::TimedOut, now);
        self.lose_model(reason, format!("{what} did not come in time"), now);
    }

    // ---------------------------------------------------------------------------------------- both legs

    fn leg(&mut self, leg: Leg) -> &mut LegStatus {
        match leg {
            Leg::Caller => &mut self.caller,
            Leg::Model => &mut self.model,
        }
    }

    fn sign_of_life(&mut self, leg: Leg, now: Instant) {
        match leg {
            Leg::Caller => {
                self.cx.timers.stop(Timer::CallerPong);
                if self.cx.timers.is_set(Timer::CallerSilent) {
                    let by = now + ms(self.cx.config.timeouts.caller_silent_ms);
                    self.cx.timers.set(Timer::CallerSilent, by);
                }
            }
            Leg::Model => self.cx.timers.stop(Timer::ModelPong),
        }
    }

    fn malformed(&mut self, leg: Leg, what: &str, now: Instant) {
        self.cx.counts.malformed += 1;
        let (side, reason) = match leg {
            Leg::Caller => ("Twilio", EndReason::CallerMalformed),
            Leg::Model => ("the model", EndReason::ModelLost),
        };
        self.cx.tolerate(&format!("from {side}: {what}"));
        if self.cx.counts.malformed > u64::from(self.cx.config.limits.malformed) {
            self.fail(reason, format!("too many malformed messages, the last from {side}: {what}"), now);
        }
    }

    fn backpressured(&mut self, leg: Leg, backpressured: bool, now: Instant) {
        self.leg(leg).backpressured = backpressured;
        let timer = match leg {
            Leg::Caller => Timer::CallerClogged,
            Leg::Model => Timer::ModelClogged,
        };
        if backpressured {
            self.cx.tolerate(match leg {
                Leg::Caller => "Twilio reads too slowly",
                Leg::Model => "the model reads too slowly",
            });
            let by = now + ms(self.cx.config.timeouts.clogged_ms);
            return self.cx.timers.set_if_unset(timer, by);
        }
        self.cx.timers.stop(timer);
        match leg {
            Leg::Caller => self.pump(now),
            Leg::Model => self.with_live(now, Conversation::send_uplink),
        }
    }

    /// The conversation, if there is one, and what it works with.
    fn live(&mut self, now: Instant) -> Option<(&mut Conversation, Cx<'_>)> {
        let Phase::Live { stream, conversation, renewal: None } = &mut self.phase else { return None };
        let cx = Cx {
            call: &mut self.cx,
            uplink: &mut self.uplink,
            stream,
            caller_backpressured: self.caller.backpressured,
            model_backpressured: self.model.backpressured,
            now,
        };
        Some((conversation, cx))
    }

    /// Something for the conversation, if there is one.
    fn with_live(&mut self, now: Instant, what: impl FnOnce(&mut Conversation, &mut Cx<'_>)) {
        if let Some((conversation, cx)) = &mut self.live(now) {
            what(conversation, cx);
        }
    }

    /// The same, where it may end the call.
    fn with_conversation(
        &mut self,
        now: Instant,
        what: impl FnOnce(&mut Conversation, &mut Cx<'_>) -> Result<(), Failure>,
    ) {
        let Some((conversation, cx)) = &mut self.live(now) else { return };
        if let Err(Failure { reason, detail }) = what(conversation, cx) {
            self.fail(reason, detail, now);
        }
    }

    /// Sends the audio that may be sent, whoever speaks.
    fn pump(&mut self, now: Instant) {
        if let Some((conversation, cx)) = &mut self.live(now) {
            conversation.pump(cx);
        } else if let Phase::Notice { stream, downlink, .. } = &mut self.phase {
            self.cx.pump(downlink, stream, self.caller.backpressured, now);
        }
    }

    /// A connection is no more.
    fn gone(
        &mut self,
        leg: Leg,
        caller_reason: EndReason,
        code: Option<u16>,
        words: &str,
        detail: String,
        now: Instant,
    ) {
        self.leg(leg).state = LegState::Gone;
        match leg {
            Leg::Caller => self.end(caller_reason, &detail, now),
            Leg::Model => {
                let reason = match code {
                    _ if words.contains("maximum duration") => EndReason::SessionExpired,
                    Some(3000..=4999) => EndReason::ModelRefused,
                    _ => EndReason::ModelLost,
                };
                self.lose_model(reason, detail, now);
            }
        }
    }

    /// The model's connection is gone. That ends the call, unless it was to be replaced anyway.
    fn lose_model(&mut self, reason: EndReason, detail: String, now: Instant) {
        match self.phase.renewal() {
            Some(&mut Renewing { tries, .. }) => self.renewal_lost(tries, reason, detail, now),
            None => self.fail(reason, detail, now),
        }
    }

    fn on_timer(&mut self, timer: Timer, now: Instant) {
        // The routine ones say nothing about the health of the call.
        use Timer::{CallerPing, Closing, Keypad, ModelPing, Pace, Protection};
        if !matches!(timer, Pace | CallerPing | ModelPing | Keypad | Protection | Closing) {
            self.cx.event(CallEvent::TimerFired(timer));
        }
        let overdue = |what: &str| format!("{what} did not come in time");
        match timer {
            Timer::Start => self.end(EndReason::NoStart, &overdue("start"), now),
            Timer::FirstMedia => self.fail(EndReason::NoMedia, overdue("media"), now),
            Timer::Dial => self.session_overdue("the connection", now),
            Timer::SessionCreated => self.session_overdue("session.created", now),
            Timer::SessionUpdated => self.session_overdue("session.updated", now),
            Timer::CallerSilent => self.lost_caller(EndReason::CallerSilent, "nothing came from Twilio", now),
            Timer::CallerPong => self.lost_caller(EndReason::CallerSilent, "no pong came from Twilio", now),
            Timer::CallerClogged => self.lost_caller(EndReason::CallerClogged, "Twilio does not read", now),
            Timer::ModelPong => self.lost_model(EndReason::ModelSilent, "no pong came from the model", now),
            Timer::ModelClogged => self.lost_model(EndReason::ModelClogged, "the model does not read", now),
            Timer::CallLimit => self.fail(EndReason::TooLong, "the longest call".to_owned(), now),
            Timer::Drain => self.fail(EndReason::Drained, "the server is shutting down".to_owned(), now),
            Timer::Protection => self.end_protection(ProtectionEnd::Time),
            Timer::Expiry => self.expiring(now),
            Timer::Quiet => self.quiet(now),
            Timer::Renewal => self.renewal_due(now),
            Timer::CallerPing => self.ping(Leg::Caller, now),
            Timer::ModelPing => self.ping(Leg::Model, now),
            Timer::Notice => self.notice_over(now),
            Timer::LastWords => self.words_are_over(now),
            Timer::Closing => self.closing_overdue(now),
            Timer::Mark => {
                let patience = ms(self.cx.config.timeouts.mark_ms);
                if let Some(downlink) = self.phase.downlink() {
                    self.cx.counts.lost_marks += downlink.give_up_marks(patience, now) as u64;
                }
                self.pump(now);
            }
            Timer::Pace => self.pump(now),
            Timer::FirstAudio => self.with_conversation(now, Conversation::first_audio_overdue),
            Timer::Retry => self.with_live(now, Conversation::retry),
            Timer::Keypad => self.with_live(now, Conversation::keypad_complete),
            Timer::Tool => {
                while let Some(run) = self.phase.leftover().and_then(|leftover| leftover.take_late(now)) {
                    self.cx.outbox.push_back(Transmit::CancelTool { call_id: run.call_id.clone() });
                    let output = tools::failure(tool_calls::TOO_LONG);
                    self.run_out(run, ToolOutcome::TimedOut, output, now);
                }
                if let Some((conversation, cx)) = &mut self.live(now)
                    && let Err(Failure { reason, detail }) = conversation.tool_overdue(cx)
                {
                    self.end(reason, &detail, now);
                }
            }
            Timer::Filler => self.with_live(now, Conversation::play_hold_message),
            Timer::DeadAir => self.with_conversation(now, |_, _| {
                let detail = "the caller waited in silence for too long".to_owned();
                Err(Failure { reason: EndReason::ResponseFailed, detail })
            }),
            Timer::Farewell => self.with_live(now, |conversation, cx| conversation.tool_calls.exit(cx)),
            Timer::MediaPause => self.with_live(now, Conversation::media_paused),
        }
    }

    /// The protected window is over.
    fn end_protection(&mut self, why: ProtectionEnd) {
        self.cx.timers.stop(Timer::Protection);
        self.uplink.end_protection();
        self.cx.event(CallEvent::Unprotected { why, silenced: ms(self.cx.counts.protected_ms) });
    }

    /// The way to an ear that was sent nothing so far.
    fn downlink_to(&self, stream: &Stream) -> Downlink {
        Downlink::new(&self.cx.config, stream.companding, self.round_trip)
    }

    /// A pong proves life, and how long the way to Twilio and back takes.
    fn pong(&mut self, leg: Leg, now: Instant) {
        self.sign_of_life(leg, now);
        if leg == Leg::Caller
            && let Some(pinged) = self.pinged.pop_front()
        {
            let round_trip = self.round_trip.map_or(now - pinged, |usual| usual.min(now - pinged));
            self.round_trip = Some(round_trip);
            if let Some(downlink) = self.phase.downlink() {
                downlink.round_trip_seen(round_trip);
            }
        }
    }

    fn ping(&mut self, leg: Leg, now: Instant) {
        let (ping, pong) = match leg {
            Leg::Caller => (Timer::CallerPing, Timer::CallerPong),
            Leg::Model => (Timer::ModelPing, Timer::ModelPong),
        };
        if self.leg(leg).state != LegState::Open {
            return;
        }
        self.cx.outbox.push_back(Transmit::Ping(leg));
        // Pongs come back in order. A missing one makes the next look late, which the smallest round trip ignores.
        if leg == Leg::Caller && self.pinged.len() < PINGS_MAX {
            self.pinged.push_back(now);
        }
        let timeouts = &self.cx.config.timeouts;
        let (again, by) = (now + ms(timeouts.ping_ms), now + ms(timeouts.pong_ms));
        self.cx.timers.set(ping, again);
        self.cx.timers.set_if_unset(pong, by);
    }

    fn expiring(&mut self, now: Instant) {
        let Some(expires) = self.session.take_expiry() else {
            return self.fail(
                EndReason::SessionExpired,
                "the session nears its maximum duration".to_owned(),
                now,
            );
        };
        self.cx.event(CallEvent::ExpiringSoon);
        // Leave room for what is at the ear, the last words and the round trips.
        let room = ms(u64::try_from(self.notice.len()).unwrap_or(0) / 8)
            + ms(self.cx.config.pacing.lead_ms.min(10_000))
            + ms(1_000);
        let last = expires.checked_sub(room).unwrap_or(now);
        self.cx.timers.set(Timer::Expiry, last.max(now));
    }

    // ---------------------------------------------------------------------------------------- the end

    /// The caller's connection is dead: there is nobody left to tell.
    fn lost_caller(&mut self, reason: EndReason, detail: &str, now: Instant) {
        if self.caller.state == LegState::Open {
            self.drop_leg(Leg::Caller);
        }
        self.end(reason, detail, now);
    }

    /// The model's connection is dead: closing it politely would only wait.
    fn lost_model(&mut self, reason: EndReason, detail: &str, now: Instant) {
        self.drop_leg(Leg::Model);
        self.lose_model(reason, detail.to_owned(), now);
    }

    /// The call cannot go on, but the caller is still there: announce it, then let the TwiML go on.
    fn fail(&mut self, reason: EndReason, detail: String, now: Instant) {
        self.announce(reason, detail, RenewalOutcome::Abandoned, now);
    }

    /// The same; `renewal`: what has become of a renewal that was going on.
    fn announce(&mut self, reason: EndReason, detail: String, renewal: RenewalOutcome, now: Instant) {
        if self.phase.is_ending() {
            return;
        }
        let Some(stream) = self.phase.stream().cloned().filter(|_| self.caller.state == LegState::Open)
        else {
            return self.end(reason, &detail, now);
        };
        self.dialed(DialOutcome::Abandoned, now);
        self.renewal_over(renewal, now);
        let renews =
            self.cx.config.renewal.is_some() && matches!(self.phase, Phase::Live { renewal: None, .. });
        if renews && reason == EndReason::SessionExpired {
            let (outcome, took) = (RenewalOutcome::Missed, Duration::ZERO);
            self.cx.event(CallEvent::Renewal { outcome, took, tries: 0, items: 0 });
        }
        self.close_leg(Leg::Model, NORMAL);
        self.session = Session::Absent;
        self.cx.timers.stop_conversation();
        let phase = std::mem::replace(&mut self.phase, Phase::Over);
        let (mut downlink, leftover) = if let Phase::Live { conversation, .. } = phase {
            conversation.end(&mut self.cx, now)
        } else {
            (self.downlink_to(&stream), Leftover::default())
        };
        let truncations = downlink.drop_buffered();
        self.cx.transcript.truncate_all(&truncations);
        downlink.push_prompt(&self.notice);
        let spoken = ms(u64::try_from(self.notice.len()).unwrap_or(0) / 8);
        let patience = ms(self.cx.config.timeouts.notice_ms);
        // What is at the ear plays out first, but the notice is not kept waiting for ever.
        let by = now + downlink.lead(now).min(Duration::from_secs(30)) + spoken + patience;
        self.cx.timers.set(Timer::Notice, by);
        self.cx.event(CallEvent::Notice { reason });
        self.cx.pump(&mut downlink, &stream, self.caller.backpressured, now);
        self.phase = Phase::Notice { stream, reason, detail, downlink: Box::new(downlink), leftover };
        self.watch_leftover();
    }

    /// The caller has heard why, or had the time to.
    fn notice_over(&mut self, now: Instant) {
        if let Phase::Notice { reason, detail, .. } = &self.phase {
            let (reason, detail) = (*reason, detail.clone());
            self.end(reason, &detail, now);
        }
    }

    /// The call is over. Closes whatever is open; nothing of it remains after the closing time.
    fn end(&mut self, reason: EndReason, detail: &str, now: Instant) {
        if matches!(self.phase, Phase::Closing { .. } | Phase::Over) {
            return;
        }
        // A stream that ends while Twilio is being asked to end or move the call ends because of that.
        let reason = match (reason, &self.phase) {
            (
                EndReason::Stopped | EndReason::CallerClosed | EndReason::CallerLost,
                Phase::Live { conversation, .. },
            ) => conversation.tool_calls.exit_action().map_or(reason, hangup::ExitAction::reason),
            (reason, _) => reason,
        };
        self.renewal_over(RenewalOutcome::Abandoned, now);
        let detail = &self.with_what_never_came(reason, detail);
        let flows = self.model.state == LegState::Open && !self.model.backpressured;
        // A stream that took over goes on with the call, and with a session of its own.
        let waits = flows && reason != EndReason::Replaced && self.cx.config.timeouts.last_words_ms > 0;
        let (mut words, mut leftover) = (None, Leftover::default());
        // A call that was failing when its caller left ended because it was failing.
        let phase = std::mem::replace(&mut self.phase, Phase::Over);
        let (reason, detail) = if let Phase::Notice { reason, detail, downlink, leftover: runs, .. } = phase {
            leftover = runs;
            self.cx.transcript.truncate_all(&downlink.unheard(now));
            (reason, detail)
        } else {
            if let Phase::Live { mut conversation, renewal, .. } = phase {
                words = if waits && renewal.is_none() { conversation.last_words(&mut self.cx) } else { None };
                let (downlink, runs) = conversation.end(&mut self.cx, now);
                leftover = runs;
                self.cx.transcript.truncate_all(&downlink.unheard(now));
            }
            (reason, detail.to_owned())
        };
        self.cx.timers.stop_all();
        // The one end that is the other side's fault says so.
        let code = if reason == EndReason::Unauthenticated { POLICY_VIOLATION } else { NORMAL };
        self.dialed(DialOutcome::Abandoned, now);
        self.session = Session::Absent;
        let is_waited_for = words.is_some();
        self.phase = Phase::Closing { reason, detail, words, leftover, left_at: None };
        self.watch_leftover();
        if is_waited_for {
            self.cx.timers.set(Timer::LastWords, now + ms(self.cx.config.timeouts.last_words_ms));
        } else {
            self.cx.transcript.close();
            self.close_leg(Leg::Model, NORMAL);
        }
        self.close_leg(Leg::Caller, code);
        self.cx.timers.set(Timer::Closing, now + ms(self.cx.config.timeouts.closing_ms));
    }

    /// The words of a caller who is gone have come, or are waited for no longer: the session is closed, too.
    fn words_are_over(&mut self, now: Instant) {
        let Phase::Closing { words, .. } = &mut self.phase else { return };
        if words.take().is_none() {
            return;
        }
        self.cx.timers.stop(Timer::LastWords);
        self.cx.transcript.close();
        self.close_leg(Leg::Model, NORMAL);
        self.cx.timers.set(Timer::Closing, now + ms(self.cx.config.timeouts.closing_ms));
    }

    /// The session is kept for the words of a caller who is gone.
    const fn expects_last_words(&self) -> bool {
        matches!(self.phase, Phase::Closing { words: Some(_), .. })
    }

    /// A stream that its own end gave up before it carried anything says so in the log, where only the reason is read.
    fn with_what_never_came(&self, reason: EndReason, detail: &str) -> String {
        let theirs = matches!(
            reason,
            EndReason::Stopped | EndReason::CallerClosed | EndReason::CallerLost | EndReason::CallerSilent
        );
        match (&self.phase, self.cx.counts.caller_frames) {
            (Phase::AwaitingStart { .. }, _) if theirs => format!("{detail}; no start had come"),
            (_, 0) if theirs => format!("{detail}; no audio of the caller had come"),
            (_, _) => detail.to_owned(),
        }
    }

    fn close_leg(&mut self, leg: Leg, code: u16) {
        match self.leg(leg).state {
            LegState::Open => {
                self.leg(leg).state = LegState::Closing;
                self.cx.outbox.push_back(Transmit::Close { leg, code, reason: "" });
            }
            LegState::Dialing => self.drop_leg(leg),
            LegState::Absent => self.leg(leg).state = LegState::Gone,
            LegState::Closing | LegState::Gone => {}
        }
    }

    fn drop_leg(&mut self, leg: Leg) {
        self.leg(leg).state = LegState::Gone;
        self.cx.outbox.push_back(Transmit::Drop(leg));
    }

    fn drop_legs(&mut self) {
        for leg in [Leg::Caller, Leg::Model] {
            if self.leg(leg).state != LegState::Gone {
                self.drop_leg(leg);
            }
        }
    }

    /// Restores what must hold between two inputs.
    fn maintain_invariants(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        self.waiting = Waiting {
            uplink_bytes: self.uplink.waiting(),
            downlink_bytes: self.phase.downlink().map_or(0, |downlink| downlink.buffered_bytes()),
        };
        if self.uplink.is_protected()
            && self.cx.config.greeting_guard.is_some_and(|protection| protection.until == Until::Heard)
            && let Phase::Live { conversation, renewal: None, .. } = &self.phase
            && let Some(why) = conversation.first_words.over(&conversation.downlink)
        {
            self.end_protection(why);
        }
        let held = (self.waiting.uplink_bytes + self.waiting.downlink_bytes) as u64;
        self.cx.counts.peak_held_bytes = self.cx.counts.peak_held_bytes.max(held);
        let floor = if let Some((conversation, cx)) = &mut self.live(now) {
            conversation.exit_if_heard(cx);
            conversation.watch_silence(cx);
            conversation.floor(now)
        } else {
            Floor::default()
        };
        if std::mem::replace(&mut self.floor, floor) != floor {
            self.cx.event(CallEvent::Floor(floor));
        }
        if matches!(&self.phase, Phase::Notice { downlink, .. } if downlink.is_quiet()) {
            self.notice_over(now);
        }
        self.watch_quiet(now);
        if let Phase::Closing { words: Some(words), .. } = &self.phase
            && (words.are_complete() || self.model.state != LegState::Open)
        {
            self.words_are_over(now);
        }
        for said in self.cx.transcript.news() {
            self.cx.event(CallEvent::Said(said));
        }
        let forgotten = self.cx.transcript.forget(&self.cx.config.limits);
        if forgotten > 0 {
            if self.cx.counts.forgotten_items == 0 {
                self.cx.tolerate("a conversation beyond its limits: its beginning is forgotten");
            }
            self.cx.counts.forgotten_items += forgotten;
        }
        if let Phase::Closing { reason, detail, leftover, left_at, .. } = &mut self.phase
            && self.caller.state == LegState::Gone
            && self.model.state == LegState::Gone
        {
            // It lasted until both were gone, however long a function still takes.
            let left_at = *left_at.get_or_insert(now);
            if !leftover.is_empty() {
                return;
            }
            let ended = CallEvent::Ended {
                reason: *reason,
                detail: detail.clone(),
                lasted: left_at - self.cx.began,
                counts: Box::new(self.cx.counts.clone()),
                transcript: self.cx.transcript.lines(),
            };
            self.cx.timers.stop_all();
            self.cx.event(ended);
            self.phase = Phase::Over;
        }
    }

    /// Audio the call holds.
    pub const fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// The call's identity, once `start` has come.
    pub fn call_sid(&self) -> Option<&str> {
        self.call_sid.as_deref()
    }
}

#[cfg(test)]
mod tests;
