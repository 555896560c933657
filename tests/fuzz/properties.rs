//! What holds for every input, from any sender: one function for each place where the bridge reads what strangers
//! wrote. `.ci/fuzz` looks for inputs that break one of them; `tests/it/fuzz.rs` replays those in `corpus`.
//!
//! An input of several parts has a byte 0xFF between them, which is in no UTF-8 text, so that a seed can be written by
//! hand: `printf 'one\xFFtwo' >corpus/token/seed`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bridge::app::config::Config;
use bridge::audio::Format;
use bridge::auth::signature::{self, Body, Signed, Verifier, forms_of};
use bridge::auth::token::{self, Tokens};
use bridge::base::secret::Secret;
use bridge::call::settings::{CallConfig, Dialect};
use bridge::call::{Leg, ToolResult};
use bridge::export::journal::Content;
use bridge::export::journal::lines::{Formatter, Record, Salt, What};
use bridge::runtime::journal::JournalEntry;
use bridge::wire::realtime::{self, ClientEvent, Effective, FunctionCall, ServerEvent, TurnDetection};
use bridge::wire::twilio::{self, Envelope, FromTwilio, ToTwilio};
use bridge::wire::twiml::{self, After, Stream};
use scenarios::field::import::{Timing, import};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A property, by the name of its target and of its folder in `corpus`.
pub type Property = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Property; 7] = [
    ("twilio", twilio),
    ("realtime", realtime),
    ("twiml", twiml),
    ("signature", signature),
    ("token", token),
    ("journal_lines", journal_lines),
    ("journal_file", journal_file),
];

/// The parts of an input, as text. There is always one more.
fn parts(data: &[u8]) -> impl Iterator<Item = String> {
    data.split(|byte| *byte == 0xFF).map(|part| String::from_utf8_lossy(part).into_owned())
}

/// The text as an object, if the library writes it as it reads it: the last digit of a float may differ.
fn object(text: &str) -> Option<Map<String, Value>> {
    let value: Value = serde_json::from_str(text).ok()?;
    let again: Value = serde_json::from_str(&value.to_string()).ok()?;
    (value == again).then_some(())?;
    if let Value::Object(object) = value { Some(object) } else { None }
}

/// The same object behind a long unknown field.
fn behind_the_unknown(object: Map<String, Value>) -> String {
    let unknown = json!(["x".repeat(200), { "event": "stop", "type": "error" }]);
    let mut changed = Map::from_iter([("unknown".to_owned(), unknown)]);
    changed.extend(object);
    Value::from(changed).to_string()
}

/// A complaint says where and what is missing, never what was there: it goes to a log.
fn quotes_nothing(complaint: &str) {
    assert!(complaint.len() < 120, "too long to say nothing: {complaint}");
    let shape: String = complaint.chars().filter(|c| !c.is_ascii_digit()).collect();
    if let Some((_, shape)) = shape.split_once(": ") {
        let known = ["Data", "Eof", "Io", "Syntax"].map(|kind| format!("{kind} error at line  column "));
        assert!(known.iter().any(|known| known == shape), "{complaint}");
    }
}

// ------------------------------------------------------------------------------------------------ both wires

/// Twilio's wire: what was understood is understood the same when it is written down and read again, also beside fields
/// of the future. What the bridge writes says what was meant, whatever is in it.
pub fn twilio(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match twilio::decode(text) {
        Ok(envelope) => {
            assert!(text.trim_ascii_start().starts_with('{'), "no object: {text}");
            assert_eq!(twilio::decode(&as_twilio_writes(&envelope)), Ok(envelope.clone()), "{text}");
            if let Some(mut object) = object(text) {
                for body in ["start", "media", "mark", "dtmf"] {
                    if let Some(Value::Object(body)) = object.get_mut(body) {
                        body.insert("unknown".into(), json!({ "payload": [1, null] }));
                    }
                }
                assert_eq!(twilio::decode(&behind_the_unknown(object)), Ok(envelope), "{text}");
            }
        }
        Err(error) => quotes_nothing(&error.to_string()),
    }
    let payload = BASE64.encode(data);
    for (message, told) in [
        (
            ToTwilio::Media { audio: data.to_vec() },
            json!({ "event": "media", "streamSid": text, "media": { "payload": payload } }),
        ),
        (
            ToTwilio::Mark { name: text.to_owned() },
            json!({ "event": "mark", "streamSid": text, "mark": { "name": text } }),
        ),
        (ToTwilio::Clear, json!({ "event": "clear", "streamSid": text })),
    ] {
        let frame = message.encode(text);
        assert_eq!(serde_json::from_str::<Value>(&frame).expect("JSON"), told);
        let heard = twilio::decode(&frame).expect("a message").message;
        let same = match (message, heard) {
            (ToTwilio::Media { audio }, FromTwilio::Media(media)) => audio == media.audio,
            (ToTwilio::Mark { name }, FromTwilio::Mark { name: heard }) => name == heard,
            (ToTwilio::Clear, FromTwilio::Unknown { event }) => event == "clear",
            (_, _) => false,
        };
        assert!(same, "{frame}");
    }
}

fn as_twilio_writes(envelope: &Envelope<'_>) -> String {
    let (event, body) = match &envelope.message {
        FromTwilio::Connected => ("connected", Value::Null),
        FromTwilio::Start(start) => (
            "start",
            json!({
                "streamSid": start.stream_sid,
                "callSid": start.call_sid,
                "accountSid": start.account_sid,
                "mediaFormat": {
                    "encoding": start.format.encoding,
                    "sampleRate": start.format.sample_rate,
                    "channels": start.format.channels,
                },
                "customParameters": start.parameters,
            }),
        ),
        FromTwilio::Media(media) => (
            "media",
            json!({
                "chunk": media.chunk.to_string(),
                "timestamp": media.timestamp_ms.map(|ms| ms.to_string()),
                "payload": BASE64.encode(&media.audio),
            }),
        ),
        FromTwilio::Dtmf { digit } => ("dtmf", json!({ "digit": digit })),
        FromTwilio::Mark { name } => ("mark", json!({ "name": name })),
        FromTwilio::Stop => ("stop", Value::Null),
        FromTwilio::Unknown { event } => (event.as_str(), Value::Null),
    };
    let mut object = Map::from_iter([("event".to_owned(), json!(event))]);
    object.extend(envelope.stream_sid.as_ref().map(|sid| ("streamSid".to_owned(), json!(sid))));
    object.extend(envelope.sequence.map(|n| ("sequenceNumber".to_owned(), json!(n.to_string()))));
    object.extend(Some(body).filter(|body| !body.is_null()).map(|body| (event.to_owned(), body)));
    Value::from(object).to_string()
}

/// The model's wire, likewise. Audio is read in two ways, which must not differ.
pub fn realtime(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match realtime::decode(text) {
        Ok(event) => {
            assert!(text.trim_ascii_start().starts_with('{'), "no object: {text}");
            assert_eq!(realtime::decode(&as_a_model_writes(&event)), Ok(event.clone()), "{text}");
            if let Some(object) = object(text) {
                assert_eq!(realtime::decode(&behind_the_unknown(object)), Ok(event), "{text}");
            }
        }
        Err(error) => quotes_nothing(&error.to_string()),
    }
    let settings =
        CallConfig { instructions: text.to_owned(), format: Format::Pcmu, ..CallConfig::default() };
    for dialect in [Dialect::Ga, Dialect::Beta] {
        let update =
            ClientEvent::SessionUpdate { event_id: text.into(), settings: Box::new(settings.session()) };
        let told: Value = serde_json::from_str(&update.encode(dialect)).expect("JSON");
        assert_eq!((&told["event_id"], &told["session"]["instructions"]), (&json!(text), &json!(text)));
    }
    let item = json!({ "id": text, "type": "message", "role": "user",
        "content": [{ "type": "input_text", "text": text }] });
    let output = json!({ "type": "function_call_output", "call_id": text, "output": text });
    for (event, told) in [
        (
            ClientEvent::AppendAudio { audio: data.to_vec() },
            json!({ "type": "input_audio_buffer.append", "audio": BASE64.encode(data) }),
        ),
        (
            ClientEvent::CreateResponse {
                event_id: text.into(),
                request: 7,
                instructions: Some(text.into()),
                may_call: true,
            },
            json!({ "type": "response.create", "event_id": text,
                "response": { "metadata": { "bridge_request": "7" }, "instructions": text } }),
        ),
        (
            ClientEvent::CancelResponse { response: Some(text.into()) },
            json!({ "type": "response.cancel", "response_id": text }),
        ),
        (
            ClientEvent::Truncate { item: text.into(), content: 1, audio_end_ms: 20 },
            json!({ "type": "conversation.item.truncate", "item_id": text, "content_index": 1, "audio_end_ms": 20 }),
        ),
        (
            ClientEvent::UserText { item: text.into(), text: text.into() },
            json!({ "type": "conversation.item.create", "item": item }),
        ),
        (
            ClientEvent::ToolOutput { event_id: text.into(), call_id: text.into(), output: text.into() },
            json!({ "type": "conversation.item.create", "event_id": text, "item": output }),
        ),
    ] {
        assert_eq!(serde_json::from_str::<Value>(&event.encode(Dialect::Ga)).expect("JSON"), told);
    }
}

fn as_a_model_writes(event: &ServerEvent) -> String {
    let of = |kind: &str, mut more: Value| {
        more["type"] = json!(kind);
        more
    };
    let call = |call: &FunctionCall| {
        let status = if call.complete { "completed" } else { "incomplete" };
        json!({ "id": call.item, "type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments,
            "status": status })
    };
    let told = match event {
        ServerEvent::SessionCreated { id, expires_at } => {
            of("session.created", json!({ "session": { "id": id, "expires_at": expires_at } }))
        }
        ServerEvent::SessionUpdated { session, expires_at } => {
            let format = |kind: &Option<String>| json!({ "format": { "type": kind } });
            let Effective { formats, turns, tools } = session.as_ref();
            let mut audio = json!({ "input": format(&formats.input), "output": format(&formats.output) });
            match turns {
                TurnDetection::NotEchoed => {}
                TurnDetection::Off => audio["input"]["turn_detection"] = Value::Null,
                TurnDetection::By { kind, create_response, interrupt_response } => {
                    let mut echo = json!({
                        "create_response": create_response, "interrupt_response": interrupt_response,
                    });
                    if let Some(kind) = kind {
                        echo["type"] = json!(kind);
                    }
                    audio["input"]["turn_detection"] = echo;
                }
            }
            let mut told = json!({ "audio": audio, "expires_at": expires_at });
            if let Some(tools) = tools {
                told["tools"] =
                    tools.iter().map(|name| json!({ "type": "function", "name": name })).collect();
            }
            of("session.updated", json!({ "session": told }))
        }
        ServerEvent::Error(error) => {
            let error = json!({ "type": error.kind, "code": error.code, "event_id": error.event_id });
            of("error", json!({ "error": error }))
        }
        ServerEvent::SpeechStarted { item } => {
            of("input_audio_buffer.speech_started", json!({ "item_id": item }))
        }
        ServerEvent::SpeechStopped { item, audio_end_ms } => {
            of("input_audio_buffer.speech_stopped", json!({ "item_id": item, "audio_end_ms": audio_end_ms }))
        }
        ServerEvent::Committed { item, previous } => {
            of("input_audio_buffer.committed", json!({ "item_id": item, "previous_item_id": previous }))
        }
        ServerEvent::ItemAdded { item, previous, role, .. } => {
            let item = json!({ "id": item, "role": role });
            of("conversation.item.added", json!({ "item": item, "previous_item_id": previous }))
        }
        ServerEvent::Truncated { item } => of("conversation.item.truncated", json!({ "item_id": item })),
        ServerEvent::Transcribed { item, text } => of(
            "conversation.item.input_audio_transcription.completed",
            json!({ "item_id": item, "transcript": text }),
        ),
        ServerEvent::TranscriptionFailed { item } => {
            of("conversation.item.input_audio_transcription.failed", json!({ "item_id": item }))
        }
        ServerEvent::ResponseCreated { response, request } => {
            let metadata = json!({ "bridge_request": request.map(|number| number.to_string()) });
            of("response.created", json!({ "response": { "id": response, "metadata": metadata } }))
        }
        ServerEvent::ResponseDone(done) => {
            let usage = done.usage.map(|usage| {
                let cached = json!({ "text_tokens": usage.cached_text, "audio_tokens": usage.cached_audio });
                json!({
                    "total_tokens": usage.total,
                    "input_tokens": usage.input,
                    "output_tokens": usage.output,
                    "input_token_details": {
                        "text_tokens": usage.input_text,
                        "audio_tokens": usage.input_audio,
                        "cached_tokens": usage.cached,
                        "cached_tokens_details": cached,
                    },
                    "output_token_details": {
                        "text_tokens": usage.output_text,
                        "audio_tokens": usage.output_audio,
                    },
                })
            });
            let response = json!({
                "id": done.response,
                "status": done.status,
                "status_details": { "error": { "code": done.error } },
                "output": done.calls.iter().map(call).collect::<Vec<_>>(),
                "usage": usage,
            });
            of("response.done", json!({ "response": response }))
        }
        ServerEvent::AudioDelta { response, item, content, audio } => of(
            "response.output_audio.delta",
            json!({ "response_id": response, "item_id": item, "content_index": content,
                "delta": BASE64.encode(audio) }),
        ),
        ServerEvent::AudioDone { response, item } => {
            of("response.output_audio.done", json!({ "response_id": response, "item_id": item }))
        }
        ServerEvent::AgentWords { item, delta } => {
            of("response.output_audio_transcript.delta", json!({ "item_id": item, "delta": delta }))
        }
        ServerEvent::AgentWordsDone { item, text } => {
            of("response.output_audio_transcript.done", json!({ "item_id": item, "transcript": text }))
        }
        ServerEvent::OutputItemDone { response, call: made } => of(
            "response.output_item.done",
            json!({ "response_id": response, "item": made.as_ref().map(call) }),
        ),
        ServerEvent::Other { kind, known: _ } => of(kind, json!({})),
    };
    told.to_string()
}

// --------------------------------------------------------------------------------------------------- TwiML

/// TwiML: whatever the values are, a reader finds the elements that were meant, with those values, and no others.
pub fn twiml(data: &[u8]) {
    let mut parts = parts(data);
    let mut next = || parts.next().unwrap_or_default();
    let (url, callback, kind, target) = (next(), next(), next(), next());
    let rest: Vec<String> = parts.collect();
    let pairs: Vec<(&str, &str)> =
        rest.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let after = match kind.as_str() {
        "redirect" => After::Redirect(target.clone()),
        "dial" => After::Dial(target.clone()),
        _ => After::Hangup,
    };
    let status_callback = (kind != "none").then_some(callback.as_str());
    let made = twiml::connect(&Stream { url: &url, status_callback, parameters: &pairs }, &after);

    let fits =
        |(name, value): &&(&str, &str)| name.chars().count() + value.chars().count() <= twiml::PARAMETER_MAX;
    let mut stream = vec![("url".to_owned(), held(&url))];
    if let Some(callback) = status_callback {
        stream.push(("statusCallback".into(), held(callback)));
        stream.push(("statusCallbackMethod".into(), "POST".into()));
    }
    let mut meant = vec![open("Response", vec![]), open("Connect", vec![]), open("Stream", stream)];
    for (name, value) in pairs.iter().filter(fits) {
        meant.push(open("Parameter", vec![("name".into(), held(name)), ("value".into(), held(value))]));
        meant.push(Xml::Close("Parameter".into()));
    }
    meant.extend(["Stream", "Connect"].map(|name| Xml::Close(name.into())));
    let (verb, attributes) = match after {
        After::Hangup => ("Hangup", vec![]),
        After::Redirect(_) => ("Redirect", vec![("method".to_owned(), "POST".to_owned())]),
        After::Dial(_) => ("Dial", vec![]),
    };
    meant.push(open(verb, attributes));
    if verb != "Hangup" && !held(&target).is_empty() {
        meant.push(Xml::Text(held(&target)));
    }
    meant.extend([verb, "Response"].map(|name| Xml::Close(name.into())));
    assert_eq!(read_xml(&made), meant, "{made}");

    if twiml::is_dialable(&target) {
        assert!(twiml::dial(&target).contains(&format!("<Dial>{target}</Dial>")), "{target}");
    }
}

/// What XML can hold of a text: <https://www.w3.org/TR/xml/#charsets>, and no control character that it discourages
/// although every telephone's name could hold it.
fn held(text: &str) -> String {
    let holds = |c: &char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{7E}' | '\u{80}'..='\u{FFFD}' | '\u{10000}'..='\u{10FFFF}');
    text.chars().filter(holds).collect()
}

/// A piece of XML.
#[derive(Debug, PartialEq)]
enum Xml {
    Open(String, Vec<(String, String)>),
    Text(String),
    Close(String),
}

fn open(name: &str, attributes: Vec<(String, String)>) -> Xml {
    Xml::Open(name.to_owned(), attributes)
}

/// Reads XML of the plainest kind: elements, attributes in double quotes, text, the five entities and characters by
/// number. Anything else is refused.
fn read_xml(text: &str) -> Vec<Xml> {
    let mut rest = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").expect("a declaration");
    let mut found = Vec::new();
    let mut stack: Vec<String> = Vec::new();
    while !rest.trim_ascii().is_empty() {
        if let Some(tag) = rest.strip_prefix("</") {
            let (name, after) = tag.split_once('>').expect("an end of the tag");
            assert_eq!(stack.pop().as_deref(), Some(name), "closed in order");
            found.push(Xml::Close(name.to_owned()));
            rest = after;
        } else if let Some(tag) = rest.strip_prefix('<') {
            let (tag, after) = tag.split_once('>').expect("an end of the tag");
            let (tag, empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
            let (name, mut more) = tag.split_once(' ').unwrap_or((tag, ""));
            assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphabetic()), "a name: {name:?}");
            let mut attributes = Vec::new();
            while !more.is_empty() {
                let (name, value) = more.split_once("=\"").expect("a value");
                let (value, next) = value.split_once('"').expect("an end of the value");
                assert!(
                    name.bytes().all(|b| b.is_ascii_alphabetic()) && !value.contains('<'),
                    "{name:?}={value:?}"
                );
                attributes.push((name.to_owned(), unescaped(value)));
                more = next.strip_prefix(' ').unwrap_or(next);
            }
            found.push(Xml::Open(name.to_owned(), attributes));
            if empty {
                found.push(Xml::Close(name.to_owned()));
            } else {
                stack.push(name.to_owned());
            }
            rest = after;
        } else {
            let (words, _) = rest.split_once('<').expect("text is inside of something");
            found.push(Xml::Text(unescaped(words)));
            rest = &rest[words.len()..];
        }
    }
    assert!(stack.is_empty(), "all is closed");
    found
}

fn unescaped(text: &str) -> String {
    let mut pieces = text.split('&');
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (name, after) = piece.split_once(';').expect("an end of the entity");
        out.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            number => {
                let number = number.strip_prefix('#').and_then(|number| number.parse().ok());
                number.and_then(char::from_u32).expect("a character by number")
            }
        });
        out.push_str(after);
    }
    // What stands there as it is: a reader makes a space of these in an attribute.
    assert!(!text.contains(['\t', '\n', '\r']), "{text:?}");
    out
}

// --------------------------------------------------------------------------------------- who may come in

/// The signature: what Twilio would have signed is accepted, and with one character of it changed it is not. The
/// signature is made by the mock Twilio, which has code of its own for it.
pub fn signature(data: &[u8]) {
    let mut parts = parts(data);
    let mut next = || parts.next().unwrap_or_default();
    let (secret, url, settings, at) = (next(), next(), next(), next());
    let rest: Vec<String> = parts.collect();
    let form: Vec<(String, String)> =
        rest.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    let borrowed: Vec<(&str, &str)> =
        form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let verifier = Verifier::new(Secret::new(secret.clone()), BTreeMap::new());
    let check = |signature: &str, settings: Option<&str>, url: &str, form: &[(String, String)]| {
        verifier.check(Signed { signature: Some(signature), settings }, [url], Body::Form(form))
    };
    let good = mocks::twilio::signature(&secret, &url, &borrowed);
    if secret.is_empty() {
        return assert_eq!(
            check(&good, None, &url, &form),
            Err(signature::Refusal::Key),
            "no secret, no entry"
        );
    }
    assert_eq!(check(&good, None, &url, &form), Ok(()));
    assert!(check(&good, Some(&settings), &url, &form).is_err(), "no shared key is configured");
    assert!(check(&settings, None, &url, &form).is_err() || settings.trim() == good, "made up: {settings}");

    let at = at.bytes().fold(0_usize, |at, byte| at.wrapping_mul(257).wrapping_add(byte.into()));
    let mut bytes = BASE64.decode(&good).expect("base64");
    let bit = at % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    assert!(check(&BASE64.encode(bytes), None, &url, &form).is_err(), "one bit of the signature");
    if let Some(changed) = one_changed(&url, at) {
        assert!(check(&good, None, &changed, &form).is_err(), "{url:?} and {changed:?}");
    }
    let mut changed = form.clone();
    if let Some((name, value)) =
        changed.len().checked_sub(1).and_then(|last| changed.get_mut(at % (last + 1)))
    {
        let part = if at % 2 == 0 { name } else { value };
        if let Some(other) = one_changed(part, at) {
            *part = other;
            // Twilio signs each pair once: one of several may become another of several.
            let same = BTreeSet::from_iter(&changed) == BTreeSet::from_iter(&form);
            assert_eq!(check(&good, None, &url, &changed).is_ok(), same, "{form:?} and {changed:?}");
        }
    }
    if let Some(other) = one_changed(&secret, at) {
        let signature = mocks::twilio::signature(&other, &url, &borrowed);
        assert!(check(&signature, None, &url, &form).is_err(), "{secret:?} and {other:?}");
    }

    // A body that is no form is signed by its hash.
    let hash: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    let hashed = format!("{}?bodySHA256={hash}", url.replace('?', ""));
    let signature = mocks::twilio::signature(&secret, &hashed, &[]);
    let signed = Signed { signature: Some(&signature), settings: None };
    assert_eq!(verifier.check(signed, [hashed.as_str()], Body::Raw(data)), Ok(()));
    let longer = [data, b"x"].concat();
    assert!(verifier.check(signed, [hashed.as_str()], Body::Raw(&longer)).is_err());

    // The forms of an address are that address, but for what is implied.
    for upgrade in [false, true] {
        let forms = forms_of(&url, upgrade);
        assert!(forms.contains(&url), "{forms:?}");
        for form in forms {
            assert_eq!(essence(&form, upgrade), essence(&url, upgrade), "{form:?}");
        }
    }
}

/// The text with its character number `at` replaced.
fn one_changed(text: &str, at: usize) -> Option<String> {
    let at = at.checked_rem(text.chars().count())?;
    let other = |c: char| if c == 'x' { 'y' } else { 'x' };
    Some(text.chars().enumerate().map(|(n, c)| if n == at { other(c) } else { c }).collect())
}

/// An address without the implied port, and for an upgrade without the query and slashes at the end.
fn essence(url: &str, upgrade: bool) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let implied = if matches!(scheme, "https" | "wss") { ":443" } else { ":80" };
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let target = if upgrade { path.trim_end_matches('/') } else { target };
    format!("{scheme}://{}{target}", authority.trim_end_matches(implied))
}

/// Tokens: good once, for the call they were made for, in their time, unchanged, and for nothing else.
pub fn token(data: &[u8]) {
    let mut parts = parts(data);
    let mut next = || parts.next().unwrap_or_default();
    let (secret, call, other, made_up, numbers) = (next(), next(), next(), next(), next());
    let mut numbers = numbers.split(' ').map(|number| number.parse::<i64>().unwrap_or_default());
    let (now, life) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let life = u32::try_from(life).unwrap_or(60);
    let tokens = Tokens::new(&Secret::new(secret.clone()), life, 7);
    let redeem = |token: &str, call: &str, now: i64| tokens.redeem(Some(token), call, now);

    let token = tokens.issue(&call, now);
    assert!(redeem(&made_up, &call, now).is_err() || made_up == token, "{made_up:?}");
    if other != call {
        assert_eq!(redeem(&token, &other, now), Err(token::Refusal::Forged), "{other:?}");
    }
    let at = usize::try_from(now.unsigned_abs() % 1_024).unwrap_or_default();
    if let Some(changed) = one_changed(&token, at) {
        assert_eq!(redeem(&changed, &call, now), Err(token::Refusal::Forged), "{changed:?}");
    }
    // Where the text that is signed could be taken apart otherwise: a part of the call's name moves into the token.
    let (body, sum) = token.rsplit_once('.').expect("a signature");
    for (at, between) in call.match_indices(|c: char| c.is_ascii_control()) {
        let (taken, left) = (&call[..at], &call[at + between.len()..]);
        let moved = format!("{body}{between}{taken}.{sum}");
        assert_eq!(redeem(&moved, left, now), Err(token::Refusal::Forged), "{moved:?} for {left:?}");
    }
    if let Some(late) = now.checked_add(i64::from(life) + 6) {
        assert_eq!(redeem(&token, &call, late), Err(token::Refusal::Expired));
    }
    let replica = Tokens::new(&Secret::new(secret), life, 8);
    assert_eq!(redeem(&token, &call, now), Ok(()));
    assert_eq!(redeem(&token, &call, now), Err(token::Refusal::Used));
    assert_eq!(replica.redeem(Some(&token), &call, now), Ok(()), "another process knows it");
    assert_ne!(tokens.issue(&call, now), token, "each is another one");
}

// -------------------------------------------------------------------------------------------------- journals

/// Lines of a journal: each note is one line, which a reader understands; written again it is the same. With hashes
/// alone nothing of the content is there, with everything all of it. The parts are messages: a letter for where each is
/// from (`c`aller, `m`odel, `t`ool), then the message.
pub fn journal_lines(data: &[u8]) {
    let notes: Vec<JournalEntry> = parts(data)
        .filter_map(|part| {
            let (from, text) = part.split_at_checked(1)?;
            let text = text.to_owned();
            match from {
                "c" => Some(JournalEntry::Text(Leg::Caller, text)),
                "m" => Some(JournalEntry::Text(Leg::Model, text)),
                "t" => Some(JournalEntry::ToolEnded(ToolResult { call_id: text.clone(), output: Ok(text) })),
                _ => None,
            }
        })
        .collect();
    let config = Config::default().server();
    for content in [Content::Hashes, Content::Full] {
        let beginning = config.beginning(1, 1_767_225_600, Duration::ZERO);
        let (mut formatter, header) = Formatter::begin(&beginning, content, Salt::known());
        let mut file = header + "\n";
        let mut told = Vec::new();
        for (at, note) in notes.iter().enumerate() {
            let (line, _) = formatter.line(Duration::from_millis(at as u64 * 20), note);
            assert!(!line.contains('\n'), "one line: {line}");
            let record: Record =
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(serde_json::to_string(&record).expect("JSON"), line, "the same when written again");
            match content {
                Content::Hashes => assert!(!has_data(&serde_json::from_str(&line).expect("JSON")), "{line}"),
                Content::Full => tells_all(note, &record.what),
            }
            agrees_with_the_call(note, &record.what);
            told.push(record);
            file += &line;
            file.push('\n');
        }
        match scenarios::field::read(file.as_bytes()) {
            Ok(recorded) => assert_eq!(recorded.records, told),
            Err(error) => assert!(told.is_empty(), "{error}"),
        }
    }
}

/// Whether content is anywhere in a line.
fn has_data(value: &Value) -> bool {
    match value {
        Value::Object(object) => object.iter().any(|(key, value)| key == "data" || has_data(value)),
        Value::Array(list) => list.iter().any(has_data),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn tells_all(note: &JournalEntry, what: &What) {
    let decoded = |data: &Option<String>| data.as_ref().and_then(|data| BASE64.decode(data).ok());
    match (note, what) {
        (JournalEntry::Text(_, text), What::Malformed { data, .. }) => assert_eq!(data.as_ref(), Some(text)),
        (JournalEntry::Text(_, text), What::Media { audio, .. }) => {
            let Ok(FromTwilio::Media(media)) = twilio::decode(text).map(|envelope| envelope.message) else {
                panic!("no audio: {text}")
            };
            assert_eq!(decoded(&audio.data), Some(media.audio));
        }
        (JournalEntry::Text(_, text), What::Model(event)) => {
            if let Ok(ServerEvent::AudioDelta { audio, .. }) = realtime::decode(text) {
                assert_eq!(event.audio.as_ref().and_then(|blob| decoded(&blob.data)), Some(audio));
            }
        }
        (JournalEntry::ToolEnded(ToolResult { output: Ok(text), .. }), What::ToolEnded { output, .. }) => {
            assert_eq!(output.data.as_ref(), Some(text));
        }
        (_, _) => {}
    }
}

/// A journal does not call malformed what the call understood: it would be replayed otherwise.
fn agrees_with_the_call(note: &JournalEntry, what: &What) {
    let JournalEntry::Text(leg, text) = note else { return };
    let understood = match leg {
        Leg::Caller => twilio::decode(text).is_ok(),
        Leg::Model => realtime::decode(text).is_ok(),
    };
    assert!(!(understood && matches!(what, What::Malformed { .. })), "{note:?} is {what:?}");
}

/// A journal as a file, whole or not: what is read of it is read the same when it is written again, and a scenario can
/// be made of it.
pub fn journal_file(data: &[u8]) {
    let Ok(recorded) = scenarios::field::read(data) else { return };
    let mut file = serde_json::to_string(&recorded.header).expect("JSON");
    for record in &recorded.records {
        file.push('\n');
        file += &serde_json::to_string(record).expect("JSON");
    }
    let again = scenarios::field::read(file.as_bytes()).expect("what was read can be read");
    // The last digit of a float may differ.
    if object(&file[..file.find('\n').unwrap_or(file.len())]).is_some()
        && file.lines().all(|line| object(line).is_some())
    {
        assert_eq!((&again.header, &again.records), (&recorded.header, &recorded.records));
    }
    for timing in [Timing::Heard, Timing::Recorded] {
        let made = import(std::slice::from_ref(&recorded), timing);
        assert_eq!(made.scenario.calls.len(), 1);
    }
}
