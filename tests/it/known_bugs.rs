//! Bugs of the field are caught by the suite, by name, and found in generated worlds.

use scenarios::faults::known_bugs::{self, Bug};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Worlds tried when the recorded seed of a bug makes another world by now.
const SEEDS: u64 = 400;

/// What `complains` has to say about each bug, on as many threads as there are processors.
fn complaints(complains: impl Fn(&Bug) -> Option<String> + Sync) -> Vec<String> {
    let bugs = known_bugs::all();
    let next = AtomicUsize::new(0);
    let said = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    said.lock().expect("no thread panicked").extend(complains(bug));
                }
            });
        }
    });
    said.into_inner().expect("no thread panicked")
}

#[test]
fn every_bug_is_caught_by_its_oracle_in_its_scenario() {
    let free = complaints(|bug| match bug.caught_in_catalogue() {
        Ok(said) if said.is_empty() => Some(format!("{bug:?} is not caught")),
        Ok(_) => None,
        Err(why) => Some(why),
    });
    assert!(free.is_empty(), "{}", free.join("\n"));
}

#[test]
fn every_scenario_of_a_bug_is_passed_without_it() {
    let accused = complaints(|bug| match bug.home() {
        Ok(scenario) => {
            let trace =
                scenarios::sim::play(scenarios::model::backend::Backend::Memory, &scenario, known_bugs::SEED);
            let found = scenarios::oracle::judge(&trace);
            found.first().map(|violation| format!("{}: {violation}", bug.scenario))
        }
        Err(why) => Some(why),
    });
    assert!(accused.is_empty(), "{}", accused.join("\n"));
}

#[test]
fn the_table_shows_these_bugs() {
    let table: Vec<_> = scenarios::cli::bugs::recorded().expect("the table can be read");
    let shown: Vec<_> = table.iter().map(|row| [&*row.name, &*row.oracle, &*row.scenario]).collect();
    let bugs = known_bugs::all();
    let wanted: Vec<_> = bugs.iter().map(|bug| [bug.name, bug.oracle, bug.scenario]).collect();
    assert_eq!(shown, wanted, "write {} anew with `cargo scn bugs --write`", scenarios::cli::bugs::TABLE);
    assert!(table.iter().filter(|row| row.seed.is_some()).count() >= 30, "too few were found by seeds");
}

#[test]
fn every_bug_is_found_by_its_seed_or_soon_by_another() {
    let table = scenarios::cli::bugs::recorded().expect("the table can be read");
    let lost = complaints(|bug| {
        let seed = table.iter().find(|row| row.name == bug.name)?.seed?;
        let most = SEEDS.max(2 * seed);
        let found = bug.first_seed([seed]).or_else(|| bug.first_seed(1..=most));
        found.is_none().then(|| format!("{bug:?} was found by seed {seed} and is by none up to {most}"))
    });
    assert!(lost.is_empty(), "{}\nhunt anew with `cargo scn bugs --write`", lost.join("\n"));
}
