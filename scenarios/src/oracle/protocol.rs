//! Both vendors' rules, kept in the state each end was really in.

use super::case::{CallUnderTest, Oracle, Violations, each};
use super::sessions::past;
use super::tolerance::{Leg, hears_speech};
use crate::sim::trace::Trace;
use bridge::call::event::CallEvent;
use bridge::call::settings::DialWhen;
use bridge::call::settings::{END_CALL, TRANSFER_CALL};
use mocks::peer::At;
use mocks::record::{CallerObservation, ModelObservation, Observation};
use std::collections::{BTreeMap, BTreeSet};

/// What a bridge may take beyond a configured timeout: one turn of its loop, its close and its answer.
const PROMPT_MS: u64 = 1_000;
/// Longer than the bundled notice lasts.
const NOTICE_MS: u64 = 4_000;
/// How early a format's confirmation may seem to arrive: clocks of two ends are read in turns of a loop.
const ROUNDING_US: u64 = 1_000;

/// See [`Oracle::about`].
pub const PROTOCOL_VALID: Oracle = Oracle {
    name: "protocol_valid",
    about: "Nothing is sent that the receiver must reject in the state it is known to be in, because every rejection \
            is an effect that did not happen.",
    check: legal,
};

/// See [`Oracle::about`].
pub const SINGLE_RESPONSE: Oracle = Oracle {
    name: "single_response",
    about: "No response is asked for while another is known to be active or asked for, because the second is refused \
            and its answer is lost.",
    check: one,
};

/// See [`Oracle::about`].
pub const FORMAT_CONFIRMED: Oracle = Oracle {
    name: "format_confirmed",
    about: "No audio reaches the model before its formats are confirmed and equal to the wire, because audio in the \
            wrong format is noise to one side.",
    check: format,
};

/// See [`Oracle::about`].
pub const MARKS_UNIQUE: Oracle = Oracle {
    name: "marks_unique",
    about: "No two outstanding marks share a name, because then nobody can tell which of them came back.",
    check: mark,
};

/// See [`Oracle::about`].
pub const TOOL_CALLS_ANSWERED: Oracle = Oracle {
    name: "tool_calls_answered",
    about: "Each function call of a finished response is answered exactly once and the model is asked to go on, \
            because an open call leaves the model mute.",
    check: tool,
};

/// See [`Oracle::about`].
pub const OPENING_ORDER: Oracle = Oracle {
    name: "opening_order",
    about: "The opening messages are handled in every early order, or their absence is timed out, because a stream \
            nobody takes is a silent call that is paid for.",
    check: start,
};

// ----------------------------------------------------------------------------------------------- legal

fn legal(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, PROTOCOL_VALID.name, |case, violations| {
        for seen in &case.call.caller.observations {
            if let CallerObservation::Warned { code: code @ (31_950 | 31_951), detail } = &seen.what {
                violations.push(seen.at, format!("Twilio would warn ({code}): {detail}"));
            }
        }
        for (m, model) in case.call.models.iter().enumerate() {
            for (index, seen) in model.observations.iter().enumerate() {
                if let ModelObservation::GotBad { detail } = &seen.what {
                    violations.push(seen.at, format!("the model was sent something off-protocol: {detail}"));
                }
                if let ModelObservation::SentError { code, message, rejected: Some(rejected), .. } =
                    &seen.what
                    && !is_benign(case, m, index, code, rejected)
                {
                    violations.push(seen.at, format!("{rejected} was refused ({code}): {message}"));
                }
            }
        }
    })
}

/// Races no bridge can win, because what would have told it was still on its way; and refusals the script wants.
fn is_benign(case: &CallUnderTest<'_>, m: usize, index: usize, code: &str, rejected: &str) -> bool {
    let observations = &case.call.models[m].observations;
    let refused = observations[index].at;
    // The bridge acted on what had been sent one round trip before the refusal.
    let round_trip = case.tolerance.round_trip_until(Leg::Model, refused);
    let known_by = At(refused.0.saturating_sub(round_trip + ROUNDING_US));
    let news = || observations[..index].iter().rev().take_while(|seen| seen.at >= known_by);
    match code {
        // The response ended while the cancel was on its way, or was ended by the caller's voice, or it was never
        // created at all.
        "response_cancel_not_active" => {
            news().any(|seen| {
                matches!(
                    seen.what,
                    ModelObservation::SentResponseDone { .. } | ModelObservation::SentSpeechStarted { .. }
                )
            }) || has_unanswered_create(&observations[..index])
        }
        // The server committed the turn by itself while the commit of a caller who had left was on its way; or what came of
        // the last turn before its caller left is too little to be one.
        "input_audio_buffer_commit_empty" => {
            let left = case.tolerance.caller_gone().is_some_and(|gone| refused >= gone);
            left || news().any(|seen| matches!(seen.what, ModelObservation::SentSpeechStopped { .. }))
        }
        // The server created its own response to the caller's turn while the request was on its way.
        "conversation_already_has_active_response" => {
            news().any(|seen| {
                matches!(
                    seen.what,
                    ModelObservation::SentResponseCreated { auto: true, .. }
                        | ModelObservation::SentSpeechStopped { .. }
                )
            }) || answers_unannounced(&observations[..index])
                || hides_its_answer(&observations[..index])
                || never_announces(case, &observations[..index], refused)
        }
        // The script refuses it whenever it comes; one that came before its response was over came too early.
        "invalid_tool_call_id" => {
            let before = &observations[..index];
            let answered = before.iter().rev().find_map(|seen| {
                if let ModelObservation::GotToolOutput { call_id, .. } = &seen.what {
                    Some(call_id)
                } else {
                    None
                }
            });
            let response = answered.and_then(|answered| response_of(before, answered));
            case.tolerance.refuses_outputs()
                && response.is_some_and(|response| done_of(before, response).is_some())
        }
        _ => rejected == "session.update" && case.tolerance.refuses_settings(m),
    }
}

/// A turn ended while a response was not over, and the server has not said yet that it answers that turn. Whether it does,
/// or was kept from it by the other response, no bridge can know.
fn answers_unannounced(observations: &[Observation<ModelObservation>]) -> bool {
    let Some(stopped) = last_turn_ended(observations) else { return false };
    let (before, after) = observations.split_at(stopped);
    let last = before.iter().rev().find_map(|s| {
        let ModelObservation::SentResponseCreated { response, .. } = &s.what else { return None };
        Some(response)
    });
    let over = last.is_none_or(|last| done_of(before, last).is_some());
    let announced =
        after.iter().any(|s| matches!(s.what, ModelObservation::SentResponseCreated { auto: true, .. }));
    !over && !announced
}

/// A turn ended, and instead of the answer that is under way came the end of a response that never began. No bridge can
/// tell that from an answer that has failed.
fn hides_its_answer(observations: &[Observation<ModelObservation>]) -> bool {
    let Some(stopped) = last_turn_ended(observations) else { return false };
    let after = &observations[stopped..];
    let stray = |s: &Observation<ModelObservation>| {
        matches!(&s.what, ModelObservation::SentOther { kind } if kind == "done_for_unknown_response")
            || matches!(&s.what, ModelObservation::SentResponseDone { response, .. } if !has_begun(observations, response))
    };
    after.iter().any(stray) && !after.iter().any(is_announcement)
}

/// What the bridge waited for, the answer to a turn or to a request, was not announced within its patience. Whether the
/// server makes it all the same, no bridge can know.
fn never_announces(
    case: &CallUnderTest<'_>,
    observations: &[Observation<ModelObservation>],
    refused: At,
) -> bool {
    let due = |s: &Observation<ModelObservation>| {
        matches!(
            s.what,
            ModelObservation::SentSpeechStopped { .. } | ModelObservation::GotCreate { busy: false, .. }
        )
    };
    let Some(since) = observations.iter().rposition(due) else { return false };
    let waited = refused.since(observations[since].at);
    waited >= case.tolerance.config.timeouts.first_audio_ms * 1_000
        && !observations[since..].iter().any(is_announcement)
}

/// Where the caller's last turn ended.
fn last_turn_ended(observations: &[Observation<ModelObservation>]) -> Option<usize> {
    observations.iter().rposition(|s| matches!(s.what, ModelObservation::SentSpeechStopped { .. }))
}

/// The server said that a response has begun.
const fn is_announcement(seen: &Observation<ModelObservation>) -> bool {
    matches!(seen.what, ModelObservation::SentResponseCreated { .. })
}

/// Whether this response was announced.
fn has_begun(observations: &[Observation<ModelObservation>], id: &str) -> bool {
    observations
        .iter()
        .any(|s| matches!(&s.what, ModelObservation::SentResponseCreated { response, .. } if response == id))
}

fn has_unanswered_create(observations: &[Observation<ModelObservation>]) -> bool {
    let mut open = 0_usize;
    for seen in observations {
        if let ModelObservation::GotCreate { .. } = seen.what {
            open += 1;
        } else if let ModelObservation::SentResponseCreated { auto: false, .. } = seen.what {
            open = open.saturating_sub(1);
        } else if let ModelObservation::SentError { rejected: Some(rejected), .. } = &seen.what
            && rejected == "response.create"
        {
            open = open.saturating_sub(1);
        }
    }
    open > 0
}

// ------------------------------------------------------------------------------------------------- one

fn one(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, SINGLE_RESPONSE.name, |case, violations| {
        for (m, model) in case.call.models.iter().enumerate() {
            check_one(case, m, &model.observations, violations);
        }
    })
}

fn check_one(
    case: &CallUnderTest<'_>,
    m: usize,
    observations: &[Observation<ModelObservation>],
    violations: &mut Violations,
) {
    let tolerance = &case.tolerance;
    let creates =
        observations.iter().enumerate().filter(|(_, s)| matches!(s.what, ModelObservation::GotCreate { .. }));
    let mut asked: Vec<(Option<String>, At)> = Vec::new();
    // Nobody answers any more behind the end, so what is still open there says nothing.
    for (index, create) in creates.filter(|(_, create)| create.at < tolerance.model_over(m)) {
        let slack = tolerance.slack(Leg::Model, create.at);
        // What the bridge had read when it wrote this.
        let round_trip = tolerance.round_trip_until(Leg::Model, create.at);
        let known_by = At(create.at.0.saturating_sub(round_trip + ROUNDING_US));
        let known = &observations[..observations.partition_point(|s| s.at <= known_by).min(index)];
        let mut active = BTreeSet::new();
        for seen in known {
            if let ModelObservation::SentResponseCreated { response, .. } = &seen.what {
                // The server makes one at a time: one before it, whose end has yet to come, keeps nothing back.
                active = BTreeSet::from([response.as_str()]);
            } else if let ModelObservation::SentResponseDone { response, .. } = &seen.what {
                active.remove(response.as_str());
            }
        }
        // One that has ended by now may have ended before the bridge wrote, with the news just ahead of it.
        for seen in &observations[known.len()..index] {
            if let ModelObservation::SentResponseDone { response, .. } = &seen.what {
                active.remove(response.as_str());
            }
        }
        let waited_ms = tolerance.config.timeouts.first_audio_ms;
        let gave_up = |since: At| {
            let on_its_way = tolerance.round_trip_until(Leg::Model, since);
            create.at.since(since) + slack + on_its_way + ROUNDING_US >= waited_ms * 1_000
        };
        if let Some(response) = active.first() {
            let created = known.iter().find(
                |s| matches!(&s.what, ModelObservation::SentResponseCreated { response: r, .. } if r == response),
            );
            if !created.is_some_and(|created| gave_up(created.at)) {
                violations.push(create.at, format!("a response was asked for while {response} was active"));
            }
        }
        // Each request ends in a response or in a refusal; one that is given up may be repeated.
        let outstanding = asked.iter().rfind(|(id, since)| {
            !gave_up(*since) && !is_answered(id.as_deref(), *since, &observations[..index])
        });
        if let Some((_, since)) = outstanding {
            violations.push(
                create.at,
                format!(
                    "a response was asked for although one had been since {since} and was not created yet"
                ),
            );
        }
        if let ModelObservation::GotCreate { event_id, .. } = &create.what {
            asked.push((event_id.clone(), create.at));
        }
    }
}

/// Whether a request of `since` has come to its end: it was granted or refused, or the server, which handles what it
/// is sent in order, has begun and ended a response of its own after it.
fn is_answered(id: Option<&str>, since: At, seen: &[Observation<ModelObservation>]) -> bool {
    let mut overtook = BTreeSet::new();
    let began = |id: &str| has_begun(seen, id);
    seen.iter().filter(|s| s.at >= since).any(|s| {
        if let ModelObservation::SentResponseCreated { response, auto, asked } = &s.what {
            if *auto {
                overtook.insert(response.as_str());
            }
            !auto && (id.is_none() || asked.as_deref() == id)
        } else if let ModelObservation::SentResponseDone { response, .. } = &s.what {
            // One that ends without having begun is the end of what was asked for.
            overtook.contains(response.as_str()) || !began(response)
        } else if let ModelObservation::SentError { rejected: Some(rejected), event_id, .. } = &s.what {
            rejected == "response.create" && (event_id.is_none() || event_id.as_deref() == id)
        } else {
            false
        }
    })
}

// ---------------------------------------------------------------------------------------------- format

fn format(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, FORMAT_CONFIRMED.name, |case, violations| {
        for (m, model) in case.call.models.iter().enumerate() {
            let mut confirmed: Option<At> = None;
            let mut formats: Option<(&str, &str)> = None;
            let mut heard_nothing = true;
            for seen in &model.observations {
                if let ModelObservation::SentSessionUpdated = seen.what {
                    confirmed.get_or_insert(seen.at);
                } else if let ModelObservation::GotUpdate { input, output } = &seen.what {
                    check_formats(case, m, seen.at, (input, output), formats, violations);
                    formats = Some((input, output));
                } else if let ModelObservation::GotAppend { .. } = seen.what
                    && heard_nothing
                {
                    // One is enough: the rest follows from it.
                    heard_nothing = false;
                    let soonest = confirmed.map(|at| at.0 + 2 * case.tolerance.least_way(Leg::Model, at));
                    match soonest {
                        None => {
                            violations.push(seen.at, "audio came before session.updated was sent");
                        }
                        Some(soonest) if seen.at.0 + ROUNDING_US < soonest => {
                            violations.push(seen.at, "audio was sent before session.updated could be read");
                        }
                        Some(_) if !case.tolerance.session_fits(m) => {
                            violations
                                .push(seen.at, "audio was sent although the session confirmed other formats");
                        }
                        Some(_) => {}
                    }
                }
            }
        }
    })
}

fn check_formats(
    case: &CallUnderTest<'_>,
    m: usize,
    at: At,
    (input, output): (&str, &str),
    before: Option<(&str, &str)>,
    violations: &mut Violations,
) {
    if let Some(before) = before.filter(|before| *before != (input, output)) {
        violations.push(
            at,
            format!("an update changed the formats from {}, {} to {input}, {output}", before.0, before.1),
        );
    }
    if let Some(wanted) = case.tolerance.wanted_format()
        && case.tolerance.wants_no_other_format(m)
        && (input != wanted || output != wanted)
    {
        violations.push(
            at,
            format!("the session was set to {input} in and {output} out, but the wire is {wanted}"),
        );
    }
    for (which, format) in [("input", input), ("output", output)] {
        if !matches!(format, "audio/pcm" | "audio/pcmu" | "audio/pcma")
            && case.tolerance.wants_no_other_format(m)
        {
            violations.push(at, format!("{which} format {format} is none a phone bridge can use"));
        }
    }
}

// ------------------------------------------------------------------------------------------------ mark

fn mark(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, MARKS_UNIQUE.name, |case, violations| {
        let mut outstanding: BTreeMap<&str, At> = BTreeMap::new();
        for seen in &case.call.caller.observations {
            if let CallerObservation::GotMark { name, .. } = &seen.what {
                if let Some(since) = outstanding.insert(name, seen.at) {
                    violations.push(
                        seen.at,
                        format!("mark {name:?} came while the one of {since} was outstanding"),
                    );
                }
            } else if let CallerObservation::SentMark { name, .. } = &seen.what {
                outstanding.remove(name.as_str());
            }
        }
    })
}

// ------------------------------------------------------------------------------------------------ tool

fn tool(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, TOOL_CALLS_ANSWERED.name, |case, violations| {
        for m in 0..case.call.models.len() {
            check_tools(case, m, violations);
        }
    })
}

fn check_tools(case: &CallUnderTest<'_>, m: usize, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    let observations = &case.call.models[m].observations;
    let end = tolerance.model_over(m).min(tolerance.over());
    let mut calls: BTreeMap<&str, (At, &str, &str)> = BTreeMap::new();
    for seen in observations {
        if let ModelObservation::SentFunctionCall { call_id, response, name, .. } = &seen.what {
            calls.entry(call_id).or_insert((seen.at, response, name));
        }
    }
    // The last output of each response, to see that the model was asked to go on.
    let mut last_output: BTreeMap<&str, At> = BTreeMap::new();
    for (call_id, (at, response, name)) in &calls {
        let all: Vec<(At, bool)> = observations
            .iter()
            .enumerate()
            .filter(
                |(_, s)| matches!(&s.what, ModelObservation::GotToolOutput { call_id: id, .. } if id == call_id),
            )
            .map(|(index, s)| (s.at, is_refused_output(observations, index)))
            .collect();
        let outputs: Vec<At> = all.iter().map(|(at, _)| *at).collect();
        // One that was refused is sent once more.
        let refused = usize::from(all.first().is_some_and(|(_, refused)| *refused));
        if let Some(again) = outputs.get(1 + refused) {
            violations.push(*again, format!("{name} ({call_id}) was answered {} times", outputs.len()));
        }
        check_refused_output(case, m, call_id, name, &all, end, violations);
        let Some((done, status)) = done_of(observations, response) else { continue };
        if status == "failed" || status == "cancelled" {
            continue;
        }
        let slack = tolerance.slack(Leg::Model, *at) + 2 * tolerance.latency(Leg::Model);
        let due = At(at.0.max(done.0) + (tolerance.tool_timeout_ms(name) + PROMPT_MS) * 1_000 + slack);
        match outputs.last() {
            None if due < end => violations.push(due, format!("{name} ({call_id}) was never answered")),
            None => {}
            Some(last) => {
                let entry = last_output.entry(response).or_insert(*last);
                *entry = (*entry).max(*last).max(done);
            }
        }
    }
    for seen in observations {
        if let ModelObservation::GotToolOutput { call_id, .. } = &seen.what
            && !calls.contains_key(call_id.as_str())
            && !is_repeated(case, m, call_id)
        {
            violations.push(seen.at, format!("an output for {call_id}, which nobody called"));
        }
    }
    check_reruns(case, m, violations);
    for (response, last) in last_output {
        check_going_on(case, m, response, last, end, violations);
    }
}

/// The response that made this call.
fn response_of<'a>(observations: &'a [Observation<ModelObservation>], call: &str) -> Option<&'a str> {
    observations.iter().find_map(|seen| {
        let ModelObservation::SentFunctionCall { call_id, response, .. } = &seen.what else { return None };
        (call_id == call).then_some(response.as_str())
    })
}

/// Whether the output that arrived there was refused at once.
fn is_refused_output(observations: &[Observation<ModelObservation>], index: usize) -> bool {
    observations.get(index + 1).is_some_and(
        |next| matches!(&next.what, ModelObservation::SentError { code, .. } if code == "invalid_tool_call_id"),
    )
}

/// An output that was refused for the first time is sent again.
fn check_refused_output(
    case: &CallUnderTest<'_>,
    m: usize,
    call_id: &str,
    name: &str,
    outputs: &[(At, bool)],
    end: At,
    violations: &mut Violations,
) {
    let [(at, true)] = outputs else { return };
    let tolerance = &case.tolerance;
    let way = tolerance.round_trip_until(Leg::Model, *at) + tolerance.slack(Leg::Model, *at);
    let due = At(at.0 + PROMPT_MS * 1_000 + way);
    if due < end && !tolerance.model_speaks_into_the_dark(m, *at) {
        violations.push(due, format!("the output of {name} ({call_id}) was refused and not sent again"));
    }
}

/// What the model calls again because the output was refused is not done twice.
fn check_reruns(case: &CallUnderTest<'_>, m: usize, violations: &mut Violations) {
    let ran = |id: &str| {
        let is_its = |(_, event): &(At, CallEvent)| matches!(event, CallEvent::ToolCalled { call_id, .. } if call_id == id);
        case.call.bridge.iter().any(is_its)
    };
    let observations = &case.call.models[m].observations;
    for seen in observations {
        let ModelObservation::SentFunctionCall { call_id, name, again: Some(first), .. } = &seen.what else {
            continue;
        };
        if [END_CALL, TRANSFER_CALL].contains(&name.as_str()) {
            continue; // done once, when the farewell was heard, however often it is called
        }
        let called = observations.iter().find(
            |s| matches!(&s.what, ModelObservation::SentFunctionCall { call_id, .. } if call_id == first),
        );
        let since = called.map_or(At(0), |called| called.at);
        let turns = observations.iter().filter(|s| {
            (since..seen.at).contains(&s.at) && matches!(s.what, ModelObservation::SentSpeechStopped { .. })
        });
        // Behind another turn nobody can tell a call that is repeated from one that is meant.
        if turns.count() < 2 && ran(first) && ran(call_id) {
            violations.push(
                seen.at,
                format!("{name} was run for {first} and again for {call_id}, which repeats it"),
            );
        }
    }
}

/// Whether the model has ended the call or put it through by `at`, and does not know yet what came of it.
fn is_leaving(observations: &[Observation<ModelObservation>], at: At) -> bool {
    let answered = |call: &str| {
        let is_its = |s: &Observation<ModelObservation>| {
            s.at <= at
                && matches!(&s.what, ModelObservation::GotToolOutput { call_id, .. } if call_id == call)
        };
        observations.iter().any(is_its)
    };
    observations.iter().take_while(|s| s.at <= at).any(|s| {
        matches!(&s.what, ModelObservation::SentFunctionCall { call_id, name, .. }
            if [END_CALL, TRANSFER_CALL].contains(&name.as_str()) && !answered(call_id))
    })
}

/// A call of an earlier session, which this one was told of.
fn is_repeated(case: &CallUnderTest<'_>, m: usize, call_id: &str) -> bool {
    past(case.call, m)
        .iter()
        .any(|seen| matches!(&seen.what, ModelObservation::GotCall { call_id: id, .. } if id == call_id))
}

/// After its last output the model is asked to go on, unless the caller has taken the floor meanwhile.
fn check_going_on(
    case: &CallUnderTest<'_>,
    m: usize,
    response: &str,
    last: At,
    end: At,
    violations: &mut Violations,
) {
    let tolerance = &case.tolerance;
    let observations = &case.call.models[m].observations;
    // What is being said then, such as that it takes a moment, is waited for.
    let said = observations.iter().take_while(|s| s.at <= last).filter_map(|s| {
        let ModelObservation::SentResponseCreated { response: other, .. } = &s.what else { return None };
        (other != response).then(|| done_of(observations, other).map_or(end, |(at, _)| at))
    });
    let free = said.fold(last, At::max);
    let due = At(free.0
        + PROMPT_MS * 1_000
        + 2 * tolerance.latency(Leg::Model)
        + tolerance.slack(Leg::Model, free));
    if due >= end || !calls_are_all_answered(observations, response) {
        return;
    }
    let created = observations
        .iter()
        .find(
            |s| matches!(&s.what, ModelObservation::SentResponseCreated { response: r, .. } if r == response),
        )
        .map_or(At(0), |s| s.at);
    let mut interrupted = false;
    let mut busy = false;
    let mut asked = false;
    for seen in observations.iter().filter(|s| s.at >= created) {
        // The end of speech that was under way when the response was made says as much as its beginning.
        if let ModelObservation::SentSpeechStarted { .. } | ModelObservation::SentSpeechStopped { .. } =
            seen.what
        {
            interrupted |= seen.at <= due;
        } else if let ModelObservation::SentResponseCreated { response: other, .. } = &seen.what {
            busy |= other != response && seen.at > last && seen.at <= due;
        } else if let ModelObservation::GotCreate { event_id, .. } = &seen.what {
            asked |= seen.at >= last;
            // Never two at once: what was asked for before has not come yet.
            let until = observations.partition_point(|s| s.at <= due);
            busy |= seen.at < last && !is_answered(event_id.as_deref(), seen.at, &observations[..until]);
        }
    }
    // A key takes the floor, too: its entry will be asked about once it is complete.
    let made = At(created.0.saturating_sub(tolerance.latency(Leg::Caller) + tolerance.latency(Leg::Model)));
    interrupted |= case
        .call
        .caller
        .observations
        .iter()
        .any(|s| matches!(s.what, CallerObservation::SentDtmf { .. }) && s.at >= made && s.at <= due);
    // What is done when the call is being left needs no more words.
    let busy = busy || is_leaving(observations, due);
    // Nor is anything asked for while the caller speaks, interrupting or not.
    if !interrupted && !busy && !asked && !hears_speech(observations, due) {
        violations.push(
            due,
            format!("the function calls of {response} were answered, but the model was not asked to go on"),
        );
    }
}

fn calls_are_all_answered(observations: &[Observation<ModelObservation>], response: &str) -> bool {
    let called = observations.iter().filter_map(|s| {
        if let ModelObservation::SentFunctionCall { call_id, response: r, .. } = &s.what {
            (r == response).then_some(call_id.as_str())
        } else {
            None
        }
    });
    let answered: BTreeSet<&str> = observations
        .iter()
        .filter_map(|s| {
            if let ModelObservation::GotToolOutput { call_id, .. } = &s.what {
                Some(call_id.as_str())
            } else {
                None
            }
        })
        .collect();
    called.into_iter().all(|id| answered.contains(id))
}

fn done_of<'a>(observations: &'a [Observation<ModelObservation>], response: &str) -> Option<(At, &'a str)> {
    observations.iter().find_map(|s| {
        if let ModelObservation::SentResponseDone { response: r, status } = &s.what {
            (r == response).then_some((s.at, status.as_str()))
        } else {
            None
        }
    })
}

// ----------------------------------------------------------------------------------------------- start

fn start(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, OPENING_ORDER.name, |case, violations| {
        let tolerance = &case.tolerance;
        let timeouts = &tolerance.config.timeouts;
        let caller = &case.call.caller;
        let first = |is: fn(&CallerObservation) -> bool| {
            caller.observations.iter().find(|s| is(&s.what)).map(|s| s.at)
        };
        let Some(opened) = first(|s| matches!(s, CallerObservation::Opened)) else { return };
        let began = first(|s| matches!(s, CallerObservation::SentStart));
        let end = tolerance.over();
        let down = 2 * tolerance.latency(Leg::Caller) + PROMPT_MS * 1_000;
        let due = At(opened.0 + timeouts.start_ms * 1_000 + down + tolerance.slack(Leg::Caller, opened));
        if due < end && began.is_none_or(|began| began > due) {
            violations.push(due, "start did not come and nobody timed it out");
        }
        if let Some(began) = began.filter(|_| tolerance.config.dial == DialWhen::OnMedia) {
            // The last words are spoken before the patience with them begins.
            let slow_ms = if tolerance.reads_slowly() { timeouts.mark_ms } else { 0 };
            let wait_ms = timeouts.first_media_ms + NOTICE_MS + timeouts.notice_ms + slow_ms;
            let due = At(began.0 + wait_ms * 1_000 + down + tolerance.slack(Leg::Caller, began));
            let spoke = first(|s| matches!(s, CallerObservation::SentMedia { .. }));
            if due < end && spoke.is_none_or(|spoke| spoke > due) {
                violations.push(due, "media did not come and nobody timed it out");
            }
        }
        let soonest = began.map_or(u64::MAX, |at| at.0 + 2 * tolerance.latency(Leg::Caller));
        let sent = caller.observations.iter().find(|s| {
            matches!(
                s.what,
                CallerObservation::GotMedia { .. }
                    | CallerObservation::GotMark { .. }
                    | CallerObservation::GotClear { .. }
            )
        });
        if let Some(sent) = sent.filter(|sent| sent.at.0 + ROUNDING_US < soonest) {
            violations.push(sent.at, "a message for a stream that had not started");
        }
        let open: Vec<At> = case
            .call
            .models
            .iter()
            .filter_map(|m| m.observations.iter().find(|s| matches!(s.what, ModelObservation::Opened)))
            .map(|s| s.at)
            .collect();
        for (m, at) in open.iter().enumerate().skip(1) {
            if (0..m).any(|before| tolerance.model_over(before) > *at) {
                violations.push(*at, "a second model connection while the first was open");
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::bench::Bench;
    use super::*;

    fn first_of(found: &[super::super::case::Violation]) -> &str {
        found.first().map_or("", |v| v.what.as_str())
    }

    #[test]
    fn an_ordinary_call_breaks_no_rule() {
        let trace = Bench::answered(1_500).trace();
        for judge in [legal, one, format, mark, tool, start] {
            assert_eq!(judge(&trace), []);
        }
    }

    #[test]
    fn a_refused_event_is_found_and_a_lost_race_is_not() {
        let mut bench = Bench::answered(1_500);
        bench.refused(5_000, "response_cancel_not_active", "response.cancel");
        assert!(first_of(&legal(&bench.trace())).contains("response.cancel was refused"));

        let mut bench = Bench::answered(1_500);
        let done = bench.done_ms();
        bench.refused(done + 10, "response_cancel_not_active", "response.cancel");
        assert_eq!(legal(&bench.trace()), [], "the response ended while the cancel was on its way");

        let mut bench = Bench::answered(1_500);
        let (code, commit) = ("input_audio_buffer_commit_empty", "input_audio_buffer.commit");
        bench.refused(5_000, code, commit);
        assert!(first_of(&legal(&bench.trace())).contains("commit was refused"));
        bench.model(
            4_995,
            ModelObservation::SentSpeechStopped { item: "item_u2".into(), audio_end_ms: 4_900 },
        );
        assert_eq!(legal(&bench.trace()), [], "the server was faster");
    }

    #[test]
    fn a_request_behind_an_unannounced_answer_is_no_fault() {
        let busy = "conversation_already_has_active_response";
        let stopped = || ModelObservation::SentSpeechStopped { item: "item_u2".into(), audio_end_ms: 4_900 };
        let asked_after = |ms: u64| {
            let mut bench = Bench::answered(1_500);
            bench.model(5_000, stopped());
            bench.refused(5_000 + ms, busy, "response.create");
            legal(&bench.trace())
        };
        let patience = bridge::call::settings::CallConfig::default().timeouts.first_audio_ms;
        assert!(first_of(&asked_after(patience - 1)).contains("response.create was refused"));
        assert_eq!(asked_after(patience), []);
    }

    #[test]
    fn a_request_behind_the_late_end_of_any_response_is_no_fault() {
        let busy = "conversation_already_has_active_response";
        let stopped = || ModelObservation::SentSpeechStopped { item: "item_u2".into(), audio_end_ms: 4_900 };
        let ends_at = |ms: u64, response: &str, announced: bool| {
            let mut bench = Bench::answered(1_500);
            let (response, status) = (response.to_owned(), "cancelled".to_owned());
            if announced {
                let (response, auto, asked) = (response.clone(), true, None);
                bench.model(4_000, ModelObservation::SentResponseCreated { response, auto, asked });
            }
            bench.model(5_000, stopped());
            bench.model(ms, ModelObservation::SentResponseDone { response, status });
            bench.refused(6_000, busy, "response.create");
            legal(&bench.trace())
        };
        assert_eq!(ends_at(5_500, "resp_2", true), [], "it ran when the turn ended");
        assert!(!ends_at(4_500, "resp_2", true).is_empty(), "it was over");
        assert_eq!(ends_at(5_500, "resp_2", false), [], "it is taken for the answer");
    }

    #[test]
    fn what_twilio_would_warn_about_is_found() {
        let mut bench = Bench::answered(1_500);
        bench.caller(
            2_000,
            CallerObservation::Warned { code: 31_951, detail: "unexpected field track".into() },
        );
        assert!(first_of(&legal(&bench.trace())).contains("31951"));
    }

    #[test]
    fn a_second_request_is_found() {
        let mut bench = Bench::answered(1_500);
        let during = bench.done_ms() - 50;
        bench.model(during, ModelObservation::GotCreate { event_id: Some("x".into()), busy: true });
        assert!(first_of(&one(&bench.trace())).contains("was active"));

        let mut bench = Bench::answered(1_500);
        let after = bench.done_ms() + 1_000;
        bench.model(after, ModelObservation::GotCreate { event_id: Some("x".into()), busy: false });
        bench.model(after + 20, ModelObservation::GotCreate { event_id: Some("y".into()), busy: true });
        assert!(first_of(&one(&bench.trace())).contains("not created yet"));
    }

    #[test]
    fn audio_before_the_session_is_ready_is_found() {
        let mut bench = Bench::answered(1_500);
        bench.append_at(Bench::READY_MS + 2);
        assert!(first_of(&format(&bench.trace())).contains("before session.updated could be read"));
        let mut bench = Bench::answered(1_500);
        bench.append_at(Bench::READY_MS - 10);
        assert!(first_of(&format(&bench.trace())).contains("before session.updated was sent"));
    }

    #[test]
    fn another_format_is_found() {
        let mut bench = Bench::answered(1_500);
        let (input, output) = ("audio/pcm".to_owned(), "audio/pcmu".to_owned());
        bench.model(Bench::READY_MS + 500, ModelObservation::GotUpdate { input, output });
        bench.append_at(Bench::READY_MS + 600);
        assert!(!format(&bench.trace()).is_empty());
    }

    #[test]
    fn a_mark_used_twice_is_found() {
        let mut bench = Bench::answered(1_500);
        let name = || "a".to_owned();
        bench.caller(2_000, CallerObservation::GotMark { name: name(), offset: 0 });
        bench.caller(2_100, CallerObservation::SentMark { name: name(), flushed: false });
        bench.caller(2_200, CallerObservation::GotMark { name: name(), offset: 0 });
        assert_eq!(mark(&bench.trace()), [], "the first had come back");
        bench.caller(2_300, CallerObservation::GotMark { name: name(), offset: 0 });
        assert!(first_of(&mark(&bench.trace())).contains("outstanding"));
    }

    #[test]
    fn a_function_call_is_answered_once_and_the_model_goes_on() {
        assert_eq!(tool(&Bench::tool(1, true).trace()), []);
        assert!(first_of(&tool(&Bench::tool(0, true).trace())).contains("never answered"));
        assert!(first_of(&tool(&Bench::tool(2, true).trace())).contains("2 times"));
        assert!(first_of(&tool(&Bench::tool(1, false).trace())).contains("not asked to go on"));
    }

    #[test]
    fn a_start_that_never_comes_must_be_timed_out() {
        assert_eq!(start(&Bench::never_started(6_000).trace()), []);
        assert!(first_of(&start(&Bench::never_started(30_000).trace())).contains("nobody timed it out"));
    }
}
