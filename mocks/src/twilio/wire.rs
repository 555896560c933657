//! Twilio's messages: built field by field in the order seen on the wire, and checked over JSON values.
//!
//! Every counter goes out as a string; `sampleRate` and `channels` are the only true numbers of the protocol.

use super::account::Identity;
use super::script::MediaFormat;
use crate::base64;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The first message of every connection; it has neither a sequence number nor a stream.
pub(super) const CONNECTED: &str = r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"#;

/// `start`.
pub(super) fn start(
    sequence: u64,
    id: &Identity,
    format: &MediaFormat,
    parameters: Option<&BTreeMap<String, String>>,
) -> String {
    let Identity { account_sid, call_sid, stream_sid } = id;
    let fields = parameters.map_or_else(String::new, |parameters| {
        let fields: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{}:{}", quoted(name), quoted(value))).collect();
        format!(r#","customParameters":{{{}}}"#, fields.join(","))
    });
    let MediaFormat { encoding, sample_rate, channels } = format;
    format!(
        concat!(
            r#"{{"event":"start","sequenceNumber":"{}","start":{{"accountSid":"{}","streamSid":"{}","#,
            r#""callSid":"{}","tracks":["inbound"],"mediaFormat":{{"encoding":{},"sampleRate":{},"#,
            r#""channels":{}}}{}}},"streamSid":"{}"}}"#
        ),
        sequence,
        account_sid,
        stream_sid,
        call_sid,
        quoted(encoding),
        sample_rate,
        channels,
        fields,
        stream_sid
    )
}

/// `media`, with the payload already in base64 or meant not to be.
pub(super) fn media_of(
    sequence: u64,
    chunk: u64,
    timestamp_ms: u64,
    payload: &str,
    stream_sid: &str,
) -> String {
    let mut text = String::with_capacity(payload.len() + 180);
    media_head(&mut text, sequence, chunk, timestamp_ms);
    text.push_str(payload);
    media_tail(&mut text, stream_sid);
    text
}

/// `media`. Fifty of these a second are most of what a mock call costs, so it is written straight into one string.
pub(super) fn media(sequence: u64, chunk: u64, timestamp_ms: u64, audio: &[u8], stream_sid: &str) -> String {
    let mut text = String::with_capacity(audio.len() * 4 / 3 + 184);
    media_head(&mut text, sequence, chunk, timestamp_ms);
    base64::encode(audio, &mut text);
    media_tail(&mut text, stream_sid);
    text
}

fn media_head(text: &mut String, sequence: u64, chunk: u64, timestamp_ms: u64) {
    let written = write!(
        text,
        concat!(
            r#"{{"event":"media","sequenceNumber":"{}","media":{{"track":"inbound","chunk":"{}","#,
            r#""timestamp":"{}","payload":""#
        ),
        sequence, chunk, timestamp_ms
    );
    debug_assert!(written.is_ok(), "writing to a string cannot fail");
}

fn media_tail(text: &mut String, stream_sid: &str) {
    text.push_str("\"},\"streamSid\":\"");
    text.push_str(stream_sid);
    text.push_str("\"}");
}

/// `dtmf`; its track is `inbound_track`, unlike that of `media`.
pub(super) fn dtmf(sequence: u64, digit: char, track: &str, stream_sid: &str) -> String {
    format!(
        concat!(
            r#"{{"event":"dtmf","streamSid":"{}","sequenceNumber":"{}","#,
            r#""dtmf":{{"track":{},"digit":{}}}}}"#
        ),
        stream_sid,
        sequence,
        quoted(track),
        quoted(&digit.to_string())
    )
}

/// The echo of a mark.
pub(super) fn mark(sequence: u64, name: &str, stream_sid: &str) -> String {
    format!(
        r#"{{"event":"mark","sequenceNumber":"{sequence}","streamSid":"{stream_sid}","mark":{{"name":{}}}}}"#,
        quoted(name)
    )
}

/// `stop`, the last message of a call.
pub(super) fn stop(sequence: u64, id: &Identity) -> String {
    let Identity { account_sid, call_sid, stream_sid } = id;
    format!(
        concat!(
            r#"{{"event":"stop","sequenceNumber":"{}","streamSid":"{}","#,
            r#""stop":{{"accountSid":"{}","callSid":"{}"}}}}"#
        ),
        sequence, stream_sid, account_sid, call_sid
    )
}

/// An event that Twilio may add one day.
pub(super) fn unknown(sequence: u64, padding: usize, stream_sid: &str) -> String {
    format!(
        r#"{{"event":"weather","sequenceNumber":"{sequence}","streamSid":"{stream_sid}","weather":{{"sky":"{}"}}}}"#,
        "c".repeat(padding.max(1))
    )
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// One of the three messages a server may send.
#[derive(Debug, PartialEq)]
pub(super) enum FromServer {
    /// Audio to play.
    Media(Vec<u8>),
    /// Tell me when everything before this was played.
    Mark(String),
    /// Forget what is queued.
    Clear,
}

/// Reads a message from the server the way Twilio's documentation describes it.
///
/// # Errors
/// In words, what Twilio would raise warning 31951 for.
pub(super) fn read(text: &str, stream_sid: &str, strict: bool) -> Result<FromServer, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(message) = value else { return Err("the message is no JSON object".into()) };
    let event = string(&message, "event", "event")?;
    let sid = string(&message, "streamSid", "streamSid")?;
    if sid != stream_sid {
        return Err(format!("{event} names streamSid {sid:?}, but this stream is {stream_sid:?}"));
    }
    match event {
        "media" => {
            only(&message, &["event", "streamSid", "media"], "", strict)?;
            let media = object(&message, "media")?;
            only(media, &["payload"], "media.", strict)?;
            let payload = string(media, "payload", "media.payload")?;
            let audio = base64::decode(payload)
                .map_err(|error| format!("media.payload is not standard base64: {error}"))?;
            Ok(FromServer::Media(audio))
        }
        "mark" => {
            only(&message, &["event", "streamSid", "mark"], "", strict)?;
            let mark = object(&message, "mark")?;
            only(mark, &["name"], "mark.", strict)?;
            Ok(FromServer::Mark(string(mark, "name", "mark.name")?.to_owned()))
        }
        "clear" => {
            only(&message, &["event", "streamSid"], "", strict)?;
            Ok(FromServer::Clear)
        }
        other => Err(format!("unknown event {other:?}")),
    }
}

fn string<'a>(of: &'a Map<String, Value>, key: &str, path: &str) -> Result<&'a str, String> {
    match of.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("{path} is {other}, not a string")),
        None => Err(format!("{path} is missing")),
    }
}

fn object<'a>(of: &'a Map<String, Value>, key: &str) -> Result<&'a Map<String, Value>, String> {
    match of.get(key) {
        Some(Value::Object(inner)) => Ok(inner),
        Some(other) => Err(format!("{key} is {other}, not an object")),
        None => Err(format!("{key} is missing")),
    }
}

fn only(of: &Map<String, Value>, known: &[&str], path: &str, strict: bool) -> Result<(), String> {
    match of.keys().find(|key| !known.contains(&key.as_str())) {
        Some(extra) if strict => Err(format!("unexpected field {path}{extra}")),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SID: &str = "MZ89abcdef0123456789abcdef01234567";

    fn id() -> Identity {
        Identity {
            account_sid: "AC0123456789abcdef0123456789abcdef".into(),
            call_sid: "CAfedcba9876543210fedcba9876543210".into(),
            stream_sid: SID.into(),
        }
    }

    #[test]
    fn start_is_written_field_by_field() {
        let parameters = [("tenant".to_owned(), "t\"42".to_owned()), ("token".to_owned(), "x".to_owned())];
        assert_eq!(
            start(1, &id(), &MediaFormat::default(), Some(&parameters.into())),
            concat!(
                r#"{"event":"start","sequenceNumber":"1","start":{"accountSid":"AC0123456789abcdef0123456789abcdef","#,
                r#""streamSid":"MZ89abcdef0123456789abcdef01234567","callSid":"CAfedcba9876543210fedcba9876543210","#,
                r#""tracks":["inbound"],"mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1},"#,
                r#""customParameters":{"tenant":"t\"42","token":"x"}},"streamSid":"MZ89abcdef0123456789abcdef01234567"}"#
            )
        );
    }

    #[test]
    fn media_of_twenty_milliseconds_has_216_characters_of_payload() {
        let text = media(2, 1, 155, &[0xFF; 160], SID);
        let payload = "////".repeat(53) + "/w==";
        assert_eq!(
            text,
            format!(
                concat!(
                    r#"{{"event":"media","sequenceNumber":"2","media":{{"track":"inbound","chunk":"1","#,
                    r#""timestamp":"155","payload":"{}"}},"streamSid":"{}"}}"#
                ),
                payload, SID
            )
        );
        assert_eq!((payload.len(), text), (216, media_of(2, 1, 155, &payload, SID)));
    }

    #[test]
    fn dtmf_mark_and_stop_are_written_in_captured_order() {
        assert_eq!(
            dtmf(57, '5', "inbound_track", SID),
            concat!(
                r#"{"event":"dtmf","streamSid":"MZ89abcdef0123456789abcdef01234567","sequenceNumber":"57","#,
                r#""dtmf":{"track":"inbound_track","digit":"5"}}"#
            )
        );
        assert_eq!(
            mark(58, "r7:\"12", SID),
            concat!(
                r#"{"event":"mark","sequenceNumber":"58","streamSid":"MZ89abcdef0123456789abcdef01234567","#,
                r#""mark":{"name":"r7:\"12"}}"#
            )
        );
        assert_eq!(
            stop(352, &id()),
            concat!(
                r#"{"event":"stop","sequenceNumber":"352","streamSid":"MZ89abcdef0123456789abcdef01234567","#,
                r#""stop":{"accountSid":"AC0123456789abcdef0123456789abcdef","callSid":"CAfedcba9876543210fedcba9876543210"}}"#
            )
        );
    }

    #[test]
    fn the_three_messages_of_a_server_are_understood() {
        let of = |text: &str| read(&text.replace("SID", SID), SID, true);
        assert_eq!(
            of(r#"{"event":"media","streamSid":"SID","media":{"payload":"fn9/fw=="}}"#),
            Ok(FromServer::Media(vec![0x7e, 0x7f, 0x7f, 0x7f]))
        );
        assert_eq!(
            of(r#"{"event":"mark","streamSid":"SID","mark":{"name":"a"}}"#),
            Ok(FromServer::Mark("a".into()))
        );
        assert_eq!(of(r#"{"event":"clear","streamSid":"SID"}"#), Ok(FromServer::Clear));
    }

    #[test]
    fn what_breaks_the_protocol_is_named() {
        let cases = [
            ("hello", "not JSON"),
            ("[]", "no JSON object"),
            (r#"{"streamSid":"SID"}"#, "event is missing"),
            (r#"{"event":"clear"}"#, "streamSid is missing"),
            (r#"{"event":"clear","streamSid":null}"#, "streamSid is null"),
            (r#"{"event":"clear","streamSid":"MZ0"}"#, "names streamSid \"MZ0\""),
            (r#"{"event":"dtmf","streamSid":"SID"}"#, "unknown event \"dtmf\""),
            (r#"{"event":"clear","streamSid":"SID","x":1}"#, "unexpected field x"),
            (r#"{"event":"media","streamSid":"SID"}"#, "media is missing"),
            (r#"{"event":"media","streamSid":"SID","media":{}}"#, "media.payload is missing"),
            (r#"{"event":"media","streamSid":"SID","media":{"payload":7}}"#, "media.payload is 7"),
            (r#"{"event":"media","streamSid":"SID","media":{"payload":"a_b-"}}"#, "not standard base64"),
            (r#"{"event":"media","streamSid":"SID","media":{"payload":"//8"}}"#, "not standard base64"),
            (r#"{"event":"media","streamSid":"SID","media":{"payload":"","track":"x"}}"#, "media.track"),
            (r#"{"event":"mark","streamSid":"SID","mark":{}}"#, "mark.name is missing"),
            (r#"{"event":"mark","streamSid":"SID","mark":"a"}"#, "mark is \"a\", not an object"),
        ];
        for (text, expected) in cases {
            let wrong = read(&text.replace("SID", SID), SID, true).unwrap_err();
            assert!(wrong.contains(expected), "{text} was said to be: {wrong}");
        }
    }

    #[test]
    fn a_lenient_reader_overlooks_extra_fields_only() {
        let extra = format!(r#"{{"event":"clear","streamSid":"{SID}","sequenceNumber":"1"}}"#);
        assert_eq!(read(&extra, SID, false), Ok(FromServer::Clear));
        assert!(read(r#"{"event":"clear","streamSid":"MZ0"}"#, SID, false).is_err());
    }
}
