//! The backends a command line names.

use crate::model::backend::Backend;
use crate::model::scenario::Scenario;
use anyhow::bail;
use clap::ValueEnum;

/// One backend or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stages {
    Memory,
    Simulated,
    Pipes,
    /// Memory and simulated.
    #[value(hide = true)]
    Both,
    All,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OneStage {
    Memory,
    Simulated,
    Pipes,
}

impl Stages {
    pub(crate) fn has(self, kind: Backend) -> bool {
        match self {
            Self::Memory => kind == Backend::Memory,
            Self::Simulated => kind == Backend::Simulated,
            Self::Pipes => kind == Backend::Pipes,
            Self::Both => matches!(kind, Backend::Memory | Backend::Simulated),
            Self::All => !kind.is_real(),
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Simulated => "simulated",
            Self::Pipes => "pipes",
            Self::Both => "both",
            Self::All => "all",
        }
    }
}

impl From<OneStage> for Backend {
    fn from(stage: OneStage) -> Self {
        match stage {
            OneStage::Memory => Self::Memory,
            OneStage::Simulated => Self::Simulated,
            OneStage::Pipes => Self::Pipes,
        }
    }
}

/// The backend that was asked for, or the first that the scenario names. Refuses one it is not played on.
pub(crate) fn stage_of(scenario: &Scenario, asked: Option<Backend>) -> anyhow::Result<Backend> {
    let Some(stage) = asked.or_else(|| scenario.stages.first().copied()) else {
        bail!("{} names no backend", scenario.name);
    };
    if !scenario.stages.contains(&stage) {
        let names: Vec<_> = scenario.stages.iter().map(|stage| stage.name()).collect();
        bail!("{} is not played on backend {stage}, only on: {}", scenario.name, names.join(", "));
    }
    super::ready(stage)?;
    Ok(stage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_played_only_where_it_can_be() {
        let text = "purpose = \"x.\"\nstages = [\"pipes\"]\n[[call]]\ncaller.steps = []";
        let scenario = Scenario::from_toml("t", text).unwrap();
        assert_eq!(stage_of(&scenario, None).unwrap(), Backend::Pipes);
        let refusal = stage_of(&scenario, Some(Backend::Memory)).unwrap_err().to_string();
        assert_eq!(refusal, "t is not played on backend memory, only on: pipes");
    }

    #[test]
    fn both_means_two_stages_and_all_means_every_one() {
        let of = |stages: Stages| Backend::ALL.into_iter().filter(move |kind| stages.has(*kind)).count();
        assert_eq!([Stages::Memory, Stages::Simulated, Stages::Pipes].map(of), [1, 1, 1]);
        assert_eq!((of(Stages::Both), of(Stages::All)), (2, Backend::ALL.len()));
        assert!(!Stages::Both.has(Backend::Pipes));
    }
}
