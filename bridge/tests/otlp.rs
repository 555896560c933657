//! What is sent to a collector, read as a collector reads it: by the messages of the protocol's own library.

#![cfg(feature = "otlp")]
#![expect(clippy::unwrap_used, reason = "a bench that breaks has to stop the test")]

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bridge::base::secret::Secret;
use bridge::call::event::{CallEvent, DialOutcome, EndReason, Line, Private, Said, Speaker, ToolOutcome};
use bridge::export::otlp::{Exporter, Stats, Target};
use bridge::runtime::observe::Observe;
use bridge::runtime::registry::CallKey;
use bridge::wire::realtime::Usage;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tracing_subscriber::layer::SubscriberExt as _;

/// A collector: keeps what it takes, after refusing as often as it is told to.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    logs: Arc<Mutex<Vec<LogRecord>>>,
    refuses: Arc<AtomicU32>,
}

impl Collector {
    async fn listen(&self) -> SocketAddr {
        let pages = Router::new()
            .route("/otel/v1/traces", post(traces))
            .route("/otel/v1/logs", post(logs))
            .with_state(self.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, pages).await });
        address
    }

    fn takes(&self, headers: &HeaderMap) -> bool {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        assert_eq!(headers["x-key"], "sk-collector");
        self.refuses.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_err()
    }
}

async fn traces(State(t): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if !t.takes(&headers) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for resource in request.resource_spans {
        let service = &resource.resource.unwrap().attributes[0];
        assert_eq!((service.key.as_str(), text(service)), ("service.name", "bridge-test"));
        resource.scope_spans.into_iter().for_each(|scope| t.spans.lock().unwrap().extend(scope.spans));
    }
    StatusCode::OK
}

async fn logs(State(t): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if !t.takes(&headers) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    for resource in ExportLogsServiceRequest::decode(body).unwrap().resource_logs {
        resource.scope_logs.into_iter().for_each(|scope| t.logs.lock().unwrap().extend(scope.log_records));
    }
    StatusCode::OK
}

fn exporter(address: SocketAddr) -> Exporter {
    Exporter::start(Target {
        endpoint: format!("http://{address}/otel/"),
        headers: BTreeMap::from([("x-key".to_owned(), Secret::new("sk-collector"))]),
        service: "bridge-test".into(),
        model: "gpt-realtime-2.1".into(),
    })
    .unwrap()
}

/// Stops it beside the collector, which lives on this thread.
async fn stopped(exporter: Exporter) -> Stats {
    let (done, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(exporter.stop()));
    stopped.await.unwrap()
}

fn text(attribute: &KeyValue) -> &str {
    match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{}: {other:?}", attribute.key),
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> &'a Value {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    let found = found.unwrap_or_else(|| panic!("no {key} among {attributes:?}"));
    found.value.as_ref().unwrap().value.as_ref().unwrap()
}

fn keys(attributes: &[KeyValue]) -> Vec<&str> {
    attributes.iter().map(|attribute| attribute.key.as_str()).collect()
}

#[expect(clippy::disallowed_methods, reason = "a test may anchor its time line anywhere")]
fn zero() -> Instant {
    Instant::now()
}

/// A call with one turn, one response and one function in it.
fn call(calls: &impl Observe, key: u64) {
    let (key, zero) = (CallKey(key), zero());
    let tell = |ms: u64, event: CallEvent| calls.event(key, zero + Duration::from_millis(ms), &event);
    let ms = Duration::from_millis;
    calls.begins(key, zero, 1_700_000_000);
    tell(10, CallEvent::Started { call_sid: "CA1".into(), stream_sid: "MZ1".into() });
    tell(90, CallEvent::Dialed { outcome: DialOutcome::Connected, took: ms(70) });
    tell(100, CallEvent::Session { id: "sess_1".into() });
    tell(1_000, CallEvent::SpeechStarted);
    tell(2_000, CallEvent::SpeechStopped);
    tell(2_600, CallEvent::Speaking { response: "r1".into(), after: Some(ms(600)) });
    tell(
        2_700,
        CallEvent::ToolCalled {
            call_id: "c1".into(),
            name: "lookup".into(),
            arguments: Private::new("my secret"),
        },
    );
    tell(
        2_900,
        CallEvent::ToolAnswered {
            call_id: "c1".into(),
            name: "lookup".into(),
            outcome: ToolOutcome::TimedOut,
            took: Some(ms(200)),
            why: None,
            output: Private::new("my secret"),
        },
    );
    let usage = Some(Usage { input: 132, output: 121, ..Usage::default() });
    tell(3_000, CallEvent::ResponseDone { response: "r1".into(), status: "completed".into(), usage });
    tell(3_100, CallEvent::BargeIn { item: None, heard: ms(400), discarded: ms(100) });
    let (reason, detail, lasted) = (EndReason::ModelLost, "closed".into(), ms(5_000));
    tell(5_000, CallEvent::Ended { reason, detail, lasted, counts: Box::default(), transcript: Vec::new() });
    calls.gone(key);
}

#[tokio::test]
async fn a_call_is_a_trace_of_turns_responses_and_functions() {
    let collector = Collector::default();
    let exporter = exporter(collector.listen().await);
    call(&exporter.calls(), 1);
    let counted = stopped(exporter).await;
    assert_eq!(counted, Stats { sent: 4, lost: 0 });
    let spans = collector.spans.lock().unwrap();
    let span = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let (root, turn) = (span("call"), span("turn"));
    let (response, tool) = (span("chat gpt-realtime-2.1"), span("execute_tool lookup"));
    assert!(root.parent_span_id.is_empty() && root.trace_id.len() == 16 && root.span_id.len() == 8);
    assert!(spans.iter().all(|span| span.trace_id == root.trace_id));
    assert_eq!(turn.parent_span_id, root.span_id);
    assert_eq!((&response.parent_span_id, &tool.parent_span_id), (&turn.span_id, &turn.span_id));
    let at = |ms: u64| 1_700_000_000_000_000_000 + ms * 1_000_000;
    let times = |span: &Span| (span.start_time_unix_nano, span.end_time_unix_nano);
    assert_eq!((times(root), times(turn)), ((at(0), at(5_000)), (at(1_000), at(5_000))));
    assert_eq!((times(response), times(tool)), ((at(2_000), at(3_000)), (at(2_700), at(2_900))));
    assert_eq!((root.kind, response.kind, tool.kind), (2, 3, 1));
    assert_eq!(value(&root.attributes, "twilio.call_sid"), &Value::StringValue("CA1".into()));
    assert_eq!(value(&root.attributes, "gen_ai.conversation.id"), &Value::StringValue("sess_1".into()));
    assert_eq!(value(&root.attributes, "error.type"), &Value::StringValue("model_lost".into()));
    assert_eq!(root.status.as_ref().unwrap().code, 2);
    assert_eq!(root.events.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["dialed", "barge_in"]);
    // What dashboards of others ask for: none may go, and none may come without a thought of what it tells.
    assert_eq!(
        keys(&root.attributes),
        ["twilio.call_sid", "twilio.stream_sid", "gen_ai.conversation.id", "bridge.end_reason", "error.type"]
    );
    assert_eq!(
        keys(&turn.attributes),
        ["turn.number", "turn.begun_by", "turn.user_bot_latency_seconds", "turn.was_interrupted"]
    );
    assert_eq!(
        keys(&response.attributes),
        [
            "gen_ai.operation.name",
            "gen_ai.provider.name",
            "gen_ai.request.model",
            "gen_ai.output.type",
            "gen_ai.response.id",
            "gen_ai.response.finish_reasons",
            "gen_ai.conversation.id",
            "bridge.first_audio_seconds",
            "gen_ai.usage.input_tokens",
            "gen_ai.usage.output_tokens",
        ]
    );
    assert_eq!(
        keys(&tool.attributes),
        ["gen_ai.operation.name", "gen_ai.tool.name", "gen_ai.tool.call.id", "error.type"]
    );
    assert_eq!(value(&turn.attributes, "turn.was_interrupted"), &Value::BoolValue(true));
    assert_eq!(value(&turn.attributes, "turn.user_bot_latency_seconds"), &Value::DoubleValue(0.6));
    assert_eq!(value(&response.attributes, "gen_ai.usage.input_tokens"), &Value::IntValue(132));
    assert_eq!(value(&response.attributes, "gen_ai.response.id"), &Value::StringValue("r1".into()));
    assert!(matches!(value(&response.attributes, "gen_ai.response.finish_reasons"), Value::ArrayValue(_)));
    assert_eq!(value(&tool.attributes, "gen_ai.tool.call.id"), &Value::StringValue("c1".into()));
    assert_eq!(value(&tool.attributes, "error.type"), &Value::StringValue("timed_out".into()));
    assert!(!format!("{spans:?}").contains("secret"), "nothing anyone said");
}

#[tokio::test]
async fn a_call_that_is_cut_is_a_trace_too_and_no_word_or_key_of_it_is_in_there() {
    let collector = Collector::default();
    let exporter = exporter(collector.listen().await);
    let (calls, key) = (exporter.calls(), CallKey(1));
    let tell = |event: CallEvent| calls.event(key, zero(), &event);
    calls.begins(key, zero(), 1_700_000_000);
    tell(CallEvent::Started { call_sid: "CA1".into(), stream_sid: "MZ1".into() });
    let (item, speaker, words) = ("i1".to_owned(), Speaker::Caller, Private::new("my secret"));
    tell(CallEvent::Said(Said::More { item: item.clone(), speaker, words }));
    let (text, cut) = ("my secret".into(), false);
    tell(CallEvent::Said(Said::Line(Line { item, place: 1, speaker, text, cut })));
    tell(CallEvent::Keypad { keys: 6, entry: Private::new("secret") });
    calls.gone(key);
    drop(calls);
    assert_eq!(stopped(exporter).await, Stats { sent: 2, lost: 0 });
    let spans = collector.spans.lock().unwrap();
    let root = spans.iter().find(|span| span.name == "call").unwrap();
    assert_eq!(value(&root.attributes, "error.type"), &Value::StringValue("cut".into()));
    assert_eq!(root.status.as_ref().unwrap().code, 2);
    assert!(spans.iter().any(|span| span.name == "turn" && span.parent_span_id == root.span_id));
    assert!(!format!("{spans:?}").contains("secret"), "{spans:?}");
}

#[tokio::test]
async fn a_log_line_is_a_record_with_the_names_of_its_call() {
    let collector = Collector::default();
    let exporter = exporter(collector.listen().await);
    let log = tracing_subscriber::registry().with(exporter.logs());
    tracing::subscriber::with_default(log, || {
        let call = tracing::error_span!("call", key = 7u64, call_sid = tracing::field::Empty);
        let _call = call.enter();
        call.record("call_sid", "CA1");
        tracing::warn!(lasted_ms = 1_234, "call ended");
    });
    let counted = stopped(exporter).await;
    assert_eq!(counted, Stats { sent: 1, lost: 0 });
    let logs = collector.logs.lock().unwrap();
    let record = &logs[0];
    assert_eq!((record.severity_number, record.severity_text.as_str()), (13, "WARN"));
    let body = record.body.as_ref().unwrap().value.as_ref();
    assert_eq!(body, Some(&Value::StringValue("call ended".into())));
    assert_eq!(value(&record.attributes, "call_sid"), &Value::StringValue("CA1".into()));
    assert_eq!(value(&record.attributes, "key"), &Value::IntValue(7));
    assert_eq!(value(&record.attributes, "lasted_ms"), &Value::IntValue(1_234));
    assert!(record.time_unix_nano > 1_700_000_000_000_000_000);
}

#[tokio::test]
async fn a_collector_that_is_busy_for_a_moment_is_asked_again() {
    let collector = Collector::default();
    collector.refuses.store(2, SeqCst);
    let exporter = exporter(collector.listen().await);
    call(&exporter.calls(), 1);
    let gauge = exporter.gauge();
    for _ in 0..1_000 {
        if gauge.snapshot().sent == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(gauge.snapshot(), Stats { sent: 4, lost: 0 });
}

#[tokio::test]
async fn a_dead_collector_costs_what_it_would_have_been_sent_and_nothing_else() {
    // No process listens there.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let exporter = exporter(address);
    let (calls, gauge) = (exporter.calls(), exporter.gauge());
    // More than the queue holds, and to drop it all takes the better part of a minute: no call waits for room.
    let began = zero();
    (1..=5_000).for_each(|n| call(&calls, n));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "calls were held up for {took:?}");
    let without_room = gauge.snapshot().lost;
    assert!(without_room >= 10_000, "{:?}", gauge.snapshot());
    drop(calls);
    let counted = exporter.stop();
    assert_eq!(counted.sent, 0);
    assert!(counted.lost > without_room, "what waited is lost, too: {counted:?}");
}

#[tokio::test]
async fn a_collector_that_never_answers_does_not_keep_a_process_alive() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let exporter = exporter(listener.local_addr().unwrap());
    // Batches enough that trying each of them once would take most of a minute.
    (1..=1_000).for_each(|n| call(&exporter.calls(), n));
    let began = zero();
    let counted = exporter.stop(); // returns, although no process ever accepts
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "the process was kept for {took:?}");
    assert_eq!(counted.sent, 0);
}
