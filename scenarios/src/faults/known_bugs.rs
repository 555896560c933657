//! Known bugs: field bugs of other people's bridges, each planted around ours and caught by the suite.
//!
//! A bug is a [`Defect`](crate::sim::Defect): it stands between the bridge and both of its ends, sees what the bridge is told and what it
//! says, and spoils one thing the way a real bridge did; or it is a setting that is wrong behind the scenario's back.
//! Production code knows nothing of it. Each bug names the threads it was seen in, the scenario of the catalogue and
//! the oracle that catch it. [`hunt`] asks the harder question: would generated worlds have found it, after how many
//! seeds, and how small is the call that shows it?
//!
//! * `bug`, `interceptor`: what a bug is, and what it is made of.
//! * `interruption`, `responses`, `carrier`, `audio`: the bugs.

mod audio;
mod bug;
mod carrier;
mod interceptor;
mod interruption;
mod responses;

pub use bug::{Bug, RECORDING, SEED};

use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::search::generate::generate;
use crate::search::shrink;
use anyhow::Context as _;

/// Every bug, grouped by what it is about.
pub fn all() -> Vec<Bug> {
    let mut all = interruption::bugs();
    all.extend(responses::bugs());
    all.extend(carrier::bugs());
    all.extend(audio::bugs());
    all
}

/// The bug of this name.
pub fn named(name: &str) -> Option<Bug> {
    all().into_iter().find(|bug| bug.name == name)
}

/// The bug of this name, or which there are.
pub(crate) fn wanted(name: &str) -> anyhow::Result<Bug> {
    let names = || all().iter().map(|bug| bug.name).collect::<Vec<_>>().join(", ");
    named(name).with_context(|| format!("no bug is called `{name}`; there are {}", names()))
}

/// How a bug was found in generated worlds.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// The first seed that shows it; seeds are tried from 1, so it is also how many were needed.
    pub seed: Seed,
    /// Who objected.
    pub oracle: &'static str,
    /// Steps of the world the seed made.
    pub steps: usize,
    /// The same violation, made small.
    pub shrunk: Scenario,
}

/// Looks for a bug in generated worlds, seed after seed from 1 to `seeds_max`, and shrinks the first that shows it
/// in at most `plays` plays.
pub fn hunt(bug: &Bug, seeds_max: u64, plays: u32) -> Option<Hunt> {
    let (seed, oracle) = bug.first_seed(1..=seeds_max)?;
    let shrunk = bug.shrink(seed, oracle, plays).scenario;
    Some(Hunt { seed, oracle: oracle.name, steps: shrink::steps(&generate(seed)), shrunk })
}

#[cfg(test)]
mod tests {
    use super::bug::bug;
    use super::*;
    use crate::oracle;
    use crate::sim::ScenarioRunner as _;
    use crate::sim::memory::Memory;
    use std::collections::BTreeSet;

    #[test]
    fn every_bug_has_a_name_a_symptom_and_a_thread() {
        let all = all();
        let names: BTreeSet<_> = all.iter().map(|bug| bug.name).collect();
        assert_eq!(names.len(), all.len(), "two bugs share a name");
        assert!(all.len() >= 30, "{} bugs", all.len());
        for bug in all {
            assert!(bug.symptom.ends_with('.') && bug.symptom.len() > 30, "{bug:?}");
            assert!(
                !bug.seen.is_empty() && bug.seen.iter().all(|url| url.starts_with("https://")),
                "{bug:?}"
            );
            assert!(oracle::named(bug.oracle).is_some() || bug.oracle == RECORDING, "{bug:?}");
            assert!(bug.also.iter().all(|name| oracle::named(name).is_some()), "{bug:?}");
        }
    }

    #[test]
    fn a_world_without_a_bug_is_the_world() {
        let scenario = generate(Seed(7));
        let sound = bug("sound", "Nothing is wrong.");
        assert_eq!(sound.play(&scenario, Seed(7)).hash(), Memory.play(&scenario, Seed(7)).hash());
    }

    #[test]
    fn the_same_bug_in_the_same_world_leaves_the_same_trace() {
        for bug in all() {
            let hash = || bug.play(&generate(Seed(11)), Seed(11)).hash();
            assert_eq!(hash(), hash(), "{bug:?}");
        }
    }
}
