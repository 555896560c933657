//! The timelines of chosen calls, as people read them, reviewed and frozen (`cargo insta review`).
//!
//! A change here is a change in what a call does or in how it is told. Verdicts do not show that: an oracle says
//! that nothing is wrong, a timeline says what happened.

use scenarios::model::backend::Backend;
use scenarios::model::catalogue;
use scenarios::model::seed::Seed;
use scenarios::oracle::explain;
use scenarios::sim;

/// One call for each thing the bridge does, in memory: exact to the microsecond and independent of a tick.
const CHOSEN: &[&str] = &[
    "greeting/plain",
    "turns/one",
    "barge_in/mid_answer",
    "barge_in/after_generation_ended",
    "dtmf/sequence_with_terminator",
    "tools/one_call",
    "model_failures/drops_mid_answer",
    "network/silence_left_out_after_speech",
];

#[test]
fn chosen_calls_go_as_they_went() {
    for name in CHOSEN {
        let scenario = catalogue::all()
            .into_iter()
            .find(|s| s.name == *name)
            .unwrap_or_else(|| panic!("{name} is not in the catalogue"));
        let trace = sim::play(Backend::Memory, &scenario, Seed(1));
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("../timelines");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_description(scenario.purpose.clone());
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name.replace("/", "__"), explain::timeline(&trace, 0)));
    }
}
