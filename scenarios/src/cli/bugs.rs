//! `scn bugs`: the table, and one bug at a time.

use crate::base::output::say;
use crate::base::parallel::in_parallel;
use crate::faults::known_bugs::{Bug, Hunt, SEED, all, hunt, wanted};
use crate::model::backend::Backend;
use crate::model::catalogue;
use crate::oracle;
use crate::report::{self, Outcome};
use crate::search::explore;
use crate::search::shrink;
use anyhow::Context as _;
use std::fmt::Write as _;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// The table, from the folder of the command.
pub const TABLE: &str = "docs/dev/known-bugs.md";
/// Plays a shrinking may take.
const PLAYS: u32 = 800;
/// Generated worlds tried for one bug.
const SEEDS: u64 = 2_000;

/// What to show of the known bugs.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// One bug; all of them when absent.
    name: Option<String>,
    /// Generated worlds to try, from seed 1 on.
    #[arg(long, default_value_t = SEEDS)]
    seeds: u64,
    /// How many bugs are hunted at one time; as many as there are processors when absent.
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    /// Write the table to docs/dev/known-bugs.md.
    #[arg(long, conflicts_with = "name")]
    write: bool,
}

/// What the table says of one bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The bug.
    pub name: String,
    /// The oracle that catches it in the catalogue.
    pub oracle: String,
    /// And where.
    pub scenario: String,
    /// The first seed that found it, if one did.
    pub seed: Option<u64>,
}

/// Shows the known bugs; true when every bug is caught where it says. One that no seed finds is news, not a failure.
///
/// # Errors
/// When there is no such bug, or a file cannot be written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let jobs =
        options.jobs.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    if let Some(name) = &options.name {
        return one(&wanted(name)?, options.seeds, jobs);
    }
    let bugs = all();
    let found = in_parallel(&bugs, jobs, |bug| {
        let caught = bug.caught_in_catalogue().is_ok_and(|violations| !violations.is_empty());
        let hunt = hunt(bug, if bug.hidden.is_some() { 0 } else { options.seeds }, PLAYS);
        let verdict = hunt.as_ref().map_or_else(
            || "not found".to_owned(),
            |hunt| format!("seed {} by {}, {} steps", hunt.seed, hunt.oracle, shrink::steps(&hunt.shrunk)),
        );
        eprintln!("{}  {}: {verdict}", if caught { "caught" } else { "MISSED" }, bug.name);
        (caught, hunt)
    });
    let table = table(&bugs, &found, options.seeds);
    say(&table);
    let missed: Vec<_> =
        bugs.iter().zip(&found).filter(|(_, (caught, _))| !caught).map(|(bug, _)| bug.name).collect();
    let lost: Vec<_> = bugs
        .iter()
        .zip(&found)
        .filter(|(bug, (_, hunt))| hunt.is_none() && bug.hidden.is_none())
        .map(|(bug, _)| bug.name)
        .collect();
    if !missed.is_empty() {
        say(&format!("\nnot caught by the catalogue: {}\n", missed.join(", ")));
    }
    if !lost.is_empty() {
        say(&format!("\nnot found in {} generated worlds: {}\n", options.seeds, lost.join(", ")));
    }
    if options.write {
        let path = path();
        fs::write(&path, page(&table, &bugs)).with_context(|| format!("cannot write {}", path.display()))?;
        say(&format!("\nwritten to {TABLE}\n"));
    }
    Ok(missed.is_empty())
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(TABLE)
}

/// One bug: who objects in the catalogue, the failure in its scenario, and the small world that shows it.
fn one(bug: &Bug, seeds: u64, jobs: usize) -> anyhow::Result<bool> {
    say(&format!("{}\n{}\n", bug.name, bug.symptom));
    for url in bug.seen {
        say(&format!("  seen in    {url}\n"));
    }
    let home = bug.home().map_err(anyhow::Error::msg)?;
    let outcome = Outcome::of(&bug.play(&home, SEED), &home.name, None);
    say(&format!("\n{}", report::failure(&outcome)));
    let catalogue: Vec<_> =
        catalogue::check()?.into_iter().filter(|one| one.backends.contains(&Backend::Memory)).collect();
    let objections = in_parallel(&catalogue, jobs, |scenario| {
        let trace = bug.play(scenario, SEED);
        oracle::ALL.iter().filter(|one| shrink::objects(one, &trace)).map(|one| one.name).collect::<Vec<_>>()
    });
    say("\nwho objects in the catalogue\n");
    for (scenario, oracles) in catalogue.iter().zip(&objections).filter(|(_, oracles)| !oracles.is_empty()) {
        say(&format!("  {:<52}  {}\n", scenario.name, oracles.join(", ")));
    }
    let said = bug.caught_in_catalogue().map_err(anyhow::Error::msg)?;
    let caught = !said.is_empty();
    match said.first() {
        Some(said) => say(&format!("\ncaught by {} in {}\n  {said}\n", bug.oracle, bug.scenario)),
        None => say(&format!("\nNOT CAUGHT by {} in {}\n", bug.oracle, bug.scenario)),
    }
    if let Some(why) = bug.hidden {
        say(&format!("\nnot to be found in generated worlds: {why}\n"));
        return Ok(caught);
    }
    let Some(Hunt { seed, oracle, steps, shrunk }) = hunt(bug, seeds, PLAYS) else {
        say(&format!("\nnot found in {seeds} generated worlds\n"));
        return Ok(caught);
    };
    let file = Path::new(explore::FOUND).join(format!("{}.toml", bug.name));
    explore::write(&file, &shrunk, seed)?;
    say(&format!(
        "\nfound by {oracle} in the world of seed {seed}, shrunk from {steps} steps to {}\n\n",
        shrink::steps(&shrunk)
    ));
    say(&explore::with_seed(&shrunk, seed));
    for violation in oracle::judge(&bug.play(&shrunk, seed)).iter().take(3) {
        say(&format!("\n{violation}"));
    }
    let shown = file.display();
    say(&format!("\n\n  the call   cargo scn explain {shown} --seed {seed} --bug {}\n", bug.name));
    Ok(caught)
}

/// One row for each bug, in Markdown that lines up.
fn table(bugs: &[Bug], found: &[(bool, Option<Hunt>)], seeds: u64) -> String {
    let head = ["bug", "oracle", "scenario", "seeds", "found by", "steps"].map(str::to_owned);
    let mut rows = vec![head];
    for (bug, (caught, hunt)) in bugs.iter().zip(found) {
        let oracle = if *caught { bug.oracle.to_owned() } else { format!("{} (missed)", bug.oracle) };
        let (seed, by, steps) = match (hunt, bug.hidden) {
            (Some(hunt), _) => (
                hunt.seed.to_string(),
                hunt.oracle.to_owned(),
                format!("{} of {}", shrink::steps(&hunt.shrunk), hunt.steps),
            ),
            (None, Some(_)) => ("never".to_owned(), "–".to_owned(), "–".to_owned()),
            (None, None) => (format!("over {seeds}"), "–".to_owned(), "–".to_owned()),
        };
        rows.push([format!("`{}`", bug.name), oracle, bug.scenario.to_owned(), seed, by, steps]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for (n, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _infallible = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if n == 0 {
            for width in &widths {
                let _infallible = write!(text, "|{:-<1$}", "", width + 2);
            }
            text.push_str("|\n");
        }
    }
    text
}

/// The whole page.
fn page(table: &str, bugs: &[Bug]) -> String {
    let mut text = format!(
        "# Known bugs\n\n\
         <!-- Written by `cargo scn bugs --write`; its words are in scenarios/src/faults/known_bugs.rs. -->\n\n\
         Bugs other people's bridges had in the field, {} of them, each planted around our bridge as a small switchable\n\
         defect and caught. `oracle` and `scenario` say who catches it in the catalogue. `seeds` is how many generated\n\
         worlds, from seed 1 on, were played until an oracle objected that has nothing to say to the same world without\n\
         the bug; `found by` names it. `steps` is what shrinking left of that world.\n\n\
         {table}\n\
         ## What people noticed\n",
        bugs.len()
    );
    for bug in bugs {
        let _infallible = write!(text, "\n**{}**: {}", bug.name, bug.symptom);
        if let Some(why) = bug.hidden {
            let _infallible = write!(text, " (Not to be found in generated worlds: {why}.)");
        }
        for (n, url) in bug.seen.iter().enumerate() {
            let _infallible = write!(text, "{}<{url}>", if n == 0 { "\nSeen in " } else { ",\n" });
        }
        text.push('\n');
    }
    text
}

/// The rows of the table as it is written down.
///
/// # Errors
/// When the page cannot be read.
pub fn recorded() -> anyhow::Result<Vec<Row>> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let cells = |line: &str| -> Vec<String> { line.split('|').map(|cell| cell.trim().to_owned()).collect() };
    Ok(text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(cells)
        .filter(|cells| cells.len() >= 6)
        .map(|cells| Row {
            name: cells[1].trim_matches('`').to_owned(),
            oracle: cells[2].clone(),
            scenario: cells[3].clone(),
            seed: cells[4].parse().ok(),
        })
        .collect())
}
