//! How the mock and the server differ, one difference at a time.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A kind of difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The mock sends an event that the server does not.
    MissingEvent,
    /// The server sends an event that the mock does not.
    ExtraEvent,
    /// Both send the event, at another place.
    Order,
    /// Both send the event, under another name.
    Name,
    /// The mock has a field that the server has not.
    MissingField,
    /// The server has a field that the mock has not.
    ExtraField,
    /// The field has another type.
    Type,
    /// The field has a value that neither the mock nor a golden sample has there.
    UnseenValue,
    /// The field has another value.
    Value,
    /// One event follows another sooner or later than it may.
    Timing,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::MissingEvent => "missing event",
            Self::ExtraEvent => "extra event",
            Self::Order => "order",
            Self::Name => "name",
            Self::MissingField => "missing field",
            Self::ExtraField => "extra field",
            Self::Type => "type",
            Self::UnseenValue => "unseen value",
            Self::Value => "value",
            Self::Timing => "timing",
        })
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// Its kind.
    pub what: What,
    /// The event, by today's name, with the kind of its item if it has one; for timing what is measured.
    pub event: String,
    /// The path of the field; empty when it is about the event.
    pub field: String,
    /// What the mock has, as JSON or in words.
    pub expected: String,
    /// What the server has.
    pub seen: String,
    /// Where in the session, in words.
    pub place: String,
}
