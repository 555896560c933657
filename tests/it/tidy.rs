//! The architecture, as a test: who may know whom, read from the source tree. Each fence says what it protects.

use std::fs;
use std::path::{Path, PathBuf};

/// Words that must not occur in files below a folder.
struct Fence {
    below: &'static str,
    words: &'static [&'static str],
    protects: &'static str,
}

const FENCES: &[Fence] = &[
    Fence {
        below: "bridge/src/call",
        words: &["tokio", "async ", ".await", "std::net", "::now()", "rand::", "std::thread"],
        protects: "the call is a value: feed it time and messages",
    },
    Fence {
        below: "bridge/src/audio",
        words: &["tokio", "async ", "::now()", "mul_add", ".sin()", ".cos()"],
        protects: "audio is arithmetic: the same bytes on every machine",
    },
    Fence {
        below: "bridge",
        words: &["turmoil", "golden::", "mocks::", "scenarios::"],
        protects: "production is not shaped by its tests",
    },
    Fence {
        below: "mocks/src",
        words: &["bridge::", "turmoil", "scenarios::"],
        protects: "two witnesses must not share a memory",
    },
    Fence {
        below: "golden",
        words: &["bridge::", "mocks::", "scenarios::", "tokio"],
        protects: "facts depend on nothing of ours",
    },
];

/// Which of our crates each crate may name in its manifest.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("bridge", &[]),
    ("mocks", &["golden"]),
    ("golden", &[]),
    ("scenarios", &["bridge", "mocks", "golden"]),
    ("tests", &["bridge", "mocks", "golden", "scenarios"]),
];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace root exists")
}

fn sources(below: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(below)
        .unwrap_or_else(|e| panic!("{}: {e}", below.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                sources(&path, endings, found);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

/// Shows every Rust source below a folder.
pub(crate) fn each_source(below: &Path, mut show: impl FnMut(&str)) {
    let mut files = Vec::new();
    sources(below, &[".rs"], &mut files);
    for file in files {
        show(&fs::read_to_string(&file).expect("a readable source"));
    }
}

#[test]
fn every_fence_stands() {
    let mut holes = Vec::new();
    for fence in FENCES {
        let mut files = Vec::new();
        sources(&root().join(fence.below), &[".rs"], &mut files);
        // A folder's module file stands beside it.
        let beside = root().join(format!("{}.rs", fence.below));
        files.extend(beside.exists().then_some(beside));
        assert!(!files.is_empty(), "the fence around {} guards nothing", fence.below);
        for file in files {
            let text = fs::read_to_string(&file).expect("a readable source");
            // Tests may anchor their time line on the real clock and compute sines.
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            if file.file_name().is_some_and(|name| name == "tests.rs") {
                continue;
            }
            for (number, line) in code.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for word in fence.words.iter().filter(|word| code.contains(**word)) {
                    let file = file.strip_prefix(root()).unwrap_or(&file).display();
                    holes.push(format!("{file}:{}: `{word}` ({})", number + 1, fence.protects));
                }
            }
        }
    }
    assert!(holes.is_empty(), "fences are down:\n{}", holes.join("\n"));
}

#[test]
fn crates_depend_only_on_whom_they_may_know() {
    let ours = ["bridge", "mocks", "golden", "scenarios", "tests"];
    for (member, allowed) in MAY_DEPEND_ON {
        let text = fs::read_to_string(root().join(member).join("Cargo.toml")).expect("a manifest");
        let manifest: toml::Table = text.parse().unwrap_or_else(|e| panic!("{member}/Cargo.toml: {e}"));
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(names) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            for name in names.keys().filter(|name| ours.contains(&name.as_str())) {
                assert!(allowed.contains(&name.as_str()), "{member} must not depend on {name} ({section})");
            }
            let knows_turmoil = names.contains_key("turmoil");
            assert!(!knows_turmoil || *member == "scenarios", "only scenarios may depend on turmoil");
        }
    }
}

#[test]
fn every_library_the_project_was_asked_to_use_does_some_work() {
    let used: [(&str, &[&str]); 9] = [
        ("tokio", &["tokio::"]),
        ("tokio-tungstenite", &["tokio_tungstenite::"]),
        ("turmoil", &["turmoil::"]),
        ("serde", &["serde::"]),
        ("serde_json", &["serde_json::"]),
        ("base64", &["base64::"]),
        ("hound", &["hound::"]),
        ("proptest", &["proptest"]),
        ("axum", &["axum::"]),
    ];
    let mut files = Vec::new();
    sources(&root(), &[".rs"], &mut files);
    let code: Vec<_> =
        files.iter().map(|file| fs::read_to_string(file).expect("a readable source")).collect();
    for (name, signs) in used {
        assert!(code.iter().any(|text| signs.iter().any(|sign| text.contains(sign))), "{name} is not used");
    }
}

/// Words of our own that had a name in the field, and that name. docs/dev/glossary.md has those we keep.
const BANNED: &[(&str, &str)] = &[
    ("CallerSight", "CallerObservation"),
    ("Clerk", "Worker"),
    ("Desk", "CallContext, or the state of a router"),
    ("Dice", "Rng"),
    ("Door", "StreamAuth"),
    ("Findings", "Violations"),
    ("Hazard", "FaultClass"),
    ("Hearing", "Attribution"),
    ("Law", "Companding"),
    ("LegWeather", "LegConditions"),
    ("Leaving", "Hangup"),
    ("ModelSight", "ModelObservation"),
    ("Papers", "InMemoryJournal"),
    ("Rooms", "Sessions"),
    ("Saboteur", "Fault"),
    ("Scribe", "Formatter"),
    ("Seat", "CallRegistration"),
    ("Showing", "StreamCredentials"),
    ("Sighting", "Observation"),
    ("StageKind", "Backend"),
    ("Terms", "Tolerance"),
    ("TurnAway", "Rejected"),
    ("clerk", "worker"),
    ("dice", "rng"),
    ("door", "authentication, or admission"),
    ("papers", "journals"),
    ("saboteur", "fault"),
    ("sightings", "observations"),
    ("stage", "backend"),
    ("stages", "backends"),
    ("zoo", "known bugs"),
];

/// Places at which a text has a banned word, by line.
fn banned_in(text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let lines = text.lines().enumerate();
    lines
        .flat_map(|(number, line)| {
            let words: Vec<&str> = line.split(|c| !word(c)).collect();
            let has = move |banned: &str| words.contains(&banned);
            BANNED
                .iter()
                .filter(move |(banned, _)| has(banned))
                .map(move |(old, new)| (number + 1, *old, *new))
        })
        .collect()
}

#[test]
fn words_with_a_name_in_the_field_are_not_used() {
    // They name the words of the release before.
    let exempt = [
        "tests/it/tidy.rs",
        "scenarios/src/cli/renamed.rs",
        "scenarios/src/model/scenario.rs",
        "CHANGELOG.md",
    ];
    let mut files = Vec::new();
    sources(&root(), &[".rs", ".md"], &mut files);
    let mut found = Vec::new();
    for file in files.iter().filter(|file| !exempt.iter().any(|exempt| file.ends_with(exempt))) {
        for (line, old, new) in banned_in(&fs::read_to_string(file).expect("a readable file")) {
            let file = file.strip_prefix(root()).unwrap_or(file).display();
            found.push(format!("{file}:{line}: write {new}, not {old}"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_banned_word_is_found_and_a_part_of_another_is_not() {
    let text = "struct Deskside;\n// at the door\nlet sightings_of = 1;";
    assert_eq!(banned_in(text), [(2, "door", "authentication, or admission")]);
}

#[test]
fn the_tree_speaks_of_the_project_alone() {
    let mut files = Vec::new();
    sources(&root(), &[".rs", ".toml", ".md", ".jsonl", ".sh", ".yml", ".yaml"], &mut files);
    let machine_paths = ["/wor".to_owned() + "k/", "../sha".to_owned() + "red", "/ro".to_owned() + "ot/"];
    let unfinished = ["todo".to_owned() + "!(", "unimple".to_owned() + "mented!(", "FIX".to_owned() + "ME"];
    for file in files {
        let text = fs::read_to_string(&file).expect("a readable file");
        for word in machine_paths.iter().chain(&unfinished) {
            assert!(!text.contains(word.as_str()), "{} contains `{word}`", file.display());
        }
    }
}
