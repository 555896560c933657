//! `scn shrink`.

use crate::base::output::say;
use crate::faults::known_bugs;
use crate::model::backend::Backend;
use crate::model::catalogue;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::oracle::{self, Oracle};
use crate::search::explore;
use crate::search::generate::generate_for;
use crate::search::shrink::{PLAYS_MAX, objects, shrink, steps};
use crate::sim;
use crate::sim::choice::{OneBackend, backend_of};
use anyhow::{Context as _, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// What to shrink, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A file ending in .toml, or the seed of a generated scenario.
    what: String,
    /// Where it fails; on the first backend it names when absent.
    #[arg(long, value_enum)]
    backend: Option<OneBackend>,
    /// With which seed a file is played; the one its first line names, or 1, when absent.
    #[arg(long)]
    seed: Option<Seed>,
    /// The oracle whose objection is kept; the first that objects when absent.
    #[arg(long)]
    oracle: Option<String>,
    /// Plays it with this known bug in the bridge, in memory: a name of `scn bugs`.
    #[arg(long)]
    bug: Option<String>,
    /// Plays it may take.
    #[arg(long, value_name = "PLAYS", default_value_t = PLAYS_MAX)]
    budget: u32,
    /// Where the result is written; `target/scn/NAME-small.toml` when absent.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Shrinks what the command line names; true when there was something to shrink.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    let (scenario, seed) = chosen(options)?;
    let bug = options.bug.as_deref().map(known_bugs::wanted).transpose()?;
    let asked = if bug.is_some() { Some(Backend::Memory) } else { options.backend.map(Backend::from) };
    let asked = backend_of(&scenario, asked)?;
    let play = |kind, scenario: &Scenario, seed| match &bug {
        Some(bug) => bug.play(scenario, seed),
        None => sim::play(kind, scenario, seed),
    };
    // What is objected to without the bug as well is not the bug's doing.
    let innocent = |oracle: &Oracle, scenario: &Scenario, seed| {
        bug.is_none() || !objects(oracle, &sim::play(Backend::Memory, scenario, seed))
    };
    let objecting = |kind| -> Vec<&'static Oracle> {
        let trace = play(kind, &scenario, seed);
        let objecting = oracle::ALL.iter().filter(|oracle| objects(oracle, &trace));
        objecting.filter(|oracle| innocent(oracle, &scenario, seed)).collect()
    };
    let found = objecting(asked);
    let oracle = match &options.oracle {
        Some(name) => {
            let known = oracle::named(name).with_context(|| format!("there is no oracle `{name}`"))?;
            found.into_iter().find(|oracle| oracle.name == known.name)
        }
        None => found.into_iter().next(),
    };
    let Some(oracle) = oracle else {
        bail!(
            "{} with seed {seed} on backend {asked}: no oracle objects, so nothing can be shrunk",
            scenario.name
        );
    };
    // The fast backend will do when it shows the same.
    let fast = scenario.backends.contains(&Backend::Memory)
        && objecting(Backend::Memory).iter().any(|one| one.name == oracle.name);
    let kind = if fast { Backend::Memory } else { asked };
    let fails = |seed| {
        let (play, innocent) = (&play, &innocent);
        move |scenario: &Scenario| {
            objects(oracle, &play(kind, scenario, seed)) && innocent(oracle, scenario, seed)
        }
    };
    let mut shrunk = shrink(&scenario, options.budget, &fails(seed));
    // The seed most files are played with is one thing less to remember.
    let seed = if fails(Seed(1))(&shrunk.scenario) { Seed(1) } else { seed };
    let violations = (oracle.check)(&play(kind, &shrunk.scenario, seed));
    shrunk.scenario.covers = vec![oracle.name.to_owned()];
    let path = options.out.clone().unwrap_or_else(|| {
        let stem = scenario.name.rsplit('/').next().unwrap_or("scenario");
        Path::new(explore::FOUND).join(format!("{stem}-small.toml"))
    });
    explore::write(&path, &shrunk.scenario, seed)?;
    let shown = path.display();
    say(&explore::with_seed(&shrunk.scenario, seed));
    for violation in violations.iter().take(3) {
        say(&format!("\n{violation}"));
    }
    say(&format!(
        "\n\n  shrunk     {} steps to {}, {} plays on backend {kind}\n",
        steps(&scenario),
        steps(&shrunk.scenario),
        shrunk.plays,
    ));
    say(&match &options.bug {
        Some(bug) => format!("  the call   cargo scn explain {shown} --seed {seed} --bug {bug}\n"),
        None => format!(
            "  the call   cargo scn explain {shown} --backend {kind} --seed {seed}\n  again      cargo scn run {shown} \
             --backend {kind} --seed {seed}\n  keep it    cargo scn regress add {shown} NAME --purpose \"What must hold, in one \
             sentence.\"\n"
        ),
    });
    Ok(true)
}

fn chosen(options: &Options) -> anyhow::Result<(Scenario, Seed)> {
    let path = Path::new(&options.what);
    if path.extension().is_some_and(|ending| ending == "toml") {
        let scenario = catalogue::load(path)?;
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        return Ok((scenario, options.seed.or_else(|| explore::seed_in(&text)).unwrap_or(Seed(1))));
    }
    if options.seed.is_some() {
        bail!("--seed belongs to a file; a generated scenario is played with the seed it is made of");
    }
    let seed: Seed = options.what.parse()?;
    let backend = options.backend.map_or(Backend::Memory, Backend::from);
    Ok((generate_for(seed, backend), seed))
}
