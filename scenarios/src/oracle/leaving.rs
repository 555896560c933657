//! How a call begins and how its model ends it: who is let in, and that a farewell is heard.

use super::case::{CallUnderTest, Oracle, Violation, Violations, each, in_ms};
use super::tolerance::Leg;
use crate::oracle::audio_attribution::Item;
use crate::sim::trace::Trace;
use bridge::call::event::{CallEvent, EndReason};
use bridge::call::settings::{END_CALL, TRANSFER_CALL};
use mocks::peer::At;
use mocks::record::{CallerObservation, Ending, ModelObservation};
use mocks::twilio::{Credentials, TAKEN_AWAY};

/// How far the clocks of two replicas may be apart; a token lives so much longer, seconds.
const CLOCKS_S: u64 = 5;
/// A stream that may not come in is closed within this, beyond the network's time.
const TURNED_AWAY_US: u64 = 1_000_000;
/// What may be unheard of a farewell when it is taken for heard: two frames, and what a resampler holds back.
const UNHEARD_MS: f64 = 60.0;

/// See [`Oracle::about`].
pub const STREAM_AUTH: Oracle = Oracle {
    name: "stream_auth",
    about: "Where a stream has to show whose it is, nothing is said to or dialled for one that cannot, and one that \
            can is carried, because whoever opens streams spends the operator's money.",
    check: auth,
};

/// See [`Oracle::about`].
pub const FAREWELL_HEARD: Oracle = Oracle {
    name: "farewell_heard",
    about: "A call its model ends or puts through is left when the caller has heard the farewell, and goes on when \
            the caller speaks first, because nobody likes to be hung up on.",
    check: bye,
};

// ----------------------------------------------------------------------------------------------- auth

/// Whether the stream of a call can show that it belongs to it.
pub(super) fn may_come_in(case: &CallUnderTest<'_>) -> bool {
    let server = &case.trace.scenario.server;
    let caller = &case.tolerance.plan.caller;
    let in_time = caller.connected_after_ms + caller.start_after_ms
        < (u64::from(server.token_life_s) + CLOCKS_S) * 1_000;
    !server.signed || (caller.credentials == Credentials::Proper && in_time)
}

fn auth(trace: &Trace) -> Vec<Violation> {
    if !trace.scenario.server.signed {
        return Vec::new();
    }
    each(trace, STREAM_AUTH.name, |case, violations| {
        let observations = &case.call.caller.observations;
        let started =
            observations.iter().find(|seen| seen.what == CallerObservation::SentStart).map(|seen| seen.at);
        let dialled = case.call.models.iter().filter_map(|model| Some(model.observations.first()?.at)).min();
        if may_come_in(case) {
            for seen in observations {
                let turned_away = matches!(
                    seen.what,
                    CallerObservation::Refused { status: 403 }
                        | CallerObservation::Ended(Ending::ByPeer { code: Some(1_008), .. })
                );
                if turned_away {
                    violations
                        .push(seen.at, "a stream was turned away that showed everything it was asked for");
                }
            }
            if let Some(at) = dialled.filter(|at| started.is_none_or(|started| *at < started)) {
                violations.push(at, "a model was dialled before the stream had said whose it is");
            }
            return;
        }
        if let Some(at) = dialled {
            violations.push(at, "a model was dialled for a stream that could not show whose it is");
        }
        if let Some(said) =
            observations.iter().find(|seen| matches!(seen.what, CallerObservation::GotMedia { .. }))
        {
            violations.push(said.at, "something was said to a stream that could not show whose it is");
        }
        if let Some(started) = started {
            let tolerance = &case.tolerance;
            let way = 2 * tolerance.latency(Leg::Caller) + tolerance.slack(Leg::Caller, started);
            let due = At(started.0 + TURNED_AWAY_US + way + tolerance.config.timeouts.closing_ms * 1_000);
            if tolerance.over() > due && due < trace.ended_at {
                violations.push(due, "a stream that could not show whose it is was kept open");
            }
        }
    })
}

// ------------------------------------------------------------------------------------------------ bye

/// A call of one of the functions that end a call or put it through.
struct Wish<'a> {
    model: usize,
    at: At,
    response: &'a str,
    name: &'a str,
}

fn bye(trace: &Trace) -> Vec<Violation> {
    each(trace, FAREWELL_HEARD.name, |case, violations| {
        for (model, record) in case.call.models.iter().enumerate() {
            for seen in &record.observations {
                if let ModelObservation::SentFunctionCall { response, name, .. } = &seen.what
                    && is_offered(case, name)
                {
                    check(case, &Wish { model, at: seen.at, response, name }, violations);
                }
            }
        }
    })
}

fn is_offered(case: &CallUnderTest<'_>, name: &str) -> bool {
    let hangup = &case.tolerance.config.hangup;
    (name == END_CALL && hangup.end_call) || (name == TRANSFER_CALL && !hangup.transfer.is_empty())
}

fn check(case: &CallUnderTest<'_>, wish: &Wish<'_>, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    let observations = &case.call.models[wish.model].observations;
    // Twilio is asked, or the bridge closes the stream.
    let taken = case.call.caller.observations.iter().find_map(|seen| {
        let CallerObservation::Step { what, .. } = &seen.what else { return None };
        (what == TAKEN_AWAY).then_some(seen.at)
    });
    // A stream that its caller has ended is closed for that.
    let closed = tolerance.closed_by_bridge().filter(|_| tolerance.caller_gone().is_none());
    let left = taken.or(closed).filter(|left| *left > wish.at);
    let later = observations.iter().any(|seen| {
        seen.at > wish.at
            && matches!(&seen.what, ModelObservation::SentFunctionCall { name, .. } if is_offered(case, name))
    });
    let farewell_us = tolerance.config.hangup.farewell_ms * 1_000;
    let watchdog = At(wish.at.0 + farewell_us);
    let spoke = observations.iter().find_map(|seen| {
        let spoke = matches!(seen.what, ModelObservation::SentSpeechStarted { .. }) && seen.at > wish.at;
        spoke.then_some(seen.at)
    });
    let slack = tolerance.slack(Leg::Model, wish.at) + tolerance.slack(Leg::Caller, wish.at);
    let carrier = carrier_us(case, wish.name);
    // A caller who is told that the call cannot go on is not left because of the function, and neither is a stream that
    // another one of its call has taken over.
    let told = case.call.bridge.iter().any(|(_, event)| {
        matches!(event, CallEvent::Notice { .. } | CallEvent::Ended { reason: EndReason::Replaced, .. })
    });
    if left.is_some() && taken.is_none() && told {
        return;
    }
    match left {
        Some(left) => {
            if later {
                return; // that one is judged by itself
            }
            // What happened after the bridge had asked could not change its mind any more.
            let asked = At(left.0.saturating_sub(carrier + 2 * tolerance.latency(Leg::Model) + slack));
            if let Some(spoke) = spoke.filter(|spoke| *spoke < asked && tolerance.config.barge_in) {
                violations.push(
                    left,
                    format!("{} was done although the caller spoke first, at {spoke}", wish.name),
                );
            }
            // One that repeats an earlier one does not begin its time anew.
            if left.0 < standing_since(case, wish).0 + farewell_us && spoke.is_none_or(|spoke| spoke > left) {
                for item in &case.attribution.items {
                    let said =
                        item.model == wish.model && item.first_sent().is_some_and(|first| first < left);
                    let whole = item.len as f64 / 8.0;
                    let heard = case.attribution.item_played_ms(item, left);
                    let spoken_now =
                        item.response == wish.response || item.first_sent().is_some_and(|at| at > wish.at);
                    let said =
                        said && !was_out_of_patience(case, wish, item, At(left.0.saturating_sub(carrier)));
                    if said && spoken_now && !item.silent && heard + UNHEARD_MS + in_ms(slack) < whole {
                        violations.push(
                            left,
                            format!("{} cut the farewell: {heard:.0} of {whole:.0} ms were heard", wish.name),
                        );
                    }
                }
            }
        }
        None if spoke.is_none() && !later && carrier_works(case, wish.name) => {
            let due = At(watchdog.0 + carrier + TURNED_AWAY_US + slack + 4 * tolerance.latency(Leg::Model));
            if tolerance.over() > due && due < case.trace.ended_at {
                violations.push(due, format!("{} was never done", wish.name));
            }
        }
        None => {}
    }
}

/// The bridge had waited for this item for its whole patience when it decided to leave, and nothing of it had come.
fn was_out_of_patience(case: &CallUnderTest<'_>, wish: &Wish<'_>, item: &Item, decided: At) -> bool {
    let tolerance = &case.tolerance;
    let way = tolerance.latency(Leg::Model) + tolerance.slack(Leg::Model, decided);
    let Some(first) = item.first_sent() else { return false };
    let asked = case.call.models[wish.model].observations.iter().rev().find_map(|seen| {
        let asks = matches!(
            seen.what,
            ModelObservation::GotCreate { .. } | ModelObservation::SentSpeechStopped { .. }
        );
        (asks && seen.at <= first).then_some(seen.at)
    });
    let patience = tolerance.config.timeouts.first_audio_ms * 1_000;
    let waited = asked.is_some_and(|asked| asked.0 + patience <= decided.0 + way);
    let came = first.0 + way < decided.0 && !tolerance.model_speaks_into_the_dark(wish.model, first);
    waited && !came
}

/// Since when the call is to be left: from the first wish that was neither answered nor spoken over before this one.
fn standing_since(case: &CallUnderTest<'_>, wish: &Wish<'_>) -> At {
    let observations = &case.call.models[wish.model].observations;
    let stands = |call: &str, since: At| {
        let ends_it = |what: &ModelObservation| {
            matches!(what, ModelObservation::SentSpeechStarted { .. })
                || matches!(what, ModelObservation::GotToolOutput { call_id, .. } if call_id == call)
        };
        !observations.iter().any(|seen| (since..wish.at).contains(&seen.at) && ends_it(&seen.what))
    };
    let first = observations.iter().take_while(|seen| seen.at < wish.at).find_map(|seen| {
        let ModelObservation::SentFunctionCall { call_id, name, .. } = &seen.what else { return None };
        (is_offered(case, name) && stands(call_id, seen.at)).then_some(seen.at)
    });
    first.unwrap_or(wish.at)
}

/// How long Twilio takes for what it is asked, microseconds.
fn carrier_us(case: &CallUnderTest<'_>, name: &str) -> u64 {
    let script = case.trace.scenario.tools.iter().find(|tool| tool.name == name);
    script.map_or(crate::sim::CARRIER_MS, |script| script.after_ms) * 1_000
}

/// A transfer that fails leaves the caller where they are; a hang-up that fails does not.
fn carrier_works(case: &CallUnderTest<'_>, name: &str) -> bool {
    let script = case.trace.scenario.tools.iter().find(|tool| tool.name == name);
    name == END_CALL || script.is_none_or(|script| script.output.is_some())
}
