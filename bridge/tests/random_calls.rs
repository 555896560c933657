//! Whatever arrives, in whatever order: no panic, nothing illegal, and the call ends.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bridge::audio::{FRAME_BYTES, Format};
use bridge::call::event::{CallEvent, Said};
use bridge::call::settings::{CallConfig, Renewal, ToolSpec};
use bridge::call::{Call, Control, Incoming, Leg, LegChange, ToolResult, Transmit};
use bridge::runtime::codec::decode;
use bridge::wire::realtime::ClientEvent;
use bridge::wire::twilio::ToTwilio;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One thing the world does to a call.
#[derive(Clone, Debug)]
enum Input {
    Waits(u64),
    Start,
    Media(u64),
    Key(char),
    MarkBack(usize),
    Stop,
    RawFromTwilio(String),
    RawFromModel(String),
    Binary(bool),
    ModelOpens,
    SessionCreated,
    SessionUpdated,
    SpeechStarted,
    SpeechStopped,
    Created { ours: bool },
    Audio { item: u8, bytes: usize, odd_response: bool },
    AudioDone(u8),
    Done(u8),
    Added { item: u8, user: bool, previous: u8 },
    Words(u8, String),
    WordsDone(u8, String),
    Transcribed(u8, String),
    FunctionCall(u8),
    ToolEnds(u8, bool),
    Error(u8),
    Link(Leg, u8),
    Drain,
    Replaced,
}

fn input() -> impl Strategy<Value = Input> {
    use Input::*;
    prop_oneof![
        8 => (1u64..3_000).prop_map(Waits),
        2 => Just(Start),
        8 => (0u64..400).prop_map(Media),
        1 => prop::sample::select(vec!['1', '5', '#', '*', 'A']).prop_map(Key),
        6 => (0usize..40).prop_map(MarkBack),
        1 => Just(Stop),
        1 => ".{0,40}".prop_map(RawFromTwilio),
        1 => ".{0,40}".prop_map(RawFromModel),
        1 => any::<bool>().prop_map(Binary),
        3 => Just(ModelOpens),
        3 => Just(SessionCreated),
        3 => Just(SessionUpdated),
        4 => Just(SpeechStarted),
        4 => Just(SpeechStopped),
        5 => any::<bool>().prop_map(|ours| Created { ours }),
        12 => (0u8..4, 0usize..40_000, prop::bool::weighted(0.1))
            .prop_map(|(item, bytes, odd_response)| Audio { item, bytes, odd_response }),
        3 => (0u8..4).prop_map(AudioDone),
        4 => (0u8..4).prop_map(Done),
        3 => (0u8..4, any::<bool>(), 0u8..4).prop_map(|(item, user, previous)| Added { item, user, previous }),
        6 => (0u8..4, "[a-zö ]{0,20}").prop_map(|(n, words)| Words(n, words)),
        3 => (0u8..4, "[a-zö ]{0,40}").prop_map(|(n, words)| WordsDone(n, words)),
        2 => (0u8..4, "[a-zö ]{0,40}").prop_map(|(n, words)| Transcribed(n, words)),
        2 => (0u8..4).prop_map(FunctionCall),
        2 => ((0u8..4), any::<bool>()).prop_map(|(n, ok)| ToolEnds(n, ok)),
        2 => (0u8..6).prop_map(Error),
        1 => (prop::sample::select(vec![Leg::Caller, Leg::Model]), 0u8..5).prop_map(|(l, c)| Link(l, c)),
        1 => Just(Drain),
        1 => Just(Replaced),
    ]
}

/// The call and what is known of it from outside.
struct World {
    call: Call,
    now: Instant,
    responses: u64,
    outstanding: Option<u64>,
    marks: Vec<String>,
    names: BTreeSet<String>,
    tools: BTreeSet<String>,
    chunk: u64,
    timestamp: u64,
    ended: bool,
    /// The sessions do not say when they end, so that their age counts.
    renews: bool,
    dialing: bool,
    /// The model's connection is open, and the call has not left it.
    connected: bool,
    /// What a reader of the transcript's updates knows of it.
    said: BTreeMap<String, String>,
}

impl World {
    fn drain(&mut self) {
        while let Some(transmit) = self.call.poll_transmit() {
            match transmit {
                Transmit::Caller { message: ToTwilio::Media { audio }, .. } => {
                    assert!(!audio.is_empty() && audio.len() % FRAME_BYTES == 0, "whole frames only");
                }
                Transmit::Caller { message: ToTwilio::Mark { name }, .. } => {
                    assert!(self.names.insert(name.clone()), "mark {name} was used before");
                    self.marks.push(name);
                }
                Transmit::Model(ClientEvent::CreateResponse { request, .. }) => {
                    assert_eq!(self.outstanding, None, "a second create while one is outstanding");
                    self.outstanding = Some(request);
                }
                Transmit::Model(ClientEvent::ToolOutput { call_id, .. }) => {
                    assert!(self.tools.insert(call_id.clone()), "{call_id} was answered twice");
                }
                Transmit::Dial { .. } => {
                    assert!(!self.connected, "a second session beside the first");
                    self.dialing = true;
                    self.outstanding = None;
                }
                Transmit::Close { leg: Leg::Model, .. } | Transmit::Drop(Leg::Model) => {
                    // What is dropped while it is dialled never opens.
                    (self.connected, self.dialing) = (false, false);
                }
                Transmit::Model(ClientEvent::UserText { item, .. }) => assert!(item.len() <= 32),
                Transmit::Caller { .. }
                | Transmit::Model(_)
                | Transmit::WithdrawAudio
                | Transmit::Ping(_)
                | Transmit::VerifyStream(_)
                | Transmit::Close { .. }
                | Transmit::Drop(_)
                | Transmit::PauseModelReads(_)
                | Transmit::RunTool { .. }
                | Transmit::CancelTool { .. } => {}
            }
        }
        while let Some(event) = self.call.poll_event() {
            assert!(!self.ended, "an event after the last one");
            if let CallEvent::Said(Said::More { item, words, .. }) = event {
                self.said.entry(item).or_default().push_str(words.expose());
            } else if let CallEvent::Said(Said::Line(line)) = event {
                self.said.insert(line.item, line.text);
            } else if let CallEvent::Ended { transcript, .. } = event {
                self.ended = true;
                assert!(transcript.is_sorted_by(|a, b| a.place < b.place), "{transcript:?}");
                self.said.retain(|_, text| !text.is_empty());
                let transcript: BTreeMap<_, _> =
                    transcript.into_iter().map(|line| (line.item, line.text)).collect();
                assert_eq!(self.said, transcript, "what was said as it came is what was said in all");
            }
        }
    }

    fn text(&mut self, leg: Leg, text: &str) {
        self.call.handle_frame(leg, decode(leg, text), self.now);
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Waits(ms) => {
                let end = self.now + Duration::from_millis(ms);
                while let Some((due, _)) = self.call.poll_timeout().filter(|(due, _)| *due <= end) {
                    self.now = self.now.max(due);
                    self.call.handle_timeout(self.now);
                    self.drain();
                }
                self.now = end;
            }
            Input::Start => self.text(Leg::Caller, r#"{"event":"start","start":{"streamSid":"MZ1","callSid":"CA1","mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}},"streamSid":"MZ1"}"#),
            Input::Media(gap) => {
                self.chunk += 1;
                self.timestamp += 20 + gap;
                let payload = BASE64.encode([0xFF; 160]);
                let text = format!(r#"{{"event":"media","media":{{"chunk":"{}","timestamp":"{}","payload":"{payload}"}},"streamSid":"MZ1"}}"#, self.chunk, self.timestamp);
                self.text(Leg::Caller, &text);
            }
            Input::Key(key) => self.text(Leg::Caller, &format!(r#"{{"event":"dtmf","dtmf":{{"digit":"{key}"}},"streamSid":"MZ1"}}"#)),
            Input::MarkBack(which) => {
                let name = self.marks.get(which).cloned().unwrap_or_else(|| "unknown".into());
                self.text(Leg::Caller, &format!(r#"{{"event":"mark","mark":{{"name":"{name}"}},"streamSid":"MZ1"}}"#));
            }
            Input::Stop => self.text(Leg::Caller, r#"{"event":"stop","streamSid":"MZ1"}"#),
            Input::RawFromTwilio(text) => self.text(Leg::Caller, &text),
            Input::RawFromModel(text) => self.text(Leg::Model, &text),
            Input::Binary(caller) => {
                let leg = if caller { Leg::Caller } else { Leg::Model };
                self.call.handle_frame(leg, Incoming::Binary(7), self.now);
            }
            Input::ModelOpens => {
                self.connected |= std::mem::take(&mut self.dialing);
                self.call.handle_leg(Leg::Model, LegChange::Open, self.now);
            }
            Input::SessionCreated if self.renews => self.text(Leg::Model, r#"{"type":"session.created","session":{}}"#),
            Input::SessionCreated => self.text(Leg::Model, r#"{"type":"session.created","session":{"expires_at":1000}}"#),
            Input::SessionUpdated => self.text(Leg::Model, r#"{"type":"session.updated","session":{"audio":{"input":{"format":{"type":"audio/pcm"}},"output":{"format":{"type":"audio/pcm"}}}}}"#),
            Input::SpeechStarted => self.text(Leg::Model, r#"{"type":"input_audio_buffer.speech_started","item_id":"u"}"#),
            Input::SpeechStopped => self.text(Leg::Model, r#"{"type":"input_audio_buffer.speech_stopped","item_id":"u"}"#),
            Input::Created { ours } => {
                let id = self.responses % 4;
                self.responses += 1;
                let metadata = match self.outstanding.filter(|_| ours) {
                    Some(request) => {
                        self.outstanding = None;
                        format!(r#","metadata":{{"bridge_request":"{request}"}}"#)
                    }
                    None => String::new(),
                };
                // A server that does not say whose response it is may mean ours.
                self.outstanding = None;
                self.text(Leg::Model, &format!(r#"{{"type":"response.created","response":{{"id":"r{id}"{metadata}}}}}"#));
            }
            Input::Audio { item, bytes, odd_response } => {
                let response = if odd_response { 9 } else { item };
                let delta = BASE64.encode(vec![item; bytes]);
                self.text(Leg::Model, &format!(r#"{{"type":"response.output_audio.delta","response_id":"r{response}","item_id":"i{item}","content_index":0,"delta":"{delta}"}}"#));
            }
            Input::AudioDone(n) => self.text(Leg::Model, &format!(r#"{{"type":"response.output_audio.done","response_id":"r{n}","item_id":"i{n}"}}"#)),
            Input::Done(n) => {
                let status = ["completed", "cancelled", "failed", "incomplete"][usize::from(n)];
                self.text(Leg::Model, &format!(r#"{{"type":"response.done","response":{{"id":"r{n}","status":"{status}","output":[]}}}}"#));
            }
            Input::Added { item, user, previous } => {
                let (name, role) = if user { ("u", "user") } else { ("i", "assistant") };
                self.text(Leg::Model, &format!(r#"{{"type":"conversation.item.added","previous_item_id":"i{previous}","item":{{"id":"{name}{item}","role":"{role}"}}}}"#));
            }
            Input::Words(n, words) => self.text(Leg::Model, &format!(r#"{{"type":"response.output_audio_transcript.delta","item_id":"i{n}","delta":"{words}"}}"#)),
            Input::WordsDone(n, words) => self.text(Leg::Model, &format!(r#"{{"type":"response.output_audio_transcript.done","item_id":"i{n}","transcript":"{words}"}}"#)),
            Input::Transcribed(n, words) => self.text(Leg::Model, &format!(r#"{{"type":"conversation.item.input_audio_transcription.completed","item_id":"u{n}","transcript":"{words}"}}"#)),
            Input::FunctionCall(n) => self.text(Leg::Model, &format!(r#"{{"type":"response.output_item.done","response_id":"r{n}","item":{{"type":"function_call","status":"completed","call_id":"c{n}","name":"lookup","arguments":"{{}}"}}}}"#)),
            Input::ToolEnds(n, ok) => {
                let output = if ok { Ok("{}".into()) } else { Err("it failed".into()) };
                self.call.handle_tool(ToolResult { call_id: format!("c{n}"), output }, self.now);
            }
            Input::Error(n) => {
                let code = ["conversation_already_has_active_response", "response_cancel_not_active", "invalid_value", "rate_limit_exceeded", "server_error", "null"][usize::from(n)];
                if n == 0 {
                    self.outstanding = None;
                }
                self.text(Leg::Model, &format!(r#"{{"type":"error","error":{{"type":"invalid_request_error","code":"{code}","event_id":null}}}}"#));
            }
            Input::Link(leg, change) => {
                let change = match change {
                    0 => LegChange::Backpressured,
                    1 => LegChange::Writable,
                    2 => LegChange::Pong,
                    3 => LegChange::Closed { code: Some(1011), reason: String::new() },
                    _ => LegChange::Lost { why: "reset".into() },
                };
                if leg == Leg::Model && matches!(change, LegChange::Closed { .. } | LegChange::Lost { .. }) {
                    (self.connected, self.dialing) = (false, false);
                }
                self.call.handle_leg(leg, change, self.now);
            }
            Input::Drain => {
                let by = self.now + Duration::from_secs(5);
                self.call.handle_control(Control::Drain { by }, self.now);
            }
            Input::Replaced => self.call.handle_control(Control::Replaced, self.now),
        }
        self.drain();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test may anchor its time line anywhere")]
    fn any_sequence_is_survived_and_every_call_ends(
        inputs in prop::collection::vec(input(), 1..200),
        pcmu in any::<bool>(),
        // Half of the calls begin where the interesting things happen.
        live in any::<bool>(),
        // Half of the sessions are renewed as soon as it is quiet.
        renews in any::<bool>(),
    ) {
        let config = CallConfig {
            format: if pcmu { Format::Pcmu } else { Format::Pcm24k },
            tools: vec![ToolSpec { name: "lookup".into(), description: String::new(), parameters: serde_json::json!({}), timeout_ms: 2_000 }],
            // A wait that gives up on a request frees the place for the next one; that rule has its own tests.
            timeouts: bridge::call::settings::Timeouts { first_audio_ms: 10_000_000, ..Default::default() },
            renewal: renews.then(|| Renewal { after_ms: Some(1), ..Renewal::default() }),
            ..CallConfig::default()
        };
        let now = Instant::now();
        let mut world = World {
            call: Call::new(Arc::new(config), vec![0xFF; 1_600].into(), now, 0),
            now,
            responses: 0,
            outstanding: None,
            marks: Vec::new(),
            names: BTreeSet::new(),
            tools: BTreeSet::new(),
            chunk: 0,
            timestamp: 0,
            ended: false,
            renews,
            dialing: false,
            connected: false,
            said: BTreeMap::new(),
        };
        if live {
            for input in [Input::Start, Input::Media(0), Input::ModelOpens, Input::SessionCreated, Input::SessionUpdated] {
                world.apply(input);
            }
        }
        for input in inputs {
            world.apply(input);
        }
        // Nothing more comes: every wait is bounded, so the call ends.
        world.apply(Input::Waits(5 * 60 * 60 * 1_000));
        prop_assert!(world.ended, "the call never ended");
        prop_assert!(world.call.is_over());
        prop_assert_eq!(world.call.poll_timeout(), None);
    }
}
