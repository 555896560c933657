//! Every oracle has been seen to fail, and none of them fails for nothing.

use scenarios::faults::injection::{self, SEED};
use scenarios::oracle;
use scenarios::oracle::milestones;
use scenarios::sim::{ScenarioRunner as _, memory::Memory};

#[test]
fn every_oracle_has_a_saboteur() {
    let all = injection::all();
    let idle: Vec<_> =
        oracle::ALL.iter().filter(|o| !all.iter().any(|s| s.oracle == o.name)).map(|o| o.name).collect();
    assert!(idle.is_empty(), "nobody tries to fool {idle:?}");
}

#[test]
fn every_saboteur_is_caught_by_its_oracle() {
    let free: Vec<_> = injection::all().into_iter().filter(|s| injection::run(s).is_empty()).collect();
    assert!(free.is_empty(), "not caught: {free:#?}");
}

#[test]
fn nobody_is_accused_on_unspoiled_ground() {
    let mut accused = Vec::new();
    for name in injection::grounds() {
        let scenario = injection::ground(name).expect("a ground has a scenario");
        let trace = Memory.play(&scenario, SEED);
        accused.extend(oracle::judge(&trace).into_iter().map(|violation| format!("{name}: {violation}")));
    }
    assert!(accused.is_empty(), "{accused:#?}");
}

#[test]
fn the_grounds_are_what_they_say() {
    let trace = Memory.play(&injection::ground("barge_in").expect("a ground"), SEED);
    assert!(milestones::reached(&trace).contains(&"barge-in with a clear"));
}
