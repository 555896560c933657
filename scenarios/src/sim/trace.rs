//! What came of a scenario, as both ends saw it: the only thing an oracle is given.
//!
//! A trace holds decoded messages with scenario time, never raw frames, ids of tasks or addresses, so the same
//! seed gives the same trace, byte for byte. [`Trace::lines`] is its canonical text and [`Trace::hash`] its name.

use crate::model::backend::Backend;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use bridge::call::event::{CallEvent, EndReason, ToolOutcome};
use mocks::peer::At;
use mocks::record::{CallerObservation, CallerRecord, Ending, ModelObservation, ModelRecord};
use mocks::twilio::in_words;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// The close code of a stream that is not admitted.
const POLICY_VIOLATION: u16 = 1_008;

/// One scenario, played.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What was played.
    pub scenario: Arc<Scenario>,
    /// Where.
    pub backend: Backend,
    /// With which seed.
    pub seed: Seed,
    /// What came of each call, in the order of [`Scenario::planned`].
    pub calls: Vec<CallTrace>,
    /// When nothing was left to happen.
    pub ended_at: At,
    /// What was still there after the end: live calls, registry entries, tasks.
    pub leftovers: Vec<String>,
    /// What panicked, with the place.
    pub panics: Vec<String>,
    /// The world was ended by its time limit.
    pub cut: bool,
    /// What the network did to bytes. No end can know, and no oracle may ask; milestones do.
    pub network: Network,
    /// How late this machine's own timers were at the worst, microseconds. Zero where time is simulated.
    pub lag_us: u64,
}

/// What a network did that its ends cannot tell from a slow one. Only the pipes backend has anything to say here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Reads and writes that moved less than they could have.
    pub pieces: u64,
    /// Reads and writes that had to be tried again although they could have gone on.
    pub hesitations: u64,
    /// Writers that had to wait for room.
    pub blocked: u64,
    /// Resets that found the writer waiting for room.
    pub resets_of_blocked: u64,
    /// Longest queue before a narrow line, microseconds.
    pub queued_us: u64,
    /// Bytes that a far end read after its own direction was closed.
    pub heard_half_closed: u64,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pieces, hesitations, blocked, resets_of_blocked, queued_us, heard_half_closed } = self;
        write!(
            f,
            "{pieces} pieces, {hesitations} hesitations, {blocked} writers waited, {resets_of_blocked} of them were \
             reset, {queued_us} us of queue, {heard_half_closed} bytes heard half closed"
        )
    }
}

/// What came of one call.
#[derive(Clone, Debug, Default)]
pub struct CallTrace {
    /// Counts the calls of the scenario.
    pub index: usize,
    /// What Twilio's end saw.
    pub caller: CallerRecord,
    /// What the model's end saw, one record for each connection the bridge made.
    pub models: Vec<ModelRecord>,
    /// What the bridge said happened. Only for what the two ends cannot know.
    pub bridge: Vec<(At, CallEvent)>,
}

/// Which end a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Twilio and the person behind it.
    Caller,
    /// What the bridge said about itself.
    Bridge,
    /// The connection to the model with this number.
    Model(usize),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caller => f.pad("caller"),
            Self::Bridge => f.pad("bridge"),
            Self::Model(n) => f.pad(&format!("model{n}")),
        }
    }
}

/// Which way something went, seen from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The end sent it to the bridge.
    Sent,
    /// The bridge sent it to the end.
    Got,
    /// It happened at the end itself.
    Here,
}

impl Way {
    const fn arrow(self) -> &'static str {
        match self {
            Self::Sent => ">",
            Self::Got => "<",
            Self::Here => "-",
        }
    }
}

/// One sighting as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When.
    pub at: At,
    /// Counts the calls of the scenario.
    pub call: usize,
    /// Whose sighting.
    pub end: End,
    /// Which way it went.
    pub way: Way,
    /// What kind of thing it was: `media`, `mark`, `truncate`.
    pub kind: &'static str,
    /// The rest, in words.
    pub what: String,
    /// Length of the audio in it, bytes, and in a complete line its digest.
    pub audio: Option<(usize, String)>,
}

impl fmt::Display for Line {
    /// `4180201 0 caller < media 160 ms from 2000 ms 1280:9f86d081884c7d65`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, call, end, way, kind, what, audio } = self;
        write!(f, "{} {call} {end} {} {kind} {what}", at.0, way.arrow())?;
        match audio {
            Some((len, digest)) => write!(f, " {len}:{digest}"),
            None => Ok(()),
        }
    }
}

impl Trace {
    /// The canonical text: one line for each sighting, in order of time; at the same time in order of call and end.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.calls.iter().flat_map(|call| call.lines(true)).map(|l| l.to_string()).collect();
        for (what, texts) in [("leftover", &self.leftovers), ("panic", &self.panics)] {
            lines.extend(texts.iter().map(|text| format!("{} - world - {what} {text}", self.ended_at.0)));
        }
        if self.network != Network::default() {
            lines.push(format!("{} - world - network {}", self.ended_at.0, self.network));
        }
        lines.push(format!("{} - world - end{}", self.ended_at.0, if self.cut { " cut" } else { "" }));
        lines
    }

    /// SHA-256 of [`Trace::lines`], in hexadecimal.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for line in self.lines() {
            hash.update(line.as_bytes());
            hash.update(b"\n");
        }
        hex(&hash.finalize())
    }

    /// Simulated milliseconds of all calls together, from the open WebSocket to its end.
    pub fn call_ms(&self) -> u64 {
        let lasted = |call: &CallTrace| {
            let seen = |what: fn(&CallerObservation) -> bool| {
                call.caller.observations.iter().find(|s| what(&s.what))
            };
            let began = seen(|s| matches!(s, CallerObservation::Opened))?.at;
            let ended = seen(|s| matches!(s, CallerObservation::Ended(_))).map_or(self.ended_at, |s| s.at);
            Some(ended.since(began) / 1_000)
        };
        self.calls.iter().filter_map(lasted).sum()
    }

    /// When the bridge says each call ended, and why; `None` for a call it never took.
    pub fn ends(&self) -> Vec<Option<String>> {
        self.calls.iter().map(|call| call.end().map(|(_, reason)| reason.to_owned())).collect()
    }
}

impl CallTrace {
    /// When the call ended, and why: by the bridge's word, or by the close code of a stream that was not admitted, of which
    /// the bridge keeps no record.
    pub fn end(&self) -> Option<(At, &'static str)> {
        self.told_end().or_else(|| {
            self.caller.observations.iter().find_map(|seen| {
                if let CallerObservation::Ended(Ending::ByPeer { code: Some(POLICY_VIOLATION), .. }) =
                    &seen.what
                {
                    Some((seen.at, EndReason::Unauthenticated.name()))
                } else {
                    None
                }
            })
        })
    }

    fn told_end(&self) -> Option<(At, &'static str)> {
        self.bridge.iter().find_map(|(at, event)| match event {
            CallEvent::Ended { reason, .. } => Some((*at, reason.name())),
            CallEvent::Started { .. }
            | CallEvent::Dialing
            | CallEvent::Dialed { .. }
            | CallEvent::Session { .. }
            | CallEvent::Live { .. }
            | CallEvent::Unprotected { .. }
            | CallEvent::SpeechStarted
            | CallEvent::SpeechStopped
            | CallEvent::BargeIn { .. }
            | CallEvent::Silenced { .. }
            | CallEvent::Said(_)
            | CallEvent::Floor(_)
            | CallEvent::Speaking { .. }
            | CallEvent::ResponseDone { .. }
            | CallEvent::Keypad { .. }
            | CallEvent::ToolCalled { .. }
            | CallEvent::ToolAnswered { .. }
            | CallEvent::ToolLoop { .. }
            | CallEvent::ModelError { .. }
            | CallEvent::Tolerated { .. }
            | CallEvent::TimerFired(_)
            | CallEvent::ExpiringSoon
            | CallEvent::Renewing
            | CallEvent::Renewal { .. }
            | CallEvent::Notice { .. } => None,
        })
    }

    /// Every sighting of the call, in order of time. `complete` lines hold digests of audio and all that the bridge
    /// said, for hashing; the others are for reading.
    pub fn lines(&self, complete: bool) -> Vec<Line> {
        let mut lines = Vec::new();
        for seen in &self.caller.observations {
            let (way, kind) = caller_kind(&seen.what);
            let audio = self.caller_audio(&seen.what, complete);
            let what = in_words(&seen.what);
            lines.push(Line { at: seen.at, call: self.index, end: End::Caller, way, kind, what, audio });
        }
        for (at, event) in &self.bridge {
            let words = event_in_words(event);
            // Counters and transcript are not for reading, but a run that differs in them is another run.
            let what = if complete { format!("{words} {event:?}") } else { words };
            let (way, kind) = (Way::Here, "event");
            lines.push(Line { at: *at, call: self.index, end: End::Bridge, way, kind, what, audio: None });
        }
        for (n, model) in self.models.iter().enumerate() {
            let items: BTreeMap<_, _> = model.items.iter().map(|item| (item.id.as_str(), item)).collect();
            for seen in &model.observations {
                let (way, kind, what) = model_in_words(&seen.what, &items);
                let audio = model_audio(&seen.what, model, &items, complete);
                lines.push(Line {
                    at: seen.at,
                    call: self.index,
                    end: End::Model(n),
                    way,
                    kind,
                    what,
                    audio,
                });
            }
        }
        // Stable: what one end saw at the same time stays in its order.
        lines.sort_by_key(|line| (line.at, line.end));
        lines
    }

    fn caller_audio(&self, sight: &CallerObservation, complete: bool) -> Option<(usize, String)> {
        let bytes = if let CallerObservation::SentMedia { frame } = sight {
            let frame = self.caller.mic.get(*frame)?;
            self.caller.spoken.get(frame.offset..frame.offset + frame.len)?
        } else if let CallerObservation::GotMedia { offset, len } = sight {
            self.caller.received.get(*offset..offset + len)?
        } else {
            return None;
        };
        Some((bytes.len(), if complete { digest([bytes]) } else { String::new() }))
    }
}

fn model_audio(
    sight: &ModelObservation,
    model: &ModelRecord,
    items: &BTreeMap<&str, &mocks::record::ItemRecord>,
    complete: bool,
) -> Option<(usize, String)> {
    if let ModelObservation::GotAppend { offset, len } = sight {
        let bytes = model.appended.get(*offset..offset + len)?;
        return Some((bytes.len(), if complete { digest([bytes]) } else { String::new() }));
    }
    let ModelObservation::SentAudio { item, offset, samples, .. } = sight else { return None };
    let audio = items.get(item.as_str())?.audio.get(*offset..offset + samples)?;
    let digest =
        if complete { digest(audio.iter().map(|sample| sample.to_le_bytes())) } else { String::new() };
    Some((audio.len() * 2, digest))
}

/// The first 16 digits of the SHA-256 of these bytes.
fn digest<B: AsRef<[u8]>>(parts: impl IntoIterator<Item = B>) -> String {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| hash.update(part));
    hex(&hash.finalize()[..8])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

const fn caller_kind(sight: &CallerObservation) -> (Way, &'static str) {
    match sight {
        CallerObservation::Opened => (Way::Here, "opened"),
        CallerObservation::Refused { .. } => (Way::Got, "refused"),
        CallerObservation::SentConnected => (Way::Sent, "connected"),
        CallerObservation::SentStart => (Way::Sent, "start"),
        CallerObservation::SentMedia { .. } => (Way::Sent, "media"),
        CallerObservation::SentDtmf { .. } => (Way::Sent, "dtmf"),
        CallerObservation::SentMark { .. } => (Way::Sent, "mark"),
        CallerObservation::SentStop => (Way::Sent, "stop"),
        CallerObservation::SentRaw { .. } => (Way::Sent, "raw"),
        CallerObservation::SpeechBegan { .. } => (Way::Here, "speaks"),
        CallerObservation::SpeechEnded { .. } => (Way::Here, "silent"),
        CallerObservation::GotMedia { .. } => (Way::Got, "media"),
        CallerObservation::GotMark { .. } => (Way::Got, "mark"),
        CallerObservation::GotClear { .. } => (Way::Got, "clear"),
        CallerObservation::Warned { .. } => (Way::Here, "warning"),
        CallerObservation::GotPing => (Way::Got, "ping"),
        CallerObservation::WentQuiet { .. } => (Way::Here, "quiet"),
        CallerObservation::Step { .. } => (Way::Here, "step"),
        CallerObservation::StatusCallback { .. } => (Way::Here, "callback"),
        CallerObservation::Ended(_) => (Way::Here, "ended"),
    }
}

fn model_in_words(
    sight: &ModelObservation,
    items: &BTreeMap<&str, &mocks::record::ItemRecord>,
) -> (Way, &'static str, String) {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    match sight {
        ModelObservation::Opened => (Way::Here, "opened", "the WebSocket is open".into()),
        ModelObservation::Refused { how } => (Way::Sent, "refused", how.clone()),
        ModelObservation::SentSessionCreated => (Way::Sent, "session.created", "the session is there".into()),
        ModelObservation::SentSessionUpdated => {
            (Way::Sent, "session.updated", "the settings are taken".into())
        }
        ModelObservation::SentSpeechStarted { item, audio_start_ms, active } => (
            Way::Sent,
            "speech_started",
            format!("speech of {item} started at {audio_start_ms} ms, active response {}", or_none(active)),
        ),
        ModelObservation::SentSpeechStopped { item, audio_end_ms } => {
            (Way::Sent, "speech_stopped", format!("speech of {item} stopped at {audio_end_ms} ms"))
        }
        ModelObservation::SentResponseCreated { response, auto, asked } => (
            Way::Sent,
            "response.created",
            format!(
                "{response} {}",
                if *auto { "of its own".into() } else { format!("asked for by {}", or_none(asked)) }
            ),
        ),
        ModelObservation::SentAudio { item, offset, samples, late, .. } => {
            let rate = items.get(item.as_str()).map_or(24_000, |item| item.rate.max(1)) as usize;
            let ms = |samples: usize| samples * 1_000 / rate;
            let late = if *late { ", after the cancel" } else { "" };
            (Way::Sent, "audio", format!("{item} from {} to {} ms{late}", ms(*offset), ms(offset + samples)))
        }
        ModelObservation::SentAudioDone { item, .. } => (Way::Sent, "audio.done", item.clone()),
        ModelObservation::SentResponseDone { response, status } => {
            (Way::Sent, "response.done", format!("{response} {status}"))
        }
        ModelObservation::SentFunctionCall { call_id, name, .. } => {
            (Way::Sent, "function", format!("{name} as {call_id}"))
        }
        ModelObservation::SentTruncated { item, audio_end_ms } => {
            (Way::Sent, "truncated", format!("{item} now ends at {audio_end_ms} ms"))
        }
        ModelObservation::SentTranscription { item, text } => {
            (Way::Sent, "transcription", format!("{item} {}", or_none(text)))
        }
        ModelObservation::SentError { code, message, rejected, .. } => {
            (Way::Sent, "error", format!("{code}: {message} (rejects {})", or_none(rejected)))
        }
        ModelObservation::SentOther { kind } => (Way::Sent, "other", kind.clone()),
        ModelObservation::GotUpdate { input, output } => {
            (Way::Got, "session.update", format!("hears {input}, speaks {output}"))
        }
        ModelObservation::GotAppend { len, .. } => (Way::Got, "append", format!("{len} bytes of audio")),
        ModelObservation::GotCreate { busy, .. } => {
            (Way::Got, "response.create", if *busy { "while busy".into() } else { "while free".into() })
        }
        ModelObservation::GotCancel { response } => (Way::Got, "response.cancel", or_none(response)),
        ModelObservation::GotTruncate { item, audio_end_ms, .. } => {
            let ms = audio_end_ms.map_or_else(|| "nowhere".to_owned(), |ms| format!("{ms} ms"));
            (Way::Got, "truncate", format!("{item} at {ms}"))
        }
        ModelObservation::GotText { role, text } => (Way::Got, "text", format!("{role}: {text}")),
        ModelObservation::GotCall { call_id, name, arguments } => {
            (Way::Got, "call", format!("{call_id} of {name} with {arguments}"))
        }
        ModelObservation::GotToolOutput { call_id, fresh, output } => {
            (Way::Got, "output", format!("{call_id}{}: {output}", if *fresh { "" } else { " again" }))
        }
        ModelObservation::GotDelete { item } => (Way::Got, "delete", item.clone()),
        ModelObservation::GotOther { kind } => (Way::Got, "other", kind.clone()),
        ModelObservation::GotBad { detail } => (Way::Got, "bad", detail.clone()),
        ModelObservation::GotPing => (Way::Got, "ping", "a ping or pong".into()),
        ModelObservation::Ended(ending) => (Way::Here, "ended", ended(ending)),
    }
}

fn ended(ending: &Ending) -> String {
    ending.to_string()
}

/// What the bridge said, in words for people.
pub(crate) fn event_in_words(event: &CallEvent) -> String {
    match event {
        CallEvent::Started { stream_sid, .. } => format!("the stream {stream_sid} began"),
        CallEvent::Dialing => "dials the model".into(),
        CallEvent::Dialed { outcome, took } => {
            format!("the dial is over after {} ms: {}", took.as_millis(), outcome.name())
        }
        CallEvent::Session { id } => format!("the session {id} is there"),
        CallEvent::Live { after } => format!("both ends hear each other after {} ms", after.as_millis()),
        CallEvent::Unprotected { why, silenced } => format!(
            "the protected window is over ({}): {} ms of the caller were silenced",
            why.name(),
            silenced.as_millis()
        ),
        CallEvent::SpeechStarted => "the caller began to speak".into(),
        CallEvent::SpeechStopped => "the caller's turn ended".into(),
        CallEvent::BargeIn { item, heard, discarded } => format!(
            "barge-in: {} was heard for {} ms, {} ms discarded",
            item.as_deref().unwrap_or("nothing"),
            heard.as_millis(),
            discarded.as_millis()
        ),
        CallEvent::Silenced { after } => format!("the ear is silent after {} ms", after.as_millis()),
        CallEvent::Said(_) => "the transcript grows".into(),
        CallEvent::Floor(floor) => match (floor.caller, floor.agent) {
            (false, false) => "nobody is heard".into(),
            (true, false) => "the caller is heard".into(),
            (false, true) => "the agent is heard".into(),
            (true, true) => "both are heard".into(),
        },
        CallEvent::Speaking { response, after: Some(after) } => {
            format!("{response} begins to speak after {} ms", after.as_millis())
        }
        CallEvent::Speaking { response, after: None } => format!("{response} begins to speak"),
        CallEvent::ResponseDone { response, status, .. } => format!("{response} is done: {status}"),
        CallEvent::Keypad { keys, .. } => format!("{keys} keys handed to the model"),
        CallEvent::ToolCalled { call_id, name, .. } => format!("runs {name} for {call_id}"),
        CallEvent::ToolAnswered { call_id, outcome: ToolOutcome::Done, .. } => format!("{call_id} succeeded"),
        CallEvent::ToolAnswered { call_id, outcome, .. } => format!("{call_id} failed: {}", outcome.name()),
        CallEvent::ToolLoop { rounds } => format!("functions in {rounds} rounds: no more of them for now"),
        CallEvent::ModelError { code } => format!("the model reported {code}"),
        CallEvent::Tolerated { what } => format!("tolerated {what}"),
        CallEvent::TimerFired(timer) => format!("timer {} fired", timer.name()),
        CallEvent::Renewing => "gives the session up for another one".into(),
        CallEvent::Renewal { outcome, took, tries, items } => format!(
            "the renewal of the session is over after {} ms and {tries} tries: {}, {items} items told",
            took.as_millis(),
            outcome.name()
        ),
        CallEvent::ExpiringSoon => "the session nears its end".into(),
        CallEvent::Notice { reason } => format!("tells the caller that the call cannot go on: {reason}"),
        CallEvent::Ended { reason, detail, lasted, .. } => {
            let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
            format!("the call is over: {reason}{detail}, after {:.3} s", lasted.as_secs_f64())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mocks::record::{MicFrame, Observation};

    fn trace() -> Trace {
        let sighting = |ms, what| Observation { at: At::ms(ms), what };
        let caller = CallerRecord {
            observations: vec![
                sighting(60, CallerObservation::Opened),
                sighting(80, CallerObservation::SentMedia { frame: 0 }),
                sighting(2_060, CallerObservation::Ended(Ending::ByUs { code: Some(1_000) })),
            ],
            spoken: vec![0xFF; 160],
            mic: vec![MicFrame { at: At::ms(80), timestamp_ms: 120, offset: 0, len: 160, speech: false }],
            ..CallerRecord::default()
        };
        let models = vec![ModelRecord {
            observations: vec![Observation { at: At::ms(80), what: ModelObservation::Opened }],
            ..ModelRecord::default()
        }];
        Trace {
            scenario: Arc::default(),
            backend: Backend::Memory,
            seed: Seed(1),
            calls: vec![CallTrace { caller, models, ..CallTrace::default() }],
            ended_at: At::ms(2_100),
            leftovers: Vec::new(),
            panics: Vec::new(),
            cut: false,
            network: Network::default(),
            lag_us: 0,
        }
    }

    #[test]
    fn a_line_tells_when_who_and_what() {
        let lines = trace().lines();
        assert_eq!(lines[1].split(' ').take(5).collect::<Vec<_>>(), ["80000", "0", "caller", ">", "media"]);
        assert_eq!(lines[1].split(' ').next_back().unwrap().split_once(':').unwrap().0, "160");
        assert!(lines[2].starts_with("80000 0 model0 - opened"), "{}", lines[2]);
        assert_eq!(lines.last().unwrap(), "2100000 - world - end");
    }

    #[test]
    fn the_hash_depends_on_every_byte_of_audio() {
        let (one, mut other) = (trace(), trace());
        assert_eq!(one.hash(), other.hash());
        other.calls[0].caller.spoken[159] = 0x7F;
        assert_ne!(one.hash(), other.hash());
    }

    #[test]
    fn call_time_is_counted_from_open_to_end() {
        assert_eq!(trace().call_ms(), 2_000);
    }
}
