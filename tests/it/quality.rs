//! The audio path meets its goals, and the document that shows them shows what they are.

use super::tidy::root;
use scenarios::quality;
use std::fs;

#[test]
fn every_goal_of_the_audio_path_is_met_and_documented() {
    let goals = quality::measure();
    let table = quality::table(&goals);
    assert!(quality::all_met(&goals), "\n{table}");
    let document = fs::read_to_string(root().join("docs/audio.md")).expect("docs/audio.md");
    assert!(
        document.contains(&table),
        "docs/audio.md shows other figures than `cargo scn quality`:\n{table}"
    );
}
