//! Between text frames and the call's inputs and outputs: what the call takes is decoded, what it gives is encoded here.

use crate::call::{Incoming, Leg, Transmit};
use crate::wire::realtime::{self, Dialect};
use crate::wire::twilio;

/// A text frame of a leg as the call takes it.
pub fn decode(leg: Leg, text: &str) -> Incoming<'_> {
    match leg {
        Leg::Caller => {
            twilio::decode(text).map_or_else(|error| Incoming::Malformed(error.to_string()), Incoming::Twilio)
        }
        Leg::Model => realtime::decode(text)
            .map_or_else(|error| Incoming::Malformed(error.to_string()), Incoming::Model),
    }
}

/// The text frame to send and the leg to send it on, for what is a message.
pub fn encode(transmit: &Transmit, dialect: Dialect) -> Option<(Leg, String)> {
    match transmit {
        Transmit::Caller { stream_sid, message } => Some((Leg::Caller, message.encode(stream_sid))),
        Transmit::Model(event) => Some((Leg::Model, event.encode(dialect))),
        Transmit::WithdrawAudio
        | Transmit::Ping(_)
        | Transmit::VerifyStream(_)
        | Transmit::Dial { .. }
        | Transmit::Close { .. }
        | Transmit::Drop(_)
        | Transmit::PauseModelReads(_)
        | Transmit::RunTool { .. }
        | Transmit::CancelTool { .. } => None,
    }
}
