//! The document for strangers says what is there.

use super::tidy::root;
use scenarios::conform::document;
use std::fs;

#[test]
fn every_rule_and_every_scenario_is_in_the_document() {
    let text = fs::read_to_string(root().join(document::FILE)).expect("the document");
    let wanted = document::rewritten(&text).expect("a document with places for both lists");
    assert!(text == wanted, "write {} anew with `cargo scn list --oracles --write`", document::FILE);
}

#[test]
fn every_flag_of_conform_is_explained() {
    let text = fs::read_to_string(root().join(document::FILE)).expect("the document");
    for flag in [
        "--bridge",
        "--start-url",
        "--public-url",
        "--signature-token",
        "--serve-openai",
        "--ca",
        "--format",
        "--spawn",
        "--strict",
        "--skip-rule",
        "--jobs",
        "--max-call-seconds",
        "--report",
        "--openai-certificate",
    ] {
        assert!(text.contains(flag), "{flag} is not explained");
    }
}
