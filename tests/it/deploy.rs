//! What is given to operators names what exists: variables, flags, ports and paths.

use crate::tidy::root;
use std::collections::BTreeSet;
use std::fs;

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

const FILES: [&str; 8] = [
    "deploy/Dockerfile",
    "deploy/compose.yaml",
    "deploy/env.example",
    "deploy/prometheus.yaml",
    "deploy/bridge.service",
    "deploy/kubernetes/bridge.yaml",
    "deploy/kubernetes/autoscaler.yaml",
    "docs/guide/deploy.md",
];

fn variables(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_uppercase() && c != '_')
        .filter(|word| ["BRIDGE_", "TWILIO_", "OPENAI_"].iter().any(|prefix| word.starts_with(prefix)))
        .collect()
}

#[test]
fn every_variable_that_deploy_sets_is_read_by_the_bridge() {
    let config = read("bridge/src/app/config.rs");
    let known: BTreeSet<_> = variables(&config).into_iter().collect();
    for file in FILES {
        for name in variables(&read(file)) {
            let name = name.strip_suffix("_FILE").unwrap_or(name);
            assert!(known.contains(name), "{file} sets {name}, which nothing reads");
        }
    }
}

#[test]
fn ports_and_paths_are_those_the_bridge_has() {
    let config = bridge::app::config::Config::default();
    let ports = [config.listen, config.live.listen, config.metrics.listen].map(|at| at.port().to_string());
    let serve = read("bridge/src/server/serve.rs");
    for file in ["deploy/Dockerfile", "deploy/compose.yaml", "deploy/kubernetes/bridge.yaml"] {
        let text = read(file);
        assert!(ports.iter().all(|port| text.contains(port.as_str())), "{file} names the ports {ports:?}");
    }
    let manifest = read("deploy/kubernetes/bridge.yaml");
    let mut asked = manifest.match_indices("path: /").map(|(at, _)| {
        let path = &manifest[at + 6..];
        &path[..path.find([',', ' ', '\n']).unwrap_or(path.len())]
    });
    assert!(asked.all(|path| serve.contains(&format!("\"{path}\""))), "a probe asks for what is served");
}

#[test]
fn every_supervisor_waits_longer_than_the_bridge_drains() {
    let drain_s = bridge::app::config::Config::default().drain_ms / 1_000;
    // The grace behind the drain time, and the sleep before the signal.
    let least = drain_s + 90 + 10;
    let manifest = read("deploy/kubernetes/bridge.yaml");
    let grace = manifest.split("terminationGracePeriodSeconds: ").nth(1).expect("a grace period");
    let grace: u64 = grace.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number");
    assert!(grace >= least, "{grace} s");
    assert!(read("deploy/bridge.service").contains("TimeoutStopSec=12min") && 12 * 60 >= least);
    assert!(read("deploy/compose.yaml").contains("stop_grace_period: 12m"));
}
