//! The folder a report is written into.

use super::runs::Report;
use super::{json, junit, page, wavs};
use anyhow::{Context as _, bail};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Bytes of audio that a page may hold, before they become text: six minutes of both ends. The rest stays in files
/// beside it. More would go unread and make the page slow to open.
const EMBEDDED_MAX: usize = 6_000_000;
/// The file that makes a folder ours.
const OURS: &str = "report.json";
/// The folder of the audio, within it.
const AUDIO: &str = "audio";

impl Report {
    /// As JUnit XML.
    ///
    /// # Errors
    /// When it cannot be put into XML.
    pub fn junit(&self) -> anyhow::Result<String> {
        junit::text(self)
    }

    /// As JSON.
    pub fn json(&self) -> String {
        json::text(self)
    }

    /// Writes everything, in place of what a report before has left there.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn write(mut self, folder: &Folder) -> anyhow::Result<PathBuf> {
        folder.clear()?;
        let audio = folder.0.join(AUDIO);
        fs::create_dir_all(&audio).with_context(|| format!("cannot make {}", audio.display()))?;
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.0.join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
        };
        let mut room = EMBEDDED_MAX;
        for (n, run) in self.runs_mut().iter_mut().enumerate() {
            let name = file_name(&run.outcome.scenario);
            let failed = !run.outcome.passed();
            for call in &mut run.view.calls {
                let embedded = failed && call.heard.audio.len() + call.given.audio.len() <= room;
                for (end, track) in [("caller", &mut call.heard), ("model", &mut call.given)] {
                    track.file =
                        format!("{AUDIO}/{n:04}-{name}-{}-{}-{end}.wav", run.outcome.backend, call.index);
                    track.embedded = embedded;
                    put(&track.file, &wavs::wav(&track.audio))?;
                    room -= if embedded { track.audio.len() } else { 0 };
                }
            }
        }
        put(OURS, json::text(&self).as_bytes())?;
        put("junit.xml", junit::text(&self)?.as_bytes())?;
        put("index.html", page::text(&self)?.as_bytes())?;
        Ok(folder.0.join("index.html"))
    }
}

/// A scenario's name as part of a file's name, on every system.
fn file_name(scenario: &str) -> String {
    const LONGEST: usize = 60;
    let stem = scenario.strip_suffix(".toml").unwrap_or(scenario).replace('/', "__");
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '_' };
    let name: String = stem.chars().map(plain).collect();
    // The end of a path says more than its beginning.
    name[name.len().saturating_sub(LONGEST)..].to_owned()
}

/// A folder that a report may be written into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// Takes a folder that does not exist, is empty, or holds a report: nothing else is ever written over.
    ///
    /// # Errors
    /// When it is something else, before anything has been played.
    pub fn take(path: &Path) -> anyhow::Result<Self> {
        let folder = Self(path.to_path_buf());
        let shown = path.display();
        let mut entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(folder),
            Err(_) if path.is_file() => bail!("{shown} is a file; --report takes a folder"),
            Err(error) => return Err(error).with_context(|| format!("cannot read the folder {shown}")),
        };
        if entries.next().is_some() && !folder.is_ours() {
            bail!(
                "{shown} holds something that is no report, and would be written over; name an empty folder, or one \
                 that does not exist"
            );
        }
        Ok(folder)
    }

    fn is_ours(&self) -> bool {
        let text = fs::read_to_string(self.0.join(OURS)).unwrap_or_default();
        let known = |file: serde_json::Value| {
            file["schema"].as_str().is_some_and(|schema| schema.starts_with("scn-report/"))
        };
        serde_json::from_str(&text).is_ok_and(known)
    }

    /// Removes the audio of the report before.
    fn clear(&self) -> anyhow::Result<()> {
        let audio = self.0.join(AUDIO);
        let Ok(entries) = fs::read_dir(&audio) else { return Ok(()) };
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", audio.display()))?.path();
            if path.extension().is_some_and(|ending| ending == "wav") {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::backend::Backend;
    use crate::model::scenario::Scenario;
    use crate::model::seed::Seed;
    use crate::report::Outcome;
    use crate::sim;
    use crate::sim::trace::Trace;
    use std::collections::BTreeMap;
    use tempfile::TempDir;

    /// A short call that is to end like this.
    pub(crate) fn outcome(name: &str, end: &str) -> (Trace, Outcome) {
        let text = format!(
            "purpose = \"A test.\"\n[[call]]\ncaller.steps = [{{ waits = 400 }}, \"hangs_up\"]\n[expect]\nend = \"{end}\""
        );
        let scenario = Scenario::from_toml(name, &text).unwrap();
        let trace = sim::play(Backend::Memory, &scenario, Seed(9));
        let outcome = Outcome::of(&trace, name, None);
        (trace, outcome)
    }

    /// One run that passed, one that did not.
    pub(crate) fn report() -> Report {
        let mut report = Report::new("scn run test");
        for (name, end) in [("test/good", "stopped"), ("test/bad", "drained")] {
            let (trace, outcome) = outcome(name, end);
            report.add(&trace, &outcome);
        }
        report
    }

    fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for below in [folder.to_path_buf(), folder.join(AUDIO)] {
            for entry in fs::read_dir(below).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = path.strip_prefix(folder).unwrap().display().to_string();
                    found.insert(name, fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    #[test]
    fn the_same_runs_give_the_same_bytes_wherever_they_are_written() {
        let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        for scratch in [&one, &other] {
            report().write(&Folder::take(scratch.path()).unwrap()).unwrap();
        }
        let (one, other) = (files(one.path()), files(other.path()));
        assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
        assert!(one.iter().all(|(name, bytes)| other[name] == *bytes));
        for name in ["index.html", "junit.xml", "report.json", "audio/0001-test__bad-memory-0-caller.wav"] {
            assert!(one.contains_key(name), "no {name} in {:?}", one.keys());
        }
    }

    #[test]
    fn processor_time_is_not_in_it() {
        let (trace, mut outcome) = outcome("test/bad", "drained");
        let told = |outcome: &Outcome| {
            let mut report = Report::new("scn run");
            report.add(&trace, outcome);
            (report.json(), report.junit().unwrap(), page::text(&report).unwrap())
        };
        let before = told(&outcome);
        outcome.cpu = Some(std::time::Duration::from_millis(1_234));
        assert_eq!(told(&outcome), before);
    }

    #[test]
    fn a_report_replaces_a_report_and_nothing_else() {
        let scratch = TempDir::new().unwrap();
        let folder = Folder::take(scratch.path()).unwrap();
        report().write(&folder).unwrap();
        let mut shorter = Report::new("scn run test/good");
        let (trace, outcome) = outcome("test/good", "stopped");
        shorter.add(&trace, &outcome);
        shorter.write(&Folder::take(scratch.path()).unwrap()).unwrap();
        let left: Vec<_> = files(scratch.path()).into_keys().filter(|name| name.ends_with(".wav")).collect();
        assert_eq!(left.len(), 2, "stale audio: {left:?}");

        fs::write(scratch.path().join(OURS), "{}").unwrap();
        let refused = Folder::take(scratch.path()).unwrap_err().to_string();
        assert!(refused.contains("no report") && refused.contains("empty folder"), "{refused}");
        let file = scratch.path().join("index.html");
        let refused = Folder::take(&file).unwrap_err().to_string();
        assert!(refused.contains("is a file"), "{refused}");
    }

    #[test]
    fn audio_is_embedded_of_failures_only() {
        let scratch = TempDir::new().unwrap();
        report().write(&Folder::take(scratch.path()).unwrap()).unwrap();
        let page = fs::read_to_string(scratch.path().join("index.html")).unwrap();
        assert!(page.contains(r#"id="wav-1-0-heard""#), "the failing call can be played from the page alone");
        assert!(!page.contains(r#"id="wav-0-0-heard""#), "the other is a file beside it");
    }

    #[test]
    fn names_of_files_are_plain_and_short() {
        assert_eq!(file_name("barge_in/mid_answer"), "barge_in__mid_answer");
        assert_eq!(file_name("target/scn/42.toml"), "target__scn__42");
        assert_eq!(file_name("../ö \"x\".toml"), "_______x_");
        assert_eq!(file_name(&"x".repeat(500)).len(), 60);
    }
}
