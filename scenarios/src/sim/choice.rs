//! The backends a command line names.

use crate::model::backend::Backend;
use crate::model::scenario::Scenario;
use anyhow::bail;
use clap::ValueEnum;

/// One backend or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backends {
    Memory,
    Simulated,
    Pipes,
    /// Memory and simulated.
    #[value(hide = true)]
    Both,
    All,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OneBackend {
    Memory,
    Simulated,
    Pipes,
}

impl Backends {
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

impl From<OneBackend> for Backend {
    fn from(backend: OneBackend) -> Self {
        match backend {
            OneBackend::Memory => Self::Memory,
            OneBackend::Simulated => Self::Simulated,
            OneBackend::Pipes => Self::Pipes,
        }
    }
}

/// The backend that was asked for, or the first that the scenario names. Refuses one it is not played on.
pub(crate) fn backend_of(scenario: &Scenario, asked: Option<Backend>) -> anyhow::Result<Backend> {
    let Some(backend) = asked.or_else(|| scenario.backends.first().copied()) else {
        bail!("{} names no backend", scenario.name);
    };
    if !scenario.backends.contains(&backend) {
        let names: Vec<_> = scenario.backends.iter().map(|backend| backend.name()).collect();
        bail!("{} is not played on backend {backend}, only on: {}", scenario.name, names.join(", "));
    }
    super::ready(backend)?;
    Ok(backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_played_only_where_it_can_be() {
        let text = "purpose = \"x.\"\nbackends = [\"pipes\"]\n[[call]]\ncaller.steps = []";
        let scenario = Scenario::from_toml("t", text).unwrap();
        assert_eq!(backend_of(&scenario, None).unwrap(), Backend::Pipes);
        let refusal = backend_of(&scenario, Some(Backend::Memory)).unwrap_err().to_string();
        assert_eq!(refusal, "t is not played on backend memory, only on: pipes");
    }

    #[test]
    fn both_means_two_backends_and_all_means_every_one() {
        let of =
            |backends: Backends| Backend::ALL.into_iter().filter(move |kind| backends.has(*kind)).count();
        assert_eq!([Backends::Memory, Backends::Simulated, Backends::Pipes].map(of), [1, 1, 1]);
        assert_eq!((of(Backends::Both), of(Backends::All)), (2, Backend::ALL.len()));
        assert!(!Backends::Both.has(Backend::Pipes));
    }
}
