//! A trace of every call.

use super::names;
use super::outbox::{Item, Outbox};
use super::wire::{ArrayValue, Event, KeyValue, Span, Status, Value, attribute};
use crate::base::clock;
use crate::base::random;
use crate::call::event::{CallEvent, EndReason, ToolOutcome};
use crate::runtime::observe::Observe;
use crate::runtime::registry::CallKey;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Moments remembered of one call.
const EVENTS_MAX: usize = 128;
const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const CLIENT: i32 = 3;

/// Makes a trace of every call. A handle: clones share a queue.
#[derive(Clone)]
pub struct TraceCalls {
    outbox: Outbox,
    model: Arc<str>,
    calls: Arc<Mutex<BTreeMap<CallKey, Open>>>,
}

/// A call that goes on.
struct Open {
    began: Instant,
    unix: i64,
    trace_id: Vec<u8>,
    root: Span,
    session_id: Option<String>,
    turns: i64,
    turn: Option<Span>,
    /// When the last response ended: the next one begins no earlier, however long the caller has waited.
    response_ended: u64,
    /// When each response that was heard was asked for, and how long it then took.
    asked: BTreeMap<String, (u64, Option<Duration>)>,
    tools: BTreeMap<String, u64>,
}

impl Open {
    fn at(&self, now: Instant) -> u64 {
        nanos(self.unix, now.saturating_duration_since(self.began))
    }

    fn span(&self, name: String, kind: i32, from: u64) -> Span {
        let parent = self.turn.as_ref().unwrap_or(&self.root).span_id.clone();
        Span {
            trace_id: self.trace_id.clone(),
            span_id: random::bytes::<8>().to_vec(),
            parent_span_id: parent,
            name,
            kind,
            start_time_unix_nano: from,
            ..Span::default()
        }
    }

    fn moment(&mut self, at: u64, name: &str, attributes: Vec<KeyValue>) {
        if self.root.events.len() < EVENTS_MAX {
            self.root.events.push(Event { time_unix_nano: at, name: name.to_owned(), attributes });
        }
    }

    fn about_turn(&mut self, name: &str, value: Value) {
        if let Some(turn) = self.turn.as_mut().filter(|turn| turn.attributes.len() < EVENTS_MAX) {
            turn.attributes.push(attribute(name, value));
        }
    }

    /// A turn begins; the one before it is over.
    fn begin_turn(&mut self, at: u64, by: &str) -> Option<Span> {
        let over = self.end_turn(at);
        self.turns += 1;
        let mut turn = self.span("turn".to_owned(), INTERNAL, at);
        turn.attributes.push(attribute("turn.number", Value::Int(self.turns)));
        turn.attributes.push(attribute("turn.begun_by", by));
        self.turn = Some(turn);
        over
    }

    fn end_turn(&mut self, at: u64) -> Option<Span> {
        let mut turn = self.turn.take()?;
        turn.end_time_unix_nano = at;
        Some(turn)
    }

    fn end(mut self, at: u64, reason: &str, detail: &str, usual: bool) -> [Option<Span>; 2] {
        let turn = self.end_turn(at);
        let mut root = self.root;
        root.end_time_unix_nano = at;
        root.attributes.push(attribute("bridge.end_reason", reason));
        if !usual {
            root.attributes.push(attribute(names::ERROR, reason));
            root.status = Some(Status { message: detail.to_owned(), code: 2 });
        }
        [turn, Some(root)]
    }
}

impl TraceCalls {
    pub(super) fn new(outbox: Outbox, model: &str) -> Self {
        Self { outbox, model: model.into(), calls: Arc::default() }
    }

    fn calls(&self) -> MutexGuard<'_, BTreeMap<CallKey, Open>> {
        // Nothing can panic while this is locked; and if it did, the map would still be whole.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, spans: impl IntoIterator<Item = Span>) {
        spans.into_iter().for_each(|span| self.outbox.put(Item::Span(Box::new(span))));
    }

    /// A response of the model, as the conventions describe one.
    fn response(&self, open: &mut Open, at: u64, event: &CallEvent) -> Option<Span> {
        let CallEvent::ResponseDone { response, status, usage } = event else { return None };
        let (from, first) = open.asked.remove(response).unwrap_or((at, None));
        let mut span = open.span(format!("chat {}", self.model), CLIENT, from);
        span.end_time_unix_nano = at;
        let reasons = ArrayValue { values: vec![Value::from(status.as_str()).into()] };
        span.attributes = vec![
            attribute(names::OPERATION, "chat"),
            attribute(names::PROVIDER, "openai"),
            attribute(names::REQUEST_MODEL, &*self.model),
            attribute(names::OUTPUT_TYPE, "speech"),
            attribute(names::RESPONSE, response.as_str()),
            attribute(names::FINISH_REASONS, Value::Array(reasons)),
        ];
        if let Some(session) = &open.session_id {
            span.attributes.push(attribute(names::CONVERSATION, session.as_str()));
        }
        if let Some(first) = first {
            span.attributes.push(attribute("bridge.first_audio_seconds", Value::Double(first.as_secs_f64())));
        }
        if let Some(usage) = usage {
            let count = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
            span.attributes.push(attribute(names::INPUT_TOKENS, count(usage.input)));
            span.attributes.push(attribute(names::OUTPUT_TOKENS, count(usage.output)));
        }
        if status == "failed" {
            span.attributes.push(attribute(names::ERROR, "failed"));
            span.status = Some(Status { message: String::new(), code: 2 });
        }
        Some(span)
    }
}

impl Observe for TraceCalls {
    fn begins(&self, call: CallKey, now: Instant, unix: i64) {
        let trace_id = random::bytes::<16>().to_vec();
        let root = Span {
            trace_id: trace_id.clone(),
            span_id: random::bytes::<8>().to_vec(),
            name: "call".to_owned(),
            kind: SERVER,
            start_time_unix_nano: nanos(unix, Duration::ZERO),
            ..Span::default()
        };
        let open = Open {
            began: now,
            unix,
            trace_id,
            root,
            session_id: None,
            turns: 0,
            turn: None,
            response_ended: 0,
            asked: BTreeMap::new(),
            tools: BTreeMap::new(),
        };
        self.calls().insert(call, open);
    }

    fn event(&self, call: CallKey, now: Instant, event: &CallEvent) {
        let mut calls = self.calls();
        let Some(open) = calls.get_mut(&call) else { return };
        let at = open.at(now);
        match event {
            CallEvent::Started { call_sid, stream_sid } => {
                open.root.attributes.push(attribute("twilio.call_sid", call_sid.as_str()));
                open.root.attributes.push(attribute("twilio.stream_sid", stream_sid.as_str()));
            }
            CallEvent::Session { id } => {
                open.root.attributes.push(attribute(names::CONVERSATION, id.as_str()));
                open.session_id = Some(id.clone());
            }
            CallEvent::Dialed { outcome, took } => {
                let took = attribute("bridge.took_seconds", Value::Double(took.as_secs_f64()));
                open.moment(at, "dialed", vec![attribute("bridge.outcome", outcome.name()), took]);
            }
            CallEvent::Renewal { outcome, took, .. } => {
                let took = attribute("bridge.took_seconds", Value::Double(took.as_secs_f64()));
                open.moment(at, "renewal", vec![attribute("bridge.outcome", outcome.name()), took]);
            }
            CallEvent::Live { .. } => open.moment(at, "live", Vec::new()),
            CallEvent::SpeechStarted => {
                let over = open.begin_turn(at, "speech");
                drop(calls);
                self.send(over);
            }
            CallEvent::Keypad { .. } => {
                let over = open.begin_turn(at, "keypad");
                drop(calls);
                self.send(over);
            }
            CallEvent::BargeIn { heard, .. } => {
                let heard = attribute("bridge.heard_seconds", Value::Double(heard.as_secs_f64()));
                open.about_turn("turn.was_interrupted", Value::Bool(true));
                open.moment(at, "barge_in", vec![heard]);
            }
            CallEvent::Speaking { response, after } => {
                let asked = at.saturating_sub(nanos(0, after.unwrap_or_default())).max(open.response_ended);
                // A model that ends none of its responses fills no memory.
                if open.asked.len() < EVENTS_MAX {
                    open.asked.insert(response.clone(), (asked, *after));
                }
                if let Some(after) = after {
                    open.about_turn("turn.user_bot_latency_seconds", Value::Double(after.as_secs_f64()));
                }
            }
            CallEvent::ResponseDone { .. } => {
                let span = self.response(open, at, event);
                open.response_ended = at;
                drop(calls);
                self.send(span);
            }
            CallEvent::ToolCalled { call_id, .. } => {
                if open.tools.len() < EVENTS_MAX {
                    open.tools.insert(call_id.clone(), at);
                }
            }
            CallEvent::ToolAnswered { call_id, name, outcome, .. } => {
                let from = open.tools.remove(call_id).unwrap_or(at);
                let mut span = open.span(format!("execute_tool {name}"), INTERNAL, from);
                span.end_time_unix_nano = at;
                span.attributes = vec![
                    attribute(names::OPERATION, "execute_tool"),
                    attribute(names::TOOL, name.as_str()),
                    attribute(names::TOOL_CALL, call_id.as_str()),
                ];
                if !matches!(outcome, ToolOutcome::Done | ToolOutcome::Reused) {
                    span.attributes.push(attribute(names::ERROR, outcome.name()));
                    span.status = Some(Status { message: String::new(), code: 2 });
                }
                drop(calls);
                self.send([span]);
            }
            CallEvent::ModelError { code } => {
                open.moment(at, "model_error", vec![attribute(names::ERROR, code.as_str())]);
            }
            CallEvent::ToolLoop { rounds } => {
                let rounds = Value::Int(i64::from(*rounds));
                open.moment(at, "tool_loop", vec![attribute("bridge.rounds", rounds)]);
            }
            CallEvent::Notice { reason } => {
                open.moment(at, "notice", vec![attribute("bridge.end_reason", reason.name())]);
            }
            CallEvent::Ended { reason, detail, .. } => {
                let usual = matches!(
                    reason,
                    EndReason::Stopped
                        | EndReason::HungUp
                        | EndReason::AgentHungUp
                        | EndReason::Transferred
                        | EndReason::Replaced
                        | EndReason::Drained
                );
                let over = calls.remove(&call).map(|open| open.end(at, reason.name(), detail, usual));
                drop(calls);
                self.send(over.into_iter().flatten().flatten());
            }
            CallEvent::Dialing
            | CallEvent::Unprotected { .. }
            | CallEvent::SpeechStopped
            | CallEvent::Silenced { .. }
            | CallEvent::Said(_)
            | CallEvent::Floor(_)
            | CallEvent::Tolerated { .. }
            | CallEvent::TimerFired(_)
            | CallEvent::Renewing
            | CallEvent::ExpiringSoon => {}
        }
    }

    fn gone(&self, call: CallKey) {
        let Some(open) = self.calls().remove(&call) else { return };
        let at = open.at(clock::now());
        self.send(
            open.end(at, "cut", "the call panicked, or did not end in time", false).into_iter().flatten(),
        );
    }
}

/// Nanoseconds since 1970 at a moment `after` one that is known in seconds.
fn nanos(unix: i64, after: Duration) -> u64 {
    let base = u64::try_from(unix).unwrap_or(0).saturating_mul(1_000_000_000);
    base.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
}
