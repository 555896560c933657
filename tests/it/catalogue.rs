//! Every scenario on every backend it names, judged by every oracle; every milestone reached.

use scenarios::model::backend::Backend;
use scenarios::model::catalogue;
use scenarios::model::seed::Seed;
use scenarios::oracle;
use scenarios::oracle::milestones;
use scenarios::sim;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Plays the whole catalogue on one backend, on as many threads as there are cores.
fn play_all(kind: Backend) {
    let scenarios: Vec<_> = catalogue::all().into_iter().filter(|s| s.backends.contains(&kind)).collect();
    assert!(scenarios.len() >= 40, "the catalogue has only {} scenarios for {kind:?}", scenarios.len());
    let next = AtomicUsize::new(0);
    let violations = Mutex::new(Vec::new());
    let reached = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let trace = sim::play(kind, scenario, Seed(1));
                    let found = oracle::judge(&trace).into_iter().map(|v| {
                        format!("{} on {kind:?}: {} at {}: {}", scenario.name, v.oracle, v.at, v.what)
                    });
                    violations.lock().expect("no thread panicked").extend(found);
                    reached.lock().expect("no thread panicked").extend(milestones::reached(&trace));
                }
            });
        }
    });
    let violations = violations.into_inner().expect("no thread panicked");
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
    let reached = reached.into_inner().expect("no thread panicked");
    let possible = milestones::possible(&[kind]);
    let missed: Vec<_> = possible.iter().filter(|name| !reached.contains(**name)).collect();
    assert!(missed.is_empty(), "milestones no scenario reaches: {missed:?}");
}

#[test]
fn every_scenario_passes_in_memory() {
    play_all(Backend::Memory);
}

#[test]
fn every_scenario_passes_in_the_simulated_network() {
    play_all(Backend::Simulated);
}

#[test]
fn every_scenario_passes_over_pipes() {
    play_all(Backend::Pipes);
}

#[test]
fn every_scenario_reaches_what_it_was_written_for() {
    for scenario in catalogue::all().iter().filter(|scenario| !scenario.milestones.is_empty()) {
        for kind in &scenario.backends {
            let reached = milestones::reached(&sim::play(*kind, scenario, Seed(1)));
            let missed: Vec<_> =
                scenario.milestones.iter().filter(|name| !reached.contains(&name.as_str())).collect();
            assert!(missed.is_empty(), "{} on {kind} does not reach {missed:?}", scenario.name);
        }
    }
}

#[test]
fn the_catalogue_is_well_formed() {
    let all = catalogue::all();
    let names: BTreeSet<_> = all.iter().map(|s| s.name.clone()).collect();
    assert_eq!(names.len(), all.len(), "two scenarios share a name");
    for scenario in &all {
        assert!(scenario.purpose.ends_with('.'), "{}: the purpose is one sentence", scenario.name);
        let again = scenarios::model::scenario::Scenario::from_toml(&scenario.name, &scenario.to_toml())
            .unwrap_or_else(|e| panic!("{}: what was written does not read back: {e}", scenario.name));
        assert_eq!(&again, scenario, "{} does not round-trip", scenario.name);
    }
}
