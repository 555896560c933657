//! Every scenario that was written down, by name. The files are part of the program.

use crate::base::glob;
use crate::model::scenario::{Scenario, ScenarioError};
use std::path::Path;

/// Name and text of every file, sorted by name.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/catalogue.rs"));

/// Every scenario, sorted by name.
///
/// # Panics
/// When a file of the catalogue cannot be read: the catalogue is part of the program, and [`check`] says what is
/// wrong without a panic.
pub fn all() -> Vec<Scenario> {
    check().unwrap_or_else(|error| panic!("the catalogue is broken: {error}"))
}

/// Every scenario, sorted by name.
///
/// # Errors
/// The first file that cannot be read, by name.
pub fn check() -> Result<Vec<Scenario>, ScenarioError> {
    FILES.iter().map(|(name, text)| Scenario::from_toml(name, text)).collect()
}

/// The scenarios a pattern names: the one of exactly this name, or else all whose name contains it. In a pattern
/// with `*`, that stands for anything, and the whole name must match.
///
/// # Panics
/// As [`all`].
pub fn find(pattern: &str) -> Vec<Scenario> {
    let all = all();
    if all.iter().any(|scenario| scenario.name == pattern) {
        return all.into_iter().filter(|scenario| scenario.name == pattern).collect();
    }
    all.into_iter().filter(|scenario| matches(pattern, &scenario.name)).collect()
}

/// Reads a scenario from a file; it is named after the file.
///
/// # Errors
/// When the file cannot be read, or is no scenario. The message names the file.
pub fn load(path: &Path) -> anyhow::Result<Scenario> {
    use anyhow::Context as _;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.with_extension("");
    let name =
        name.file_name().map_or_else(|| "unnamed".to_owned(), |name| name.to_string_lossy().into_owned());
    for (old, new) in Scenario::renamed_keys(&text) {
        let file = path.display();
        eprintln!("{file}: `{old}` is now `{new}`; the old word goes with the next release");
    }
    Scenario::from_toml(&name, &text).with_context(|| format!("{} is no scenario", path.display()))
}

/// A pattern without `*` is part of a name.
fn matches(pattern: &str, name: &str) -> bool {
    if pattern.contains('*') { glob::fits(pattern, name) } else { name.contains(pattern) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_scenario_with_a_purpose_and_a_name_of_its_own() {
        let all = check().unwrap();
        assert!(all.len() >= 3);
        let mut names: Vec<_> = all.iter().map(|scenario| scenario.name.as_str()).collect();
        assert!(names.is_sorted());
        names.dedup();
        assert_eq!(names.len(), all.len());
        for scenario in &all {
            assert!(
                scenario.purpose.trim().ends_with('.'),
                "{}: {:?} is no sentence",
                scenario.name,
                scenario.purpose
            );
        }
    }

    #[test]
    fn patterns_name_scenarios() {
        assert_eq!(find("barge_in/mid_answer").len(), 1);
        assert!(!find("greet").is_empty() && find("no such scenario").is_empty());
        for (pattern, name, found) in [
            ("barge_in/*", "barge_in/mid", true),
            ("barge_in/*", "a/barge_in/mid", false),
            ("*mid", "barge_in/mid", true),
            ("b*_*/m*d", "barge_in/mid", true),
            ("b*x*", "barge_in/mid", false),
            ("in/m", "barge_in/mid", true),
        ] {
            assert_eq!(matches(pattern, name), found, "{pattern} {name}");
        }
    }
}
