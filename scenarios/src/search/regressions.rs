//! Small scenarios of bugs that were found and mended: each is played for ever.

use crate::base::output::say;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::search::explore;
use anyhow::{Context as _, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// What to keep, and how to call it.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The shrunk scenario.
    file: PathBuf,
    /// What it is called from now on: small letters, digits and `_`.
    name: String,
    /// What must hold, in one sentence that ends in a full stop; the file's own when absent.
    #[arg(long)]
    purpose: Option<String>,
    /// Keep it in this folder instead of among the regressions of this tree.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A scenario that once failed.
#[derive(Clone, Debug)]
pub struct Regression {
    /// What is played.
    pub scenario: Scenario,
    /// With which seed.
    pub seed: Seed,
}

/// The folder of the files.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

/// Every regression, sorted by name.
///
/// # Errors
/// When the folder cannot be read or a file in it is no scenario. The message names it.
pub fn all() -> anyhow::Result<Vec<Regression>> {
    let folder = folder();
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            files.push(path);
        }
    }
    files.sort();
    files.iter().map(|path| load(path)).collect()
}

/// Reads one file; the seed is the one its first line names, or 1.
///
/// # Errors
/// When it cannot be read or is no scenario. The message names it.
pub fn load(path: &Path) -> anyhow::Result<Regression> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let scenario = Scenario::from_toml(&format!("regressions/{stem}"), &text)?;
    Ok(Regression { scenario, seed: explore::seed_in(&text).unwrap_or(Seed(1)) })
}

/// Puts a file into the folder under a name of its own.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    let Regression { mut scenario, seed } = load(&options.file)?;
    if let Some(purpose) = &options.purpose {
        scenario.purpose.clone_from(purpose);
    }
    if let Some(wrong) = refusal(&options.name, &scenario.purpose) {
        bail!("{wrong}");
    }
    let folder = options.dir.clone().unwrap_or_else(folder);
    let path = folder.join(format!("{}.toml", options.name));
    if path.exists() {
        bail!("{} exists already; choose another name", path.display());
    }
    explore::write(&path, &scenario, seed)?;
    say(&format!("kept as {}\n", path.display()));
    Ok(true)
}

/// Why this is not worth keeping as it is.
fn refusal(name: &str, purpose: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || !name.chars().all(fits) {
        Some(format!("`{name}` is no name: use small letters, digits and `_`"))
    } else if purpose.starts_with("A world ") {
        Some(
            "say with --purpose what must hold: the purpose of a generated scenario only lists its hazards"
                .into(),
        )
    } else if !purpose.ends_with('.') {
        Some(format!("the purpose is one sentence that ends in a full stop, not `{purpose}`"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_has_a_name_and_says_what_must_hold() {
        assert_eq!(refusal("late_mark", "Marks may be late."), None);
        for (name, purpose, word) in [
            ("Late mark", "Marks may be late.", "Late mark"),
            ("", "Marks may be late.", "no name"),
            ("late_mark", "A world full of outages.", "--purpose"),
            ("late_mark", "late marks", "late marks"),
        ] {
            assert!(refusal(name, purpose).unwrap().contains(word));
        }
    }
}
