//! The face towards Twilio and towards every other client, over real loopback sockets: who is let in, who is not, and
//! what an attempt costs. Requests are signed here by code of the test's own.

#![expect(clippy::unwrap_used, reason = "a bench that breaks has to stop the test")]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bridge::app::config::Config;
use bridge::base::secret::Secret;
use bridge::call::event::{CallEvent, EndReason};
use bridge::net::tools::NoTools;
use bridge::net::twilio_rest::{Carrier, Doing, Problem};
use bridge::runtime::journal::{CallBeginning, Journal, JournalEntry, JournalWriter};
use bridge::server::serve::{Served, Server};
use bridge::server::stats::Stats;
use bridge::wire::twiml::After;
use common::{Pipes, Recorder, close_of, ends, given_up, media, read_head, say, start_with, until};
use futures_util::SinkExt;
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha1::Sha1;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

type Caller = WebSocketStream<TcpStream>;

const AUTH_TOKEN: &str = "0123456789abcdef0123456789abcdef";
const VOICE: &str = "https://voice.example.com/voice";
const STREAM: &str = "wss://voice.example.com/twilio";
const STATUS: &str = "https://voice.example.com/stream-status";

// ------------------------------------------------------------------------------------------- who is let in

#[tokio::test]
async fn a_signed_webhook_gives_the_token_that_lets_its_stream_in() {
    let mut t = Bench::start(|_| {}).await;
    let (status, twiml) = t.webhook("CA1").await;
    assert_eq!(status, 200);
    assert!(twiml.contains("<Stream url=\"wss://voice.example.com/twilio\""), "{twiml}");
    assert!(twiml.contains("statusCallback=\"https://voice.example.com/stream-status\""), "{twiml}");
    let mut caller = t.stream("CA1", token_in(&twiml)).await;
    t.dial("the model is dialled").await;
    assert_eq!((t.stats.active(), t.stats.registered()), (1, 1));
    stop(&mut caller).await;
    let (served, seen) = t.end().await;
    assert_eq!((served.calls, ends(&seen)), (1, vec![EndReason::Stopped]));
}

#[tokio::test]
async fn a_spoofed_webhook_gets_no_token() {
    let t = Bench::start(|_| {}).await;
    let form = "CallSid=CA1&From=%2B1";
    for signature in
        [None, Some(sign("https://voice.example.com/voice", &[("CallSid", "CA2"), ("From", "+1")]))]
    {
        let (status, text) = t.post("/voice", form, signature.as_deref()).await;
        assert!(status == 403 && !text.contains("Stream"), "{status} {text}");
    }
    let of_this_machine = sign(&format!("http://{}/voice", t.address), &[("CallSid", "CA1"), ("From", "+1")]);
    assert_eq!(
        t.post("/voice", form, Some(&of_this_machine)).await.0,
        403,
        "what Host says counts for nothing"
    );
    assert_eq!(t.get("/voice?CallSid=CA1").await.0, 403);
    assert_eq!(t.stats.unsigned(), 4);
    t.end().await;
}

#[tokio::test]
async fn a_spoofed_upgrade_is_refused_before_it_costs_anything() {
    let mut t = Bench::start(|_| {}).await;
    let foreign = {
        let mut mac = Hmac::<Sha1>::new_from_slice(b"another account's token").unwrap();
        mac.update(STREAM.as_bytes());
        BASE64.encode(mac.finalize().into_bytes())
    };
    let signatures = [
        None,
        Some(String::new()),
        Some("x".into()),
        Some(foreign),
        Some(sign("https://voice.example.com/twilio", &[])),
        Some(sign(&format!("wss://{}/twilio", t.address), &[])),
    ];
    for signature in &signatures {
        let refused = t.upgrade(signature.as_deref()).await.map(drop).err();
        let Some(WebSocketError::Http(answer)) = refused else {
            panic!("{signature:?} is not refused: {refused:?}")
        };
        assert_eq!(answer.status().as_u16(), 403, "{signature:?}");
    }
    assert_eq!((t.stats.active(), t.stats.calls(), t.stats.unsigned()), (0, 0, 6));
    assert!(t.dialled.try_recv().is_err());
    assert_eq!(t.end().await.0, Served::default());
}

#[tokio::test]
async fn a_stream_without_its_own_token_is_closed_with_1008_and_never_dialled_for() {
    let mut t = Bench::start(|_| {}).await;
    let token = token_in(&t.webhook("CA1").await.1).unwrap();
    for (call_sid, token) in [
        ("CA1", None),
        ("CA1", Some(String::new())),
        ("CA1", Some("1.2.3".to_owned())),
        ("CA1", Some(format!("{token}x"))),
        ("CA2", Some(token.clone())),
    ] {
        let mut caller = t.stream(call_sid, token.clone()).await;
        assert_eq!(close_of(&mut caller).await, Some(1008), "{call_sid} {token:?}");
    }
    let mut caller = t.stream("CA1", Some(token)).await;
    t.dial("none of them used the token up").await;
    assert!(t.dialled.try_recv().is_err(), "and one dial is all there was");
    stop(&mut caller).await;
    assert_eq!(t.stats.rejected(), 5);
    let (served, seen) = t.end().await;
    assert_eq!((served.calls, ends(&seen)), (1, vec![EndReason::Stopped]));
    let started = seen.iter().filter(|event| matches!(event, CallEvent::Started { .. })).count();
    assert_eq!(started, 1, "a stream that is turned away never was a call");
}

#[tokio::test]
async fn a_token_that_was_overheard_neither_opens_a_stream_nor_takes_the_call_over() {
    let mut t = Bench::start(|_| {}).await;
    let token = token_in(&t.webhook("CA1").await.1);
    let mut caller = t.stream("CA1", token.clone()).await;
    t.dial("the bridge dials").await;
    let mut thief = t.stream("CA1", token).await;
    assert_eq!(close_of(&mut thief).await, Some(1008));
    assert!(t.dialled.try_recv().is_err());
    assert_eq!((t.stats.active(), t.stats.registered()), (1, 1), "the call has its owner");
    let again = token_in(&t.webhook_as("CA1", "in-progress").await.1);
    let mut successor = t.stream("CA1", again).await;
    t.dial("a second stream with a token of its own takes the call over").await;
    close_of(&mut caller).await;
    stop(&mut successor).await;
    let (_, seen) = t.end().await;
    assert_eq!(ends(&seen), [EndReason::Replaced, EndReason::Stopped]);
}

#[tokio::test]
async fn a_token_is_good_for_a_short_while() {
    let t = Bench::start(|_| {}).await;
    let token = token_in(&t.webhook("CA1").await.1);
    t.wall.lock().unwrap().0 += 66;
    let mut caller = t.stream("CA1", token).await;
    assert_eq!(close_of(&mut caller).await, Some(1008));
    until(|| t.stats.rejected() == 1).await;
    assert_eq!(t.end().await.0, Served::default());
}

#[tokio::test]
async fn a_webhook_that_is_repeated_before_its_stream_has_the_same_answer() {
    let mut t = Bench::start(|_| {}).await;
    let first = t.webhook("CA1").await;
    assert_eq!(t.webhook("CA1").await, first);
    let mut caller = t.stream("CA1", token_in(&first.1)).await;
    t.dial("the bridge dials").await;
    stop(&mut caller).await;
    t.end().await;
}

#[tokio::test]
async fn a_captured_webhook_takes_no_call_over_and_opens_none_afterwards() {
    let mut t = Bench::start(|_| {}).await;
    let first = t.webhook("CA1").await;
    let mut caller = t.stream("CA1", token_in(&first.1)).await;
    t.dial("the bridge dials").await;
    for _ in 0..3 {
        let again = t.webhook("CA1").await;
        assert_eq!(again, first, "nothing new");
        let mut thief = t.stream("CA1", token_in(&again.1)).await;
        assert_eq!(close_of(&mut thief).await, Some(1008));
    }
    assert_eq!((t.stats.active(), t.stats.registered()), (1, 1), "the call has its owner");
    stop(&mut caller).await;
    until(|| t.stats.active() == 0).await;
    for after in [0, 61, 1_000_000] {
        t.wall.lock().unwrap().0 += after;
        let (status, text) = t.webhook("CA1").await;
        assert!(status == 403 && token_in(&text).is_none(), "{status} {text}");
    }
    assert_eq!((t.stats.replayed(), t.stats.rejected()), (3, 3));
    assert!(t.dialled.try_recv().is_err(), "one dial is all there was");
    assert_eq!(t.end().await.0.calls, 1);
}

#[tokio::test]
async fn a_call_that_is_redirected_comes_back_as_often_as_it_likes() {
    let next = "https://voice.example.com/voice".to_owned();
    let mut t = Bench::start(|config| config.twilio.after_stream = After::Redirect(next)).await;
    // Its first webhook says that it rings; all that follow are alike to the byte.
    for (turn, status) in ["ringing", "in-progress", "in-progress", "in-progress"].into_iter().enumerate() {
        let (code, twiml) = t.webhook_as("CA1", status).await;
        assert!(code == 200 && twiml.contains("<Redirect"), "{turn}: {code} {twiml}");
        let mut caller = t.stream("CA1", token_in(&twiml)).await;
        t.dial("it is carried again").await;
        caller.send(Message::Close(None)).await.unwrap();
        until(|| t.stats.active() == 0 && t.stats.calls() == turn as u64 + 1).await;
        assert_eq!(t.webhook_as("CA1", "ringing").await.0, 403, "an answered call does not ring");
    }
    let (_, twiml) = t.webhook_as("CA1", "in-progress").await;
    let mut caller = t.stream("CA1", token_in(&twiml)).await;
    t.dial("once more").await;
    stop(&mut caller).await;
    until(|| t.stats.active() == 0).await;
    assert_eq!(t.webhook_as("CA1", "in-progress").await.0, 403, "Twilio has ended the call");
    t.end().await;
}

#[tokio::test]
async fn what_follows_the_stream_is_what_the_settings_say() {
    let t = Bench::start(|config| config.twilio.after_stream = After::Dial("+14155550100".into())).await;
    let (_, twiml) = t.webhook("CA1").await;
    assert!(twiml.ends_with("</Connect><Dial>+14155550100</Dial></Response>\n"), "{twiml}");
    t.end().await;
}

// --------------------------------------------------------------------------------------- the stream's status

#[tokio::test]
async fn a_stream_twilio_gave_up_is_torn_down_though_its_socket_looks_open() {
    let mut t = Bench::start(|_| {}).await;
    let token = token_in(&t.webhook("CA1").await.1);
    let mut caller = t.stream("CA1", token).await;
    t.dial("the bridge dials").await;
    let form = "CallSid=CA1&StreamSid=MZ1&StreamEvent=stream-error&StreamError=31924";
    assert_eq!(t.post("/stream-status", form, None).await.0, 403, "an unsigned request cannot end a call");
    let other = [("StreamEvent", "stream-error"), ("StreamSid", "MZ2")];
    let signature = sign(STATUS, &other);
    assert_eq!(
        t.post("/stream-status", "StreamSid=MZ2&StreamEvent=stream-error", Some(&signature)).await.0,
        204,
        "no stream of this bridge"
    );
    assert_eq!(t.stats.active(), 1);
    let ours =
        [("CallSid", "CA1"), ("StreamError", "31924"), ("StreamEvent", "stream-error"), ("StreamSid", "MZ1")];
    assert_eq!(t.post("/stream-status", form, Some(&sign(STATUS, &ours))).await.0, 204);
    until(|| t.stats.active() == 0).await;
    assert_eq!(close_of(&mut caller).await, None, "dropped: the other end is gone");
    let (_, seen) = t.end().await;
    assert_eq!(ends(&seen), [EndReason::CallerLost]);
}

// ------------------------------------------------------------------------------------------------ admission

#[tokio::test]
async fn a_full_or_draining_bridge_is_not_ready_and_says_busy_to_the_webhook() {
    let mut t = Bench::start(|config| config.max_calls = 1).await;
    assert_eq!(t.get("/readyz").await, (200, "ready\n".into()));
    let token = token_in(&t.webhook("CA1").await.1);
    let mut caller = t.stream("CA1", token).await;
    t.dial("the line is taken").await;
    assert_eq!(t.get("/readyz").await, (503, "all lines are busy\n".into()));
    let (status, twiml) = t.webhook("CA2").await;
    assert!(status == 200 && twiml.contains("<Reject reason=\"busy\"/>"), "{status} {twiml}");
    let Some(WebSocketError::Http(answer)) = t.upgrade(Some(&sign(STREAM, &[]))).await.err() else {
        panic!("not refused")
    };
    assert_eq!(answer.status().as_u16(), 503);
    drop(t.shutdown.take());
    until(|| t.stats.is_draining()).await;
    assert_eq!(t.get("/readyz").await, (503, "shutting down: no new calls\n".into()));
    stop(&mut caller).await;
    assert_eq!(t.end().await.0, Served { calls: 1, refused: 2, ..Served::default() });
}

#[tokio::test]
async fn a_machine_that_comes_late_to_its_tasks_takes_no_call_until_it_has_recovered() {
    let t = Bench::start(|config| config.loop_lag_ms_max = 500).await;
    assert_eq!(t.get("/readyz").await.0, 200);
    std::thread::sleep(Duration::from_millis(1_500)); // this runtime has one thread, and it is held up
    until(|| t.stats.loop_lag() > Duration::from_millis(500)).await;
    assert_eq!(t.get("/readyz").await, (503, "this machine is too busy for one more call\n".into()));
    assert!(t.webhook("CA1").await.1.contains("<Reject"));
    until(|| t.stats.loop_lag() < Duration::from_millis(500)).await;
    assert_eq!(t.get("/readyz").await.0, 200);
    t.end().await;
}

// --------------------------------------------------------------------------------------------- the operator

/// Does what it is asked, and remembers it.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn done<T: Send + 'static>(&self, what: String, outcome: Result<T, Problem>) -> Doing<'_, T> {
        self.0.lock().unwrap().push(what);
        Box::pin(async move { outcome })
    }
}

impl Carrier for Asked {
    fn hang_up<'a>(&'a self, call_sid: &'a str) -> Doing<'a, ()> {
        self.done(format!("hang up {call_sid}"), Ok(()))
    }

    fn transfer<'a>(&'a self, call_sid: &'a str, to: &'a str) -> Doing<'a, ()> {
        let outcome = if call_sid == "CA0" { Err(Problem::CallEnded) } else { Ok(()) };
        self.done(format!("transfer {call_sid} {to}"), outcome)
    }

    fn place<'a>(&'a self, to: &'a str, from: Option<&'a str>) -> Doing<'a, String> {
        self.done(format!("place {to} {from:?}"), Ok("CA9".into()))
    }
}

const OPERATOR: &str = "an-operators-token-of-some-length";

#[tokio::test]
async fn an_operator_places_ends_and_transfers_calls() {
    let asked = Asked::default();
    let t = Bench::operated(|config| config.operator.token = Secret::new(OPERATOR), asked.clone()).await;
    assert_eq!(
        t.order("/calls", r#"{"to":"+14155550123"}"#, Some(OPERATOR)).await,
        (201, "{\"callSid\":\"CA9\"}\n".into())
    );
    assert_eq!(t.order("/calls/CA1/hangup", "", Some(OPERATOR)).await.0, 200);
    assert_eq!(t.order("/calls/CA1/transfer", r#"{"to":"+14155550100"}"#, Some(OPERATOR)).await.0, 200);
    let over = t.order("/calls/CA0/transfer", r#"{"to":"+14155550100"}"#, Some(OPERATOR)).await;
    assert_eq!(over, (409, "{\"error\":\"the call is over\"}\n".into()));
    for bad in ["", "{", "[]", r#"{"to":7}"#, r#"{"to":"+1","url":"https://evil"}"#, &"[".repeat(16_000)] {
        assert_eq!(t.order("/calls", bad, Some(OPERATOR)).await.0, 400, "{bad:.20}");
    }
    assert_eq!(t.order("/calls", &"x".repeat(17_000), Some(OPERATOR)).await.0, 413);
    assert_eq!(
        *asked.0.lock().unwrap(),
        ["place +14155550123 None", "hang up CA1", "transfer CA1 +14155550100", "transfer CA0 +14155550100"]
    );
    t.end().await;
}

#[tokio::test]
async fn a_client_without_the_operators_token_does_not() {
    let asked = Asked::default();
    let t = Bench::operated(|config| config.operator.token = Secret::new(OPERATOR), asked.clone()).await;
    let shorter = &OPERATOR[..OPERATOR.len() - 1];
    for path in ["/calls", "/calls/CA1/hangup", "/calls/CA1/transfer"] {
        for token in [None, Some(""), Some("wrong"), Some(shorter)] {
            assert_eq!(t.order(path, r#"{"to":"+14155550123"}"#, token).await.0, 401, "{path} {token:?}");
        }
    }
    t.end().await;
    let off = Bench::operated(|_| {}, asked.clone()).await;
    for token in [None, Some(""), Some(OPERATOR)] {
        assert_eq!(
            off.order("/calls", r#"{"to":"+14155550123"}"#, token).await.0,
            404,
            "there is no operator"
        );
    }
    off.end().await;
    assert!(asked.0.lock().unwrap().is_empty());
}

// -------------------------------------------------------------------------------------------------- threats

#[tokio::test]
async fn streams_without_a_token_hold_no_line_leave_no_trace_and_make_room() {
    let journal = Arc::new(Begun::default());
    let mut t = Bench::with(
        |config| config.max_calls = 2,
        |server| server.with_journal(Some(journal.clone() as Arc<dyn Journal>)),
    )
    .await;
    let signature = sign(STREAM, &[]); // overheard, say
    let mut open = Vec::new();
    for _ in 0..300 {
        let mut socket = t.upgrade(Some(&signature)).await.unwrap();
        say(&mut socket, &json!({"event": "connected", "protocol": "Call", "version": "1.0.0"})).await;
        open.push(socket);
    }
    until(|| t.stats.rejected() >= 44).await; // the oldest went, and no client waited for them
    assert_eq!((t.stats.active(), t.get("/readyz").await.0), (0, 200), "all lines are free");
    let token = token_in(&t.webhook("CA1").await.1);
    let mut caller = t.stream("CA1", token).await;
    t.dial("a caller is carried beside them").await;
    assert_eq!((t.stats.active(), t.stats.calls(), journal.0.load(SeqCst)), (1, 1, 1));
    stop(&mut caller).await;
    drop(open);
    let rejected = t.stats.clone();
    let (served, seen) = t.end().await;
    assert_eq!((served.calls, served.refused, rejected.rejected()), (1, 0, 300));
    assert_eq!(ends(&seen), [EndReason::Stopped], "they never were calls");
}

#[tokio::test]
async fn a_stream_that_never_starts_is_closed_in_time() {
    let mut t = Bench::start(|config| config.call.timeouts.start_ms = 300).await;
    let mut caller = t.upgrade(Some(&sign(STREAM, &[]))).await.unwrap();
    close_of(&mut caller).await;
    until(|| t.stats.rejected() == 1).await;
    assert!(t.dialled.try_recv().is_err());
    assert_eq!(t.end().await.0, Served::default());
}

#[tokio::test]
async fn a_stream_that_finds_no_line_keeps_its_token() {
    let mut t = Bench::start(|config| config.max_calls = 1).await;
    let tokens = [token_in(&t.webhook("CA1").await.1), token_in(&t.webhook("CA2").await.1)];
    let mut late = t.upgrade(Some(&sign(STREAM, &[]))).await.unwrap();
    let mut caller = t.stream("CA1", tokens[0].clone()).await;
    t.dial("the bridge dials").await;
    say(&mut late, &start_with("CA2", &json!({ "token": tokens[1] }))).await;
    assert_eq!(close_of(&mut late).await, Some(1008));
    stop(&mut caller).await;
    until(|| t.stats.active() == 0).await;
    let mut again = t.stream("CA2", tokens[1].clone()).await;
    t.dial("its token was not used up").await;
    stop(&mut again).await;
    assert_eq!((t.stats.refused(), t.end().await.0.calls), (1, 2));
}

/// Counts the journals that were begun.
#[derive(Default)]
struct Begun(AtomicUsize);

impl Journal for Begun {
    fn begin(&self, _beginning: CallBeginning) -> Box<dyn JournalWriter> {
        struct Nothing;
        impl JournalWriter for Nothing {
            fn note(&mut self, _after: Duration, _note: JournalEntry) {}
        }
        self.0.fetch_add(1, SeqCst);
        Box::new(Nothing)
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_dribbles_in_is_given_up() {
    let t = Bench::start(|_| {}).await;
    let mut header = TcpStream::connect(t.address).await.unwrap();
    header.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    let mut rest = Vec::new();
    // The clock jumps while no task has anything to do.
    let _either = given_up(header.read_to_end(&mut rest)).await;
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
    let mut body = TcpStream::connect(t.address).await.unwrap();
    body.write_all(b"POST /voice HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nCallSid=").await.unwrap();
    let mut answer = [0; 12];
    given_up(body.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    t.end().await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let t = Bench::start(|_| {}).await;
    let chunk = format!("{:x}\r\n{}", 17_000, "A".repeat(17_000));
    for path in ["/voice", "/stream-status"] {
        for (length, body) in [
            // What is announced to be too long is not waited for.
            ("Content-Length: 16385", ""),
            ("Content-Length: 1000000000", "CallSid="),
            ("Transfer-Encoding: chunked", &chunk),
        ] {
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}\r\n\r\n");
            let (status, why) = given_up(t.http(&format!("{head}{body}"))).await;
            assert_eq!(status, 413, "{path} {length}: {why}");
        }
    }
    t.end().await;
}

#[tokio::test]
async fn more_parameters_than_a_webhook_has_are_refused_before_they_are_sorted() {
    let t = Bench::start(|_| {}).await;
    let (few, many) = ("a&".repeat(199) + "a", "a&".repeat(200) + "a");
    for path in ["/voice", "/stream-status"] {
        assert_eq!(t.post(path, &few, None).await.0, 403, "{path}");
        assert_eq!(t.post(path, &many, None).await.0, 413, "{path}");
        assert_eq!(t.get(&format!("{path}?{few}")).await.0, 403, "{path}");
        assert_eq!(t.get(&format!("{path}?{many}")).await.0, 413, "{path}");
    }
    t.end().await;
}

/// Requests one behind the other on one connection, each answered before the next.
async fn keeps_busy(address: SocketAddr) -> usize {
    let Ok(mut tcp) = TcpStream::connect(address).await else { return 0 };
    let mut answered = 0;
    while tcp.write_all(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n").await.is_ok()
        && tcp.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0)
    {
        answered += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    answered
}

#[tokio::test]
async fn a_crowd_that_keeps_its_connections_busy_locks_no_call_out() {
    let mut t = Bench::start(|config| config.connections.max = 16).await;
    let crowd: Vec<_> = (0..64).map(|_| tokio::spawn(keeps_busy(t.address))).collect();
    let evicted = || t.stats.connections_evicted();
    until(|| evicted() >= 48).await;
    for call_sid in ["CA1", "CA2", "CA3"] {
        let (status, twiml) = given_up(t.webhook(call_sid)).await;
        assert_eq!(status, 200);
        let mut caller = given_up(t.stream(call_sid, token_in(&twiml))).await;
        t.dial("the model is dialled").await;
        stop(&mut caller).await;
    }
    assert!(t.stats.connections_open() <= 16);
    for busy in crowd {
        busy.abort();
    }
    assert_eq!(t.end().await.0.calls, 3);
}

#[tokio::test]
async fn a_page_of_another_site_opens_no_stream_where_nothing_is_signed() {
    let t = Bench::start(|config| config.twilio.insecure_no_signature = true).await;
    let upgrade = async |host: &str, origin: Option<&str>| {
        let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
        let request = format!(
            "GET /twilio HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{origin}\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let mut tcp = TcpStream::connect(t.address).await.unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        given_up(tcp.read_exact(&mut answer)).await.unwrap();
        String::from_utf8(answer[9..].to_vec()).unwrap()
    };
    let own = &*t.address.to_string();
    for (host, origin, status) in [
        (own, None, "101"),
        (own, Some(format!("http://{own}")), "101"),
        // A tunnel leads Twilio here by another name, and Twilio is no browser.
        ("tunnel.example.com", None, "101"),
        (own, Some("https://evil.example".into()), "403"),
        (own, Some("null".into()), "403"),
        (own, Some(String::new()), "403"),
        // A name of theirs that leads here.
        ("evil.example:8084", Some("http://evil.example:8084".into()), "403"),
        ("localhost.evil.example", Some("http://localhost.evil.example".into()), "403"),
    ] {
        assert_eq!(upgrade(host, origin.as_deref()).await, status, "{host} {origin:?}");
    }
    assert_eq!(t.stats.unsigned(), 5);
    t.end().await;
}

#[tokio::test]
async fn nested_and_oversized_json_harm_one_call_at_most() {
    let mut t = Bench::start(|_| {}).await;
    let token = token_in(&t.webhook("CA1").await.1);
    let mut caller = t.stream("CA1", token).await;
    t.dial("the bridge dials").await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let depth = 30_000 / open.len();
        let nested =
            format!("{{\"event\":\"media\",\"media\":{}1{}}}", open.repeat(depth), close.repeat(depth));
        caller.send(Message::text(nested)).await.unwrap();
    }
    stop(&mut caller).await;
    until(|| t.stats.active() == 0).await;
    let token = token_in(&t.webhook("CA2").await.1);
    let mut caller = t.stream("CA2", token).await;
    t.dial("the bridge dials").await;
    let _either = caller.send(Message::text("x".repeat(5_000_000))).await;
    until(|| t.stats.active() == 0).await;
    let (served, seen) = t.end().await;
    assert_eq!((served.calls, served.panicked), (2, 0));
    assert_eq!(ends(&seen), [EndReason::Stopped, EndReason::CallerLost]);
    let malformed = seen.iter().find_map(|event| {
        if let CallEvent::Ended { counts, .. } = event { Some(counts.malformed) } else { None }
    });
    assert_eq!(malformed, Some(2));
}

#[tokio::test]
async fn a_call_sid_cannot_write_a_header_of_its_own() {
    let mut t = Bench::start(|config| config.twilio.insecure_no_signature = true).await;
    let mut caller = t.stream("CA1\r\nX-Evil: 1", None).await;
    let mut pipe = given_up(t.dialled.recv()).await.expect("the bridge dials");
    let head = read_head(&mut pipe).await.to_lowercase();
    assert!(head.starts_with("get /v1/realtime") && !head.contains("x-evil"), "{head}");
    stop(&mut caller).await;
    t.end().await;
}

/// What is logged on the thread of a test.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl io::Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_comes_to_the_door_begins_no_line_of_the_log_and_colours_none() {
    let paper = Paper::default();
    let writer = paper.clone();
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
    let _log = tracing::subscriber::set_default(log.with_writer(move || writer.clone()).finish());
    let mut t = Bench::start(|_| {}).await;
    let hostile = "CA1\nERROR forged\r\u{1b}[31m";
    let mut stranger = t.stream(hostile, Some("1.2.3".into())).await;
    assert_eq!(close_of(&mut stranger).await, Some(1008));
    let (encoded, from) = ("CA1%0AERROR+forged%0D%1B%5B31m", "+14155550123");
    let signature = sign(VOICE, &[("CallSid", hostile), ("From", from)]);
    let form = format!("CallSid={encoded}&From=%2B14155550123");
    let (_, twiml) = t.post("/voice", &form, Some(&signature)).await;
    let mut caller = t.stream(hostile, token_in(&twiml)).await;
    t.dial("Twilio vouches for it").await;
    for event in ["stream-error", hostile] {
        let fields =
            [("CallSid", hostile), ("StreamError", hostile), ("StreamEvent", event), ("StreamSid", hostile)];
        let event = if event == hostile { encoded } else { event };
        let form = format!("CallSid={encoded}&StreamError={encoded}&StreamEvent={event}&StreamSid={encoded}");
        assert_eq!(t.post("/stream-status", &form, Some(&sign(STATUS, &fields))).await.0, 204);
    }
    stop(&mut caller).await;
    t.end().await;
    let written = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
    for said in ["turned away", "a stream failed", "a stream's status"] {
        assert!(
            written.lines().any(|line| line.contains(said) && line.contains("forged")),
            "{said}: {written}"
        );
    }
    assert!(!written.lines().any(|line| line.starts_with("ERROR")), "{written}");
    assert!(!written.contains(|c: char| c.is_control() && c != '\n'), "{written:?}");
}

#[tokio::test]
async fn a_flood_of_unsigned_requests_leaves_a_few_lines() {
    const REQUESTS: usize = 300;
    let paper = Paper::default();
    let writer = paper.clone();
    let log = tracing_subscriber::fmt().with_ansi(false);
    let _log = tracing::subscriber::set_default(log.with_writer(move || writer.clone()).finish());
    let t = Bench::start(|_| {}).await;
    for _ in 0..REQUESTS {
        assert_eq!(t.get("/voice?CallSid=CA1").await.0, 403);
    }
    assert_eq!(t.stats.unsigned(), REQUESTS as u64, "all are counted");
    t.end().await;
    let written = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
    let lines = written.lines().filter(|line| line.contains("a request was refused")).count();
    // Ten, and one for each second that this took.
    assert!((10..REQUESTS / 2).contains(&lines), "{written}");
}

// ------------------------------------------------------------------------------------------------ the bench

struct Bench {
    address: SocketAddr,
    stats: Stats,
    dialled: mpsc::UnboundedReceiver<DuplexStream>,
    shutdown: Option<oneshot::Sender<()>>,
    running: JoinHandle<Served>,
    recorder: Recorder,
    wall: Arc<Mutex<Wall>>,
    /// Ends of the model that were dialled, and say nothing.
    held: Vec<DuplexStream>,
}

struct Wall(i64);

impl Bench {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        Self::operated(change, Asked::default()).await
    }

    async fn operated(change: impl FnOnce(&mut Config), carrier: Asked) -> Self {
        Self::with(change, |server| server.with_carrier(Some(Arc::new(carrier)))).await
    }

    async fn with(
        change: impl FnOnce(&mut Config),
        more: impl FnOnce(Server<Pipes, NoTools, Recorder>) -> Server<Pipes, NoTools, Recorder>,
    ) -> Self {
        let mut config =
            Config { public_url: Some("https://voice.example.com".parse().unwrap()), ..Config::default() };
        config.openai.api_key = Secret::new("sk-test");
        config.twilio.auth_token = Secret::new(AUTH_TOKEN);
        // Other tests share this machine; the limit is the subject of one of them.
        config.loop_lag_ms_max = 0;
        change(&mut config);
        let (pipes, dialled) = mpsc::unbounded_channel();
        let (shutdown, signal) = oneshot::channel::<()>();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let recorder = Recorder::default();
        let wall = Arc::new(Mutex::new(Wall(1_700_000_000)));
        let clock = wall.clone();
        let server = Server::new(Pipes(pipes), NoTools, recorder.clone(), Arc::new(config.server()))
            .with_wall_clock(move || clock.lock().unwrap().0);
        let server = more(server);
        let stats = server.stats();
        let running = tokio::spawn(server.run(listener, async move {
            let _ = signal.await;
        }));
        Self { address, stats, dialled, shutdown: Some(shutdown), running, recorder, wall, held: Vec::new() }
    }

    async fn dial(&mut self, why: &str) {
        let dialled = tokio::time::timeout(Duration::from_secs(30), self.dialled.recv()).await;
        self.held.push(dialled.ok().flatten().expect(why));
    }

    async fn http(&self, request: &str) -> (u16, String) {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        let _ = tcp.write_all(request.as_bytes()).await; // it may be refused before it was read
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address))
            .await
    }

    async fn post(&self, path: &str, form: &str, signature: Option<&str>) -> (u16, String) {
        let signed = signature.map(|value| format!("X-Twilio-Signature: {value}\r\n")).unwrap_or_default();
        self.http(&format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\
             \r\n{signed}Content-Length: {}\r\n\r\n{form}",
            self.address,
            form.len()
        ))
        .await
    }

    /// What an operator wants, with this token.
    async fn order(&self, path: &str, body: &str, token: Option<&str>) -> (u16, String) {
        let shown = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        self.http(&format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{shown}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await
    }

    /// The webhook of a call, as Twilio asks it.
    async fn webhook(&self, call_sid: &str) -> (u16, String) {
        let signature = sign(VOICE, &[("CallSid", call_sid), ("From", "+14155550123"), ("FromCity", "")]);
        self.post("/voice", &format!("CallSid={call_sid}&From=%2B14155550123&FromCity="), Some(&signature))
            .await
    }

    /// The webhook of a call that has this status.
    async fn webhook_as(&self, call_sid: &str, status: &str) -> (u16, String) {
        let signature = sign(VOICE, &[("CallSid", call_sid), ("CallStatus", status)]);
        self.post("/voice", &format!("CallSid={call_sid}&CallStatus={status}"), Some(&signature)).await
    }

    async fn upgrade(&self, signature: Option<&str>) -> Result<Caller, WebSocketError> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let mut request = format!("ws://{}/twilio", self.address).into_client_request().unwrap();
        if let Some(signature) = signature {
            request.headers_mut().insert("X-Twilio-Signature", signature.parse().unwrap());
        }
        Ok(tokio_tungstenite::client_async(request, tcp).await?.0)
    }

    /// A signed stream that says it belongs to this call, and its first audio.
    async fn stream(&self, call_sid: &str, token: Option<String>) -> Caller {
        let mut caller = self.upgrade(Some(&sign(STREAM, &[]))).await.unwrap();
        let parameters = token.map_or_else(|| json!({}), |token| json!({ "token": token }));
        say(&mut caller, &json!({"event": "connected", "protocol": "Call", "version": "1.0.0"})).await;
        say(&mut caller, &start_with(call_sid, &parameters)).await;
        say(&mut caller, &media(1)).await;
        caller
    }

    async fn end(mut self) -> (Served, Vec<CallEvent>) {
        drop(self.shutdown.take());
        let served = given_up(&mut self.running).await.unwrap();
        assert_eq!((self.stats.active(), self.stats.registered()), (0, 0), "nothing remains");
        let seen = self.recorder.seen();
        (served, seen)
    }
}

/// Twilio's signature: the address, and the parameters in the order of their names.
fn sign(url: &str, parameters: &[(&str, &str)]) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(AUTH_TOKEN.as_bytes()).unwrap();
    mac.update(url.as_bytes());
    for (name, value) in parameters {
        mac.update(name.as_bytes());
        mac.update(value.as_bytes());
    }
    BASE64.encode(mac.finalize().into_bytes())
}

fn token_in(twiml: &str) -> Option<String> {
    let (_, rest) = twiml.split_once("<Parameter name=\"token\" value=\"")?;
    Some(rest.split_once('"')?.0.to_owned())
}

async fn stop(caller: &mut Caller) {
    say(caller, &json!({"event": "stop", "streamSid": "MZ1", "sequenceNumber": "9", "stop": {}})).await;
    close_of(caller).await;
}
