//! What may stand between a bridge and its two ends, to see whether anyone notices.

use bridge::call::event::CallEvent;
use bridge::call::{Control, Leg, LegChange, ToolResult};
use mocks::peer::At;

/// Something the bridge puts on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeOut {
    /// A text frame.
    Text(Leg, String),
    /// A close frame with this code.
    Close(Leg, u16),
    /// The connection is dropped.
    Drop(Leg),
    /// A ping.
    Ping(Leg),
}

/// Spoils what one call's bridge says, to see whether anyone notices.
pub trait OutputFault {
    /// What goes on the wire instead of `out`, each with a delay in microseconds. Undelayed messages keep their
    /// order; a delayed one goes out when its time has come, behind whatever was sent before.
    fn spoil(&mut self, out: BridgeOut, now: At) -> Vec<(u64, BridgeOut)>;
}

/// Something the bridge is about to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A text frame arrived.
    Text(Leg, String),
    /// A binary frame of so many bytes arrived.
    Binary(Leg, usize),
    /// Something happened to a connection.
    Leg(Leg, LegChange),
    /// A function ended.
    Tool(ToolResult),
    /// The server wants something.
    Control(Control),
}

/// What a spoiled bridge does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Puts something on the wire.
    Say(BridgeOut),
    /// Believes that it was told something.
    Hear(Told),
    /// Asks the defect again, by [`Defect::wakes`].
    Wake,
}

/// A bug around one call's bridge: it stands between the bridge and both of its ends and sees both directions.
///
/// Each method answers with what happens instead, each act with a delay in microseconds. Undelayed acts happen at
/// once and in order, and are not shown to the defect again; a delayed one happens when its time has come. Whatever
/// the defect does not care about goes through.
pub trait Defect {
    /// The bridge says `out`.
    fn says(&mut self, out: BridgeOut, _now: At) -> Vec<(u64, Act)> {
        vec![(0, Act::Say(out))]
    }

    /// The bridge is to be told `told`.
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        vec![(0, Act::Hear(told))]
    }

    /// The time of an [`Act::Wake`] has come.
    fn wakes(&mut self, _now: At) -> Vec<(u64, Act)> {
        Vec::new()
    }

    /// The bridge writes down what happened.
    fn notes(&mut self, _event: &mut CallEvent, _now: At) {}
}

/// A fault is a defect that only speaks.
pub(super) struct OutputOnly(pub(super) Box<dyn OutputFault>);

impl Defect for OutputOnly {
    fn says(&mut self, out: BridgeOut, now: At) -> Vec<(u64, Act)> {
        self.0.spoil(out, now).into_iter().map(|(delay, out)| (delay, Act::Say(out))).collect()
    }
}
