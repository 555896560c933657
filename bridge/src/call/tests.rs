//! A call, step by step: each test states one fact.

mod admission;
mod functions;
mod hangup;
mod last_words;
mod protection;
mod renewal;

use super::event::{CallEvent, EndReason, Private, ToolOutcome};
use super::settings::{CallConfig, HoldMessage, ms};
use super::*;
use crate::audio::{Format, alaw, ulaw};
use crate::runtime::codec::decode;
use crate::wire::realtime::ClientEvent;
use crate::wire::twilio::ToTwilio;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

const NOTICE_MS: u64 = 1_000;
const CREATED: &str = r#"{"type":"session.created","session":{}}"#;
const UPDATED: &str = r#"{"type":"session.updated","session":{"audio":{"input":{"format":{"type":"audio/pcmu"}},"output":{"format":{"type":"audio/pcmu"}}}}}"#;

struct Bench {
    call: Call,
    zero: Instant,
    at: u64,
    sent: VecDeque<Transmit>,
    events: Vec<CallEvent>,
    chunk: u64,
    /// When the ear runs dry, and the marks it owes; `deaf` ears return none.
    ear_free: u64,
    owed: VecDeque<(u64, String)>,
    deaf: bool,
}

impl Bench {
    #[expect(clippy::disallowed_methods, reason = "a test may anchor its time line anywhere")]
    fn with(change: impl FnOnce(&mut CallConfig)) -> Self {
        let mut config = CallConfig { format: Format::Pcmu, ..CallConfig::default() };
        change(&mut config);
        let config = Arc::new(config);
        let zero = Instant::now();
        let notice: Arc<[u8]> = vec![0x33; NOTICE_MS as usize * 8].into();
        Self {
            call: Call::new(config, notice, zero, 1_795_330_800),
            zero,
            at: 0,
            sent: VecDeque::new(),
            events: Vec::new(),
            chunk: 0,
            ear_free: 0,
            owed: VecDeque::new(),
            deaf: false,
        }
    }

    fn live() -> Self {
        Self::live_with(|_| {})
    }

    fn live_with(change: impl FnOnce(&mut CallConfig)) -> Self {
        let mut t = Self::with(change);
        t.start();
        t.caller_frame();
        t.model_opens();
        t.model(CREATED);
        t.model(UPDATED);
        t.sent.clear();
        t
    }

    /// Live with a caller whose carrier speaks A-law.
    fn live_in_a_law(format: Format) -> Self {
        let mut t = Self::with(|c| c.format = format);
        t.twilio(r#"{"event":"start","start":{"streamSid":"MZ1","callSid":"CA1","mediaFormat":{"encoding":"audio/x-alaw","sampleRate":8000,"channels":1}},"streamSid":"MZ1"}"#);
        t.caller_frame();
        t.model_opens();
        t.model(CREATED);
        let echo = format!(r#"{{"format":{{"type":"{}"}}}}"#, format.wire_name());
        t.model(&format!(
            r#"{{"type":"session.updated","session":{{"audio":{{"input":{echo},"output":{echo}}}}}}}"#
        ));
        t.sent.clear();
        t
    }

    /// Every byte sent to the caller since the last look.
    fn sent_media(&mut self) -> Vec<u8> {
        let mut media = Vec::new();
        for transmit in self.sent.drain(..) {
            if let Transmit::Caller { message: ToTwilio::Media { audio }, .. } = transmit {
                media.extend(audio);
            }
        }
        media
    }

    fn now(&self) -> Instant {
        self.zero + ms(self.at)
    }

    fn drain(&mut self) {
        while let Some(transmit) = self.call.poll_transmit() {
            if let Transmit::Caller { message, .. } = &transmit {
                match message {
                    ToTwilio::Media { audio } => {
                        self.ear_free = self.ear_free.max(self.at) + audio.len() as u64 / 8;
                    }
                    ToTwilio::Mark { name } => self.owed.push_back((self.ear_free, name.clone())),
                    ToTwilio::Clear => {
                        self.owed.clear();
                        self.ear_free = self.at;
                    }
                }
            }
            self.sent.push_back(transmit);
        }
        while let Some(event) = self.call.poll_event() {
            self.events.push(event);
        }
    }

    fn twilio(&mut self, text: &str) {
        self.call.handle_frame(Leg::Caller, decode(Leg::Caller, text), self.now());
        self.drain();
    }

    fn model(&mut self, text: &str) {
        self.call.handle_frame(Leg::Model, decode(Leg::Model, text), self.now());
        self.drain();
    }

    fn leg(&mut self, leg: Leg, change: LegChange) {
        self.call.handle_leg(leg, change, self.now());
        self.drain();
    }

    fn model_opens(&mut self) {
        self.leg(Leg::Model, LegChange::Open);
    }

    /// The session is there and takes its settings. What was sent before they were confirmed is forgotten.
    fn model_becomes_ready(&mut self) {
        self.model_opens();
        self.model(CREATED);
        self.sent.clear();
        self.model(UPDATED);
    }

    fn start(&mut self) {
        self.twilio(r#"{"event":"start","start":{"streamSid":"MZ1","callSid":"CA1","mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}},"streamSid":"MZ1"}"#);
    }

    fn caller_frame(&mut self) {
        self.chunk += 1;
        let payload = BASE64.encode([0xFF; 160]);
        let (chunk, timestamp) = (self.chunk, self.at);
        self.twilio(&format!(r#"{{"event":"media","media":{{"chunk":"{chunk}","timestamp":"{timestamp}","payload":"{payload}"}},"streamSid":"MZ1"}}"#));
    }

    fn mark(&mut self, name: &str) {
        self.twilio(&format!(r#"{{"event":"mark","mark":{{"name":"{name}"}},"streamSid":"MZ1"}}"#));
    }

    fn key(&mut self, key: char) {
        self.twilio(&format!(r#"{{"event":"dtmf","dtmf":{{"digit":"{key}"}},"streamSid":"MZ1"}}"#));
    }

    fn response_begins(&mut self, response: &str) {
        self.model(&format!(r#"{{"type":"response.created","response":{{"id":"{response}"}}}}"#));
    }

    fn requested_response_begins(&mut self, response: &str, number: u64) {
        self.model(&format!(r#"{{"type":"response.created","response":{{"id":"{response}","metadata":{{"bridge_request":"{number}"}}}}}}"#));
    }

    fn model_says(&mut self, response: &str, item: &str, audio_ms: usize) {
        let audio = BASE64.encode(vec![0x55; audio_ms * 8]);
        self.model(&format!(r#"{{"type":"response.output_audio.delta","response_id":"{response}","item_id":"{item}","content_index":0,"delta":"{audio}"}}"#));
    }

    fn response_done(&mut self, response: &str, status: &str) {
        self.model(&format!(
            r#"{{"type":"response.done","response":{{"id":"{response}","status":"{status}","output":[]}}}}"#
        ));
    }

    fn model_detects_speech(&mut self) {
        self.model(
            r#"{"type":"input_audio_buffer.speech_started","audio_start_ms":0,"item_id":"item_user"}"#,
        );
    }

    fn model_detects_silence(&mut self) {
        self.model(r#"{"type":"input_audio_buffer.speech_stopped","audio_end_ms":0,"item_id":"item_user"}"#);
    }

    /// Lets time pass, firing timers when they are due.
    fn advance(&mut self, by: u64) {
        let end = self.at + by;
        loop {
            let timer = self.call.poll_timeout().map_or(u64::MAX, |(due, _)| {
                u64::try_from((due - self.zero).as_micros()).unwrap().div_ceil(1_000)
            });
            let mark = self.owed.front().filter(|_| !self.deaf).map_or(u64::MAX, |(due, _)| *due);
            if timer.min(mark) > end {
                break;
            }
            self.at = self.at.max(timer.min(mark));
            if mark <= timer {
                let (_, name) = self.owed.pop_front().expect("a mark is owed");
                self.mark(&name);
            } else {
                self.call.handle_timeout(self.now());
                self.drain();
            }
        }
        self.at = end;
    }

    fn next(&mut self) -> Option<String> {
        loop {
            return Some(match self.sent.pop_front()? {
                Transmit::Caller { message: ToTwilio::Media { .. }, .. } | Transmit::Ping(_) => continue,
                Transmit::Caller { message: ToTwilio::Mark { .. }, .. } | Transmit::WithdrawAudio => continue,
                Transmit::Caller { message: ToTwilio::Clear, .. } => "clear".into(),
                Transmit::Model(ClientEvent::Truncate { item, audio_end_ms, .. }) => {
                    format!("truncate {item} {audio_end_ms}")
                }
                Transmit::Model(ClientEvent::CreateResponse { request, .. }) => format!("create {request}"),
                Transmit::Model(ClientEvent::CancelResponse { response }) => {
                    format!("cancel {}", response.unwrap_or_default())
                }
                Transmit::Model(ClientEvent::AppendAudio { audio }) => format!("append {}", audio.len()),
                Transmit::Model(ClientEvent::CommitAudio { .. }) => "commit".into(),
                Transmit::Model(ClientEvent::UserText { text, .. }) => text,
                Transmit::Model(ClientEvent::ToolOutput { call_id, output, .. }) => {
                    format!("output {call_id} {output}")
                }
                Transmit::Model(ClientEvent::History(past)) => format!("past {past:?}"),
                Transmit::Model(ClientEvent::SessionUpdate { .. }) => "update".into(),
                Transmit::VerifyStream(StreamCredentials { call_sid, account_sid, token }) => {
                    format!("show {call_sid} {account_sid} {}", token.unwrap_or_default())
                }
                Transmit::Dial { .. } => "dial".into(),
                Transmit::Close { leg, code, .. } => format!("close {leg:?} {code}"),
                Transmit::Drop(leg) => format!("drop {leg:?}"),
                Transmit::PauseModelReads(held) => format!("hold {held}"),
                Transmit::RunTool { call_id, name, arguments } => format!("run {call_id} {name} {arguments}"),
                Transmit::CancelTool { call_id } => format!("stop running {call_id}"),
            });
        }
    }

    #[track_caller]
    fn expect(&mut self, want: &str) {
        assert_eq!(self.next().as_deref(), Some(want));
    }

    #[track_caller]
    fn expect_quiet(&mut self) {
        assert_eq!(self.next(), None);
    }

    fn sent_media_ms(&mut self) -> u64 {
        self.sent
            .drain(..)
            .map(|t| {
                let Transmit::Caller { message: ToTwilio::Media { audio }, .. } = t else { return 0 };
                audio.len() as u64 / 8
            })
            .sum()
    }

    fn end_reason(&self) -> Option<EndReason> {
        self.events.iter().find_map(|event| {
            let CallEvent::Ended { reason, .. } = event else { return None };
            Some(*reason)
        })
    }
}

// -------------------------------------------------------------------------------------------- set-up

#[test]
fn the_model_is_dialled_on_the_first_media_not_on_start() {
    let mut t = Bench::with(|_| {});
    t.start();
    t.expect_quiet();
    t.caller_frame();
    t.expect("dial");
}

#[test]
fn audio_before_the_session_is_settled_is_held_then_sent_in_order() {
    let mut t = Bench::with(|_| {});
    t.start();
    for _ in 0..3 {
        t.caller_frame();
        t.advance(20);
    }
    t.expect("dial");
    t.model_opens();
    t.expect_quiet();
    t.model(CREATED);
    t.expect("update");
    t.caller_frame();
    t.expect_quiet();
    t.model(UPDATED);
    t.expect("append 640");
    t.expect_quiet();
}

#[test]
fn other_formats_than_asked_for_end_the_call_with_a_notice() {
    let mut t = Bench::with(|_| {});
    t.start();
    t.caller_frame();
    t.model_opens();
    t.model(CREATED);
    t.sent.clear();
    t.model(r#"{"type":"session.updated","session":{"audio":{"input":{"format":{"type":"audio/pcm","rate":24000}},"output":{"format":{"type":"audio/pcmu"}}}}}"#);
    assert!(t.events.contains(&CallEvent::Notice { reason: EndReason::SessionRefused }));
    t.expect("close Model 1000");
    assert_eq!(t.sent_media_ms(), NOTICE_MS);
}

/// Why a session with these settings beside its formats was refused, if it was.
fn refusal(change: impl FnOnce(&mut CallConfig), turns: &str, more: &str) -> Option<String> {
    let mut t = Bench::with(change);
    t.start();
    t.caller_frame();
    t.model_opens();
    t.model(CREATED);
    let format = r#""format":{"type":"audio/pcmu"}"#;
    t.model(&format!(
        r#"{{"type":"session.updated","session":{{"audio":{{"input":{{{format}{turns}}},"output":{{{format}}}}}{more}}}}}"#
    ));
    let Phase::Notice { reason: EndReason::SessionRefused, detail, .. } = &t.call.phase else { return None };
    Some(detail.clone())
}

#[test]
fn a_session_that_tells_turns_otherwise_than_asked_for_is_refused_by_the_name_of_the_field() {
    let turns = |echo: &str| refusal(|_| {}, &format!(r#","turn_detection":{echo}"#), "");
    assert_eq!(turns("null").unwrap(), "turn_detection is off where server_vad was asked for");
    assert_eq!(turns(r#"{"type":null}"#).unwrap(), "turn_detection is off where server_vad was asked for");
    assert_eq!(
        turns(r#"{"type":"semantic_vad","eagerness":"auto"}"#).unwrap(),
        "turn_detection.type is semantic_vad where server_vad was asked for"
    );
    assert_eq!(
        turns(r#"{"type":"server_vad","create_response":false}"#).unwrap(),
        "turn_detection.create_response is false where true was asked for"
    );
    assert_eq!(
        turns(r#"{"type":"server_vad","interrupt_response":false}"#).unwrap(),
        "turn_detection.interrupt_response is false where true was asked for"
    );
    let asked = r#"{"type":"server_vad","threshold":0.7,"create_response":true,"interrupt_response":true}"#;
    assert_eq!(turns(asked), None, "a threshold may be rounded");
    assert_eq!(turns(r#"{"type":"server_vad","create_response":null}"#), None, "not echoed");
    let uninterrupted =
        |echo: &str| refusal(|c| c.barge_in = false, &format!(r#","turn_detection":{echo}"#), "");
    assert!(uninterrupted(asked).is_some());
    assert_eq!(uninterrupted(r#"{"type":"server_vad","interrupt_response":false}"#), None);
}

#[test]
fn a_session_without_a_function_that_was_asked_for_is_refused() {
    let asks = |c: &mut CallConfig| {
        c.tools = vec![serde_json::from_str(r#"{"name":"look"}"#).unwrap()];
        c.hangup.end_call = true;
    };
    let tools = |echo: &str| refusal(asks, "", &format!(r#","tools":{echo}"#));
    assert_eq!(tools("[]").unwrap(), "tools lack look, end_call");
    assert_eq!(tools("null").unwrap(), "tools lack look, end_call");
    assert_eq!(tools(r#"[{"type":"function","name":"look"}]"#).unwrap(), "tools lack end_call");
    let all = r#"[{"type":"mcp","server_label":"x"},{"name":"end_call"},{"name":"look"},{"name":"own"}]"#;
    assert_eq!(tools(all), None, "a server may have functions of its own");
    assert_eq!(refusal(asks, "", ""), None, "not echoed");
    assert_eq!(refusal(|_| {}, "", r#","tools":null"#), None, "none were asked for");
}

#[test]
fn a_refused_update_fails_closed() {
    let mut t = Bench::with(|_| {});
    t.start();
    t.caller_frame();
    t.model_opens();
    t.model(CREATED);
    t.model(r#"{"type":"error","error":{"type":"invalid_request_error","code":"unknown_parameter","event_id":"update_1"}}"#);
    assert!(t.events.contains(&CallEvent::Notice { reason: EndReason::SessionRefused }));
}

#[test]
fn errors_that_end_the_session_end_the_call() {
    let refused = [
        "invalid_api_key",
        "insufficient_permissions",
        "missing_model",
        "invalid_model",
        "model_not_found",
        "beta_api_shape_disabled",
        "insufficient_quota",
        "billing_hard_limit_reached",
        "account_deactivated",
    ];
    let refused = refused.map(|code| (code, EndReason::ModelRefused));
    for (code, reason) in refused.into_iter().chain([("session_expired", EndReason::SessionExpired)]) {
        let mut t = Bench::live();
        t.model(&format!(r#"{{"type":"error","error":{{"type":"invalid_request_error","code":"{code}"}}}}"#));
        assert!(t.events.contains(&CallEvent::Notice { reason }), "{code}");
    }
}

#[test]
fn settings_are_not_confirmed_before_they_were_sent() {
    let mut t = Bench::with(|_| {});
    t.start();
    t.caller_frame();
    t.expect("dial");
    t.model_opens();
    t.model(UPDATED);
    t.expect_quiet();
    t.model(CREATED);
    t.expect("update");
    t.model(CREATED);
    t.expect_quiet();
}

#[test]
fn a_session_that_has_ended_before_it_began_is_the_clocks_fault() {
    let mut t = Bench::with(|_| {});
    t.start();
    t.caller_frame();
    t.model_opens();
    t.model(r#"{"type":"session.created","session":{"expires_at":1795330800}}"#);
    let what = "an expiry in the past: the clocks disagree".into();
    assert!(t.events.contains(&CallEvent::Tolerated { what }));
}

#[test]
fn an_error_without_a_code_is_called_by_its_type() {
    let mut t = Bench::live();
    t.model(r#"{"type":"error","error":{"type":"server_error","code":"overloaded"}}"#);
    t.model(r#"{"type":"error","error":{"type":"server_error"}}"#);
    let errors = t.events.iter().filter_map(|event| {
        let CallEvent::ModelError { code } = event else { return None };
        Some(code.as_str())
    });
    assert_eq!(errors.collect::<Vec<_>>(), ["overloaded", "server_error"]);
}

#[test]
fn events_nobody_knows_are_counted() {
    let mut t = Bench::live();
    for _ in 0..2 {
        t.model(r#"{"type":"response.mood.changed"}"#);
    }
    assert_eq!(t.call.cx.counts.unknown, 2);
    let tolerated = t.events.iter().filter(|event| matches!(event, CallEvent::Tolerated { .. })).count();
    assert_eq!(tolerated, 2);
}

#[test]
fn as_many_malformed_messages_as_are_allowed_are_survived() {
    let mut t = Bench::live_with(|c| c.limits.malformed = 3);
    for _ in 0..3 {
        t.twilio("not json");
    }
    t.expect_quiet();
    t.twilio("not json");
    t.expect("close Model 1000");
}

#[test]
fn what_the_backlog_has_no_room_for_is_counted() {
    let mut t = Bench::with(|c| c.limits.backlog_ms = 100);
    t.start();
    for _ in 0..8 {
        t.caller_frame();
        t.advance(20);
    }
    assert_eq!(t.call.cx.counts.dropped_uplink_ms, 60);
}

#[test]
fn the_way_to_the_caller_and_back_is_measured_by_pings_of_the_caller() {
    let mut t = Bench::live();
    assert!(t.call.round_trip.is_none());
    t.advance(1);
    t.leg(Leg::Model, LegChange::Pong);
    assert!(t.call.round_trip.is_none());
    t.advance(29);
    t.leg(Leg::Caller, LegChange::Pong);
    assert_eq!(t.call.round_trip, Some(ms(30)));
    let now = t.now();
    t.call.ping(Leg::Model, now);
    assert_eq!(t.call.pinged.len(), 0);
    (0..2 * super::PINGS_MAX).for_each(|_| t.call.ping(Leg::Caller, now));
    assert_eq!(t.call.pinged.len(), super::PINGS_MAX);
}

#[test]
fn a_message_of_another_stream_is_not_taken_for_one_of_this() {
    let mut t = Bench::live();
    t.key('1');
    t.twilio(r#"{"event":"dtmf","dtmf":{"digit":"2"},"streamSid":"MZ2"}"#);
    assert_eq!(t.call.cx.counts.malformed, 1);
    t.key('#');
    t.expect("The caller entered 1 # on the keypad.");
    t.twilio(r#"{"event":"start","start":{"streamSid":"MZ2","callSid":"CA1","mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}},"streamSid":"MZ2"}"#);
    assert_eq!(t.call.cx.counts.malformed, 1);
}

#[test]
fn the_code_of_its_close_tells_why_a_model_has_left() {
    let reasons = [
        (Some(1_011), EndReason::ModelLost),
        (None, EndReason::ModelLost),
        (Some(3_000), EndReason::ModelRefused),
        (Some(4_999), EndReason::ModelRefused),
        (Some(5_000), EndReason::ModelLost),
    ];
    for (code, reason) in reasons {
        let mut t = Bench::live();
        t.leg(Leg::Model, LegChange::Closed { code, reason: String::new() });
        assert!(t.events.contains(&CallEvent::Notice { reason }), "{code:?}");
    }
}

#[test]
fn a_notice_whose_mark_never_comes_is_waited_for_as_long_as_it_lasts_and_a_while() {
    let mut t = Bench::live_with(|c| c.timeouts.notice_ms = 300);
    t.deaf = true;
    t.leg(Leg::Model, LegChange::Lost { why: "reset".into() });
    t.advance(NOTICE_MS + 299);
    t.expect_quiet();
    t.advance(1);
    t.expect("close Caller 1000");
}

#[test]
fn an_unknown_media_format_is_refused_not_played_as_noise() {
    let mut t = Bench::with(|_| {});
    t.twilio(r#"{"event":"start","start":{"streamSid":"MZ1","callSid":"CA1","mediaFormat":{"encoding":"audio/l16","sampleRate":16000,"channels":1}},"streamSid":"MZ1"}"#);
    t.expect("close Caller 1000");
    t.leg(Leg::Caller, LegChange::Closed { code: Some(1000), reason: String::new() });
    assert_eq!(t.end_reason(), Some(EndReason::UnsupportedMedia));
    assert!(t.call.is_over());
}

#[test]
fn an_a_law_caller_and_a_pcma_session_share_every_byte() {
    let mut t = Bench::live_in_a_law(Format::Pcma);
    t.caller_frame();
    let Some(Transmit::Model(ClientEvent::AppendAudio { audio })) = t.sent.pop_front() else {
        panic!("no append")
    };
    assert_eq!(audio, [0xFF; 160], "what the caller sent");
    t.response_begins("r1");
    t.model_says("r1", "item", 30);
    t.model(r#"{"type":"response.output_audio.done","response_id":"r1","item_id":"item","content_index":0}"#);
    assert_eq!(
        t.sent_media(),
        [[0x55; 240].as_slice(), &[0xD5; 80]].concat(),
        "padded with the silence of A-law"
    );
}

#[test]
fn an_a_law_caller_of_a_pcmu_session_is_converted_both_ways() {
    let mut t = Bench::live_in_a_law(Format::Pcmu);
    t.caller_frame();
    let Some(Transmit::Model(ClientEvent::AppendAudio { audio })) = t.sent.pop_front() else {
        panic!("no append")
    };
    assert_eq!(audio, [ulaw::encode(alaw::decode(0xFF)); 160]);
    t.response_begins("r1");
    t.model_says("r1", "item", 20);
    assert_eq!(t.sent_media(), [alaw::encode(ulaw::decode(0x55)); 160]);
}

#[test]
fn an_a_law_caller_is_told_of_the_end_in_a_law() {
    let mut t = Bench::live_in_a_law(Format::Pcm24k);
    t.leg(Leg::Model, LegChange::Lost { why: "cut".into() });
    let notice = t.sent_media();
    assert_eq!(notice, vec![alaw::encode(ulaw::decode(0x33)); NOTICE_MS as usize * 8]);
}

#[test]
fn a_greeting_is_asked_for_once_the_session_is_settled() {
    let mut t = Bench::with(|c| c.greeting = Some("Say hello.".into()));
    t.start();
    t.caller_frame();
    t.model_becomes_ready();
    t.expect("append 160");
    t.expect("create 1");
}

#[test]
fn start_that_never_comes_ends_the_call() {
    let mut t = Bench::with(|_| {});
    t.advance(4_000);
    t.twilio(r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"#);
    t.leg(Leg::Caller, LegChange::Ping);
    t.expect_quiet();
    t.advance(1_000); // whatever else was said
    t.expect("close Caller 1000");
    t.advance(800);
    t.expect("drop Caller");
    assert_eq!(t.end_reason(), Some(EndReason::NoStart));
}

// -------------------------------------------------------------------------------------------- barge-in

#[test]
fn barge_in_cuts_at_what_was_heard_not_at_what_was_sent() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 3_000);
    t.advance(1_240);
    t.model_detects_speech();
    t.expect("clear");
    t.expect("truncate item_7 1240");
    t.expect_quiet();
}

#[test]
fn what_waits_to_be_written_is_taken_back_before_the_clear() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 3_000);
    t.advance(100);
    t.sent.clear();
    t.model_detects_speech();
    assert_eq!(t.sent.pop_front(), Some(Transmit::WithdrawAudio));
    t.expect("clear");
}

#[test]
fn an_item_heard_as_far_as_it_was_made_is_cut_when_more_may_come() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 1_000);
    t.advance(1_500);
    t.model_detects_speech();
    t.expect("truncate item_7 1000");
    t.expect_quiet();
}

#[test]
fn an_answer_that_begins_over_a_caller_who_may_not_interrupt_is_heard() {
    let mut t = Bench::live_with(|c| c.barge_in = false);
    t.model_detects_speech();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 500);
    assert_eq!(t.sent_media_ms(), 500);
}

#[test]
fn a_turn_behind_a_request_that_is_never_answered_is_asked_for_again() {
    let mut t = Bench::live_with(|c| {
        c.greeting = Some("Say hello.".into());
        c.vad.create_response = false;
    });
    t.expect_quiet();
    t.model_detects_speech();
    t.model(r#"{"type":"input_audio_buffer.speech_stopped"}"#);
    t.expect_quiet();
    t.advance(20_000);
    t.expect("create 2");
}

#[test]
fn barge_in_after_generation_ended_still_silences_the_ear() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 5_000);
    t.response_done("r1", "completed");
    t.advance(2_000);
    t.model_detects_speech();
    t.expect("clear");
    t.expect("truncate item_7 2000");
    t.expect_quiet();
}

#[test]
fn speech_after_everything_was_heard_sends_nothing() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 1_000);
    t.response_done("r1", "completed");
    t.advance(1_001);
    t.model_detects_speech();
    t.expect_quiet();
}

#[test]
fn late_deltas_of_an_interrupted_response_are_dropped_and_counted() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 1_000);
    t.advance(100);
    t.model_detects_speech();
    t.sent.clear();
    t.model_says("r1", "item_7", 250);
    t.response_done("r1", "cancelled");
    t.model_says("r1", "item_7", 250);
    assert_eq!(t.sent_media_ms(), 0);
    assert_eq!(t.call.cx.counts.stale_bytes, 4_000);
}

#[test]
fn audio_of_a_response_nobody_announced_is_not_played() {
    let mut t = Bench::live();
    t.model_says("r9", "item_9", 250);
    assert_eq!(t.sent_media_ms(), 0);
}

#[test]
fn a_turn_the_server_will_not_answer_is_asked_about() {
    let mut t = Bench::live_with(|c| {
        c.vad.interrupt_response = false;
        c.greeting = Some("Say hello.".into());
    });
    t.model_detects_speech();
    t.model_detects_silence();
    t.requested_response_begins("r1", 1);
    t.expect("cancel r1");
    t.response_done("r1", "cancelled");
    t.expect("create 2");
}

#[test]
fn barge_in_before_the_first_delta_fences_the_response() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_detects_speech();
    t.expect_quiet();
    t.model_says("r1", "item_7", 250);
    assert_eq!(t.sent_media_ms(), 0);
}

#[test]
fn a_response_asked_for_but_not_created_is_cancelled_when_it_appears() {
    let mut t = Bench::live_with(|c| c.greeting = Some("Say hello.".into()));
    t.model_detects_speech();
    t.expect_quiet();
    t.requested_response_begins("r1", 1);
    t.expect("cancel r1");
    t.model_says("r1", "item_7", 250);
    assert_eq!(t.sent_media_ms(), 0);
}

#[test]
fn every_unheard_item_is_cut() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_1", 1_000);
    t.model_says("r1", "item_2", 1_000);
    t.advance(300);
    t.model_detects_speech();
    t.expect("clear");
    t.expect("truncate item_1 300");
    t.expect("truncate item_2 0");
    t.expect_quiet();
}

#[test]
fn without_server_interruption_the_bridge_cancels_by_id() {
    let mut t = Bench::live_with(|c| c.vad.interrupt_response = false);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 1_000);
    t.advance(100);
    t.model_detects_speech();
    t.expect("clear");
    t.expect("truncate item_7 100");
    t.expect("cancel r1");
}

#[test]
fn an_uninterruptible_agent_speaks_on() {
    let mut t = Bench::live_with(|c| c.barge_in = false);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 1_000);
    t.advance(100);
    t.model_detects_speech();
    t.expect_quiet();
}

#[test]
fn marks_returned_by_the_clear_are_not_credited() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 3_000);
    t.advance(100);
    t.model_detects_speech();
    t.mark("0/1/200");
    t.response_done("r1", "cancelled");
    t.model_detects_silence();
    t.response_begins("r2");
    t.sent.clear();
    t.model_says("r2", "item_8", 1_000);
    t.advance(50);
    t.model_detects_speech();
    t.expect("clear");
    t.expect("truncate item_8 50");
}

// -------------------------------------------------------------------------------------------- responses

#[test]
fn a_failed_response_is_asked_for_once_more_and_then_spoken_about() {
    let mut t = Bench::live();
    t.model_detects_speech();
    t.model_detects_silence();
    t.response_begins("r1");
    t.response_done("r1", "failed");
    t.expect_quiet();
    t.advance(500);
    t.expect("create 1");
    t.requested_response_begins("r2", 1);
    t.response_done("r2", "failed");
    t.expect("close Model 1000");
    assert_eq!(t.sent_media_ms(), NOTICE_MS);
}

#[test]
fn a_turn_without_an_answer_is_asked_about_once_more() {
    let mut t = Bench::live();
    t.model_detects_speech();
    t.model_detects_silence();
    t.advance(8_000);
    t.sent.clear();
    t.advance(500);
    t.expect("create 1");
}

#[test]
fn a_busy_refusal_is_benign() {
    let mut t = Bench::live_with(|c| c.greeting = Some("Say hello.".into()));
    t.model(r#"{"type":"error","error":{"type":"invalid_request_error","code":"conversation_already_has_active_response","event_id":"create_1"}}"#);
    t.model(r#"{"type":"error","error":{"type":"invalid_request_error","code":"response_cancel_not_active","event_id":null}}"#);
    t.expect_quiet();
    t.response_begins("r1");
    t.model_says("r1", "item_1", 200);
    assert_eq!(t.sent_media_ms(), 200);
}

#[test]
fn a_turn_is_asked_about_where_the_server_answers_none() {
    let mut t = Bench::live_with(|c| {
        c.greeting = Some("Say hello.".into());
        c.vad.create_response = false;
    });
    t.model_detects_speech();
    t.requested_response_begins("r1", 1);
    t.expect("cancel r1");
    t.model_detects_silence();
    t.model(r#"{"type":"error","error":{"type":"invalid_request_error","code":"response_cancel_not_active","event_id":null}}"#);
    t.expect_quiet();
    t.response_done("r1", "cancelled");
    t.expect("create 2");
}

#[test]
fn a_turn_behind_a_busy_refusal_is_not_waited_for_for_ever() {
    let mut t = Bench::live_with(|c| {
        c.greeting = Some("Say hello.".into());
        c.vad.create_response = false;
    });
    t.model(r#"{"type":"error","error":{"type":"invalid_request_error","code":"conversation_already_has_active_response","event_id":"create_1"}}"#);
    t.model_detects_speech();
    t.model_detects_silence();
    t.expect_quiet();
    let timeouts = t.call.cx.config.timeouts.clone();
    t.advance(timeouts.first_audio_ms + timeouts.retry_ms);
    t.expect("create 2");
}

#[test]
fn a_key_behind_a_busy_refusal_waits_for_what_is_under_way() {
    let mut t = Bench::live_with(|c| c.greeting = Some("Say hello.".into()));
    t.model(r#"{"type":"error","error":{"type":"invalid_request_error","code":"conversation_already_has_active_response","event_id":"create_1"}}"#);
    t.key('#');
    t.expect("The caller pressed # on the keypad.");
    t.expect_quiet();
    t.response_begins("r1");
    t.expect("cancel r1");
    t.response_done("r1", "cancelled");
    t.expect("create 2");
}

// -------------------------------------------------------------------------------------------- keypad, tools

#[test]
fn keys_become_one_message_and_one_response() {
    let mut t = Bench::live();
    t.key('4');
    t.advance(300);
    t.key('2');
    t.expect_quiet();
    t.advance(1_500);
    t.expect("The caller entered 4 2 on the keypad.");
    t.expect("create 1");
    t.expect_quiet();
}

#[test]
fn keys_pressed_before_the_model_is_ready_are_kept() {
    let mut t = Bench::with(|c| c.greeting = Some("Say hello.".into()));
    t.start();
    t.key('3');
    t.caller_frame();
    t.key('#');
    t.model_becomes_ready();
    t.expect("append 160");
    t.expect("The caller entered 3 # on the keypad.");
    t.expect("create 1");
    t.expect_quiet();
}

#[test]
fn more_keys_than_an_entry_has_are_kept_until_the_model_is_ready() {
    let mut t = Bench::with(|c| c.dtmf.max_digits = 2);
    t.start();
    t.caller_frame();
    "1234567".chars().for_each(|key| t.key(key));
    t.model_becomes_ready();
    t.expect("append 160");
    t.expect("The caller entered 1 2 on the keypad.");
    t.expect("create 1");
    t.expect("The caller entered 3 4 on the keypad.");
    t.expect("The caller entered 5 6 on the keypad.");
    t.expect_quiet();
    t.advance(1_500);
    t.expect("The caller pressed 7 on the keypad.");
    t.expect_quiet();
}

#[test]
fn keys_without_end_are_not_all_kept_for_a_model_that_is_not_ready() {
    let mut t = Bench::with(|c| c.dtmf.max_digits = 1_000);
    t.start();
    t.caller_frame();
    (0..super::uplink::KEYS_MAX + 10).for_each(|_| t.key('1'));
    t.key('#');
    t.model_becomes_ready();
    t.expect("append 160");
    t.advance(1_500);
    t.expect(&format!("The caller entered {}on the keypad.", "1 ".repeat(super::uplink::KEYS_MAX)));
}

#[test]
fn a_key_does_not_interrupt_an_uninterruptible_agent() {
    let mut t = Bench::live_with(|c| c.barge_in = false);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 1_000);
    t.key('#');
    t.expect("The caller pressed # on the keypad.");
    t.expect_quiet();
    t.response_done("r1", "completed");
    t.expect("create 1");
}

#[test]
fn a_key_interrupts_and_its_response_waits_for_the_cancelled_one() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 3_000);
    t.advance(500);
    t.key('#');
    t.expect("clear");
    t.expect("truncate item_7 500");
    t.expect("cancel r1");
    t.expect("The caller pressed # on the keypad.");
    t.advance(500);
    t.expect_quiet();
    t.response_done("r1", "cancelled");
    t.expect("create 1");
}

#[test]
fn nothing_is_missed_while_keys_are_pressed_however_long_that_takes() {
    let mut t = Bench::live_with(|c| c.timeouts.ping_ms = 600_000);
    t.model_detects_speech();
    t.model_detects_silence();
    t.sent.clear();
    for key in "12345678901234567890".chars() {
        t.advance(t.call.cx.config.dtmf.quiet_ms - 100);
        t.key(key);
        t.expect_quiet();
    }
    assert!(t.at > 2 * t.call.cx.config.timeouts.first_audio_ms, "longer than two answers are waited for");
    t.key('#');
    t.expect("The caller entered 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 # on the keypad.");
    assert_eq!(t.end_reason(), None);
    // The interrupted answer never came; the one to the entry is waited for.
    t.advance(t.call.cx.config.timeouts.first_audio_ms + t.call.cx.config.timeouts.retry_ms);
    t.expect("create 1");
}

#[test]
fn a_turn_that_ends_while_an_unwanted_response_runs_is_asked_about_and_waited_for() {
    let made_while_speaking = || {
        let mut t = Bench::live();
        t.key('#');
        t.expect("The caller pressed # on the keypad.");
        t.expect("create 1");
        t.model_detects_speech();
        t.requested_response_begins("r1", 1);
        t.expect("cancel r1");
        t.model_detects_silence();
        t.expect_quiet();
        t
    };
    let mut t = made_while_speaking();
    t.response_done("r1", "cancelled");
    t.expect("create 2");
    // The cancelled one never ends.
    let mut t = made_while_speaking();
    let timeouts = t.call.cx.config.timeouts.clone();
    t.advance(timeouts.first_audio_ms + timeouts.retry_ms);
    assert_eq!(t.call.cx.counts.retries, 1);
}

#[test]
fn speech_over_an_answer_of_which_nothing_has_come_is_an_interruption() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_detects_speech();
    let found = t.events.iter().find(|event| matches!(event, CallEvent::BargeIn { .. }));
    let nothing = CallEvent::BargeIn { item: None, heard: ms(0), discarded: ms(0) };
    assert_eq!(found, Some(&nothing));
    assert_eq!(t.call.cx.counts.barge_ins, 1);
    let mut t = Bench::live();
    t.model_detects_speech();
    assert_eq!(t.call.cx.counts.barge_ins, 0, "there was nothing to interrupt");
}

const CALL: &str = r#"{"type":"response.output_item.done","response_id":"r1","item":{"type":"function_call","status":"completed","call_id":"call_1","name":"lookup","arguments":" {\"id\":7} \n"}}"#;

fn with_lookup(config: &mut CallConfig) {
    config.tools = vec![settings::ToolSpec {
        name: "lookup".into(),
        description: String::new(),
        parameters: serde_json::json!({}),
        timeout_ms: 3_000,
    }];
}

#[test]
fn a_function_runs_once_and_its_output_is_spoken_about_after_the_response() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    t.model(CALL);
    t.expect(r#"run call_1 lookup {"id":7}"#);
    t.model(CALL);
    t.expect_quiet();
    t.call.handle_tool(ToolResult { call_id: "call_1".into(), output: Ok("{}".into()) }, t.now());
    t.drain();
    t.expect_quiet(); // some servers refuse an output before the response is over
    t.response_done("r1", "completed");
    t.expect("output call_1 {}");
    t.expect("create 1");
    t.expect_quiet();
}

#[test]
fn a_slow_function_is_answered_by_a_time_out_and_only_once() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    t.model(CALL);
    t.response_done("r1", "completed");
    t.sent.clear();
    t.advance(3_000);
    t.expect("stop running call_1");
    t.expect(r#"output call_1 {"error":"the function took too long"}"#);
    t.expect("create 1");
    t.call.handle_tool(ToolResult { call_id: "call_1".into(), output: Ok("{}".into()) }, t.now());
    t.drain();
    t.expect_quiet();
}

fn with_filler(config: &mut CallConfig) {
    with_lookup(config);
    config.tools[0].timeout_ms = 30_000;
    config.hold_message =
        Some(HoldMessage { after_ms: 1_000, instructions: "Say that it takes a moment.".into() });
}

/// A function runs, and nobody speaks.
fn waiting() -> Bench {
    let mut t = Bench::live_with(with_filler);
    t.response_begins("r1");
    t.model(CALL);
    t.response_done("r1", "completed");
    t.sent.clear();
    t
}

fn has_run(t: &mut Bench) {
    t.call.handle_tool(ToolResult { call_id: "call_1".into(), output: Ok("{}".into()) }, t.now());
    t.drain();
}

#[test]
fn a_function_that_takes_its_time_is_spoken_over_once_by_a_response_that_may_call_nothing() {
    let mut t = waiting();
    t.advance(999);
    t.expect_quiet();
    t.advance(1);
    let asked = t.sent.pop_front();
    let Some(Transmit::Model(ClientEvent::CreateResponse { instructions, may_call, .. })) = asked else {
        panic!("{asked:?}");
    };
    assert_eq!((instructions.as_deref(), may_call), (Some("Say that it takes a moment."), false));
    t.model(r#"{"type":"response.created","response":{"id":"f1","metadata":{"bridge_request":"1"}}}"#);
    has_run(&mut t);
    t.expect("output call_1 {}");
    t.expect_quiet();
    t.response_done("f1", "completed");
    t.expect("create 2");
    t.advance(5_000);
    t.expect_quiet();
}

#[test]
fn while_an_answer_is_on_its_way_a_filler_can_wait() {
    let mut t = waiting();
    t.key('#');
    t.expect("The caller pressed # on the keypad.");
    t.expect("create 1");
    t.requested_response_begins("r2", 1);
    t.advance(1_100);
    t.model_says("r2", "item_8", 100);
    t.response_done("r2", "completed");
    t.expect_quiet();
    t.advance(1_099); // the wait begins anew where the answer ends
    t.expect_quiet();
    t.advance(1);
    t.expect("create 2");
}

#[test]
fn a_function_that_is_quick_needs_no_filler() {
    let mut t = waiting();
    t.advance(900);
    has_run(&mut t);
    t.expect("output call_1 {}");
    t.expect("create 1");
    t.advance(2_000);
    t.expect_quiet();
}

#[test]
fn a_filler_that_is_refused_or_says_nothing_harms_nobody() {
    let mut t = waiting();
    t.advance(1_000);
    t.expect("create 1");
    t.model(
        r#"{"type":"error","error":{"type":"invalid_request_error","code":"no","event_id":"create_1","message":""}}"#,
    );
    t.advance(5_000);
    t.expect_quiet();
    has_run(&mut t);
    t.expect("output call_1 {}");
    t.expect("create 2");

    let mut t = waiting();
    t.advance(1_000);
    t.expect("create 1");
    t.model(r#"{"type":"response.created","response":{"id":"f1","metadata":{"bridge_request":"1"}}}"#);
    t.response_done("f1", "failed");
    t.advance(5_000);
    t.expect_quiet();
}

#[test]
fn while_the_caller_speaks_a_filler_can_wait() {
    let mut t = waiting();
    t.advance(900);
    t.model_detects_speech();
    t.advance(1_500);
    assert!(!t.sent.iter().any(|s| matches!(s, Transmit::Model(ClientEvent::CreateResponse { .. }))));
}

#[test]
fn a_function_call_that_is_told_again_is_run_once() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    t.model(CALL);
    t.model(&CALL.replace("call_1", "call_2"));
    t.model(CALL);
    let run = |sent: &Transmit| {
        if let Transmit::RunTool { call_id, .. } = sent { Some(call_id.clone()) } else { None }
    };
    assert_eq!(t.sent.iter().filter_map(run).collect::<Vec<_>>(), ["call_1", "call_2"]);
}

#[test]
fn a_call_of_an_interrupted_response_is_answered_without_being_run() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    t.model_detects_speech();
    t.model(CALL);
    t.expect_quiet();
    t.response_done("r1", "cancelled");
    t.expect(r#"output call_1 {"error":"not run: the caller interrupted"}"#);
    t.expect_quiet();
}

#[test]
fn bad_arguments_are_answered_with_what_is_wrong() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    t.model(&CALL.replace(r#" {\"id\":7} \n"#, "seven"));
    t.response_done("r1", "completed");
    t.expect(r#"output call_1 {"error":"the arguments are not a JSON object"}"#);
}

// -------------------------------------------------------------------------------------------- the end

#[test]
fn stop_closes_the_model_and_nothing_remains() {
    let mut t = Bench::live();
    t.twilio(r#"{"event":"stop","streamSid":"MZ1","stop":{}}"#);
    t.expect("close Model 1000");
    t.expect("close Caller 1000");
    t.leg(Leg::Caller, LegChange::Closed { code: Some(1000), reason: String::new() });
    t.leg(Leg::Model, LegChange::Closed { code: Some(1000), reason: String::new() });
    assert_eq!(t.end_reason(), Some(EndReason::Stopped));
    assert!(t.call.is_over());
    assert_eq!(t.call.poll_timeout(), None);
}

#[test]
fn the_transcript_of_a_caller_who_leaves_ends_where_hearing_stopped() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 2_000);
    t.model(r#"{"type":"response.output_audio_transcript.done","item_id":"item_7","transcript":"one two three four five"}"#);
    t.advance(1_000);
    t.leg(Leg::Caller, LegChange::Lost { why: "reset".into() });
    t.leg(Leg::Model, LegChange::Closed { code: None, reason: String::new() });
    let Some(CallEvent::Ended { transcript, .. }) = t.events.last() else { panic!("the call is not over") };
    assert_eq!((transcript[0].text.as_str(), transcript[0].cut), ("one two", true));
}

#[test]
fn words_ahead_of_an_answer_that_broke_off_are_no_line() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model(r#"{"type":"response.output_audio_transcript.done","item_id":"item_7","transcript":"one two three four five six seven eight nine ten"}"#);
    t.model_says("r1", "item_7", 1_000);
    t.advance(1_500);
    t.leg(Leg::Model, LegChange::Lost { why: "reset".into() });
    t.advance(NOTICE_MS);
    t.leg(Leg::Caller, LegChange::Closed { code: None, reason: String::new() });
    let Some(CallEvent::Ended { transcript, .. }) = t.events.last() else { panic!("the call is not over") };
    assert_eq!((transcript[0].text.as_str(), transcript[0].cut), ("one two three four", true));
}

#[test]
fn a_model_lost_in_mid_answer_is_told_to_the_caller_after_what_was_sent() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 2_000);
    t.sent.clear();
    t.leg(Leg::Model, LegChange::Lost { why: "reset".into() });
    assert_eq!(t.sent_media_ms(), NOTICE_MS);
    t.advance(2_000 + NOTICE_MS - 1);
    t.expect_quiet();
    t.advance(1);
    t.expect("close Caller 1000");
    t.leg(Leg::Caller, LegChange::Closed { code: None, reason: String::new() });
    assert_eq!(t.end_reason(), Some(EndReason::ModelLost));
}

#[test]
fn a_notice_whose_mark_never_comes_ends_in_time() {
    let mut t = Bench::live();
    t.deaf = true;
    t.leg(Leg::Model, LegChange::Closed { code: Some(1011), reason: String::new() });
    t.sent.clear();
    t.advance(NOTICE_MS + 3_000);
    t.expect("close Caller 1000");
    t.advance(800);
    t.expect("drop Caller");
    assert!(t.call.is_over());
}

#[test]
fn the_session_ends_politely_before_the_server_ends_it() {
    let mut t = Bench::with(|_| {});
    t.start();
    t.caller_frame();
    t.model_opens();
    t.model(r#"{"type":"session.created","session":{"expires_at":1795330900}}"#);
    t.model(UPDATED);
    for _ in 0..50 {
        t.advance(2_000);
        t.leg(Leg::Caller, LegChange::Pong);
        t.leg(Leg::Model, LegChange::Pong);
    }
    assert!(t.events.contains(&CallEvent::ExpiringSoon));
    assert!(t.events.contains(&CallEvent::Notice { reason: EndReason::SessionExpired }));
}

#[test]
fn a_dead_model_leg_is_found_by_its_missing_pong() {
    let mut t = Bench::live();
    for _ in 0..14 {
        t.advance(1_000);
        t.caller_frame();
    }
    assert!(t.events.contains(&CallEvent::Notice { reason: EndReason::ModelSilent }));
}

#[test]
fn a_replaced_call_leaves_at_once_without_a_word() {
    let mut t = Bench::live();
    t.call.handle_control(Control::Replaced, t.now());
    t.drain();
    t.expect("close Model 1000");
    t.expect("close Caller 1000");
}

#[test]
fn a_clogged_caller_leg_holds_audio_but_not_the_clear() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 1_000);
    t.leg(Leg::Caller, LegChange::Backpressured);
    t.sent.clear();
    t.model_says("r1", "item_7", 1_000);
    assert_eq!(t.sent_media_ms(), 0);
    t.advance(500);
    t.model_detects_speech();
    t.expect("clear");
    t.expect("truncate item_7 500");
}

#[test]
fn a_flood_of_audio_stops_the_reading_and_goes_on_later() {
    let mut t = Bench::live_with(|c| c.limits.max_buffered_ms = 10_000);
    t.response_begins("r1");
    for _ in 0..14 {
        t.model_says("r1", "item_7", 1_000);
    }
    t.expect("hold true");
    for _ in 0..10 {
        t.advance(1_000);
        t.leg(Leg::Caller, LegChange::Pong);
    }
    t.expect("hold false");
    assert_eq!(t.end_reason(), None, "a leg that is not read is not asked for pongs");
}

#[test]
fn nothing_hostile_panics() {
    let mut t = Bench::live();
    for text in ["", "{}", "[]", "null", r#"{"event":1}"#, r#"{"type":{}}"#, "\u{0}", r#"{"event":"media"}"#]
    {
        t.twilio(text);
        t.model(text);
    }
    t.call.handle_frame(Leg::Caller, Incoming::Binary(3), t.now());
    t.drain();
    assert_eq!(t.end_reason(), None);
    assert_eq!(t.call.cx.counts.malformed, 17);
}

#[test]
fn events_nobody_knows_are_counted_from_the_first_on() {
    let mut t = Bench::with(|_| {});
    t.start();
    t.caller_frame();
    t.model_opens();
    t.model(r#"{"type":"session.hologram"}"#);
    t.twilio(r#"{"event":"hologram"}"#);
    assert_eq!(t.call.cx.counts.unknown, 2);
}

#[test]
fn an_expiring_session_leaves_time_for_the_ear_the_last_words_and_a_second() {
    let mut t = Bench::with(|_| {});
    t.start();
    t.caller_frame();
    t.model_opens();
    t.model(r#"{"type":"session.created","session":{"expires_at":1795330900}}"#);
    t.model(UPDATED);
    let lead_ms = t.call.cx.config.pacing.lead_ms;
    let last = 100_000 - NOTICE_MS - lead_ms - 1_000;
    while t.at < last - 1 {
        t.advance(1_000.min(last - 1 - t.at));
        t.leg(Leg::Caller, LegChange::Pong);
        t.leg(Leg::Model, LegChange::Pong);
    }
    let notice = CallEvent::Notice { reason: EndReason::SessionExpired };
    assert!(!t.events.contains(&notice));
    t.advance(1);
    assert!(t.events.contains(&notice));
}

#[test]
fn reading_goes_on_when_half_of_what_may_be_held_has_gone() {
    let mut t = Bench::live_with(|c| c.limits.max_buffered_ms = 10_000);
    t.response_begins("r1");
    for _ in 0..14 {
        t.model_says("r1", "item_7", 1_000);
    }
    t.expect("hold true");
    t.advance(6_000); // 14 s less the lead of 3 s and what was heard: 5 s are held
    t.expect_quiet();
    t.advance(200);
    assert!(!t.sent.iter().any(|sent| matches!(sent, Transmit::Ping(Leg::Model))), "not at once");
    t.expect("hold false");
}

#[test]
fn a_model_that_is_not_read_is_not_given_up_for_what_it_cannot_say() {
    let mut t = Bench::live_with(|c| {
        c.barge_in = false;
        c.limits.max_buffered_ms = 10_000;
        c.timeouts.first_audio_ms = 2_000;
    });
    t.response_begins("r1");
    for _ in 0..14 {
        t.model_says("r1", "item_7", 1_000);
    }
    t.expect("hold true");
    t.key('#');
    t.expect("The caller pressed # on the keypad.");
    t.advance(5_000);
    t.expect_quiet();
    assert!(t.call.poll_timeout().is_some_and(|(at, _)| at > t.now()));
}

#[test]
fn a_call_is_named_by_its_start() {
    let mut t = Bench::with(|_| {});
    assert_eq!(t.call.call_sid(), None);
    t.start();
    assert_eq!(t.call.call_sid(), Some("CA1"));
}

#[test]
fn a_key_in_silence_interrupts_nothing() {
    let mut t = Bench::live();
    t.key('#');
    t.sent.clear();
    t.requested_response_begins("r1", 1);
    t.model_says("r1", "item_7", 200);
    let marks: Vec<_> = t.owed.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(marks, ["0/1/200"], "marks of the first generation: nothing was cleared");
    assert_eq!(t.call.cx.counts.barge_ins, 0);
}

#[test]
fn a_request_refused_for_a_passing_reason_is_made_again() {
    let mut t = Bench::live_with(|c| c.greeting = Some("Say hello.".into()));
    t.model(r#"{"type":"error","error":{"type":"server_error","code":"rate_limit_exceeded","event_id":"create_1"}}"#);
    t.expect_quiet();
    t.advance(t.call.cx.config.timeouts.retry_ms);
    t.expect("create 2");
}

#[test]
fn a_call_counts_what_it_took_filled_sent_and_lost() {
    let mut t = Bench::live(); // one frame has come
    t.deaf = true;
    t.advance(20);
    t.caller_frame();
    t.advance(200);
    t.caller_frame();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 250);
    t.model_says("r1", "item_7", 250);
    t.response_done("r1", "completed");
    t.model(r#"{"type":"error","error":{"type":"server_error","code":"passing","event_id":null}}"#);
    t.advance(5_500); // three marks are overdue by now
    t.response_begins("r2");
    t.model_says("r2", "item_8", 1_000);
    t.advance(100);
    t.model_detects_speech();
    t.model_says("r2", "item_8", 20);
    t.response_done("r2", "cancelled");
    t.model_detects_silence();
    t.response_begins("r3");
    t.response_done("r3", "failed");
    t.advance(500);
    let counts = Counts {
        caller_frames: 3,
        filled_ms: 180,
        dropped_uplink_ms: 0,
        protected_ms: 0,
        deltas: 4,
        stale_bytes: 160,
        sent_ms: 1_500,
        barge_ins: 1,
        truncations: 1,
        unknown: 0,
        malformed: 0,
        lost_marks: 3,
        errors: 1,
        refused_outputs: 0,
        unannounced: 0,
        tool_loops: 0,
        retries: 1,
        peak_held_bytes: 160, // the first frame, until the session was settled
        forgotten_items: 0,
    };
    assert_eq!(t.call.cx.counts, counts);
}

#[test]
fn a_key_pressed_over_a_long_answer_waits_for_its_end_and_cuts_nothing() {
    let mut t = Bench::live_with(|c| c.barge_in = false);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 1_000);
    t.key('#');
    t.sent.clear();
    // Ten seconds in the speed of speech, longer than the first audio of an answer may take.
    for _ in 0..10 {
        t.advance(1_000);
        t.model_says("r1", "item_7", 1_000);
    }
    assert!(!t.sent.iter().any(|s| matches!(s, Transmit::Model(ClientEvent::CancelResponse { .. }))));
    t.sent.clear();
    t.response_done("r1", "completed");
    assert!(t.sent.iter().any(|s| matches!(s, Transmit::Model(ClientEvent::CreateResponse { .. }))));
}

#[test]
fn an_answer_that_falls_silent_for_ever_does_not_keep_a_key_waiting_for_ever() {
    let mut t = Bench::live_with(|c| c.barge_in = false);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 1_000);
    t.key('#');
    t.sent.clear();
    t.advance(t.call.cx.config.timeouts.first_audio_ms + 1_000);
    assert!(t.sent.iter().any(|s| matches!(s, Transmit::Model(ClientEvent::CancelResponse { .. }))));
}

#[test]
fn a_function_of_an_interrupted_response_does_not_stop_the_wait_for_the_answer() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_detects_speech();
    t.model_detects_silence();
    t.model(
        r#"{"type":"response.output_item.done","response_id":"r1","item":{"type":"function_call","status":"completed","call_id":"call_1","name":"x","arguments":"{}"}}"#,
    );
    t.response_done("r1", "completed");
    t.sent.clear();
    let timeouts = t.call.cx.config.timeouts.clone();
    t.advance(timeouts.first_audio_ms + timeouts.retry_ms);
    t.expect("create 1");
}

#[test]
fn a_turn_that_ends_while_our_cancel_is_on_its_way_is_asked_about_by_us() {
    let mut t = Bench::live_with(|c| c.vad.interrupt_response = false);
    t.response_begins("r1");
    t.model_detects_speech();
    t.model_detects_silence(); // r1 still runs: the server will not answer this turn
    t.sent.clear();
    t.response_done("r1", "cancelled");
    t.expect("create 1");
}

// -------------------------------------------------------------------------------------------- what is told

impl Bench {
    fn floors(&self) -> Vec<Floor> {
        let floor = |event: &CallEvent| if let CallEvent::Floor(floor) = event { Some(*floor) } else { None };
        self.events.iter().filter_map(floor).collect()
    }
}

#[test]
fn a_dial_is_told_with_what_became_of_it_and_how_long_it_took() {
    let dialed = |t: &Bench| {
        let found = t.events.iter().find_map(|event| {
            if let CallEvent::Dialed { outcome, took } = event { Some((*outcome, *took)) } else { None }
        });
        found.expect("a dial")
    };
    let dialing = || {
        let mut t = Bench::with(|_| {});
        t.start();
        t.caller_frame();
        t.advance(120);
        t
    };
    let mut t = dialing();
    t.model_opens();
    assert_eq!(dialed(&t), (DialOutcome::Connected, ms(120)));
    t.model(r#"{"type":"session.created","session":{"id":"sess_1"}}"#);
    assert!(t.events.contains(&CallEvent::Session { id: "sess_1".into() }));
    let mut t = dialing();
    t.leg(Leg::Model, LegChange::DialFailed { why: "refused".into() });
    assert_eq!(dialed(&t), (DialOutcome::Failed, ms(120)));
    let mut t = dialing();
    t.advance(8_000);
    assert_eq!(dialed(&t), (DialOutcome::TimedOut, ms(8_000)));
    let mut t = dialing();
    t.twilio(r#"{"event":"stop","streamSid":"MZ1"}"#);
    assert_eq!(dialed(&t), (DialOutcome::Abandoned, ms(120)));
    assert_eq!(t.events.iter().filter(|e| matches!(e, CallEvent::Dialed { .. })).count(), 1);
}

#[test]
fn the_floor_is_the_agents_until_the_last_of_it_is_heard() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.advance(100);
    assert_eq!(t.floors(), [], "nothing was said yet");
    t.model_says("r1", "item_7", 500);
    t.advance(600);
    assert_eq!(t.floors(), [Floor { caller: false, agent: true }], "more of the response may come");
    t.model_says("r1", "item_7", 500);
    t.response_done("r1", "completed");
    t.advance(400);
    assert_eq!(t.floors().len(), 1);
    t.advance(200);
    t.model_detects_speech();
    t.model_detects_silence();
    let caller = Floor { caller: true, agent: false };
    assert_eq!(t.floors()[1..], [Floor::default(), caller, Floor::default()]);
}

#[test]
fn who_interrupts_has_the_floor_alone() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 500);
    t.advance(100);
    t.model_detects_speech();
    assert_eq!(t.floors().last(), Some(&Floor { caller: true, agent: false }));
}

#[test]
fn the_ear_is_silent_when_the_last_flushed_mark_is_back() {
    let mut t = Bench::live();
    t.response_begins("r1");
    t.model_says("r1", "item_7", 400);
    t.advance(100);
    let marks: Vec<String> = t.owed.iter().map(|(_, name)| name.clone()).collect();
    t.model_detects_speech();
    t.at += 70;
    let silenced = |t: &Bench| t.events.contains(&CallEvent::Silenced { after: ms(70) });
    assert_eq!(marks.len(), 2);
    t.mark(&marks[0]);
    assert!(!silenced(&t), "more is flushed");
    t.mark(&marks[1]);
    assert!(silenced(&t));
    t.mark(&marks[1]);
    assert_eq!(t.events.iter().filter(|e| matches!(e, CallEvent::Silenced { .. })).count(), 1);
}

#[test]
fn a_function_call_is_told_with_its_name_outcome_and_duration() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    t.model(CALL);
    t.advance(700);
    t.call.handle_tool(ToolResult { call_id: "call_1".into(), output: Ok("{}".into()) }, t.now());
    t.drain();
    let answered = CallEvent::ToolAnswered {
        call_id: "call_1".into(),
        name: "lookup".into(),
        outcome: ToolOutcome::Done,
        took: Some(ms(700)),
        why: None,
        output: Private::new("{}"),
    };
    assert!(t.events.contains(&answered), "{:?}", t.events);
    let called = CallEvent::ToolCalled {
        call_id: "call_1".into(),
        name: "lookup".into(),
        arguments: Private::new(r#"{"id":7}"#),
    };
    assert!(t.events.contains(&called));
}

#[test]
fn keys_arguments_and_outputs_do_not_print() {
    let mut t = Bench::live_with(with_lookup);
    "4711#".chars().for_each(|key| t.key(key));
    t.response_begins("r1");
    t.model(CALL);
    t.call.handle_tool(ToolResult { call_id: "call_1".into(), output: Ok("hush".into()) }, t.now());
    t.drain();
    let keypad = CallEvent::Keypad { keys: 5, entry: Private::new("4711#") };
    assert!(t.events.contains(&keypad));
    for event in t.events.iter().filter(|event| !matches!(event, CallEvent::Said(_))) {
        let printed = format!("{event:?}");
        assert!(!printed.contains("4711") && !printed.contains("id\":7") && !printed.contains("hush"));
    }
}

#[test]
fn silence_is_supplied_until_the_turn_ends() {
    let mut t = Bench::live();
    t.caller_frame();
    t.model_detects_speech();
    let before = t.call.cx.counts.filled_ms;
    let (pause, silence) = (t.call.cx.config.timeouts.media_pause_ms, 1_000);
    t.advance(pause);
    assert_eq!(t.call.cx.counts.filled_ms - before, silence);
    t.advance(silence); // the server takes more than that to end the turn
    assert_eq!(t.call.cx.counts.filled_ms - before, 2 * silence);
    t.model_detects_silence();
    t.advance(5_000);
    assert_eq!(t.call.cx.counts.filled_ms - before, 2 * silence, "the turn is over");
}

// -------------------------------------------------------------------------------------------- the end of a turn

/// How long after the turn the audio that came last was sent, as told.
fn answered_after(t: &Bench) -> Option<u64> {
    t.events.iter().rev().find_map(|event| {
        let CallEvent::Speaking { after, .. } = event else { return None };
        after.map(|after| u64::try_from(after.as_millis()).unwrap())
    })
}

#[test]
fn the_first_audio_is_measured_from_the_last_word_and_not_from_when_the_server_was_sure() {
    let mut t = Bench::live();
    for _ in 0..100 {
        t.advance(20);
        t.caller_frame();
    }
    // The session's audio began one frame before the clock: 1,220 ms of it end at 1,200.
    t.model_detects_speech();
    t.model(r#"{"type":"input_audio_buffer.speech_stopped","audio_end_ms":1720,"item_id":"item_user"}"#);
    t.response_begins("r1");
    t.advance(150);
    t.model_says("r1", "item_1", 200);
    assert_eq!(answered_after(&t), Some(2_000 + 150 - 1_200));
}

#[test]
fn a_function_or_a_second_try_does_not_shorten_the_wait_for_the_first_audio() {
    let mut t = Bench::live_with(|c| c.timeouts.retry_ms = 500);
    t.advance(2_000);
    t.model_detects_speech();
    t.model_detects_silence();
    t.response_begins("r1");
    t.response_done("r1", "failed");
    t.advance(500);
    t.expect("create 1");
    t.requested_response_begins("r2", 1);
    t.advance(300);
    t.model_says("r2", "item_1", 200);
    assert_eq!(answered_after(&t), Some(800));
}

#[test]
fn a_commit_without_the_end_of_speech_ends_the_turn() {
    let mut t = Bench::live_with(|c| c.vad.create_response = false);
    t.model_detects_speech();
    t.model(r#"{"type":"input_audio_buffer.committed","item_id":"item_user"}"#);
    t.expect("create 1");
    t.model_detects_silence();
    t.expect_quiet();
    assert_eq!(t.events.iter().filter(|event| matches!(event, CallEvent::SpeechStopped)).count(), 1);
}

#[test]
fn the_late_commit_of_a_turn_does_not_end_the_next() {
    let mut t = Bench::live_with(|c| c.vad.create_response = false);
    t.model_detects_speech();
    t.model_detects_silence();
    t.expect("create 1");
    t.model(r#"{"type":"input_audio_buffer.speech_started","audio_start_ms":900,"item_id":"item_next"}"#);
    t.model(r#"{"type":"input_audio_buffer.committed","item_id":"item_user"}"#);
    assert!(t.call.floor.caller, "the caller speaks");
    t.model(r#"{"type":"input_audio_buffer.committed","item_id":"item_next"}"#);
    assert!(!t.call.floor.caller);
}

#[test]
fn a_stream_that_carried_nothing_says_so() {
    let detail = |t: &Bench| {
        let Some(CallEvent::Ended { reason, detail, .. }) = t.events.last() else { panic!("not over") };
        (*reason, detail.clone())
    };
    let close = || LegChange::Closed { code: Some(1_000), reason: String::new() };
    let mut t = Bench::with(|_| {});
    t.leg(Leg::Caller, close());
    assert_eq!(detail(&t), (EndReason::CallerClosed, "closed with 1000; no start had come".to_owned()));
    let mut t = Bench::with(|_| {});
    t.start();
    t.twilio(r#"{"event":"stop","streamSid":"MZ1"}"#);
    t.leg(Leg::Caller, close());
    assert_eq!(detail(&t), (EndReason::Stopped, "stop; no audio of the caller had come".to_owned()));
}

#[test]
fn a_mark_that_comes_back_before_its_audio_could_be_played_is_not_taken_for_heard() {
    let mut t = Bench::live();
    t.deaf = true;
    t.response_begins("r1");
    t.model_says("r1", "item_1", 3_000);
    t.advance(40);
    t.mark("0/1/200");
    t.mark("0/1/1000");
    t.sent.clear();
    t.model_detects_speech();
    t.expect("clear");
    t.expect("truncate item_1 40");
}
