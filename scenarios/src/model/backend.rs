//! Where a scenario can be played.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Which backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// See [`crate::sim::memory`].
    Memory,
    /// See [`crate::sim::simulated`].
    Simulated,
    /// See [`crate::sim::pipes`].
    Pipes,
    /// See [`crate::sim::loopback`].
    Loopback,
    /// See [`crate::sim::attach`].
    Attach,
}

impl Backend {
    /// All on which a seed gives the same bytes every time, the fast ones at the ends.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Simulated, Self::Pipes];

    /// The word used in files, on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Simulated => "simulated",
            Self::Pipes => "pipes",
            Self::Loopback => "loopback",
            Self::Attach => "attach",
        }
    }

    /// Time passes by itself there, and no two plays are quite the same.
    pub const fn is_real(self) -> bool {
        matches!(self, Self::Loopback | Self::Attach)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
