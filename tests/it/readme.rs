//! The README is true, and so is the CI: every `cargo`, `scn` and `bridge` command names something that exists.

use super::tidy::root;
use std::collections::BTreeSet;
use std::fs;

/// The fenced `sh` blocks of a Markdown file.
pub(crate) fn blocks(text: &str) -> Vec<String> {
    let shell = text.split("\n```sh\n").skip(1);
    shell.filter_map(|rest| rest.split_once("\n```").map(|(block, _)| block.to_owned())).collect()
}

/// The commands in fenced `sh` blocks of a Markdown file.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside && line.trim() == "```sh";
            continue;
        }
        if inside && !line.trim().is_empty() && !line.trim_start().starts_with('#') {
            found.push(line.split(" #").next().unwrap_or(line).trim().to_owned());
        }
    }
    found
}

#[test]
fn the_two_commands_are_there_and_ci_runs_both() {
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    let ci = fs::read_to_string(root().join(".ci/run")).expect("a CI script");
    let commands = commands(&readme);
    for command in ["cargo run --release -p scenarios -- run", "cargo test --workspace"] {
        assert!(commands.iter().any(|c| c == command), "`{command}` is not in the README");
        let in_ci = ci.lines().any(|line| line.replace(" --locked", "") == command);
        assert!(in_ci, "`{command}` is not run by .ci/run");
    }
}

#[test]
fn every_scn_command_in_the_documents_parses() {
    let mut checked = 0;
    for document in [
        "README.md",
        "docs/scenarios.md",
        "docs/seeds.md",
        "docs/report.md",
        "docs/journal.md",
        "docs/conformance.md",
    ] {
        let text = fs::read_to_string(root().join(document)).unwrap_or_else(|e| panic!("{document}: {e}"));
        for command in commands(&text) {
            let arguments = command
                .strip_prefix("cargo scn")
                .or_else(|| command.strip_prefix("cargo run --release -p scenarios --"));
            let Some(arguments) = arguments else { continue };
            let words: Vec<_> = std::iter::once("scn").chain(arguments.split_whitespace()).collect();
            scenarios::cli::check(&words).unwrap_or_else(|e| panic!("{document}: `{command}`: {e}"));
            checked += 1;
        }
    }
    assert!(checked >= 5, "the documents show too few commands to be checked ({checked})");
}

/// What the shell, or the CI, puts in place of these.
const STAND_INS: &[(&str, &str)] = &[
    ("${SEEDS_FROM:-$(git rev-parse HEAD)}", "3f9a2c1e5d7b8a90"),
    ("${FROM:-$fresh}", "0x5eed"),
    ("${{ matrix.stage }}", "pipes"),
    ("${{ matrix.shard }}", "1"),
    ("$((JOB_COMPLETION_INDEX + 1))", "1"),
    ("$SHARDS", "16"),
    ("$SEEDS", "3f9a2c1e5d7b8a90.."),
    ("$stage", "memory"),
    ("$found", "target/scn/1.toml"),
    ("$TIME", "50m"),
    ("$open", "1"),
    ("\"", ""),
];

#[test]
fn every_scn_command_of_ci_and_of_the_swarm_parses() {
    for (file, expected) in [(".ci/run", 8), (".github/workflows/nightly.yml", 2), ("docs/seeds.md", 1)] {
        let text = fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let mut text = text.replace("\\\n", " ");
        for (from, to) in STAND_INS {
            text = text.replace(from, to);
        }
        let mut checked = 0;
        // A comment is no command, and neither is the name of the program in a variable.
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#') && !line.contains("SCN="))
        {
            let starts = ["target/release/scn ", "target/debug/scn ", "target/sim/scn ", "- scn "];
            let Some(command) = starts.iter().find_map(|start| line.split_once(start)).map(|(_, rest)| rest)
            else {
                continue;
            };
            let words = command.split(['>', '|']).next().unwrap_or_default();
            let words: Vec<_> = std::iter::once("scn").chain(words.split_whitespace()).collect();
            scenarios::cli::check(&words).unwrap_or_else(|e| panic!("{file}: `{}`: {e}", words.join(" ")));
            checked += 1;
        }
        assert!(checked >= expected, "{file} has {checked} commands that could be checked, not {expected}");
    }
}

#[test]
fn files_named_in_the_map_exist() {
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    let mut checked = 0;
    for word in readme.split(['`', '(', ')']) {
        let looks_like_a_path = word.contains('/')
            && !word.contains([' ', '\n', ':', '<', '*', '{', '='])
            && ["bridge/", "mocks/", "scenarios/", "golden/", "tests/", "docs/", "deploy/"]
                .iter()
                .any(|crate_| word.starts_with(crate_));
        if looks_like_a_path {
            assert!(root().join(word).exists(), "README names {word}, which does not exist");
            checked += 1;
        }
    }
    assert!(checked >= 10, "the README's map names too few files to be checked ({checked})");
}

#[test]
fn every_test_that_the_list_of_threats_names_is_there() {
    let text = fs::read_to_string(root().join("docs/security.md")).expect("a list of threats");
    let mut tests = BTreeSet::new();
    for folder in ["bridge/src", "bridge/tests"] {
        super::tidy::each_source(&root().join(folder), |text| {
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            let named = lines.windows(2).filter(|pair| pair[0].starts_with("#[") && pair[0].contains("test"));
            let name = |line: &str| Some(line.split_once("fn ")?.1.split_once('(')?.0.to_owned());
            tests.extend(named.filter_map(|pair| name(pair[1])));
        });
    }
    let mut checked = 0;
    for row in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| threat")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "threat, what holds it, tests: {row}");
        let names: Vec<_> = cells[3].split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test for: {}", cells[1]);
        for name in names {
            let there = match name {
                path if path.contains('/') => root().join(path).exists(),
                target if root().join("tests/fuzz/fuzz_targets").join(format!("{target}.rs")).exists() => {
                    true
                }
                test => tests.contains(test),
            };
            assert!(there, "docs/security.md names {name}, which is not there");
            checked += 1;
        }
    }
    assert!(checked > 20, "the list names too few tests ({checked})");
}
