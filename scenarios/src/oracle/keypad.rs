//! The keys the caller presses are told to the model: each of them, once, in order, and soon.
//!
//! How a bridge words it is its own affair, and how long it waits for more keys is a setting of ours, so this is asked
//! of our bridge alone.

use super::case::{CallUnderTest, Oracle, Violation, Violations, each};
use super::sessions::news;
use super::tolerance::Leg;
use crate::sim::trace::{CallTrace, Trace};
use mocks::peer::At;
use mocks::record::{CallerObservation, ModelObservation, Observation};

/// What a bridge may take beyond its settings: one turn of its loop.
const PROMPT_US: u64 = 100_000;

/// See [`Oracle::about`].
pub const DTMF_DELIVERED: Oracle = Oracle {
    name: "dtmf_delivered",
    about: "Every key the caller presses is told to the model once, in order, as soon as its entry is complete, because \
            a model cannot hear keys, and a digit lost or doubled makes another number.",
    check: keys,
};

fn keys(trace: &Trace) -> Vec<Violation> {
    each(trace, DTMF_DELIVERED.name, check)
}

fn check(case: &CallUnderTest<'_>, violations: &mut Violations) {
    let pressed = pressed(case.call);
    let told = told(case.call);
    for (nth, (at, key)) in told.iter().enumerate() {
        match pressed.get(nth) {
            Some((when, wanted)) if wanted == key && when <= at => {
                if let Some(due) = due(case, &pressed[nth..]).filter(|due| due < at) {
                    let what = format!("the model was told of {key}, pressed at {when}, only at {at}");
                    return violations.push(due, what);
                }
            }
            Some((when, wanted)) => {
                let what = format!("the model was told of {key} where {wanted} was pressed, at {when}");
                return violations.push(*at, what);
            }
            None => {
                return violations
                    .push(*at, format!("the model was told of {key}, which nobody had pressed"));
            }
        }
    }
    let untold = &pressed[told.len()..];
    if let Some((at, key)) = untold.first()
        && let Some(due) = due(case, untold)
    {
        violations.push(due, format!("the model was not told of {key}, pressed at {at}"));
    }
}

/// The keys of the caller, as its end sent them.
fn pressed(call: &CallTrace) -> Vec<(At, char)> {
    let key = |seen: &Observation<CallerObservation>| {
        if let CallerObservation::SentDtmf { digit } = seen.what { Some((seen.at, digit)) } else { None }
    };
    call.caller.observations.iter().filter_map(key).collect()
}

/// The keys in the messages of the bridge, without what it repeats to a session that takes over.
fn told(call: &CallTrace) -> Vec<(At, char)> {
    let mut all: Vec<(At, char)> = Vec::new();
    for m in 0..call.models.len() {
        for seen in news(call, m) {
            let ModelObservation::GotText { role, text } = &seen.what else { continue };
            if role != "user" {
                continue;
            }
            let keys = text.trim_end_matches('.').split_whitespace().filter_map(|word| {
                let mut chars = word.chars();
                let key = chars.next().filter(|key| matches!(key, '0'..='9' | '*' | '#' | 'A'..='D'))?;
                chars.next().is_none().then_some(key)
            });
            all.extend(keys.map(|key| (seen.at, key)));
        }
    }
    all
}

/// When the bridge knows at the latest that this session is ready.
fn known(case: &CallUnderTest<'_>, m: usize) -> Option<At> {
    let ready = case.tolerance.ready_at(m)?;
    Some(At(ready.0 + case.tolerance.latency(Leg::Model) + case.tolerance.slack(Leg::Model, ready)))
}

/// When the model must know of the first of these keys, if there is a model and a caller so long.
fn due(case: &CallUnderTest<'_>, keys: &[(At, char)]) -> Option<At> {
    let tolerance = &case.tolerance;
    let quiet = tolerance.config.dtmf.quiet_ms * 1_000;
    let arrives = |at: At| At(at.0 + tolerance.latency(Leg::Caller) + tolerance.slack(Leg::Caller, at));
    // The keypad is quiet when nothing came for so long, nor what had come was taken out for a session that is ready.
    let said = |ready: At| {
        let quiet_at = |at: At| At(arrives(at).max(ready).0 + quiet);
        let first = quiet_at(keys[0].0);
        keys.iter().fold(first, |until, (at, _)| if *at <= until { quiet_at(*at) } else { until })
    };
    (0..case.call.models.len()).find_map(|m| {
        let said = At(said(known(case, m)?).0 + PROMPT_US);
        let due = At(said.0 + tolerance.latency(Leg::Model) + tolerance.slack(Leg::Model, said));
        (due < tolerance.given_up(m) && due < tolerance.over() && due < case.trace.ended_at).then_some(due)
    })
}

#[cfg(test)]
mod tests {
    use super::super::bench::Bench;
    use super::*;

    /// When the first key is pressed, ms.
    const PRESSED: u64 = 2_500;
    /// When a message of an entry arrives, ms.
    const TOLD: u64 = PRESSED + 1_600;

    fn call(keys: &str, told: &[&str]) -> Bench {
        let mut bench = Bench::answered(6_000);
        for (nth, digit) in keys.chars().enumerate() {
            bench.caller(PRESSED + nth as u64, CallerObservation::SentDtmf { digit });
        }
        for (nth, text) in told.iter().enumerate() {
            bench.model(
                TOLD + nth as u64,
                ModelObservation::GotText { role: "user".into(), text: (*text).into() },
            );
        }
        bench
    }

    fn found(bench: &Bench) -> Vec<String> {
        keys(&bench.trace()).into_iter().map(|found| found.what).collect()
    }

    #[test]
    fn keys_that_are_told_once_in_order_break_no_rule() {
        let none = Vec::<String>::new();
        assert_eq!(found(&call("", &[])), none);
        assert_eq!(found(&call("5", &["The caller pressed 5 on the keypad."])), none);
        assert_eq!(found(&call("55#", &["The caller entered 5 5 # on the keypad."])), none);
        assert_eq!(found(&call("12#3", &["It was 1 2 #.", "And 3."])), none);
    }

    #[test]
    fn a_key_that_is_not_told_is_found() {
        assert!(found(&call("5", &[]))[0].contains("not told of 5"));
        assert!(found(&call("12", &["1"]))[0].contains("not told of 2"));
        assert!(found(&call("12", &["2"]))[0].contains("told of 2 where 1 was pressed"));
    }

    #[test]
    fn a_key_that_is_told_late_is_found() {
        let mut late = call("5", &[]);
        late.model(TOLD + 1_000, ModelObservation::GotText { role: "user".into(), text: "5".into() });
        assert!(found(&late)[0].contains("told of 5, pressed at"));
    }

    #[test]
    fn a_key_that_nobody_pressed_is_found() {
        assert!(found(&call("5", &["5 5"]))[0].contains("nobody had pressed"));
        assert!(found(&call("12", &["2 1"]))[0].contains("told of 2 where"));
        let mut early = call("", &["5"]);
        early.caller(TOLD + 1, CallerObservation::SentDtmf { digit: '5' });
        assert!(found(&early)[0].contains("told of 5 where"));
    }

    #[test]
    fn a_key_of_which_nobody_could_be_told_any_more_is_not_asked_about() {
        let mut bench = call("5", &[]);
        bench.bridge_closes(TOLD);
        assert_eq!(found(&bench), Vec::<String>::new());
    }
}
