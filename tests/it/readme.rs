//! The README is true, and so is the CI: every `cargo`, `scn` and `bridge` command names something that exists.

use super::tidy::root;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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
    for document in documents() {
        let text = fs::read_to_string(root().join(&document)).expect("a readable document");
        let document = document.display();
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
    ("${{ matrix.backend }}", "pipes"),
    ("${{ matrix.shard }}", "1"),
    ("$((JOB_COMPLETION_INDEX + 1))", "1"),
    ("$SHARDS", "16"),
    ("$SEEDS", "3f9a2c1e5d7b8a90.."),
    ("$backend", "memory"),
    ("$found", "target/scn/1.toml"),
    ("$TIME", "50m"),
    ("$open", "1"),
    ("\"", ""),
];

#[test]
fn every_scn_command_of_ci_and_of_the_swarm_parses() {
    for (file, expected) in [(".ci/run", 8), (".github/workflows/nightly.yml", 2), ("docs/dev/seeds.md", 1)] {
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

/// Every document of the project, by its path from the workspace root.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["", "docs", "docs/guide", "docs/dev", "golden"] {
        let entries = fs::read_dir(root().join(folder)).expect("a folder of documents");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        found.extend(names.map(|name| Path::new(folder).join(name)));
    }
    found.retain(|path| path.extension().is_some_and(|ending| ending == "md"));
    found.sort();
    found
}

#[test]
fn files_named_in_the_documents_exist() {
    let folders = ["bridge/", "mocks/", "scenarios/", "golden/", "tests/", "docs/", "deploy/", ".ci/"];
    let (mut checked, mut lost) = (0, Vec::new());
    for document in documents() {
        // What the changelog names may have been moved or deleted since.
        if document.ends_with("CHANGELOG.md") {
            continue;
        }
        let text = fs::read_to_string(root().join(&document)).expect("a readable document");
        for word in text.split('`').skip(1).step_by(2) {
            let is_path = folders.iter().any(|folder| word.starts_with(folder))
                && !word.contains([' ', '\n', ':', '<', '*', '{', '=', '|', '$']);
            // `TARGET` and the like stand for a name of the reader's.
            let stands_for_another =
                word.split('/').any(|part| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase()));
            if is_path && !stands_for_another {
                checked += 1;
                if !root().join(word).exists() {
                    lost.push(format!("{} names {word}", document.display()));
                }
            }
        }
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let folder = document.parent().unwrap_or(Path::new(""));
            checked += 1;
            if !root().join(folder).join(target).exists() {
                lost.push(format!("{} links to {target}", document.display()));
            }
        }
    }
    assert!(lost.is_empty(), "these files do not exist:\n{}", lost.join("\n"));
    assert!(checked >= 60, "the documents name too few files to be checked ({checked})");
}

#[test]
fn every_test_that_the_list_of_threats_names_is_there() {
    let text = fs::read_to_string(root().join("docs/guide/security.md")).expect("a list of threats");
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
    let is_head = |line: &str| line.starts_with("| threat") || line.starts_with("| what |");
    for row in text.lines().filter(|line| line.starts_with("| ") && !is_head(line)) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        // Threat, what holds it, tests; or what is bounded, of one, in all, beyond it, tests.
        assert!([5, 7].contains(&cells.len()), "a cell is missing, or one too many: {row}");
        let names: Vec<_> = cells[cells.len() - 2].split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test for: {}", cells[1]);
        for name in names {
            let there = match name {
                path if path.contains('/') => root().join(path).exists(),
                target if root().join("tests/fuzz/fuzz_targets").join(format!("{target}.rs")).exists() => {
                    true
                }
                test => tests.contains(test),
            };
            assert!(there, "docs/guide/security.md names {name}, which is not there");
            checked += 1;
        }
    }
    assert!(checked > 20, "the list names too few tests ({checked})");
}
