//! The shell around the call, over real loopback sockets: admission, upgrade, drain, panics, and what remains
//! afterwards, which is nothing.

#![expect(clippy::unwrap_used, reason = "a bench that breaks has to stop the test")]

mod common;

use bridge::app::config::Config;
use bridge::base::secret::Secret;
use bridge::call::event::{CallEvent, EndReason, ToolOutcome};
use bridge::call::settings::ToolSpec;
use bridge::export::journal::files::{Files, Stats as JournalStats};
use bridge::export::journal::{self};
use bridge::net::tools::{NoTools, Tools};
use bridge::runtime::journal::Journal;
use bridge::runtime::meter::Traffic;
use bridge::runtime::observe::Observe;
use bridge::runtime::registry::CallKey;
use bridge::server::serve::{Served, Server};
use bridge::server::stats::Stats;
use common::{Pipes, Recorder, close_of, ends, given_up, media, read_head, say, start_with, until};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

type Caller = WebSocketStream<TcpStream>;
type Model = WebSocketStream<DuplexStream>;

#[tokio::test]
async fn a_call_is_carried_and_nothing_of_it_remains() {
    let mut t = Bench::start(Config::default()).await;
    let mut caller = t.call("CA1").await;
    let (mut model, request) = t.answer().await;
    assert!(request.starts_with("GET /v1/realtime?model=gpt-realtime-2.1 HTTP/1.1\r\n"), "{request}");
    let request = request.to_lowercase(); // header names may be written either way
    assert!(
        request.contains("authorization: bearer sk-test") && request.contains("x-client-request-id: ca1")
    );
    t.configure(&mut model).await;
    assert_eq!((t.stats.active(), t.stats.registered()), (1, 1));

    say(&mut caller, &json!({"event": "stop", "streamSid": "MZ1", "sequenceNumber": "9", "stop": {}})).await;
    assert!(matches!(close_of(&mut caller).await, Some(1000)));
    assert!(matches!(close_of(&mut model).await, Some(1000)));
    let (served, seen) = t.stop().await;
    assert_eq!(served, Served { calls: 1, ..Served::default() });
    assert_eq!(ends(&seen), [EndReason::Stopped]);
}

#[tokio::test]
async fn what_comes_right_behind_a_handshake_is_not_lost() {
    let mut t = Bench::start(Config::default()).await;

    // The caller: request, `connected`, `start` and the first `media` in one write.
    let mut tcp = TcpStream::connect(t.address).await.unwrap();
    let mut bytes = b"GET /twilio HTTP/1.1\r\nHost: bridge\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_vec();
    for message in
        [json!({"event": "connected", "protocol": "Call", "version": "1.0.0"}), start("CA1"), media(1)]
    {
        bytes.extend(masked(&message.to_string()));
    }
    tcp.write_all(&bytes).await.unwrap();

    // The model: its answer and `session.created` in one write.
    let mut pipe = t.dialed.recv().await.expect("the bridge dials on the first media");
    let request = read_head(&mut pipe).await;
    let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
    let mut answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    )
    .into_bytes();
    answer.extend(unmasked(&session("session.created").to_string()));
    pipe.write_all(&answer).await.unwrap();
    let mut model = WebSocketStream::from_raw_socket(pipe, Role::Server, None).await;
    assert_eq!(heard(&mut model).await["type"], "session.update");
    drop((tcp, model));
    t.stop().await;
}

#[tokio::test]
async fn a_full_bridge_refuses_before_the_upgrade_and_has_room_again_afterwards() {
    let t = Bench::start(Config { max_calls: 1, ..Config::default() }).await;
    let first = t.call("CA1").await;
    assert_eq!(t.refusal().await, (503, "all lines are busy\n".to_owned()));
    assert_eq!(t.get("/healthz").await, (200, "ok\nactive calls: 1\n".to_owned()));
    drop(first);
    until(|| t.stats.active() == 0).await;
    let second = t.call("CA2").await;
    drop(second);
    let (served, _) = t.stop().await;
    assert_eq!((served.calls, served.refused), (2, 1));
}

#[tokio::test]
async fn a_draining_bridge_takes_no_calls_and_lets_the_running_ones_finish() {
    let mut t = Bench::start(Config::default()).await;
    let mut caller = t.call("CA1").await;
    let (mut model, _) = t.answer().await;
    t.configure(&mut model).await;
    t.signal();
    until(|| t.stats.is_draining()).await;
    assert_eq!(t.refusal().await, (503, "shutting down: no new calls\n".to_owned()));
    assert_eq!(t.get("/healthz").await, (503, "draining\nactive calls: 1\n".to_owned()));
    assert!(!t.running.is_finished());
    say(&mut caller, &json!({"event": "stop", "streamSid": "MZ1", "sequenceNumber": "9", "stop": {}})).await;
    close_of(&mut caller).await;
    close_of(&mut model).await;
    let (served, seen) = t.stop().await;
    assert_eq!(served, Served { calls: 1, refused: 1, ..Served::default() });
    assert_eq!(ends(&seen), [EndReason::Stopped]);
}

#[tokio::test]
async fn after_the_drain_time_a_call_is_told_and_ended() {
    let mut t = Bench::start(Config { drain_ms: 50, notice: [0xFF; 160].into(), ..Config::default() }).await;
    let mut caller = t.call("CA1").await;
    let (mut model, _) = t.answer().await;
    t.configure(&mut model).await;
    t.signal();
    close_of(&mut model).await;
    loop {
        let message = heard(&mut caller).await;
        if message["event"] == "mark" {
            say(
                &mut caller,
                &json!({"event": "mark", "streamSid": "MZ1", "sequenceNumber": "8", "mark": message["mark"]}),
            )
            .await;
            break;
        }
        assert_eq!(message["event"], "media", "the last words");
    }
    assert!(matches!(close_of(&mut caller).await, Some(1000)));
    let (served, seen) = t.stop().await;
    assert_eq!(served.active_at_end, 0);
    assert_eq!(ends(&seen), [EndReason::Drained]);
}

#[tokio::test]
async fn a_second_stream_of_a_call_replaces_the_first() {
    let t = Bench::start(Config::default()).await;
    let mut first = t.call("CA1").await;
    until(|| t.stats.registered() == 1).await;
    let second = t.call("CA1").await;
    close_of(&mut first).await;
    until(|| t.stats.active() == 1).await;
    assert_eq!(t.stats.registered(), 1, "the first one's end left the second one's name alone");
    drop((first, second));
    let (_, seen) = t.stop().await;
    assert_eq!(ends(&seen)[0], EndReason::Replaced);
}

#[tokio::test]
async fn a_refused_dial_says_the_status_and_keeps_the_key() {
    let mut t = Bench::start(Config { notice: [0xFF; 160].into(), ..Config::default() }).await;
    let caller = t.call("CA1").await;
    let mut pipe = t.dialed.recv().await.unwrap();
    read_head(&mut pipe).await;
    pipe.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    until(|| t.seen().iter().any(|event| matches!(event, CallEvent::Notice { .. }))).await;
    drop(caller);
    let (_, seen) = t.stop().await;
    let Some(CallEvent::Ended { reason, detail, .. }) = seen.last() else { panic!("{seen:?}") };
    assert_eq!(
        (*reason, detail.as_str()),
        (EndReason::DialFailed, "the server answered 401 Unauthorized instead of upgrading")
    );
}

#[tokio::test]
async fn a_caller_who_leaves_while_the_model_is_dialled_stops_the_dialling() {
    let mut t = Bench::start(Config::default()).await;
    let caller = t.call("CA1").await;
    let mut pipe = t.dialed.recv().await.unwrap();
    read_head(&mut pipe).await; // and no answer
    drop(caller);
    assert_eq!(pipe.read(&mut [0]).await.unwrap(), 0, "the dial was dropped");
    let (served, seen) = t.stop().await;
    assert_eq!((served.calls, served.active_at_end), (1, 0));
    assert_eq!(ends(&seen), [EndReason::CallerLost]);
}

/// Panics when it hears of a certain call.
#[derive(Clone)]
struct Fragile(Recorder);

impl Observe for Fragile {
    fn event(&self, call: CallKey, now: Instant, event: &CallEvent) {
        if let CallEvent::Started { call_sid, .. } = event {
            assert_ne!(call_sid, "CA_PANIC", "planted");
        }
        self.0.event(call, now, event);
    }
}

#[tokio::test]
async fn a_panic_ends_one_call_and_no_other() {
    let recorder = Recorder::default();
    let mut t = Bench::with(Config::default(), NoTools, Fragile(recorder.clone()), recorder).await;
    let mut healthy = t.call("CA1").await;
    let (mut model, _) = t.answer().await;
    let mut broken = t.call("CA_PANIC").await;
    assert!(matches!(broken.next().await, None | Some(Err(_))), "cut, without a close frame");
    until(|| t.stats.panicked() == 1).await;
    assert_eq!((t.stats.active(), t.stats.registered()), (1, 1));
    t.configure(&mut model).await;
    say(&mut healthy, &json!({"event": "stop", "streamSid": "MZ1", "sequenceNumber": "9", "stop": {}})).await;
    close_of(&mut healthy).await;
    close_of(&mut model).await;
    let (served, seen) = t.stop().await;
    assert_eq!(served, Served { calls: 2, panicked: 1, ..Served::default() });
    assert_eq!(ends(&seen), [EndReason::Stopped]);
}

/// Notes beginnings, traffic and endings.
#[derive(Clone, Default)]
struct Doorman(Arc<Mutex<Vec<String>>>);

impl Observe for Doorman {
    fn begins(&self, call: CallKey, _now: Instant, unix: i64) {
        self.0.lock().unwrap().push(format!("{} begins {unix}", call.0));
    }

    fn event(&self, call: CallKey, _now: Instant, event: &CallEvent) {
        if let CallEvent::Ended { .. } = event {
            self.0.lock().unwrap().push(format!("{} ended", call.0));
        }
    }

    fn traffic(&self, call: CallKey, _now: Instant, traffic: &Traffic) {
        let (caller, model) = (&traffic.caller, &traffic.model);
        assert!(caller.received_bytes > 3 * 40 && model.sent_bytes > 1_000, "{traffic:?}");
        let counts = [caller.received, caller.sent, model.received, model.sent];
        let passed = traffic.uplink.len();
        self.0.lock().unwrap().push(format!("{} carried {counts:?}, {passed} at once", call.0));
    }

    fn gone(&self, call: CallKey) {
        self.0.lock().unwrap().push(format!("{} gone", call.0));
    }
}

#[tokio::test]
async fn observers_hear_of_beginning_traffic_and_going_whatever_ends_a_call() {
    let (recorder, doorman) = (Recorder::default(), Doorman::default());
    let observe = (Some(doorman.clone()), (None::<Doorman>, Fragile(recorder.clone())));
    let mut t = Bench::with(Config::default(), NoTools, observe, recorder).await;
    let mut caller = t.call("CA1").await;
    let (mut model, _) = t.answer().await;
    t.configure(&mut model).await;
    say(&mut caller, &media(2)).await;
    assert_eq!(heard(&mut model).await["type"], "input_audio_buffer.append");
    say(&mut caller, &json!({"event": "stop", "streamSid": "MZ1", "sequenceNumber": "9", "stop": {}})).await;
    close_of(&mut caller).await;
    close_of(&mut model).await;
    let mut broken = t.call("CA_PANIC").await;
    assert!(matches!(broken.next().await, None | Some(Err(_))));
    until(|| t.stats.panicked() == 1).await;
    t.stop().await;
    assert_eq!(
        *doorman.0.lock().unwrap(),
        [
            "1 begins 1700000000",
            "1 ended",
            "1 carried [5, 0, 2, 3], 1 at once",
            "1 gone",
            "2 begins 1700000000",
            "2 gone",
        ]
    );
}

/// Panics, never ends, or answers, as its name says.
#[derive(Clone)]
struct Moody(mpsc::UnboundedSender<&'static str>);

impl Tools for Moody {
    async fn run(&self, call_sid: &str, _id: &str, name: &str, arguments: &str) -> Result<String, String> {
        match name {
            "panics" => panic!("planted"),
            "hangs" => {
                let _alive = Alive(self.0.clone());
                pending().await
            }
            "books" => {
                let _alive = Alive(self.0.clone());
                tokio::time::sleep(Duration::from_millis(200)).await;
                let _ = self.0.send("booked");
                Ok("{}".to_owned())
            }
            _ => Ok(format!("{call_sid} {arguments}")),
        }
    }
}

struct Alive(mpsc::UnboundedSender<&'static str>);

impl Drop for Alive {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

#[tokio::test]
async fn functions_run_beside_the_audio_fail_alone_and_end_with_the_call() {
    let (log, mut fate) = mpsc::unbounded_channel();
    let mut config = Config::default();
    config.call.timeouts.tool_after_end_ms = 100;
    config.call.tools = ["panics", "hangs", "answers"]
        .map(|name| ToolSpec {
            name: name.into(),
            description: String::new(),
            parameters: json!({"type": "object"}),
            timeout_ms: 60_000,
        })
        .to_vec();
    let recorder = Recorder::default();
    let mut t = Bench::with(config, Moody(log), recorder.clone(), recorder).await;
    let mut caller = t.call("CA1").await;
    let (mut model, _) = t.answer().await;
    t.configure(&mut model).await;
    say(&mut model, &json!({"type": "response.created", "event_id": "e", "response": {"id": "resp_1", "object": "realtime.response", "status": "in_progress", "output": []}})).await;
    let names = ["panics", "hangs", "answers"];
    for (n, name) in names.iter().enumerate() {
        say(
            &mut model,
            &json!({"type": "response.function_call_arguments.done", "event_id": "e", "response_id": "resp_1",
                "item_id": format!("item_{n}"), "output_index": n, "call_id": format!("call_{n}"), "name": name,
                "arguments": "{}"}),
        )
        .await;
    }
    let output: Vec<Value> = names
        .iter()
        .enumerate()
        .map(|(n, name)| {
            json!({"id": format!("item_{n}"), "object": "realtime.item", "type": "function_call", "status": "completed",
                "call_id": format!("call_{n}"), "name": name, "arguments": "{}"})
        })
        .collect();
    say(&mut model, &json!({"type": "response.done", "event_id": "e", "response": {"id": "resp_1", "object": "realtime.response", "status": "completed", "output": output}})).await;

    let mut answers = Vec::new();
    while answers.len() < 2 {
        let message = heard(&mut model).await;
        if message["item"]["type"] == "function_call_output" {
            answers.push(format!("{} {}", message["item"]["call_id"], message["item"]["output"]));
        }
    }
    answers.sort();
    assert!(
        answers[0].starts_with("\"call_0\"") && answers[0].contains("the function failed"),
        "{answers:?}"
    );
    assert_eq!(answers[1], "\"call_2\" \"CA1 {}\"");
    assert!(fate.try_recv().is_err(), "the third one still runs");
    say(&mut caller, &json!({"event": "stop", "streamSid": "MZ1", "sequenceNumber": "9", "stop": {}})).await;
    close_of(&mut caller).await;
    close_of(&mut model).await;
    assert_eq!(fate.recv().await, Some("dropped"), "and has a limit of its own behind the call");
    let (served, _) = t.stop().await;
    assert_eq!(served, Served { calls: 1, ..Served::default() }, "a function's panic is no call's panic");
}

#[tokio::test]
async fn a_function_that_runs_when_the_caller_hangs_up_is_finished_and_told() {
    let (log, mut fate) = mpsc::unbounded_channel();
    let mut config = Config::default();
    config.call.tools = vec![ToolSpec {
        name: "books".into(),
        description: String::new(),
        parameters: json!({"type": "object"}),
        timeout_ms: 10_000,
    }];
    let recorder = Recorder::default();
    let mut t = Bench::with(config, Moody(log), recorder.clone(), recorder).await;
    let mut caller = t.call("CA1").await;
    let (mut model, _) = t.answer().await;
    t.configure(&mut model).await;
    say(&mut model, &json!({"type": "response.created", "response": {"id": "resp_1"}})).await;
    let item = json!({"id": "item_1", "type": "function_call", "status": "completed", "call_id": "call_1",
        "name": "books", "arguments": "{}"});
    say(&mut model, &json!({"type": "response.output_item.done", "response_id": "resp_1", "item": item}))
        .await;
    until(|| t.seen().iter().any(|event| matches!(event, CallEvent::ToolCalled { .. }))).await;
    say(&mut caller, &json!({"event": "stop", "streamSid": "MZ1", "sequenceNumber": "9", "stop": {}})).await;
    close_of(&mut caller).await;
    close_of(&mut model).await;
    let (served, seen) = t.stop().await;
    assert_eq!(served, Served { calls: 1, ..Served::default() });
    assert_eq!((fate.recv().await, fate.recv().await), (Some("booked"), Some("dropped")), "to its end");
    let outcome = seen
        .iter()
        .position(|event| matches!(event, CallEvent::ToolAnswered { outcome: ToolOutcome::Done, .. }));
    let ended = seen.iter().position(|event| matches!(event, CallEvent::Ended { .. }));
    assert!(outcome.is_some() && outcome < ended, "{seen:?}");
}

#[tokio::test]
async fn a_refusal_in_one_segment_with_the_answer_to_the_upgrade_is_read_and_its_key_is_not_told() {
    let mut t = Bench::start(Config { notice: [0xFF; 160].into(), ..Config::default() }).await;
    let caller = t.call("CA1").await;
    let mut pipe = t.dialed.recv().await.unwrap();
    let request = read_head(&mut pipe).await;
    let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
    let mut answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    )
    .into_bytes();
    let words = "Incorrect API key provided: sk-te******x7Qz.";
    let error =
        json!({"type": "error", "error": {"type": "invalid_request_error", "code": null, "message": words}});
    answer.extend(unmasked(&error.to_string()));
    answer.extend(
        [&[0x88, 2 + words.len() as u8], 3_000_u16.to_be_bytes().as_slice(), words.as_bytes()].concat(),
    );
    pipe.write_all(&answer).await.unwrap();
    until(|| t.seen().iter().any(|event| matches!(event, CallEvent::Notice { .. }))).await;
    drop(caller);
    let (_, seen) = t.stop().await;
    let Some(CallEvent::Ended { reason, detail, .. }) = seen.last() else { panic!("{seen:?}") };
    assert_eq!((*reason, detail.as_str()), (EndReason::ModelRefused, "invalid_api_key"));
    assert!(!format!("{seen:?}").contains("x7Qz"), "{seen:?}");
}

#[tokio::test]
async fn an_oversized_message_ends_its_call() {
    let piece = |n: usize| {
        let data = if n == 0 { Data::Text } else { Data::Continue };
        Message::Frame(Frame::message(" ".repeat(1_000), OpCode::Data(data), n == 69))
    };
    for way in ["at once", "in pieces", "announced"] {
        let t = Bench::start(Config::default()).await;
        let mut caller = t.call("CA1").await;
        match way {
            "at once" => {
                let _refused = caller.send(Message::text(" ".repeat(70_000))).await;
            }
            "in pieces" => {
                for n in 0..70 {
                    let _refused = caller.send(piece(n)).await;
                }
            }
            // The head of a frame says how long it is: the rest is not waited for.
            _ => {
                let head = [&[0x81, 0xFF], 70_000_u64.to_be_bytes().as_slice(), &[0; 4]].concat();
                caller.get_mut().write_all(&head).await.unwrap();
            }
        }
        while let Some(Ok(_)) = given_up(caller.next()).await {}
        let (_, seen) = t.stop().await;
        assert_eq!(ends(&seen), [EndReason::CallerLost], "{way}");
    }
}

/// The biggest ping there is.
fn ping() -> Message {
    Message::Ping(vec![b'p'; 125].into())
}

#[tokio::test]
async fn a_caller_who_pings_and_does_not_read_is_ended_before_and_in_a_call() {
    for started in [false, true] {
        let mut t = Bench::start(Config::default()).await;
        let mut caller = t.slow_reader().await;
        let mut model = None;
        if started {
            say(&mut caller, &json!({"event": "connected", "protocol": "Call", "version": "1.0.0"})).await;
            say(&mut caller, &start("CA1")).await;
            say(&mut caller, &media(1)).await;
            let (mut answered, _) = t.answer().await;
            t.configure(&mut answered).await;
            model = Some(answered);
        }
        // More than the operating system holds by far: without a limit all of it would be taken.
        let mut sent = 0;
        while sent < 1_000_000 && caller.feed(ping()).await.is_ok() {
            sent += 1;
        }
        assert!(sent < 1_000_000, "all pings were taken");
        drop((caller, model));
        let (_, seen) = t.stop().await;
        let Some(CallEvent::Ended { reason, detail, .. }) = seen.last() else { panic!("{seen:?}") };
        assert_eq!(*reason, EndReason::CallerLost, "{detail}");
        assert!(detail.contains("no pong was read"), "{detail}");
    }
}

#[tokio::test]
async fn a_model_that_pings_and_does_not_read_is_lost() {
    let mut t = Bench::start(Config { notice: [0xFF; 160].into(), ..Config::default() }).await;
    let caller = t.call("CA1").await;
    let (mut model, _) = t.answer().await;
    t.configure(&mut model).await;
    let mut sent = 0;
    while sent < 1_000_000 && model.feed(ping()).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 100_000, "all pings were taken");
    until(|| t.seen().iter().any(|event| matches!(event, CallEvent::Notice { .. }))).await;
    drop(caller);
    let (_, seen) = t.stop().await;
    let Some(CallEvent::Ended { detail, .. }) = seen.last() else { panic!("{seen:?}") };
    assert!(detail.contains("no pong was read"), "{detail}");
}

#[tokio::test]
async fn the_webhook_connects_the_call_to_the_address_twilio_can_reach() {
    let t = Bench::start(Config::default()).await;
    let (status, twiml) = t.get("/voice").await;
    assert_eq!(status, 200);
    assert!(twiml.contains(&format!("<Stream url=\"wss://{}/twilio\" ", t.address)), "{twiml}");
    let posted = t
        .http(
            "POST /voice HTTP/1.1\r\nHost: a&b\r\nContent-Length: 11\r\nConnection: close\r\n\r\nCallSid=CA1",
        )
        .await;
    assert_eq!(posted.0, 200);
    assert!(posted.1.contains("<Stream url=\"wss://a&amp;b/twilio\" "), "{}", posted.1);
    t.stop().await;

    let public_url = Some("https://voice.example.com/".parse().unwrap());
    let t = Bench::start(Config { public_url, ..Config::default() }).await;
    assert!(t.get("/voice").await.1.contains("\"wss://voice.example.com/twilio\""));
    assert_eq!(t.get("/nowhere").await.0, 404);
    let (status, why) = t.get("/twilio").await;
    assert_eq!(status, 426, "{why}");
    assert!(why.contains("WebSocket") && why.contains("/voice"), "{why}");
    t.stop().await;
}

#[tokio::test]
async fn dropping_the_server_drops_its_calls() {
    let t = Bench::start(Config::default()).await;
    let mut caller = t.call("CA1").await;
    until(|| t.stats.registered() == 1).await;
    t.running.abort();
    // Whatever was on its way may still arrive; then the connection just ends.
    while let Some(Ok(_)) = caller.next().await {}
    until(|| t.stats.active() == 0 && t.stats.registered() == 0).await;
}

#[tokio::test]
async fn a_call_leaves_a_journal_and_a_panic_is_in_its_own() {
    let folder = tempfile::TempDir::new().unwrap();
    let journal = journal::Settings { dir: Some(folder.path().to_owned()), ..journal::Settings::default() };
    let files = Arc::new(Files::open(&journal).unwrap().unwrap());
    let recorder = Recorder::default();
    let observe = Fragile(recorder.clone());
    let journals: Arc<dyn Journal> = files.clone();
    let mut t = Bench::journalled(Config::default(), NoTools, observe, recorder, Some(journals)).await;
    let mut caller = t.call("CA1").await;
    let (mut model, _) = t.answer().await;
    t.configure(&mut model).await;
    say(&mut caller, &json!({"event": "stop", "streamSid": "MZ1", "sequenceNumber": "9", "stop": {}})).await;
    close_of(&mut caller).await;
    close_of(&mut model).await;
    drop(t.call("CA_PANIC").await);
    until(|| t.stats.panicked() == 1).await;
    t.stop().await;
    let counted = Arc::into_inner(files).expect("the server has let go of it").stop();
    assert_eq!(counted, JournalStats { lines: counted.lines, ..JournalStats::default() });

    let journal = |call_sid: &str| {
        let paths = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut named = paths.filter(|path| path.to_string_lossy().ends_with(&format!("-{call_sid}.ndjson")));
        let text = std::fs::read_to_string(named.next().unwrap()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let told: Vec<String> = journal("CA1")
        .iter()
        .skip(1)
        .map(|line| {
            let more = ["type", "change", "does", "name"].iter().find_map(|key| line[key].as_str());
            format!("{} {}", line["is"].as_str().unwrap(), more.unwrap_or_default()).trim().to_owned()
        })
        .filter(|line| !line.contains("ping") && !line.contains("pong"))
        .collect();
    assert_eq!(
        told,
        [
            "caller.connected",
            "caller.start",
            "event started",
            "caller.media",
            "bridge dial",
            "event dialing",
            "leg open",
            "event dialed",
            "model session.created",
            "to_model session.update",
            "event session",
            "model session.updated",
            "to_model input_audio_buffer.append",
            "event live",
            "caller.stop",
            "bridge close",
            "bridge close",
            "leg closed",
            "leg closed",
            "event ended",
            "end",
        ]
    );
    assert_eq!(journal("CA_PANIC").iter().rev().nth(1).unwrap()["is"], "panicked");
}

// ------------------------------------------------------------------------------------------------ the bench

/// A served bridge, a network of one loopback port, and pipes instead of the model's network.
struct Bench {
    address: SocketAddr,
    stats: Stats,
    dialed: mpsc::UnboundedReceiver<DuplexStream>,
    shutdown: Option<oneshot::Sender<()>>,
    running: JoinHandle<Served>,
    recorder: Recorder,
}

impl Bench {
    async fn start(config: Config) -> Self {
        let recorder = Recorder::default();
        Self::with(config, NoTools, recorder.clone(), recorder).await
    }

    async fn with<T: Tools, O: Observe>(config: Config, tools: T, observe: O, recorder: Recorder) -> Self {
        Self::journalled(config, tools, observe, recorder, None).await
    }

    async fn journalled<T: Tools, O: Observe>(
        mut config: Config,
        tools: T,
        observe: O,
        recorder: Recorder,
        journal: Option<Arc<dyn Journal>>,
    ) -> Self {
        config.openai.api_key = Secret::new("sk-test");
        config.twilio.insecure_no_signature = true; // signatures are the subject of `face.rs`
        let (pipes, dialed) = mpsc::unbounded_channel();
        let (shutdown, signal) = oneshot::channel::<()>();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(Pipes(pipes), tools, observe, Arc::new(config.server()))
            .with_wall_clock(|| 1_700_000_000)
            .with_journal(journal);
        let stats = server.stats();
        let running = tokio::spawn(server.run(listener, async move {
            let _ = signal.await;
        }));
        Self { address, stats, dialed, shutdown: Some(shutdown), running, recorder }
    }

    /// A caller whose stream has started and whose first audio has arrived.
    async fn call(&self, call_sid: &str) -> Caller {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let url = format!("ws://{}/twilio", self.address);
        let (mut caller, _) = tokio_tungstenite::client_async(url, tcp).await.unwrap();
        say(&mut caller, &json!({"event": "connected", "protocol": "Call", "version": "1.0.0"})).await;
        say(&mut caller, &start(call_sid)).await;
        say(&mut caller, &media(1)).await;
        caller
    }

    /// An open WebSocket whose end here holds next to nothing that is not read.
    async fn slow_reader(&self) -> Caller {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 * 1024).unwrap();
        let tcp = socket.connect(self.address).await.unwrap();
        let url = format!("ws://{}/twilio", self.address);
        tokio_tungstenite::client_async(url, tcp).await.unwrap().0
    }

    /// The model picks up. Also returns the request it was asked with.
    async fn answer(&mut self) -> (Model, String) {
        let mut pipe = self.dialed.recv().await.expect("the bridge dials");
        let request = read_head(&mut pipe).await;
        let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        pipe.write_all(answer.as_bytes()).await.unwrap();
        (WebSocketStream::from_raw_socket(pipe, Role::Server, None).await, request)
    }

    /// Settles the session: from here on both ends can hear each other.
    async fn configure(&self, model: &mut Model) {
        say(model, &session("session.created")).await;
        assert_eq!(heard(model).await["type"], "session.update");
        say(model, &session("session.updated")).await;
        assert_eq!(heard(model).await["type"], "input_audio_buffer.append");
    }

    fn seen(&self) -> Vec<CallEvent> {
        self.recorder.seen()
    }

    fn signal(&mut self) {
        drop(self.shutdown.take());
    }

    async fn stop(mut self) -> (Served, Vec<CallEvent>) {
        self.signal();
        let served = given_up(&mut self.running).await.unwrap();
        assert_eq!((self.stats.active(), self.stats.registered()), (0, 0), "nothing remains");
        (served, self.seen())
    }

    /// The status and text a caller's upgrade is refused with.
    async fn refusal(&self) -> (u16, String) {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        match tokio_tungstenite::client_async(format!("ws://{}/twilio", self.address), tcp).await {
            Err(WebSocketError::Http(answer)) => {
                let text = answer.body().clone().unwrap_or_default();
                (answer.status().as_u16(), String::from_utf8(text).unwrap())
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address))
            .await
    }

    async fn http(&self, request: &str) -> (u16, String) {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }
}

async fn heard<S>(socket: &mut WebSocketStream<S>) -> Value
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match socket.next().await.expect("still open").expect("still whole") {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) | Message::Pong(_) => {}
            other @ (Message::Binary(_) | Message::Close(_) | Message::Frame(_)) => {
                panic!("expected text, got {other:?}")
            }
        }
    }
}

fn start(call_sid: &str) -> Value {
    start_with(call_sid, &json!({}))
}

fn session(kind: &str) -> Value {
    let format = json!({"format": {"type": "audio/pcm", "rate": 24000}});
    json!({"type": kind, "event_id": "event_1", "session": {"type": "realtime", "object": "realtime.session",
        "id": "sess_1", "model": "gpt-realtime-2.1", "expires_at": 1_700_003_600,
        "audio": {"input": format, "output": format}}})
}

/// A text frame as a client sends it, with a mask of zeros.
fn masked(text: &str) -> Vec<u8> {
    frame(text, 0x80, &[0; 4])
}

/// A text frame as a server sends it.
fn unmasked(text: &str) -> Vec<u8> {
    frame(text, 0, &[])
}

fn frame(text: &str, mask_bit: u8, mask: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match u16::try_from(text.len()).unwrap() {
        len @ 0..=125 => frame.push(mask_bit | len as u8),
        len => {
            frame.push(mask_bit | 126);
            frame.extend(len.to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(text.as_bytes());
    frame
}
