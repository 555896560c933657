//! The conformance of a bridge, for the terminal, for browsers, for CI and for other programs.

use super::capabilities::Capabilities;
use super::verdict::{Judged, Measured, NOT_JUDGED, Verdict};
use crate::report;
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

/// Names the schema of the JSON file.
pub const SCHEMA: &str = "scn-conformance/1";

/// One scenario.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was not played, or not judged.
    pub why: String,
    /// The play that counts.
    pub judged: Option<Judged>,
}

impl Row {
    /// The folder of the catalogue it comes from.
    pub fn area(&self) -> &str {
        self.name.split_once('/').map_or("other", |(area, _)| area)
    }

    fn broken(&self) -> String {
        let broken = self.judged.iter().flat_map(|judged| judged.broken.iter().copied());
        broken.collect::<Vec<_>>().join(" ")
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Table {
    /// What was judged: its address.
    pub bridge: String,
    /// What it offers.
    pub offer: Capabilities,
    /// Rules that were not to be judged.
    pub except: BTreeSet<String>,
    /// Every scenario, in the order of the catalogue.
    pub rows: Vec<Row>,
}

/// What an area came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Played and judged.
    pub judged: usize,
    /// Of them passed.
    pub passed: usize,
    /// Not offered.
    pub not_offered: usize,
    /// Left out, or not judged.
    pub left_out: usize,
}

impl Score {
    /// Of what was judged, so many in a hundred passed.
    pub const fn percent(self) -> Option<usize> {
        (self.passed * 100).checked_div(self.judged)
    }

    fn said(self) -> String {
        self.percent().map_or_else(|| "-".to_owned(), |percent| format!("{percent} %"))
    }
}

impl Table {
    /// Nothing failed.
    pub fn passed(&self) -> bool {
        self.rows.iter().all(|row| row.verdict != Verdict::Failed)
    }

    /// Whatever was played, this machine was too busy to judge it.
    pub fn says_nothing(&self) -> bool {
        let is = |verdict: Verdict| self.rows.iter().any(|row| row.verdict == verdict);
        is(Verdict::NotJudged) && ![Verdict::Passed, Verdict::Failed, Verdict::Unsteady].into_iter().any(is)
    }

    /// The areas in the order of the catalogue.
    pub fn areas(&self) -> BTreeMap<&str, Score> {
        let mut areas: BTreeMap<&str, Score> = BTreeMap::new();
        for row in &self.rows {
            let score = areas.entry(row.area()).or_default();
            match row.verdict {
                Verdict::Passed => {
                    score.judged += 1;
                    score.passed += 1;
                }
                Verdict::Failed | Verdict::Unsteady => score.judged += 1,
                Verdict::NotOffered => score.not_offered += 1,
                Verdict::LeftOut | Verdict::NotJudged => score.left_out += 1,
            }
        }
        areas
    }

    fn all(&self) -> Score {
        self.areas().into_values().fold(Score::default(), |sum, area| Score {
            judged: sum.judged + area.judged,
            passed: sum.passed + area.passed,
            not_offered: sum.not_offered + area.not_offered,
            left_out: sum.left_out + area.left_out,
        })
    }

    /// For each rule, in how many plays it was broken.
    pub fn rules(&self) -> Vec<(&'static str, usize, usize)> {
        let judged: Vec<_> = self.rows.iter().filter_map(|row| row.judged.as_ref()).collect();
        super::verdict::rules(&self.except)
            .map(|oracle| {
                let broken = judged.iter().filter(|judged| judged.broken.contains(oracle.name)).count();
                (oracle.name, broken, judged.len())
            })
            .collect()
    }

    /// Why scenarios were not played, with how many.
    fn reasons(&self, verdict: Verdict) -> BTreeMap<&str, usize> {
        let mut reasons = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.verdict == verdict) {
            *reasons.entry(row.why.as_str()).or_insert(0) += 1;
        }
        reasons
    }

    /// What does no harm, with how many plays it was seen in; numbers in the sentences are left out.
    fn advice(&self) -> BTreeMap<String, usize> {
        let mut advice = BTreeMap::new();
        for judged in self.rows.iter().filter_map(|row| row.judged.as_ref()) {
            let said: BTreeSet<String> = judged
                .advice
                .iter()
                .map(|text| {
                    let rule = text.split(':').next().unwrap_or_default();
                    let why = text.rsplit_once(" (").map_or("", |(_, why)| why.trim_end_matches(')'));
                    format!("{rule}: {why}")
                })
                .collect();
            for said in said {
                *advice.entry(said).or_insert(0) += 1;
            }
        }
        advice
    }

    // ------------------------------------------------------------------------------------------- terminal

    /// For people at a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("\nconformance of {}\n\n{}\n", self.bridge, self.offer);
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let _infallible = writeln!(
            text,
            "{:<width$}  {:<11}  {:>8}  {:>8}  {:>7}  {:>7}  {:>7}  {:>8}  rules broken",
            "scenario", "verdict", "clear", "cut", "stale", "up", "down", "teardown"
        );
        let shown = |row: &&Row| !matches!(row.verdict, Verdict::LeftOut | Verdict::NotOffered);
        for row in self.rows.iter().filter(shown) {
            let figures = row.judged.as_ref().map(|judged| judged.measured.clone()).unwrap_or_default();
            let [clear, cut, stale, up, down, teardown] = cells(&figures);
            let last = if row.judged.is_some() { row.broken() } else { row.why.clone() };
            let line = format!(
                "{:<width$}  {:<11}  {clear:>8}  {cut:>8}  {stale:>7}  {up:>7}  {down:>7}  {teardown:>8}  {last}",
                row.name,
                row.verdict.word(),
            );
            let _infallible = writeln!(text, "{}", line.trim_end());
        }
        let _infallible = writeln!(
            text,
            "\n{:<15}  {:>6}  {:>6}  {:>11}  {:>8}",
            "area", "passed", "score", "not offered", "left out"
        );
        let sum = self.all();
        for (area, score) in self.areas().into_iter().chain([("all", sum)]) {
            let _infallible = writeln!(
                text,
                "{area:<15}  {:>6}  {:>6}  {:>11}  {:>8}",
                format!("{}/{}", score.passed, score.judged),
                score.said(),
                score.not_offered,
                score.left_out
            );
        }
        let broken: Vec<_> = self.rules().into_iter().filter(|(_, broken, _)| *broken > 0).collect();
        if !broken.is_empty() {
            text.push_str("\nrules broken, and in how many of the plays\n");
            for (name, broken, judged) in broken {
                let _infallible = writeln!(text, "  {name:<24}  {broken} of {judged}");
            }
        }
        for (what, count) in self.advice() {
            let _infallible = writeln!(text, "advice, in {count} plays: {what}");
        }
        for (verdict, what) in [(Verdict::NotOffered, "not offered"), (Verdict::LeftOut, "left out")] {
            for (why, count) in self.reasons(verdict) {
                let _infallible = writeln!(text, "{what}, {count} scenarios: {why}");
            }
        }
        for (name, why) in NOT_JUDGED {
            let _infallible = writeln!(text, "not judged: the rule `{name}` {why}");
        }
        text
    }

    /// Every failure, told with the messages around it.
    pub fn failures(&self) -> String {
        let mut text = String::new();
        let bad = |row: &&Row| matches!(row.verdict, Verdict::Failed | Verdict::Unsteady);
        for row in self.rows.iter().filter(bad) {
            if let Some(judged) = &row.judged {
                let _infallible = writeln!(text, "{}", report::failure(&judged.outcome));
            }
        }
        text
    }

    /// The last line.
    pub fn summary(&self) -> String {
        let count = |verdict| self.rows.iter().filter(|row| row.verdict == verdict).count();
        let mut text = String::new();
        for verdict in [
            Verdict::Passed,
            Verdict::Failed,
            Verdict::Unsteady,
            Verdict::NotJudged,
            Verdict::NotOffered,
            Verdict::LeftOut,
        ] {
            let n = count(verdict);
            if n > 0 || matches!(verdict, Verdict::Passed | Verdict::Failed) {
                let _infallible = write!(text, "{n} {}, ", verdict.word().to_lowercase());
            }
        }
        format!("{}\n", text.trim_end_matches(", "))
    }

    // ---------------------------------------------------------------------------------------------- files

    /// For other programs. `docs/dev/conformance.md` documents it.
    pub fn json(&self) -> String {
        let areas: serde_json::Map<String, Value> = self
            .areas()
            .into_iter()
            .map(|(area, score)| {
                let Score { judged, passed, not_offered, left_out } = score;
                let value = json!({
                    "judged": judged, "passed": passed, "score_percent": score.percent(),
                    "not_offered": not_offered, "left_out": left_out,
                });
                (area.to_owned(), value)
            })
            .collect();
        let offer: serde_json::Map<String, Value> =
            self.offer.rows().into_iter().map(|(what, value)| (what.to_owned(), json!(value))).collect();
        let rows: Vec<_> = self.rows.iter().map(row_json).collect();
        let rules: Vec<_> = self
            .rules()
            .into_iter()
            .map(|(name, broken, judged)| json!({"name": name, "broken": broken, "judged": judged}))
            .collect();
        let whole = json!({
            "schema": SCHEMA, "bridge": self.bridge, "passed": self.passed(), "offers": offer, "areas": areas,
            "rules": rules, "scenarios": rows,
        });
        format!("{whole:#}\n")
    }

    /// As CI systems read it: a suite for each area, and what was not played is skipped with its reason.
    ///
    /// # Errors
    /// When it cannot be put into XML.
    pub fn junit(&self) -> anyhow::Result<String> {
        let mut file = quick_junit::Report::new("scn conform");
        let mut suites: BTreeMap<&str, TestSuite> = BTreeMap::new();
        for row in &self.rows {
            let suite = suites.entry(row.area()).or_insert_with(|| TestSuite::new(row.area()));
            suite.add_test_case(case(row));
        }
        for suite in suites.into_values() {
            file.add_test_suite(suite);
        }
        Ok(file.to_string()?)
    }

    /// For a browser: the table, with a way to the calls.
    pub fn html(&self) -> String {
        let mut page = String::from(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>Conformance</title>\n<style>\n\
             body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }\n\
             table { border-collapse: collapse; margin: 1rem 0 2rem; }\n\
             th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #8884; vertical-align: top; }\n\
             td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }\n\
             .passed { color: #17803d; } .failed { color: #c0262d; font-weight: 600; } .unsteady { color: #b45309; }\n\
             .quiet { opacity: .7; }\n\
             @media (prefers-color-scheme: dark) { .passed { color: #4ade80; } .failed { color: #f87171; } \
             .unsteady { color: #fbbf24; } }\n</style>\n</head>\n<body>\n",
        );
        let _infallible = write!(
            page,
            "<h1>Conformance</h1>\n<p>{}: {} <a href=\"index.html\">The calls</a>, one by one.</p>\n",
            escaped(&self.bridge),
            escaped(&self.summary())
        );
        page.push_str("<h2>What it offers</h2>\n<table>\n");
        for (what, value) in self.offer.rows() {
            let _infallible =
                writeln!(page, "<tr><th scope=\"row\">{what}</th><td>{}</td></tr>", escaped(&value));
        }
        page.push_str(
            "</table>\n<h2>Areas</h2>\n<table>\n<tr><th>area</th><th class=\"n\">passed</th><th class=\"n\">score</th>\
             <th class=\"n\">not offered</th><th class=\"n\">left out</th></tr>\n",
        );
        for (area, score) in self.areas().into_iter().chain([("all", self.all())]) {
            let Score { judged, passed, not_offered, left_out } = score;
            let _infallible = writeln!(
                page,
                "<tr><td>{area}</td><td class=\"n\">{passed}/{judged}</td><td class=\"n\">{}</td>\
                 <td class=\"n\">{not_offered}</td><td class=\"n\">{left_out}</td></tr>",
                score.said()
            );
        }
        page.push_str(
            "</table>\n<h2>Rules</h2>\n<table>\n<tr><th>rule</th><th class=\"n\">broken in</th></tr>\n",
        );
        for (name, broken, judged) in self.rules() {
            let class = if broken == 0 { "passed" } else { "failed" };
            let _infallible =
                writeln!(page, "<tr><td>{name}</td><td class=\"n {class}\">{broken} of {judged}</td></tr>");
        }
        page.push_str(
            "</table>\n<h2>Scenarios</h2>\n<table>\n<tr><th>scenario</th><th>verdict</th><th class=\"n\">clear</th>\
             <th class=\"n\">cut</th><th class=\"n\">stale</th><th class=\"n\">up</th><th class=\"n\">down</th>\
             <th class=\"n\">teardown</th><th>what</th></tr>\n",
        );
        for row in &self.rows {
            let figures = row.judged.as_ref().map(|judged| judged.measured.clone()).unwrap_or_default();
            let class = match row.verdict {
                Verdict::Passed => "passed",
                Verdict::Failed => "failed",
                Verdict::Unsteady => "unsteady",
                Verdict::NotJudged | Verdict::NotOffered | Verdict::LeftOut => "quiet",
            };
            let problems = row.judged.iter().flat_map(|judged| &judged.outcome.problems);
            let mut what: Vec<String> = problems.map(|(what, _)| escaped(what)).collect();
            what.extend((!row.why.is_empty()).then(|| escaped(&row.why)));
            let _infallible = write!(
                page,
                "<tr><td>{}</td><td class=\"{class}\">{}</td>",
                escaped(&row.name),
                row.verdict.word()
            );
            for cell in cells(&figures) {
                let _infallible = write!(page, "<td class=\"n\">{cell}</td>");
            }
            let _infallible = writeln!(page, "<td>{}</td></tr>", what.join("<br>"));
        }
        page.push_str("</table>\n</body>\n</html>\n");
        page
    }
}

/// The figures as they stand in a table.
fn cells(figures: &Measured) -> [String; 6] {
    let ms = |value: Option<f64>| value.map(|ms| format!("{ms:.0} ms")).unwrap_or_default();
    let cut = figures.cut.map(|ms| format!("{ms:+.0} ms")).unwrap_or_default();
    let stale = if figures.clear.is_some() || figures.stale_bytes > 0 {
        format!("{} B", figures.stale_bytes)
    } else {
        String::new()
    };
    [ms(figures.clear), cut, stale, ms(figures.up), ms(figures.down), ms(figures.teardown)]
}

fn row_json(row: &Row) -> Value {
    let round = |ms: Option<f64>| ms.map(|ms| (ms * 10.0).round() / 10.0);
    let Some(judged) = &row.judged else {
        return json!({"name": row.name, "verdict": row.verdict.word().to_lowercase(), "why": row.why});
    };
    let Measured { clear, cut, stale_bytes, up, down, teardown } = &judged.measured;
    let problems: Vec<_> = judged.outcome.problems.iter().map(|(what, _)| what).collect();
    json!({
        "name": row.name,
        "verdict": row.verdict.word().to_lowercase(),
        "why": row.why,
        "broken": judged.broken,
        "problems": problems,
        "advice": judged.advice,
        "figures": {
            "clear_ms": round(*clear), "cut_error_ms": round(*cut), "stale_bytes": stale_bytes,
            "added_up_ms": round(*up), "added_down_ms": round(*down), "teardown_ms": round(*teardown),
        },
    })
}

fn case(row: &Row) -> TestCase {
    let mut status = match row.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Verdict::Unsteady | Verdict::NotJudged | Verdict::NotOffered | Verdict::LeftOut => {
            TestCaseStatus::skipped()
        }
    };
    let first = row.judged.iter().flat_map(|judged| &judged.outcome.problems).next();
    match row.verdict {
        Verdict::Passed => {}
        Verdict::Failed => {
            if let (Some((first, _)), Some(judged)) = (first, &row.judged) {
                status.set_type(first.split(':').next().unwrap_or_default()).set_message(first.clone());
                status.set_description(report::failure(&judged.outcome));
            }
        }
        Verdict::Unsteady | Verdict::NotJudged | Verdict::NotOffered | Verdict::LeftOut => {
            let why = first.map_or(row.why.as_str(), |(first, _)| first.as_str());
            status.set_message(format!("{}: {why}", row.verdict.word()));
        }
    }
    let mut case = TestCase::new(row.name.clone(), status);
    case.set_classname(format!("scn.conform.{}", row.area()));
    if let Some(judged) = &row.judged {
        case.set_time(Duration::from_millis(judged.outcome.call_ms));
    }
    case
}

fn escaped(text: &str) -> String {
    text.trim().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conform::verdict::{self, Measure};
    use crate::model::backend::Backend;
    use crate::model::catalogue;
    use crate::model::seed::Seed;
    use crate::sim;
    use crate::sim::attach::Played;

    fn table() -> Table {
        let trace = sim::play(Backend::Memory, &catalogue::find("barge_in/mid_answer")[0], Seed(1));
        let good = Played::undisturbed(trace);
        let bad = Played { notes: vec!["the bridge's process <ended>".into()], ..good.clone() };
        let judged = |played| verdict::judge(played, "barge_in/mid_answer", &Measure::default());
        let row = |name: &str, verdict, why: &str, judged| Row {
            name: name.into(),
            verdict,
            why: why.into(),
            judged,
        };
        Table {
            bridge: "ws://127.0.0.1:5050/media".into(),
            offer: Capabilities::default(),
            except: BTreeSet::new(),
            rows: vec![
                row("barge_in/mid_answer", Verdict::Passed, "", Some(judged(&good))),
                row("barge_in/twice", Verdict::Failed, "", Some(judged(&bad))),
                row("dtmf/one_key", Verdict::NotOffered, "keys", None),
                row("network/jitter", Verdict::LeftOut, "network", None),
            ],
        }
    }

    #[test]
    fn a_missing_feature_is_no_failure_and_a_failure_is_one() {
        let mut table = table();
        assert!(!table.passed());
        let areas = table.areas();
        assert_eq!((areas["barge_in"].percent(), areas["dtmf"].percent()), (Some(50), None));
        assert_eq!((areas["dtmf"].not_offered, areas["network"].left_out), (1, 1));
        assert_eq!(table.summary(), "1 passed, 1 failed, 1 not offered, 1 left out\n");
        table.rows.remove(1);
        assert!(table.passed());
        assert!(!table.says_nothing());
        table.rows[0].verdict = Verdict::NotJudged;
        assert!(table.says_nothing(), "what is not offered or left out says nothing either");
    }

    #[test]
    fn every_form_tells_the_same() {
        let table = table();
        let text = table.text();
        assert!(text.contains("barge_in/twice       FAILED"), "{text}");
        assert!(
            text.contains("not offered, 1 scenarios: keys")
                && text.contains("scenario_expectations     1 of 2"),
            "{text}"
        );
        let json: Value = serde_json::from_str(&table.json()).unwrap();
        assert_eq!((&json["schema"], &json["passed"]), (&json!(SCHEMA), &json!(false)));
        assert_eq!(json["scenarios"][0]["figures"]["stale_bytes"], 0);
        assert!(json["scenarios"][0]["figures"]["cut_error_ms"].is_number());
        let junit = table.junit().unwrap();
        assert!(junit.contains("tests=\"4\" skipped=\"2\" failures=\"1\""), "{junit}");
        let html = table.html();
        assert!(html.contains("process &lt;ended&gt;") && !html.contains("<ended>"), "{html}");
    }
}
