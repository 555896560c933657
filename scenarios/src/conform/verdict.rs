//! What a play in real time says about a bridge, and what it must not say.

use crate::oracle::real_time::LAG_MAX_US;
use crate::oracle::{self, Oracle, Violation};
use crate::report::{Outcome, RunView};
use crate::sim::attach::Played;
use crate::sim::trace::Trace;
use mocks::record::{CallerObservation, ModelObservation};
use std::collections::BTreeSet;

/// Rules that need the bridge's own account, and why they say nothing about a foreign bridge.
pub const NOT_JUDGED: &[(&str, &str)] = &[
    ("dtmf_delivered", "reads the bridge's own words for them, and its settings"),
    ("transcript", "reads the bridge's own transcript"),
];

/// What became of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Every rule was kept.
    Passed,
    /// A rule was broken, and again when it was played alone.
    Failed,
    /// A rule was broken once, and kept when the same was played alone.
    Unsteady,
    /// This machine was too busy to judge the bridge.
    NotJudged,
    /// The bridge does not offer what it is about.
    NotOffered,
    /// It cannot be played against a foreign bridge, or was not to be.
    LeftOut,
}

impl Verdict {
    /// The word in tables and files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Unsteady => "unsteady",
            Self::NotJudged => "not judged",
            Self::NotOffered => "not offered",
            Self::LeftOut => "left out",
        }
    }
}

/// The figures of a play; nothing where there was nothing to measure. Milliseconds, the middle of several.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// From `speech_started` to the `clear` at the caller's end.
    pub clear: Option<f64>,
    /// Where an item was cut, less what the caller had heard of it: the largest, with its sign.
    pub cut: Option<f64>,
    /// Bytes of interrupted responses that reached the caller after all.
    pub stale_bytes: usize,
    /// From the microphone to the model.
    pub up: Option<f64>,
    /// From the model's first audio of an answer to the caller.
    pub down: Option<f64>,
    /// From the caller's going to the end of the model's connection: the longest.
    pub teardown: Option<f64>,
}

/// A play, judged.
#[derive(Clone, Debug)]
pub struct Judged {
    /// What a report shows of it.
    pub outcome: Outcome,
    /// Its picture.
    pub view: RunView,
    /// What broke a rule and does not matter to a caller.
    pub advice: Vec<String>,
    /// The rules that were broken.
    pub broken: BTreeSet<&'static str>,
    /// What was measured.
    pub measured: Measured,
    /// The machine was too busy.
    pub busy: bool,
    /// One end in it never was done, and it had to be cut.
    pub endless: bool,
    /// The bridge's process ended meanwhile, for whatever cause.
    pub felled: bool,
}

/// The rules that are held against a foreign bridge: all but these.
pub(super) fn rules(except: &BTreeSet<String>) -> impl Iterator<Item = &'static Oracle> {
    let judged = |name: &str| NOT_JUDGED.iter().all(|(other, _)| *other != name);
    oracle::ALL.iter().filter(move |oracle| judged(oracle.name) && !except.contains(oracle.name))
}

/// By what is judged.
#[derive(Clone, Debug, Default)]
pub(super) struct Measure {
    /// The rules that are not.
    pub(super) except: BTreeSet<String>,
    /// What rests on what neither vendor has been seen to do is held against a bridge, too.
    pub(super) strict: bool,
}

/// Judges a play.
pub(super) fn judge(played: &Played, name: &str, by: &Measure) -> Judged {
    oracle::judging(&played.trace, || judged(played, name, by))
}

fn judged(played: &Played, name: &str, by: &Measure) -> Judged {
    let trace = &played.trace;
    let mut outcome = Outcome::unjudged(trace, name, None);
    let mut advice = Vec::new();
    let mut broken = BTreeSet::new();
    for oracle in rules(&by.except) {
        let (weighty, light): (Vec<_>, Vec<_>) =
            (oracle.check)(trace).into_iter().partition(|violation| harmless(trace, violation, by).is_none());
        for violation in &light {
            let why = harmless(trace, violation, by).unwrap_or_default();
            advice.push(format!("{}: {} ({why})", violation.oracle, violation.what));
        }
        if !weighty.is_empty() {
            broken.insert(oracle.name);
            outcome.blame(trace, oracle, &weighty);
        }
    }
    for note in &played.notes {
        broken.insert(oracle::lifecycle::SCENARIO_EXPECTATIONS.name);
        outcome.problems.push((note.clone(), String::new()));
    }
    Judged {
        view: RunView::of(trace),
        measured: measure(trace, &outcome),
        busy: trace.lag_us > LAG_MAX_US || played.crowded,
        endless: trace.cut,
        felled: played.felled,
        outcome,
        advice,
        broken,
    }
}

/// Why this does no harm, if it does none. A rule stays what it is: this only says that breaking it in this way has
/// no effect on either end, so that it is told and does not fail a foreign bridge.
fn harmless(trace: &Trace, violation: &Violation, by: &Measure) -> Option<&'static str> {
    let call = trace.calls.get(violation.call)?;
    match violation.oracle {
        // Twilio plays and returns marks in order, so who counts them needs no names.
        "marks_unique" => {
            Some("marks come back in order, and a bridge that counts them can still tell them apart")
        }
        "clear_on_barge_in" => {
            let empty = call.caller.observations.iter().any(|seen| {
                seen.at == violation.at
                    && matches!(seen.what, CallerObservation::GotClear { discarded: 0, .. })
            });
            empty.then_some("a clear of nothing silences nothing")
        }
        // How often a real stream's timestamps step is not known well enough to blame a bridge for it.
        "uplink_intact" if !by.strict => {
            let stands = oracle::audio::bytes_in_but_for_wander(trace).contains(violation);
            (!stands).then_some("steps of a millisecond or two in the timestamps were filled with silence")
        }
        // The service handles events in order: audio behind the settings is read by them.
        "format_confirmed" => {
            let scripted = trace.scenario.calls.iter().any(|plan| plan.model.echoes_format.is_some());
            let behind = call.models.iter().any(|model| {
                let set = model.observations.iter().position(|seen| matches!(seen.what, ModelObservation::GotUpdate { .. }));
                let audio = model.observations.iter().position(|seen| matches!(seen.what, ModelObservation::GotAppend { .. }));
                let first = audio.is_some_and(|n| model.observations[n].at == violation.at);
                let refused = model
                    .observations
                    .iter()
                    .any(|seen| matches!(&seen.what, ModelObservation::SentError { rejected: Some(what), .. } if what == "session.update"));
                first && !refused && !scripted && set.zip(audio).is_some_and(|(set, audio)| set < audio)
            });
            if behind {
                return Some("the settings were sent first, and the service takes what it is sent in order");
            }
            // Observed: a session of the current dialect begins with 24 kHz PCM, so this is what it takes from the start.
            let plain = !scripted
                && violation.what.starts_with("audio ")
                && call.models.iter().flat_map(|model| &model.observations).all(|seen| {
                    let other = |input: &str, output: &str| input != "audio/pcm" || output != "audio/pcm";
                    !matches!(&seen.what, ModelObservation::GotUpdate { input, output } if other(input, output))
                });
            plain.then_some("it is in the format every session begins with")
        }
        _ => None,
    }
}

fn measure(trace: &Trace, outcome: &Outcome) -> Measured {
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let figures = &outcome.figures;
    let farthest = |a: f64, b: f64| if b.abs() > a.abs() { b } else { a };
    Measured {
        clear: middle(figures.clear_latencies.clone()),
        cut: figures.truncation_errors.iter().copied().reduce(farthest),
        stale_bytes: figures.stale_bytes,
        up: middle(oracle::audio::delays_up(trace)),
        down: middle(figures.answers.iter().map(|answer| answer.bridge).collect()),
        teardown: oracle::lifecycle::teardowns(trace).into_iter().reduce(f64::max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::backend::Backend;
    use crate::model::catalogue;
    use crate::model::seed::Seed;
    use crate::sim;
    use mocks::record::Observation;

    /// A good call whose model is given audio before its settings.
    fn early_audio(name: &str) -> Judged {
        let mut trace = sim::play(Backend::Memory, &catalogue::find(name)[0], Seed(1));
        let observations = &mut trace.calls[0].models[0].observations;
        let set =
            observations.iter().position(|seen| matches!(seen.what, ModelObservation::GotUpdate { .. }));
        let set = set.expect("a session that is configured");
        let at = observations[set].at;
        observations.insert(set, Observation { at, what: ModelObservation::GotAppend { offset: 0, len: 0 } });
        let played = Played::undisturbed(trace);
        judge(&played, name, &Measure::default())
    }

    #[test]
    fn audio_ahead_of_the_settings_is_no_fault_in_the_format_every_session_begins_with() {
        let plain = early_audio("turns/one");
        assert!(!plain.broken.contains("format_confirmed"), "{:?}", plain.outcome.problems);
        assert!(
            plain.advice.iter().any(|said| said.contains("every session begins with")),
            "{:?}",
            plain.advice
        );
        assert!(early_audio("turns/pcmu").broken.contains("format_confirmed"));
    }
}
