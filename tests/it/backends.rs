//! What one backend says of a scenario, the others say, too: three engines that agree are hard to fool.

use scenarios::model::backend::Backend;
use scenarios::model::catalogue;
use scenarios::model::network::DirectionConditions;
use scenarios::model::scenario::Scenario;
use scenarios::model::seed::Seed;
use scenarios::oracle;
use scenarios::search::generate::generate;
use scenarios::sim;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Generated worlds that are compared beside the catalogue.
const GENERATED: u64 = 40;

/// How the calls ended, and which oracles object.
fn said(kind: Backend, scenario: &Scenario, seed: Seed) -> (Vec<Option<String>>, BTreeSet<&'static str>) {
    let trace = sim::play(kind, scenario, seed);
    (trace.ends(), oracle::judge(&trace).into_iter().map(|violation| violation.oracle).collect())
}

/// Plays each world on both backends where both can play it, and tells where they differ.
fn differences(one: Backend, other: Backend, worlds: &[(Scenario, Seed)]) -> Vec<String> {
    let can = |scenario: &Scenario| scenario.backends.contains(&one) && scenario.backends.contains(&other);
    let worlds: Vec<_> = worlds.iter().filter(|(scenario, _)| can(scenario)).cloned().collect();
    assert!(worlds.len() >= 40, "only {} worlds are for {one} and {other}", worlds.len());
    compared(&worlds, |scenario, seed| (said(one, scenario, seed), said(other, scenario, seed)))
}

/// What two plays of each world say, where that differs.
fn compared<T: PartialEq + std::fmt::Debug>(
    worlds: &[(Scenario, Seed)],
    say: impl Fn(&Scenario, Seed) -> (T, T) + Sync,
) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some((scenario, seed)) = worlds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (ours, theirs) = say(scenario, *seed);
                    if ours != theirs {
                        let told = format!("{} {seed}: {ours:?}, but {theirs:?}", scenario.name);
                        found.lock().expect("no thread panicked").push(told);
                    }
                }
            });
        }
    });
    found.into_inner().expect("no thread panicked")
}

fn the_catalogue() -> Vec<(Scenario, Seed)> {
    catalogue::all().into_iter().map(|scenario| (scenario, Seed(1))).collect()
}

fn generated() -> Vec<(Scenario, Seed)> {
    (1..=GENERATED).map(Seed).map(|seed| (generate(seed), seed)).collect()
}

/// The same world, with every message in pieces and every fifth read and write tried twice.
fn in_pieces(scenario: &Scenario) -> Scenario {
    let mut scenario = scenario.clone();
    scenario.backends = vec![Backend::Pipes];
    for leg in [&mut scenario.network.caller, &mut scenario.network.model] {
        for way in [&mut leg.uplink, &mut leg.downlink] {
            *way = DirectionConditions { pieces_bytes: Some(500), hesitates_percent: 20, ..way.clone() };
        }
    }
    scenario
}

#[test]
fn pieces_and_hesitations_change_no_end_and_no_verdict() {
    let mut worlds = the_catalogue();
    // A slow reader takes a hundredth of a second's bytes at a time, and a full connection counts messages: both
    // mean less when there are more and smaller ones.
    worlds.retain(|(scenario, _)| scenario.world.tcp_capacity >= 1_000);
    worlds.extend(generated());
    let kind = Backend::Pipes;
    let found = compared(&worlds, |scenario, seed| {
        (said(kind, scenario, seed), said(kind, &in_pieces(scenario), seed))
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn pipes_and_the_simulated_network_agree_on_the_catalogue() {
    let found = differences(Backend::Pipes, Backend::Simulated, &the_catalogue());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn pipes_and_memory_agree_on_the_catalogue() {
    let found = differences(Backend::Pipes, Backend::Memory, &the_catalogue());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn pipes_and_the_simulated_network_agree_on_generated_worlds() {
    let found = differences(Backend::Pipes, Backend::Simulated, &generated());
    assert!(found.is_empty(), "{}", found.join("\n"));
}
