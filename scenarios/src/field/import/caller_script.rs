//! The caller's steps: what the person did, in relation to what they heard.

#![expect(clippy::wildcard_enum_match_arm, reason = "a reader picks the lines it needs")]

use super::timeline::Timing;
use super::timeline::{QUIET_US, Timeline, Utterance, signed};
use crate::field::Recorded;
use bridge::export::journal::lines::{Side, What};
use mocks::sound::Sound;
use mocks::twilio::{CallerScript, CallerStep, EchoMarks, Idle, MediaFormat};
use std::collections::BTreeSet;

/// A message longer than this was made long on purpose.
const OVERSIZED: usize = 2_000;
/// Longer than the bridge reads.
const TOO_LONG: usize = 3_000_000;
/// Silence that is left out for this long is left out on purpose.
const LEFT_OUT_MS: u64 = 100;
/// How far quiet syllables reach around what the model called speech, frames.
const AROUND: usize = 25;
/// How long the mock model's detector needs to be sure.
const ONSET_MS: u64 = 40;
/// Marks later than this against the playback clock are late on purpose.
const LATE_MARK_US: i64 = 60_000;
/// And no buffer before playback is longer than this.
const BUFFER_US: i64 = 250_000;

/// Something the person, or Twilio's end, did. Times are when it arrived at the bridge.
#[derive(Clone, Debug)]
struct Act {
    at: i64,
    does: Does,
}

#[derive(Clone, Debug)]
enum Does {
    /// Speaks for so many ms, and what was said if it was recorded.
    Speaks(u64, Option<Sound>),
    Step(CallerStep),
    /// The last thing they do.
    Ends(CallerStep),
}

pub(super) fn script(
    journal: &Recorded,
    timeline: &Timeline,
    timing: Timing,
    say: &mut impl FnMut(String),
) -> CallerScript {
    let mut script = CallerScript::default();
    opening(journal, timeline, &mut script);
    let began = began(journal);
    let mut acts = speech(journal, timeline);
    acts.extend(messages(journal, timeline, &mut script, say));
    let quiet = left_out(journal, timeline, &acts, &mut script);
    acts.extend(quiet);
    acts.extend(timeline.pauses.iter().map(|pause| Act {
        at: pause.at_us,
        does: Does::Step(CallerStep::PausesMedia(pause.for_us.div_ceil(1_000))),
    }));
    acts.push(ending(journal, timeline));
    // The person stands where their messages came from.
    acts.sort_by_key(|act| (act.at, matches!(act.does, Does::Ends(_))));
    if let Some(last) = acts.iter().position(|act| matches!(act.does, Does::Ends(_))) {
        acts.truncate(last + 1);
    }
    script.steps = steps(&acts, signed(began), timeline, timing);
    if !journal.records.iter().any(|record| matches!(record.what, What::Start { .. })) {
        // Steps begin with the stream; who left before that is sent away by the clock.
        let left = acts.last().filter(|act| {
            matches!(
                act.does,
                Does::Ends(CallerStep::ClosesWithoutStop | CallerStep::Drops | CallerStep::HangsUp)
            )
        });
        if let Some(left) = left {
            let after = left.at - timeline.opened_after_us();
            script.hang_up_after_ms = Some((u64::try_from(after).unwrap_or_default() / 1_000).max(1));
            return script;
        }
    }
    marks(journal, timeline, &mut script);
    // The caller was not impatient then, so it is not now.
    let pauses = acts.windows(2).map(|pair| pair[1].at - pair[0].at).max().unwrap_or_default();
    script.patience_ms = script.patience_ms.max(u64::try_from(pauses).unwrap_or_default() / 1_000 + 10_000);
    let length_ms = timeline.length_us / 1_000;
    script.hang_up_after_ms = script.hang_up_after_ms.map(|usual| usual.max(length_ms + 60_000));
    if acts.iter().any(|act| matches!(act.does, Does::Ends(CallerStep::GoesDark))) {
        script.hang_up_after_ms = Some(length_ms + 60_000);
    }
    script
}

/// When the script begins: with `start`.
fn began(journal: &Recorded) -> u64 {
    let start = journal.records.iter().find(|record| matches!(record.what, What::Start { .. }));
    start.map_or(0, |record| record.us)
}

/// How the stream began.
fn opening(journal: &Recorded, timeline: &Timeline, script: &mut CallerScript) {
    let round_trip_ms = 2 * timeline.caller_latency_us / 1_000;
    let since_open = |us: u64| (us / 1_000).saturating_sub(round_trip_ms);
    let mut before_start = 0;
    let mut connected = None;
    for record in &journal.records {
        match &record.what {
            What::Connected => {
                connected = Some(record.us);
                script.connected_after_ms = since_open(record.us);
            }
            What::Media { .. } => before_start += 1,
            What::Start { encoding, rate, channels, parameters, .. } => {
                match connected {
                    Some(connected) => script.start_after_ms = (record.us - connected) / 1_000,
                    None => {
                        script.send_connected = false;
                        script.connected_after_ms = since_open(record.us);
                    }
                }
                script.media_before_start = before_start;
                script.media_format =
                    MediaFormat { encoding: encoding.clone(), sample_rate: *rate, channels: *channels };
                script.custom_parameters = parameters
                    .iter()
                    .map(|(name, value)| {
                        (name.clone(), value.data.clone().unwrap_or_else(|| "x".repeat(value.len)))
                    })
                    .collect();
                // The timestamps of a stream begin where the caller's clock was.
                script.first_timestamp_ms = timeline.frames.first().and_then(|frame| frame.ts);
                return;
            }
            _ => {}
        }
    }
    // No stream ever started.
    match connected {
        Some(_) => script.start_after_ms = timeline.length_us / 1_000 + 60_000,
        None => script.connected_after_ms = timeline.length_us / 1_000 + 60_000,
    }
}

/// Who spoke when: what the model called speech; where no model listened, what was loud.
fn speech(journal: &Recorded, timeline: &Timeline) -> Vec<Act> {
    let vad = &journal.header.call.vad;
    let (prefix, silence) = (u64::from(vad.prefix_padding_ms), u64::from(vad.silence_duration_ms));
    let mut found: Vec<(usize, usize)> = Vec::new();
    let mut heard_from = None;
    let mut begun: Option<u64> = None;
    let mut floor_ms = 0;
    for record in &journal.records {
        let What::Model(event) = &record.what else { continue };
        match event.kind.as_str() {
            "session.updated" => heard_from = heard_from.or(Some(record.us)),
            "input_audio_buffer.speech_started" if begun.is_none() => begun = event.start_ms,
            "input_audio_buffer.speech_stopped" => {
                if let (Some(start), Some(end)) = (begun.take(), event.end_ms) {
                    found.extend(around(
                        timeline,
                        onset(start, prefix, floor_ms),
                        end.saturating_sub(silence),
                    ));
                    floor_ms = end;
                }
            }
            _ => {}
        }
    }
    if let Some(start) = begun {
        // Still speaking when the call ended, or when the model did.
        found.extend(around(timeline, onset(start, prefix, floor_ms), u64::MAX));
    }
    // No model listened for it before the session was there, or after it was gone.
    let until = found.iter().map(|(_, last)| *last).max();
    let model_gone = journal.records.iter().find(|record| {
        matches!(&record.what, What::Leg { leg: Side::Model, change, .. } if change == "closed" || change == "lost")
    });
    let unheard_from = match (heard_from, model_gone) {
        // A model that never heard anything proves nothing about the caller.
        _ if found.is_empty() => Some(0),
        (None, _) => Some(0),
        (Some(_), Some(gone)) => Some(gone.us),
        (Some(_), None) => None,
    };
    if let Some(from) = unheard_from {
        let first =
            timeline.frames.partition_point(|frame| frame.us < from).max(until.map_or(0, |last| last + 1));
        found.extend(loud(timeline, first));
    }
    found.sort_unstable();
    found.dedup_by(|later, earlier| {
        let overlap = later.0 <= earlier.1;
        if overlap {
            earlier.1 = earlier.1.max(later.1);
        }
        overlap
    });
    let runs = found.into_iter().flat_map(|(first, last)| runs(timeline, first, last));
    let acts = runs.map(|(first, last)| Act {
        // Frames leave when they end; the person decides a moment before.
        at: timeline.on_time(first) - 10_000,
        does: Does::Speaks(20 * (last - first + 1) as u64, timeline.sound(first, last)),
    });
    acts.collect()
}

/// Stretches of frames without a gap: where silence is left out, an utterance may have holes.
fn runs(timeline: &Timeline, first: usize, last: usize) -> Vec<(usize, usize)> {
    let mut runs = vec![(first, first)];
    for frame in first + 1..=last {
        match runs.last_mut().filter(|_| timeline.follows(frame)) {
            Some(run) => run.1 = frame,
            None => runs.push((frame, frame)),
        }
    }
    runs
}

/// Where speech began in what was appended; the prefix may have been cut short by the beginning or the turn before.
fn onset(start_ms: u64, prefix_ms: u64, floor_ms: u64) -> Option<u64> {
    (start_ms > floor_ms).then_some(start_ms + prefix_ms)
}

/// The frames of an utterance: what the model called speech, and the quieter syllables around it.
fn around(timeline: &Timeline, onset_ms: Option<u64>, last_ms: u64) -> Option<(usize, usize)> {
    let last_known = timeline.frames.len().checked_sub(1)?;
    let mut last =
        if last_ms == u64::MAX { last_known } else { timeline.frame_until(last_ms.saturating_sub(1))? };
    let mut first = match onset_ms {
        Some(onset) => timeline.frame_at(onset)?,
        // Somewhere before: where it became loud first.
        None => {
            let from = timeline.frame_at(last_ms.min(timeline_end(timeline)).saturating_sub(ONSET_MS))?;
            let mut first = from.min(last);
            while first > 0 && (first.saturating_sub(AROUND)..first).any(|frame| timeline.is_loud(frame)) {
                first -= 1;
            }
            first
        }
    };
    // A noise only the model heard is its script's business.
    let has_sound = (first.saturating_sub(2)..=last).any(|frame| timeline.is_loud(frame));
    if !has_sound {
        return None;
    }
    while first > 0 && timeline.follows(first) && timeline.is_loud(first - 1) {
        first -= 1;
    }
    while first < last && !timeline.is_loud(first) {
        first += 1;
    }
    if last_ms != u64::MAX {
        while last < last_known && timeline.follows(last + 1) && timeline.is_loud(last + 1) {
            last += 1;
        }
    }
    while last > first && !timeline.is_loud(last) {
        last -= 1;
    }
    Some((first, last))
}

fn timeline_end(timeline: &Timeline) -> u64 {
    timeline.frames.iter().map(|frame| frame.ms).sum()
}

/// Stretches of loud frames from `first` on, with pauses of up to half a second in them.
fn loud(timeline: &Timeline, first: usize) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for frame in (first..timeline.frames.len()).filter(|frame| timeline.is_loud(*frame)) {
        match found.last_mut().filter(|(_, last)| frame - *last <= AROUND) {
            Some((_, last)) => *last = frame,
            None => found.push((frame, frame)),
        }
    }
    found.retain(|(first, last)| last - first >= 2);
    found
}

/// Everything else that came from the caller: keys, marks out of turn, rubbish.
fn messages(
    journal: &Recorded,
    timeline: &Timeline,
    script: &mut CallerScript,
    say: &mut impl FnMut(String),
) -> Vec<Act> {
    let terminator = journal.header.call.dtmf.terminator;
    let mut acts = Vec::new();
    let mut sent_marks = BTreeSet::new();
    let mut started = false;
    let mut hidden = false;
    let mut last_chunk = 0;
    for record in &journal.records {
        let step = match &record.what {
            What::Start { .. } if started => {
                if acts.is_empty() && record.us < began(journal) + 1_000 {
                    script.start_repeats += 1;
                    continue;
                }
                CallerStep::RepeatsStart
            }
            What::Start { .. } => {
                started = true;
                continue;
            }
            What::Media { chunk, .. } => {
                let repeated = *chunk == last_chunk && *chunk > 0;
                last_chunk = *chunk;
                if !repeated {
                    continue;
                }
                CallerStep::RepeatsFrame
            }
            What::Dtmf { key, ends } => {
                hidden |= key.is_none();
                let digit = key.unwrap_or(if *ends { terminator } else { '5' });
                CallerStep::Presses(digit.to_string())
            }
            What::SentMark { name } => {
                sent_marks.insert(name.clone());
                continue;
            }
            What::Mark { name } if sent_marks.remove(name) => continue,
            What::Mark { name } => CallerStep::RepeatsMark { name: name.clone() },
            What::CallerOther { stray: true, .. } => CallerStep::SendsMediaWithWrongSid,
            What::CallerOther { len, .. } if *len >= OVERSIZED => CallerStep::SendsOversized(*len),
            What::CallerOther { .. } => CallerStep::SendsUnknownEvent,
            What::Malformed { leg: Side::Caller, len, binary: true, .. } => CallerStep::SendsBinary(*len),
            What::Malformed { leg: Side::Caller, data: Some(text), .. } => {
                CallerStep::SendsRaw(unnamed(journal, text))
            }
            What::Malformed { leg: Side::Caller, why, .. } if why.contains("base64") => {
                CallerStep::SendsBadBase64
            }
            What::Malformed { leg: Side::Caller, .. } => CallerStep::SendsRaw("not a message".into()),
            What::Leg { leg: Side::Caller, change, .. } if change == "ping" => CallerStep::SendsPing,
            What::Leg { leg: Side::Caller, change, .. } if change == "clogged" => {
                acts.push(Act {
                    at: stopped_reading(journal, record.us),
                    does: Does::Step(CallerStep::StopsReading),
                });
                continue;
            }
            What::Leg { leg: Side::Caller, change, .. } if change == "flowing" => CallerStep::ReadsAgain,
            _ => continue,
        };
        if started {
            acts.push(Act { at: signed(record.us), does: Does::Step(step) });
        }
    }
    if hidden {
        say("digits were hidden (journal.content = \"hashes\"): every one is a 5 now".into());
    }
    let pinged = journal.records.iter().find(
        |record| matches!(&record.what, What::Bridge { does, leg: Side::Caller, .. } if does == "ping"),
    );
    let ponged = journal.records.iter().any(
        |record| matches!(&record.what, What::Leg { leg: Side::Caller, change, .. } if change == "pong"),
    );
    if pinged.is_some_and(|ping| timeline.length_us > ping.us + 3_000_000) && !ponged {
        script.pong = false;
    }
    acts
}

/// A message without the ids of its stream, which are others in every play.
fn unnamed(journal: &Recorded, text: &str) -> String {
    let ids = journal.records.iter().find_map(|record| match &record.what {
        What::Start { call_sid, stream_sid, .. } => Some((call_sid, stream_sid)),
        _ => None,
    });
    let Some((call_sid, stream_sid)) = ids else { return text.to_owned() };
    text.replace(stream_sid.as_str(), "{streamSid}").replace(call_sid.as_str(), "{callSid}")
}

/// When the caller stopped reading: since then the writer has filled up.
fn stopped_reading(journal: &Recorded, clogged_us: u64) -> i64 {
    let waiting = bridge::runtime::leg::QUEUE_HIGH + 8;
    let sent = journal.records.iter().filter(|record| {
        record.us <= clogged_us
            && matches!(record.what, What::SentMedia { .. } | What::SentMark { .. } | What::SentClear)
    });
    sent.rev().nth(waiting - 1).map_or(signed(clogged_us), |record| signed(record.us))
}

/// Silence that was left out.
fn left_out(journal: &Recorded, timeline: &Timeline, speech: &[Act], script: &mut CallerScript) -> Vec<Act> {
    let mut acts = Vec::new();
    // Speech is sent all the same; silence is sent again only when it really came.
    let ends = |acts: &mut Vec<Act>, to: i64| {
        let speaks = |act: &Act| matches!(act.does, Does::Speaks(..)) && (act.at - to).abs() < 60_000;
        if !speech.iter().any(speaks) {
            acts.push(Act { at: to - 10_000, does: Does::Step(CallerStep::Dtx(false)) });
        }
    };
    let began = signed(began(journal));
    match timeline.frames.first().map(|first| signed(first.us)) {
        Some(first) if first < began + 60_000 => {}
        Some(first) => {
            script.idle = Idle::Dtx;
            script.first_timestamp_ms = None;
            ends(&mut acts, first);
        }
        None => script.idle = Idle::Dtx,
    }
    for pair in timeline.frames.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        let missing = after.ts.zip(before.ts).map_or(0, |(after, before)| after.saturating_sub(before));
        if missing >= LEFT_OUT_MS && after.chunk == before.chunk + 1 && after.us > before.us + 60_000 {
            acts.push(Act { at: signed(before.us) + 1_000, does: Does::Step(CallerStep::Dtx(true)) });
            ends(&mut acts, signed(after.us));
        }
    }
    acts
}

/// How the caller's end of the call ended.
fn ending(journal: &Recorded, timeline: &Timeline) -> Act {
    let ends = |at: u64, step| Act { at: signed(at), does: Does::Ends(step) };
    if timeline.end.as_deref() == Some("caller_silent") {
        return ends(last_sign(journal, timeline.length_us) + 5_000, CallerStep::GoesDark);
    }
    for record in &journal.records {
        match &record.what {
            What::Stop => return ends(record.us, CallerStep::HangsUp),
            What::Leg { leg: Side::Caller, change, .. } if change == "closed" => {
                return ends(record.us, CallerStep::ClosesWithoutStop);
            }
            What::Leg { leg: Side::Caller, change, why, .. } if change == "lost" => {
                let long =
                    why.as_deref().is_some_and(|why| why.contains("long") || why.contains("too large"));
                let step = if long { CallerStep::SendsOversized(TOO_LONG) } else { CallerStep::Drops };
                return ends(record.us, step);
            }
            What::Bridge { does, leg: Side::Caller, .. } if does == "close" => {
                return ends(record.us + timeline.caller_latency_us, CallerStep::WaitsForClose);
            }
            What::Bridge { does, leg: Side::Caller, .. } if does == "drop" => {
                return ends(record.us, CallerStep::WaitsForClose);
            }
            _ => {}
        }
    }
    // The journal ends first: how the call went on is not known.
    ends(timeline.length_us + 1_000, CallerStep::HangsUp)
}

/// When the caller was last heard of.
fn last_sign(journal: &Recorded, before: u64) -> u64 {
    let signs = journal.records.iter().filter(|record| {
        record.us < before
            && (matches!(
                record.what,
                What::Media { .. } | What::Mark { .. } | What::Dtmf { .. } | What::Start { .. }
            ) || matches!(&record.what, What::Leg { leg: Side::Caller, change, .. } if change == "pong"))
    });
    signs.map(|record| record.us).max().unwrap_or_default()
}

/// How marks came back.
fn marks(journal: &Recorded, timeline: &Timeline, script: &mut CallerScript) {
    let latency = signed(timeline.caller_latency_us);
    let mut dry_at = i64::MIN;
    // Name, when it is due at the bridge, and whether a clear sent it back.
    let mut due: Vec<(String, i64, bool)> = Vec::new();
    let (mut late, mut flushed) = (Vec::new(), Vec::new());
    for record in &journal.records {
        let at = signed(record.us);
        match &record.what {
            What::SentMedia { audio } => {
                dry_at = dry_at.max(at + latency) + signed(audio.len as u64 * 125);
            }
            What::SentMark { name } => due.push((name.clone(), dry_at.max(at + latency) + latency, false)),
            What::SentClear => {
                dry_at = at + latency;
                for mark in due.iter_mut().filter(|mark| mark.1 > at + 2 * latency) {
                    (mark.1, mark.2) = (at + 2 * latency, true);
                }
            }
            What::Mark { name } => {
                if let Some(n) = due.iter().position(|mark| mark.0 == *name) {
                    let (_, when, was_flushed) = due.remove(n);
                    if was_flushed { &mut flushed } else { &mut late }.push(at - when);
                }
            }
            _ => {}
        }
    }
    let median = |all: &mut Vec<i64>| {
        all.sort_unstable();
        all.get(all.len() / 2).copied()
    };
    let overdue = due.iter().any(|mark| mark.1 + 500_000 < signed(timeline.length_us));
    let flushed = median(&mut flushed);
    match median(&mut late) {
        None if flushed.is_none() && overdue => script.echo_marks = EchoMarks::Never,
        Some(late) if late > LATE_MARK_US && timeline.stalls.is_empty() => {
            let ms = u64::try_from(late).unwrap_or_default() / 1_000;
            // A buffer before playback makes it late; what a clear takes out of it comes back at once.
            if flushed.map_or(late < BUFFER_US, |flushed| flushed < late / 2) {
                script.play_out_ms = ms;
            } else {
                script.echo_marks = EchoMarks::Late(ms);
            }
        }
        _ => {}
    }
}

/// The acts as steps. `began` is when `start` arrived.
fn steps(acts: &[Act], began: i64, timeline: &Timeline, timing: Timing) -> Vec<CallerStep> {
    let latency = signed(timeline.caller_latency_us);
    let mut steps = Vec::new();
    // The person's clock: everything happened a latency before it arrived.
    let mut cursor = began - latency;
    for (n, act) in acts.iter().enumerate() {
        let at = act.at - latency;
        if matches!(act.does, Does::Ends(CallerStep::WaitsForClose)) {
            // There is nothing to wait for but that.
            steps.push(CallerStep::WaitsForClose);
            break;
        }
        match timing {
            Timing::Recorded => wait(&mut steps, at - cursor),
            Timing::Heard => listen(&mut steps, cursor, at, &timeline.utterances),
        }
        cursor = cursor.max(at);
        match &act.does {
            Does::Speaks(ms, sound) => {
                let silent_at = at + signed(ms * 1_000);
                let next = acts.get(n + 1).map_or(i64::MAX, |next| next.at - latency);
                let goes_on = next < silent_at;
                steps.push(match (sound.clone(), goes_on) {
                    (Some(sound), true) => CallerStep::StartsSayingRecorded(sound),
                    (Some(sound), false) => CallerStep::SaysRecorded(sound),
                    (None, true) => CallerStep::StartsSaying(*ms),
                    (None, false) => CallerStep::Says(*ms),
                });
                if !goes_on {
                    cursor = cursor.max(silent_at);
                }
            }
            Does::Step(step) => steps.push(step.clone()),
            Does::Ends(step) => {
                steps.push(step.clone());
                if matches!(step, CallerStep::SendsOversized(_)) {
                    steps.push(CallerStep::WaitsForClose);
                }
            }
        }
    }
    steps
}

fn wait(steps: &mut Vec<CallerStep>, us: i64) {
    let ms = u64::try_from(us).unwrap_or_default() / 1_000;
    if ms > 0 {
        steps.push(CallerStep::Waits(ms));
    }
}

/// From `cursor` until `at`, in terms of what is heard meanwhile.
fn listen(steps: &mut Vec<CallerStep>, cursor: i64, at: i64, utterances: &[Utterance]) {
    let mut cursor = cursor;
    for utterance in utterances.iter().filter(|utterance| utterance.begins <= at) {
        if utterance.ends + QUIET_US <= cursor {
            continue;
        }
        let fresh = utterance.begins >= cursor;
        if fresh {
            steps.push(CallerStep::HearsStart);
            cursor = utterance.begins;
        }
        if at < utterance.ends {
            let heard = u64::try_from(utterance.heard_by(at)).unwrap_or_default() / 1_000;
            if heard > 0 {
                steps.push(CallerStep::HearsFor(heard));
            }
            return;
        }
        let over = utterance.ends + QUIET_US;
        if over > at {
            break; // silence is not noticed yet
        }
        steps.push(CallerStep::HearsEnd);
        cursor = cursor.max(over);
    }
    wait(steps, at - cursor);
}
