//! `docs/dev/field-bug-to-seed.md` is true: its commands are run, one after the other, with the programs that ship.

use super::readme::blocks;
use super::tidy::root;
use scenarios::faults::known_bugs;
use scenarios::model::backend::Backend;
use scenarios::oracle;
use scenarios::search::regressions;
use scenarios::search::shrink;
use scenarios::sim::play;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// The most steps that shrinking may leave.
const STEPS_MAX: usize = 10;
/// How long all of it may take, on however slow a machine, in tenths of a second.
const TENTHS_MAX: usize = 3_000;

#[test]
fn the_walk_from_a_bad_call_to_a_regression_can_be_walked() {
    let text = fs::read_to_string(root().join("docs/dev/field-bug-to-seed.md")).expect("the document");
    let programs = built();
    let scratch = TempDir::new().expect("a folder");
    let mut script = blocks(&text).join("\n");
    // Other tests of this machine may use the ports of the document.
    for (port, free) in [("9100", free_port()), ("8084", free_port())] {
        script = script.replace(port, &free.to_string());
    }
    let said = walk(&script, &programs, scratch.path());

    // What the document says came of it.
    let part = said.find("they part: ").expect("the replay with other settings parts from the journal");
    let same = said.find("it says what it said then").expect("the replay with the same ones does not");
    assert!(same < part, "{said}");
    assert!(said[part..].contains("  clears  "), "then it cleared:\n{said}");
    assert!(said.contains("got clear: "), "and Twilio's buffer was cleared:\n{said}");
    assert!(said.contains("clear_on_barge_in: a clear threw "), "the oracle objects to the bug:\n{said}");
    let page = fs::read_to_string(scratch.path().join("report/index.html")).expect("a page");
    assert!(page.contains("they part: "), "the page has then and now");
    let kept = regressions::load(&scratch.path().join("kept/protected_words.toml")).expect("it was kept");
    shows_the_bug(&kept, "what was kept");
}

#[test]
fn the_regression_that_the_walk_left_still_shows_its_bug() {
    let kept = root().join("scenarios/regressions/protected_words.toml");
    shows_the_bug(&regressions::load(&kept).expect("a regression"), "the regression");
}

fn shows_the_bug(kept: &regressions::Regression, what: &str) {
    let bug = known_bugs::named("interrupts_although_told_not_to").expect("a known bug");
    let (scenario, seed) = (&kept.scenario, kept.seed);
    let steps = shrink::steps(scenario);
    assert!(steps <= STEPS_MAX, "{what} has {steps} steps:\n{}", scenario.to_toml());
    let clear = oracle::named(bug.oracle).expect("its oracle");
    assert!(shrink::objects(clear, &bug.play(scenario, seed)), "{what} does not show the bug");
    assert_eq!(oracle::judge(&play(Backend::Memory, scenario, seed)), [], "{what}, today");
}

/// The folder of the programs, built as this test was.
pub(crate) fn built() -> PathBuf {
    let this = std::env::current_exe().expect("a test is a program");
    let folder = this.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned();
    let target = folder.parent().expect("target/PROFILE");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).args([
        "build",
        "--quiet",
        "--bins",
        "-p",
        "bridge",
        "-p",
        "mocks",
        "-p",
        "scenarios",
    ]);
    cargo.arg("--target-dir").arg(target);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().expect("cargo runs").success(), "the programs could not be built");
    folder
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Runs a script in a folder and returns what it printed. Fails when it does, or when it does not come to an end.
fn walk(script: &str, programs: &Path, folder: &Path) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let (out, err) = (folder.join("walk.out"), folder.join("walk.err"));
    let create = |path: &Path| Stdio::from(fs::File::create(path).expect("a file"));
    let script = format!("set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{script}");
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(&script).current_dir(folder).env("PATH", format!("{}:{path}", programs.display()));
    let shell = shell.stdin(Stdio::null()).stdout(create(&out)).stderr(create(&err));
    let ended = wait(shell.spawn().expect("bash"));
    let said = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let logs = || format!("{}\n{}\n{}", said(&out), said(&err), said(&folder.join("bridge.log")));
    assert_eq!(ended, Some(0), "the walk ended with {ended:?}:\n{}", logs());
    said(&out)
}

/// How a process ended; nothing when it had to be stopped.
fn wait(mut child: Child) -> Option<i32> {
    for _ in 0..TENTHS_MAX {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // The shell's trap takes the programs it started with it.
    let _stopped = Command::new("kill").arg(child.id().to_string()).status();
    let _reaped = child.wait();
    None
}
