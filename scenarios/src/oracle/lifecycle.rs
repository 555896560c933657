//! A call begins, survives what it can, ends with a name, and leaves nothing behind.

use super::case::{CallUnderTest, Oracle, Violation, Violations, each};
use super::leaving::may_come_in;
use super::tolerance::{Leg, Tolerance, hears_speech};
use crate::oracle::audio_attribution::{BYTES_PER_MS, Item};
use crate::sim::API_KEY;
use crate::sim::trace::{CallTrace, Trace};
use bridge::call::event::{CallEvent, EndReason, Line, Speaker, UNTRANSCRIBED};
use bridge::call::settings::{END_CALL, TRANSFER_CALL};
use mocks::peer::At;
use mocks::record::{CallerObservation, Ending, ItemRecord, ModelObservation};

/// From one end's close to the other's, beyond the network.
const TEARDOWN_US: u64 = 1_000_000;
/// An end that follows a malformed frame this soon follows from it.
const BECAUSE_US: u64 = 2_000_000;
/// Two streams of one call may overlap for this long: the new one must first be seen.
const HANDOVER_US: u64 = 1_000_000;
/// How much more text than audio may have been heard, in characters: the word that was being said.
const ONE_WORD: usize = 16;
/// No voice says a character in less, ms.
const CHARACTER_MS: usize = 55;
/// Words that come this long after their turn need not be waited for when the session is renewed.
pub(super) const WORDS_US: u64 = 5_000_000;

/// What is heard for longer than this has words that somebody will look for, ms.
const MOMENT_MS: usize = 1_000;

/// See [`Oracle::about`].
pub const TEARDOWN: Oracle = Oracle {
    name: "teardown",
    about: "When one leg ends, the other is closed within a second and nothing is left behind, because a forgotten \
            session is paid for by the minute.",
    check: tear,
};

/// See [`Oracle::about`].
pub const SURVIVES_MODEL_ERROR: Oracle = Oracle {
    name: "survives_model_error",
    about: "After an error that ends nothing, the next response is heard, because most errors of the model are \
            passing.",
    check: goon,
};

/// See [`Oracle::about`].
pub const SURVIVES_BAD_INPUT: Oracle = Oracle {
    name: "survives_bad_input",
    about: "A malformed or unknown frame is survived, and no call pays for another's, because one bad frame must not \
            hang up on anyone.",
    check: robust,
};

/// See [`Oracle::about`].
pub const ONE_STREAM_PER_CALL: Oracle = Oracle {
    name: "one_stream_per_call",
    about: "At most one stream of a call is alive, and its predecessor's end does not end it, because two agents on \
            one line talk to each other.",
    check: owner,
};

/// See [`Oracle::about`].
pub const TRANSCRIPT: Oracle = Oracle {
    name: "transcript",
    about: "The transcript is in the order of the conversation and holds of the agent what was heard, because people \
            read it as what was said.",
    check: text,
};

/// See [`Oracle::about`].
pub const SCENARIO_EXPECTATIONS: Oracle = Oracle {
    name: "scenario_expectations",
    about: "The call ends, as the scenario expects, without a panic, because everything else is worth nothing if it \
            did not.",
    check: expect,
};

// ------------------------------------------------------------------------------------------------ tear

fn tear(trace: &Trace) -> Vec<Violation> {
    let mut all = each(trace, TEARDOWN.name, |case, violations| {
        let tolerance = &case.tolerance;
        check_caller_gone(case, violations);
        for m in 0..case.call.models.len() {
            let Some(died) = tolerance.model_broke(m) else { continue };
            // A dead model is noticed by its close, or by a ping nobody answers. What is at the ear plays out, and
            // the notice behind it; from then on there is nothing left to wait for.
            let noticed = At(died.0 + tolerance.unnoticed_us(Leg::Model));
            let quiet = case.attribution.played.last().map_or(noticed, |played| played.end().max(noticed));
            let last_words =
                (tolerance.config.timeouts.notice_ms + tolerance.config.timeouts.closing_ms) * 1_000;
            let network = tolerance.latency(Leg::Model) + 2 * tolerance.latency(Leg::Caller);
            let slack = tolerance.slack(Leg::Model, died) + tolerance.slack(Leg::Caller, quiet);
            // A session that could not be had is tried for again.
            let tries =
                tolerance.config.renewal.as_ref().filter(|_| tolerance.without_model_since(m).is_some());
            let tries = tries.map_or(0, |renewal| renewal.longest_ms(&tolerance.config.timeouts) * 1_000);
            let due = At(quiet.0 + TEARDOWN_US + last_words + network + slack + tries);
            if due < tolerance.over() && !tolerance.model_came_back(m) {
                violations.push(due, "the model was gone and the caller was left in the call");
            }
        }
    });
    for left in &trace.leftovers {
        let what = format!("left behind: {left}");
        all.push(Violation { oracle: TEARDOWN.name, call: 0, at: trace.ended_at, what });
    }
    all
}

fn check_caller_gone(case: &CallUnderTest<'_>, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    let Some(gone) = tolerance.caller_gone() else { return };
    let closing = tolerance.config.timeouts.closing_ms * 1_000;
    let network = tolerance.latency(Leg::Model) + tolerance.latency(Leg::Caller);
    let slack = tolerance.slack(Leg::Model, gone) + tolerance.slack(Leg::Caller, gone);
    let unnoticed = tolerance.unnoticed_us(Leg::Caller);
    let due_at = At(gone.0 + TEARDOWN_US + closing + network + slack + unnoticed);
    for (m, model) in case.call.models.iter().enumerate() {
        // The words of what was said last are worth a moment; nothing else is.
        let known = At(gone.0 + unnoticed + network + slack);
        let is_owed =
            |turn: &UserTurn<'_>| turn.started <= known && turn.words.is_none_or(|(at, _)| at >= gone);
        let owed = user_turns(&model.observations).iter().any(is_owed);
        let words = if owed { tolerance.last_words_us() } else { 0 };
        let due = At(due_at.0 + words);
        let opened = model.observations.iter().find(|s| matches!(s.what, ModelObservation::Opened));
        let Some(opened) = opened else { continue };
        // A dial that was given up may still come through; then it is dropped as soon as both ends know.
        let due = due.max(At(opened.at.0 + network + slack));
        let ended = tolerance.model_over(m);
        // A model that hears and answers nothing does not see a close either.
        if ended > due && tolerance.model_hears(m) && due < case.trace.ended_at {
            let late = if ended == At(u64::MAX) { "never".to_owned() } else { format!("{ended}") };
            violations
                .push(due, format!("the caller was gone at {gone}, the model's connection ended {late}"));
        }
    }
    let due = due_at;
    let ended = case.call.caller.observations.iter().find(|s| matches!(s.what, CallerObservation::Ended(_)));
    let stopped = case.call.caller.observations.iter().any(|s| matches!(s.what, CallerObservation::SentStop));
    if stopped
        && tolerance.ear_works()
        && due < case.trace.ended_at
        && ended.is_none_or(|ended| ended.at > due)
    {
        violations.push(due, format!("the call was stopped at {gone} and the stream was not closed"));
    }
}

/// From the caller's going to the end of the last model connection, milliseconds, for each call that its caller left.
pub fn teardowns(trace: &Trace) -> Vec<f64> {
    use std::cell::RefCell;
    let took = RefCell::new(Vec::new());
    each(trace, TEARDOWN.name, |case, _| {
        let Some(gone) = case.tolerance.caller_gone() else { return };
        let ends: Vec<At> = (0..case.call.models.len()).map(|m| case.tolerance.model_over(m)).collect();
        if let Some(last) = ends.into_iter().max().filter(|last| *last != At(u64::MAX) && *last >= gone) {
            took.borrow_mut().push(super::case::in_ms(last.since(gone)));
        }
    });
    took.into_inner()
}

// ------------------------------------------------------------------------------------------------ goon

fn goon(trace: &Trace) -> Vec<Violation> {
    each(trace, SURVIVES_MODEL_ERROR.name, |case, violations| {
        for m in 0..case.call.models.len() {
            check_goon(case, m, violations);
        }
    })
}

fn check_goon(case: &CallUnderTest<'_>, m: usize, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    let observations = &case.call.models[m].observations;
    let first_error = observations.iter().find_map(|s| {
        if let ModelObservation::SentError { rejected: None, code, .. } = &s.what {
            Some((s.at, code))
        } else {
            None
        }
    });
    let Some((at, code)) = first_error else { return };
    if tolerance.model_broke(m).is_some_and(|died| died.since(at) < BECAUSE_US) || !tolerance.ear_works() {
        return;
    }
    let slack = tolerance.slack(Leg::Model, at) + tolerance.slack(Leg::Caller, at);
    let notice = tolerance.config.timeouts.notice_ms * 1_000;
    if let Some(closed) = tolerance.closed_by_bridge()
        && closed.since(at) < BECAUSE_US + notice + slack
        && tolerance.caller_gone().is_none_or(|gone| gone > closed)
        && !tolerance.expects_bridge_to_end()
        && !tolerance.settings_end_it(closed)
        && !tolerance.model_is_at_fault()
    {
        violations.push(closed, format!("the call was ended after an error ({code}) that ends nothing"));
        return;
    }
    for item in case.attribution.items.iter().filter(|i| i.model == m && !i.silent && i.on_time > 0) {
        let created = observations.iter().find(
            |s| matches!(&s.what, ModelObservation::SentResponseCreated { response, .. } if *response == item.response),
        );
        let Some(sent) = item.first_sent() else { continue };
        if created.is_none_or(|c| c.at < at) {
            continue;
        }
        let arrives = At(sent.0 + tolerance.latency(Leg::Model) + tolerance.slack(Leg::Model, sent));
        if tolerance.model_speaks_into_the_dark(m, sent) || tolerance.given_up(m) <= arrives {
            continue;
        }
        // It waits for what was made before it, at the ear and in the bridge.
        let before = case
            .attribution
            .items
            .iter()
            .filter(|other| other.first_sent().is_some_and(|first| first < sent));
        let ahead: usize =
            before.map(|other| other.len.saturating_sub(case.attribution.item_played(other, sent))).sum();
        let ahead = ahead.max(case.attribution.queued(sent));
        let due = At(sent.0 + 1_000_000 + slack + (ahead * 125) as u64);
        // Speech that began before the response and was not known to be over when it was announced interrupts it, too.
        let floor = created.map_or(at, |c| c.at);
        let interrupted = observations.iter().any(|s| {
            s.at >= floor
                && matches!(
                    s.what,
                    ModelObservation::SentSpeechStarted { .. } | ModelObservation::SentSpeechStopped { .. }
                )
        });
        let interrupted = interrupted
            || hears_speech(observations, floor)
            || case.call.caller.observations.iter().any(|s| {
                matches!(s.what, CallerObservation::SentDtmf { .. }) && s.at >= created.map_or(at, |c| c.at)
            });
        if due < tolerance.over() && !interrupted && case.attribution.of_item(item).next().is_none() {
            violations.push(due, format!("{} came after an error ({code}) and was not heard", item.id));
        }
        return;
    }
}

// ---------------------------------------------------------------------------------------------- robust

/// The first sound of the caller came so late that the call is ended for that.
fn is_mute(case: &CallUnderTest<'_>) -> bool {
    let patience_us = case.tolerance.config.timeouts.first_media_ms * 1_000;
    let began = case.call.caller.observations.iter().find(|s| matches!(s.what, CallerObservation::SentStart));
    began.is_none_or(|began| {
        case.call.caller.mic.first().is_none_or(|first| first.at.since(began.at) >= patience_us)
    })
}

fn robust(trace: &Trace) -> Vec<Violation> {
    let mut all = each(trace, SURVIVES_BAD_INPUT.name, |case, violations| {
        let tolerance = &case.tolerance;
        let Some(closed) = tolerance.closed_by_bridge() else { return };
        if tolerance.expects_bridge_to_end()
            || tolerance.settings_end_it(closed)
            || tolerance.caller_gone().is_some_and(|gone| gone <= closed)
            || is_mute(case)
        {
            return;
        }
        let slack = tolerance.slack(Leg::Caller, closed) + tolerance.slack(Leg::Model, closed);
        let window = BECAUSE_US + slack + tolerance.config.timeouts.notice_ms * 1_000;
        let mut odd: Vec<(At, String)> = Vec::new();
        for seen in &case.call.caller.observations {
            if let CallerObservation::SentRaw { what } = &seen.what {
                odd.push((seen.at, what.clone()));
            }
        }
        for (m, model) in case.call.models.iter().enumerate() {
            if tolerance.model_came_back(m) {
                continue;
            }
            // Somebody else's bridge may close the model first because of the same frame.
            let over = tolerance.bridge_speaks() && tolerance.model_over(m) < closed;
            if over || tolerance.model_broke(m).is_some_and(|died| died <= closed) {
                return;
            }
            for seen in &model.observations {
                if let ModelObservation::SentOther { kind } = &seen.what
                    && tolerance.is_odd(kind)
                {
                    odd.push((seen.at, kind.clone()));
                }
            }
        }
        if let Some((at, what)) = odd.iter().rev().find(|(at, _)| *at < closed && closed.since(*at) < window)
        {
            violations.push(closed, format!("the call was ended after {what} at {at}"));
        }
    });
    // A call that sent nothing odd itself must not notice that another did.
    let innocent = each(trace, SURVIVES_BAD_INPUT.name, |case, violations| {
        let own = |s: &CallerObservation| matches!(s, CallerObservation::SentRaw { .. });
        let others = trace
            .calls
            .iter()
            .enumerate()
            .any(|(i, call)| i != case.index && call.caller.observations.iter().any(|s| own(&s.what)));
        let began = |call: &CallTrace| {
            call.caller
                .observations
                .iter()
                .find(|s| matches!(s.what, CallerObservation::SentStart))
                .map(|s| s.at)
        };
        let replaced = trace.calls.iter().enumerate().any(|(i, call)| {
            let same = call.caller.call_sid == case.call.caller.call_sid;
            same && (began(call), i) > (began(case.call), case.index)
        });
        if !others || replaced || is_mute(case) || case.call.caller.observations.iter().any(|s| own(&s.what))
        {
            return;
        }
        if let Some(closed) = case.tolerance.closed_by_bridge()
            && !case.tolerance.model_is_at_fault()
            && !case.tolerance.expects_bridge_to_end()
            && !case.tolerance.settings_end_it(closed)
            && !case.tolerance.session_ran_out(closed)
            && !was_not_settled(case)
            && case.tolerance.caller_gone().is_none_or(|gone| gone > closed)
        {
            violations.push(closed, "the call was ended while another one misbehaved");
        }
    });
    all.extend(innocent);
    all
}

/// The call was ended because its own session was not settled in time, and it was not.
fn was_not_settled(case: &CallUnderTest<'_>) -> bool {
    let timed_out =
        |event: &CallEvent| matches!(event, CallEvent::Notice { reason: EndReason::SessionTimeout });
    let told = case.call.bridge.iter().find(|(_, event)| timed_out(event));
    told.is_some_and(|(at, _)| !was_settled(case, *at))
}

// ----------------------------------------------------------------------------------------------- owner

fn owner(trace: &Trace) -> Vec<Violation> {
    each(trace, ONE_STREAM_PER_CALL.name, |case, violations| {
        // A stream that is not admitted takes nobody's place.
        let came_in = |index: usize| {
            let turned_away = |seen: &mocks::record::Observation<CallerObservation>| {
                matches!(seen.what, CallerObservation::Ended(Ending::ByPeer { code: Some(1_008), .. }))
            };
            !trace.scenario.server.signed || !trace.calls[index].caller.observations.iter().any(turned_away)
        };
        let began = |index: usize| {
            if !came_in(index) {
                return None;
            }
            let observations = &trace.calls[index].caller.observations;
            observations.iter().find(|s| matches!(s.what, CallerObservation::SentStart)).map(|s| s.at)
        };
        let Some(mine) = began(case.index) else { return };
        let sid = &case.call.caller.call_sid;
        let succeeded = |by: At| {
            // Of two that begin within the network's unevenness either may be the newer one.
            let newer = |i: usize| {
                let uneven = case.tolerance.slack(Leg::Caller, mine);
                i != case.index && began(i).is_some_and(|theirs| mine.0 <= theirs.0 + uneven && theirs <= by)
            };
            (0..trace.calls.len()).any(|i| trace.calls[i].caller.call_sid == *sid && newer(i))
        };
        for other in (0..trace.calls.len()).filter(|i| *i != case.index) {
            let Some(theirs) = began(other).filter(|_| trace.calls[other].caller.call_sid == *sid) else {
                continue;
            };
            let tolerance = &case.tolerance;
            let takes =
                HANDOVER_US + 2 * tolerance.latency(Leg::Caller) + tolerance.slack(Leg::Caller, theirs);
            let due = At(theirs.0 + takes + tolerance.config.timeouts.closing_ms * 1_000);
            let is_older = mine.0 + tolerance.slack(Leg::Caller, mine) < theirs.0;
            if is_older && tolerance.over() > due && due < trace.ended_at {
                violations.push(
                    due,
                    format!("this stream of {sid} lived on after another had taken over at {theirs}"),
                );
            }
            // The older stream's end must not be the newer one's.
            if theirs < mine
                && let Some(closed) = tolerance.closed_by_bridge()
                && tolerance.caller_gone().is_none_or(|gone| gone > closed)
                && !tolerance.expects_bridge_to_end()
                && !tolerance.settings_end_it(closed)
                && (0..case.call.models.len())
                    .all(|m| tolerance.model_broke(m).is_none_or(|broke| broke > closed))
                && !succeeded(closed)
                && ended_near(&trace.calls[other].caller.observations, closed, takes)
            {
                violations.push(closed, format!("this stream of {sid} was ended along with its predecessor"));
            }
        }
    })
}

fn ended_near(observations: &[mocks::record::Observation<CallerObservation>], at: At, within: u64) -> bool {
    observations
        .iter()
        .any(|s| matches!(s.what, CallerObservation::Ended(_)) && s.at.0.abs_diff(at.0) < within)
}

// ------------------------------------------------------------------------------------------------ text

/// A turn of the caller, as the model's end knows it.
struct UserTurn<'a> {
    item: &'a str,
    started: At,
    /// Voice detection ended it, or the bridge did.
    committed: Option<At>,
    /// What was transcribed, and when that was sent; a transcription that failed has no text.
    words: Option<(At, Option<&'a str>)>,
}

fn user_turns(observations: &[mocks::record::Observation<ModelObservation>]) -> Vec<UserTurn<'_>> {
    let mut turns: Vec<UserTurn<'_>> = Vec::new();
    for seen in observations {
        if let ModelObservation::SentSpeechStarted { item, .. } = &seen.what {
            // A turn that begins again has another name: the first one will never be an item.
            turns.retain(|turn| turn.committed.is_some());
            turns.push(UserTurn { item, started: seen.at, committed: None, words: None });
        } else if let ModelObservation::SentSpeechStopped { .. } = &seen.what
            && let Some(turn) = turns.last_mut()
        {
            turn.committed.get_or_insert(seen.at);
        } else if let ModelObservation::GotOther { kind } = &seen.what
            && kind == "input_audio_buffer.commit"
            && let Some(turn) = turns.last_mut()
        {
            turn.committed.get_or_insert(seen.at);
        } else if let ModelObservation::SentError { code, .. } = &seen.what
            && code == "input_audio_buffer_commit_empty"
        {
            // Too little of it came to be a turn.
            turns.pop_if(|turn| turn.committed == Some(seen.at));
        } else if let ModelObservation::SentTranscription { item, text } = &seen.what
            && let Some(turn) = turns.iter_mut().rev().find(|turn| turn.item == item)
        {
            turn.words = Some((seen.at, text.as_deref()));
        }
    }
    turns
}

/// Every turn of the caller has a line, and its words if they could be had; and what was said last is waited for.
fn check_turns(case: &CallUnderTest<'_>, m: usize, at: At, transcript: &[Line], violations: &mut Violations) {
    let tolerance = &case.tolerance;
    if tolerance.config.transcription.is_none() {
        return;
    }
    // Once the caller is told that the call cannot go on, the model is heard no more.
    let told = case.call.bridge.iter().find(|(_, event)| matches!(event, CallEvent::Notice { .. }));
    let left = told.map_or(At(u64::MAX), |(at, _)| *at).min(tolerance.given_up(m));
    let arrives = |sent: At| At(sent.0 + tolerance.latency(Leg::Model) + tolerance.slack(Leg::Model, sent));
    let closed = case.call.models[m]
        .observations
        .iter()
        .find_map(|s| matches!(s.what, ModelObservation::Ended(Ending::ByPeer { .. })).then_some(s.at));
    // A stream that was taken over, or a call that was ending anyway, waits for nothing.
    let ended_by_caller = case.call.bridge.iter().any(|(_, event)| {
        matches!(
            event,
            CallEvent::Ended {
                reason: EndReason::Stopped | EndReason::CallerClosed | EndReason::CallerLost,
                ..
            }
        )
    });
    for turn in user_turns(&case.call.models[m].observations) {
        let line = transcript.iter().find(|line| line.item == turn.item);
        let reached = |sent: At| arrives(sent) < left && !tolerance.model_speaks_into_the_dark(m, sent);
        match turn.words {
            Some((sent, Some(text))) if reached(sent) => {
                if !text.trim().is_empty() && line.is_none_or(|line| line.text == UNTRANSCRIBED) {
                    violations
                        .push(at, format!("the words of {} came and are not in the transcript", turn.item));
                }
            }
            words => {
                let empty = words.is_some_and(|(_, text)| text.is_some_and(|text| text.trim().is_empty()));
                if turn.committed.is_some_and(reached) && line.is_none() && !empty {
                    violations.push(at, format!("the turn {} has no line in the transcript", turn.item));
                }
                // It may have been given up for another one as the caller left; that it waits for words has an end.
                let waited_for = |closed: At| {
                    let since = turn.committed.filter(|_| was_given_up_to_renew(case, m, closed));
                    since.is_none_or(|committed| committed.0 + WORDS_US > closed.0)
                };
                if let (Some(gone), Some(closed), true) = (tolerance.caller_gone(), closed, ended_by_caller)
                    && waited_for(closed)
                    && arrives(turn.started) < gone
                    && words.is_none()
                    && closed >= gone
                    && closed.0 + tolerance.slack(Leg::Model, closed) + tolerance.slack(Leg::Caller, gone)
                        < gone.0 + tolerance.last_words_us()
                    && tolerance.model_hears(m)
                {
                    violations.push(
                        closed,
                        format!("the session was closed before the words of {} came", turn.item),
                    );
                }
            }
        }
    }
}

/// This session was closed for another one.
fn was_given_up_to_renew(case: &CallUnderTest<'_>, m: usize, closed: At) -> bool {
    let renewed = |(at, event): &&(At, CallEvent)| *at <= closed && matches!(event, CallEvent::Renewing);
    // Each session is given up once.
    case.call.models.len() > m + 1 || case.call.bridge.iter().filter(renewed).count() > m
}

fn text(trace: &Trace) -> Vec<Violation> {
    each(trace, TRANSCRIPT.name, |case, violations| {
        let Some((at, transcript)) = case.call.bridge.iter().find_map(|(at, event)| {
            if let CallEvent::Ended { transcript, .. } = event { Some((*at, transcript)) } else { None }
        }) else {
            return;
        };
        for m in 0..case.call.models.len() {
            check_order(case, m, at, transcript, violations);
            check_gaps(case, m, at, transcript, violations);
            check_turns(case, m, at, transcript, violations);
        }
        for line in transcript {
            match line.speaker {
                Speaker::Agent => check_agent_line(case, at, line, violations),
                Speaker::Caller => check_caller_line(case, at, line, violations),
                Speaker::Keypad => {}
            }
        }
    })
}

fn check_order(case: &CallUnderTest<'_>, m: usize, at: At, transcript: &[Line], violations: &mut Violations) {
    let conversation = &case.call.models[m].conversation;
    let place = |id: &str| conversation.iter().position(|known| known == id);
    let mut before: Option<(usize, &str)> = None;
    for line in transcript {
        let Some(here) = place(&line.item) else { continue };
        if let Some((there, id)) = before
            && here < there
        {
            violations.push(
                at,
                format!("the transcript has {id} before {}; the conversation has it after", line.item),
            );
        }
        before = Some((here, &line.item));
    }
}

/// Every item the ear heard more than a moment of has a line, if it has words.
fn check_gaps(case: &CallUnderTest<'_>, m: usize, at: At, transcript: &[Line], violations: &mut Violations) {
    // Without marks the bridge cannot tell an ear that was held up from one that does not report.
    if !case.tolerance.ear_works() || !case.tolerance.marks_come_back() {
        return;
    }
    for item in case.attribution.items.iter().filter(|item| item.model == m && !item.silent && item.len > 0) {
        let record = case.call.models[m].items.iter().find(|record| record.id == item.id);
        let words = record.map_or("", |record| record.transcript.trim());
        let has_words = !words.is_empty();
        // The first word takes its share of the item.
        let first = words.split(' ').next().map_or(0, |word| word.len() + 1);
        let first_ms = item.len / BYTES_PER_MS * first.min(words.len()) / words.len().max(1);
        let ms = case.attribution.item_played(item, At(u64::MAX)) / BYTES_PER_MS;
        let long = ms > MOMENT_MS.max(first_ms) + case.tolerance.unsure_ms();
        // Words that come late, behind a rest of the voice, may be those that will be said next.
        let rests = (item.len - item.sound_before(usize::MAX)) / BYTES_PER_MS >= MOMENT_MS;
        let unsure = rests && record.is_some_and(|record| !words_heard(case, m, record, item).known);
        if long && !unsure && has_words && transcript.iter().all(|line| line.item != item.id) {
            violations
                .push(at, format!("{ms} ms of {} were heard and the transcript has no line of it", item.id));
        }
    }
}

/// How many characters of an item the caller heard. Words have no times of their own: the text is held against the sound
/// in proportion, and silence says nothing.
pub(super) struct WordsHeard {
    /// At least: words may be out for speech that was never generated.
    pub(super) least: usize,
    /// At most.
    pub(super) most: usize,
    /// All audio of the item was with the bridge when it stopped. How far words run ahead of audio that has not come can
    /// only be guessed.
    known: bool,
}

pub(super) fn words_heard(
    case: &CallUnderTest<'_>,
    m: usize,
    record: &ItemRecord,
    item: &Item,
) -> WordsHeard {
    let tolerance = &case.tolerance;
    let heard = case.attribution.item_played(item, At(u64::MAX));
    let (heard_sound, sound) = (item.sound_before(heard), item.sound_before(usize::MAX).max(1));
    let characters = record.transcript.trim().chars().count();
    let planned = record.speech * 1_000 * BYTES_PER_MS / (record.rate as usize).max(1);
    let slack = characters * tolerance.unsure_ms() * BYTES_PER_MS / sound + ONE_WORD;
    let cut_at = case.call.models[m].observations.iter().find_map(|s| {
        matches!(&s.what, ModelObservation::GotTruncate { item, .. } if *item == record.id).then_some(s.at)
    });
    let known = item.done.is_some_and(|done| {
        let arrived = At(done.0 + tolerance.latency(Leg::Model) + tolerance.slack(Leg::Model, done));
        arrived < cut_at.unwrap_or(At(u64::MAX)).min(tolerance.over()).min(tolerance.given_up(m))
    });
    let fair = characters * heard_sound / sound;
    let guessed = if known { 0 } else { heard_sound / BYTES_PER_MS / CHARACTER_MS };
    WordsHeard {
        least: (characters * heard_sound / sound.max(planned)).saturating_sub(slack),
        most: (fair.max(guessed) + slack).min(characters),
        known,
    }
}

fn check_agent_line(case: &CallUnderTest<'_>, at: At, line: &Line, violations: &mut Violations) {
    let record =
        case.call.models.iter().enumerate().find_map(|(m, model)| {
            model.items.iter().find(|item| item.id == line.item).map(|item| (m, item))
        });
    let Some((m, record)) = record else { return };
    let said = record.transcript.trim();
    let written = line.text.trim();
    if !said.starts_with(written.trim_end_matches(['…', '.', '-', ' '])) {
        violations.push(at, format!("the transcript's words of {} are not the model's", line.item));
        return;
    }
    let Some(item) = case.attribution.item(m, &line.item).filter(|item| item.len > 0 && !item.silent) else {
        return;
    };
    // An ear that vanished cannot be asked, and the bridge cannot know when it did.
    if !case.tolerance.ear_works() {
        return;
    }
    let heard = case.attribution.item_played(item, At(u64::MAX));
    let WordsHeard { least, most, known } = words_heard(case, m, record, item);
    let count = written.chars().count();
    let (played_ms, ms) = (heard / BYTES_PER_MS, item.len / BYTES_PER_MS);
    if count > most {
        violations.push(
            at,
            format!(
                "the transcript has {count} characters of {}, but only {played_ms} of {ms} ms were heard (at most {most} \
                 characters)",
                line.item,
            ),
        );
    }
    if count < least && known && case.tolerance.marks_come_back() {
        violations.push(
            at,
            format!(
                "the transcript has only {count} characters of {}, of which {played_ms} of {ms} ms were heard (at least \
                 {least} characters)",
                line.item,
            ),
        );
    }
}

fn check_caller_line(case: &CallUnderTest<'_>, at: At, line: &Line, violations: &mut Violations) {
    for model in &case.call.models {
        let heard = model.observations.iter().find_map(|s| {
            if let ModelObservation::SentTranscription { item, text: Some(text) } = &s.what {
                (*item == line.item).then_some(text)
            } else {
                None
            }
        });
        if let Some(text) = heard
            && !line.text.is_empty()
            && line.text != UNTRANSCRIBED
            && text.trim() != line.text.trim()
        {
            violations
                .push(at, format!("the transcript's words of {} are not what was transcribed", line.item));
        }
    }
}

// ---------------------------------------------------------------------------------------------- expect

fn expect(trace: &Trace) -> Vec<Violation> {
    let mut all = each(trace, SCENARIO_EXPECTATIONS.name, |case, violations| {
        let ended = case.call.caller.observations.iter().find_map(|s| {
            if let CallerObservation::Ended(ending) = &s.what { Some((s.at, ending)) } else { None }
        });
        let opened =
            case.call.caller.observations.iter().any(|s| matches!(s.what, CallerObservation::Opened));
        if opened && ended.is_none() && case.tolerance.ear_works() {
            violations.push(trace.ended_at, "the caller's connection never ended");
        }
        if let Some((at, Ending::ByPeer { code: Some(code), .. })) = ended
            && !is_lawful_close(*code)
        {
            violations.push(at, format!("the stream was closed with {code}, which no endpoint may send"));
        }
        if let Some(reason) = baseless_end(case) {
            let what = format!(
                "the call ended with {}, and nothing at its ends was a reason for that",
                reason.name()
            );
            violations.push(case.tolerance.over().min(trace.ended_at), what);
        }
        if let Some((at, told)) = told_secret(case) {
            violations.push(at, format!("the bridge told a part of the key: {told}"));
        }
        for problem in case.tolerance.disappointments(case.attribution) {
            violations.push(case.tolerance.over().min(trace.ended_at), problem);
        }
    });
    let mut whole = |what: String| {
        all.push(Violation { oracle: SCENARIO_EXPECTATIONS.name, call: 0, at: trace.ended_at, what });
    };
    if let Some(problem) = Tolerance::disappointment_of_all(trace) {
        whole(problem);
    }
    for panic in &trace.panics {
        whole(format!("a panic: {panic}"));
    }
    if trace.cut {
        whole("the run had to be cut short: something never ended".into());
    }
    all
}

/// What the bridge told with the words of a server in it, if there was a part of the key among them.
fn told_secret(case: &CallUnderTest<'_>) -> Option<(At, String)> {
    let quoted = mocks::realtime::masked(API_KEY);
    case.call.bridge.iter().find_map(|(at, event)| {
        let (CallEvent::ModelError { code: told }
        | CallEvent::Tolerated { what: told }
        | CallEvent::ResponseDone { status: told, .. }
        | CallEvent::Ended { detail: told, .. }) = event
        else {
            return None;
        };
        (told.contains(API_KEY) || told.contains(&quoted)).then(|| (*at, told.clone()))
    })
}

/// The name of the end, when it is one whose cause would be plain to see, and is not.
fn baseless_end(case: &CallUnderTest<'_>) -> Option<EndReason> {
    let (ended, reason) = case.call.bridge.iter().find_map(|(at, event)| {
        if let CallEvent::Ended { reason, .. } = event { Some((*at, *reason)) } else { None }
    })?;
    // It was decided when the caller was told, if there was somebody to tell.
    let told = case.call.bridge.iter().find(|(_, event)| matches!(event, CallEvent::Notice { .. }));
    let at = told.map_or(ended, |(at, _)| *at);
    let saw =
        |is: fn(&CallerObservation) -> bool| case.call.caller.observations.iter().any(|seen| is(&seen.what));
    let sid = &case.call.caller.call_sid;
    let others = case.trace.calls.iter().enumerate().filter(|(index, _)| *index != case.index);
    let tolerance = &case.tolerance;
    let seen = match reason {
        // No scenario has an operator.
        EndReason::HungUp => false,
        EndReason::UnsupportedMedia => tolerance.speaks_no_g711(),
        EndReason::CallerMalformed => tolerance.is_too_much_rubbish(at),
        EndReason::SessionRefused => (0..case.call.models.len()).any(|m| !tolerance.session_fits(m)),
        EndReason::TooLong => tolerance.is_too_long(at),
        EndReason::SessionTimeout => !was_settled(case, at),
        EndReason::SessionExpired => tolerance.session_ran_out(at) || says_it_expired(case),
        EndReason::Unauthenticated => !may_come_in(case),
        EndReason::AgentHungUp | EndReason::Transferred => wanted_to_leave(case),
        EndReason::Stopped => saw(|what| matches!(what, CallerObservation::SentStop)),
        EndReason::Replaced => others.map(|(_, call)| &call.caller.call_sid).any(|other| other == sid),
        EndReason::Drained => case.trace.scenario.server.drain_at_ms.is_some(),
        // What the others mean to an end is for the other oracles.
        EndReason::CallerClosed
        | EndReason::CallerLost
        | EndReason::CallerSilent
        | EndReason::CallerClogged
        | EndReason::NoStart
        | EndReason::NoMedia
        | EndReason::DialFailed
        | EndReason::ModelRefused
        | EndReason::ModelLost
        | EndReason::ModelSilent
        | EndReason::ModelClogged
        | EndReason::ResponseFailed => true,
    };
    (!seen).then_some(reason)
}

/// The last session was confirmed or refused early enough for the bridge to know by `at`.
fn was_settled(case: &CallUnderTest<'_>, at: At) -> bool {
    let Some(last) = case.call.models.len().checked_sub(1) else { return false };
    let arrives =
        |sent: At| At(sent.0 + case.tolerance.latency(Leg::Model) + case.tolerance.slack(Leg::Model, sent));
    let in_time = |sent: At| arrives(sent) < at && !case.tolerance.model_speaks_into_the_dark(last, sent);
    // Nothing else has been asked of a new session that could be refused.
    let settles = |what: &ModelObservation| {
        matches!(
            what,
            ModelObservation::SentSessionUpdated | ModelObservation::SentError { event_id: Some(_), .. }
        )
    };
    case.call.models[last].observations.iter().any(|seen| settles(&seen.what) && in_time(seen.at))
}

/// A service said that the session was over, or closed it, whatever time it had told.
fn says_it_expired(case: &CallUnderTest<'_>) -> bool {
    let mut said = case.call.models.iter().flat_map(|model| &model.observations);
    (0..case.call.models.len()).any(|m| case.tolerance.model_broke(m).is_some())
        || said
            .any(|seen| matches!(&seen.what, ModelObservation::SentError { code, .. } if code == "session_expired"))
}

/// The model called one of the functions that end a call or put it through.
fn wanted_to_leave(case: &CallUnderTest<'_>) -> bool {
    let observations = case.call.models.iter().flat_map(|model| &model.observations);
    observations.into_iter().any(|seen| {
        matches!(&seen.what, ModelObservation::SentFunctionCall { name, .. } if [END_CALL, TRANSFER_CALL].contains(&name.as_str()))
    })
}

/// 1005, 1006 and 1015 describe what happened to a connection; they are never sent.
const fn is_lawful_close(code: u16) -> bool {
    !matches!(code, 0..=999 | 1_004 | 1_005 | 1_006 | 1_015 | 5_000..)
}

#[cfg(test)]
mod tests {
    use super::super::bench::Bench;
    use super::*;

    fn first_of(found: &[Violation]) -> &str {
        found.first().map_or("", |v| v.what.as_str())
    }

    #[test]
    fn an_ordinary_call_breaks_no_rule() {
        let trace = Bench::answered(1_500).trace();
        for judge in [tear, goon, robust, owner, text, expect] {
            assert_eq!(judge(&trace), []);
        }
    }

    #[test]
    fn a_session_that_outlives_its_call_is_found() {
        let mut bench = Bench::answered(1_500);
        bench.model_ends_after(30_000);
        assert!(first_of(&tear(&bench.trace())).contains("the caller was gone"));
        let mut trace = Bench::answered(1_500).trace();
        trace.leftovers.push("a task".into());
        assert!(first_of(&tear(&trace)).contains("left behind"));
    }

    #[test]
    fn a_caller_left_without_a_model_is_found() {
        let mut bench = Bench::answered(1_500);
        bench.model_dies(4_000);
        bench.say_nothing_for(60_000);
        assert!(first_of(&tear(&bench.trace())).contains("left in the call"));
    }

    #[test]
    fn an_error_that_ends_nothing_must_not_end_the_call() {
        let mut bench = Bench::answered(1_500);
        bench.error(1_500);
        assert_eq!(goon(&bench.trace()), []);
        bench.bridge_closes(2_500);
        assert!(first_of(&goon(&bench.trace())).contains("ends nothing"));
    }

    #[test]
    fn a_malformed_frame_must_not_end_the_call() {
        let mut bench = Bench::answered(1_500);
        bench.caller(4_000, CallerObservation::SentRaw { what: "not json".into() });
        assert_eq!(robust(&bench.trace()), []);
        bench.bridge_closes(4_010);
        assert!(first_of(&robust(&bench.trace())).contains("not json"));
    }

    #[test]
    fn a_call_must_not_pay_for_another() {
        let mut bad = Bench::answered(1_500);
        bad.caller(4_000, CallerObservation::SentRaw { what: "not json".into() });
        let mut good = Bench::answered(1_500);
        assert_eq!(robust(&Bench::together([bad.clone(), good.clone()])), []);
        good.bridge_closes(4_010);
        assert!(first_of(&robust(&Bench::together([bad, good]))).contains("another one misbehaved"));
    }

    #[test]
    fn two_streams_of_one_call_are_found() {
        let twins = |second_at: u64, first_until: u64| {
            let first = Bench::answered(1_500).named("CA1").bridge_closed(first_until);
            let second = Bench::answered(1_500).named("CA1").shifted(second_at);
            Bench::together([first, second])
        };
        assert_eq!(owner(&twins(4_000, 4_700)), []);
        assert!(first_of(&owner(&twins(4_000, 9_000))).contains("lived on"));
    }

    #[test]
    fn a_transcript_that_says_too_much_is_found() {
        assert_eq!(text(&Bench::barge_in().transcript(0.4).trace()), []);
        let found = text(&Bench::barge_in().transcript(1.0).trace());
        assert!(first_of(&found).contains("were heard"), "{found:?}");
    }

    #[test]
    fn a_transcript_that_ends_early_is_found() {
        assert_eq!(text(&Bench::answered(1_500).transcript(1.0).trace()), []);
        let found = text(&Bench::answered(1_500).transcript(0.3).trace());
        assert!(first_of(&found).contains("has only"), "{found:?}");
    }

    /// A call of a session that transcribes, whose caller begins another turn in its last second and leaves.
    fn leaves_while_speaking(committed: bool, model_ends_after_ms: u64) -> Vec<Violation> {
        let mut bench = Bench::answered(1_500).transcript(1.0);
        bench.speech_started(5_000);
        if committed {
            bench.say_nothing_for(2_000);
        }
        bench.model_ends_after(model_ends_after_ms);
        let mut trace = bench.trace();
        let scenario = std::sync::Arc::make_mut(&mut trace.scenario);
        scenario.bridge.transcription = Some(serde_json::from_str(r#"{"model":"m"}"#).unwrap());
        text(&trace).into_iter().chain(tear(&trace)).collect()
    }

    #[test]
    fn a_session_that_is_closed_before_the_last_words_came_is_found() {
        assert!(first_of(&leaves_while_speaking(false, 30)).contains("was closed before the words"));
        assert_eq!(leaves_while_speaking(false, 1_030), []);
        assert!(first_of(&leaves_while_speaking(false, 4_000)).contains("the caller was gone"));
    }

    #[test]
    fn a_turn_without_a_line_is_found() {
        assert!(first_of(&leaves_while_speaking(true, 1_030)).contains("has no line"));
    }

    #[test]
    fn words_that_came_and_are_not_in_the_transcript_are_found() {
        let mut trace = Bench::answered(1_500).transcript(1.0).trace();
        let scenario = std::sync::Arc::make_mut(&mut trace.scenario);
        scenario.bridge.transcription = Some(serde_json::from_str(r#"{"model":"m"}"#).unwrap());
        assert_eq!(text(&trace), []);
        let Some((_, CallEvent::Ended { transcript, .. })) = trace.calls[0].bridge.last_mut() else {
            panic!("the bench writes a transcript")
        };
        transcript.retain(|line| line.speaker != Speaker::Caller);
        assert!(first_of(&text(&trace)).contains("came and are not"));
    }

    #[test]
    fn a_transcript_in_another_order_or_with_other_words_is_found() {
        let mut trace = Bench::answered(1_500).transcript(1.0).trace();
        assert_eq!(text(&trace), []);
        let Some((_, CallEvent::Ended { transcript, .. })) = trace.calls[0].bridge.last_mut() else {
            panic!("the bench writes a transcript")
        };
        transcript.reverse();
        assert!(first_of(&text(&trace)).contains("before"));
        let Some((_, CallEvent::Ended { transcript, .. })) = trace.calls[0].bridge.last_mut() else {
            panic!("the bench writes a transcript")
        };
        transcript.reverse();
        for line in transcript {
            line.text = "something else".into();
        }
        assert!(first_of(&text(&trace)).contains("are not"));
    }

    /// The call of this trace, as if the bridge had ended it for this reason.
    fn ended_with(mut trace: Trace, why: EndReason) -> Trace {
        let Some((_, CallEvent::Ended { reason, .. })) = trace.calls[0].bridge.last_mut() else {
            panic!("the bench writes an end")
        };
        *reason = why;
        trace
    }

    #[test]
    fn an_end_without_a_reason_is_found() {
        let mut bench = Bench::answered(1_500).transcript(1.0);
        bench.caller(4_000, CallerObservation::SentRaw { what: "not json".into() });
        let trace = bench.trace();
        let baseless = |trace: &Trace| {
            let found = |why: &EndReason| !expect(&ended_with(trace.clone(), *why)).is_empty();
            EndReason::ALL.into_iter().filter(found).collect::<Vec<_>>()
        };
        let plain = [
            EndReason::Replaced,
            EndReason::UnsupportedMedia,
            EndReason::CallerMalformed,
            EndReason::SessionTimeout,
            EndReason::SessionRefused,
            EndReason::SessionExpired,
            EndReason::AgentHungUp,
            EndReason::Transferred,
            EndReason::HungUp,
            EndReason::Drained,
            EndReason::Unauthenticated,
            EndReason::TooLong,
        ];
        let mut found = baseless(&trace);
        assert!(plain.iter().all(|why| found.contains(why)) && found.len() == plain.len(), "{found:?}");

        let mut caused = trace;
        let scenario = std::sync::Arc::make_mut(&mut caused.scenario);
        scenario.bridge.timeouts.call_ms = 2_000;
        scenario.bridge.limits.malformed = 0;
        scenario.calls[0].caller.media_format.channels = 2;
        scenario.calls[0].model.refuses_update = Some("invalid_value".into());
        scenario.calls[0].model.expires_after_s = Some(6);
        scenario.server.drain_at_ms = Some(1);
        found = baseless(&caused);
        let left = [
            EndReason::Replaced,
            EndReason::SessionTimeout,
            EndReason::AgentHungUp,
            EndReason::Transferred,
            EndReason::HungUp,
            EndReason::Unauthenticated,
        ];
        assert!(left.iter().all(|why| found.contains(why)) && found.len() == left.len(), "{found:?}");
    }

    #[test]
    fn a_panic_is_found() {
        let mut trace = Bench::answered(1_500).trace();
        trace.panics.push("index out of bounds".into());
        assert!(first_of(&expect(&trace)).contains("panic"));
        let mut trace = Bench::answered(1_500).trace();
        trace.cut = true;
        assert!(first_of(&expect(&trace)).contains("cut short"));
    }
}
