//! What a comparison came to: for people, and as JSON.

use super::compare::{Comparison, Measure};
use super::difference::Difference;
use super::recording::Recording;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What came of one session.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The session.
    pub session: String,
    /// What the server said; absent when it was not reached.
    pub seen: Option<Recording>,
    /// How it stands to the mock; absent when nothing could be compared.
    pub comparison: Option<Comparison>,
    /// Why it could not be played, or what else is to be known.
    pub note: Option<String>,
}

impl Outcome {
    /// It could be compared.
    pub const fn ran(&self) -> bool {
        self.comparison.is_some()
    }

    /// It could be compared, and nothing is held against the server.
    pub fn is_same(&self) -> bool {
        self.comparison.as_ref().is_some_and(|comparison| comparison.differences.is_empty())
    }

    fn verdict(&self) -> &'static str {
        match &self.comparison {
            None => "not run",
            Some(comparison) if comparison.differences.is_empty() => "same",
            Some(_) => "DIFFERS",
        }
    }
}

/// The whole run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was compared with the mock.
    pub server: String,
    /// The model.
    pub model: String,
    /// Every session, in order.
    pub outcomes: Vec<Outcome>,
}

/// Differences that are the same but for the session and the moment.
type Group<'a> = BTreeMap<(&'a Difference, Option<&'a str>), Vec<(&'a str, usize)>>;

impl Report {
    /// Every session was compared, and nothing is held against the server.
    pub fn is_same(&self) -> bool {
        self.outcomes.iter().all(Outcome::is_same)
    }

    /// Something is held against the server.
    pub fn differs(&self) -> bool {
        self.outcomes.iter().any(|outcome| outcome.ran() && !outcome.is_same())
    }

    /// What was sent and received, as the recordings have it: ms of audio each way, and tokens.
    pub fn used(&self) -> (u64, u64, u64) {
        self.outcomes.iter().filter_map(|outcome| outcome.seen.as_ref()).fold((0, 0, 0), |sum, seen| {
            let (up, down) = seen.audio_ms();
            (sum.0 + up, sum.1 + down, sum.2 + seen.tokens())
        })
    }

    /// As a table for people. With `all`, what is tolerated is told, too.
    pub fn text(&self, all: bool) -> String {
        let mut out = format!("the mock of this build against {}, {}\n\n", self.server, self.model);
        let width = self.outcomes.iter().map(|one| one.session.len()).max().unwrap_or(0).max(7);
        let _infallible = writeln!(out, "{:<width$}  events  verdict", "session");
        for one in &self.outcomes {
            let mut more = Vec::new();
            let mut events = String::new();
            if let Some(comparison) = &one.comparison {
                events = comparison.compared.to_string();
                let counts = [
                    (comparison.differences.len(), "different"),
                    (comparison.tolerated.len(), "tolerated"),
                    (comparison.not_compared, "not compared"),
                ];
                more.extend(counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
            }
            more.extend(one.note.clone());
            let line =
                format!("{:<width$}  {events:>6}  {:<7}  {}", one.session, one.verdict(), more.join(", "));
            let _infallible = writeln!(out, "{}", line.trim_end());
        }
        out.push_str(&table("what differs", &self.groups(false), None));
        if all {
            out.push_str(&table("what is tolerated", &self.groups(true), Some("because")));
        }
        out.push_str(&self.times());
        let (up, down, tokens) = self.used();
        let told = if tokens > 0 { format!("; {tokens} tokens, says the server") } else { String::new() };
        let _infallible = writeln!(
            out,
            "\n{:.1} s of caller audio sent, {:.1} s of model audio received{told}",
            up as f64 / 1e3,
            down as f64 / 1e3
        );
        out
    }

    fn groups(&self, tolerated: bool) -> Vec<(Difference, Option<String>, String)> {
        let mut stripped = Vec::new();
        for one in &self.outcomes {
            let Some(comparison) = &one.comparison else { continue };
            let found: Vec<_> = if tolerated {
                comparison.tolerated.iter().map(|(one, why)| (one, Some(why.as_str()))).collect()
            } else {
                comparison.differences.iter().map(|one| (one, None)).collect()
            };
            for (difference, why) in found {
                stripped.push((Difference { place: String::new(), ..difference.clone() }, why, &one.session));
            }
        }
        let mut groups = Group::new();
        for (difference, why, session) in &stripped {
            let sessions = groups.entry((difference, *why)).or_default();
            match sessions.iter_mut().find(|(name, _)| name == session) {
                Some((_, count)) => *count += 1,
                None => sessions.push((session, 1)),
            }
        }
        groups
            .into_iter()
            .map(|((difference, why), sessions)| {
                let told = |(name, count): (&str, usize)| match count {
                    1 => name.to_owned(),
                    count => format!("{name} x{count}"),
                };
                let sessions: Vec<_> = sessions.into_iter().map(told).collect();
                (difference.clone(), why.map(str::to_owned), sessions.join(", "))
            })
            .collect()
    }

    /// The times of all sessions: the middle, the least and the most.
    fn times(&self) -> String {
        let mut by_name: Vec<(&str, Vec<&Measure>)> = Vec::new();
        let comparisons = self.outcomes.iter().filter_map(|one| one.comparison.as_ref());
        for measure in comparisons.flat_map(|comparison| &comparison.measures) {
            match by_name.iter_mut().find(|(name, _)| *name == measure.name) {
                Some((_, all)) => all.push(measure),
                None => by_name.push((&measure.name, vec![measure])),
            }
        }
        if by_name.is_empty() {
            return String::new();
        }
        let width = by_name.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut out = format!("\n{:<width$}  {:>14}  {:>14}  allowed, ms\n", "times, ms", "mock", "server");
        for (name, all) in by_name {
            let ours = all.iter().map(|one| one.expected_ms).collect();
            let theirs = all.iter().filter_map(|one| one.seen_ms).collect();
            let low = all.iter().map(|one| one.band_ms.0).fold(f64::INFINITY, f64::min);
            let high = all.iter().map(|one| one.band_ms.1).fold(0.0, f64::max);
            let _infallible = writeln!(
                out,
                "{name:<width$}  {:>14}  {:>14}  {low:.0} to {high:.0}",
                span(ours),
                span(theirs)
            );
        }
        out
    }

    /// As JSON.
    pub fn json(&self) -> String {
        let (up, down, tokens) = self.used();
        let sessions: Vec<_> = self.outcomes.iter().map(outcome_json).collect();
        let verdict = match (self.differs(), self.is_same()) {
            (true, _) => "differs",
            (false, true) => "same",
            (false, false) => "not run",
        };
        let report = json!({
            "verdict": verdict,
            "server": self.server,
            "model": self.model,
            "used": {"caller_audio_ms": up, "model_audio_ms": down, "tokens": tokens},
            "sessions": sessions,
        });
        serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
    }
}

fn outcome_json(one: &Outcome) -> Value {
    let mut told = json!({"session": one.session, "verdict": one.verdict().to_lowercase(), "note": one.note});
    if let (Some(comparison), Some(fields)) = (&one.comparison, told.as_object_mut()) {
        let tolerated = comparison.tolerated.iter().map(|(difference, reason)| {
            let mut told = json!(difference);
            told["reason"] = json!(reason);
            told
        });
        fields.insert("differences".to_owned(), json!(comparison.differences));
        fields.insert("tolerated".to_owned(), tolerated.collect());
        fields.insert("times".to_owned(), json!(comparison.measures));
        fields.insert("events".to_owned(), json!(comparison.compared));
        fields.insert("not_compared".to_owned(), json!(comparison.not_compared));
    }
    told
}

fn span(mut all: Vec<f64>) -> String {
    all.sort_by(f64::total_cmp);
    match (all.first(), all.last()) {
        (Some(low), Some(high)) if (high - low).abs() < 0.5 => format!("{low:.0}"),
        (Some(low), Some(high)) => format!("{low:.0} to {high:.0}"),
        _ => "none".to_owned(),
    }
}

/// Differences, one under the other, each with what both sides have.
fn table(title: &str, rows: &[(Difference, Option<String>, String)], because: Option<&str>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut out = format!("\n{title}\n");
    for (difference, why, sessions) in rows {
        let Difference { what, event, field, expected, seen, .. } = difference;
        let field = if field.is_empty() { String::new() } else { format!(": {field}") };
        let _infallible = writeln!(out, "  {what:<13}  {event}{field}    [{sessions}]");
        let _infallible = writeln!(out, "  {:<13}  mock {expected}; server {seen}", "");
        if let (Some(because), Some(why)) = (because, why) {
            let _infallible = writeln!(out, "  {:<13}  {because} {why}", "");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::difference::What;
    use super::*;

    fn difference(place: &str) -> Difference {
        Difference {
            what: What::MissingField,
            event: "response.created".to_owned(),
            field: "response.metadata".to_owned(),
            expected: "null".to_owned(),
            seen: "absent".to_owned(),
            place: place.to_owned(),
        }
    }

    fn report(differences: Vec<Difference>) -> Report {
        let comparison = Comparison {
            differences,
            tolerated: vec![(difference("+9 s"), "of a reason".to_owned())],
            measures: vec![Measure {
                name: "a to b".to_owned(),
                expected_ms: 20.0,
                seen_ms: Some(31.2),
                band_ms: (0.0, 100.0),
            }],
            ..Comparison::default()
        };
        let outcome = |session: &str| Outcome {
            session: session.to_owned(),
            seen: None,
            comparison: Some(comparison.clone()),
            note: None,
        };
        let not_run = Outcome { comparison: None, note: Some("no way".to_owned()), ..outcome("cancel") };
        let outcomes = vec![outcome("greeting"), outcome("turn"), not_run];
        Report { server: "wss://example.com".to_owned(), model: "m".to_owned(), outcomes }
    }

    #[test]
    fn what_differs_alike_in_several_sessions_is_told_once() {
        let report = report(vec![difference("+1 s"), difference("+2 s")]);
        let text = report.text(false);
        assert_eq!(text.matches("response.metadata").count(), 1, "{text}");
        assert!(text.contains("[greeting x2, turn x2]") && text.contains("no way"), "{text}");
        assert!(!text.contains("of a reason"), "{text}");
        assert!(report.text(true).contains("because of a reason"));
        assert!(report.differs() && !report.is_same());
    }

    #[test]
    fn json_has_every_difference_and_every_time() {
        let told: Value = serde_json::from_str(&report(vec![difference("+1 s")]).json()).unwrap();
        assert_eq!(told["verdict"], "differs");
        assert_eq!(told["sessions"][0]["differences"][0]["what"], "missing_field");
        assert_eq!(told["sessions"][1]["times"][0]["seen_ms"], 31.2);
        assert_eq!(told["sessions"][2]["verdict"], "not run");
        let told: Value = serde_json::from_str(&report(Vec::new()).json()).unwrap();
        assert_eq!(told["verdict"], "not run", "one session says nothing");
    }
}
