//! What a client event must look like, as tables, and the error the service answers when it does not.
//!
//! The tables are strict on purpose: a field the protocol does not know is a mistake of the client, and the
//! service says so. What depends on the state of the session is not decided here.

use super::script::Dialect;
use serde_json::Value;

/// Why a client event was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) param: Option<String>,
    /// The answer does not say which event it is about.
    pub(super) anonymous: bool,
}

impl Rejection {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, anonymous: false }
    }

    pub(super) fn at(code: &'static str, message: impl Into<String>, param: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: Some(param.into()), anonymous: false }
    }

    /// The same without the `event_id` of what was refused, as the service answers some events.
    pub(super) fn anonymous(self) -> Self {
        Self { anonymous: true, ..self }
    }
}

/// What a value may be.
enum Shape {
    Text,
    TextUpTo(usize),
    OneOf(&'static [&'static str]),
    Integer {
        min: i64,
        max: i64,
    },
    Number {
        min: f64,
        max: f64,
    },
    Boolean,
    /// `"inf"` or a number of tokens.
    Tokens,
    Object(&'static [Field]),
    /// An object whose shape depends on one of its own fields.
    Tagged(&'static str, &'static [(&'static str, &'static [Field])]),
    List(&'static Self),
    Nullable(&'static Self),
    /// Text of one of these, or an object.
    NameOr(&'static [&'static str], &'static Self),
    /// Anything: its inside is the business of the customer (a JSON schema, a set of variables).
    Free,
}

struct Field {
    name: &'static str,
    required: bool,
    shape: Shape,
}

const fn must(name: &'static str, shape: Shape) -> Field {
    Field { name, required: true, shape }
}

const fn may(name: &'static str, shape: Shape) -> Field {
    Field { name, required: false, shape }
}

const COUNT: Shape = Shape::Integer { min: 0, max: i64::MAX };
const NAME: Shape = Shape::TextUpTo(32);
const FREE_OBJECT: Shape = Shape::Free;

const FORMAT: Shape = Shape::Tagged(
    "type",
    &[
        (
            "audio/pcm",
            &[must("type", Shape::Text), must("rate", Shape::Integer { min: 24_000, max: 24_000 })],
        ),
        ("audio/pcmu", &[must("type", Shape::Text)]),
        ("audio/pcma", &[must("type", Shape::Text)]),
    ],
);

const TRANSCRIPTION: Shape = Shape::Nullable(&Shape::Object(&[
    may("model", Shape::Text),
    may("language", Shape::Nullable(&Shape::Text)),
    may("languages", Shape::List(&Shape::Text)),
    may("prompt", Shape::Nullable(&Shape::Text)),
    may("keywords", Shape::List(&Shape::Text)),
    may("delay", Shape::OneOf(&["minimal", "low", "medium", "high", "xhigh"])),
]));

const NOISE: Shape = Shape::Nullable(&Shape::Object(&[
    may("type", Shape::OneOf(&["near_field", "far_field"])),
    may("strength", Shape::Number { min: 0.0, max: 1.0 }),
]));

const TURN_DETECTION: Shape = Shape::Nullable(&Shape::Tagged(
    "type",
    &[
        (
            "server_vad",
            &[
                must("type", Shape::Text),
                may("threshold", Shape::Number { min: 0.0, max: 1.0 }),
                may("prefix_padding_ms", COUNT),
                may("silence_duration_ms", COUNT),
                may("create_response", Shape::Boolean),
                may("interrupt_response", Shape::Boolean),
                may("idle_timeout_ms", Shape::Nullable(&Shape::Integer { min: 5_000, max: 30_000 })),
            ],
        ),
        (
            "semantic_vad",
            &[
                must("type", Shape::Text),
                may("eagerness", Shape::OneOf(&["low", "medium", "high", "auto"])),
                may("create_response", Shape::Boolean),
                may("interrupt_response", Shape::Boolean),
            ],
        ),
    ],
));

const VOICES: &[&str] =
    &["alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"];

const VOICE: Shape = Shape::NameOr(VOICES, &Shape::Object(&[must("id", Shape::Text)]));

const TOOLS: Shape = Shape::List(&Shape::Tagged(
    "type",
    &[
        (
            "function",
            &[
                must("type", Shape::Text),
                must("name", Shape::TextUpTo(64)),
                may("description", Shape::Text),
                may("parameters", FREE_OBJECT),
            ],
        ),
        (
            "mcp",
            &[
                must("type", Shape::Text),
                must("server_label", Shape::Text),
                may("server_url", Shape::Text),
                may("connector_id", Shape::Text),
                may("tunnel_id", Shape::Text),
                may("authorization", Shape::Text),
                may("headers", FREE_OBJECT),
                may("allowed_tools", Shape::Free),
                may("require_approval", Shape::Free),
                may("server_description", Shape::Text),
                may("allowed_callers", Shape::Free),
                may("defer_loading", Shape::Boolean),
            ],
        ),
    ],
));

const TOOL_CHOICE: Shape = Shape::NameOr(
    &["none", "auto", "required"],
    &Shape::Tagged(
        "type",
        &[
            ("function", &[must("type", Shape::Text), must("name", Shape::Text)]),
            (
                "mcp",
                &[must("type", Shape::Text), must("server_label", Shape::Text), may("name", Shape::Text)],
            ),
        ],
    ),
);

const REASONING: Shape =
    Shape::Object(&[must("effort", Shape::OneOf(&["minimal", "low", "medium", "high", "xhigh"]))]);

const PROMPT: Shape = Shape::Nullable(&Shape::Object(&[
    must("id", Shape::Text),
    may("version", Shape::Nullable(&Shape::Text)),
    may("variables", FREE_OBJECT),
]));

const TRACING: Shape = Shape::Nullable(&Shape::NameOr(
    &["auto"],
    &Shape::Object(&[
        may("workflow_name", Shape::Text),
        may("group_id", Shape::Text),
        may("metadata", FREE_OBJECT),
    ]),
));

const TRUNCATION: Shape = Shape::NameOr(
    &["auto", "disabled"],
    &Shape::Object(&[
        must("type", Shape::OneOf(&["retention_ratio"])),
        must("retention_ratio", Shape::Number { min: 0.0, max: 1.0 }),
        may("token_limits", Shape::Object(&[may("post_instructions", COUNT)])),
    ]),
);

const MODALITIES: Shape = Shape::List(&Shape::OneOf(&["audio", "text"]));

const SESSION: Shape = Shape::Object(&[
    must("type", Shape::OneOf(&["realtime", "transcription"])),
    may("model", Shape::Text),
    may("output_modalities", MODALITIES),
    may("instructions", Shape::Text),
    may(
        "audio",
        Shape::Object(&[
            may(
                "input",
                Shape::Object(&[
                    may("format", FORMAT),
                    may("transcription", TRANSCRIPTION),
                    may("noise_reduction", NOISE),
                    may("turn_detection", TURN_DETECTION),
                ]),
            ),
            may(
                "output",
                Shape::Object(&[
                    may("format", FORMAT),
                    may("voice", VOICE),
                    may("speed", Shape::Number { min: 0.25, max: 1.5 }),
                ]),
            ),
        ]),
    ),
    may("tools", TOOLS),
    may("tool_choice", TOOL_CHOICE),
    may("parallel_tool_calls", Shape::Boolean),
    may("reasoning", REASONING),
    may("max_output_tokens", Shape::Tokens),
    may("truncation", TRUNCATION),
    may("prompt", PROMPT),
    may("tracing", TRACING),
    may(
        "include",
        Shape::Nullable(&Shape::List(&Shape::OneOf(&["item.input_audio_transcription.logprobs"]))),
    ),
]);

const BETA_FORMAT: Shape = Shape::OneOf(&["pcm16", "g711_ulaw", "g711_alaw"]);

const BETA_SESSION: Shape = Shape::Object(&[
    may("model", Shape::Text),
    may("modalities", MODALITIES),
    may("instructions", Shape::Text),
    may("voice", VOICE),
    may("input_audio_format", BETA_FORMAT),
    may("output_audio_format", BETA_FORMAT),
    may("input_audio_transcription", TRANSCRIPTION),
    may("input_audio_noise_reduction", NOISE),
    may("turn_detection", TURN_DETECTION),
    may("tools", TOOLS),
    may("tool_choice", TOOL_CHOICE),
    may("temperature", Shape::Number { min: 0.6, max: 1.2 }),
    may("max_response_output_tokens", Shape::Tokens),
    may("speed", Shape::Number { min: 0.25, max: 1.5 }),
    may("tracing", TRACING),
]);

const INPUT_TEXT: (&str, &[Field]) = ("input_text", &[must("type", Shape::Text), must("text", Shape::Text)]);

const USER_CONTENT: Shape = Shape::List(&Shape::Tagged(
    "type",
    &[
        INPUT_TEXT,
        (
            "input_audio",
            &[
                must("type", Shape::Text),
                must("audio", Shape::Text),
                may("transcript", Shape::Nullable(&Shape::Text)),
            ],
        ),
        (
            "input_image",
            &[
                must("type", Shape::Text),
                must("image_url", Shape::Text),
                may("detail", Shape::OneOf(&["auto", "low", "high"])),
            ],
        ),
    ],
));

const SYSTEM_CONTENT: Shape = Shape::List(&Shape::Tagged("type", &[INPUT_TEXT]));

const ASSISTANT_CONTENT: Shape = Shape::List(&Shape::Tagged(
    "type",
    &[("output_text", &[must("type", Shape::Text), must("text", Shape::Text)])],
));

const BETA_ASSISTANT_CONTENT: Shape =
    Shape::List(&Shape::Tagged("type", &[("text", &[must("type", Shape::Text), must("text", Shape::Text)])]));

const ITEM_STATUS: Shape = Shape::OneOf(&["completed", "incomplete", "in_progress"]);

macro_rules! item {
    ($($field:expr),* $(,)?) => {
        &[
            may("id", NAME),
            may("object", Shape::OneOf(&["realtime.item"])),
            must("type", Shape::Text),
            may("status", ITEM_STATUS),
            $($field),*
        ]
    };
}

/// The contents of a message are checked by role afterwards, in the dialect of the session.
const ITEM: Shape = Shape::Tagged(
    "type",
    &[
        ("message", item![must("role", Shape::Text), must("content", Shape::Free)]),
        (
            "function_call",
            item![may("call_id", NAME), must("name", Shape::Text), must("arguments", Shape::Text)],
        ),
        ("function_call_output", item![must("call_id", NAME), must("output", Shape::Text)]),
        (
            "mcp_approval_response",
            item![
                must("approval_request_id", Shape::Text),
                must("approve", Shape::Boolean),
                may("reason", Shape::Nullable(&Shape::Text)),
            ],
        ),
    ],
);

macro_rules! message_shape {
    ($assistant:expr) => {
        Shape::Tagged(
            "role",
            &[
                ("user", item![must("role", Shape::Text), must("content", USER_CONTENT)]),
                ("system", item![must("role", Shape::Text), must("content", SYSTEM_CONTENT)]),
                ("assistant", item![must("role", Shape::Text), must("content", $assistant)]),
            ],
        )
    };
}

const MESSAGE: Shape = message_shape!(ASSISTANT_CONTENT);
const BETA_MESSAGE: Shape = message_shape!(BETA_ASSISTANT_CONTENT);

const RESPONSE: Shape = Shape::Object(&[
    may("conversation", Shape::OneOf(&["auto", "none"])),
    may("input", Shape::List(&Shape::Free)),
    may("instructions", Shape::Text),
    may("output_modalities", MODALITIES),
    may(
        "audio",
        Shape::Object(&[may("output", Shape::Object(&[may("format", FORMAT), may("voice", VOICE)]))]),
    ),
    may("tools", TOOLS),
    may("tool_choice", TOOL_CHOICE),
    may("parallel_tool_calls", Shape::Boolean),
    may("reasoning", REASONING),
    may("max_output_tokens", Shape::Tokens),
    may("metadata", Shape::Nullable(&FREE_OBJECT)),
    may("prompt", PROMPT),
]);

const BETA_RESPONSE: Shape = Shape::Object(&[
    may("conversation", Shape::OneOf(&["auto", "none"])),
    may("input", Shape::List(&Shape::Free)),
    may("instructions", Shape::Text),
    may("modalities", MODALITIES),
    may("voice", VOICE),
    may("output_audio_format", BETA_FORMAT),
    may("tools", TOOLS),
    may("tool_choice", TOOL_CHOICE),
    may("temperature", Shape::Number { min: 0.6, max: 1.2 }),
    may("max_response_output_tokens", Shape::Tokens),
    may("metadata", Shape::Nullable(&FREE_OBJECT)),
]);

const EVENT_ID: Shape = Shape::TextUpTo(512);

macro_rules! event {
    ($($field:expr),* $(,)?) => {
        &[must("type", Shape::Text), may("event_id", EVENT_ID), $($field),*]
    };
}

/// The eleven client events of today's protocol.
const EVENTS: &[(&str, &[Field])] = &[
    ("session.update", event![must("session", SESSION)]),
    ("input_audio_buffer.append", event![must("audio", Shape::Text)]),
    ("input_audio_buffer.commit", event![]),
    ("input_audio_buffer.clear", event![]),
    (
        "conversation.item.create",
        event![may("previous_item_id", Shape::Nullable(&Shape::Text)), must("item", ITEM)],
    ),
    ("conversation.item.retrieve", event![must("item_id", Shape::Text)]),
    (
        "conversation.item.truncate",
        event![must("item_id", Shape::Text), must("content_index", COUNT), must("audio_end_ms", COUNT)],
    ),
    ("conversation.item.delete", event![must("item_id", Shape::Text)]),
    ("response.create", event![may("response", RESPONSE)]),
    ("response.cancel", event![may("response_id", Shape::Text)]),
    ("output_audio_buffer.clear", event![]),
];

const BETA_UPDATE: &[Field] = event![must("session", BETA_SESSION)];
const BETA_CREATE: &[Field] = event![may("response", BETA_RESPONSE)];

/// Whether `kind` is a client event at all; otherwise the service's complaint.
pub(super) fn known(kind: &str) -> Result<(), Rejection> {
    if EVENTS.iter().any(|(name, _)| *name == kind) {
        return Ok(());
    }
    let names: Vec<_> = EVENTS.iter().map(|(name, _)| *name).collect();
    Err(invalid_value(kind, &names, "type"))
}

/// Checks the form of a client event of a known type.
pub(super) fn check(kind: &str, event: &Value, dialect: Dialect) -> Result<(), Rejection> {
    let Some((_, today)) = EVENTS.iter().find(|(name, _)| *name == kind) else {
        return known(kind);
    };
    let fields = match (dialect, kind) {
        (Dialect::Beta, "session.update") => BETA_UPDATE,
        (Dialect::Beta, "response.create") => BETA_CREATE,
        (Dialect::Beta | Dialect::Ga, _) => today,
    };
    check_object(event, fields, "")?;
    match kind {
        "session.update" => check_modalities(&event["session"], "session", dialect),
        "response.create" => {
            check_modalities(&event["response"], "response", dialect)?;
            check_metadata(&event["response"]["metadata"])
        }
        "conversation.item.create" if event["item"]["type"] == "message" => {
            let shape = match dialect {
                Dialect::Ga => &MESSAGE,
                Dialect::Beta => &BETA_MESSAGE,
            };
            check_value(&event["item"], shape, "item")
        }
        "conversation.item.create" if event["item"]["id"] == "" => {
            Err(Rejection::at("invalid_value", "Invalid 'item.id': empty string.", "item.id"))
        }
        _ => Ok(()),
    }
}

/// One modality at a time; the retired dialect also took both.
fn check_modalities(holder: &Value, path: &str, dialect: Dialect) -> Result<(), Rejection> {
    let (key, most) = match dialect {
        Dialect::Ga => ("output_modalities", 1),
        Dialect::Beta => ("modalities", 2),
    };
    let Some(list) = holder[key].as_array() else { return Ok(()) };
    if list.is_empty() || list.len() > most {
        let path = format!("{path}.{key}");
        let text = format!(
            "Invalid modalities: {}. Supported combinations are: ['text'] and ['audio'].",
            holder[key]
        );
        return Err(Rejection::at("invalid_value", text, path));
    }
    Ok(())
}

fn check_metadata(metadata: &Value) -> Result<(), Rejection> {
    let Some(pairs) = metadata.as_object() else { return Ok(()) };
    if pairs.len() > 16 {
        let text = format!("Invalid 'response.metadata': at most 16 pairs, but got {}.", pairs.len());
        return Err(Rejection::at("object_above_max_properties", text, "response.metadata"));
    }
    for (key, value) in pairs {
        let path = format!("response.metadata.{key}");
        check_value(value, &Shape::TextUpTo(512), &path)?;
        if key.chars().count() > 64 {
            return Err(too_long(&path, 64, key.chars().count()));
        }
    }
    Ok(())
}

fn check_object(value: &Value, fields: &'static [Field], path: &str) -> Result<(), Rejection> {
    let Some(object) = value.as_object() else { return Err(wrong_type(path, "an object", value)) };
    for (key, inner) in object {
        let here = join(path, key);
        let Some(field) = fields.iter().find(|field| field.name == key) else {
            return Err(Rejection::at("unknown_parameter", format!("Unknown parameter: '{here}'."), here));
        };
        check_value(inner, &field.shape, &here)?;
    }
    match fields.iter().find(|field| field.required && !object.contains_key(field.name)) {
        None => Ok(()),
        Some(field) => Err(missing(&join(path, field.name))),
    }
}

fn check_value(value: &Value, shape: &'static Shape, path: &str) -> Result<(), Rejection> {
    match shape {
        Shape::Free => Ok(()),
        Shape::Nullable(_) if value.is_null() => Ok(()),
        Shape::Nullable(inner) => check_value(value, inner, path),
        Shape::Text => text(value, path).map(drop),
        Shape::TextUpTo(most) => match text(value, path)?.chars().count() {
            length if length > *most => Err(too_long(path, *most, length)),
            _ => Ok(()),
        },
        Shape::OneOf(names) => one_of(text(value, path)?, names, path),
        Shape::NameOr(names, _) if value.is_string() => one_of(text(value, path)?, names, path),
        Shape::NameOr(_, inner) => check_value(value, inner, path),
        Shape::Boolean if value.is_boolean() => Ok(()),
        Shape::Boolean => Err(wrong_type(path, "a boolean", value)),
        Shape::Tokens if value == "inf" => Ok(()),
        Shape::Tokens => integer(value, 1, 4_096, path),
        Shape::Integer { min, max } => integer(value, *min, *max, path),
        Shape::Number { min, max } => {
            let Some(number) = value.as_f64() else { return Err(wrong_type(path, "a decimal", value)) };
            if number < *min {
                let text = format!(
                    "Invalid '{path}': decimal below minimum value. \
 Expected a value >= {min}, but got {number} instead."
                );
                return Err(Rejection::at("decimal_below_min_value", text, path));
            }
            if number > *max {
                let text = format!(
                    "Invalid '{path}': decimal above maximum value. \
 Expected a value <= {max}, but got {number} instead."
                );
                return Err(Rejection::at("decimal_above_max_value", text, path));
            }
            Ok(())
        }
        Shape::Object(fields) => check_object(value, fields, path),
        Shape::Tagged(tag, arms) => {
            if !value.is_object() {
                return Err(wrong_type(path, "an object", value));
            }
            let here = join(path, tag);
            let Some(name) = value.get(*tag) else { return Err(missing(&here)) };
            let name = text(name, &here)?;
            match arms.iter().find(|(arm, _)| *arm == name) {
                Some((_, fields)) => check_object(value, fields, path),
                None => {
                    Err(invalid_value(name, &arms.iter().map(|(arm, _)| *arm).collect::<Vec<_>>(), &here))
                }
            }
        }
        Shape::List(inner) => {
            let Some(list) = value.as_array() else { return Err(wrong_type(path, "an array", value)) };
            list.iter().enumerate().try_for_each(|(i, one)| check_value(one, inner, &format!("{path}[{i}]")))
        }
    }
}

fn text<'a>(value: &'a Value, path: &str) -> Result<&'a str, Rejection> {
    value.as_str().ok_or_else(|| wrong_type(path, "a string", value))
}

fn one_of(name: &str, names: &[&str], path: &str) -> Result<(), Rejection> {
    if names.contains(&name) { Ok(()) } else { Err(invalid_value(name, names, path)) }
}

fn integer(value: &Value, min: i64, max: i64, path: &str) -> Result<(), Rejection> {
    let Some(number) = value.as_i64() else { return Err(wrong_type(path, "an integer", value)) };
    if number < min {
        let text = format!(
            "Invalid '{path}': integer below minimum value. \
 Expected a value >= {min}, but got {number} instead."
        );
        return Err(Rejection::at("integer_below_min_value", text, path));
    }
    if number > max {
        let text = format!(
            "Invalid '{path}': integer above maximum value. \
 Expected a value <= {max}, but got {number} instead."
        );
        return Err(Rejection::at("integer_above_max_value", text, path));
    }
    Ok(())
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn missing(path: &str) -> Rejection {
    Rejection::at("missing_required_parameter", format!("Missing required parameter: '{path}'."), path)
}

fn invalid_value(got: &str, names: &[&str], path: &str) -> Rejection {
    let names: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
    let text = format!("Invalid value: '{got}'. Supported values are: {}.", names.join(", "));
    Rejection::at("invalid_value", text, path)
}

fn too_long(path: &str, most: usize, length: usize) -> Rejection {
    let text = format!(
        "Invalid '{path}': string too long. Expected a string with maximum length {most}, \
         but got a string with length {length} instead."
    );
    Rejection::at("string_above_max_length", text, path)
}

fn wrong_type(path: &str, expected: &str, value: &Value) -> Rejection {
    let got = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let text = format!("Invalid type for '{path}': expected {expected}, but got {got} instead.");
    Rejection::at("invalid_type", text, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(event: Value) -> Rejection {
        let kind = event["type"].as_str().unwrap().to_owned();
        check(&kind, &event, Dialect::Ga).unwrap_err()
    }

    fn update(session: Value) -> Value {
        json!({"type": "session.update", "session": session})
    }

    #[test]
    fn a_whole_session_is_accepted() {
        let session = json!({"type": "realtime", "instructions": "Hi.", "output_modalities": ["audio"],
            "audio": {"input": {"format": {"type": "audio/pcmu"}, "noise_reduction": null,
                "transcription": {"model": "gpt-transcribe", "language": "en"},
                "turn_detection": {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300,
                    "silence_duration_ms": 500, "create_response": true, "interrupt_response": true}},
                "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"}},
            "tools": [{"type": "function", "name": "lookup_order", "parameters": {"type": "object"}}],
            "tool_choice": "auto", "max_output_tokens": "inf"});
        assert_eq!(check("session.update", &update(session), Dialect::Ga), Ok(()));
    }

    #[test]
    fn what_the_service_takes_today_is_accepted() {
        let noise = |noise: Value| {
            update(json!({"type": "realtime", "audio": {"input": {"noise_reduction": noise}}}))
        };
        assert_eq!(check("session.update", &noise(json!({"strength": 0.5})), Dialect::Ga), Ok(()));
        assert_eq!(refusal(noise(json!({"type": "mid_field"}))).code, "invalid_value");
        let tools = json!([{"type": "mcp", "server_label": "crm", "tunnel_id": "tun_1"}]);
        let tools = update(json!({"type": "realtime", "tools": tools}));
        assert_eq!(check("session.update", &tools, Dialect::Ga), Ok(()));
    }

    #[test]
    fn each_malformed_session_has_its_code() {
        let cases = [
            (json!({"instructions": "Hi."}), "missing_required_parameter", "session.type"),
            (json!({"type": "realtime", "modalities": ["audio"]}), "unknown_parameter", "session.modalities"),
            (
                json!({"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm"}}}}),
                "missing_required_parameter",
                "session.audio.input.format.rate",
            ),
            (
                json!({"type": "realtime", "audio": {"output": {"format":
                    {"type": "audio/pcm", "rate": 8000}}}}),
                "integer_below_min_value",
                "session.audio.output.format.rate",
            ),
            (
                json!({"type": "realtime", "audio": {"output": {"format": null}}}),
                "invalid_type",
                "session.audio.output.format",
            ),
            (
                json!({"type": "realtime", "audio": {"output": {"format": "g711_ulaw"}}}),
                "invalid_type",
                "session.audio.output.format",
            ),
            (
                json!({"type": "realtime", "audio": {"input": {"turn_detection":
                    {"type": "server_vad", "create_response": null}}}}),
                "invalid_type",
                "session.audio.input.turn_detection.create_response",
            ),
            (
                json!({"type": "realtime", "output_modalities": ["audio", "text"]}),
                "invalid_value",
                "session.output_modalities",
            ),
            (
                json!({"type": "realtime", "audio": {"output": {"voice": "bob"}}}),
                "invalid_value",
                "session.audio.output.voice",
            ),
        ];
        for (session, code, param) in cases {
            let refusal = refusal(update(session));
            assert_eq!((refusal.code, refusal.param.as_deref()), (code, Some(param)), "{}", refusal.message);
        }
    }

    #[test]
    fn positions_are_whole_and_not_negative() {
        let kind = "conversation.item.truncate";
        let truncate =
            |ms: Value| json!({"type": kind, "item_id": "i", "content_index": 0, "audio_end_ms": ms});
        assert_eq!(refusal(truncate(json!(1180.5))).code, "invalid_type");
        assert_eq!(refusal(truncate(json!(-1))).code, "integer_below_min_value");
        assert_eq!(check("conversation.item.truncate", &truncate(json!(0)), Dialect::Ga), Ok(()));
    }

    #[test]
    fn item_ids_have_thirty_two_characters_at_most() {
        let item = |id: &str| {
            json!({"type": "conversation.item.create", "item": {"id": id, "type": "message", "role": "user",
                "content": [{"type": "input_text", "text": "5"}]}})
        };
        assert_eq!(check("conversation.item.create", &item(&"x".repeat(32)), Dialect::Ga), Ok(()));
        assert_eq!(refusal(item(&"x".repeat(33))).code, "string_above_max_length");
    }

    #[test]
    fn what_a_role_may_say_is_its_own() {
        let item = |role: &str, part: &str| {
            json!({"type": "conversation.item.create", "item": {"type": "message", "role": role,
                "content": [{"type": part, "text": "Hi."}]}})
        };
        assert_eq!(check("conversation.item.create", &item("assistant", "output_text"), Dialect::Ga), Ok(()));
        let refusal = refusal(item("assistant", "text"));
        assert_eq!((refusal.code, refusal.param.as_deref()), ("invalid_value", Some("item.content[0].type")));
        assert_eq!(check("conversation.item.create", &item("assistant", "text"), Dialect::Beta), Ok(()));
    }

    #[test]
    fn an_unknown_event_is_told_which_ones_there_are() {
        let refusal = known("response.start").unwrap_err();
        assert_eq!((refusal.code, refusal.param.as_deref()), ("invalid_value", Some("type")));
        assert!(refusal.message.contains("'response.create'"), "{}", refusal.message);
    }

    #[test]
    fn a_misspelt_field_is_named() {
        let refusal = refusal(json!({"type": "response.cancel", "respones_id": "resp_1"}));
        assert_eq!((refusal.code, refusal.param.as_deref()), ("unknown_parameter", Some("respones_id")));
    }

    #[test]
    fn each_dialect_refuses_the_shape_of_the_other() {
        let today = update(json!({"type": "realtime"}));
        let flat = update(json!({"input_audio_format": "g711_ulaw", "modalities": ["audio", "text"]}));
        assert_eq!(check("session.update", &today, Dialect::Beta).unwrap_err().code, "unknown_parameter");
        assert_eq!(check("session.update", &flat, Dialect::Ga).unwrap_err().code, "unknown_parameter");
        assert_eq!(check("session.update", &flat, Dialect::Beta), Ok(()));
    }
}
