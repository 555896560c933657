//! The caller's end: a Twilio Media Streams client with a person behind it.
//!
//! [`Caller`] is one stream of one call. In front it speaks the protocol: `connected`, `start`, `media` every
//! 20 ms, `dtmf`, echoes of marks, `stop`; it checks every message of the bridge against what Twilio documents.
//! Behind that are a play-out, which plays received audio at exactly 8000 bytes a second and knows to the sample
//! what was heard, a microphone, and a person who follows a [`CallerScript`].
//!
//! What Twilio would do with wrong input is a [`CallerObservation::Warned`]: nothing is said on the socket. Twilio
//! raises 31950, 31951 and 31931 once per stream; here 31950 and 31931 are recorded once, but 31951 each time,
//! because each has a detail of its own. A message with a warning is ignored, except audio that begins with
//! `RIFF`: its header is played as noise, as a real call would.
//!
//! What is not documented is a knob of the script, not a guess in the code.

mod account;
mod mic;
mod person;
mod playout;
mod script;
mod wire;
mod words;

pub use account::{Connect, Credentials, Identity, signature};
pub use script::{CallerScript, CallerStep, EchoMarks, Idle, MediaFormat};
pub use words::in_words;

use crate::peer::{At, Frame, Out, Peer};
use crate::record::{CallerObservation, CallerRecord, Ending, MicFrame, Observation};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mic::{Made, Mic};
use person::{Attribution, BYTES_PER_MS, Doing, Person};
use playout::{Listening, Playout};

pub use playout::audible_bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use script::{KEY_GAP_MS, shortened};
use std::collections::VecDeque;
use wire::FromServer;

/// How long we wait for the answer to our close frame before we drop the connection.
const CLOSE_PATIENCE_MS: u64 = 5_000;
/// The close code of a call that ended in the ordinary way.
const NORMAL: u16 = 1_000;

/// What [`CallerObservation::Step`] says when Twilio ends a stream because it was asked to by REST.
pub const TAKEN_AWAY: &str = "the stream ends: Twilio was asked by REST";

/// The Twilio end of one call. See the module.
#[derive(Debug)]
pub struct Caller {
    script: CallerScript,
    id: Identity,
    /// The `Sec-WebSocket-Key`.
    key: String,
    record: CallerRecord,
    outs: VecDeque<Out>,
    phase: Phase,
    hang_up_at: Option<At>,
    /// Sequence number of the last message sent.
    sequence: u64,
    /// Number of the last media message sent.
    chunk: u64,
    mic: Mic,
    playout: Playout,
    /// What the person hears of it.
    heard: Listening,
    marks: VecDeque<Mark>,
    person: Person,
    /// The utterance whose frames are leaving.
    speaking: Option<usize>,
    reading: bool,
    warned_binary: bool,
    warned_queue: bool,
    /// The last media message, as sent.
    last_media: String,
}

/// Where the connection is in its life.
#[derive(Debug)]
enum Phase {
    /// Not open yet.
    Dialling,
    /// Open; `connected` is due.
    Connecting { at: At },
    /// `start` is due.
    Starting { at: At },
    /// The call runs.
    Live,
    /// `stop` was sent, the socket is open.
    Stopped,
    /// Our close frame was sent; the answer is due.
    Closing { code: Option<u16>, give_up_at: At },
    /// The other end cannot tell whether we are still there.
    Dark,
    /// The connection has ended.
    Over,
}

/// A mark of the bridge, waiting for the audio before it.
#[derive(Debug)]
struct Mark {
    name: String,
    /// When that audio has been played, or when a `clear` returned the mark.
    due: At,
    flushed: bool,
}

/// What is to be done next. The order is that of things due at the same time.
#[derive(Clone, Copy, Debug)]
enum Due {
    Echo,
    Connected,
    Start,
    HeldFrame,
    Frame,
    Person,
    HangUp,
    GiveUpClosing,
}

/// Makes a recording at 8 kHz something that a caller can say: the step that says it.
pub fn recording(name: &str, samples: Vec<i16>) -> CallerStep {
    crate::clip::lend(name, samples);
    CallerStep::Plays(name.to_owned())
}

impl Caller {
    /// A caller who will follow `script` once the WebSocket is open. `seed` draws what a script leaves open: the
    /// noise of the line, the first timestamp, the jitter.
    pub fn new(script: CallerScript, identity: Identity, seed: u64) -> Self {
        let mut key = [0; 16];
        ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut key);
        Self {
            key: BASE64.encode(key),
            record: CallerRecord {
                call_sid: identity.call_sid.clone(),
                stream_sid: identity.stream_sid.clone(),
                ..CallerRecord::default()
            },
            outs: VecDeque::new(),
            phase: Phase::Dialling,
            hang_up_at: None,
            sequence: 0,
            chunk: 0,
            mic: Mic::new(&script, seed),
            playout: Playout::new(script.play_out_ms, script.in_flight_frame),
            heard: Listening::new(script.in_flight_frame),
            marks: VecDeque::new(),
            person: Person::new(),
            speaking: None,
            reading: true,
            warned_binary: false,
            warned_queue: false,
            last_media: String::new(),
            id: identity,
            script,
        }
    }

    /// What was seen so far.
    pub fn record(&self) -> &CallerRecord {
        &self.record
    }

    /// What was seen, at the end.
    pub fn into_record(self) -> CallerRecord {
        self.record
    }

    /// The headers of the upgrade request, in order, without `Host` (it belongs to the URL) and without the
    /// signature (it belongs to the account). Captured upgrades have no others: no origin, no subprotocol, no
    /// extensions.
    pub fn upgrade_headers(&self) -> Vec<(String, String)> {
        [
            ("User-Agent", "Twilio.TmeWs/1.0"),
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", &self.key),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// What the answer of the webhook gave the stream: `start` will carry it.
    pub fn carries(&mut self, parameters: impl IntoIterator<Item = (String, String)>) {
        self.script.custom_parameters.extend(parameters);
    }

    /// Twilio was asked by REST to end this call, or to do something else with it: the stream ends.
    pub fn taken_away(&mut self, now: At) {
        match self.phase {
            Phase::Connecting { .. } | Phase::Starting { .. } | Phase::Live => {
                let what = TAKEN_AWAY.to_owned();
                self.see(now, CallerObservation::Step { index: self.person.index, what });
                self.hang_up(now);
            }
            Phase::Dialling | Phase::Stopped | Phase::Closing { .. } | Phase::Dark | Phase::Over => {}
        }
    }

    /// The upgrade was answered with this HTTP status instead of 101, or with nothing (0).
    pub fn refused(&mut self, status: u16, now: At) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        self.see(now, CallerObservation::Refused { status });
        let why = match status {
            0 => "the upgrade got no answer".to_owned(),
            status => format!("the upgrade was refused with {status}"),
        };
        self.ended(Ending::Lost { why }, "stream-error", now);
    }

    // ------------------------------------------------------------------------------------------ time

    /// The next thing to do, and when.
    fn next_due(&self) -> Option<(At, Due)> {
        let mut soonest: Option<(At, Due)> = None;
        let mut consider = |at: Option<At>, due: Due| {
            if let Some(at) = at
                && soonest.is_none_or(|(first, _)| at < first)
            {
                soonest = Some((at, due));
            }
        };
        match self.phase {
            Phase::Dialling | Phase::Over => return None,
            Phase::Connecting { at } => consider(Some(at), Due::Connected),
            Phase::Starting { at } => consider(Some(at), Due::Start),
            Phase::Live => {
                consider(self.marks.front().and_then(|mark| self.echo_at(mark)), Due::Echo);
                consider(self.mic.next_leaves(), Due::HeldFrame);
                consider(self.mic.next_made(), Due::Frame);
                consider(self.person.due(self.heard.playout(), &self.mic), Due::Person);
            }
            Phase::Stopped | Phase::Dark => {}
            Phase::Closing { give_up_at, .. } => return Some((give_up_at, Due::GiveUpClosing)),
        }
        consider(self.hang_up_at, Due::HangUp);
        soonest
    }

    fn echo_at(&self, mark: &Mark) -> Option<At> {
        match self.script.echo_marks {
            EchoMarks::Normal => Some(mark.due),
            EchoMarks::Never => None,
            EchoMarks::Late(ms) => Some(mark.due.plus_ms(ms)),
        }
    }

    /// Does everything that is due by `now`, in the order in which it fell due.
    fn run(&mut self, now: At) {
        self.listen(now);
        while let Some((at, due)) = self.next_due()
            && at <= now
        {
            match due {
                Due::Echo => self.echo(now),
                Due::Connected => self.connected(now),
                Due::Start => self.start(now),
                Due::HeldFrame => {
                    if let Some(made) = self.mic.release() {
                        self.leave(made, now);
                    }
                }
                Due::Frame => {
                    if let Some(made) = self.mic.make(at) {
                        self.leave(made, now);
                    }
                }
                Due::Person => self.act(now),
                Due::HangUp => self.safety_net(now),
                Due::GiveUpClosing => self.give_up_closing(now),
            }
        }
    }

    /// Plays what is due by `now`.
    fn listen(&mut self, now: At) {
        self.heard.advance(now);
        if let Some(at) = self.playout.advance(now, &mut self.record.played) {
            let heard = self.playout.heard();
            self.see(at, CallerObservation::WentQuiet { heard });
        }
    }

    // ------------------------------------------------------------------------------------------ the stream

    fn connected(&mut self, now: At) {
        if self.script.send_connected {
            self.send(wire::CONNECTED.to_owned());
            self.see(now, CallerObservation::SentConnected);
        }
        self.phase = Phase::Starting { at: now.plus_ms(self.script.start_after_ms) };
    }

    fn start(&mut self, now: At) {
        for _ in 0..self.script.media_before_start {
            let made = self.mic.idle_frame();
            self.leave(made, now);
        }
        let text = self.start_message();
        self.send(text);
        self.see(now, CallerObservation::SentStart);
        self.see(now, CallerObservation::StatusCallback { event: "stream-started".into() });
        for _ in 0..self.script.start_repeats {
            let text = self.start_message();
            self.send_raw(text, "start, repeated".into(), now);
        }
        self.phase = Phase::Live;
        self.mic.begin(now);
        if self.script.first_frame_late_ms > 0 {
            self.mic.stall(now.plus_ms(self.script.first_frame_late_ms));
        }
    }

    fn start_message(&mut self) -> String {
        let sequence = self.next_sequence();
        let parameters = &self.script.custom_parameters;
        let shown = Some(parameters).filter(|given| !given.is_empty() || self.script.empty_parameters);
        wire::start(sequence, &self.id, &self.script.media_format, shown)
    }

    /// A frame leaves the microphone.
    fn leave(&mut self, made: Made, now: At) {
        if self.speaking != made.speech {
            if let Some(utterance) = self.speaking {
                self.see(now, CallerObservation::SpeechEnded { utterance });
            }
            if let Some(utterance) = made.speech {
                self.see(now, CallerObservation::SpeechBegan { utterance });
            }
            self.speaking = made.speech;
        }
        let Some(audio) = made.audio else { return };
        let sequence = self.next_sequence();
        self.chunk += 1;
        let text = wire::media(sequence, self.chunk, made.timestamp_ms, &audio, &self.id.stream_sid);
        self.last_media.clone_from(&text);
        self.send(text);
        let frame = self.record.mic.len();
        self.record.mic.push(MicFrame {
            at: now,
            timestamp_ms: made.timestamp_ms,
            offset: self.record.spoken.len(),
            len: audio.len(),
            speech: made.speech.is_some(),
        });
        self.record.spoken.extend_from_slice(&audio);
        self.see(now, CallerObservation::SentMedia { frame });
    }

    /// The first mark goes back.
    fn echo(&mut self, now: At) {
        if let Some(Mark { name, flushed, .. }) = self.marks.pop_front() {
            let sequence = self.next_sequence();
            self.send(wire::mark(sequence, &name, &self.id.stream_sid));
            self.see(now, CallerObservation::SentMark { name, flushed });
        }
    }

    fn press(&mut self, digit: char, now: At) {
        let sequence = self.next_sequence();
        self.send(wire::dtmf(sequence, digit, &self.script.dtmf_track, &self.id.stream_sid));
        self.see(now, CallerObservation::SentDtmf { digit });
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn send(&mut self, text: String) {
        self.outs.push_back(Out::Frame(Frame::Text(text)));
    }

    fn send_raw(&mut self, text: String, what: String, now: At) {
        self.send(text);
        self.see(now, CallerObservation::SentRaw { what });
    }

    fn see(&mut self, at: At, what: CallerObservation) {
        self.record.observations.push(Observation { at, what });
    }

    fn warn(&mut self, code: u16, detail: String, now: At) {
        self.see(now, CallerObservation::Warned { code, detail });
    }

    // ------------------------------------------------------------------------------------------ the ends

    /// The call is over: nothing more is heard, said or echoed.
    fn hush(&mut self) {
        self.mic.end();
        self.playout.stop();
        self.heard.stop();
        self.marks.clear();
        self.person.doing = Doing::Done;
        if !self.reading {
            self.reading = true;
            self.outs.push_back(Out::ResumeReading);
        }
    }

    /// What the network held back arrives, then `stop`. A stream that never started is not stopped either.
    fn stop(&mut self, now: At) {
        while let Some(made) = self.mic.release() {
            self.leave(made, now);
        }
        self.hush();
        if matches!(self.phase, Phase::Live) {
            let sequence = self.next_sequence();
            self.send(wire::stop(sequence, &self.id));
            self.see(now, CallerObservation::SentStop);
        }
        self.phase = Phase::Stopped;
    }

    fn close(&mut self, now: At) {
        self.hush();
        self.outs.push_back(Out::Frame(Frame::Close(Some((NORMAL, String::new())))));
        self.phase = Phase::Closing { code: Some(NORMAL), give_up_at: now.plus_ms(CLOSE_PATIENCE_MS) };
    }

    fn hang_up(&mut self, now: At) {
        self.stop(now);
        self.close(now);
    }

    fn drop_connection(&mut self, ending: Ending, event: &str, now: At) {
        self.outs.push_back(Out::Drop);
        self.ended(ending, event, now);
    }

    fn ended(&mut self, ending: Ending, event: &str, now: At) {
        self.hush();
        self.phase = Phase::Over;
        self.see(now, CallerObservation::Ended(ending));
        self.see(now, CallerObservation::StatusCallback { event: event.into() });
    }

    /// The script has had its time.
    fn safety_net(&mut self, now: At) {
        self.hang_up_at = None;
        let what = "hangs up: the call has lasted long enough".to_owned();
        self.see(now, CallerObservation::Step { index: self.person.index, what });
        match self.phase {
            Phase::Dark => self.drop_connection(Ending::ByUs { code: None }, "stream-error", now),
            Phase::Stopped => self.close(now),
            Phase::Dialling | Phase::Connecting { .. } | Phase::Starting { .. } | Phase::Live => {
                self.hang_up(now);
            }
            Phase::Closing { .. } | Phase::Over => {}
        }
    }

    fn give_up_closing(&mut self, now: At) {
        if let Phase::Closing { code, .. } = self.phase {
            self.drop_connection(Ending::ByUs { code }, "stream-stopped", now);
        }
    }

    // ------------------------------------------------------------------------------------------ the bridge

    fn read(&mut self, text: &str, now: At) {
        match self.phase {
            Phase::Dialling | Phase::Connecting { .. } | Phase::Starting { .. } => {
                let detail = format!("a message before start was sent: {}", shortened(text));
                return self.warn(31_951, detail, now);
            }
            Phase::Live | Phase::Stopped | Phase::Closing { .. } => {}
            Phase::Dark | Phase::Over => return,
        }
        match wire::read(text, &self.id.stream_sid, self.script.strict) {
            Ok(FromServer::Media(audio)) => self.hear(&audio, now),
            Ok(FromServer::Mark(name)) => self.take_mark(name, now),
            Ok(FromServer::Clear) => self.take_clear(now),
            Err(detail) => self.warn(31_951, detail, now),
        }
    }

    fn hear(&mut self, audio: &[u8], now: At) {
        if audio.starts_with(b"RIFF") {
            self.warn(31_951, "media.payload begins with a WAV header; it is played as noise".into(), now);
        }
        let room = self.script.queue_limit_bytes.saturating_sub(self.playout.queued());
        let (taken, excess) = audio.split_at(audio.len().min(room));
        if !excess.is_empty() && !self.warned_queue {
            self.warned_queue = true;
            let detail = format!(
                "{} bytes are queued already; the last {} of this message and more are discarded",
                self.playout.queued() + taken.len(),
                excess.len()
            );
            self.warn(31_931, detail, now);
        }
        let offset = self.record.received.len();
        self.record.received.extend_from_slice(taken);
        self.see(now, CallerObservation::GotMedia { offset, len: taken.len() });
        if matches!(self.phase, Phase::Live) {
            let at = self.playout.push(now, offset, taken.len());
            self.heard.push(at, offset, taken);
        }
    }

    fn take_mark(&mut self, name: String, now: At) {
        self.see(now, CallerObservation::GotMark { name: name.clone(), offset: self.record.received.len() });
        if matches!(self.phase, Phase::Live) {
            let due = self.playout.plays_until().unwrap_or(now);
            self.marks.push_back(Mark { name, due, flushed: false });
        }
    }

    fn take_clear(&mut self, now: At) {
        let mut flushed = 0;
        for mark in self.marks.iter_mut().filter(|mark| mark.due > now) {
            mark.due = now.plus_ms(self.script.flushed_after_ms);
            mark.flushed = true;
            flushed += 1;
        }
        let discarded = self.playout.clear(now);
        self.heard.clear(now);
        self.see(now, CallerObservation::GotClear { discarded, marks: flushed });
    }

    // ------------------------------------------------------------------------------------------ the person

    /// The person does what is due.
    fn act(&mut self, now: At) {
        match &mut self.person.doing {
            Doing::Ready => self.begin_step(now),
            Doing::Waiting(_) | Doing::Speaking(_) => self.person.finish(),
            Doing::Pressing { keys, gap_ms, next } => {
                let key = keys.pop_front();
                *next = next.plus_ms(*gap_ms);
                if keys.is_empty() {
                    self.person.finish();
                }
                if let Some(digit) = key {
                    self.press(digit, now);
                }
            }
            Doing::Attribution { what, .. } => {
                let what = *what;
                if self.person.hears_at(what, self.heard.playout()).is_some_and(|at| at <= now) {
                    self.person.has_heard(what, self.heard.playout());
                } else {
                    let given_up = format!("gave up after {} ms", self.script.patience_ms);
                    self.see(now, CallerObservation::Step { index: self.person.index, what: given_up });
                }
                self.person.finish();
            }
            Doing::Done => {}
        }
    }

    fn begin_step(&mut self, now: At) {
        let index = self.person.index;
        let Some(step) = self.script.steps.get(index).cloned() else {
            self.see(now, CallerObservation::Step { index, what: "hangs up: the script is over".into() });
            return self.hang_up(now);
        };
        self.see(now, CallerObservation::Step { index, what: step.to_string() });
        let hearing = |what| Doing::Attribution { what, give_up_at: now.plus_ms(self.script.patience_ms) };
        let bytes = |ms: u64| usize::try_from(ms).unwrap_or(usize::MAX).saturating_mul(BYTES_PER_MS);
        let moment = self.heard.playout().moment(now);
        match step {
            CallerStep::Waits(ms) => self.person.doing = Doing::Waiting(now.plus_ms(ms)),
            CallerStep::Says(ms) => self.person.doing = Doing::Speaking(self.mic.say(ms)),
            CallerStep::SaysRecorded(sound) => {
                self.person.doing = Doing::Speaking(self.mic.say_recorded(&sound.0));
            }
            CallerStep::Plays(name) => self.person.doing = Doing::Speaking(self.mic.play(&name)),
            CallerStep::PlaysTones(keys) => self.person.doing = Doing::Speaking(self.mic.play_tones(&keys)),
            CallerStep::HearsStart => self.person.doing = hearing(Attribution::Start(moment)),
            CallerStep::HearsFor(ms) => self.person.doing = hearing(Attribution::For(moment, bytes(ms))),
            CallerStep::HearsEnd => self.person.doing = hearing(Attribution::End),
            CallerStep::HearsTotal(ms) => self.person.doing = hearing(Attribution::Total(bytes(ms))),
            CallerStep::Presses(keys) => self.begin_pressing(&keys, KEY_GAP_MS, now),
            CallerStep::PressesAt { keys, gap_ms } => self.begin_pressing(&keys, gap_ms, now),
            CallerStep::WaitsForClose => self.person.doing = Doing::Done,
            CallerStep::HangsUp => self.hang_up(now),
            CallerStep::StopWithoutClose => self.stop(now),
            CallerStep::ClosesWithoutStop => {
                self.see(now, CallerObservation::SentRaw { what: "a close frame without stop".into() });
                self.close(now);
            }
            CallerStep::Drops => self.drop_connection(Ending::ByUs { code: None }, "stream-error", now),
            CallerStep::GoesDark => {
                self.hush();
                self.outs.push_back(Out::PauseReading);
                self.phase = Phase::Dark;
            }
            CallerStep::StartsSaying(_)
            | CallerStep::StartsSayingRecorded(_)
            | CallerStep::Dtx(_)
            | CallerStep::PausesMedia(_)
            | CallerStep::StopsReading
            | CallerStep::ReadsAgain
            | CallerStep::SendsRaw(_)
            | CallerStep::SendsBinary(_)
            | CallerStep::SendsOversized(_)
            | CallerStep::SendsUnknownEvent
            | CallerStep::SendsMediaWithWrongSid
            | CallerStep::SendsBadBase64
            | CallerStep::SendsPing
            | CallerStep::RepeatsStart
            | CallerStep::RepeatsFrame
            | CallerStep::RepeatsMark { .. } => {
                self.do_at_once(step, now);
                self.person.finish();
            }
        }
    }

    fn begin_pressing(&mut self, keys: &str, gap_ms: u64, now: At) {
        let keys: VecDeque<char> = keys.chars().collect();
        self.person.doing = Doing::Pressing { keys, gap_ms, next: now };
    }

    /// Steps that take no time. The others are begun in [`Caller::begin_step`] and never come here.
    fn do_at_once(&mut self, step: CallerStep, now: At) {
        match step {
            CallerStep::StartsSaying(ms) => {
                self.mic.say(ms);
            }
            CallerStep::StartsSayingRecorded(sound) => {
                self.mic.say_recorded(&sound.0);
            }
            CallerStep::Dtx(dtx) => self.mic.set_dtx(dtx),
            CallerStep::PausesMedia(ms) => self.mic.stall(now.plus_ms(ms)),
            CallerStep::StopsReading => {
                self.reading = false;
                self.outs.push_back(Out::PauseReading);
            }
            CallerStep::ReadsAgain => {
                self.reading = true;
                self.outs.push_back(Out::ResumeReading);
            }
            CallerStep::SendsRaw(text) => {
                let mut text =
                    text.replace("{streamSid}", &self.id.stream_sid).replace("{callSid}", &self.id.call_sid);
                if text.contains("{sequenceNumber}") {
                    text = text.replace("{sequenceNumber}", &self.next_sequence().to_string());
                }
                let what = shortened(&text);
                self.send_raw(text, what, now);
            }
            CallerStep::SendsBinary(len) => {
                self.outs.push_back(Out::Frame(Frame::Binary(vec![0xFF; len])));
                self.see(now, CallerObservation::SentRaw { what: format!("{len} bytes of binary") });
            }
            CallerStep::SendsOversized(len) => {
                let text = wire::unknown(self.next_sequence(), len, &self.id.stream_sid);
                let what = format!("a text of {} bytes", text.len());
                self.send_raw(text, what, now);
            }
            CallerStep::SendsUnknownEvent => {
                let text = wire::unknown(self.next_sequence(), 1, &self.id.stream_sid);
                self.send_raw(text, "an unknown event".into(), now);
            }
            CallerStep::SendsMediaWithWrongSid => {
                // Cross-talk from a stream with counters of its own; ours do not move.
                let text = wire::media(2, 1, 120, &[0x00; mic::FRAME], "MZ00000000000000000000000000000bad");
                self.send_raw(text, "media of another stream".into(), now);
            }
            CallerStep::SendsBadBase64 => {
                let timestamp_ms = self.record.mic.last().map_or(0, |frame| frame.timestamp_ms);
                let sequence = self.next_sequence();
                self.chunk += 1;
                let text =
                    wire::media_of(sequence, self.chunk, timestamp_ms, "%%not base64%%", &self.id.stream_sid);
                self.send_raw(text, "media that is not base64".into(), now);
            }
            CallerStep::SendsPing => {
                self.outs.push_back(Out::Frame(Frame::Ping(b"mock".to_vec())));
                self.see(now, CallerObservation::SentRaw { what: "a ping".into() });
            }
            CallerStep::RepeatsStart => {
                let text = self.start_message();
                self.send_raw(text, "start, repeated".into(), now);
            }
            CallerStep::RepeatsFrame => {
                let text = self.last_media.clone();
                if !text.is_empty() {
                    self.send_raw(text, "the last media message, repeated".into(), now);
                }
            }
            CallerStep::RepeatsMark { name } => {
                let text = wire::mark(self.next_sequence(), &name, &self.id.stream_sid);
                self.send_raw(text, format!("mark {}, repeated", shortened(&name)), now);
            }
            CallerStep::Waits(_)
            | CallerStep::Says(_)
            | CallerStep::SaysRecorded(_)
            | CallerStep::Plays(_)
            | CallerStep::PlaysTones(_)
            | CallerStep::HearsStart
            | CallerStep::HearsFor(_)
            | CallerStep::HearsEnd
            | CallerStep::HearsTotal(_)
            | CallerStep::Presses(_)
            | CallerStep::PressesAt { .. }
            | CallerStep::WaitsForClose
            | CallerStep::HangsUp
            | CallerStep::StopWithoutClose
            | CallerStep::ClosesWithoutStop
            | CallerStep::Drops
            | CallerStep::GoesDark => {}
        }
    }
}

impl Peer for Caller {
    fn opened(&mut self, now: At) {
        if matches!(self.phase, Phase::Dialling) {
            self.see(now, CallerObservation::Opened);
            self.phase = Phase::Connecting { at: now.plus_ms(self.script.connected_after_ms) };
            self.hang_up_at = self.script.hang_up_after_ms.map(|ms| now.plus_ms(ms));
            self.run(now);
        }
    }

    fn handle(&mut self, frame: Frame, now: At) {
        self.run(now);
        if matches!(self.phase, Phase::Dark | Phase::Over) {
            return;
        }
        match frame {
            Frame::Text(text) => self.read(&text, now),
            Frame::Binary(bytes) => {
                if !self.warned_binary {
                    self.warned_binary = true;
                    self.warn(31_950, format!("a binary frame of {} bytes", bytes.len()), now);
                }
            }
            Frame::Ping(payload) => {
                self.see(now, CallerObservation::GotPing);
                if self.script.pong && !matches!(self.phase, Phase::Closing { .. }) {
                    self.outs.push_back(Out::Frame(Frame::Pong(payload)));
                }
            }
            Frame::Pong(_) => self.see(now, CallerObservation::GotPing),
            Frame::Close(close) => match self.phase {
                Phase::Closing { code, .. } => self.ended(Ending::ByUs { code }, "stream-stopped", now),
                Phase::Dialling
                | Phase::Connecting { .. }
                | Phase::Starting { .. }
                | Phase::Live
                | Phase::Stopped
                | Phase::Dark
                | Phase::Over => {
                    let answer = close.as_ref().map(|(code, _)| (*code, String::new()));
                    self.outs.push_back(Out::Frame(Frame::Close(answer)));
                    let (code, reason) = close.map_or((None, String::new()), |(code, why)| (Some(code), why));
                    self.ended(Ending::ByPeer { code, reason }, "stream-stopped", now);
                }
            },
        }
        self.run(now);
    }

    fn gone(&mut self, why: &str, now: At) {
        self.run(now);
        match self.phase {
            Phase::Over => {}
            Phase::Closing { code, .. } => self.ended(Ending::ByUs { code }, "stream-stopped", now),
            Phase::Dialling
            | Phase::Connecting { .. }
            | Phase::Starting { .. }
            | Phase::Live
            | Phase::Stopped
            | Phase::Dark => self.ended(Ending::Lost { why: why.to_owned() }, "stream-error", now),
        }
    }

    fn handle_timeout(&mut self, now: At) {
        self.run(now);
    }

    fn poll_transmit(&mut self) -> Option<Out> {
        self.outs.pop_front()
    }

    fn poll_timeout(&self) -> Option<At> {
        self.next_due().map(|(at, _)| at)
    }

    fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Over) && self.outs.is_empty()
    }
}

#[cfg(test)]
mod tests;
