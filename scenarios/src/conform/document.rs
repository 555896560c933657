//! The lists in `docs/dev/conformance.md`: written from what is there, so that they stay true.

use super::capabilities::{Capabilities, Function};
use super::suite::{Demands, Fit, fit};
use crate::faults::known_bugs;
use crate::model::catalogue;
use crate::oracle;
use anyhow::{Context as _, ensure};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The file, below the root of the tree.
pub const FILE: &str = "docs/dev/conformance.md";
/// Places where a rule was seen broken that are named.
const SEEN_MAX: usize = 3;

/// The document with its lists written anew.
///
/// # Errors
/// When a list has no place in it.
pub fn rewritten(text: &str) -> anyhow::Result<String> {
    let text = replaced(text, "rules", &rules())?;
    replaced(&text, "scenarios", &scenarios())
}

/// Puts a list behind its marker, in place of what is there up to the next heading.
fn replaced(text: &str, name: &str, list: &str) -> anyhow::Result<String> {
    let marker = format!("<!-- {name} -->\n");
    let (before, after) =
        text.split_once(&marker).with_context(|| format!("{FILE} has no `{}`", marker.trim()))?;
    let rest = after.find("\n## ").map_or("", |at| &after[at + 1..]);
    ensure!(!rest.is_empty(), "{FILE}: nothing follows the list of {name}");
    Ok(format!("{before}{marker}\n{list}\n{rest}"))
}

/// Every rule, why it is one, and where it was seen broken.
fn rules() -> String {
    let bugs = known_bugs::all();
    let mut text = String::new();
    for oracle in oracle::ALL {
        let _infallible = writeln!(text, "* **{}**: {}", oracle.name, oracle.about);
        let seen: BTreeSet<&str> = bugs
            .iter()
            .filter(|bug| bug.oracle == oracle.name)
            .flat_map(|bug| bug.seen.iter().copied())
            .collect();
        if let Some((_, why)) = super::verdict::NOT_JUDGED.iter().find(|(name, _)| *name == oracle.name) {
            let _infallible = writeln!(text, "  Not held against foreign bridges: it {why}.");
        }
        if !seen.is_empty() {
            let links: Vec<_> = seen.iter().take(SEEN_MAX).map(|url| format!("<{url}>")).collect();
            let _infallible = writeln!(text, "  Seen broken: {}.", links.join(", "));
        }
    }
    text
}

/// Every scenario: whether it is played against foreign bridges, what it shows, and where that was seen.
fn scenarios() -> String {
    let offers = |functions: bool, answers: bool, interrupts: bool, format: &str, beta: bool| Capabilities {
        beta,
        formats: (format.to_owned(), format.to_owned()),
        greets: true,
        deaf_at_first: false,
        marks: true,
        keypad: true,
        functions: functions
            .then(|| Function { name: "lookup_order".into(), ..Function::default() })
            .into_iter()
            .collect(),
        answers_by_itself: answers,
        silence_ms: Some(500),
        interrupts_by_itself: interrupts,
        names_its_calls: true,
    };
    // Whatever one of these is played, some bridge may be played.
    let all = [
        offers(true, true, true, "audio/pcm", false),
        offers(true, true, true, "audio/pcmu", true),
        offers(true, true, true, "audio/pcma", true),
        offers(true, false, false, "audio/pcmu", false),
    ];
    let demands = Demands { longest_ms: u64::MAX, strict: false };
    let bugs = known_bugs::all();
    let mut text =
        String::from("| scenario | against foreign bridges | what it shows | seen |\n|---|---|---|---|\n");
    for scenario in catalogue::all() {
        let fits: Vec<_> = all.iter().map(|offer| fit(&scenario, offer, demands)).collect();
        let played = match fits.iter().find(|fit| matches!(fit, Fit::Play(_))).or(fits.first()) {
            Some(Fit::Play(_)) => "played".to_owned(),
            Some(Fit::NotOffered(what)) => format!("only with {what}"),
            Some(Fit::LeftOut(why)) => why.clone(),
            None => String::new(),
        };
        let seen =
            bugs.iter().filter(|bug| bug.scenario == scenario.name).flat_map(|bug| bug.seen.iter()).next();
        let seen = seen.map(|url| format!("[there]({url})")).unwrap_or_default();
        let _infallible = writeln!(text, "| {} | {played} | {} | {seen} |", scenario.name, scenario.purpose);
    }
    text
}
