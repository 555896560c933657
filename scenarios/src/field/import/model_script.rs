//! The model's script: what it said, how long it took, and how it failed.

#![expect(clippy::wildcard_enum_match_arm, reason = "a reader picks the lines it needs")]

use super::timeline::{Timeline, bytes};
use crate::field::Recorded;
use bridge::call::settings::TRANSFER_CALL;
use bridge::call::settings::{CallConfig, Dialect as Spoken};
use bridge::export::journal::lines::{Blob, Event, Side, What};
use mocks::realtime::{
    AudioFormat, Call, CloseAfter, Dial, Dialect, ErrorSpec, Happening, ModelScript, Opening, Outcome,
    ReconnectScript, Refusal, SESSION_S, Stall, TimedEvent, Transcription, Turn, When,
};
use mocks::sound::Sound;
use std::collections::BTreeMap;

/// Deltas that come within this long of each other come together.
const TOGETHER_US: u64 = 3_000;
/// A pause of the generator that is longer than its speed explains.
const STALL_US: u64 = 250_000;
/// What a response that was cancelled would have gone on to say, ms.
const MORE_MS: u64 = 5_000;
/// Between two late deltas, and before the end of a cancelled response, as the mock has it, us.
const LATE_US: u64 = 4_000;
/// A session that lasts longer than this has its usual length.
const USUAL_SESSION_S: i64 = 3_590;

/// A response, or a wish for one.
#[derive(Debug, Default)]
struct Reply {
    /// When it was asked for, as the bridge would see the answer of a model that needs no time.
    asked: u64,
    request: Option<u64>,
    event_id: Option<String>,
    id: Option<String>,
    created: Option<u64>,
    items: Vec<Said>,
    calls: Vec<Wanted>,
    error: Option<ErrorSpec>,
    done: Option<(u64, Event)>,
    /// When something made the model stop.
    cancelled: Option<u64>,
    written: bool,
    transcript: Option<String>,
    /// When its first item was announced.
    added: Option<u64>,
    first_argument: Option<u64>,
}

/// A message of a response.
#[derive(Debug, Default)]
struct Said {
    id: String,
    /// When each delta came, its bytes.
    deltas: Vec<(u64, usize)>,
    /// All of it, if it was recorded.
    sound: Option<Vec<u8>>,
}

impl Said {
    fn new(id: String) -> Self {
        Self { id, deltas: Vec::new(), sound: Some(Vec::new()) }
    }
}

/// A function call of a response.
#[derive(Debug)]
struct Wanted {
    item: String,
    call_id: String,
    name: String,
    arguments: Option<String>,
}

pub(super) fn script(journal: &Recorded, timeline: &Timeline, say: &mut impl FnMut(String)) -> ModelScript {
    let config = &journal.header.call;
    let dialect = match config.dialect {
        Spoken::Ga => Dialect::Ga,
        Spoken::Beta => Dialect::Beta,
    };
    let mut script = ModelScript { dialect, ..ModelScript::default() };
    let round_trip = 2 * timeline.model_latency_us;
    let connections = connections(journal);
    let (first, again) = connections.split_first().expect("a journal has a part before any dial");
    let Some(open) = dialled(first, timeline, &mut script) else { return script };
    let updated = session(first, config, open, round_trip, &mut script);
    detect_speech(journal, timeline, updated, &mut script);
    let replies = replies(journal, timeline, config, updated, &mut script);
    let last = replies.iter().rposition(|reply| reply.created.is_some() || reply.never_came(timeline));
    let mut turns: Vec<_> =
        replies.iter().take(last.map_or(0, |last| last + 1)).map(|r| turn(r, journal, timeline)).collect();
    script.transcription = transcriptions(journal, config);
    goodbye(first, timeline, open, &replies, &mut turns, &mut script);
    for (n, connection) in again.iter().enumerate() {
        let is_last = n + 1 == again.len();
        let another = another(connection, timeline, config, is_last, &replies, &mut turns);
        script.again.push(another);
    }
    script.turns = turns;
    if journal.header.content == bridge::export::journal::Content::Hashes
        && replies.iter().any(|r| !r.calls.is_empty())
    {
        say("the arguments of functions were hidden (journal.content = \"hashes\"): they are empty objects now".into());
    }
    script
}

/// The journal in parts, one for each connection to the model.
fn connections(journal: &Recorded) -> Vec<Recorded> {
    let mut parts = vec![Recorded { records: Vec::new(), ..journal.clone() }];
    let mut dialled = false;
    for record in &journal.records {
        if matches!(&record.what, What::Bridge { does, .. } if does == "dial")
            && std::mem::replace(&mut dialled, true)
        {
            parts.push(Recorded { records: Vec::new(), ..journal.clone() });
        }
        parts.last_mut().expect("there is one from the beginning").records.push(record.clone());
    }
    parts
}

/// What a further connection was like. One that ended in the middle of a response ends so in the turn of that response.
fn another(
    connection: &Recorded,
    timeline: &Timeline,
    config: &CallConfig,
    is_last: bool,
    replies: &[Reply],
    turns: &mut [Turn],
) -> ReconnectScript {
    let mut script = ModelScript::default();
    match dialled(connection, timeline, &mut script) {
        Some(open) => {
            session(connection, config, open, 2 * timeline.model_latency_us, &mut script);
            goodbye(connection, timeline, open, replies, turns, &mut script);
        }
        // It was given up, for there was another.
        None if script.dial == Dial::Accepts && !is_last => script.dial = Dial::Hangs,
        None => {}
    }
    ReconnectScript {
        dial: Some(script.dial),
        dial_ms: Some(script.dial_ms),
        opening: Some(script.opening),
        created_after_ms: Some(script.created_after_ms),
        updated_after_ms: Some(script.updated_after_ms),
        never_updates: Some(script.never_updates),
        refuses_update: script.refuses_update,
        echoes_format: script.echoes_format,
        close_after: script.close_after,
        drops_after_ms: script.drops_after_ms,
        goes_dark_after_ms: script.goes_dark_after_ms,
        expires_after_s: script.expires_after_s.or(Some(SESSION_S)),
        expiry_error_frame: Some(script.expiry_error_frame),
    }
}

/// How the dial went. Returns when the connection was open.
fn dialled(journal: &Recorded, timeline: &Timeline, script: &mut ModelScript) -> Option<u64> {
    let mut asked = None;
    for record in &journal.records {
        let took = |asked: Option<u64>, ways: u64| {
            let us = record.us.saturating_sub(asked.unwrap_or(record.us));
            us.saturating_sub(ways * timeline.model_latency_us) / 1_000
        };
        match &record.what {
            What::Bridge { does, .. } if does == "dial" => asked = Some(record.us),
            What::Leg { leg: Side::Model, change, .. } if change == "open" => {
                script.dial_ms = took(asked, 3);
                return Some(record.us);
            }
            What::Leg { leg: Side::Model, change, why, .. } if change == "dial_failed" => {
                let why = why.as_deref().unwrap_or_default();
                let status = why.split(' ').find_map(|word| word.parse::<u16>().ok().filter(|n| *n >= 100));
                (script.dial, script.dial_ms) = match status {
                    Some(status) => (Dial::AnswersHttp(status), took(asked, 3)),
                    None => (Dial::Refuses, took(asked, 2)),
                };
                return None;
            }
            _ => {}
        }
    }
    if let Some(asked) = asked {
        // Given up by the timer, or by a caller who left meanwhile.
        match timeline.end.as_deref() {
            Some("dial_failed") => script.dial = Dial::Hangs,
            _ => script.dial_ms = timeline.length_us.saturating_sub(asked) / 1_000 + 5_000,
        }
    }
    None
}

/// How the session was set up. Returns when its settings were confirmed.
fn session(
    journal: &Recorded,
    config: &CallConfig,
    open: u64,
    round_trip: u64,
    script: &mut ModelScript,
) -> Option<u64> {
    let (mut created, mut asked, mut confirmed) = (None, None, None);
    let close = || {
        journal.records.iter().find_map(|record| match &record.what {
            What::Leg { leg: Side::Model, change, code, why } if change == "closed" => {
                Some((*code, why.clone()))
            }
            _ => None,
        })
    };
    for record in &journal.records {
        match &record.what {
            What::Model(event) => match event.kind.as_str() {
                "session.created" if created.is_none() => {
                    created = Some(record.us);
                    script.created_after_ms = record.us.saturating_sub(open) / 1_000;
                    script.expires_after_s = event
                        .expires_in_s
                        .map(|expires| expires - i64::try_from(open / 1_000_000).unwrap_or_default())
                        .filter(|expires| *expires < USUAL_SESSION_S)
                        .and_then(|expires| u64::try_from(expires).ok());
                }
                "session.updated" if confirmed.is_none() => {
                    confirmed = Some(record.us);
                    let took = record.us.saturating_sub(asked.unwrap_or(record.us));
                    script.updated_after_ms = took.saturating_sub(round_trip) / 1_000;
                    script.echoes_format = event.output.as_deref().and_then(format).filter(|format| {
                        let asked = self::format(config.format.wire_name());
                        asked.is_some_and(|asked| asked != *format)
                    });
                }
                "error" if created.is_none() => {
                    let (code, reason) = close().unwrap_or((None, None));
                    script.created_after_ms = record.us.saturating_sub(open) / 1_000;
                    script.opening = Opening::ErrorThenClose(Refusal {
                        kind: event.error.clone().unwrap_or_else(|| "invalid_request_error".into()),
                        code: event.reason.clone(),
                        message: words(event).unwrap_or_default(),
                        close: code.unwrap_or(3_000),
                        reason,
                    });
                }
                "error" if confirmed.is_none() && asked.is_some() && event.event_id.is_some() => {
                    script.refuses_update =
                        Some(event.reason.clone().unwrap_or_else(|| "invalid_value".into()));
                }
                _ => {}
            },
            What::SentModel(event) if event.kind == "session.update" => asked = Some(record.us),
            _ => {}
        }
    }
    let refused = script.opening != Opening::Normal || script.refuses_update.is_some();
    if created.is_none() && !refused {
        script.opening = Opening::Silent;
    }
    if asked.is_some() && confirmed.is_none() && !refused {
        script.never_updates = true;
    }
    confirmed
}

fn format(name: &str) -> Option<AudioFormat> {
    match name {
        "audio/pcm" | "pcm16" => Some(AudioFormat::Pcm),
        "audio/pcmu" | "g711_ulaw" => Some(AudioFormat::Pcmu),
        "audio/pcma" | "g711_alaw" => Some(AudioFormat::Pcma),
        _ => None,
    }
}

fn words(event: &Event) -> Option<String> {
    event.text.as_ref().and_then(|text| text.data.clone())
}

/// How the model listened: how long it took to notice, and what it took for speech though the caller was silent.
fn detect_speech(journal: &Recorded, timeline: &Timeline, updated: Option<u64>, script: &mut ModelScript) {
    let vad = &journal.header.call.vad;
    let (prefix, silence) = (u64::from(vad.prefix_padding_ms), u64::from(vad.silence_duration_ms));
    let round_trip = 2 * timeline.model_latency_us;
    let mut latencies = Vec::new();
    let mut begun: Option<(u64, Option<u64>)> = None;
    let mut floor = 0;
    for record in &journal.records {
        let What::Model(event) = &record.what else { continue };
        match event.kind.as_str() {
            "input_audio_buffer.speech_started" if begun.is_some() => script.vad.extra_speech_started = true,
            "input_audio_buffer.speech_started" => {
                let onset = event.start_ms.filter(|start| *start > floor).map(|start| start + prefix);
                begun = Some((record.us, onset));
                let proven = onset.and_then(|onset| timeline.append_at(onset + script.vad.onset_ms - 1));
                latencies.extend(proven.map(|append| record.us.saturating_sub(append.us + round_trip)));
            }
            "input_audio_buffer.speech_stopped" => {
                let Some(end) = event.end_ms else { continue };
                let proven = timeline.append_at(end.saturating_sub(1));
                latencies.extend(proven.map(|append| record.us.saturating_sub(append.us + round_trip)));
                let spoke = end.saturating_sub(silence);
                if let (Some((_, Some(onset))), Some(updated)) = (begun.take(), updated) {
                    let frames = timeline.frame_at(onset).zip(timeline.frame_until(spoke.saturating_sub(1)));
                    let sound = frames.is_none_or(|(first, last)| {
                        (first.saturating_sub(2)..=last).any(|frame| timeline.is_loud(frame))
                    });
                    if !sound && let Some(append) = timeline.append_at(onset) {
                        // Between the frame before and this one, as the model saw them arrive.
                        let at = (append.us + round_trip).saturating_sub(updated + 10_000);
                        let does = Happening::FalseSpeech { for_ms: spoke.saturating_sub(onset).max(20) };
                        script.events.push(TimedEvent { at_ms: at / 1_000, does });
                    }
                }
                begun = None;
                floor = end;
            }
            _ => {}
        }
    }
    latencies.sort_unstable();
    if let Some(median) = latencies.get(latencies.len() / 2) {
        script.vad.vad_latency_ms = median / 1_000;
    }
}

impl Reply {
    /// It was asked for, and there was time enough for it to come.
    fn never_came(&self, timeline: &Timeline) -> bool {
        self.created.is_none() && timeline.length_us > self.asked + 1_000_000
    }
}

/// Every response in the order in which they were asked for, and what else the model did unasked.
fn replies(
    journal: &Recorded,
    timeline: &Timeline,
    config: &CallConfig,
    updated: Option<u64>,
    script: &mut ModelScript,
) -> Vec<Reply> {
    let round_trip = 2 * timeline.model_latency_us;
    let mut replies: Vec<Reply> = Vec::new();
    let mut unknown = Vec::new();
    // The end of a turn that seemed to need no reply, because the bridge had asked for a response: it did, when
    // that request was swallowed.
    let mut unheeded: Option<u64> = None;
    let happens = |script: &mut ModelScript, us: u64, does: Happening| {
        if let Some(updated) = updated {
            script.events.push(TimedEvent { at_ms: us.saturating_sub(updated) / 1_000, does });
        }
    };
    let named = |replies: &mut Vec<Reply>, id: Option<&String>| {
        let id = id?;
        replies.iter().position(|reply| reply.id.as_ref() == Some(id))
    };
    let of_item = |replies: &mut Vec<Reply>, item: Option<&String>| {
        let item = item?;
        replies.iter().position(|reply| {
            reply.items.iter().any(|said| said.id == *item)
                || reply.calls.iter().any(|call| call.item == *item)
        })
    };
    for record in &journal.records {
        let us = record.us;
        match &record.what {
            What::SentModel(event) if event.kind == "response.create" => replies.push(Reply {
                asked: us + round_trip,
                request: event.request,
                event_id: event.event_id.clone(),
                ..Reply::default()
            }),
            What::SentModel(event) if event.kind == "response.cancel" => {
                let at = named(&mut replies, event.response.as_ref())
                    .or_else(|| replies.iter().rposition(|r| r.created.is_some() && r.done.is_none()));
                if let Some(at) = at {
                    replies[at].cancelled.get_or_insert(us + round_trip);
                }
            }
            What::Malformed { leg: Side::Model, binary: true, .. } => happens(script, us, Happening::Binary),
            What::Malformed { leg: Side::Model, .. } => happens(script, us, Happening::Malformed),
            What::Model(event) => match event.kind.as_str() {
                "input_audio_buffer.speech_started" if config.vad.interrupt_response && config.barge_in => {
                    for reply in replies.iter_mut().filter(|r| r.created.is_some() && r.done.is_none()) {
                        reply.cancelled.get_or_insert(us);
                    }
                }
                "input_audio_buffer.speech_stopped" if config.vad.create_response => {
                    let occupied = replies.iter().any(|reply| {
                        reply.asked <= us
                            && reply.done.is_none()
                            && reply.cancelled.is_none()
                            && (reply.created.is_some() || reply.request.is_some() || reply.id.is_none())
                            && (reply.created.is_some() || us < reply.asked + 10_000_000)
                    });
                    let speaking = replies.iter().any(|r| r.created.is_some() && r.done.is_none());
                    if !occupied {
                        replies.push(Reply { asked: us, ..Reply::default() });
                    } else if !speaking {
                        unheeded = Some(us);
                    }
                }
                "response.created" => {
                    // Of turns that were never answered the last one is meant: a model answers one at a time.
                    let waiting = |reply: &Reply| reply.created.is_none() && reply.request == event.request;
                    let turn = unheeded.take_if(|_| event.request.is_none());
                    let asked = replies.iter().rposition(waiting);
                    let at = asked.filter(|at| turn.is_none_or(|turn| replies[*at].asked >= turn));
                    let at = at.unwrap_or_else(|| {
                        replies.push(Reply { asked: turn.unwrap_or(us), ..Reply::default() });
                        replies.len() - 1
                    });
                    replies[at].created = Some(us);
                    replies[at].id.clone_from(&event.response);
                }
                "response.output_item.added" => {
                    let Some(at) = named(&mut replies, event.response.as_ref()) else { continue };
                    let reply = &mut replies[at];
                    reply.added.get_or_insert(us);
                    let Some(id) = event.item.clone() else { continue };
                    match event.item_type.as_deref() {
                        Some("function_call") => reply.calls.push(Wanted {
                            item: id,
                            call_id: event.call_id.clone().unwrap_or_default(),
                            name: event.name.clone().unwrap_or_default(),
                            arguments: None,
                        }),
                        _ => reply.items.push(Said::new(id)),
                    }
                }
                "response.output_item.done" => {
                    let at = of_item(&mut replies, event.item.as_ref());
                    let Some(at) = at.or_else(|| named(&mut replies, event.response.as_ref())) else {
                        continue;
                    };
                    for call in
                        replies[at].calls.iter_mut().filter(|call| Some(&call.item) == event.item.as_ref())
                    {
                        let read =
                            |given: &Blob| given.data.clone().unwrap_or_else(|| hidden(&call.name, config));
                        call.arguments = event.arguments.as_ref().map(read);
                    }
                }
                "response.output_audio.delta" | "response.audio.delta" => {
                    let Some(at) = named(&mut replies, event.response.as_ref()) else {
                        if event.response.is_some() && !unknown.contains(&event.response) {
                            unknown.push(event.response.clone());
                            happens(script, us, Happening::DeltaForUnknownResponse);
                        }
                        continue;
                    };
                    let item = event.item.clone().unwrap_or_default();
                    let len = event.audio.as_ref().map_or(0, |audio| audio.len);
                    let sound = event.audio.as_ref().and_then(bytes);
                    let reply = &mut replies[at];
                    if !reply.items.iter().any(|said| said.id == item) {
                        reply.items.push(Said::new(item.clone()));
                    }
                    for said in reply.items.iter_mut().filter(|said| said.id == item) {
                        said.deltas.push((us, len));
                        match (&mut said.sound, &sound) {
                            (Some(so_far), Some(sound)) => so_far.extend(sound),
                            (so_far, _) => *so_far = None,
                        }
                    }
                }
                "response.output_text.delta" | "response.text.delta" => {
                    if let Some(at) = named(&mut replies, event.response.as_ref()) {
                        replies[at].written = true;
                    }
                }
                "response.output_audio_transcript.done" | "response.audio_transcript.done" => {
                    let at = of_item(&mut replies, event.item.as_ref());
                    if let (Some(at), Some(words)) = (at, words(event)) {
                        replies[at].transcript.get_or_insert(words);
                    }
                }
                "response.function_call_arguments.delta" => {
                    if let Some(at) = named(&mut replies, event.response.as_ref()) {
                        replies[at].first_argument.get_or_insert(us);
                    }
                }
                "response.done" => {
                    if let Some(at) = named(&mut replies, event.response.as_ref()) {
                        replies[at].done = Some((us, (**event).clone()));
                    }
                }
                "error" => complaint(event, us, updated, &mut replies, script),
                other if is_unknown(other) => happens(script, us, Happening::UnknownEvent),
                _ => {}
            },
            _ => {}
        }
    }
    script.events.sort_by_key(|event| event.at_ms);
    replies
}

/// Types that no version of the protocol has had so far.
fn is_unknown(kind: &str) -> bool {
    let known = ["session.", "conversation.", "input_audio_buffer.", "output_audio_buffer.", "rate_limits."];
    let response = ["output_", "content_part", "audio", "text", "function_call", "mcp_", "created", "done"];
    match kind.strip_prefix("response.") {
        Some(rest) => !response.iter().any(|known| rest.starts_with(known)),
        None => kind != "error" && !known.iter().any(|known| kind.starts_with(known)),
    }
}

/// An `error`: the answer to something the bridge said is for today's model to decide; the others are the script's.
fn complaint(
    event: &Event,
    us: u64,
    updated: Option<u64>,
    replies: &mut Vec<Reply>,
    script: &mut ModelScript,
) {
    let code = event.reason.clone();
    if let Some(answered) = &event.event_id {
        replies.retain(|reply| reply.created.is_some() || reply.event_id.as_ref() != Some(answered));
        return;
    }
    let expired = code.as_deref() == Some("session_expired");
    // A session that ends when it said it would ends so by itself.
    let by_itself = expired && script.expires_after_s.is_some();
    let is_answer = event.error.as_deref() == Some("invalid_request_error") && !expired;
    let Some(updated) = updated.filter(|_| !is_answer && !by_itself) else { return };
    let kind = event.error.clone().unwrap_or_else(|| "server_error".into());
    let message = words(event).unwrap_or_else(|| ErrorSpec::default().message);
    let error = ErrorSpec { kind, code, message };
    let speaking =
        |reply: &&mut Reply| reply.done.is_none() && reply.items.iter().any(|said| !said.deltas.is_empty());
    match replies.iter_mut().find(speaking) {
        Some(reply) => reply.error = Some(error),
        None => script
            .events
            .push(TimedEvent { at_ms: us.saturating_sub(updated) / 1_000, does: Happening::Error(error) }),
    }
}

/// A response as a turn of the script.
fn turn(reply: &Reply, journal: &Recorded, timeline: &Timeline) -> Turn {
    let mut turn = Turn::default();
    let Some(created) = reply.created else {
        turn.never_created = true;
        return turn;
    };
    turn.created_ms = created.saturating_sub(reply.asked) / 1_000;
    let per_ms = u64::from(journal.header.call.format.bytes_per_ms());
    let (done_us, status) = match &reply.done {
        Some((us, done)) => (Some(*us), done.status.as_deref().unwrap_or("completed")),
        None => (None, "unfinished"),
    };
    // What came only after the model was stopped was on its way, and would not have come then.
    let cancelled = reply.cancelled.unwrap_or(u64::MAX);
    let deltas = || reply.items.iter().flat_map(|said| &said.deltas);
    let first = deltas().map(|delta| delta.0).filter(|us| *us <= cancelled).min();
    let late = deltas().filter(|(us, _)| *us > cancelled).count() as u64;
    let until = done_us.unwrap_or(timeline.length_us);
    let waited = until.saturating_sub(created) / 1_000;
    turn.first_audio_ms = match (first.or(reply.first_argument), reply.added) {
        (Some(first), _) => first.saturating_sub(created) / 1_000,
        // The mock announces an item half way to its first sound.
        (None, Some(added)) => (2 * added.saturating_sub(created) / 1_000).max(waited + 1),
        (None, None) => turn.first_audio_ms,
    };
    match &reply.done {
        Some((_, done)) if status == "failed" => {
            turn.status = Outcome::Failed(ErrorSpec {
                kind: done.error.clone().unwrap_or_else(|| "server_error".into()),
                code: done.reason.clone().filter(|code| Some(code) != done.error.as_ref()),
                ..ErrorSpec::default()
            });
            return turn;
        }
        Some((_, done)) if status == "incomplete" => {
            turn.status =
                Outcome::Incomplete(done.reason.clone().unwrap_or_else(|| "max_output_tokens".into()));
        }
        Some(_) | None => {}
    }
    let stopped = matches!(status, "cancelled" | "unfinished");
    calls(reply, stopped, &mut turn);
    turn.error.clone_from(&reply.error);
    turn.transcript.clone_from(&reply.transcript);

    let mut lengths: Vec<u64> = reply
        .items
        .iter()
        .map(|said| said.deltas.iter().map(|delta| delta.1 as u64).sum::<u64>() / per_ms)
        .collect();
    if reply.written {
        turn.text_only = true;
        turn.answers = Some(1_500);
        return turn;
    }
    if first.is_none() {
        if status == "cancelled" {
            turn.late_deltas = u32::try_from(late).unwrap_or(u32::MAX);
        }
        return wordless(reply, status, waited, turn);
    }
    if stopped
        && turn.calls.is_empty()
        && let Some(last) = lengths.last_mut()
    {
        // What it would have gone on to say is not known.
        *last += MORE_MS;
    }
    pace(reply, journal, per_ms, &mut turn);
    if status == "cancelled"
        && let Some(cancelled) = reply.cancelled
    {
        turn.late_deltas = u32::try_from(late).unwrap_or(u32::MAX);
        let usual = cancelled + LATE_US * (late + 1);
        turn.late_done_ms = done_us.map_or(0, |done| done.saturating_sub(usual) / 1_000);
        if turn.late_done_ms < 20 {
            turn.late_done_ms = 0;
        }
    }
    let sounds: Option<Vec<_>> = reply.items.iter().map(|said| said.sound.clone().map(Sound)).collect();
    turn.recorded = sounds.unwrap_or_default();
    match lengths.as_slice() {
        [one] => turn.answers = Some(*one),
        _ => turn.items = lengths,
    }
    turn
}

/// A response without a sound.
fn wordless(reply: &Reply, status: &str, waited_ms: u64, mut turn: Turn) -> Turn {
    match status {
        "completed" | "incomplete" if turn.calls.is_empty() => turn.silent = true,
        "unfinished" if reply.added.is_none() && turn.calls.is_empty() => turn.never_audio = true,
        "cancelled" | "unfinished" if turn.calls.is_empty() => {
            // Stopped before it spoke: it would have, soon after.
            turn.answers = Some(MORE_MS);
            turn.first_audio_ms = turn.first_audio_ms.max(waited_ms + 500);
            if reply.created == reply.done.as_ref().map(|(us, _)| *us) {
                // Created only to be cancelled: it was still to come.
                turn.created_ms += 1_000;
            } else if waited_ms > 4_000 {
                (turn.answers, turn.never_audio) = (None, true);
            }
        }
        _ => {}
    }
    turn
}

/// What stands for arguments that a journal hides. To whom a call was put through is not known; that it was, is.
fn hidden(function: &str, config: &CallConfig) -> String {
    match config.hangup.transfer.first().filter(|_| function == TRANSFER_CALL) {
        Some(person) => serde_json::json!({ "to": person.name }).to_string(),
        None => "{}".to_owned(),
    }
}

fn calls(reply: &Reply, stopped: bool, turn: &mut Turn) {
    for call in &reply.calls {
        if turn.calls.iter().any(|known| known.call_id.as_ref() == Some(&call.call_id)) {
            turn.duplicate_call = true;
            continue;
        }
        let mut arguments = call.arguments.clone().unwrap_or_else(|| "{}".to_owned());
        if stopped {
            // It was stopped in the middle of them: there must be a middle.
            arguments = format!("{{\"more\":\"{}\"}}", "x".repeat(2_000));
        }
        turn.calls.push(Call {
            name: call.name.clone(),
            arguments,
            call_id: Some(call.call_id.clone()).filter(|id| !id.is_empty()),
        });
    }
}

/// How its audio was cut into deltas, and how fast they came.
fn pace(reply: &Reply, journal: &Recorded, per_ms: u64, turn: &mut Turn) {
    // While the bridge does not read, deltas wait, and say nothing of how fast they were made.
    let held = journal.records.iter().find(|record| {
        matches!(&record.what, What::Bridge { does, .. } if does == "hold")
            && reply.created.is_some_and(|created| record.us > created)
    });
    let until = held.map_or(u64::MAX, |record| record.us);
    let cancelled = reply.cancelled.unwrap_or(u64::MAX);
    let Some(longest) = reply.items.iter().max_by_key(|said| said.deltas.len()) else { return };
    let sizes: Vec<u64> = longest.deltas.iter().map(|delta| delta.1 as u64).collect();
    let whole = &sizes[..sizes.len().saturating_sub(1)];
    match (whole.first(), sizes.as_slice()) {
        (None, [one]) if *one > 300 * per_ms => turn.one_delta = true,
        (None, _) => {}
        (Some(first), _)
            if whole.iter().all(|size| size == first) && (*first != 100 * per_ms || whole.len() > 3) =>
        {
            turn.delta_bytes = usize::try_from(*first).ok();
        }
        (Some(_), _) => turn.delta_ms = (whole.iter().max().copied().unwrap_or_default() / per_ms).max(1),
    }

    // The first three come together; from there on the speed shows.
    let (mut made, mut took) = (0_u64, 0_u64);
    let mut steps = Vec::new();
    let mut before_all = 0;
    for said in &reply.items {
        for (n, pair) in said.deltas.windows(2).enumerate() {
            let ((from, size), (to, next)) = (pair[0], pair[1]);
            before_all += size as u64;
            if n >= 2 && to < until && to < cancelled {
                steps.push((before_all / per_ms, to - from, next as u64));
            }
        }
        before_all += said.deltas.last().map_or(0, |delta| delta.1 as u64);
    }
    let mut rates: Vec<u64> =
        steps.iter().map(|(_, took, size)| took * 1_000 / (size * 1_000 / per_ms).max(1)).collect();
    rates.sort_unstable();
    let usual = rates.get(rates.len() / 2).copied();
    for (after_ms, gap, size) in steps {
        let expected = usual.unwrap_or_default() * (size * 1_000 / per_ms) / 1_000;
        if gap > expected + STALL_US && turn.stall.is_none() {
            turn.stall = Some(Stall { after_ms, for_ms: (gap - expected) / 1_000 });
        } else {
            made += size * 1_000 / per_ms;
            took += gap;
        }
    }
    if made > 0 {
        let speed = if took < TOGETHER_US { 1_000.0 } else { made as f64 / took as f64 };
        turn.speed = (speed * 1_000.0).round() / 1_000.0;
    } else if turn.one_delta {
        turn.speed = 1_000.0;
    }
}

/// When the words of the caller's turns came.
fn transcriptions(journal: &Recorded, config: &CallConfig) -> Vec<Transcription> {
    if config.transcription.is_none() {
        return Vec::new();
    }
    let mut order = Vec::new();
    let mut at = BTreeMap::new();
    let mut plans: BTreeMap<String, Transcription> = BTreeMap::new();
    for record in &journal.records {
        let What::Model(event) = &record.what else { continue };
        let Some(item) = &event.item else { continue };
        match event.kind.as_str() {
            "input_audio_buffer.committed" => {
                order.push(item.clone());
                at.insert(item.clone(), record.us);
            }
            "conversation.item.input_audio_transcription.completed" => {
                let after = record.us.saturating_sub(at.get(item).copied().unwrap_or(record.us)) / 1_000;
                let when = match after {
                    0 => When::BeforeResponse,
                    500 => When::Normal,
                    ms => When::Late(ms),
                };
                let empty = event.text.as_ref().is_some_and(|text| text.len == 0);
                let text = words(event).or_else(|| empty.then(String::new));
                plans.insert(item.clone(), Transcription { when, text });
            }
            "conversation.item.input_audio_transcription.failed" => {
                plans.insert(item.clone(), Transcription { when: When::Fails, text: None });
            }
            _ => {}
        }
    }
    let never = || Transcription { when: When::Never, text: None };
    order.iter().map(|item| plans.remove(item).unwrap_or_else(never)).collect()
}

/// How the connection ended, if it was not the bridge that ended it.
fn goodbye(
    journal: &Recorded,
    timeline: &Timeline,
    open: u64,
    replies: &[Reply],
    turns: &mut [Turn],
    script: &mut ModelScript,
) {
    let mut last = open;
    let expires = script.expires_after_s.map(|s| open + s * 1_000_000);
    for record in &journal.records {
        match &record.what {
            What::Model(_) => last = record.us,
            What::Leg { leg: Side::Model, change, .. } if change == "pong" => last = record.us,
            What::Bridge { does, leg: Side::Model, .. } if does == "close" => return,
            What::Bridge { does, leg: Side::Model, .. } if does == "drop" => {
                if timeline.end.as_deref() == Some("model_silent") {
                    script.goes_dark_after_ms = Some(last.saturating_sub(open) / 1_000 + 1);
                }
                return;
            }
            What::Leg { leg: Side::Model, change, code, why } if change == "closed" || change == "lost" => {
                if matches!(script.opening, Opening::ErrorThenClose(_)) {
                    return;
                }
                if expires.is_some_and(|expires| record.us + 1_500_000 > expires) {
                    script.expiry_error_frame = journal.records.iter().any(|record| {
                        matches!(&record.what, What::Model(event) if event.reason.as_deref() == Some("session_expired"))
                    });
                    return;
                }
                let ms = record.us.saturating_sub(open) / 1_000;
                // In the middle of a response it belongs to that response, whenever that is made today.
                let speaking = replies.iter().rposition(|r| r.created.is_some() && r.done.is_none());
                let turn = speaking.and_then(|at| Some((replies[at].created?, turns.get_mut(at)?)));
                let reason = why.clone().unwrap_or_default();
                let closed = change == "closed";
                match turn {
                    Some((created, turn)) => {
                        let ms = record.us.saturating_sub(created) / 1_000;
                        if closed {
                            turn.close_after = Some(CloseAfter { ms, code: code.unwrap_or(1_005), reason });
                        } else {
                            turn.drop_after_ms = Some(ms);
                        }
                    }
                    None if closed => {
                        script.close_after = Some(CloseAfter { ms, code: code.unwrap_or(1_005), reason });
                    }
                    None => script.drops_after_ms = Some(ms),
                }
                return;
            }
            _ => {}
        }
    }
}
