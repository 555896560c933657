//! A call as a timeline that is read from top to bottom: the caller on the left, the model on the right.
//!
//! Audio comes fifty times a second; a run of messages of one kind is told in one line, at the time of its first.

use crate::oracle::Violation;
use crate::sim::trace::{CallTrace, End, Line, Trace, Way};
use mocks::peer::At;
use std::fmt::Write as _;

/// Width of the caller's lane.
const LANE: usize = 58;
/// A run of messages is told anew after this long, so that the two lanes stay side by side.
const LONGEST_RUN_US: u64 = 1_000_000;

/// One thing to tell: a sighting, or a run of them.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// When, or when the first of them.
    pub(crate) at: At,
    /// When the last of them.
    pub(crate) until: At,
    pub(crate) end: End,
    pub(crate) way: Way,
    pub(crate) kind: &'static str,
    /// What it was, in words, without its kind.
    pub(crate) what: String,
}

impl Told {
    /// What it looks like in its lane: the arrow points the way the message went.
    fn text(&self) -> String {
        let Self { end, way, kind, what, .. } = self;
        let towards_bridge = match end {
            End::Caller => "→",
            End::Model(_) => "←",
            End::Bridge => return what.clone(),
        };
        let from_bridge = if towards_bridge == "→" { "←" } else { "→" };
        match way {
            Way::Sent => format!("{towards_bridge} {kind}: {what}"),
            Way::Got => format!("{from_bridge} {kind}: {what}"),
            Way::Here => format!("· {what}"),
        }
    }
}

/// A run of messages of one kind.
struct Run {
    first: Line,
    last: At,
    count: usize,
    audio_ms: usize,
}

impl Run {
    fn told(self) -> Told {
        let Self { first: Line { at, end, way, kind, what, .. }, last, count, audio_ms } = self;
        let what = match (count, audio_ms) {
            (1, 0) => what,
            (1, ms) => format!("{ms} ms of audio"),
            (n, 0) => format!("{n} messages"),
            (n, ms) => format!("{ms} ms of audio in {n} messages"),
        };
        Told { at, until: last, end, way, kind, what }
    }
}

/// Milliseconds of audio in a line that may be part of a run; `None` when it stands for itself.
fn in_a_run(call: &CallTrace, line: &Line) -> Option<usize> {
    match (line.end, line.kind) {
        (End::Caller, "media") => Some(line.audio.as_ref().map_or(0, |(len, _)| len / 8)),
        (End::Caller, "mark") if !line.what.contains("flushed") => Some(0),
        (End::Caller | End::Model(_), "ping") | (End::Model(_), "other") => Some(0),
        (End::Model(n), "append") => {
            let bytes_per_ms = if call.models.get(n)?.input_format == "audio/pcm" { 48 } else { 8 };
            Some(line.audio.as_ref().map_or(0, |(len, _)| len / bytes_per_ms))
        }
        (End::Model(n), "audio") => {
            let rate = call.models.get(n)?.items.first().map_or(24_000, |item| item.rate.max(1)) as usize;
            Some(line.audio.as_ref().map_or(0, |(len, _)| len * 500 / rate))
        }
        (End::Caller | End::Bridge | End::Model(_), _) => None,
    }
}

/// The whole call, told.
pub(crate) fn tell(call: &CallTrace) -> Vec<Told> {
    let mut told = Vec::new();
    let mut runs: Vec<Run> = Vec::new();
    for line in call.lines(false) {
        let run = in_a_run(call, &line);
        let same =
            |run: &Run| (run.first.end, run.first.way, run.first.kind) == (line.end, line.way, line.kind);
        // What happened in a lane before stays before, and no run grows too long.
        let ends = |old: &Run| {
            old.first.end == line.end
                && (run.is_none() || same(old) && line.at.since(old.first.at) >= LONGEST_RUN_US)
        };
        told.extend(runs.extract_if(.., |old| ends(old)).map(Run::told));
        let Some(audio_ms) = run else {
            let Line { at, end, way, kind, what, .. } = line;
            told.push(Told { at, until: at, end, way, kind, what });
            continue;
        };
        match runs.iter_mut().find(|run| same(run)) {
            Some(run) => {
                run.last = line.at;
                run.count += 1;
                run.audio_ms += audio_ms;
            }
            None => runs.push(Run { last: line.at, first: line, count: 1, audio_ms }),
        }
    }
    told.extend(runs.drain(..).map(Run::told));
    told.sort_by_key(|told| told.at);
    told
}

fn row(told: &Told, marked: bool) -> String {
    let sign = if marked { "▸" } else { " " };
    let text = told.text();
    let mut row = format!("{sign}{:>10}  ", format!("{:+.3} s", told.at.0 as f64 / 1e6));
    let _infallible = match told.end {
        End::Caller => write!(row, "{text:<LANE$} │"),
        End::Model(0) => write!(row, "{:<LANE$} │ {text}", ""),
        End::Model(n) => write!(row, "{:<LANE$} │ [connection {n}] {text}", ""),
        End::Bridge => write!(row, "{:<LANE$} │", format!("    ── {text}")),
    };
    row.trim_end().to_owned()
}

/// The call as text.
pub fn timeline(trace: &Trace, call: usize) -> String {
    let Some(call) = trace.calls.get(call) else { return String::new() };
    let mut text = format!("{:>11}  {:<LANE$} │ model\n", "", "caller");
    for told in tell(call) {
        text.push_str(&row(&told, false));
        text.push('\n');
    }
    text
}

/// The part of a timeline around a violation.
pub fn around(trace: &Trace, violation: &Violation) -> String {
    const BEFORE: usize = 10;
    const AFTER: usize = 3;
    let Some(call) = trace.calls.get(violation.call) else { return String::new() };
    let told = tell(call);
    let here = told.partition_point(|told| told.at <= violation.at).saturating_sub(1);
    let mut text = String::new();
    for (index, told) in told.iter().enumerate() {
        if index + BEFORE >= here && index <= here + AFTER {
            text.push_str(&row(told, index == here));
            text.push('\n');
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

    fn trace() -> Trace {
        sim::play(Backend::Memory, &catalogue::find("barge_in/mid_answer")[0], Seed(1))
    }

    #[test]
    fn a_timeline_is_short_and_tells_what_matters() {
        let trace = trace();
        let text = timeline(&trace, 0);
        let lines = text.lines().count();
        assert!((20..200).contains(&lines), "{lines} lines:\n{text}");
        for word in
            ["clear", "truncate", "speech_started", "barge-in", "ms of audio in", "the call is over: stopped"]
        {
            assert!(text.contains(word), "no `{word}` in\n{text}");
        }
        let time = |line: &str| line.split_whitespace().next().unwrap().parse::<f64>().unwrap();
        let times: Vec<f64> = text.lines().skip(1).map(time).collect();
        assert!(times.is_sorted(), "{text}");
    }

    #[test]
    fn the_part_around_a_violation_marks_its_line() {
        let trace = trace();
        let at =
            trace.calls[0].bridge.iter().find(|(_, e)| format!("{e:?}").starts_with("BargeIn")).unwrap().0;
        let text =
            around(&trace, &Violation { oracle: "truncation_position", call: 0, at, what: String::new() });
        assert_eq!(text.lines().filter(|line| line.starts_with('▸')).count(), 1, "{text}");
        assert!((4..=14).contains(&text.lines().count()), "{text}");
    }
}
