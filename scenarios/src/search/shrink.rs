//! Finds the smallest scenario that still breaks the same rule.
//!
//! It works on the scenario as it is written: whatever a file can say can be left out, so a new knob needs no word
//! here. Elements of lists go first (calls, steps, turns, events, outages), many at a time; then single keys, which
//! means their defaults; then numbers get smaller and rounder. A change is kept when the file is still a scenario and
//! the same oracle still objects. Nothing is drawn, so the same failure always shrinks to the same file.

use crate::model::scenario::Scenario;
use crate::oracle::Oracle;
use crate::sim::trace::Trace;
use toml::Value;

/// Plays a shrinking may take.
pub const PLAYS_MAX: u32 = 2_000;

/// No timeout is made shorter than this, ms.
const WAIT_MIN_MS: i64 = 100;

/// What a shrinking came to.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest scenario found.
    pub scenario: Scenario,
    /// How many plays it took.
    pub plays: u32,
}

/// Makes a scenario smaller as long as `fails` says that it still shows the same violation, in at most `plays_max`
/// plays. `fails` is not asked about the scenario itself.
pub fn shrink(scenario: &Scenario, plays_max: u32, fails: &dyn Fn(&Scenario) -> bool) -> Shrunk {
    let written: toml::Table = scenario.to_toml().parse().expect("what was written as TOML reads as TOML");
    let mut search = Search {
        name: &scenario.name,
        best: Value::Table(written),
        scenario: scenario.clone(),
        plays: 0,
        plays_max,
        fails,
    };
    while search.voices() | search.lists() | search.keys() | search.texts() | search.numbers() {}
    Shrunk { scenario: search.scenario, plays: search.plays }
}

/// Bytes of mu-law in a millisecond.
const BYTES_PER_MS: usize = 8;

/// Whether this oracle objects to a trace.
pub fn objects(oracle: &Oracle, trace: &Trace) -> bool {
    !(oracle.check)(trace).is_empty()
}

/// How much a scenario holds: calls, steps of callers, turns and events of models, outages.
pub fn steps(scenario: &Scenario) -> usize {
    let network = &scenario.network;
    let of_call = |call: &crate::model::scenario::CallPlan| {
        1 + call.caller.steps.len() + call.model.turns.len() + call.model.events.len()
    };
    scenario.calls.iter().map(of_call).sum::<usize>()
        + network.caller.stalls.len()
        + network.model.stalls.len()
}

/// One step on the way to a value within a file.
#[derive(Clone, Debug)]
enum Part {
    Key(String),
    Index(usize),
}

struct Search<'a> {
    name: &'a str,
    best: Value,
    scenario: Scenario,
    plays: u32,
    plays_max: u32,
    fails: &'a dyn Fn(&Scenario) -> bool,
}

impl Search<'_> {
    /// Keeps `candidate` when it still fails.
    fn accept(&mut self, candidate: Value) -> bool {
        let Some(scenario) = as_scenario(self.name, &candidate) else { return false };
        if self.plays >= self.plays_max || scenario == self.scenario {
            return false;
        }
        self.plays += 1;
        if !(self.fails)(&scenario) {
            return false;
        }
        (self.best, self.scenario) = (candidate, scenario);
        true
    }

    /// Tries the file with the value at `path` changed.
    fn with(&mut self, path: &[Part], change: impl FnOnce(&mut Value)) -> bool {
        let mut candidate = self.best.clone();
        let Some(value) = at(&mut candidate, path) else { return false };
        change(value);
        self.accept(candidate)
    }

    /// Makes up what was recorded: speech of the same length. So a file that is kept holds no person's voice unless the
    /// violation depends on it.
    fn voices(&mut self) -> bool {
        let mut any = false;
        for path in paths(&self.best, &|value| matches!(value, Value::Table(_))) {
            for (recorded, made_up) in
                [("says_recorded", "says"), ("starts_saying_recorded", "starts_saying")]
            {
                let Some(Value::Table(step)) = at(&mut self.best, &path) else { break };
                let Some(Value::String(sound)) = step.get(recorded) else { continue };
                let ms = (sound.len() / 4 * 3 / BYTES_PER_MS) as i64;
                any |= self.with(&path, |step| {
                    let spoken = [(made_up.to_owned(), Value::Integer(ms))];
                    *step = Value::Table(spoken.into_iter().collect());
                });
            }
        }
        any
    }

    /// Leaves elements of lists out: all, then halves, quarters, single ones, the last first.
    fn lists(&mut self) -> bool {
        let mut any = false;
        for path in paths(&self.best, &|value| matches!(value, Value::Array(_))) {
            let Some(mut len) = self.len_at(&path) else { continue };
            let mut chunk = len;
            while chunk > 0 {
                let mut end = len;
                while end > 0 {
                    let from = end.saturating_sub(chunk);
                    if self.with(&path, |list| drain(list, from, end)) {
                        any = true;
                        len -= end - from;
                    }
                    end = from;
                }
                chunk /= 2;
            }
        }
        any
    }

    /// Leaves keys out, so that their defaults hold.
    fn keys(&mut self) -> bool {
        let mut any = false;
        for path in paths(&self.best, &|_| true) {
            let Some((Part::Key(key), parent)) = path.split_last() else { continue };
            if parent.is_empty() && matches!(key.as_str(), "purpose" | "call") {
                continue;
            }
            any |= self.with(parent, |table| {
                if let Value::Table(table) = table {
                    table.remove(key);
                }
            });
        }
        any
    }

    /// Presses fewer keys.
    fn texts(&mut self) -> bool {
        let mut any = false;
        for path in paths(&self.best, &|value| matches!(value, Value::String(_))) {
            let Some(Part::Key(key)) = path.last() else { continue };
            if !matches!(key.as_str(), "presses" | "keys") {
                continue;
            }
            let Some(Value::String(text)) = at(&mut self.best, &path).cloned() else { continue };
            let half = text.chars().count() / 2;
            for keep in [1, half, text.chars().count().saturating_sub(1)] {
                let fewer: String = text.chars().take(keep).collect();
                if keep > 0 && fewer.len() < text.len() && self.with(&path, |value| *value = fewer.into()) {
                    any = true;
                    break;
                }
            }
        }
        any
    }

    /// Makes numbers smaller and rounder.
    fn numbers(&mut self) -> bool {
        let mut any = false;
        for path in paths(&self.best, &|value| matches!(value, Value::Integer(_))) {
            let Some(Value::Integer(now)) = at(&mut self.best, &path).cloned() else { continue };
            // A wait that is over at once may be waited for without end.
            let waits = path.iter().any(|part| matches!(part, Part::Key(key) if key == "timeouts"));
            let least = if waits { WAIT_MIN_MS } else { 0 };
            for smaller in smaller(now).into_iter().filter(|smaller| *smaller >= least) {
                if self.with(&path, |value| *value = Value::Integer(smaller)) {
                    any = true;
                    break;
                }
            }
        }
        any
    }

    fn len_at(&mut self, path: &[Part]) -> Option<usize> {
        match at(&mut self.best, path) {
            Some(Value::Array(list)) => Some(list.len()),
            _ => None,
        }
    }
}

/// Smaller numbers in the order in which a reader would like them.
fn smaller(now: i64) -> Vec<i64> {
    let floor = |step: i64| now / step * step;
    let mut all = vec![0, 1, 20, 100, 500, 1_000, now / 2 / 100 * 100, now / 2 / 20 * 20];
    all.extend([floor(1_000), floor(500), floor(100), floor(50), floor(20), floor(10)]);
    let mut seen = Vec::new();
    for value in all {
        if value < now && !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

fn drain(list: &mut Value, from: usize, end: usize) {
    if let Value::Array(list) = list {
        list.drain(from..end.min(list.len()));
    }
}

fn as_scenario(name: &str, value: &Value) -> Option<Scenario> {
    let smaller = Scenario::from_toml(name, &toml::to_string(value).ok()?).ok()?;
    // Settings that production refuses make another bug than the one that was found.
    bridge::app::config::problems_of(&smaller.bridge).is_empty().then_some(smaller)
}

/// The value at this path, if there is one.
fn at<'a>(root: &'a mut Value, path: &[Part]) -> Option<&'a mut Value> {
    path.iter().try_fold(root, |value, part| match (value, part) {
        (Value::Table(table), Part::Key(key)) => table.get_mut(key),
        (Value::Array(list), Part::Index(index)) => list.get_mut(*index),
        _ => None,
    })
}

/// The paths of all values that `wanted` names, outer ones first.
fn paths(root: &Value, wanted: &dyn Fn(&Value) -> bool) -> Vec<Vec<Part>> {
    let mut found = Vec::new();
    let mut level = vec![(Vec::new(), root)];
    while !level.is_empty() {
        let mut below = Vec::new();
        for (path, value) in level {
            let mut visit = |part: Part, child| {
                let mut path: Vec<Part> = path.clone();
                path.push(part);
                below.push((path, child));
            };
            match value {
                Value::Table(table) => {
                    table.iter().for_each(|(key, child)| visit(Part::Key(key.clone()), child));
                }
                // The last first: leaving it out does not move the others.
                Value::Array(list) => {
                    list.iter().enumerate().rev().for_each(|(n, child)| visit(Part::Index(n), child));
                }
                Value::String(_)
                | Value::Integer(_)
                | Value::Float(_)
                | Value::Boolean(_)
                | Value::Datetime(_) => {}
            }
            if !path.is_empty() && wanted(value) {
                found.push(path);
            }
        }
        level = below;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::backend::Backend;
    use crate::model::seed::Seed;
    use crate::oracle;
    use crate::search::generate::generate;
    use crate::sim;
    use crate::sim::memory::play_spoiled;
    use crate::sim::{BridgeOut, OutputFault};
    use bridge::call::Leg;
    use mocks::peer::At;

    /// Never clears Twilio's buffer.
    struct DropsTheClear;

    impl OutputFault for DropsTheClear {
        fn spoil(&mut self, out: BridgeOut, _now: At) -> Vec<(u64, BridgeOut)> {
            match &out {
                BridgeOut::Text(Leg::Caller, text) if text.contains("\"clear\"") => Vec::new(),
                BridgeOut::Text(..) | BridgeOut::Close(..) | BridgeOut::Drop(_) | BridgeOut::Ping(_) => {
                    vec![(0, out)]
                }
            }
        }
    }

    #[test]
    fn a_planted_bug_in_a_long_scenario_shrinks_to_a_few_steps() {
        let oracle = oracle::named("clear_on_barge_in").unwrap();
        let fails = |seed| {
            move |scenario: &Scenario| {
                objects(oracle, &play_spoiled(scenario, seed, &|_| Box::new(DropsTheClear)))
            }
        };
        let seed = (1..500)
            .map(Seed)
            .find(|seed| {
                let scenario = generate(*seed);
                let alone = sim::play(Backend::Memory, &scenario, *seed);
                steps(&scenario) >= 20 && !objects(oracle, &alone) && fails(*seed)(&scenario)
            })
            .expect("some long call has a barge-in");
        let shrunk = shrink(&generate(seed), PLAYS_MAX, &fails(seed));
        let small = &shrunk.scenario;
        assert!(fails(seed)(small), "the violation was lost");
        assert!(
            steps(small) <= 10,
            "{} steps after {} plays:\n{}",
            steps(small),
            shrunk.plays,
            small.to_toml()
        );
        assert!(shrunk.plays <= PLAYS_MAX);
        assert_eq!(small, &shrink(&generate(seed), PLAYS_MAX, &fails(seed)).scenario);
        assert!(!objects(oracle, &sim::play(Backend::Memory, small, seed)), "the bridge is innocent");
    }

    #[test]
    fn everything_goes_but_what_matters() {
        let fails = |scenario: &Scenario| {
            let says = |step: &mocks::twilio::CallerStep| matches!(step, mocks::twilio::CallerStep::Says(ms) if *ms > 700);
            scenario.calls.iter().any(|call| call.caller.steps.iter().any(says))
        };
        let seed = (1..).map(Seed).find(|seed| fails(&generate(*seed))).unwrap();
        let small = shrink(&generate(seed), PLAYS_MAX, &fails).scenario;
        assert_eq!((small.calls.len(), steps(&small)), (1, 2), "{}", small.to_toml());
        assert!(small.tools.is_empty() && small.bridge == bridge::call::settings::CallConfig::default());
        let mocks::twilio::CallerStep::Says(ms) = small.calls[0].caller.steps[0] else { panic!("{small:?}") };
        assert!((701..=1_000).contains(&ms), "{ms}");
    }

    #[test]
    fn what_is_kept_holds_no_persons_voice_when_made_up_speech_shows_the_same() {
        let text = "purpose = \"A test.\"\n[[call]]\ncaller.steps = [{ says_recorded = \"AAAA\" }, { starts_saying_recorded = \"AAAA\" }]\n\
                    model.turns = [{ answers = 100, recorded = [\"AAAA\"] }]";
        let recorded = Scenario::from_toml("t", text).unwrap();
        let two_steps = |scenario: &Scenario| scenario.calls.iter().any(|call| call.caller.steps.len() == 2);
        let small = shrink(&recorded, PLAYS_MAX, &two_steps).scenario;
        assert!(!small.to_toml().contains("recorded"), "{}", small.to_toml());
        let fails = |scenario: &Scenario| scenario.to_toml().contains("says_recorded");
        assert!(
            shrink(&recorded, PLAYS_MAX, &fails).scenario.to_toml().contains("AAAA"),
            "unless it depends on it"
        );
    }

    #[test]
    fn no_play_is_spent_beyond_the_bound() {
        let plays = std::cell::Cell::new(0);
        let shrunk = shrink(&generate(Seed(3)), 7, &|_| {
            plays.set(plays.get() + 1);
            false
        });
        assert_eq!((plays.get(), shrunk.plays), (7, 7));
        assert_eq!(shrunk.scenario, generate(Seed(3)));
    }
}
