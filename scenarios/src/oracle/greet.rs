//! What the line says at the beginning of a call is not believed: the protected window.

use super::case::{CallUnderTest, Oracle, Violation, Violations, each};
use super::speech::{ON_ITS_WAY_US, anchors, spoken_is_loud};
use super::tolerance::Leg;
use crate::oracle::audio_attribution::{BYTES_PER_MS, DELAY, Item, WINDOW};
use crate::sim::trace::Trace;
use bridge::call::settings::Until;
use mocks::peer::At;
use mocks::record::{CallerObservation, ModelObservation};

/// What follows the window must be heard at once: so much of it is looked at.
const BEHIND_US: u64 = 1_000_000;
/// Frames behind the window that may not be recognised: two resamplers and a word that begins in its middle.
const UNRECOGNISED: usize = 2;

/// See [`Oracle::about`].
pub const GREETING_GUARD: Oracle = Oracle {
    name: "greeting_guard",
    about: "In the protected window the model is given silence and the greeting is not cut, and from its end on, by mark \
            or by time, the caller is heard, because an agent that is interrupted by its own echo never gets to speak.",
    check: greet,
};

/// The protected window of one call, in frames of the microphone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Frames before this one are in it.
    pub(crate) inside: usize,
    /// This one and those behind it are not. What the legs do to the moment that ends it is in between.
    pub(crate) outside: usize,
}

impl Window {
    /// The window that ends in either of two ways, whichever is first.
    fn earlier(self, other: Self) -> Self {
        Self { inside: self.inside.min(other.inside), outside: self.outside.min(other.outside) }
    }

    /// The window that ends when both of two things have come about.
    fn later(self, other: Self) -> Self {
        Self { inside: self.inside.max(other.inside), outside: self.outside.max(other.outside) }
    }

    /// The window that a frame sent before `from` is surely in, and one sent after `to` surely not, microseconds.
    fn between(case: &CallUnderTest<'_>, from: u64, to: u64) -> Self {
        let mic = &case.call.caller.mic;
        Self {
            inside: mic.partition_point(|frame| frame.at.0 < from),
            outside: mic.partition_point(|frame| frame.at.0 <= to),
        }
    }

    /// The window that ends at a moment of the bridge, or so much later, microseconds.
    fn at_bridge(case: &CallUnderTest<'_>, at: u64, late_us: u64) -> Self {
        let one_way = case.tolerance.latency(Leg::Caller);
        let slack = case.tolerance.slack(Leg::Caller, At(at));
        Self::between(case, at.saturating_sub(one_way + slack), (at + late_us).saturating_sub(one_way))
    }

    /// Something the caller's end sent at `at` was sent in it.
    pub(crate) fn holds(&self, case: &CallUnderTest<'_>, at: At) -> bool {
        let last = self.inside.checked_sub(1).map(|last| case.call.caller.mic[last].at);
        last.is_some_and(|last| at <= last)
    }
}

/// The protected window of this call, if it has one.
pub(crate) fn window(case: &CallUnderTest<'_>) -> Option<Window> {
    let protection = case.tolerance.config.greeting_guard?;
    let first = case.call.caller.mic.first()?.at;
    // The bridge counts from when it took the first frame.
    let due = first.0 + case.tolerance.latency(Leg::Caller) + protection.at_most_ms * 1_000;
    let by_time = Window::at_bridge(case, due, case.tolerance.slack(Leg::Caller, first));
    match protection.until {
        Until::Time => Some(by_time),
        Until::Heard if case.tolerance.greets() => {
            let others = [heard(case), interrupted(case)];
            Some(others.into_iter().flatten().fold(by_time, Window::earlier))
        }
        Until::Heard => None,
    }
}

/// The first response of which anything reached the ear is complete, and the mark behind it is back or given up.
fn heard(case: &CallUnderTest<'_>) -> Option<Window> {
    let tolerance = &case.tolerance;
    let (first, _) = case.attribution.stretches.iter().find_map(|s| case.attribution.item_at(s.offset))?;
    let said: Vec<&Item> = case
        .attribution
        .items
        .iter()
        .filter(|item| item.model == first.model && item.response == first.response)
        .collect();
    let done = case.call.models[first.model].observations.iter().find_map(|seen| {
        let ModelObservation::SentResponseDone { response, .. } = &seen.what else { return None };
        (*response == first.response).then_some(seen.at)
    })?;
    let complete =
        Window::at_bridge(case, done.0 + tolerance.latency(Leg::Model), tolerance.slack(Leg::Model, done));
    let end_of = |item: &&Item| {
        let (stretch, sample) = case.attribution.of_item(item).last()?;
        Some((stretch.offset + item.len).saturating_sub(sample))
    };
    let end = said.iter().filter_map(end_of).max()?;
    // Silence cannot be told from silence: where it lies in what was received is not known, only how much it is.
    let silent: usize =
        said.iter().filter(|item| item.silent).map(|item| item.len.next_multiple_of(WINDOW)).sum();
    let by_mark = match (frames_before_mark(case, end), frames_before_mark(case, end + silent)) {
        (Some(inside), Some(outside)) => Some(Window { inside, outside }),
        _ => None,
    };
    let back = [by_mark, given_up(case, end, silent)].into_iter().flatten().reduce(Window::earlier)?;
    Some(back.later(complete))
}

/// How many frames the caller's end sent before it returned the mark that came behind `end` bytes. Both go one way, in
/// order: nothing is more exact. A mark that a clear returned ends the window, too; whether there may be one is
/// another question.
fn frames_before_mark(case: &CallUnderTest<'_>, end: usize) -> Option<usize> {
    let observations = &case.call.caller.observations;
    let marks = |seen: &&mocks::record::Observation<CallerObservation>| matches!(&seen.what, CallerObservation::GotMark { offset, .. } if offset + 2 * DELAY >= end);
    let CallerObservation::GotMark { name: wanted, .. } = &observations.iter().find(marks)?.what else {
        return None;
    };
    let mut frames = 0;
    for seen in observations {
        if let CallerObservation::SentMedia { frame } = seen.what {
            frames = frame + 1;
        } else if let CallerObservation::SentMark { name, .. } = &seen.what
            && name == wanted
        {
            return Some(frames);
        }
    }
    None
}

/// The mark behind `end` bytes is overdue, by the bridge's idea of when the ear has played them.
fn given_up(case: &CallUnderTest<'_>, end: usize, silent: usize) -> Option<Window> {
    let tolerance = &case.tolerance;
    let played = case.attribution.played_at(end.checked_sub(1 + 2 * DELAY)?)?.0;
    let patience = tolerance.config.timeouts.mark_ms * 1_000;
    let unsure =
        tolerance.gathering_us() + tolerance.held_up_in_all() + 2 * (DELAY as u64 + WINDOW as u64) * 125;
    let earliest = (played + patience).saturating_sub(tolerance.latency(Leg::Caller) + unsure);
    let late = 2 * unsure
        + silent as u64 * 125
        + tolerance.late_marks_us()
        + 2 * tolerance.slack(Leg::Caller, At(played));
    Some(Window::at_bridge(case, earliest, late))
}

/// The model said that somebody speaks, whatever it was given.
fn interrupted(case: &CallUnderTest<'_>) -> Option<Window> {
    let started = first_speech(case).filter(|_| case.tolerance.config.barge_in)?;
    let tolerance = &case.tolerance;
    let at = started.0 + tolerance.latency(Leg::Model);
    Some(Window::at_bridge(case, at, tolerance.slack(Leg::Model, started)))
}

/// When the model first said that somebody speaks.
fn first_speech(case: &CallUnderTest<'_>) -> Option<At> {
    let observations = case.call.models.iter().flat_map(|model| &model.observations);
    observations
        .filter(|seen| matches!(seen.what, ModelObservation::SentSpeechStarted { .. }))
        .map(|seen| seen.at)
        .min()
}

fn greet(trace: &Trace) -> Vec<Violation> {
    each(trace, GREETING_GUARD.name, |case, violations| {
        let Some(window) = window(case) else { return };
        for m in 0..case.call.models.len() {
            check_silence(case, m, window, violations);
            check_leaks(case, m, window, violations);
        }
        check_what_follows(case, window, violations);
        check_the_words(case, window, violations);
    })
}

/// What the model can only have been given of the window is silence, to the sample.
fn check_silence(case: &CallUnderTest<'_>, m: usize, window: Window, violations: &mut Violations) {
    let model = &case.call.models[m];
    let one_way = case.tolerance.latency(Leg::Caller) + case.tolerance.latency(Leg::Model);
    // Nothing of the first frame that is not surely in it can be there before.
    let until =
        case.call.caller.mic.get(window.inside).map_or(At(u64::MAX), |frame| At(frame.at.0 + one_way));
    let silence = match model.input_format.as_str() {
        "audio/pcmu" => 0xFF,
        "audio/pcma" => 0xD5,
        _ => 0,
    };
    let mut loud = 0;
    let mut first = None;
    for seen in model.observations.iter().filter(|seen| seen.at < until) {
        let ModelObservation::GotAppend { offset, len } = seen.what else { continue };
        let sounds = model.appended[offset..offset + len].iter().filter(|byte| **byte != silence).count();
        if sounds > 0 {
            first.get_or_insert(seen.at);
            loud += len;
        }
    }
    if let Some(at) = first {
        let per_ms = if model.input_format == "audio/pcm" { 6 } else { 1 } * BYTES_PER_MS;
        violations.push(at, format!("{} ms in the protected window were not silence", loud / per_ms));
    }
}

/// Nothing loud that was said in the window is recognised in what the model was given, whenever that was.
fn check_leaks(case: &CallUnderTest<'_>, m: usize, window: Window, violations: &mut Violations) {
    let mic = &case.call.caller.mic[..window.inside];
    for given in &case.attribution.given[m] {
        let Some(from) = given.spoken else { continue };
        let to = from + given.len;
        let heard = |offset: usize, len: usize| (offset + len).min(to).saturating_sub(offset.max(from));
        let leaked: usize = mic
            .iter()
            .filter(|frame| heard(frame.offset, frame.len) > 2 * DELAY && spoken_is_loud(case, frame))
            .map(|frame| heard(frame.offset, frame.len))
            .sum();
        if leaked > 0 {
            let at = mic.iter().rev().find(|frame| frame.offset <= from).map_or(At(0), |frame| frame.at);
            let ms = leaked / BYTES_PER_MS;
            violations
                .push(at, format!("the model was given {ms} ms of what was said in the protected window"));
        }
    }
}

/// The caller's words behind the window reach the model, the first of them too.
fn check_what_follows(case: &CallUnderTest<'_>, window: Window, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    let mic = &case.call.caller.mic;
    // Whoever hears nothing for other reasons is another oracle's business.
    let models = 0..case.call.models.len();
    let Some((m, ready)) = models.into_iter().find_map(|m| Some((m, tolerance.ready_at(m)?))) else { return };
    let end = tolerance.over().min(tolerance.model_over(m));
    let arrives = |at: At| {
        let slack = tolerance.slack(Leg::Caller, at) + tolerance.slack(Leg::Model, at);
        let sent = (at.0 + tolerance.latency(Leg::Caller)).max(ready.0 + tolerance.latency(Leg::Model));
        let waits = ready.since(at) + tolerance.round_trip_until(Leg::Model, ready);
        sent + tolerance.latency(Leg::Model) + ON_ITS_WAY_US + slack < end.0
            && waits < tolerance.config.limits.backlog_ms * 1_000
            && tolerance.model_listens(at)
    };
    let mut behind = (window.outside..mic.len()).filter(|i| mic[*i].speech && spoken_is_loud(case, &mic[*i]));
    let Some(first) = behind.next() else { return };
    let latest = mic[first].at.0 + BEHIND_US;
    let wanted: Vec<usize> = std::iter::once(first)
        .chain(behind)
        .take_while(|i| mic[*i].at.0 < latest)
        .filter(|i| arrives(mic[*i].at) && (*i == 0 || mic[*i].timestamp_ms != mic[*i - 1].timestamp_ms))
        .collect();
    let from_mic: Vec<_> = case.attribution.given[m].iter().filter(|given| given.spoken.is_some()).collect();
    let given: Vec<usize> = anchors(case, &from_mic).iter().map(|anchor| anchor.frame).collect();
    let missing: Vec<usize> = wanted.into_iter().filter(|i| given.binary_search(i).is_err()).collect();
    if missing.len() > UNRECOGNISED {
        let ms: usize = missing.iter().map(|i| mic[*i].len / BYTES_PER_MS).sum();
        violations.push(
            mic[missing[0]].at,
            format!("{ms} ms of what was said behind the protected window did not reach the model"),
        );
    }
}

/// Nobody can have interrupted in the window, but a model that heard somebody speak all the same.
fn check_the_words(case: &CallUnderTest<'_>, window: Window, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    let to_ear = tolerance.latency(Leg::Caller);
    for clear in &case.attribution.clears {
        let explained = first_speech(case)
            .is_some_and(|started| started.0 + tolerance.latency(Leg::Model) + to_ear <= clear.at.0)
            || tolerance.explains_clear(clear.at);
        if !explained && window.holds(case, At(clear.at.0.saturating_sub(2 * to_ear))) {
            let ms = clear.discarded / BYTES_PER_MS;
            violations.push(clear.at, format!("a clear threw {ms} ms away in the protected window"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::injection::ground;
    use crate::model::seed::Seed;
    use crate::sim::ScenarioRunner as _;
    use crate::sim::memory::Memory;
    use mocks::record::Observation;
    use std::cell::Cell;

    fn played() -> Trace {
        Memory.play(&ground("protected").expect("a ground"), Seed(1))
    }

    fn window_of(trace: &Trace) -> Window {
        let found = Cell::new(None);
        each(trace, "test", |case, _| found.set(window(case)));
        found.get().expect("a window")
    }

    #[test]
    fn a_protected_greeting_breaks_no_rule_and_its_window_ends_between_two_frames() {
        let trace = played();
        assert_eq!(greet(&trace), []);
        let Window { inside, outside } = window_of(&trace);
        let mic = &trace.calls[0].caller.mic;
        assert!(inside == outside && mic[inside - 1].speech && mic[outside].speech);
    }

    #[test]
    fn a_single_sample_in_the_window_is_found() {
        let mut trace = played();
        let model = &mut trace.calls[0].models[0];
        model.appended[48_000] = 1;
        let found = greet(&trace);
        assert!(found[0].what.contains("were not silence"), "{found:?}");
    }

    #[test]
    fn an_unprotected_call_is_given_what_it_says() {
        let mut trace = played();
        std::sync::Arc::make_mut(&mut trace.scenario).bridge.greeting_guard = None;
        assert_eq!(greet(&trace), []);
    }

    #[test]
    fn a_clear_in_the_window_needs_a_reason() {
        let mut trace = played();
        let seen = &mut trace.calls[0].caller.observations;
        let at = seen.iter().position(|s| s.at > At::ms(2_000)).expect("it lasts longer");
        let clear = CallerObservation::GotClear { discarded: 0, marks: 0 };
        let clear = Observation { at: seen[at].at, what: clear };
        seen.insert(at, clear);
        let found = greet(&trace);
        assert!(found[0].what.contains("a clear threw"), "{found:?}");
    }
}
