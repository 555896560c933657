//! One run as it is drawn: spans, moments and waveforms of each call, in milliseconds of the scenario.
//!
//! Everything is computed here, from what the two ends saw; the page only draws. The names of the fields are those
//! of the data in the page: short where there are thousands of them.

use super::wavs;
use crate::audio::golden_audio;
use crate::model::network::{LegConditions, NetworkConditions};
use crate::oracle::audio;
use crate::oracle::audio_attribution::{Attribution, BYTES_PER_MS, Item as Voice};
use crate::oracle::case::{CallUnderTest, each};
use crate::oracle::explain;
use crate::sim::trace::{CallTrace, End, Trace, Way, event_in_words};
use bridge::call::event::CallEvent;
use mocks::peer::At;
use mocks::record::{CallerObservation, ModelObservation};
use serde::Serialize;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write as _;

/// Everything the page shows of one run, but for the verdict.
#[derive(Clone, Debug)]
pub struct RunView {
    pub(crate) purpose: String,
    pub(crate) budget_ms: u64,
    /// The scenario as a file.
    pub(crate) scenario: String,
    pub(crate) network: NetworkView,
    pub(crate) calls: Vec<CallSheet>,
}

/// No word of a scenario is as long as this, and hardly a recording is shorter: a frame in base64.
const VOICE_MIN: usize = 200;

/// One call, drawn.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CallSheet {
    pub(crate) index: usize,
    /// When its WebSocket was open, and when nothing of it was left.
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// The bridge's name for its end; `refused` when it never began.
    pub(crate) end: String,
    /// When the person spoke.
    pub(crate) speech: Vec<[f64; 2]>,
    /// When the model thought so.
    pub(crate) detected: Vec<[f64; 2]>,
    pub(crate) items: Vec<Item>,
    pub(crate) responses: Vec<Response>,
    pub(crate) marks: Vec<Mark>,
    pub(crate) moments: Vec<Moment>,
    pub(crate) waits: Vec<Wait>,
    /// Who said what, as the bridge wrote it down.
    pub(crate) transcript: Vec<Said>,
    pub(crate) peak_ms: usize,
    pub(crate) heard: Track,
    pub(crate) given: Track,
}

/// What one end heard.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Track {
    pub(crate) peaks: String,
    /// The file, seen from the page; given when the report is written.
    pub(crate) file: String,
    /// The page holds it.
    pub(crate) embedded: bool,
    #[serde(skip)]
    pub(crate) audio: Vec<u8>,
}

/// One thing the model said.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Item {
    pub(crate) id: String,
    pub(crate) response: String,
    pub(crate) text: String,
    /// Milliseconds of audio the model made, and how much of it was heard.
    pub(crate) made: f64,
    pub(crate) heard: f64,
    /// When its first and last audio was sent by the model.
    pub(crate) sent: Option<[f64; 2]>,
    /// What was played of it: from, to, and where in the item that begins, ms.
    pub(crate) played: Vec<[f64; 3]>,
    /// Where the model was told to cut it, ms of the item.
    pub(crate) cut: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Response {
    pub(crate) id: String,
    pub(crate) from: f64,
    /// `None` when it never ended.
    pub(crate) to: Option<f64>,
    pub(crate) status: String,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Mark {
    pub(crate) name: String,
    /// When it arrived at the caller's end.
    pub(crate) got: f64,
    /// When it was echoed, and how.
    pub(crate) back: Option<f64>,
    pub(crate) flushed: bool,
}

/// A message, a run of messages, or something that happened at an end.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Moment {
    pub(crate) t: f64,
    /// When the last message of the run came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) u: Option<f64>,
    /// The end: `caller`, `bridge`, `model`.
    pub(crate) e: &'static str,
    /// The connection to the model, when it is not the first.
    #[serde(skip_serializing_if = "is_first")]
    pub(crate) n: usize,
    /// `sent` to the bridge, `got` from it, or `here`.
    pub(crate) w: &'static str,
    pub(crate) k: &'static str,
    pub(crate) x: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_first(n: &usize) -> bool {
    *n == 0
}

/// A time the caller waited, and whose it was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Wait {
    /// `answer`, `first audio` or `barge-in`.
    pub(crate) what: &'static str,
    pub(crate) from: f64,
    pub(crate) total: f64,
    pub(crate) parts: Vec<(&'static str, f64)>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Said {
    pub(crate) who: &'static str,
    pub(crate) text: String,
    pub(crate) cut: bool,
}

/// The network conditions on both legs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NetworkView {
    caller: LegView,
    model: LegView,
}

#[derive(Clone, Debug, Serialize)]
struct LegView {
    latency: u64,
    jitter: u64,
    stalls: Vec<[u64; 2]>,
    cut: Option<u64>,
    blackhole: Option<u64>,
    slow: Option<u64>,
}

impl NetworkView {
    fn of(network: &NetworkConditions) -> Self {
        let leg = |leg: &LegConditions| LegView {
            latency: leg.latency_ms,
            jitter: leg.jitter_ms,
            stalls: leg.stalls.iter().map(|stall| [stall.at_ms, stall.at_ms + stall.for_ms]).collect(),
            cut: leg.cut_at_ms,
            blackhole: leg.blackhole_at_ms,
            slow: leg.reads_bytes_per_s,
        };
        Self { caller: leg(&network.caller), model: leg(&network.model) }
    }
}

impl RunView {
    /// Draws a trace.
    pub fn of(trace: &Trace) -> Self {
        let calls = RefCell::new(Vec::with_capacity(trace.calls.len()));
        each(trace, "report", |case, _| calls.borrow_mut().push(drawn(case)));
        let scenario = &trace.scenario;
        Self {
            purpose: scenario.purpose.clone(),
            budget_ms: scenario.budget_ms,
            scenario: without_voices(&scenario.to_toml()),
            network: NetworkView::of(&scenario.network),
            calls: calls.into_inner(),
        }
    }
}

/// A moment in milliseconds.
const fn ms(at: At) -> f64 {
    at.0 as f64 / 1e3
}

/// Without the noise behind the microseconds.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

fn drawn(case: &CallUnderTest<'_>) -> CallSheet {
    let call = case.call;
    let seen = |is: fn(&CallerObservation) -> bool| {
        call.caller.observations.iter().find(|s| is(&s.what)).map(|s| s.at)
    };
    let first = call.caller.observations.first().map_or(At(0), |seen| seen.at);
    let from = seen(|sight| matches!(sight, CallerObservation::Opened)).unwrap_or(first);
    let to = last_moment(call).max(from);
    let end = match call.end() {
        Some((_, reason)) => reason,
        None if seen(|sight| matches!(sight, CallerObservation::Refused { .. })).is_some() => "refused",
        None => "never ended",
    };
    let track =
        |audio: Vec<u8>| Track { peaks: wavs::peaks(&audio), file: String::new(), embedded: false, audio };
    CallSheet {
        index: case.index,
        from: ms(from),
        to: ms(to),
        end: end.to_owned(),
        speech: speech(call, to),
        detected: detected(call, to),
        items: case.attribution.items.iter().map(|voice| item(case.attribution, call, voice)).collect(),
        responses: responses(call),
        marks: marks(call),
        moments: moments(call),
        waits: waits(case, from),
        transcript: transcript(call),
        peak_ms: wavs::PEAK_MS,
        heard: track(wavs::caller(call, from, to)),
        given: track(wavs::model(call, from, to)),
    }
}

fn last_moment(call: &CallTrace) -> At {
    let caller = call.caller.observations.last().map(|seen| seen.at);
    let played = call.caller.played.last().map(|played| played.end());
    let models = call.models.iter().filter_map(|model| model.observations.last()).map(|seen| seen.at);
    let bridge = call.bridge.last().map(|(at, _)| *at);
    caller.into_iter().chain(played).chain(models).chain(bridge).max().unwrap_or_default()
}

/// Spans between what begins one and what ends it; the last may be open.
fn spans(edges: impl Iterator<Item = (At, bool)>, to: At) -> Vec<[f64; 2]> {
    let mut found = Vec::new();
    let mut began = None;
    for (at, begins) in edges {
        match (begins, began) {
            (true, None) => began = Some(at),
            (false, Some(from)) => {
                found.push([ms(from), ms(at)]);
                began = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }
    found.extend(began.map(|from| [ms(from), ms(to)]));
    found
}

fn speech(call: &CallTrace, to: At) -> Vec<[f64; 2]> {
    let edges = call.caller.observations.iter().filter_map(|seen| {
        let begins = matches!(seen.what, CallerObservation::SpeechBegan { .. });
        let ends = matches!(seen.what, CallerObservation::SpeechEnded { .. } | CallerObservation::Ended(_));
        (begins || ends).then_some((seen.at, begins))
    });
    spans(edges, to)
}

fn detected(call: &CallTrace, to: At) -> Vec<[f64; 2]> {
    let of_model = |model: &mocks::record::ModelRecord| {
        let edges = model.observations.iter().filter_map(|seen| {
            let begins = matches!(seen.what, ModelObservation::SentSpeechStarted { .. });
            let ends =
                matches!(seen.what, ModelObservation::SentSpeechStopped { .. } | ModelObservation::Ended(_));
            (begins || ends).then_some((seen.at, begins))
        });
        spans(edges, to)
    };
    call.models.iter().flat_map(of_model).collect()
}

fn item(attribution: &Attribution, call: &CallTrace, voice: &Voice) -> Item {
    let record = &call.models[voice.model].items[voice.index];
    let mut played: Vec<[f64; 3]> = Vec::new();
    for (stretch, sample) in attribution.of_item(voice) {
        for part in &attribution.played {
            let from = part.offset.max(stretch.offset);
            let to = (part.offset + part.len).min(stretch.end());
            if from >= to {
                continue;
            }
            let begin = part.at.0 + (from - part.offset) as u64 * 125;
            let end = begin + (to - from) as u64 * 125;
            let place = (sample + from - stretch.offset) as f64 / BYTES_PER_MS as f64;
            played.push([ms(At(begin)), ms(At(end)), rounded(place)]);
        }
    }
    let sent = voice.sent.first().zip(voice.sent.last());
    Item {
        id: voice.id.clone(),
        response: voice.response.clone(),
        text: record.transcript.clone(),
        made: rounded(voice.len as f64 / BYTES_PER_MS as f64),
        heard: rounded(attribution.item_played_ms(voice, At(u64::MAX))),
        sent: sent.map(|((first, _), (last, _))| [ms(*first), ms(*last)]),
        played,
        cut: record.truncated_ms,
    }
}

fn responses(call: &CallTrace) -> Vec<Response> {
    let mut found = Vec::new();
    for model in &call.models {
        for seen in &model.observations {
            if let ModelObservation::SentResponseCreated { response, .. } = &seen.what {
                let done = model.observations.iter().find_map(|seen| {
                    let ModelObservation::SentResponseDone { response: id, status } = &seen.what else {
                        return None;
                    };
                    (id == response).then(|| (ms(seen.at), status.clone()))
                });
                let (to, status) = done.map_or((None, "never done".to_owned()), |(at, how)| (Some(at), how));
                found.push(Response { id: response.clone(), from: ms(seen.at), to, status });
            }
        }
    }
    found
}

fn marks(call: &CallTrace) -> Vec<Mark> {
    let mut marks: Vec<Mark> = Vec::new();
    let mut waiting: VecDeque<usize> = VecDeque::new();
    for seen in &call.caller.observations {
        if let CallerObservation::GotMark { name, .. } = &seen.what {
            waiting.push_back(marks.len());
            marks.push(Mark { name: name.clone(), got: ms(seen.at), back: None, flushed: false });
        } else if let CallerObservation::SentMark { name, flushed } = &seen.what
            && let Some(n) = waiting.iter().position(|index| marks[*index].name == *name)
            && let Some(mark) = waiting.remove(n).and_then(|index| marks.get_mut(index))
        {
            mark.back = Some(ms(seen.at));
            mark.flushed = *flushed;
        }
    }
    marks
}

fn moments(call: &CallTrace) -> Vec<Moment> {
    let mut found: Vec<(At, Moment)> = Vec::new();
    for told in explain::tell(call) {
        let (e, n) = match told.end {
            End::Caller => ("caller", 0),
            End::Model(n) => ("model", n),
            End::Bridge => continue,
        };
        let w = match told.way {
            Way::Sent => "sent",
            Way::Got => "got",
            Way::Here => "here",
        };
        let u = (told.until > told.at).then(|| ms(told.until));
        found.push((told.at, Moment { t: ms(told.at), u, e, n, w, k: told.kind, x: told.what }));
    }
    for (at, event) in &call.bridge {
        let (k, x) = (kind(event), event_in_words(event));
        found.push((*at, Moment { t: ms(*at), u: None, e: "bridge", n: 0, w: "here", k, x }));
    }
    // Stable: what one end saw at the same time stays in its order.
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, moment)| moment).collect()
}

/// What kind of thing the bridge said of itself.
const fn kind(event: &CallEvent) -> &'static str {
    match event {
        CallEvent::Started { .. } => "started",
        CallEvent::Dialing => "dialling",
        CallEvent::Dialed { .. } => "dialled",
        CallEvent::Session { .. } => "session",
        CallEvent::Live { .. } => "live",
        CallEvent::Unprotected { .. } => "unprotected",
        CallEvent::SpeechStarted | CallEvent::SpeechStopped => "turn",
        CallEvent::BargeIn { .. } => "barge-in",
        CallEvent::Silenced { .. } => "silent",
        CallEvent::Said(_) => "words",
        CallEvent::Floor(_) => "floor",
        CallEvent::Speaking { .. } => "speaking",
        CallEvent::ResponseDone { .. } => "done",
        CallEvent::Keypad { .. } => "keypad",
        CallEvent::ToolCalled { .. } | CallEvent::ToolAnswered { .. } | CallEvent::ToolLoop { .. } => "tool",
        CallEvent::ModelError { .. } => "error",
        CallEvent::Tolerated { .. } => "tolerated",
        CallEvent::TimerFired(_) => "timer",
        CallEvent::Renewing | CallEvent::Renewal { .. } => "renewal",
        CallEvent::ExpiringSoon => "expiring",
        CallEvent::Notice { .. } => "notice",
        CallEvent::Ended { .. } => "over",
    }
}

fn waits(case: &CallUnderTest<'_>, opened: At) -> Vec<Wait> {
    let wait = |what, from: f64, total: f64, parts: Vec<(&'static str, f64)>| Wait {
        what,
        from: rounded(from),
        total: rounded(total),
        parts: parts.into_iter().map(|(name, part)| (name, rounded(part))).collect(),
    };
    let mut waits: Vec<Wait> = first_audio(case, opened).into_iter().collect();
    for answer in audio::answers(case) {
        let audio::Answer { at, mic_to_mic, detection, model, network, bridge, carrier } = answer;
        let parts = vec![
            ("detection", detection),
            ("model", model),
            ("network", network),
            ("bridge", bridge),
            ("carrier", carrier),
        ];
        waits.push(wait("answer", ms(at), mic_to_mic, parts));
    }
    for drain in golden_audio::drains(case.trace, case.index) {
        let golden_audio::Drain { from_open_ms, total, detection, network, bridge, carrier, .. } = drain;
        let parts =
            vec![("detection", detection), ("network", network), ("bridge", bridge), ("carrier", carrier)];
        waits.push(wait("barge-in", ms(opened) + from_open_ms, total, parts));
    }
    waits.sort_by(|a, b| a.from.total_cmp(&b.from));
    waits
}

/// How long a caller who is greeted waits for the first sound.
fn first_audio(case: &CallUnderTest<'_>, opened: At) -> Option<Wait> {
    let caller = &case.call.caller.observations;
    let start = caller.iter().find(|seen| matches!(seen.what, CallerObservation::SentStart))?.at;
    let model = &case.call.models.first()?.observations;
    let ready = model.iter().find(|seen| matches!(seen.what, ModelObservation::SentSessionUpdated))?.at;
    let item = case
        .attribution
        .items
        .iter()
        .filter(|item| item.model == 0 && !item.silent)
        .min_by_key(|item| item.first_sent())?;
    let sent = item.first_sent()?;
    let (first, _) = case.attribution.of_item(item).next()?;
    let heard = case.attribution.played_at(first.offset)?;
    let turn_ended =
        model.iter().any(|s| matches!(s.what, ModelObservation::SentSpeechStopped { .. }) && s.at <= sent);
    let in_order = opened <= start && start <= ready && ready <= sent && sent <= heard;
    if turn_ended || !in_order {
        return None;
    }
    let between = |from: At, to: At| ms(to) - ms(from);
    let parts = [
        ("carrier", between(opened, start)),
        ("dial and session", between(start, ready)),
        ("model", between(ready, sent)),
        ("way to the caller", between(sent, heard)),
    ];
    Some(Wait {
        what: "first audio",
        from: ms(opened),
        total: rounded(between(opened, heard)),
        parts: parts.into_iter().map(|(name, part)| (name, rounded(part))).collect(),
    })
}

fn transcript(call: &CallTrace) -> Vec<Said> {
    let lines = call.bridge.iter().find_map(|(_, event)| {
        if let CallEvent::Ended { transcript, .. } = event { Some(transcript) } else { None }
    });
    let said = |line: &bridge::call::event::Line| Said {
        who: line.speaker.name(),
        text: line.text.clone(),
        cut: line.cut,
    };
    lines.into_iter().flatten().map(said).collect()
}

/// A file to be read: recorded audio is counted, not shown.
fn without_voices(toml: &str) -> String {
    let mut text = String::with_capacity(toml.len().min(1 << 16));
    for (n, part) in toml.split('"').enumerate() {
        if n > 0 {
            text.push('"');
        }
        let is_audio = part.len() > VOICE_MIN
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='));
        if is_audio {
            let _infallible = write!(text, "({} bytes of recorded audio)", part.len() / 4 * 3);
        } else {
            text.push_str(part);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::backend::Backend;
    use crate::model::catalogue;
    use crate::model::seed::Seed;
    use crate::sim;

    fn view() -> RunView {
        RunView::of(&sim::play(Backend::Memory, &catalogue::find("barge_in/mid_answer")[0], Seed(1)))
    }

    #[test]
    fn an_interrupted_item_is_longer_than_what_was_heard_of_it() {
        let call = &view().calls[0];
        let cut: Vec<_> = call.items.iter().filter(|item| item.cut.is_some()).collect();
        assert_eq!(cut.len(), 1);
        assert!(cut[0].heard < cut[0].made / 2.0, "{:?}", cut[0]);
        assert!((cut[0].heard - cut[0].cut.unwrap() as f64).abs() <= 20.0, "{:?}", cut[0]);
        let heard: f64 = cut[0].played.iter().map(|[from, to, _]| to - from).sum();
        assert!((heard - cut[0].heard).abs() < 1.0, "{:?}", cut[0]);
    }

    #[test]
    fn every_mark_is_drawn_with_what_became_of_it() {
        let call = &view().calls[0];
        assert!(call.marks.iter().all(|mark| mark.back.is_some_and(|back| back >= mark.got)));
        assert!(call.marks.iter().any(|mark| mark.flushed));
        assert!(call.marks.iter().any(|mark| !mark.flushed));
    }

    #[test]
    fn the_parts_of_a_wait_add_up_to_it() {
        let call = &view().calls[0];
        for what in ["first audio", "answer", "barge-in"] {
            assert!(call.waits.iter().any(|wait| wait.what == what), "no {what} in {:?}", call.waits);
        }
        for wait in &call.waits {
            let sum: f64 = wait.parts.iter().map(|(_, part)| part).sum();
            assert!((sum - wait.total).abs() < 0.01, "{wait:?}");
        }
    }

    #[test]
    fn moments_are_in_order_and_tell_what_the_bridge_says_too() {
        let call = &view().calls[0];
        assert!(call.moments.iter().map(|moment| moment.t).is_sorted_by(|a, b| a <= b));
        for kind in ["clear", "truncate", "barge-in", "speech_started", "over"] {
            assert!(call.moments.iter().any(|moment| moment.k == kind), "no {kind}");
        }
        let heard = call.heard.audio.len();
        assert_eq!(heard, call.given.audio.len(), "both ends lie on one time line");
        assert_eq!(call.heard.peaks.len(), heard.div_ceil(40));
    }
}
