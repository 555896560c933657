//! The model ends the call, or puts the caller through: once the caller has heard it say so, and not if the caller
//! speaks first.
//!
//! Two functions of the bridge's own do that. Each is called like any other, but is run only when everything that was
//! sent has been played, by the marks; a limit makes sure that it is run at all. A barge-in before that answers it
//! with a failure, and the call goes on. Which number a name stands for is the operator's to say, never the model's.

use super::event::EndReason;
use super::settings::{END_CALL, Hangup, TRANSFER_CALL};
use serde_json::{Value, json};

/// A way for a call to leave the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitAction {
    HangUp,
    Transfer,
}

impl ExitAction {
    pub(crate) const fn reason(self) -> EndReason {
        match self {
            Self::HangUp => EndReason::AgentHungUp,
            Self::Transfer => EndReason::Transferred,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::HangUp => END_CALL,
            Self::Transfer => TRANSFER_CALL,
        }
    }
}

/// How far an end or a transfer has come that the model has called for.
#[derive(Debug)]
pub(crate) enum PendingExit {
    /// It is done once the caller has heard everything.
    AwaitingPlayout(Exit),
    /// Twilio is being asked for it.
    Requested { call_id: String, action: ExitAction },
}

/// What the model has called for.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) call_id: String,
    pub(crate) action: ExitAction,
    /// A JSON object.
    pub(crate) arguments: String,
    /// The response that wanted it.
    pub(crate) response: String,
}

/// The way a function of this name leads, if it is offered.
pub(crate) fn way(name: &str, hangup: &Hangup) -> Option<ExitAction> {
    match name {
        END_CALL if hangup.end_call => Some(ExitAction::HangUp),
        TRANSFER_CALL if !hangup.transfer.is_empty() => Some(ExitAction::Transfer),
        _ => None,
    }
}

/// The arguments it is run with: what the model wrote, and the number the operator gave for the name in it.
///
/// # Errors
/// When no person of that name is listed; in words for the model.
pub(crate) fn resolved(way: ExitAction, arguments: &Value, hangup: &Hangup) -> Result<String, &'static str> {
    match way {
        ExitAction::HangUp => Ok("{}".to_owned()),
        ExitAction::Transfer => {
            let to = arguments["to"].as_str().unwrap_or_default();
            let person = hangup.transfer.iter().find(|person| person.name == to);
            let person = person.ok_or("there is nobody of that name to put the caller through to")?;
            Ok(json!({ "to": person.name, "number": person.number }).to_string())
        }
    }
}
