//! The page: one HTML file that needs nothing but a browser.
//!
//! Style, script and data are in it. What comes from scenarios and models is data in `<script>` blocks that no browser
//! runs, written so that nothing in it can end the block; the script puts it on the page as text, never as markup.
//! The page's own policy names its style and script by digest and forbids everything else, the network included.
//! The list is read when the page opens, each run when it is looked at, so a long report opens as fast as a short one.

use super::runs::{Report, Run};
use super::{json, wavs};
use crate::oracle;
use crate::oracle::milestones;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const BODY: &str = include_str!("page/page.html");

/// The file.
pub(crate) fn text(report: &Report) -> anyhow::Result<String> {
    let (style, script) = (digest(STYLE), digest(SCRIPT));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src '{style}'; \
         script-src '{script}'; media-src 'self' file: data:; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Calls</title>\n\
         <style>{STYLE}</style>\n</head>\n{BODY}"
    );
    block(&mut page, "index", &index(report))?;
    for (n, run) in report.runs().iter().enumerate() {
        block(&mut page, &format!("run-{n}"), &told(run))?;
        for call in &run.view.calls {
            for (end, track) in [("heard", &call.heard), ("given", &call.given)] {
                if track.embedded {
                    let id = format!("wav-{n}-{}-{end}", call.index);
                    let audio = BASE64.encode(wavs::wav(&track.audio));
                    let _infallible =
                        writeln!(page, "<script type=\"text/plain\" id=\"{id}\">{audio}</script>");
                }
            }
        }
    }
    let _infallible = write!(page, "<script>{SCRIPT}</script>\n</body>\n</html>\n");
    Ok(page)
}

/// A source as a policy names it.
fn digest(source: &str) -> String {
    format!("sha256-{}", BASE64.encode(Sha256::digest(source)))
}

/// Data that nothing in it can get out of.
fn block(page: &mut String, id: &str, data: &impl Serialize) -> anyhow::Result<()> {
    let data = serde_json::to_string(data)?.replace('<', "\\u003c");
    let _infallible = writeln!(page, "<script type=\"application/json\" id=\"{id}\">{data}</script>");
    Ok(())
}

/// What the page shows before any run is looked at.
fn index(report: &Report) -> serde_json::Value {
    let runs: Vec<_> = report
        .runs()
        .iter()
        .map(|run| {
            let outcome = &run.outcome;
            json!({
                "name": outcome.scenario, "backend": outcome.backend.name(), "seed": outcome.seed.to_string(),
                "passed": outcome.passed(), "purpose": run.view.purpose, "ms": outcome.call_ms,
                "calls": run.view.calls.len(), "problems": outcome.problems.len(),
            })
        })
        .collect();
    let oracles: serde_json::Map<_, _> =
        oracle::ALL.iter().map(|oracle| (oracle.name.to_owned(), json!(oracle.about))).collect();
    json!({
        "command": report.command(), "backends": json::backends(report), "oracles": oracles, "runs": runs,
        "milestones": { "reached": report.reached().len(), "of": milestones::ALL.len() },
    })
}

/// Everything the page shows of one run.
fn told(run: &Run) -> serde_json::Value {
    let view = &run.view;
    json!({
        "problems": json::problems(run), "again": run.outcome.again(),
        "explains": run.outcome.explains(), "replayed": run.outcome.replayed.is_some(),
        "compared": run.outcome.compared, "budget_ms": view.budget_ms,
        "milestones": run.outcome.reached, "scenario": view.scenario, "network": view.network,
        "calls": view.calls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::folder::tests::{outcome, report};

    /// The blocks of a page: their attributes and contents.
    fn blocks(page: &str) -> Vec<(&str, &str)> {
        let opened = page.split("<script").skip(1);
        opened.map(|rest| rest.split("</script>").next().unwrap().split_once('>').unwrap()).collect()
    }

    #[test]
    fn nothing_a_caller_says_gets_out_of_the_data() {
        let evil = "</script><script>alert(1)</script><!-- <script> ]]> \u{2028} & \"quoted\"";
        let (mut trace, mut outcome) = outcome("test/bad", "drained");
        let mut report = Report::new(evil);
        outcome.scenario = evil.into();
        outcome.problems.push((evil.into(), evil.into()));
        trace.scenario = std::sync::Arc::new(crate::model::scenario::Scenario {
            purpose: evil.into(),
            ..(*trace.scenario).clone()
        });
        for (_, event) in &mut trace.calls[0].bridge {
            if let bridge::call::event::CallEvent::Ended { transcript, detail, .. } = event {
                *detail = evil.into();
                transcript.push(bridge::call::event::Line {
                    item: evil.into(),
                    place: 1,
                    speaker: bridge::call::event::Speaker::Agent,
                    text: evil.into(),
                    cut: false,
                });
            }
        }
        report.add(&trace, &outcome);
        let page = text(&report).unwrap();
        let innocent = text(&super::super::folder::tests::report()).unwrap();
        assert_eq!(blocks(&page).len(), blocks(&innocent).len() - 1, "one run less, and no block more");
        assert!(!page.contains("alert(1)</script>") && !page.contains("<!--"));
        let run = blocks(&page).into_iter().find(|(attributes, _)| attributes.contains("run-0")).unwrap().1;
        let run: serde_json::Value = serde_json::from_str(run).unwrap();
        let said = run["calls"][0]["transcript"].as_array().unwrap().last().unwrap();
        assert_eq!(said["text"], evil, "and it arrives as it was said");
        assert!(report.junit().unwrap().contains("&lt;script&gt;alert(1)"), "nor in XML");
    }

    #[test]
    fn the_page_needs_no_network_and_runs_its_own_script_only() {
        let page = text(&report()).unwrap();
        for outside in
            ["http:", "https:", "src=", "@import", "url(", "<link", "innerHTML", "insertAdjacentHTML"]
        {
            let place = page.find(outside).map(|at| &page[at.saturating_sub(40)..(at + 40).min(page.len())]);
            // The namespace of SVG is a name, not an address, and a pattern of the page itself is no other file.
            let page = page.replace("http://www.w3.org/2000/svg", "").replace("url(#", "");
            assert!(!page.contains(outside), "{place:?}");
        }
        let scripts = blocks(&page);
        let (_, script) = scripts.iter().find(|(attributes, _)| attributes.is_empty()).unwrap();
        assert!(page.contains(&digest(script)), "the policy names the script");
        assert_eq!(scripts.iter().filter(|(attributes, _)| !attributes.contains("type=")).count(), 1);
    }
}
