//! One JSON file for other programs. `docs/dev/report.md` documents its schema; a change of meaning is a new version.

use super::runs::{Report, Run};
use crate::oracle;
use crate::oracle::milestones;
use serde_json::{Value, json};

/// Names the schema, in every file.
pub(crate) const SCHEMA: &str = "scn-report/2";

/// The file.
pub(crate) fn text(report: &Report) -> String {
    let mut text = format!("{:#}", whole(report));
    text.push('\n');
    text
}

fn whole(report: &Report) -> Value {
    let runs: Vec<_> = report.runs().iter().map(run).collect();
    json!({
        "schema": SCHEMA,
        "command": report.command(),
        "passed": report.passed(),
        "backends": backends(report),
        "milestones": {
            "reached": report.reached().iter().collect::<Vec<_>>(),
            "missed": milestones::ALL.iter().filter(|name| !report.reached().contains(*name)).collect::<Vec<_>>(),
        },
        "oracles": oracle::ALL.iter().map(|oracle| json!({"name": oracle.name, "about": oracle.about})).collect::<Vec<_>>(),
        "runs": runs,
    })
}

/// What each backend did, in all.
pub(crate) fn backends(report: &Report) -> Vec<Value> {
    let mut backends = Vec::new();
    for (backend, total) in report.backends() {
        let figures: Vec<_> = total
            .spreads()
            .into_iter()
            .map(|(what, spread)| {
                let super::outcome::Spread { count, least, middle, p95, most } = spread;
                let round = |ms: f64| (ms * 1e3).round() / 1e3;
                json!({
                    "what": what.trim_start(), "part": what.starts_with(' '), "count": count, "least_ms": round(least),
                    "median_ms": round(middle), "p95_ms": round(p95), "most_ms": round(most),
                })
            })
            .collect();
        backends.push(json!({
            "backend": backend.name(),
            "runs": total.runs,
            "passed": total.passed,
            "failed": total.failed(),
            "simulated_ms": total.call_ms,
            "stale_bytes": total.stale_bytes(),
            "figures": figures,
        }));
    }
    backends
}

/// Every problem of a run; `call` and `at_ms` say where, when the problem has a place.
pub(crate) fn problems(run: &Run) -> Vec<Value> {
    let placed = run.outcome.violations.iter().map(|violation| {
        json!({
            "oracle": violation.oracle, "what": violation.what, "call": violation.call,
            "at_ms": violation.at.0 as f64 / 1e3,
        })
    });
    let said: Vec<_> = run.outcome.violations.iter().map(super::outcome::said).collect();
    let others = run.outcome.problems.iter().filter(|(what, _)| !said.contains(what));
    placed.chain(others.map(|(what, _)| json!({"what": what}))).collect()
}

fn run(run: &Run) -> Value {
    let outcome = &run.outcome;
    let calls: Vec<_> = run
        .view
        .calls
        .iter()
        .map(|call| {
            let waits: Vec<_> = call
                .waits
                .iter()
                .map(|wait| {
                    let parts: serde_json::Map<_, _> =
                        wait.parts.iter().map(|(name, ms)| ((*name).to_owned(), json!(ms))).collect();
                    json!({"what": wait.what, "at_ms": wait.from, "total_ms": wait.total, "parts_ms": parts})
                })
                .collect();
            json!({
                "call": call.index, "from_ms": call.from, "to_ms": call.to, "end": call.end, "waits": waits,
                "audio": {"caller": file(&call.heard.file), "model": file(&call.given.file)},
            })
        })
        .collect();
    let mut told = json!({
        "scenario": outcome.scenario,
        "backend": outcome.backend.name(),
        "seed": outcome.seed.to_string(),
        "passed": outcome.passed(),
        "simulated_ms": outcome.call_ms,
        "again": outcome.again(),
        "problems": problems(run),
        "milestones": outcome.reached,
        "calls": calls,
    });
    if !outcome.compared.is_empty() {
        told["compared"] = outcome.compared.clone().into();
    }
    told
}

/// The audio beside a report; nothing when only this file was asked for.
fn file(name: &str) -> Option<&str> {
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use crate::report::folder::tests::report;
    use serde_json::Value;

    #[test]
    fn programs_find_verdicts_places_and_waits() {
        let file: Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!(file["schema"], "scn-report/2");
        assert_eq!((&file["passed"], &file["backends"][0]["failed"]), (&Value::from(false), &Value::from(1)));
        let bad = &file["runs"][1];
        assert_eq!((&bad["scenario"], &bad["seed"]), (&Value::from("test/bad"), &Value::from("9")));
        assert_eq!(bad["problems"][0]["oracle"], "scenario_expectations");
        assert!(bad["problems"][0]["at_ms"].is_number());
        assert_eq!(bad["calls"][0]["end"], "stopped");
        assert!(bad["again"].as_str().unwrap().starts_with("cargo scn run test/bad"));
        assert!(bad["calls"][0]["audio"]["caller"].is_null(), "no file was written");
    }
}
