//! What the scenario grants: the network's delays, the settings, and how far two honest clocks may be apart.
//!
//! Every tolerance of every oracle is made of these: what the network at that moment could do to a
//! message, and what the backend adds by looking at its clock in steps. In an ideal network on the memory backend all of
//! it is zero.

use super::real_time;
use super::sessions::{followed, news};
use crate::model::backend::Backend;
use crate::model::network::LegConditions;
use crate::model::scenario::{CallPlan, Scenario};
use crate::oracle::audio_attribution::Attribution;
use crate::sim::trace::{CallTrace, Trace};
use bridge::audio::Format;
use bridge::call::event::CallEvent;
use bridge::call::settings::CallConfig;
use bridge::call::settings::{END_CALL, TRANSFER_CALL};
use mocks::peer::At;
use mocks::realtime::{CLOSE_FRAME, Echoes, Happening, ModelScript, Opening, Outcome, Turn};
use mocks::record::{CallerObservation, Ending, ModelObservation, Observation};
use mocks::twilio::{CallerStep, EchoMarks, Idle};
use std::cell::OnceCell;

pub use bridge::call::Leg;

/// Steps of the simulated network's clock between a cause and what one leg makes of it: out of one host, through
/// the network, into the other.
const TICKS_PER_LEG: u64 = 3;
/// The steps of tokio's timers, in which the pipes see time.
const TIMER_STEP_US: u64 = 1_000;
/// For how long after an outage the ear may still be where the bridge does not expect it: until the marks of the
/// audio that was held up have come back.
const AFTERMATH_US: u64 = 2_000_000;
/// What a microphone sends at once, ms.
const FRAME_MS: u64 = 20;
/// How long before and after a message an outage may begin or end and still concern it.
const NEAR_US: u64 = 100_000;
/// A message to Twilio without what is particular to it: its JSON, its `streamSid`, its WebSocket frame.
const ENVELOPE_BYTES: usize = 100;
/// A ping with its payload.
const PING_BYTES: usize = 12;
/// What speech in real time takes on the wire: base64, JSON, marks.
const SPEECH_BYTES_PER_S: u64 = 13_000;
/// How exactly the size of what was read is known, as time.
const READING_US: u64 = 5_000;
/// A clear this soon after the model was lost belongs to the loss.
const BECAUSE_US: u64 = 3_000_000;
/// What the service waits for in its own default settings when a function does not say.
const TOOL_TIMEOUT_MS: u64 = 15_000;

/// Whether the model takes the caller to be speaking at `at`.
pub(crate) fn hears_speech(observations: &[Observation<ModelObservation>], at: At) -> bool {
    let last = observations.iter().rev().filter(|s| s.at <= at).find_map(|s| {
        let started = matches!(s.what, ModelObservation::SentSpeechStarted { .. });
        (started || matches!(s.what, ModelObservation::SentSpeechStopped { .. })).then_some(started)
    });
    last == Some(true)
}

/// The tolerance on which one call is judged.
pub(crate) struct Tolerance<'a> {
    pub(crate) config: &'a CallConfig,
    scenario: &'a Scenario,
    pub(crate) plan: &'a CallPlan,
    call: &'a CallTrace,
    backend: Backend,
    lag_us: u64,
    /// [`Self::over`], once it was looked for.
    over: OnceCell<At>,
    /// [`Self::model_over`] of each connection, once it was looked for.
    model_over: Vec<OnceCell<At>>,
}

impl<'a> Tolerance<'a> {
    pub(crate) fn of(trace: &'a Trace, index: usize) -> Self {
        let scenario = &*trace.scenario;
        let call = &trace.calls[index];
        let mut left = call.index;
        let plan = scenario.calls.iter().find(|plan| {
            let repeat = plan.repeat as usize;
            let found = left < repeat;
            left = left.saturating_sub(repeat);
            found
        });
        let plan =
            plan.or(scenario.calls.last()).expect("a scenario without calls is refused when it is read");
        Self {
            config: &scenario.bridge,
            scenario,
            plan,
            call,
            backend: trace.backend,
            lag_us: trace.lag_us,
            over: OnceCell::new(),
            model_over: vec![OnceCell::new(); call.models.len()],
        }
    }

    fn conditions(&self, leg: Leg) -> &LegConditions {
        match leg {
            Leg::Caller => &self.scenario.network.caller,
            Leg::Model => &self.scenario.network.model,
        }
    }

    // ---------------------------------------------------------------------------------------- the network

    /// One way, microseconds.
    pub(crate) fn latency(&self, leg: Leg) -> u64 {
        self.conditions(leg).latency_ms * 1_000
    }

    /// What this backend adds to the time a message takes on one leg, microseconds.
    pub(crate) fn backend_us(&self) -> u64 {
        match self.backend {
            Backend::Memory => 0,
            Backend::Simulated => TICKS_PER_LEG * self.scenario.world.tick_us,
            Backend::Pipes => TIMER_STEP_US,
            Backend::Loopback | Backend::Attach => real_time::real_time_us(self.backend, self.lag_us),
        }
    }

    /// What real time grants on both legs together, microseconds: nothing where the clock is simulated.
    pub(crate) const fn real_time_us(&self) -> u64 {
        2 * real_time::real_time_us(self.backend, self.lag_us)
    }

    /// The bridge tells what it does and why. Somebody else's does not, so what only it could know is not asked.
    pub(crate) const fn bridge_speaks(&self) -> bool {
        !matches!(self.backend, Backend::Attach)
    }

    /// How long the queues before this leg's narrow lines may be, in both directions together, microseconds.
    fn queues_us(&self, leg: Leg) -> u64 {
        self.conditions(leg).uplink.queue_us() + self.conditions(leg).downlink.queue_us()
    }

    /// How long the outages are that lie between these times, microseconds.
    pub(crate) fn outages(&self, leg: Leg, from: u64, to: u64) -> u64 {
        self.conditions(leg)
            .stalls
            .iter()
            .filter(|stall| stall.at_ms * 1_000 <= to && (stall.at_ms + stall.for_ms) * 1_000 >= from)
            .map(|stall| stall.for_ms * 1_000)
            .sum()
    }

    /// How much longer than its latency something said at `at` and its answer may take on this leg, microseconds.
    pub(crate) fn slack(&self, leg: Leg, at: At) -> u64 {
        self.backend_us() + self.jitter_us(leg) + self.queues_us(leg) + self.outages_near(leg, at)
    }

    /// Both ways, microseconds.
    pub(crate) fn jitter_us(&self, leg: Leg) -> u64 {
        2 * self.conditions(leg).jitter_ms * 1_000
    }

    /// The outages that may lie on the way of something said at `at` on this leg, or of its answer, microseconds.
    fn outages_near(&self, leg: Leg, at: At) -> u64 {
        let until = at.0.saturating_add(2 * self.latency(leg) + self.jitter_us(leg) + NEAR_US);
        self.outages(leg, at.0.saturating_sub(NEAR_US), until)
    }

    /// Whether an outage may lie on the way of something said at `at` on this leg, or of its answer.
    pub(crate) fn is_held_up(&self, leg: Leg, at: At) -> bool {
        self.outages_near(leg, at) > 0
    }

    /// The least time that something said at `at` on this leg, or its answer, needs for its way. At the end of an outage
    /// the simulated network lets everything arrive that was under way.
    pub(crate) fn least_way(&self, leg: Leg, at: At) -> u64 {
        if self.is_held_up(leg, at) { 0 } else { self.latency(leg) }
    }

    /// How many outages this leg has had by `at`, and how long they were in all, microseconds.
    pub(crate) fn outages_until(&self, leg: Leg, at: At) -> (usize, u64) {
        let count = self.conditions(leg).stalls.iter().filter(|stall| stall.at_ms * 1_000 <= at.0).count();
        (count, self.outages(leg, 0, at.0))
    }

    /// What was said on this leg more than this before `at`, microseconds, was known to whoever wrote what arrived at
    /// `at` in answer: both ways, and every outage that may lie on them.
    pub(crate) fn round_trip_until(&self, leg: Leg, at: At) -> u64 {
        let one_way = self.latency(leg) + 2 * self.conditions(leg).jitter_ms * 1_000 + self.queues_us(leg);
        let usual = self.backend_us() + 2 * one_way;
        let mut held = 0;
        loop {
            let from = at.0.saturating_sub(usual + held + NEAR_US);
            let found = self.outages(leg, from, at.0);
            if found == held {
                return usual + held;
            }
            held = found;
        }
    }

    /// How far behind its schedule this leg may be at `at`: the slack, and what outages before have left behind.
    pub(crate) fn held_up(&self, leg: Leg, at: At) -> u64 {
        let jitter = self.conditions(leg).jitter_ms * 1_000;
        let until = at.0 + self.latency(leg) + jitter + NEAR_US;
        let outages = self.outages(leg, at.0.saturating_sub(AFTERMATH_US), until);
        self.backend_us() + jitter + self.queues_us(leg) + outages
    }

    /// The caller's end reads no faster than it is told to.
    pub(crate) fn reads_slowly(&self) -> bool {
        self.conditions(Leg::Caller).reads_bytes_per_s.is_some()
    }

    /// The caller's end does not even take what is spoken in real time: the ear falls behind without end.
    pub(crate) fn reads_slower_than_speech(&self) -> bool {
        self.conditions(Leg::Caller).reads_bytes_per_s.is_some_and(|rate| rate < SPEECH_BYTES_PER_S)
    }

    /// How long a caller's end that reads slowly goes on reading what lay in front of something that reached it at
    /// `at`, microseconds: until the first moment at which it had nothing to read.
    pub(crate) fn reading_us(&self, at: At) -> u64 {
        let Some(rate) = self.conditions(Leg::Caller).reads_bytes_per_s else { return 0 };
        let jitter = 2 * self.conditions(Leg::Caller).jitter_ms * 1_000;
        let mut busy_until = At(0);
        for seen in self.call.caller.observations.iter() {
            let bytes = if let CallerObservation::GotMedia { len, .. } = &seen.what {
                len.div_ceil(3) * 4 + ENVELOPE_BYTES
            } else if let CallerObservation::GotMark { name, .. } = &seen.what {
                name.len() + ENVELOPE_BYTES
            } else if let CallerObservation::GotPing = &seen.what {
                PING_BYTES
            } else {
                continue;
            };
            // A message is seen when its reading begins, or when what was read at one time ends with it.
            let begins = busy_until.max(seen.at.min(at));
            let takes = bytes as u64 * 1_000_000 / rate.max(1);
            if seen.at.0 > begins.0 + takes + READING_US + self.backend_us() + jitter {
                break;
            }
            busy_until = seen.at.max(At(begins.0 + takes));
        }
        busy_until.0.saturating_sub(at.0)
    }

    /// All outages, jitter and queues of both legs together, microseconds.
    pub(crate) fn held_up_in_all(&self) -> u64 {
        let held_up = |leg| {
            2 * self.conditions(leg).jitter_ms * 1_000 + self.queues_us(leg) + self.outages(leg, 0, u64::MAX)
        };
        [Leg::Caller, Leg::Model].into_iter().map(held_up).sum()
    }

    /// Nothing but latency on both legs, and a microphone on its grid.
    pub(crate) fn is_ideal(&self) -> bool {
        let holds = |step: &CallerStep| matches!(step, CallerStep::PausesMedia(_));
        self.conditions(Leg::Caller).is_ideal()
            && self.conditions(Leg::Model).is_ideal()
            && self.plan.caller.arrival_jitter_ms + self.plan.caller.first_frame_late_ms == 0
            && !self.plan.caller.steps.iter().any(holds)
    }

    /// What an ear that gathers before it plays adds to each beginning, microseconds.
    pub(crate) fn gathering_us(&self) -> u64 {
        self.plan.caller.play_out_ms * 1_000
    }

    /// A caller's end that reads slowly is somewhere before the mark it owes, microseconds.
    pub(crate) fn behind_a_mark_us(&self) -> u64 {
        let slow = self.conditions(Leg::Caller).reads_bytes_per_s.is_some();
        if slow { self.config.pacing.mark_every_ms * 1_000 } else { 0 }
    }

    /// How far the bridge's idea of what was heard may be off, ms.
    pub(crate) fn unsure_ms(&self) -> usize {
        ((2 * self.latency(Leg::Caller) + self.held_up_in_all() + self.gathering_us()) / 1_000 + 20) as usize
    }

    // ----------------------------------------------------------------------------------- the caller's end

    fn caller_at(&self, is: impl Fn(&CallerObservation) -> bool) -> Option<At> {
        self.call.caller.observations.iter().find(|s| is(&s.what)).map(|s| s.at)
    }

    fn dark(&self, leg: Leg) -> Option<At> {
        self.conditions(leg).blackhole_at_ms.map(At::ms)
    }

    /// When the script's step of this kind was begun.
    fn step_at(&self, is: impl Fn(&CallerStep) -> bool) -> Option<At> {
        self.call.caller.observations.iter().find_map(|s| {
            let CallerObservation::Step { index, .. } = s.what else { return None };
            self.plan.caller.steps.get(index).is_some_and(&is).then_some(s.at)
        })
    }

    /// When the caller's end stopped being there, whoever ended it.
    pub(crate) fn over(&self) -> At {
        *self.over.get_or_init(|| self.find_over())
    }

    fn find_over(&self) -> At {
        let ended =
            self.caller_at(|s| matches!(s, CallerObservation::SentStop | CallerObservation::Ended(_)));
        let left = |s: &CallerStep| matches!(s, CallerStep::GoesDark | CallerStep::ClosesWithoutStop);
        [ended, self.dark(Leg::Caller), self.step_at(left)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(At(u64::MAX))
    }

    /// When the caller left, if the bridge did not end the call before.
    pub(crate) fn caller_gone(&self) -> Option<At> {
        let over = self.over();
        let closed = self.closed_by_bridge();
        (over != At(u64::MAX) && closed.is_none_or(|closed| over < closed)).then_some(over)
    }

    /// When the bridge closed the stream, as the caller's end saw it. Between real sockets of one machine a connection
    /// is lost by nobody else.
    pub(crate) fn closed_by_bridge(&self) -> Option<At> {
        let lost = |s: &CallerObservation| {
            matches!(s, CallerObservation::Ended(Ending::Lost { .. })) && !self.bridge_speaks()
        };
        self.caller_at(|s| matches!(s, CallerObservation::Ended(Ending::ByPeer { .. })) || lost(s))
    }

    /// The caller's end takes and plays what it is sent.
    pub(crate) fn ear_works(&self) -> bool {
        let deaf = |step: &CallerStep| matches!(step, CallerStep::GoesDark | CallerStep::StopsReading);
        !self.plan.caller.steps.iter().any(deaf)
            && self.dark(Leg::Caller).is_none()
            && self.conditions(Leg::Caller).reads_bytes_per_s.is_none()
    }

    /// The caller's end tells when something was played.
    pub(crate) fn marks_come_back(&self) -> bool {
        self.plan.caller.echo_marks == EchoMarks::default()
    }

    /// How late the marks of this caller's carrier are, microseconds.
    pub(crate) fn late_marks_us(&self) -> u64 {
        let late = if let EchoMarks::Late(ms) = self.plan.caller.echo_marks { ms } else { 0 };
        late.max(self.plan.caller.flushed_after_ms) * 1_000
    }

    /// The ear holds less than Twilio's does.
    pub(crate) fn ear_is_short(&self) -> bool {
        self.plan.caller.queue_limit_bytes < mocks::twilio::CallerScript::default().queue_limit_bytes
    }

    /// Bytes the ear holds.
    pub(crate) fn ear_limit(&self) -> usize {
        self.plan.caller.queue_limit_bytes
    }

    /// Audio that was sent before its stream began, ms.
    pub(crate) fn early_media_ms(&self) -> u64 {
        u64::from(self.plan.caller.media_before_start) * 20
    }

    /// The microphone or the network may leave the bridge without audio in the middle of speech, between these times.
    pub(crate) fn caller_may_pause(&self, from: At, to: At) -> bool {
        let pauses = |step: &CallerStep| matches!(step, CallerStep::PausesMedia(_) | CallerStep::Dtx(true));
        let caller = &self.plan.caller;
        let uneven_ms = caller.arrival_jitter_ms
            + caller.first_frame_late_ms
            + self.conditions(Leg::Caller).jitter_ms
            + FRAME_MS;
        caller.idle == Idle::Dtx
            || caller.steps.iter().any(pauses)
            || self.config.timeouts.media_pause_ms <= uneven_ms
            || self.outages(Leg::Caller, from.0.saturating_sub(AFTERMATH_US), to.0) > 0
    }

    // ------------------------------------------------------------------------------------ the model's end

    fn model_at(&self, m: usize, is: impl Fn(&ModelObservation) -> bool) -> Option<At> {
        self.call.models[m].observations.iter().find(|s| is(&s.what)).map(|s| s.at)
    }

    /// When the model fell silent without a word, if it did.
    fn model_dark(&self, m: usize) -> Option<At> {
        let opened = self.model_at(m, |s| matches!(s, ModelObservation::Opened));
        let script = self.plan.model.of_connection(m);
        let scripted = opened.zip(script.goes_dark_after_ms).map(|(opened, ms)| opened.plus_ms(ms));
        let silent = opened.filter(|_| script.opening == Opening::Silent);
        // It may have been reached by what left before, and be heard by nobody; or never have been reached.
        let blackhole = self.dark(Leg::Model).map(|at| at.max(opened.unwrap_or(at)));
        [scripted, silent, blackhole].into_iter().flatten().min()
    }

    /// When this model connection stopped being there, whoever ended it.
    pub(crate) fn model_over(&self, m: usize) -> At {
        *self.model_over[m].get_or_init(|| self.find_model_over(m))
    }

    fn find_model_over(&self, m: usize) -> At {
        let ended = self.model_at(m, |s| {
            matches!(s, ModelObservation::Ended(_) | ModelObservation::Refused { .. }) || is_close_frame(s)
        });
        [ended, self.model_dark(m)].into_iter().flatten().min().unwrap_or(At(u64::MAX))
    }

    /// When the bridge may have given this session up, at the earliest: its close is on its way for a while. What
    /// reaches the bridge later finds nobody.
    pub(crate) fn given_up(&self, m: usize) -> At {
        let over = self.model_over(m);
        let closed = self.model_at(m, |s| matches!(s, ModelObservation::Ended(Ending::ByPeer { .. })));
        let way = self.latency(Leg::Model) + self.slack(Leg::Model, over);
        if closed == Some(over) { At(over.0.saturating_sub(way)) } else { over }
    }

    /// When this session ends by itself.
    pub(crate) fn expires_at(&self, m: usize) -> Option<At> {
        let opened = self.model_at(m, |s| matches!(s, ModelObservation::Opened))?;
        Some(At(opened.0 + self.session_s(m) * 1_000_000))
    }

    /// Whether the last session came so near its end by `at` that the bridge had a reason to end the call.
    pub(crate) fn session_ran_out(&self, at: At) -> bool {
        let last = (0..self.call.models.len()).rev().find_map(|m| self.expires_at(m));
        // Sessions are told when they end in whole seconds.
        let before = (self.config.timeouts.before_expiry_ms + 1_000) * 1_000;
        last.is_some_and(|end| at.0 + before + self.slack(Leg::Model, at) >= end.0)
    }

    /// The call had lasted as long as it may by `at`.
    pub(crate) fn is_too_long(&self, at: At) -> bool {
        let opened = self.caller_at(|s| matches!(s, CallerObservation::Opened));
        let limit = self.config.timeouts.call_ms * 1_000;
        // The bridge counts from its own answer to the upgrade, which the caller sees a way later.
        let slack = |opened| self.slack(Leg::Caller, at) + self.slack(Leg::Caller, opened);
        let earlier = |opened| self.latency(Leg::Caller) + slack(opened);
        opened.is_some_and(|opened| at.0 + earlier(opened) >= opened.0.saturating_add(limit))
    }

    /// The caller's audio is in a format that no bridge has to read.
    pub(crate) fn speaks_no_g711(&self) -> bool {
        let format = &self.plan.caller.media_format;
        let encoding = format.encoding.to_ascii_lowercase();
        let known = ["mulaw", "alaw", "pcmu", "pcma"].iter().any(|law| encoding.ends_with(law));
        !known || (format.sample_rate, format.channels) != (8_000, 1)
    }

    /// More of what both ends sent by `at` was rubbish than the bridge has to put up with.
    pub(crate) fn is_too_much_rubbish(&self, at: At) -> bool {
        let raw = |s: &&Observation<CallerObservation>| matches!(s.what, CallerObservation::SentRaw { .. });
        let odd = |s: &&Observation<ModelObservation>| matches!(&s.what, ModelObservation::SentOther { kind } if self.is_odd(kind));
        let callers = self.call.caller.observations.iter().filter(raw).filter(|s| s.at <= at).count();
        let models = self.call.models.iter().flat_map(|model| &model.observations);
        callers + models.filter(odd).filter(|s| s.at <= at).count() > self.config.limits.malformed as usize
    }

    /// By `at` the settings gave the bridge a reason to end the call, whatever its two ends still wanted.
    pub(crate) fn settings_end_it(&self, at: At) -> bool {
        self.is_too_long(at) || self.speaks_no_g711() || self.is_too_much_rubbish(at)
    }

    /// When the bridge could know that this model connection had failed: it was refused, or it ended although
    /// nobody had ended the call.
    pub(crate) fn model_broke(&self, m: usize) -> Option<At> {
        let refused = self.model_at(m, |s| matches!(s, ModelObservation::Refused { .. }));
        // Between real sockets of one machine a connection is lost by the bridge alone.
        let lost = |s: &ModelObservation| {
            matches!(s, ModelObservation::Ended(Ending::Lost { .. })) && self.bridge_speaks()
        };
        let ended = self.model_at(m, |s| {
            matches!(s, ModelObservation::Ended(Ending::ByUs { .. })) || lost(s) || is_close_frame(s)
        });
        let dark = self.model_dark(m).map(|at| At(at.0 + self.unnoticed_us(Leg::Model)));
        [refused, ended, dark].into_iter().flatten().min().filter(|at| *at < self.over())
    }

    /// Another connection was made after this one.
    pub(crate) fn model_came_back(&self, m: usize) -> bool {
        (m + 1..self.call.models.len())
            .any(|next| self.model_at(next, |s| matches!(s, ModelObservation::Opened)).is_some())
    }

    /// The longest that the caller's microphone was held up, microseconds: what it heard meanwhile comes at once.
    pub(crate) fn mic_held_us(&self) -> u64 {
        let held = |step: &CallerStep| if let CallerStep::PausesMedia(ms) = step { *ms } else { 0 };
        self.plan.caller.steps.iter().map(held).max().unwrap_or(0) * 1_000
    }

    /// What this model says at `at` reaches nobody any more.
    pub(crate) fn model_speaks_into_the_dark(&self, m: usize, at: At) -> bool {
        self.model_dark(m).is_some_and(|dark| At(at.0 + self.latency(Leg::Model)) >= dark)
    }

    /// A close reaches this model.
    pub(crate) fn model_hears(&self, m: usize) -> bool {
        self.model_dark(m).is_none()
    }

    /// How long the death of this leg can go unnoticed, microseconds: no longer than a ping and its pong.
    pub(crate) fn unnoticed_us(&self, leg: Leg) -> u64 {
        let quiet = match leg {
            Leg::Caller => !self.ear_works() || !self.plan.caller.pong,
            Leg::Model => {
                let silent = |script: ModelScript| {
                    script.goes_dark_after_ms.is_some() || script.opening == Opening::Silent
                };
                (0..self.call.models.len()).any(|m| silent(self.plan.model.of_connection(m)))
                    || self.dark(Leg::Model).is_some()
            }
        };
        let timeouts = &self.config.timeouts;
        if quiet { (timeouts.ping_ms + timeouts.pong_ms + timeouts.clogged_ms) * 1_000 } else { 0 }
    }

    /// How long a session may be, and has to be, kept for the words of a caller who is gone, microseconds.
    pub(crate) fn last_words_us(&self) -> u64 {
        if self.config.transcription.is_some() { self.config.timeouts.last_words_ms * 1_000 } else { 0 }
    }

    /// When the model confirmed the session.
    pub(crate) fn ready_at(&self, m: usize) -> Option<At> {
        self.model_at(m, |s| matches!(s, ModelObservation::SentSessionUpdated))
    }

    /// How long this session may last, seconds.
    pub(crate) fn session_s(&self, m: usize) -> u64 {
        self.plan.model.of_connection(m).expires_after_s.unwrap_or(mocks::realtime::SESSION_S)
    }

    /// When the last session before this one ended, if there was one.
    pub(crate) fn without_model_since(&self, m: usize) -> Option<At> {
        (0..m).filter(|before| self.ready_at(*before).is_some()).map(|before| self.model_over(before)).max()
    }

    /// The session is as the bridge asked for it, as far as it says so.
    pub(crate) fn session_fits(&self, m: usize) -> bool {
        let script = self.plan.model.of_connection(m);
        match script.echoes {
            Some(
                Echoes::NoTurnDetection
                | Echoes::SemanticVad
                | Echoes::OtherAnswers
                | Echoes::OtherInterruptions,
            ) => return false,
            Some(Echoes::NoTools) if self.offers_functions() => return false,
            Some(Echoes::NoTools | Echoes::Less) | None => {}
        }
        match script.echoes_format {
            Some(format) => self.wanted_format().is_none_or(|wanted| wanted == format.name()),
            None => !script.never_updates && script.refuses_update.is_none(),
        }
    }

    fn offers_functions(&self) -> bool {
        let leaving = &self.config.hangup;
        !self.config.tools.is_empty() || leaving.end_call || !leaving.transfer.is_empty()
    }

    /// The script takes whatever format it is asked for.
    pub(crate) fn wants_no_other_format(&self, m: usize) -> bool {
        self.plan.model.of_connection(m).echoes_format.is_none()
    }

    /// The format both directions of the session should have.
    pub(crate) fn wanted_format(&self) -> Option<&'static str> {
        match self.config.format {
            Format::Pcmu => Some("audio/pcmu"),
            Format::Pcma => Some("audio/pcma"),
            Format::Pcm24k => Some("audio/pcm"),
        }
    }

    /// The model's script gives the bridge a reason of its own to end the call.
    pub(crate) fn model_is_at_fault(&self) -> bool {
        let script = &self.plan.model;
        (0..self.call.models.len())
            .any(|m| self.model_broke(m).or(self.model_dark(m)).is_some() || !self.session_fits(m))
            || script.turns.iter().any(gives_no_answer)
            || self.model_calls_without_end()
    }

    /// The script calls functions more often in a row than a bridge has to put up with.
    pub(crate) fn model_calls_without_end(&self) -> bool {
        let limits = &self.config.limits;
        let most = limits.same_calls.min(limits.function_rounds);
        self.plan.model.turns.iter().any(|turn| !turn.calls.is_empty() && turn.repeat > most)
    }

    /// The script refuses outputs of functions, whenever they come.
    pub(crate) fn refuses_outputs(&self) -> bool {
        self.plan.model.turns.iter().any(|turn| turn.refuses_outputs > 0)
    }

    /// The model's script does something that a bridge may well wait for.
    pub(crate) fn model_misbehaves(&self) -> bool {
        let script = &self.plan.model;
        !script.events.is_empty()
            || script.vad != mocks::realtime::Vad::default()
            || script.turns.iter().any(gives_no_answer)
    }

    /// The script refuses every update.
    pub(crate) fn refuses_settings(&self, m: usize) -> bool {
        self.plan.model.of_connection(m).refuses_update.is_some()
    }

    /// Nothing has kept the model from being given audio lately.
    pub(crate) fn model_listens(&self, at: At) -> bool {
        self.outages(Leg::Model, at.0.saturating_sub(AFTERMATH_US), at.0 + AFTERMATH_US) == 0
    }

    // -------------------------------------------------------------------------------------- what is wanted

    /// Longest acceptable time from the caller's last word to the answer, ms. What the model takes for speech although
    /// nobody spoke delays its end of the turn, and no bridge can know.
    pub(crate) fn budget_ms(&self) -> u64 {
        let silence_ms = u64::from(self.config.vad.silence_duration_ms);
        let imagined = self.plan.model.events.iter().map(|event| {
            if let Happening::FalseSpeech { for_ms } = event.does { for_ms + silence_ms } else { 0 }
        });
        self.scenario.budget_ms + imagined.sum::<u64>()
    }

    /// The caller is spoken to first.
    pub(crate) fn greets(&self) -> bool {
        self.config.greeting.is_some()
    }

    /// How long a run of this function may take, ms.
    pub(crate) fn tool_timeout_ms(&self, name: &str) -> u64 {
        self.config
            .tools
            .iter()
            .find(|tool| tool.name == name)
            .map_or(TOOL_TIMEOUT_MS, |tool| tool.timeout_ms)
            .max(match name {
                // The farewell is heard first, then Twilio is asked.
                END_CALL | TRANSFER_CALL => self.config.hangup.farewell_ms + self.config.hangup.carrier_ms,
                _ => 0,
            })
    }

    /// The longest silence in which a caller may be left, whatever functions are called, ms.
    pub(crate) fn dead_air_ms(&self) -> u64 {
        let timeouts = &self.config.timeouts;
        let longest = self.config.tools.iter().map(|tool| tool.timeout_ms).max().unwrap_or(0);
        timeouts.dead_air_ms.max(longest + timeouts.first_audio_ms)
    }

    /// Something other than a caller's words may have silenced the ear at this moment.
    pub(crate) fn explains_clear(&self, at: At) -> bool {
        let broke = (0..self.call.models.len())
            .filter_map(|m| self.model_broke(m))
            .any(|broke| broke <= at && at.since(broke) < BECAUSE_US);
        let notice = self.call.bridge.iter().any(|(said, event)| {
            matches!(event, CallEvent::Notice { .. }) && said.0.abs_diff(at.0) < BECAUSE_US
        });
        broke || notice
    }

    /// What was sent that the protocol does not have.
    pub(crate) fn is_odd(&self, kind: &str) -> bool {
        matches!(
            kind,
            "malformed"
                | "binary"
                | "delta_for_unknown_response"
                | "done_for_unknown_response"
                | "response.weather.updated"
        )
    }

    /// The end this call is to have.
    fn wanted_end(&self) -> Option<&str> {
        let expect = &self.scenario.expect;
        let own = expect.ends.get(self.call.index).map(String::as_str);
        own.or_else(|| expect.end.as_deref().filter(|_| !self.was_refused()))
    }

    fn was_refused(&self) -> bool {
        self.caller_at(|s| matches!(s, CallerObservation::Refused { .. })).is_some()
    }

    /// The scenario wants the bridge to end this call.
    pub(crate) fn expects_bridge_to_end(&self) -> bool {
        // Who loses the caller of a bridge that says nothing about it may be the bridge: over a message too large for it.
        let theirs = |end: &str| match end {
            "stopped" | "caller_closed" => true,
            "caller_lost" => self.bridge_speaks(),
            _ => false,
        };
        self.wanted_end().is_some_and(|end| !theirs(end)) || self.scenario.server.drain_at_ms.is_some()
    }

    /// When somebody else's bridge ended a call that its caller was to end, with no reason that either end could see.
    fn left_by_foreign_bridge(&self) -> Option<At> {
        let closed =
            self.closed_by_bridge().filter(|_| !self.bridge_speaks() && self.caller_gone().is_none())?;
        // Whoever hears nobody may hang up.
        let spoken = self.caller_at(|seen| matches!(seen, CallerObservation::SpeechBegan { .. })).is_some();
        let meant = self.wanted_end().is_some() && !self.expects_bridge_to_end();
        (spoken && meant && !self.model_is_at_fault()).then_some(closed)
    }

    /// How this call differs from what the scenario wants of it.
    pub(crate) fn disappointments(&self, attribution: &Attribution) -> Vec<String> {
        let expect = &self.scenario.expect;
        let mut found = Vec::new();
        let reason = self.call.bridge.iter().find_map(|(_, event)| {
            if let CallEvent::Ended { reason, detail, .. } = event {
                Some((reason.name(), detail.as_str()))
            } else {
                None
            }
        });
        let (end, detail) = match reason {
            Some(reason) => reason,
            None if self.was_refused() => ("refused", ""),
            // The bridge keeps no record of a stream that was not admitted: its close code is all there is.
            None => (self.call.end().map_or("nothing at all", |(_, reason)| reason), ""),
        };
        // Somebody else's bridge ends a call without a name for it.
        if let Some(wanted) = self.wanted_end().filter(|_| self.bridge_speaks())
            && wanted != end
        {
            found.push(
                format!("the call was to end with {wanted} and ended with {end} {detail}")
                    .trim_end()
                    .to_owned(),
            );
        }
        if self.was_refused() {
            return found;
        }
        if let Some(at) = self.left_by_foreign_bridge() {
            found.push(format!("the caller was to end the call, and the bridge ended it at {at}"));
        }
        let models = |is: fn(&ModelObservation) -> bool| -> usize {
            (0..self.call.models.len()).flat_map(|m| news(self.call, m)).filter(|s| is(&s.what)).count()
        };
        let mut count = |what: &str, wanted: Option<u32>, got: usize| {
            if let Some(wanted) = wanted
                && wanted as usize != got
            {
                found.push(format!("{wanted} {what} were wanted and {got} came"));
            }
        };
        count("clears", expect.clears, attribution.clears.len());
        count("truncations", expect.truncates, models(|s| matches!(s, ModelObservation::GotTruncate { .. })));
        count(
            "function outputs",
            expect.tool_outputs,
            models(|s| matches!(s, ModelObservation::GotToolOutput { .. })),
        );
        count("renewals of the session", expect.renewals, followed(self.call).len());
        let heard =
            attribution.items.iter().filter(|item| attribution.item_played(item, At(u64::MAX)) > 0).count();
        if let Some(wanted) = expect.heard_turns_min.filter(|wanted| heard < *wanted as usize) {
            found.push(format!("at least {wanted} items were to be heard and {heard} were"));
        }
        let told = self.call.bridge.iter().any(|(_, event)| matches!(event, CallEvent::Notice { .. }));
        if let Some(wanted) = expect.notice.filter(|wanted| *wanted != told) {
            found.push(if wanted { "no notice was given".into() } else { "a notice was given".into() });
        }
        let texts: Vec<&str> = (0..self.call.models.len())
            .flat_map(|m| news(self.call, m))
            .filter_map(|s| {
                if let ModelObservation::GotText { text, .. } = &s.what { Some(text.as_str()) } else { None }
            })
            .collect();
        if !expect.texts.is_empty() && texts != expect.texts {
            found.push(format!("the model was to be told {:?} and was told {texts:?}", expect.texts));
        }
        found
    }

    /// How the whole trace differs from what the scenario wants of it.
    pub(crate) fn disappointment_of_all(trace: &Trace) -> Option<String> {
        let wanted = trace.scenario.expect.refused? as usize;
        let refused = |call: &&CallTrace| {
            call.caller.observations.iter().any(|s| matches!(s.what, CallerObservation::Refused { .. }))
        };
        let got = trace.calls.iter().filter(refused).count();
        (got != wanted).then(|| format!("{wanted} calls were to be refused and {got} were"))
    }
}

/// The script has the model not answer this turn as it should.
fn gives_no_answer(turn: &Turn) -> bool {
    turn.never_created
        || turn.never_audio
        || turn.unannounced
        || turn.silent
        || turn.text_only
        || turn.error.is_some()
        || turn.status != Outcome::Completed
}

/// The model sent its close frame: it says nothing more and hears nothing more.
fn is_close_frame(seen: &ModelObservation) -> bool {
    matches!(seen, ModelObservation::SentOther { kind } if kind == CLOSE_FRAME)
}

/// A scenario of one plan in an ideal network, for hand-made records.
#[cfg(test)]
pub(crate) fn plain_scenario(latency_ms: u64) -> Scenario {
    use crate::model::network::NetworkConditions;
    let leg = || LegConditions::ideal(latency_ms);
    Scenario {
        name: "bench".into(),
        network: NetworkConditions { caller: leg(), model: leg() },
        calls: vec![CallPlan { repeat: 8, ..CallPlan::default() }],
        ..Scenario::default()
    }
}
