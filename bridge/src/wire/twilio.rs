//! Twilio Media Streams on the wire. Decoding is lenient, encoding is exact.
//!
//! Twilio sends one JSON object per text frame; every number but `sampleRate` and `channels` is a string, and
//! both forms are accepted. Unknown events and fields are data about the future, not errors. The bridge sends
//! exactly three messages (`media`, `mark`, `clear`) with exactly the documented fields: Twilio raises warning
//! 31951 for anything else.

use crate::audio::Companding;
use crate::wire::base64;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

/// A message from Twilio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromTwilio {
    /// The first message of a socket; carries nothing a bridge needs.
    Connected,
    /// The stream is known.
    Start(Start),
    /// Audio from the caller.
    Media(Media),
    /// One key press.
    Dtmf {
        /// `0`-`9`, `*`, `#`, or `A`-`D`.
        digit: char,
    },
    /// A mark we sent came back: its audio was played, or a `clear` flushed it.
    Mark {
        /// The name we gave it.
        name: String,
    },
    /// The stream has ended: the caller hung up or the call was redirected.
    Stop,
    /// An event this version does not know.
    Unknown {
        /// Its name.
        event: String,
    },
}

/// The body of `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// `MZ...`, repeated in every message both ways.
    pub stream_sid: String,
    /// `CA...`.
    pub call_sid: String,
    /// `AC...`, empty when absent.
    pub account_sid: String,
    /// What the caller's audio is: read, not assumed.
    pub format: MediaFormat,
    /// The `<Parameter>`s of the TwiML.
    pub parameters: BTreeMap<String, String>,
}

/// `start.mediaFormat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaFormat {
    /// `audio/x-mulaw` in all documented cases; carriers of the same protocol may speak A-law.
    pub encoding: String,
    /// Hz.
    pub sample_rate: u32,
    /// Channels.
    pub channels: u32,
}

impl MediaFormat {
    /// The variant of G.711 this is, at 8 kHz and mono: all that the bridge decodes.
    pub fn companding(&self) -> Option<Companding> {
        let companding = match self.encoding.as_str() {
            "audio/x-mulaw" | "audio/mulaw" | "audio/pcmu" | "audio/PCMU" => Companding::Ulaw,
            "audio/x-alaw" | "audio/alaw" | "audio/pcma" | "audio/PCMA" => Companding::Alaw,
            _ => return None,
        };
        (self.sample_rate == 8_000 && self.channels == 1).then_some(companding)
    }
}

/// The body of `media`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    /// Counts media messages from 1; 0 when absent.
    pub chunk: u64,
    /// Presentation time on the caller's clock, ms; `None` when absent.
    pub timestamp_ms: Option<u64>,
    /// Raw G.711 bytes.
    pub audio: Vec<u8>,
}

/// A message that cannot be understood. The words name the field, never its content.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Not a JSON object of the documented shape.
    #[error("not a Media Streams message: {0}")]
    Json(String),
    /// The event lacks its body or a field of it.
    #[error("`{event}` without `{field}`")]
    Missing {
        /// The event.
        event: &'static str,
        /// The field.
        field: &'static str,
    },
    /// The audio is not base64.
    #[error("`media.payload` is not base64")]
    Payload,
}

/// A decoded message with the stream it claims to belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Top-level `streamSid`, absent on `connected`.
    pub stream_sid: Option<Cow<'a, str>>,
    /// `sequenceNumber`, by which missing messages can be found.
    pub sequence: Option<u64>,
    /// The message.
    pub message: FromTwilio,
}

/// A string that is borrowed from the message unless it has escapes. Inside an `Option`, serde would copy a bare `Cow`.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default)]
    stream_sid: Option<Text<'a>>,
    #[serde(default, deserialize_with = "number")]
    sequence_number: Option<u64>,
    #[serde(borrow, default)]
    media: Option<WireMedia<'a>>,
    #[serde(default)]
    start: Option<WireStart>,
    #[serde(default)]
    dtmf: Option<WireDtmf>,
    #[serde(default)]
    mark: Option<WireMark>,
}

#[derive(Deserialize)]
struct WireMedia<'a> {
    #[serde(default, deserialize_with = "number")]
    chunk: Option<u64>,
    #[serde(default, deserialize_with = "number")]
    timestamp: Option<u64>,
    #[serde(borrow, default)]
    payload: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireStart {
    #[serde(default)]
    stream_sid: Option<String>,
    #[serde(default)]
    call_sid: Option<String>,
    #[serde(default)]
    account_sid: Option<String>,
    #[serde(default)]
    media_format: Option<WireFormat>,
    #[serde(default)]
    custom_parameters: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireFormat {
    encoding: String,
    #[serde(default, deserialize_with = "number")]
    sample_rate: Option<u64>,
    #[serde(default, deserialize_with = "number")]
    channels: Option<u64>,
}

#[derive(Deserialize)]
struct WireDtmf {
    digit: Option<String>,
}

#[derive(Deserialize)]
struct WireMark {
    name: Option<String>,
}

/// A whole number that may be written as a string; anything else counts as absent.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    deserializer.deserialize_any(Number)
}

/// Reads [`number`] from whatever is there.
struct Number;

impl<'de> Visitor<'de> for Number {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(text.trim().parse().ok())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// Reads one text frame from Twilio.
///
/// # Errors
/// [`Malformed`] when the frame is not a JSON object with an `event`, or a known event lacks what it is for.
pub fn decode(text: &str) -> Result<Envelope<'_>, Malformed> {
    let wire: Wire<'_> = object(text).map_err(|e| Malformed::Json(shape_of(&e)))?;
    let stream_sid = wire.stream_sid.map(|sid| sid.0);
    let message = match wire.event.as_ref() {
        "media" => FromTwilio::Media(media(wire.media)?),
        "mark" => FromTwilio::Mark {
            name: wire
                .mark
                .and_then(|m| m.name)
                .ok_or(Malformed::Missing { event: "mark", field: "mark.name" })?,
        },
        "dtmf" => FromTwilio::Dtmf {
            digit: wire
                .dtmf
                .and_then(|d| d.digit)
                .and_then(|d| d.chars().next())
                .filter(|c| c.is_ascii_digit() || matches!(c, '*' | '#' | 'A'..='D' | 'a'..='d'))
                .ok_or(Malformed::Missing { event: "dtmf", field: "dtmf.digit" })?
                .to_ascii_uppercase(),
        },
        "connected" => FromTwilio::Connected,
        "start" => FromTwilio::Start(start(wire.start, stream_sid.as_deref())?),
        "stop" => FromTwilio::Stop,
        other => FromTwilio::Unknown { event: other.chars().take(40).collect() },
    };
    Ok(Envelope { stream_sid, sequence: wire.sequence_number, message })
}

fn media(body: Option<WireMedia<'_>>) -> Result<Media, Malformed> {
    let body = body.ok_or(Malformed::Missing { event: "media", field: "media" })?;
    let payload = body.payload.ok_or(Malformed::Missing { event: "media", field: "media.payload" })?;
    let audio = base64::read(&payload.0).map_err(|_| Malformed::Payload)?;
    Ok(Media { chunk: body.chunk.unwrap_or(0), timestamp_ms: body.timestamp, audio })
}

fn start(body: Option<WireStart>, envelope_sid: Option<&str>) -> Result<Start, Malformed> {
    let missing = |field| Malformed::Missing { event: "start", field };
    let body = body.ok_or_else(|| missing("start"))?;
    let stream_sid =
        body.stream_sid.or(envelope_sid.map(str::to_owned)).ok_or_else(|| missing("start.streamSid"))?;
    let format = body.media_format.ok_or_else(|| missing("start.mediaFormat"))?;
    let small = |n: Option<u64>| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    Ok(Start {
        stream_sid,
        call_sid: body.call_sid.ok_or_else(|| missing("start.callSid"))?,
        account_sid: body.account_sid.unwrap_or_default(),
        format: MediaFormat {
            encoding: format.encoding,
            sample_rate: small(format.sample_rate),
            channels: small(format.channels),
        },
        parameters: body
            .custom_parameters
            .unwrap_or_default()
            .into_iter()
            .map(|(name, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                (name, text)
            })
            .collect(),
    })
}

/// Reads an object. Left to itself the library would take a list of its values for one, too.
pub(crate) fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, serde_json::Error> {
    if text.trim_ascii_start().starts_with('[') {
        return Err(serde::de::Error::custom("a list where an object belongs"));
    }
    serde_json::from_str(text)
}

/// serde_json's complaint without the content it may quote.
pub(crate) fn shape_of(error: &serde_json::Error) -> String {
    format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column())
}

/// A message to Twilio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToTwilio {
    /// Audio to play after what is queued: raw G.711, any whole number of 20 ms frames.
    Media {
        /// The bytes.
        audio: Vec<u8>,
    },
    /// Tell us when everything sent so far has been played.
    Mark {
        /// Comes back verbatim.
        name: String,
    },
    /// Forget everything queued, at once.
    Clear,
}

impl ToTwilio {
    /// The text frame for this message on stream `stream_sid`.
    pub fn encode(&self, stream_sid: &str) -> String {
        let begun = |event: &str, room: usize| {
            let mut text = String::with_capacity(60 + stream_sid.len() + room);
            text.push_str(r#"{"event":""#);
            text.push_str(event);
            text.push_str(r#"","streamSid":"#);
            push_quoted(&mut text, stream_sid);
            text
        };
        match self {
            Self::Media { audio } => {
                let mut text = begun("media", base64::text_len(audio.len()));
                text.push_str(r#","media":{"payload":""#);
                base64::write(audio, &mut text);
                text.push_str(r#""}}"#);
                text
            }
            Self::Mark { name } => {
                let mut text = begun("mark", name.len());
                text.push_str(r#","mark":{"name":"#);
                push_quoted(&mut text, name);
                text.push_str("}}");
                text
            }
            Self::Clear => begun("clear", 0) + "}",
        }
    }
}

/// Puts a JSON string behind what `text` holds. Nearly every one is plain, and then nothing is allocated.
fn push_quoted(text: &mut String, content: &str) {
    if content.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        text.push('"');
        text.push_str(content);
        text.push('"');
    } else {
        text.push_str(&serde_json::Value::from(content).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_law_is_read_from_the_media_format() {
        let companding = |encoding: &str, sample_rate, channels| {
            MediaFormat { encoding: encoding.to_owned(), sample_rate, channels }.companding()
        };
        for encoding in ["audio/x-mulaw", "audio/mulaw", "audio/pcmu", "audio/PCMU"] {
            assert_eq!(companding(encoding, 8_000, 1), Some(Companding::Ulaw), "{encoding}");
        }
        for encoding in ["audio/x-alaw", "audio/alaw", "audio/pcma", "audio/PCMA"] {
            assert_eq!(companding(encoding, 8_000, 1), Some(Companding::Alaw), "{encoding}");
        }
        for (encoding, rate, channels) in [
            ("audio/l16", 8_000, 1),
            ("audio/x-alaw", 16_000, 1),
            ("audio/x-mulaw", 8_000, 2),
            ("", 8_000, 1),
        ] {
            assert_eq!(companding(encoding, rate, channels), None, "{encoding} {rate} {channels}");
        }
    }

    #[test]
    fn numbers_may_be_strings_or_numbers() {
        for chunk in [r#""7""#, "7"] {
            let text = format!(
                r#"{{"event":"media","sequenceNumber":"9","media":{{"track":"inbound","chunk":{chunk},"timestamp":"155","payload":"/38="}},"streamSid":"MZ1"}}"#
            );
            let Envelope { stream_sid, sequence, message } = decode(&text).unwrap();
            assert_eq!((stream_sid.as_deref(), sequence), (Some("MZ1"), Some(9)));
            assert_eq!(
                message,
                FromTwilio::Media(Media { chunk: 7, timestamp_ms: Some(155), audio: vec![0xFF, 0x7F] })
            );
        }
    }

    #[test]
    fn a_number_that_is_none_counts_as_absent() {
        for chunk in
            ["null", "true", "-7", "7.5", "[7,[8]]", r#"{"n":{"n":7}}"#, r#""seven""#, r#""-7""#, r#""\n""#]
        {
            let text =
                format!(r#"{{"event":"media","media":{{"chunk":{chunk},"timestamp":5,"payload":""}}}}"#);
            let FromTwilio::Media(media) = decode(&text).unwrap().message else { panic!("not media") };
            assert_eq!((media.chunk, media.timestamp_ms), (0, Some(5)), "{chunk}");
        }
    }

    #[test]
    fn a_payload_may_carry_json_escapes() {
        let message = decode(r#"{"event":"media","media":{"payload":"\/38="}}"#).unwrap().message;
        assert_eq!(
            message,
            FromTwilio::Media(Media { chunk: 0, timestamp_ms: None, audio: vec![0xFF, 0x7F] })
        );
    }

    #[test]
    fn start_is_read_whole() {
        let text = r#"{"event":"start","sequenceNumber":"1","start":{"accountSid":"AC1","streamSid":"MZ1","callSid":"CA1","tracks":["inbound"],"mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1},"customParameters":{"tenant":"t-42"},"new":1},"streamSid":"MZ1"}"#;
        let FromTwilio::Start(start) = decode(text).unwrap().message else { panic!("not a start") };
        assert_eq!((start.stream_sid.as_str(), start.call_sid.as_str()), ("MZ1", "CA1"));
        assert_eq!(start.format.companding(), Some(Companding::Ulaw));
        assert_eq!(start.parameters["tenant"], "t-42");
    }

    #[test]
    fn an_unknown_event_is_not_an_error() {
        let message = decode(r#"{"event":"hologram","streamSid":"MZ1","x":{}}"#).unwrap().message;
        assert_eq!(message, FromTwilio::Unknown { event: "hologram".into() });
    }

    #[test]
    fn what_is_malformed_is_named_and_never_quoted() {
        let cases = [
            ("hello secret", "not a Media Streams message: Syntax error at line 1 column 1"),
            (r#"{"event":"media","media":{}}"#, "`media` without `media.payload`"),
            (r#"{"event":"media","media":{"payload":"a secret"}}"#, "`media.payload` is not base64"),
            (r#"{"event":"mark","mark":{}}"#, "`mark` without `mark.name`"),
            (r#"{"event":"start","start":{"streamSid":"MZ1"}}"#, "`start` without `start.mediaFormat`"),
            (r#"{"event":"dtmf","dtmf":{"digit":"x"}}"#, "`dtmf` without `dtmf.digit`"),
            (r#"{"event":"start","start":"a secret"}"#, "not a Media Streams message"),
            (r#"{"event":["a secret"]}"#, "not a Media Streams message"),
            ("[1,2]", "not a Media Streams message"),
            (r#" ["stop"]"#, "not a Media Streams message"),
        ];
        for (text, want) in cases {
            let error = decode(text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn only_the_documented_fields_are_written() {
        assert_eq!(
            ToTwilio::Media { audio: vec![0xFF, 0x7F] }.encode("MZ1"),
            r#"{"event":"media","streamSid":"MZ1","media":{"payload":"/38="}}"#
        );
        assert_eq!(
            ToTwilio::Mark { name: "1/2/300".into() }.encode("MZ1"),
            r#"{"event":"mark","streamSid":"MZ1","mark":{"name":"1/2/300"}}"#
        );
        assert_eq!(ToTwilio::Clear.encode("MZ1"), r#"{"event":"clear","streamSid":"MZ1"}"#);
    }

    #[test]
    fn names_that_need_escapes_are_escaped() {
        for content in ["MZ1", "", "\u{e9} \u{7f}", "a\"b", "a\\b", "a\nb", "a\u{0}b", "\"", "\\", "\n"] {
            let mut text = String::new();
            push_quoted(&mut text, content);
            assert_eq!(text, serde_json::Value::from(content).to_string());
            let mark = ToTwilio::Mark { name: content.into() }.encode(content);
            let mark: serde_json::Value = serde_json::from_str(&mark).unwrap();
            assert_eq!((&mark["streamSid"], &mark["mark"]["name"]), (&content.into(), &content.into()));
        }
    }
}
