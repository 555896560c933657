//! Worlds drawn by proptest, wider than the generated ones: whatever happens, nothing panics, every call ends, and
//! what must hold everywhere holds.
//!
//! The same worlds every time, unless `PROPTEST_RNG_SEED` names others; `PROPTEST_CASES` plays more of them.

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseResult, TestError, TestRunner};
use scenarios::faults::known_bugs;
use scenarios::model::backend::Backend;
use scenarios::model::scenario::Scenario;
use scenarios::model::seed::Seed;
use scenarios::oracle::{self, Oracle};
use scenarios::search::shrink;
use scenarios::search::strategy;
use scenarios::sim;
use scenarios::sim::trace::Trace;
use std::fmt;

const SEED: Seed = Seed(1);

/// A scenario that a failure shows as the file it is.
#[derive(Clone)]
struct World(Scenario);

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a file for `cargo scn explain FILE.toml --backend memory --seed {SEED}`:\n{}",
            self.0.to_toml()
        )
    }
}

fn runner(cases: u32) -> TestRunner {
    let usual = ProptestConfig::default();
    let (rng_seed, cases) = match usual.rng_seed {
        RngSeed::Random => (RngSeed::Fixed(1), cases),
        RngSeed::Fixed(_) => (usual.rng_seed, usual.cases),
    };
    TestRunner::new(ProptestConfig { cases, rng_seed, failure_persistence: None, ..usual })
}

/// Plays `cases` worlds, or as many as `PROPTEST_CASES` says when `PROPTEST_RNG_SEED` is set.
fn every_world(cases: u32, holds: impl Fn(&Scenario) -> TestCaseResult) {
    let worlds = strategy::scenarios().prop_map(World);
    if let Err(failure) = runner(cases).run(&worlds, |world| holds(&world.0)) {
        panic!("{failure}");
    }
}

fn safety() -> impl Iterator<Item = &'static Oracle> {
    strategy::SAFETY
        .iter()
        .map(|name| oracle::named(name).unwrap_or_else(|| panic!("there is no oracle {name}")))
}

fn is_safe(trace: &Trace) -> TestCaseResult {
    prop_assert!(trace.panics.is_empty(), "{:?}", trace.panics);
    prop_assert!(!trace.cut, "the world was still going on at its limit");
    let found: Vec<_> =
        oracle::judging(trace, || safety().flat_map(|oracle| (oracle.check)(trace)).collect());
    prop_assert!(found.is_empty(), "{}", found[0]);
    Ok(())
}

#[test]
fn in_any_world_nothing_panics_every_call_ends_and_the_safety_oracles_are_content() {
    every_world(400, |scenario| is_safe(&sim::play(Backend::Memory, scenario, SEED)));
}

#[test]
fn any_world_survives_toml_and_plays_the_same_afterwards() {
    every_world(100, |scenario| {
        let text = scenario.to_toml();
        let again = Scenario::from_toml(&scenario.name, &text)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(&again, scenario);
        prop_assert_eq!(again.to_toml(), text);
        let hash = |scenario| sim::play(Backend::Memory, scenario, SEED).hash();
        prop_assert_eq!(hash(&again), hash(scenario));
        Ok(())
    });
}

#[test]
fn a_planted_bug_is_found_and_shrinks_to_a_small_call() {
    let bug = known_bugs::named("late_deltas_are_played").expect("the bug is among the known bugs");
    let innocent = |scenario: &Scenario| is_safe(&sim::play(Backend::Memory, scenario, SEED));
    let guilty = |scenario: &Scenario| is_safe(&bug.play(scenario, SEED));
    let worlds = strategy::scenarios().prop_map(World);
    let found = runner(2_000).run(&worlds, |world| match innocent(&world.0) {
        Ok(()) => guilty(&world.0),
        Err(_) => Ok(()),
    });
    let Err(TestError::Fail(why, small)) = found else { panic!("nothing objected to the bug: {found:?}") };
    assert!(why.message().starts_with("no_stale_audio"), "{why}");
    assert!(shrink::steps(&small.0) <= 10, "{} steps are left:\n{small:?}", shrink::steps(&small.0));
}
