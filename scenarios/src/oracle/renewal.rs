//! A session that nears its limit is followed by another, and nobody notices.
//!
//! Nothing of it is the bridge's word: when a session was given up, what could be heard at that moment, what the next
//! one was told and what had really been said and heard are all known at the two ends. That there is never more than
//! one session at a time is [`super::protocol::OPENING_ORDER`]'s rule, and that no word of the caller is lost between two of
//! them is [`super::audio::UPLINK_INTACT`]'s.

#![expect(clippy::wildcard_enum_match_arm, reason = "a judge picks the observations it needs")]

use super::case::{CallUnderTest, Oracle, Violation, Violations, each, in_ms};
use super::lifecycle::{WORDS_US, words_heard};
use super::sessions::{followed, news, past};
use super::speech::{given_before, spoken_is_loud};
use super::tolerance::{Leg, hears_speech};
use crate::oracle::audio_attribution::BYTES_PER_MS;
use crate::sim::trace::Trace;
use bridge::call::settings::Renewal;
use mocks::peer::At;
use mocks::record::{CallerObservation, Ending, ModelObservation, Observation};
use std::collections::{BTreeMap, BTreeSet};

/// What a bridge may take beyond its settings: one turn of its loop, its close and the answer.
const PROMPT_US: u64 = 1_000_000;
/// What may be unheard of an item that is taken for heard: two frames, and what a resampler holds back.
const UNHEARD_MS: f64 = 60.0;
/// How long a word may be under way before the model says that it hears one, beyond the network's time.
const UNNOTICED_US: u64 = 500_000;
/// Whole seconds, in which the end of a session is told.
const SECOND_US: u64 = 1_000_000;

/// See [`Oracle::about`].
pub const SESSION_RENEWAL: Oracle = Oracle {
    name: "session_renewal",
    about: "Where sessions are renewed, one that nears its limit is followed by another in a quiet moment, which is set \
            like the first, is told what was said and heard, and greets nobody, because a call may be longer than a \
            session.",
    check: renew,
};

fn renew(trace: &Trace) -> Vec<Violation> {
    each(trace, SESSION_RENEWAL.name, |case, violations| {
        let Some(renewal) = &case.tolerance.config.renewal else { return };
        let followed = followed(case.call);
        for (m, next) in &followed {
            check_moment(case, renewal, *m, violations);
            check_gap(case, renewal, *m, *next, violations);
            check_overlap(case, *m, *next, violations);
            check_settings(case, *m, *next, violations);
            check_history(case, renewal, *next, violations);
            check_silence(case, *next, violations);
        }
        if let Some(last) = case.call.models.len().checked_sub(1) {
            check_chances(case, renewal, last, violations);
        }
    })
}

/// When this session ends by itself, and from when on it may be renewed.
fn limits(case: &CallUnderTest<'_>, renewal: &Renewal, m: usize) -> Option<(At, At)> {
    let ready = case.tolerance.ready_at(m)?;
    let limit = case.tolerance.expires_at(m)?;
    let half = limit.since(ready) / 2;
    let window = (renewal.before_ms * 1_000).min(half);
    Some((limit, At(limit.0 - window)))
}

// --------------------------------------------------------------------------------------------- the moment

/// A session is given up near its limit, and when nobody speaks or is about to.
fn check_moment(case: &CallUnderTest<'_>, renewal: &Renewal, m: usize, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    let observations = &case.call.models[m].observations;
    let ended = observations.iter().find_map(|seen| {
        if let ModelObservation::Ended(ending) = &seen.what { Some((seen.at, ending)) } else { None }
    });
    let Some((over, ending)) = ended else { return };
    let way = tolerance.latency(Leg::Model);
    let slack = tolerance.slack(Leg::Model, over) + tolerance.slack(Leg::Caller, over);
    let window =
        if renewal.after_ms.is_some() { None } else { limits(case, renewal, m).map(|(_, from)| from) };
    let early = window.filter(|window| over.0 + slack + SECOND_US < window.0);
    match ending {
        Ending::ByPeer { code: Some(1_000), .. } => {
            if let Some(window) = early {
                let early = in_ms(window.since(over)) / 1_000.0;
                violations
                    .push(over, format!("a session was given up {early:.0} s before it might be renewed"));
            }
        }
        // In an outage the bridge gives up waiting for the answer to its close.
        Ending::Lost { .. } if tolerance.is_held_up(Leg::Model, over) => {}
        // Where it may be renewed, it may end by itself while the close is on its way.
        Ending::ByUs { .. } | Ending::Lost { .. } if early.is_none() => {}
        other => violations.push(over, format!("a session that was renewed ended otherwise: {other}")),
    }
    // What the bridge could know when it closed.
    let gave_up = At(over.0.saturating_sub(way + slack));
    // A word that comes in the same moment may come second.
    let known_by = At(gave_up.0.saturating_sub(way + slack + 1));
    let queued = case.attribution.queued(At(over.0.saturating_sub(way))) / BYTES_PER_MS;
    let spare = in_ms(
        tolerance.held_up(Leg::Caller, over) + 2 * tolerance.latency(Leg::Caller) + tolerance.gathering_us(),
    );
    // The ear of a caller who is gone plays nothing, and says nothing of it.
    if queued as f64 > spare + UNHEARD_MS && tolerance.marks_come_back() && over < tolerance.over() {
        violations.push(over, format!("a session was given up when {queued} ms were still to be heard"));
    }
    let in_between = |seen: &Observation<ModelObservation>| (known_by..=over).contains(&seen.at);
    let ended = |seen: &Observation<ModelObservation>| {
        matches!(seen.what, ModelObservation::SentSpeechStopped { .. })
    };
    // What was said before another turn is over.
    let goes_on = !observations.iter().any(|seen| in_between(seen) && ended(seen));
    if hears_speech(observations, known_by) && goes_on && hears_speech(observations, over) {
        violations.push(over, "a session was given up while the caller spoke");
    }
    let known = &observations[..observations.partition_point(|seen| seen.at <= known_by)];
    let (mut responses, mut calls) = (BTreeSet::new(), BTreeSet::new());
    for seen in known {
        if let ModelObservation::SentResponseCreated { response, .. } = &seen.what {
            responses.insert(response);
        } else if let ModelObservation::SentFunctionCall { call_id, response, .. } = &seen.what {
            calls.insert((call_id, response));
        }
    }
    for seen in observations {
        if let ModelObservation::SentResponseDone { response, status } = &seen.what {
            responses.remove(response);
            if status != "completed" {
                calls.retain(|(_, of)| *of != response);
            }
        } else if let ModelObservation::GotToolOutput { call_id, .. } = &seen.what {
            calls.retain(|(open, _)| *open != call_id);
        }
    }
    if let Some(response) = responses.first() {
        violations.push(over, format!("a session was given up while {response} was active"));
    }
    if let Some((call_id, _)) = calls.first() {
        violations.push(over, format!("a session was given up before {call_id} was answered"));
    }
    let turn = observations.iter().rev().find(|seen| {
        matches!(
            seen.what,
            ModelObservation::SentSpeechStopped { .. } | ModelObservation::SentResponseCreated { .. }
        )
    });
    if let Some(turn) = turn
        && matches!(turn.what, ModelObservation::SentSpeechStopped { .. })
        && turn.at <= known_by
    {
        violations.push(over, "a session was given up before it had answered the caller");
    }
}

/// Without a session is nobody for longer than all tries may take.
fn check_gap(
    case: &CallUnderTest<'_>,
    renewal: &Renewal,
    m: usize,
    next: usize,
    violations: &mut Violations,
) {
    let tolerance = &case.tolerance;
    let over = tolerance.model_over(m);
    let Some(ready) = tolerance.ready_at(next) else { return };
    let longest = renewal.longest_ms(&tolerance.config.timeouts) * 1_000 + PROMPT_US;
    let network = 2 * tolerance.latency(Leg::Model)
        + tolerance.slack(Leg::Model, over)
        + tolerance.slack(Leg::Model, ready);
    if ready.since(over) > longest + network {
        let ms = in_ms(ready.since(over));
        violations.push(ready, format!("the call was without a session for {ms:.0} ms"));
    }
}

/// A word that was beginning is told to both sessions, and nothing else.
fn check_overlap(case: &CallUnderTest<'_>, m: usize, next: usize, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    if !tolerance.model_hears(m) {
        return; // it was told them, and heard none
    }
    let Some(first) = case.attribution.given[next].iter().find_map(|given| given.spoken) else { return };
    let before = given_before(case, next);
    let again = case.call.caller.mic.iter().filter(|frame| {
        frame.speech && (first..before).contains(&frame.offset) && spoken_is_loud(case, frame)
    });
    let twice = again.map(|frame| frame.len as u64 * 125).sum::<u64>();
    let at = tolerance.ready_at(next).unwrap_or_default();
    // Nor is a word noticed that an outage keeps from the session before, or its answer from the bridge.
    let slack = tolerance.slack(Leg::Model, at).max(tolerance.slack(Leg::Model, tolerance.model_over(m)));
    let network = 2 * tolerance.latency(Leg::Model) + slack + tolerance.mic_held_us();
    if twice > UNNOTICED_US + network {
        violations
            .push(at, format!("{:.0} ms of the caller's words were told to two sessions", in_ms(twice)));
    }
}

/// Voice, tools, instructions, formats: all that a session is asked to be.
fn check_settings(case: &CallUnderTest<'_>, m: usize, next: usize, violations: &mut Violations) {
    let (before, after) = (&case.call.models[m].settings, &case.call.models[next].settings);
    if before != after {
        let at = case.tolerance.ready_at(next).unwrap_or_default();
        violations.push(at, "a session that took over was set in another way than the one before");
    }
}

/// Nobody is greeted again: the first response follows something the caller said, pressed or asked for.
fn check_silence(case: &CallUnderTest<'_>, next: usize, violations: &mut Violations) {
    let first = news(case.call, next).find(|seen| {
        matches!(
            seen.what,
            ModelObservation::SentSpeechStopped { .. }
                | ModelObservation::GotText { .. }
                | ModelObservation::GotCreate { .. }
        )
    });
    if let Some(asked) = first.filter(|seen| matches!(seen.what, ModelObservation::GotCreate { .. })) {
        violations
            .push(asked.at, "a session that took over was asked to speak although nobody had said anything");
    }
}

// -------------------------------------------------------------------------------------------- the history

/// Something a session that takes over should be told.
#[derive(Debug)]
struct Said {
    what: What,
    /// It may as well be left out: the bridge may not have known of it, or nothing of it was heard.
    optional: bool,
}

#[derive(Debug)]
enum What {
    /// These words of the caller.
    User(String),
    /// This much of these words of the agent: at least, and at most, characters.
    Agent { words: String, least: usize, most: usize },
    /// A function call with its output.
    Call { call_id: String, name: String, output: String },
}

impl What {
    /// Items and bytes, at most.
    fn size(&self) -> (usize, usize) {
        match self {
            Self::User(text) => (1, text.len()),
            Self::Agent { words, .. } => (1, words.len()),
            Self::Call { call_id, name, output } => {
                (2, 2 * call_id.len() + name.len() + output.len() + 1_000)
            }
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::User(text) => format!("the caller's {text:?}"),
            Self::Agent { words, least, most } => {
                format!("{least} to {most} characters of the agent's {words:?}")
            }
            Self::Call { name, call_id, .. } => format!("{call_id} of {name}"),
        }
    }
}

/// What was said and heard in this session, in order.
fn said_in(case: &CallUnderTest<'_>, m: usize) -> Vec<Said> {
    let tolerance = &case.tolerance;
    let over = tolerance.model_over(m);
    let network = tolerance.latency(Leg::Model) + tolerance.slack(Leg::Model, over);
    let mut words: BTreeMap<&str, (At, &str)> = BTreeMap::new();
    let mut outputs: BTreeMap<&str, &str> = BTreeMap::new();
    let mut cut: BTreeSet<&str> = BTreeSet::new();
    for seen in news(case.call, m) {
        match &seen.what {
            ModelObservation::SentTranscription { item, text: Some(text) } => {
                words.insert(item, (seen.at, text.trim()));
            }
            ModelObservation::GotToolOutput { call_id, output, .. } => {
                outputs.entry(call_id).or_insert(output);
            }
            ModelObservation::GotTruncate { item, .. } => {
                cut.insert(item);
            }
            _ => {}
        }
    }
    let mut all: Vec<(usize, Said)> = Vec::new();
    let mut met = BTreeSet::new();
    let model = &case.call.models[m];
    let past = past(case.call, m).as_ptr_range();
    for (place, seen) in model.observations.iter().enumerate() {
        match &seen.what {
            _ if past.contains(&std::ptr::from_ref(seen)) => {}
            ModelObservation::SentSpeechStopped { item, .. } => {
                let Some((at, text)) = words.get(item.as_str()).filter(|(_, text)| !text.is_empty()) else {
                    continue;
                };
                let optional = at.0 + network > over.0;
                all.push((place, Said { what: What::User((*text).to_owned()), optional }));
            }
            ModelObservation::GotText { role, text } if role == "user" => {
                all.push((place, Said { what: What::User(text.trim().to_owned()), optional: false }));
            }
            ModelObservation::SentFunctionCall { call_id, name, added, .. }
                if met.insert(call_id.as_str()) =>
            {
                let Some(output) = outputs.get(call_id.as_str()) else { continue };
                let (call_id, name, output) = (call_id.clone(), name.clone(), (*output).to_owned());
                // As an answer does, it stands where it was begun.
                all.push((*added, Said { what: What::Call { call_id, name, output }, optional: false }));
            }
            ModelObservation::SentAudio { item, .. } if met.insert(item.as_str()) => {
                // An answer stands where it was begun, however late it is heard.
                let begun = model.items.iter().find(|record| record.id == *item);
                let place = begun.map_or(place, |record| record.added);
                all.extend(heard_of(case, m, item, cut.contains(item.as_str())).map(|said| (place, said)));
            }
            _ => {}
        }
    }
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, said)| said).collect()
}

/// What the caller heard of an item of the agent.
fn heard_of(case: &CallUnderTest<'_>, m: usize, id: &str, cut: bool) -> Option<Said> {
    let record = case.call.models[m].items.iter().find(|record| record.id == id)?;
    let item = case.attribution.item(m, id)?;
    let words = record.transcript.trim().to_owned();
    let all = words.chars().count();
    if all == 0 {
        return None;
    }
    let heard = case.attribution.item_played(item, At(u64::MAX));
    let words_heard = words_heard(case, m, record, item);
    let whole = !cut && heard as f64 / BYTES_PER_MS as f64 + UNHEARD_MS >= (item.len / BYTES_PER_MS) as f64;
    let sure = case.tolerance.ear_works() && case.tolerance.marks_come_back() && !item.silent;
    let (least, most) = match (sure, whole) {
        (false, _) => (0, all),
        // So short that nothing of it may be unheard.
        (true, true) if heard == 0 => (0, all),
        (true, true) => (all, all),
        (true, false) => (words_heard.least, words_heard.most),
    };
    Some(Said { what: What::Agent { words, least, most }, optional: least == 0 })
}

/// What a session was told is the newest of what was said and heard, as much as fits the limits, in order.
fn check_history(case: &CallUnderTest<'_>, renewal: &Renewal, next: usize, violations: &mut Violations) {
    let said: Vec<Said> = (0..next).flat_map(|m| said_in(case, m)).collect();
    let told = past(case.call, next);
    let at = case.tolerance.ready_at(next).unwrap_or_default();
    let mut outputs: BTreeMap<&str, &str> = BTreeMap::new();
    for seen in told {
        if let ModelObservation::GotToolOutput { call_id, output, .. } = &seen.what {
            outputs.insert(call_id, output);
        }
    }
    let (mut items, mut bytes) = (0, 0);
    // From the newest on: how much of what was said may be behind what was told so far. The same words may have been said
    // twice, and heard once.
    let mut ends = BTreeSet::from([said.len()]);
    for seen in told.iter().rev() {
        let fits = |said: &What| match (&seen.what, said) {
            (ModelObservation::GotText { role, text }, What::User(words)) => {
                role == "user" && text.trim() == *words
            }
            (ModelObservation::GotText { role, text }, What::Agent { words, least, most }) => {
                let count = text.trim().chars().count();
                role == "assistant" && words.starts_with(text.trim()) && (*least..=*most).contains(&count)
            }
            (
                ModelObservation::GotCall { call_id: id, name: of, .. },
                What::Call { call_id, name, output },
            ) => id == call_id && of == name && outputs.get(id.as_str()).is_some_and(|told| told == output),
            _ => false,
        };
        let what = match &seen.what {
            ModelObservation::GotText { role, text } => format!("{role}: {text:?}"),
            ModelObservation::GotCall { call_id, name, .. } => format!("{call_id} of {name}"),
            _ => continue,
        };
        let next: BTreeSet<usize> = ends
            .iter()
            .flat_map(|end| possible(&said[..*end]))
            .filter(|place| fits(&said[*place].what))
            .collect();
        let Some(newest) = next.last() else {
            let due = ends.last().and_then(|end| said[..*end].iter().rfind(|said| !said.optional));
            let wanted = due.map_or("nothing".to_owned(), |said| said.what.in_words());
            return violations.push(seen.at, format!("a session was told {what} where there was {wanted}"));
        };
        let (more_items, more_bytes) = said[*newest].what.size();
        (items, bytes) = (items + more_items, bytes + more_bytes);
        ends = next;
    }
    let left_out = |end: &usize| said[..*end].iter().rfind(|said| !said.optional);
    let fits = |said: &Said| {
        let (more_items, more_bytes) = said.what.size();
        items + more_items <= renewal.history_items && bytes + more_bytes <= renewal.history_bytes
    };
    if let Some(said) = ends.iter().find_map(left_out).filter(|said| fits(said))
        && ends.iter().all(|end| left_out(end).is_some_and(fits))
    {
        violations.push(at, format!("a session was not told {}", said.what.in_words()));
    }
}

/// The places of what may be told next, of what was said: the newest, and what is before it as far as that may be left out.
fn possible(said: &[Said]) -> impl Iterator<Item = usize> {
    let due = said.iter().rposition(|said| !said.optional).unwrap_or(0);
    due..said.len()
}

// -------------------------------------------------------------------------------------------- the chances

/// A session that came near its limit had no moment that was quiet for long enough.
fn check_chances(case: &CallUnderTest<'_>, renewal: &Renewal, m: usize, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    let Some((limit, window)) = limits(case, renewal, m) else { return };
    let plain = tolerance.is_ideal()
        && tolerance.ear_works()
        && tolerance.marks_come_back()
        && !tolerance.model_misbehaves();
    if !plain {
        return;
    }
    let ways = 2 * (tolerance.latency(Leg::Model) + tolerance.latency(Leg::Caller)) + tolerance.backend_us();
    // The polite end leaves time for the last words.
    let end = tolerance.model_over(m).min(tolerance.over()).min(limit);
    let needed = renewal.quiet_ms * 1_000 + 2 * ways + PROMPT_US;
    let mut quiet_since = At(window.0.max(tolerance.ready_at(m).unwrap_or_default().0));
    let mut busy = busy(case, m);
    busy.push((end, end));
    busy.sort_unstable();
    for (from, to) in busy {
        let from = from.min(end);
        if from.since(quiet_since) > needed {
            let ms = in_ms(from.since(quiet_since));
            return violations.push(
                At(quiet_since.0 + needed),
                format!("a session near its limit was not renewed although {ms:.0} ms were quiet"),
            );
        }
        quiet_since = quiet_since.max(to);
    }
}

/// When something went on in the call that a renewal has to wait for.
fn busy(case: &CallUnderTest<'_>, m: usize) -> Vec<(At, At)> {
    let tolerance = &case.tolerance;
    let config = tolerance.config;
    let mut busy: Vec<(At, At)> =
        case.attribution.played.iter().map(|played| (played.at, played.end())).collect();
    let mut open: BTreeMap<String, At> = BTreeMap::new();
    let never = At(u64::MAX);
    for seen in &case.call.models[m].observations {
        let mut from = |what: String| {
            open.entry(what).or_insert(seen.at);
        };
        match &seen.what {
            ModelObservation::SentSpeechStarted { .. } => from("speech".into()),
            ModelObservation::SentSpeechStopped { .. } => {
                from("answer".into());
                if config.transcription.is_some() {
                    busy.push((seen.at, At(seen.at.0 + WORDS_US)));
                }
                busy.extend(open.remove("speech").map(|since| (since, seen.at)));
            }
            ModelObservation::GotCreate { .. } => from("answer".into()),
            ModelObservation::SentResponseCreated { response, .. } => {
                from(response.clone());
                busy.extend(open.remove("answer").map(|since| (since, seen.at)));
            }
            ModelObservation::SentResponseDone { response, .. } => {
                busy.extend(open.remove(response).map(|since| (since, seen.at)));
            }
            ModelObservation::SentFunctionCall { call_id, .. } => from(call_id.clone()),
            ModelObservation::GotToolOutput { call_id, .. } => {
                busy.extend(open.remove(call_id).map(|since| (since, seen.at)));
            }
            _ => {}
        }
    }
    busy.extend(open.into_values().map(|since| (since, never)));
    for seen in &case.call.caller.observations {
        if let CallerObservation::SentDtmf { .. } = seen.what {
            busy.push((seen.at, At(seen.at.0 + config.dtmf.quiet_ms * 1_000)));
        }
    }
    busy
}
