//! Generated worlds: valid, the same every time, and none of them breaks a rule.

use scenarios::model::backend::Backend;
use scenarios::model::scenario::Scenario;
use scenarios::model::seed::Seed;
use scenarios::search::explore;
use scenarios::search::generate::{generate, generate_for};
use scenarios::sim;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const FIRST: u64 = 1;
const SEEDS: u64 = 200;
const SIMULATED: u64 = 20;
const PIPES: u64 = 100;

fn seeds(count: u64) -> impl Iterator<Item = Seed> {
    (FIRST..FIRST + count).map(Seed)
}

#[test]
fn every_seed_makes_a_scenario_that_survives_toml() {
    for seed in seeds(SEEDS) {
        let scenario = generate(seed);
        let text = explore::with_seed(&scenario, seed);
        let again = Scenario::from_toml(&scenario.name, &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(again, scenario, "{text}");
        assert_eq!(again.to_toml(), scenario.to_toml());
        assert_eq!(explore::seed_in(&text), Some(seed));
        assert!(scenario.purpose.ends_with('.'), "{}", scenario.purpose);
    }
}

#[test]
fn the_same_seed_makes_the_same_scenario_and_another_makes_another() {
    for seed in seeds(SEEDS) {
        assert_eq!(generate(seed), generate(seed));
        assert_ne!(generate(seed).to_toml(), generate(Seed(seed.0 + 1)).to_toml(), "{seed}");
    }
}

/// Plays seeds on as many threads as there are processors, and names those that break a rule.
fn failures(kind: Backend, count: u64) -> Vec<String> {
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= count {
                        return;
                    }
                    let outcome = explore::play(Seed(FIRST + nth), kind);
                    let told =
                        outcome.problems.iter().map(|(what, _)| format!("seed {}: {what}", outcome.seed));
                    failures.lock().expect("no thread panicked").extend(told);
                }
            });
        }
    });
    failures.into_inner().expect("no thread panicked")
}

#[test]
fn generated_worlds_break_no_rule_in_memory() {
    let failures = failures(Backend::Memory, SEEDS);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn generated_worlds_break_no_rule_in_the_simulated_network() {
    let failures = failures(Backend::Simulated, SIMULATED);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn generated_worlds_break_no_rule_over_pipes() {
    let failures = failures(Backend::Pipes, PIPES);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_same_world_played_twice_leaves_the_same_trace() {
    let hashes = |kind, count| -> Vec<String> {
        seeds(count).map(|seed| sim::play(kind, &generate_for(seed, kind), seed).hash()).collect()
    };
    for (kind, count) in [(Backend::Memory, 40), (Backend::Simulated, 4), (Backend::Pipes, 20)] {
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(|| hashes(kind, count));
            let other = scope.spawn(|| hashes(kind, count));
            (one.join().unwrap(), other.join().unwrap())
        });
        assert_eq!(one, other, "{kind}");
    }
}
