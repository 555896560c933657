//! What the caller does, as data.
//!
//! A script is a value: it can be printed, stored, edited and shrunk. Knobs at their default are left out when
//! it is written, so a stored script shows only what is particular about it.
//!
//! ```toml
//! steps = ["hears_start", "hears_end", { says = 2000 }, "hears_start", { hears_for = 1240 }, { says = 700 },
//!          "hears_start", "hears_end", "hangs_up"]
//! idle = "dtx"
//! custom_parameters = { tenant = "t-42" }
//! ```

use super::account::Credentials;
use crate::sound::Sound;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Ten minutes of queued audio: more than that is discarded with warning 31931.
pub(super) const QUEUE_LIMIT_BYTES: usize = 4_800_000;
/// From the 101 to `connected`, as captured on a live call.
const CONNECTED_AFTER_MS: u64 = 90;
/// How long a step listens for something that does not come.
const PATIENCE_MS: u64 = 20_000;
/// After this long the caller hangs up whatever the script is doing, so every scenario ends.
const HANG_UP_AFTER_MS: u64 = 120_000;
/// The two zeros of mu-law, now and then their neighbours.
pub(super) const IDLE_NOISE: u16 = 8;
/// The track of keys, as documented.
const INBOUND_TRACK: &str = "inbound_track";
/// From one key to the next when a step does not say.
pub(super) const KEY_GAP_MS: u64 = 100;

/// A person on the phone and the media server in front of them: what they do, and how their end behaves.
///
/// The script begins with the first `media` message. When its steps are over without an ending step, the caller
/// hangs up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallerScript {
    /// What the person does, in order.
    pub steps: Vec<CallerStep>,
    /// From the open WebSocket to `connected`, ms.
    #[serde(skip_serializing_if = "is_connected_default")]
    pub connected_after_ms: u64,
    /// Whether `connected` is sent at all.
    #[serde(skip_serializing_if = "is_true")]
    pub send_connected: bool,
    /// From `connected` to `start`, ms; the first `media` follows `start` at once.
    #[serde(skip_serializing_if = "is_zero", alias = "start_late_ms")]
    pub start_after_ms: u64,
    /// How many times `start` is sent again right after the first. Synthetic: never seen on the wire.
    #[serde(skip_serializing_if = "is_none")]
    pub start_repeats: u32,
    /// Frames of idle audio sent right before `start`. Synthetic: never seen on the wire.
    #[serde(skip_serializing_if = "is_none")]
    pub media_before_start: u32,
    /// The first frame leaves so late, ms, and what was made meanwhile right behind it. Recorded once.
    #[serde(skip_serializing_if = "is_zero")]
    pub first_frame_late_ms: u64,
    /// Whether `start` has `customParameters` when there are none. Both were recorded.
    #[serde(skip_serializing_if = "is_true")]
    pub empty_parameters: bool,
    /// `media.timestamp` of the first frame, ms; drawn from 57 to 171, as recorded, when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_timestamp_ms: Option<u64>,
    /// Whether timestamps wander by up to 2 ms around the 20 ms grid, as captured ones do.
    #[serde(skip_serializing_if = "is_true")]
    pub timestamp_jitter: bool,
    /// Each frame leaves up to this late, ms; order is kept.
    #[serde(skip_serializing_if = "is_zero")]
    pub arrival_jitter_ms: u64,
    /// What the microphone sends while the person is silent.
    #[serde(skip_serializing_if = "is_sends")]
    pub idle: Idle,
    /// The noise of an idle line: samples of up to so much, of 16 bits. Recorded lines had from 8 to 72.
    #[serde(skip_serializing_if = "is_noise_default")]
    pub idle_noise: u16,
    /// From a `clear` to the marks it returns, ms. Never recorded.
    #[serde(skip_serializing_if = "is_zero")]
    pub flushed_after_ms: u64,
    /// `dtmf.track` of a key. Documented, never recorded.
    #[serde(skip_serializing_if = "is_inbound_track")]
    pub dtmf_track: String,
    /// Bytes of unplayed audio Twilio holds at most; the excess is discarded with warning 31931.
    #[serde(skip_serializing_if = "is_queue_default")]
    pub queue_limit_bytes: usize,
    /// Whether a message with a field Twilio does not know is refused (warning 31951) or read leniently.
    #[serde(skip_serializing_if = "is_true")]
    pub strict: bool,
    /// How long an idle play-out gathers audio before it begins to play, ms.
    #[serde(skip_serializing_if = "is_zero")]
    pub play_out_ms: u64,
    /// Whether the 20 ms frame being played when a `clear` arrives is still heard to its end.
    #[serde(skip_serializing_if = "is_false")]
    pub in_flight_frame: bool,
    /// How marks are echoed.
    #[serde(skip_serializing_if = "is_normal")]
    pub echo_marks: EchoMarks,
    /// Whether pings are answered.
    #[serde(skip_serializing_if = "is_true")]
    pub pong: bool,
    /// A step that listens longer than this for something is abandoned, ms; the script goes on.
    #[serde(skip_serializing_if = "is_patience_default")]
    pub patience_ms: u64,
    /// The caller hangs up this long after the WebSocket opened whatever the script is doing, ms. Written as 0
    /// when there is no such limit.
    #[serde(with = "zero_is_never", skip_serializing_if = "is_hang_up_default")]
    pub hang_up_after_ms: Option<u64>,
    /// The `mediaFormat` that `start` announces. The audio itself is always mu-law at 8 kHz.
    #[serde(skip_serializing_if = "is_format_default")]
    pub media_format: MediaFormat,
    /// What the caller's end shows of its account, where the bridge asks for it.
    #[serde(skip_serializing_if = "is_proper")]
    pub credentials: Credentials,
    /// The `customParameters` that `start` carries.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_parameters: BTreeMap<String, String>,
}

fn is_noise_default(noise: &u16) -> bool {
    *noise == IDLE_NOISE
}

fn is_inbound_track(track: &str) -> bool {
    track == INBOUND_TRACK
}

fn is_proper(credentials: &Credentials) -> bool {
    *credentials == Credentials::Proper
}

impl Default for CallerScript {
    fn default() -> Self {
        Self {
            steps: Vec::new(),
            connected_after_ms: CONNECTED_AFTER_MS,
            send_connected: true,
            start_after_ms: 0,
            start_repeats: 0,
            media_before_start: 0,
            first_frame_late_ms: 0,
            empty_parameters: true,
            first_timestamp_ms: None,
            timestamp_jitter: true,
            arrival_jitter_ms: 0,
            idle: Idle::Sends,
            idle_noise: IDLE_NOISE,
            flushed_after_ms: 0,
            dtmf_track: INBOUND_TRACK.into(),
            queue_limit_bytes: QUEUE_LIMIT_BYTES,
            strict: true,
            play_out_ms: 0,
            in_flight_frame: false,
            echo_marks: EchoMarks::Normal,
            pong: true,
            patience_ms: PATIENCE_MS,
            hang_up_after_ms: Some(HANG_UP_AFTER_MS),
            media_format: MediaFormat::default(),
            credentials: Credentials::Proper,
            custom_parameters: BTreeMap::new(),
        }
    }
}

impl CallerScript {
    /// A script with these steps and every knob at its default.
    pub fn of(steps: impl IntoIterator<Item = CallerStep>) -> Self {
        Self { steps: steps.into_iter().collect(), ..Self::default() }
    }
}

/// One thing the caller does. Durations are milliseconds.
///
/// The agent is *heard* when bytes of its audio are played, whatever they sound like. An *agent utterance* is
/// audio without a gap of 400 ms; a `clear` ends it, too. Steps that listen are abandoned after
/// [`CallerScript::patience_ms`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CallerStep {
    /// Does nothing for this long.
    Waits(u64),
    /// Speaks for this long (rounded up to whole 20 ms frames) and goes on when silent again.
    Says(u64),
    /// Begins to speak for this long, and goes on at once.
    StartsSaying(u64),
    /// Says these mu-law bytes, which were recorded, in whole 20 ms frames, and goes on when silent again.
    SaysRecorded(Sound),
    /// Begins to say them, and goes on at once.
    StartsSayingRecorded(Sound),
    /// Plays the golden clip of this name ([`golden::clips`]), narrowed to 8 kHz if need be, and goes on when silent
    /// again. It is speech unless the clip is a signal.
    Plays(#[serde(deserialize_with = "crate::clip::name")] String),
    /// Plays the tones of these keys into the line, 100 ms each and 60 ms apart, without any `dtmf` message, and
    /// goes on when silent again.
    PlaysTones(#[serde(deserialize_with = "crate::clip::keys")] String),
    /// Until agent audio begins that was not playing before. An agent who is speaking already must first end.
    HearsStart,
    /// Until this much of the current agent utterance, or else of the next one, has been played.
    HearsFor(u64),
    /// Until playback has been quiet for 400 ms, after something was heard since the last `HearsStart` or
    /// `HearsEnd`.
    HearsEnd,
    /// Until this much agent audio has been played since the call began.
    HearsTotal(u64),
    /// Presses these keys, 100 ms apart.
    Presses(String),
    /// Presses these keys with this gap.
    PressesAt {
        /// The keys, in order.
        keys: String,
        /// From one key to the next, ms.
        gap_ms: u64,
    },
    /// Hangs up: `stop`, then a close frame (1000) at once.
    HangsUp,
    /// The call ends with `stop`, but the socket stays open for the bridge to close.
    StopWithoutClose,
    /// The socket is closed (1000) without a `stop`.
    ClosesWithoutStop,
    /// The TCP connection ends without `stop` or close frame.
    Drops,
    /// Sends nothing any more, reads nothing, answers no ping; the socket stays open until
    /// [`CallerScript::hang_up_after_ms`].
    GoesDark,
    /// From now on silence is left out (true) or sent (false).
    Dtx(bool),
    /// The network holds the microphone's frames back for this long, then delivers them in one burst. The script
    /// goes on at once.
    PausesMedia(u64),
    /// Stops reading from the socket.
    StopsReading,
    /// Reads again.
    ReadsAgain,
    /// Sends this text, with `{streamSid}`, `{callSid}` and `{sequenceNumber}` filled in.
    SendsRaw(String),
    /// Sends a binary frame of this many bytes.
    SendsBinary(usize),
    /// Sends an unknown event in a text frame of at least this many bytes.
    SendsOversized(usize),
    /// Sends an event that does not exist (yet).
    SendsUnknownEvent,
    /// Sends a `media` message of some other stream.
    SendsMediaWithWrongSid,
    /// Sends a `media` message whose payload is not base64.
    SendsBadBase64,
    /// Sends a WebSocket ping.
    SendsPing,
    /// Sends `start` again.
    RepeatsStart,
    /// Sends the last `media` message once more, with the same numbers.
    RepeatsFrame,
    /// Echoes a mark of this name once more, or without ever having got it.
    RepeatsMark {
        /// The mark's name.
        name: String,
    },
    /// Waits for the bridge to close; only [`CallerScript::hang_up_after_ms`] bounds it.
    WaitsForClose,
}

impl fmt::Display for CallerStep {
    /// The step in words: `says 2000 ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waits(ms) => write!(f, "waits {ms} ms"),
            Self::Says(ms) => write!(f, "says {ms} ms"),
            Self::StartsSaying(ms) => write!(f, "starts saying {ms} ms"),
            Self::SaysRecorded(Sound(bytes)) => write!(f, "says {} recorded ms", bytes.len() / 8),
            Self::StartsSayingRecorded(Sound(bytes)) => {
                write!(f, "starts saying {} recorded ms", bytes.len() / 8)
            }
            Self::Plays(name) => write!(f, "plays {}", shortened(name)),
            Self::PlaysTones(keys) => write!(f, "plays the tones of {}", shortened(keys)),
            Self::HearsStart => write!(f, "hears the agent start"),
            Self::HearsFor(ms) => write!(f, "hears the agent for {ms} ms"),
            Self::HearsEnd => write!(f, "hears the agent end"),
            Self::HearsTotal(ms) => write!(f, "hears {ms} ms in all"),
            Self::Presses(keys) => write!(f, "presses {keys}"),
            Self::PressesAt { keys, gap_ms } => write!(f, "presses {keys}, {gap_ms} ms apart"),
            Self::HangsUp => write!(f, "hangs up"),
            Self::StopWithoutClose => write!(f, "stops without closing"),
            Self::ClosesWithoutStop => write!(f, "closes without stopping"),
            Self::Drops => write!(f, "drops the connection"),
            Self::GoesDark => write!(f, "goes dark"),
            Self::Dtx(true) => write!(f, "leaves silence out"),
            Self::Dtx(false) => write!(f, "sends silence"),
            Self::PausesMedia(ms) => write!(f, "is held up for {ms} ms"),
            Self::StopsReading => write!(f, "stops reading"),
            Self::ReadsAgain => write!(f, "reads again"),
            Self::SendsRaw(text) => write!(f, "sends {}", shortened(text)),
            Self::SendsBinary(len) => write!(f, "sends {len} bytes of binary"),
            Self::SendsOversized(len) => write!(f, "sends a text of {len} bytes"),
            Self::SendsUnknownEvent => write!(f, "sends an unknown event"),
            Self::SendsMediaWithWrongSid => write!(f, "sends media of another stream"),
            Self::SendsBadBase64 => write!(f, "sends media that is not base64"),
            Self::SendsPing => write!(f, "sends a ping"),
            Self::RepeatsStart => write!(f, "repeats start"),
            Self::RepeatsFrame => write!(f, "repeats a frame"),
            Self::RepeatsMark { name } => write!(f, "repeats mark {}", shortened(name)),
            Self::WaitsForClose => write!(f, "waits for the bridge to close"),
        }
    }
}

/// What the microphone sends while the person is silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Idle {
    /// The noise floor of an idle line: see [`CallerScript::idle_noise`].
    #[default]
    Sends,
    /// Nothing: frames are left out, timestamps run on, and `chunk` counts only what is sent.
    Dtx,
}

/// How marks are echoed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EchoMarks {
    /// When the audio before them was played, or when a `clear` returns them.
    #[default]
    Normal,
    /// Not at all.
    Never,
    /// This many milliseconds later than they should be.
    Late(u64),
}

/// The `mediaFormat` of a `start` message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MediaFormat {
    /// `audio/x-mulaw` on every documented stream.
    pub encoding: String,
    /// Samples per second.
    #[serde(alias = "sampleRate")]
    pub sample_rate: u32,
    /// 1.
    pub channels: u32,
}

impl Default for MediaFormat {
    fn default() -> Self {
        Self { encoding: "audio/x-mulaw".into(), sample_rate: 8_000, channels: 1 }
    }
}

/// The first 60 characters, with dots when there is more.
pub(super) fn shortened(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// TOML has no null, so "never" is written as 0.
mod zero_is_never {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(limit: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        limit.unwrap_or(0).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        Ok(Some(u64::deserialize(from)?).filter(|ms| *ms != 0))
    }
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_none(value: &u32) -> bool {
    *value == 0
}

fn is_connected_default(value: &u64) -> bool {
    *value == CONNECTED_AFTER_MS
}

fn is_patience_default(value: &u64) -> bool {
    *value == PATIENCE_MS
}

fn is_queue_default(value: &usize) -> bool {
    *value == QUEUE_LIMIT_BYTES
}

fn is_hang_up_default(value: &Option<u64>) -> bool {
    *value == Some(HANG_UP_AFTER_MS)
}

fn is_sends(value: &Idle) -> bool {
    *value == Idle::Sends
}

fn is_normal(value: &EchoMarks) -> bool {
    *value == EchoMarks::Normal
}

fn is_format_default(value: &MediaFormat) -> bool {
    *value == MediaFormat::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_survives_toml() {
        let script = CallerScript {
            steps: vec![
                CallerStep::HearsStart,
                CallerStep::Says(2_000),
                CallerStep::SaysRecorded(Sound(vec![0x7F; 160])),
                CallerStep::StartsSayingRecorded(Sound(vec![0x00, 0xFF])),
                CallerStep::Plays("caller_question".into()),
                CallerStep::PlaysTones("42#".into()),
                CallerStep::PressesAt { keys: "12#".into(), gap_ms: 40 },
                CallerStep::Dtx(true),
                CallerStep::RepeatsMark { name: "r1:1".into() },
                CallerStep::SendsRaw("{\"event\":\"x\"}".into()),
                CallerStep::HangsUp,
            ],
            first_timestamp_ms: Some(155),
            idle: Idle::Dtx,
            echo_marks: EchoMarks::Late(300),
            hang_up_after_ms: None,
            media_format: MediaFormat { sample_rate: 16_000, ..MediaFormat::default() },
            custom_parameters: [("tenant".into(), "t-42".into())].into(),
            ..CallerScript::default()
        };
        let text = toml::to_string(&script).unwrap();
        assert_eq!(toml::from_str::<CallerScript>(&text).unwrap(), script, "{text}");
    }

    #[test]
    fn a_script_shows_only_what_is_particular() {
        let text = toml::to_string(&CallerScript::of([CallerStep::HangsUp])).unwrap();
        assert_eq!(text.trim(), "steps = [\"hangs_up\"]");
    }

    #[test]
    fn a_misspelt_knob_is_refused() {
        let wrong = toml::from_str::<CallerScript>("steps = []\npatience = 5").unwrap_err();
        assert!(wrong.to_string().contains("patience"), "{wrong}");
    }

    #[test]
    fn an_unknown_step_is_refused() {
        assert!(toml::from_str::<CallerScript>("steps = [\"sings\"]").is_err());
    }

    #[test]
    fn an_unknown_clip_is_refused_with_the_names_there_are() {
        let wrong = toml::from_str::<CallerScript>("steps = [{ plays = \"song\" }]").unwrap_err().to_string();
        assert!(wrong.contains("`song`"), "{wrong}");
        for name in golden::clips() {
            assert!(wrong.contains(name), "{wrong}");
            let right =
                toml::from_str::<CallerScript>(&format!("steps = [{{ plays = \"{name}\" }}]")).unwrap();
            assert_eq!(right.steps, [CallerStep::Plays(name.into())]);
        }
    }

    #[test]
    fn tones_of_no_key_are_refused() {
        let wrong =
            toml::from_str::<CallerScript>("steps = [{ plays_tones = \"4x\" }]").unwrap_err().to_string();
        assert!(wrong.contains("`x`") && wrong.contains("0123456789*#ABCD"), "{wrong}");
    }

    #[test]
    fn the_default_limit_applies_unless_zero_is_written() {
        let silent = toml::from_str::<CallerScript>("steps = []").unwrap();
        assert_eq!(silent.hang_up_after_ms, Some(120_000));
        let never = toml::from_str::<CallerScript>("steps = []\nhang_up_after_ms = 0").unwrap();
        assert_eq!(never.hang_up_after_ms, None);
    }
}
