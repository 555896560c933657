//! One bug: what people noticed, how it is planted, and who catches it.

use crate::audio::golden_audio::{self, Standing};
use crate::model::catalogue;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::oracle::{self, Oracle, Violation};
use crate::search::generate::generate;
use crate::search::shrink::{self, Shrunk};
use crate::sim::memory::{Memory, play_defective};
use crate::sim::trace::Trace;
use crate::sim::{Defect, ScenarioRunner as _};
use bridge::call::settings::CallConfig;
use std::fmt;

/// The seed scenarios of the catalogue are played with.
pub const SEED: Seed = Seed(1);

/// What stands in the place of an oracle where the recording of a call (`golden/calls`) is the judge.
pub const RECORDING: &str = "golden";

/// Makes the defect of each call of one world, by the index of the call.
type World = Box<dyn Fn(usize) -> Box<dyn Defect>>;

/// How a bug is planted.
#[derive(Clone, Copy)]
enum Plant {
    /// Only settings are wrong.
    Settings,
    /// Every call has its own defect.
    Each(fn() -> Box<dyn Defect>),
    /// The calls of one world share something.
    World(fn() -> World),
}

/// One bug of the field.
#[derive(Clone, Copy)]
pub struct Bug {
    /// A short name.
    pub name: &'static str,
    /// What people noticed, in one sentence.
    pub symptom: &'static str,
    /// Public threads it was seen in.
    pub seen: &'static [&'static str],
    /// The oracle that must object.
    pub oracle: &'static str,
    /// Oracles whose objection in a generated world counts as well.
    pub also: &'static [&'static str],
    /// The scenario of the catalogue in which it must.
    pub scenario: &'static str,
    /// Why no generated world can show it, when that is so.
    pub hidden: Option<&'static str>,
    settings: fn(&mut CallConfig),
    plant: Plant,
}

impl fmt::Debug for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} in {})", self.name, self.oracle, self.scenario)
    }
}

pub(super) const fn bug(name: &'static str, symptom: &'static str) -> Bug {
    Bug {
        name,
        symptom,
        seen: &[],
        oracle: "",
        also: &[],
        scenario: "",
        hidden: None,
        settings: |_| {},
        plant: Plant::Settings,
    }
}

impl Bug {
    pub(super) const fn seen(self, seen: &'static [&'static str]) -> Self {
        Self { seen, ..self }
    }

    pub(super) const fn caught(self, oracle: &'static str, scenario: &'static str) -> Self {
        Self { oracle, scenario, ..self }
    }

    pub(super) const fn also(self, also: &'static [&'static str]) -> Self {
        Self { also, ..self }
    }

    pub(super) const fn hidden(self, why: &'static str) -> Self {
        Self { hidden: Some(why), ..self }
    }

    pub(super) const fn settings(self, settings: fn(&mut CallConfig)) -> Self {
        Self { settings, ..self }
    }

    pub(super) const fn each(self, make: fn() -> Box<dyn Defect>) -> Self {
        Self { plant: Plant::Each(make), ..self }
    }

    pub(super) const fn world(self, make: fn() -> World) -> Self {
        Self { plant: Plant::World(make), ..self }
    }

    /// Plays a scenario in memory with the bug in every call.
    pub fn play(&self, scenario: &Scenario, seed: Seed) -> Trace {
        /// Nothing is wrong but the settings.
        struct Sound;
        impl Defect for Sound {}
        let world: World = match self.plant {
            Plant::Settings => Box::new(|_| Box::new(Sound)),
            Plant::Each(make) => Box::new(move |_| make()),
            Plant::World(make) => make(),
        };
        play_defective(scenario, seed, &self.settings, &*world)
    }

    /// The oracles whose objection counts, the named one first.
    fn oracles(&self) -> impl Iterator<Item = &'static Oracle> {
        let also = self.also.iter().copied();
        std::iter::once(self.oracle).chain(also).filter_map(oracle::named)
    }

    /// The oracle that objects to this world with the bug in it, and not without.
    pub fn found_by(&self, scenario: &Scenario, seed: Seed) -> Option<&'static Oracle> {
        let spoiled = self.play(scenario, seed);
        let oracle = self.oracles().find(|oracle| shrink::objects(oracle, &spoiled))?;
        (!shrink::objects(oracle, &Memory.play(scenario, seed))).then_some(oracle)
    }

    /// What is said of it by its oracle in its scenario of the catalogue, or by the recording of that call.
    ///
    /// # Errors
    /// When it names a scenario or an oracle that does not exist, or the recording cannot be read.
    pub fn caught_in_catalogue(&self) -> Result<Vec<String>, String> {
        let trace = self.play(&self.home()?, SEED);
        if self.oracle == RECORDING {
            return self.unlike_its_recording(&trace);
        }
        let Some(oracle) = oracle::named(self.oracle) else {
            return Err(format!("{} names the oracle `{}`, which does not exist", self.name, self.oracle));
        };
        Ok((oracle.check)(&trace).iter().map(Violation::to_string).collect())
    }

    fn unlike_its_recording(&self, trace: &Trace) -> Result<Vec<String>, String> {
        let heard = trace.calls.first().map(|call| golden_audio::heard(self.scenario, call));
        let heard = heard.ok_or_else(|| format!("{} has no call to record", self.scenario))?;
        match heard.standing(&[]).map_err(|error| format!("{error:#}"))? {
            Standing::Same => Ok(Vec::new()),
            Standing::New => Err(format!("{} is not a recorded call", self.scenario)),
            Standing::Changed { difference, .. } => {
                Ok(vec![format!("{} differs: {difference}", heard.file())])
            }
        }
    }

    /// Its scenario of the catalogue.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn home(&self) -> Result<Scenario, String> {
        let found = catalogue::find(self.scenario).into_iter().find(|one| one.name == self.scenario);
        found.ok_or_else(|| {
            format!("{} names the scenario `{}`, which does not exist", self.name, self.scenario)
        })
    }

    /// The first of these seeds whose world shows the bug, and which oracle saw it.
    pub fn first_seed(&self, seeds: impl IntoIterator<Item = u64>) -> Option<(Seed, &'static Oracle)> {
        seeds.into_iter().map(Seed).find_map(|seed| Some((seed, self.found_by(&generate(seed), seed)?)))
    }

    /// The smallest world found in which `oracle` objects to the bug and not to the bridge without it.
    pub fn shrink(&self, seed: Seed, oracle: &Oracle, plays: u32) -> Shrunk {
        let fails = |scenario: &Scenario| {
            shrink::objects(oracle, &self.play(scenario, seed))
                && !shrink::objects(oracle, &Memory.play(scenario, seed))
        };
        shrink::shrink(&generate(seed), plays, &fails)
    }
}
