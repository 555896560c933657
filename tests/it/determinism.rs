//! Same seed, same bytes: twice, on parallel threads, in two processes.
//!
//! Without this no other failure means anything: a seed that gives another run tomorrow reproduces nothing.

use scenarios::model::backend::Backend;
use scenarios::model::catalogue;
use scenarios::model::scenario::Scenario;
use scenarios::model::seed::Seed;
use scenarios::sim;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const SEED: Seed = Seed(0x5eed);
/// Marks the lines of the other process among those of its test harness.
const MARK: &str = "hash of ";

/// Every run of the catalogue, in order.
fn plays() -> Vec<(Scenario, Backend)> {
    let each =
        |scenario: Scenario| scenario.backends.clone().into_iter().map(move |kind| (scenario.clone(), kind));
    catalogue::all().into_iter().flat_map(each).collect()
}

/// One line for each run: its name and its hash, made on as many threads as there are processors.
fn hashes() -> Vec<String> {
    let plays = plays();
    let next = AtomicUsize::new(0);
    let lines = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).max(2) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((scenario, kind)) = plays.get(index) else { return };
                    let hash = sim::play(*kind, scenario, SEED).hash();
                    lines
                        .lock()
                        .expect("no thread panicked")
                        .push((index, format!("{MARK}{} on {kind}: {hash}", scenario.name)));
                }
            });
        }
    });
    let mut lines = lines.into_inner().expect("no thread panicked");
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

#[track_caller]
fn assert_same(ours: &[String], theirs: &[String]) {
    let differ: Vec<_> = ours.iter().zip(theirs).filter(|(one, other)| one != other).collect();
    assert!(differ.is_empty(), "the same seed gave different bytes:\n{differ:#?}");
    assert_eq!(ours.len(), theirs.len());
    for kind in Backend::ALL {
        let mark = format!(" on {kind}: ");
        assert!(ours.iter().filter(|line| line.contains(&mark)).count() >= 40, "{kind} was played");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_parallel_threads() {
    // Two whole rounds at the same time, so that each run has different neighbours in each.
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(hashes);
        let other = scope.spawn(hashes);
        (one.join().unwrap(), other.join().unwrap())
    });
    assert_same(&one, &other);
}

#[test]
fn the_same_seed_gives_the_same_bytes_in_two_processes() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "determinism::hashes_of_this_process", "--ignored", "--nocapture"]);
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let theirs: Vec<_> = text.lines().filter(|line| line.starts_with(MARK)).map(str::to_owned).collect();
    assert_same(&hashes(), &theirs);
}

#[test]
#[ignore = "run by the test of two processes, in a process of its own"]
fn hashes_of_this_process() {
    println!();
    for line in hashes() {
        println!("{line}");
    }
}

#[test]
fn another_seed_gives_other_bytes() {
    let scenario = &catalogue::find("barge_in/mid_answer")[0];
    for kind in Backend::ALL {
        let hash = |seed| sim::play(kind, scenario, seed).hash();
        assert_ne!(hash(Seed(1)), hash(Seed(2)), "{kind}");
    }
}
