//! What may differ between the mock and a server that keeps the contract, as data: `scenarios/contract/tolerances.toml`.
//!
//! Each entry has a reason, and the evidence there is for it. What no entry names has to be alike.

use super::difference::{Difference, What};
use crate::base::glob::fits;
use anyhow::Context as _;
use serde::Deserialize;

const TEXT: &str = include_str!("../../contract/tolerances.toml");

/// Everything that may differ.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerances {
    /// How the values of fields are compared; the first entry that fits counts.
    #[serde(default)]
    pub treat: Vec<Treat>,
    /// Events whose place among the others means nothing.
    #[serde(default)]
    pub floats: Vec<Floats>,
    /// Differences that are told and not held against the server.
    #[serde(default)]
    pub tolerate: Vec<Tolerate>,
    /// How long one event may follow another.
    #[serde(default)]
    pub timing: Vec<Timing>,
}

/// How the values of a field are compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Treat {
    /// The event; every one when absent. `*` stands for anything.
    #[serde(default = "any")]
    pub event: String,
    /// The path of the field, such as `response.output[].id`.
    pub field: String,
    /// How.
    pub like: Like,
    /// Why.
    pub reason: String,
    /// What shows it.
    pub evidence: String,
}

/// How two values of the same type are compared.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Like {
    /// They are equal.
    Same,
    /// Both are there; what is in them, and below them, is of no interest.
    Present,
    /// Both are of one type.
    AnyValue,
    /// Both texts are empty, or neither.
    Text,
    /// Both numbers are zero, or neither.
    Count,
    /// The numbers are no further apart than this.
    Within(f64),
}

/// An event whose place means nothing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floats {
    /// The event.
    pub event: String,
    /// Why.
    pub reason: String,
    /// What shows it.
    pub evidence: String,
}

/// A difference that is not held against a server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerate {
    /// Which kinds of difference.
    pub what: Vec<What>,
    /// In this session; in every one when absent.
    #[serde(default = "any")]
    pub session: String,
    /// The event, with the kind of its item if it has one.
    #[serde(default = "any")]
    pub event: String,
    /// The path of the field.
    #[serde(default = "any")]
    pub field: String,
    /// What the mock has there, as JSON.
    #[serde(default = "any")]
    pub expected: String,
    /// What the server has there, as JSON.
    #[serde(default = "any")]
    pub seen: String,
    /// Why.
    pub reason: String,
    /// What shows it.
    pub evidence: String,
}

/// How long one event may follow another: between the mock's time divided by `factor`, less `slack_ms`, and the mock's
/// time multiplied by it, and `slack_ms` more.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// What is measured, in words.
    pub name: String,
    /// The kind of measure.
    #[serde(default)]
    pub of: Of,
    /// The event it is measured from, of either end.
    #[serde(default)]
    pub from: String,
    /// The event of the server it is measured to.
    #[serde(default)]
    pub to: String,
    /// Only in these sessions.
    #[serde(default = "any")]
    pub session: String,
    /// See above.
    pub factor: f64,
    /// See above.
    pub slack_ms: f64,
    /// Why so much.
    pub reason: String,
    /// What shows it.
    pub evidence: String,
}

/// What is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    /// How long one event follows another.
    #[default]
    Gap,
    /// How long the audio of a delta plays.
    DeltaMs,
    /// How much audio comes together with the first delta of an item.
    BurstMs,
}

fn any() -> String {
    "*".to_owned()
}

impl Tolerances {
    /// Those of the program.
    ///
    /// # Errors
    /// When the file is none, which a test would have noticed.
    pub fn read() -> anyhow::Result<Self> {
        toml::from_str(TEXT).context("tolerances.toml")
    }

    /// How the values of this field are compared.
    pub fn like(&self, event: &str, field: &str) -> Like {
        let found = self.treat.iter().find(|treat| fits(&treat.event, event) && fits(&treat.field, field));
        found.map_or(Like::Same, |treat| treat.like.clone())
    }

    /// The place of this event means nothing.
    pub fn floats(&self, event: &str) -> bool {
        self.floats.iter().any(|floats| fits(&floats.event, event))
    }

    /// Why this difference is not held against the server, if it is not.
    pub fn excuse(&self, session: &str, difference: &Difference) -> Option<&Tolerate> {
        self.tolerate.iter().find(|one| {
            one.what.contains(&difference.what)
                && fits(&one.session, session)
                && fits(&one.event, &difference.event)
                && fits(&one.field, &difference.field)
                && fits(&one.expected, &difference.expected)
                && fits(&one.seen, &difference.seen)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tolerance_has_a_reason_and_evidence() {
        let all = Tolerances::read().unwrap();
        let told = all.treat.iter().map(|one| (&one.field, &one.reason, &one.evidence));
        let told = told.chain(all.floats.iter().map(|one| (&one.event, &one.reason, &one.evidence)));
        let told = told.chain(all.tolerate.iter().map(|one| (&one.event, &one.reason, &one.evidence)));
        let told = told.chain(all.timing.iter().map(|one| (&one.name, &one.reason, &one.evidence)));
        let mut count = 0;
        for (what, reason, evidence) in told {
            assert!(reason.len() > 10 && evidence.len() > 5, "{what}: {reason} / {evidence}");
            count += 1;
        }
        assert!(count > 20);
    }
}
