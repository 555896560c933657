//! What a bridge offers, found out by one plain call: a bridge is not blamed for what it does not claim to do.

use crate::model::scenario::Scenario;
use crate::sim::attach::Played;
use crate::sim::trace::CallTrace;
use mocks::peer::At;
use mocks::realtime::Dialect;
use mocks::record::{CallerObservation, ModelObservation};
use serde_json::Value;
use std::fmt;

/// The plain call: a silence to be greeted in, a question, an interruption, another answer, a key.
const PROBE: &str = r#"
purpose = "What does this bridge offer?"

[[call]]
caller.patience_ms = 9000
caller.steps = [
  { waits = 5000 }, { says = 1500 }, "hears_start", { hears_for = 1500 }, { says = 900 }, "hears_start", "hears_end",
  { presses = "5" }, { waits = 3500 }, "hangs_up",
]
model.turns = [{ answers = 3000 }, { answers = 8000 }, { answers = 1500 }, { answers = 1000 }]
"#;

/// The scenario of the plain call, in one of the model's dialects.
pub(super) fn probe(dialect: Dialect) -> Scenario {
    let mut scenario =
        Scenario::from_toml("conform/plain_call", PROBE).expect("the plain call is a scenario");
    scenario.calls[0].model.dialect = dialect;
    scenario
}

/// A function that is declared to the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Arguments that its parameters allow, as JSON.
    pub arguments: String,
}

impl Function {
    /// As the session has it; nothing when it has no name.
    fn declared(tool: &Value) -> Option<Self> {
        let name = tool["name"].as_str()?.to_owned();
        Some(Self { name, arguments: sample(&tool["parameters"]).to_string() })
    }

    /// Its name says that it ends the call, or transfers it: nothing can be asked behind it.
    pub(super) fn ends_the_call(&self) -> bool {
        let mut words = String::new();
        for letter in self.name.chars() {
            // Both `end_call` and `endCall` are two words.
            if letter.is_uppercase() {
                words.push(' ');
            }
            words.extend(letter.to_lowercase());
        }
        words.split(|letter: char| !letter.is_alphanumeric()).any(|word| ENDS.contains(&word))
    }
}

/// Words of which one is in the name of a function that ends or transfers a call.
const ENDS: &[&str] = &[
    "bye",
    "close",
    "disconnect",
    "end",
    "escalate",
    "finish",
    "forward",
    "goodbye",
    "handoff",
    "hang",
    "hangup",
    "leave",
    "stop",
    "terminate",
    "transfer",
];

/// The smallest value that a JSON schema allows, as far as function declarations use them.
fn sample(schema: &Value) -> Value {
    let first = |list: &Value| list.as_array().and_then(|list| list.first()).cloned();
    if let Some(value) = schema.get("const").cloned().or_else(|| first(&schema["enum"])) {
        return value;
    }
    if let Some(other) = ["anyOf", "oneOf", "allOf"].iter().find_map(|word| first(&schema[word])) {
        return sample(&other);
    }
    let kind = first(&schema["type"]).unwrap_or_else(|| schema["type"].clone());
    match kind.as_str() {
        Some("string") => "example".into(),
        Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or_else(|| 1.into()),
        Some("boolean") => true.into(),
        Some("array") => Value::Array(Vec::new()),
        Some("null") => Value::Null,
        _ => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let properties = required.map(|name| (name.to_owned(), sample(&schema["properties"][name])));
            Value::Object(properties.collect())
        }
    }
}

/// What a bridge offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// It spoke to the model in the retired dialect, which the service has switched off.
    pub beta: bool,
    /// What the model is to hear and to speak: `audio/pcm`, `audio/pcmu` or `audio/pcma`.
    pub formats: (String, String),
    /// The caller is spoken to first.
    pub greets: bool,
    /// What the caller says while it greets goes unheard.
    pub deaf_at_first: bool,
    /// It marks what it sends.
    pub marks: bool,
    /// A pressed key reaches the model in some form.
    pub keypad: bool,
    /// The functions it declares to the model.
    pub functions: Vec<Function>,
    /// The server answers each turn by itself.
    pub answers_by_itself: bool,
    /// The server finds the turns: its silence that ends one, ms. Nothing when the bridge finds them.
    pub silence_ms: Option<u64>,
    /// The server cancels its response when the caller speaks.
    pub interrupts_by_itself: bool,
    /// Which call a model connection is for is said in its request.
    pub names_its_calls: bool,
}

impl Capabilities {
    /// What the plain call has shown.
    ///
    /// # Errors
    /// When it was no call at all. The message says how far it came.
    pub(super) fn of(played: &Played) -> anyhow::Result<Self> {
        use anyhow::bail;
        let call = &played.trace.calls[0];
        let notes = || played.notes.iter().map(|note| format!("\n  {note}")).collect::<String>();
        if !saw(call, |sight| matches!(sight, CallerObservation::Opened)) {
            bail!("the bridge did not take the call{}", notes());
        }
        let Some(m) = call.models.iter().rposition(|model| {
            model.observations.iter().any(|seen| matches!(seen.what, ModelObservation::SentSessionCreated))
        }) else {
            let refused = call.models.iter().flat_map(|model| &model.observations).find_map(|seen| {
                if let ModelObservation::Refused { how } = &seen.what { Some(how.clone()) } else { None }
            });
            match refused {
                Some(how) => bail!("the model refused the bridge: {how}{}", notes()),
                None => bail!(
                    "the bridge took the call and never opened a WebSocket to the model; does its OpenAI URL point to \
                     --serve-openai?{}",
                    notes()
                ),
            }
        };
        let model = &call.models[m];
        let session = played.sessions.first().and_then(|sessions| sessions.get(m)).unwrap_or(&Value::Null);
        let spoke = call
            .caller
            .observations
            .iter()
            .find(|seen| matches!(seen.what, CallerObservation::SpeechBegan { .. }))
            .map_or(At(u64::MAX), |seen| seen.at);
        let key = call
            .caller
            .observations
            .iter()
            .find(|seen| matches!(seen.what, CallerObservation::SentDtmf { .. }));
        let told = |since: At| {
            model.observations.iter().any(|seen| {
                seen.at >= since
                    && matches!(
                        seen.what,
                        ModelObservation::GotText { .. }
                            | ModelObservation::GotCreate { .. }
                            | ModelObservation::GotUpdate { .. }
                    )
            })
        };
        let formats = model.observations.iter().rev().find_map(|seen| {
            if let ModelObservation::GotUpdate { input, output } = &seen.what {
                Some((input.clone(), output.clone()))
            } else {
                None
            }
        });
        let first = |is: fn(&ModelObservation) -> bool| {
            model.observations.iter().find(|seen| is(&seen.what)).map(|seen| seen.at)
        };
        let listened =
            first(|sight| matches!(sight, ModelObservation::GotAppend { .. })).unwrap_or(At(u64::MAX));
        let said = first(|sight| matches!(sight, ModelObservation::SentResponseDone { .. }))
            .filter(|said| *said < spoke);
        let usual = || ("audio/pcm".to_owned(), "audio/pcm".to_owned());
        let input = &session["audio"]["input"];
        // The flat session of the retired dialect has it at the top.
        let turns = if input.is_object() { &input["turn_detection"] } else { &session["turn_detection"] };
        Ok(Self {
            beta: played.trace.scenario.calls[0].model.dialect == Dialect::Beta,
            formats: formats.unwrap_or_else(usual),
            greets: call
                .caller
                .observations
                .iter()
                .any(|seen| seen.at < spoke && matches!(seen.what, CallerObservation::GotMedia { .. }))
                || model
                    .observations
                    .iter()
                    .any(|seen| seen.at < spoke && matches!(seen.what, ModelObservation::GotCreate { .. })),
            deaf_at_first: said.is_some_and(|said| listened > said),
            marks: saw(call, |sight| matches!(sight, CallerObservation::GotMark { .. })),
            keypad: key.is_some_and(|key| told(key.at)),
            functions: session["tools"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Function::declared)
                .collect(),
            answers_by_itself: turns["create_response"].as_bool().unwrap_or(!turns.is_null()),
            silence_ms: turns["silence_duration_ms"].as_u64().or((!turns.is_null()).then_some(800)),
            interrupts_by_itself: turns["interrupt_response"].as_bool().unwrap_or(!turns.is_null()),
            names_its_calls: false,
        })
    }

    /// Whether the bridge was refused because it speaks the retired dialect.
    pub(super) fn speaks_beta(played: &Played) -> bool {
        let seen = played.trace.calls[0].models.iter().flat_map(|model| &model.observations);
        seen.into_iter().any(|seen| {
            matches!(&seen.what, ModelObservation::Refused { how } if how.contains("beta_api_shape_disabled"))
        })
    }

    /// Every property with its value, for a table.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let yes = |is: bool| if is { "yes".to_owned() } else { "no".to_owned() };
        let names: Vec<&str> = self.functions.iter().map(|function| function.name.as_str()).collect();
        let (input, output) = &self.formats;
        let format = if input == output { input.clone() } else { format!("{input} in, {output} out") };
        let turns = match self.silence_ms {
            Some(ms) => format!("by the server, after {ms} ms of silence"),
            None => "by the bridge".to_owned(),
        };
        vec![
            ("dialect", if self.beta { "beta, which the service has switched off" } else { "ga" }.to_owned()),
            ("audio with the model", format),
            ("turns are found", turns),
            ("greets the caller", yes(self.greets)),
            ("listens while it greets", yes(self.greets && !self.deaf_at_first)),
            ("sends marks", yes(self.marks)),
            ("hands keys to the model", yes(self.keypad)),
            ("functions", if names.is_empty() { "none".to_owned() } else { names.join(", ") }),
            ("names its calls", yes(self.names_its_calls)),
        ]
    }
}

fn saw(call: &CallTrace, is: fn(&CallerObservation) -> bool) -> bool {
    call.caller.observations.iter().any(|seen| is(&seen.what))
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, value) in self.rows() {
            writeln!(f, "  {what:<24}  {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::backend::Backend;
    use crate::model::seed::Seed;
    use crate::sim;

    #[test]
    fn a_plain_call_shows_what_a_bridge_offers() {
        let mut scenario = probe(Dialect::Ga);
        scenario.bridge.greeting = Some("Greet the caller.".into());
        let trace = sim::play(Backend::Memory, &scenario, Seed(1));
        let session = serde_json::json!({
            "tools": [{"type": "function", "name": "lookup_order"}],
            "audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 500}}},
        });
        let sessions = vec![vec![session]];
        let mut played = Played { sessions, ..Played::undisturbed(trace) };
        let offer = Capabilities::of(&played).unwrap();
        assert!(
            offer.greets && offer.marks && offer.keypad && !offer.beta && !offer.deaf_at_first,
            "{offer:?}"
        );
        let lookup = Function { name: "lookup_order".into(), arguments: "{}".into() };
        assert_eq!((offer.functions.as_slice(), offer.silence_ms), (&[lookup][..], Some(500)));
        assert_eq!(offer.formats.0, "audio/pcm");

        let scenario = probe(Dialect::Ga);
        played.trace = sim::play(Backend::Memory, &scenario, Seed(1));
        assert!(!Capabilities::of(&played).unwrap().greets, "the bridge did not greet");
        played.trace.calls[0].models.clear();
        played.notes.push("a note".into());
        let error = Capabilities::of(&played).unwrap_err().to_string();
        assert!(error.contains("--serve-openai") && error.contains("a note"), "{error}");
    }

    #[test]
    fn functions_are_called_with_what_their_parameters_allow() {
        let schema = serde_json::json!({
            "type": "object",
            "required": ["city", "days", "unit", "note", "where"],
            "properties": {
                "city": {"type": "string"}, "days": {"type": ["integer", "null"], "minimum": 3},
                "unit": {"enum": ["c", "f"]}, "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
                "maybe": {"type": "string"},
            },
        });
        let wanted =
            serde_json::json!({"city": "example", "days": 3, "unit": "c", "note": null, "where": {"lat": 1}});
        assert_eq!(sample(&schema), wanted);
        assert_eq!(sample(&Value::Null), serde_json::json!({}));
    }

    #[test]
    fn who_ends_the_call_is_known_by_name() {
        let ends = |name: &str| Function { name: name.into(), ..Function::default() }.ends_the_call();
        assert!(["end_call", "hangUp", "finish_call", "transfer_to_billing"].into_iter().all(ends));
        assert!(!["send_email", "get_weather", "lookupTrendLine", "calendar"].into_iter().any(ends));
    }
}
