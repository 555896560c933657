//! The model ends the call, or puts the caller through: once the caller has heard it say so, and not if the caller
//! speaks first.
//!
//! Two functions of the bridge's own do that. Each is called like any other, but is run only when everything that was
//! sent has been played, by the marks; a limit makes sure that it is run at all. A barge-in before that answers it
//! with a failure, and the call goes on. Which number a name stands for is the operator's to say, never the model's.

use super::event::EndReason;
use super::settings::{Leaving, ToolSpec};
use serde_json::{Value, json};

/// Ends the call.
pub const END_CALL: &str = "end_call";
/// Puts the caller through to somebody.
pub const TRANSFER_CALL: &str = "transfer_call";

/// A way for a call to leave the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    HangUp,
    Transfer,
}

impl Way {
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

/// A call that leaves once its farewell was heard.
#[derive(Debug)]
pub(crate) struct Farewell {
    pub(crate) call_id: String,
    pub(crate) way: Way,
    /// A JSON object.
    pub(crate) arguments: String,
    /// The response that wanted it.
    pub(crate) response: String,
}

/// What the model is told it may call.
pub(crate) fn offered(leaving: &Leaving) -> Vec<ToolSpec> {
    let spec = |name: &str, description: &str, parameters| ToolSpec {
        name: name.into(),
        description: description.into(),
        parameters,
        timeout_ms: leaving.carrier_ms,
    };
    let mut offered = Vec::new();
    if leaving.end_call {
        let about =
            "Ends the call once the caller has heard what you say. Say goodbye first, in the same answer.";
        offered.push(spec(END_CALL, about, json!({"type": "object", "properties": {}})));
    }
    if !leaving.transfer.is_empty() {
        let names: Vec<&str> = leaving.transfer.iter().map(|person| person.name.as_str()).collect();
        let about =
            "Puts the caller through once they have heard what you say. Tell them first, in the same answer.";
        offered.push(spec(
            TRANSFER_CALL,
            about,
            json!({
                "type": "object",
                "properties": { "to": { "type": "string", "enum": names, "description": "Whom." } },
                "required": ["to"],
            }),
        ));
    }
    offered
}

/// The way a function of this name leads, if it is offered.
pub(crate) fn way(name: &str, leaving: &Leaving) -> Option<Way> {
    match name {
        END_CALL if leaving.end_call => Some(Way::HangUp),
        TRANSFER_CALL if !leaving.transfer.is_empty() => Some(Way::Transfer),
        _ => None,
    }
}

/// The arguments it is run with: what the model wrote, and the number the operator gave for the name in it.
///
/// # Errors
/// When nobody of that name is listed; in words for the model.
pub(crate) fn resolved(way: Way, arguments: &Value, leaving: &Leaving) -> Result<String, &'static str> {
    match way {
        Way::HangUp => Ok("{}".to_owned()),
        Way::Transfer => {
            let to = arguments["to"].as_str().unwrap_or_default();
            let person = leaving.transfer.iter().find(|person| person.name == to);
            let person = person.ok_or("there is nobody of that name to put the caller through to")?;
            Ok(json!({ "to": person.name, "number": person.number }).to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Person;
    use super::*;

    #[test]
    fn the_model_is_offered_what_the_operator_allows() {
        let names = |leaving: &Leaving| -> Vec<String> {
            offered(leaving).into_iter().map(|function| function.name).collect()
        };
        let nothing = Leaving::default();
        let end = Leaving { end_call: true, ..Leaving::default() };
        let sales = Person { name: "sales".into(), number: "+15550100".into() };
        let both = Leaving { end_call: true, transfer: vec![sales], ..Leaving::default() };
        assert_eq!(names(&nothing), Vec::<String>::new());
        assert_eq!(names(&end), [END_CALL]);
        assert_eq!(names(&both), [END_CALL, TRANSFER_CALL]);
        assert_eq!(offered(&both)[1].parameters["properties"]["to"]["enum"], json!(["sales"]));
    }
}
