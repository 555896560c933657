//! Every oracle has been seen to fail, and none of them fails for nothing.

use scenarios::sabotage::{self, SEED};
use scenarios::stage::{Stage as _, memory::Memory};
use scenarios::{milestones, oracle};

#[test]
fn every_oracle_has_a_saboteur() {
    let all = sabotage::all();
    let idle: Vec<_> =
        oracle::ALL.iter().filter(|o| !all.iter().any(|s| s.oracle == o.name)).map(|o| o.name).collect();
    assert!(idle.is_empty(), "nobody tries to fool {idle:?}");
}

#[test]
fn every_saboteur_is_caught_by_its_oracle() {
    let free: Vec<_> = sabotage::all().into_iter().filter(|s| sabotage::run(s).is_empty()).collect();
    assert!(free.is_empty(), "not caught: {free:#?}");
}

#[test]
fn nobody_is_accused_on_unspoiled_ground() {
    let mut accused = Vec::new();
    for name in sabotage::grounds() {
        let scenario = sabotage::ground(name).expect("a ground has a scenario");
        let trace = Memory.play(&scenario, SEED);
        accused.extend(oracle::judge(&trace).into_iter().map(|violation| format!("{name}: {violation}")));
    }
    assert!(accused.is_empty(), "{accused:#?}");
}

#[test]
fn the_grounds_are_what_they_say() {
    let trace = Memory.play(&sabotage::ground("barge_in").expect("a ground"), SEED);
    assert!(milestones::reached(&trace).contains(&"barge-in with a clear"));
}
