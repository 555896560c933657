//! Every bug that was found and mended stays mended, on every backend.

use scenarios::model::backend::Backend;
use scenarios::model::scenario::Scenario;
use scenarios::oracle;
use scenarios::search::regressions;
use scenarios::sim;

fn play_all(kind: Backend) {
    let all = regressions::all().expect("the regressions can be read");
    assert!(all.len() >= 10, "only {} regressions are left", all.len());
    let mut violations = Vec::new();
    for kept in all.iter().filter(|kept| kept.scenario.backends.contains(&kind)) {
        let trace = sim::play(kind, &kept.scenario, kept.seed);
        let name = &kept.scenario.name;
        violations.extend(oracle::judge(&trace).into_iter().map(|v| format!("{name} on {kind}: {v}")));
    }
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

#[test]
fn no_mended_bug_is_back_in_memory() {
    play_all(Backend::Memory);
}

#[test]
fn no_mended_bug_is_back_in_the_simulated_network() {
    play_all(Backend::Simulated);
}

#[test]
fn no_mended_bug_is_back_over_pipes() {
    play_all(Backend::Pipes);
}

#[test]
fn each_says_what_must_hold_and_stays_small() {
    for kept in regressions::all().expect("the regressions can be read") {
        let scenario = &kept.scenario;
        assert!(scenario.purpose.ends_with('.'), "{}: the purpose is one sentence", scenario.name);
        assert!(scenarios::search::shrink::steps(scenario) <= 15, "{}: shrink it first", scenario.name);
        let again = Scenario::from_toml(&scenario.name, &scenario.to_toml()).expect("it reads back");
        assert_eq!(&again, scenario, "{} does not round-trip", scenario.name);
    }
}
