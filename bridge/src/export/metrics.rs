//! Figures for Prometheus: what calls did, how long the bridge took, what waits, what was lost.
//!
//! The registry is a value: every server has its own, and a test reads exactly one. No figure carries the name of a
//! call. What a call counts for itself is added when it ends; what the legs carry, about once a second. Every other
//! figure is read when the page is written. `docs/guide/observability.md` describes every figure, and a test holds the
//! two together.

use crate::base::clock;
use crate::call::event::{
    CallEvent, Counts, DialOutcome, EndReason, ProtectionEnd, RenewalOutcome, ToolOutcome,
};
use crate::export::journal::files::{Files, Stats as JournalStats};
use crate::export::logs::LogQueue;
use crate::export::otlp;
use crate::export::store;
use crate::runtime::meter::{LegTraffic, Traffic};
use crate::runtime::observe::Observe;
use crate::runtime::registry::CallKey;
use crate::server::connections::{self, Limits, Tcp};
use crate::server::stats::Stats;
use crate::wire::realtime::Usage;
use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge as Level};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// What `/metrics` answers with.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How often the figures are written down anew at most.
const WRITTEN_EVERY: Duration = Duration::from_millis(250);
/// How often the loop's own lateness is measured.
const LAG_EVERY: Duration = Duration::from_millis(100);

/// Time inside the bridge, s: 0.1 ms is usual, 20 ms is a whole frame.
const ADDED: [f64; 11] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5];
/// Time a person waits, s.
const WAITS: [f64; 12] = [0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 8.0, 15.0];
/// Length of a call, s.
const LASTS: [f64; 9] = [5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0];

/// Whether figures are served, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Figures are counted and served at `/metrics`.
    pub enabled: bool,
    /// The address they are served at. The bridge's own (`listen`) serves them there, to any client.
    pub listen: SocketAddr,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8086)) }
    }
}

/// Connections at once, where the figures have a listener of their own.
pub(crate) const CONNECTIONS_MAX: usize = 64;

/// Serves the figures on a listener of their own until the future is dropped.
pub async fn serve(listener: TcpListener, metrics: Metrics, stats: Stats) {
    let (listener, limits) = (Tcp::new(listener, stats.clone()), Limits::of(CONNECTIONS_MAX));
    match connections::serve(listener, None, metrics.routes(), limits, stats).await {}
}

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Seconds = Counter<f64, AtomicU64>;
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;
/// By function and outcome: the names of functions are the operator's.
type ToolTimes = Family<[(&'static str, String); 2], Histogram, fn() -> Histogram>;

/// The figures of one server. A handle: clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    calls: Counters<1>,
    call_seconds: Histogram,
    setup_seconds: Histogram,
    dials: Counters<1>,
    renewals: Counters<1>,
    dial_seconds: Histogram,
    messages: Counters<2>,
    bytes: Counters<2>,
    queued: Family<Labels<1>, Level>,
    waiting: Family<Labels<1>, Level>,
    added: Histograms<1>,
    first_audio: Histogram,
    barge_ins: Counter,
    drain: Histogram,
    truncations: Counter,
    stale: Counter,
    dropped: Seconds,
    filled: Seconds,
    protections: Counters<1>,
    protected: Seconds,
    lost_marks: Counter,
    malformed: Counter,
    unknown: Counter,
    model_errors: Counter,
    retries: Counter,
    forgotten: Counter,
    responses: Counters<1>,
    tokens: Counters<3>,
    tools: ToolTimes,
    tool_refusals: Counter,
    tool_loops: Counter,
    refused_outputs: Counter,
    keypad: Counter,
    notices: Counter,
    lag: Histogram,
    /// The figures as they were written down last, and when.
    written: Mutex<Option<(Instant, Bytes)>>,
    /// What each call that goes on was last seen to hold, so that its share of the sums can be taken back.
    shares: Mutex<BTreeMap<CallKey, Share>>,
}

/// A call's part of the figures that are sums over all calls.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    queued: [i64; 2],
    waiting: [i64; 2],
    ended: bool,
}

/// How a figure of another component is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A figure that is read when the page is written.
struct Asked {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    read: Box<dyn Fn() -> f64 + Send + Sync>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Collector for Asked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let value = (self.read)();
        match self.kind {
            Kind::Counter => {
                let counter = ConstCounter::new(value);
                let metric = encoder.encode_descriptor(self.name, self.help, None, counter.metric_type())?;
                counter.encode(metric)
            }
            Kind::Gauge => {
                let gauge = ConstGauge::new(value);
                let metric = encoder.encode_descriptor(self.name, self.help, None, gauge.metric_type())?;
                gauge.encode(metric)
            }
        }
    }
}

/// Puts the figures of one server together.
pub struct Builder {
    registry: Registry,
}

impl Builder {
    /// A figure that is read when the page is written. `name` is without prefix and, for a counter, without `_total`.
    #[must_use]
    pub fn asking(
        mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Self {
        self.registry.register_collector(Box::new(Asked { name, help, kind, read: Box::new(read) }));
        self
    }

    /// What becomes of log lines.
    #[must_use]
    pub fn log(self, log: Option<&LogQueue>) -> Self {
        let log = log.cloned();
        let lost = move || log.as_ref().map_or(0.0, |log| log.lost() as f64);
        self.asking("log_lost_lines", "Log lines dropped: standard error was not read", Kind::Counter, lost)
    }

    /// What becomes of the journals, when there are any.
    #[must_use]
    pub fn journal(self, journal: Option<&Arc<Files>>) -> Self {
        let of = |read: fn(&JournalStats) -> u64| {
            // Figures keep no journal open.
            let journal = journal.map(Arc::downgrade).unwrap_or_default();
            move || journal.upgrade().map_or(0.0, |journal| read(&journal.snapshot()) as f64)
        };
        self.asking("journal_lines", "Journal lines written", Kind::Counter, of(|counted| counted.lines))
            .asking("journal_lost_lines", "Journal lines left out", Kind::Counter, of(|counted| counted.lost))
            .asking("journal_failed_writes", "Journal writes that failed", Kind::Counter, {
                of(|counted| counted.failed_writes)
            })
    }

    /// What becomes of the transcripts, when they are kept.
    #[must_use]
    pub fn store(self, store: Option<&store::StatsHandle>) -> Self {
        let of = |read: fn(&store::StatsHandle) -> f64| {
            let store = store.cloned();
            move || store.as_ref().map_or(0.0, read)
        };
        self.asking("store_queued_records", "Records that wait for the database", Kind::Gauge, {
            of(|store| store.snapshot().queued as f64)
        })
        .asking("store_queued_bytes", "Bytes that wait for the database", Kind::Gauge, {
            of(|store| store.snapshot().queued_bytes as f64)
        })
        .asking("store_lag_seconds", "How long the oldest record has been waiting", Kind::Gauge, {
            of(|store| store.lag().as_secs_f64())
        })
        .asking("store_written_records", "Records written", Kind::Counter, {
            of(|store| store.snapshot().written as f64)
        })
        .asking("store_lost_records", "Records that found no room, or were refused", Kind::Counter, {
            of(|store| store.snapshot().lost as f64)
        })
        .asking("store_failed_writes", "Attempts to write that failed", Kind::Counter, {
            of(|store| store.snapshot().failed as f64)
        })
        .asking(
            "store_replaced_files",
            "SQLite files removed or replaced under the bridge",
            Kind::Counter,
            of(|store| store.snapshot().replaced as f64),
        )
    }

    /// What becomes of traces and logs, when they are sent.
    #[must_use]
    pub fn otlp(self, otlp: Option<&otlp::StatsHandle>) -> Self {
        let of = |read: fn(otlp::Stats) -> u64| {
            let otlp = otlp.cloned();
            move || otlp.as_ref().map_or(0.0, |otlp| read(otlp.snapshot()) as f64)
        };
        self.asking("otlp_sent", "Spans and log records taken by the collector", Kind::Counter, {
            of(|counted| counted.sent)
        })
        .asking(
            "otlp_lost",
            "Spans and log records that found no room, or could not be sent",
            Kind::Counter,
            of(|counted| counted.lost),
        )
    }

    /// Everything there is to know of calls, and of the server they are on. `tools`: the functions that can be called.
    pub fn build<'a>(self, stats: &Stats, tools: impl IntoIterator<Item = &'a str>) -> Metrics {
        let of = |read: fn(&Stats) -> f64| {
            let stats = stats.clone();
            move || read(&stats)
        };
        let Self { mut registry } = self
            .asking("calls_active", "Calls now, and upgrades on their way to one", Kind::Gauge, {
                of(|stats| stats.active() as f64)
            })
            .asking("calls_refused", "Upgrades refused: full or draining", Kind::Counter, {
                of(|stats| stats.refused() as f64)
            })
            .asking(
                "requests_unsigned",
                "Requests refused: not signed by Twilio, or from a foreign page",
                Kind::Counter,
                of(|stats| stats.unsigned() as f64),
            )
            .asking("connections_open", "Connections that are no calls, of every listener", Kind::Gauge, {
                of(|stats| stats.connections_open() as f64)
            })
            .asking(
                "connections_evicted",
                "Connections closed because too many came behind them",
                Kind::Counter,
                of(|stats| stats.connections_evicted() as f64),
            )
            .asking(
                "connections_unread",
                "Connections closed because their answers were not read",
                Kind::Counter,
                of(|stats| stats.connections_unread() as f64),
            )
            .asking(
                "connections_unaccepted",
                "Attempts to take a connection that failed, for want of descriptors mostly",
                Kind::Counter,
                of(|stats| stats.connections_unaccepted() as f64),
            )
            .asking("streams_rejected", "Streams closed before they were admitted", Kind::Counter, {
                of(|stats| stats.rejected() as f64)
            })
            .asking("webhooks_replayed", "Webhooks answered before whose call is over", Kind::Counter, {
                of(|stats| stats.replayed() as f64)
            })
            .asking("panics", "Calls and connections that ended in a panic", Kind::Counter, {
                of(|stats| stats.panicked() as f64)
            })
            .asking("draining", "1 while no new calls are taken", Kind::Gauge, {
                of(|stats| f64::from(u8::from(stats.is_draining())))
            });
        let metrics = Inner::new(&mut registry);
        metrics.show_all(tools);
        Metrics(Arc::new(Inner { registry, ..metrics }))
    }
}

impl Inner {
    fn new(registry: &mut Registry) -> Self {
        let build: Family<Labels<1>, Level> = Family::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("build_info", "1, with the version that runs", build);

        let waits: fn() -> Histogram = || Histogram::new(WAITS);
        let added: fn() -> Histogram = || Histogram::new(ADDED);
        let new = Self {
            registry: Registry::default(),
            calls: Family::default(),
            call_seconds: Histogram::new(LASTS),
            setup_seconds: waits(),
            dials: Family::default(),
            renewals: Family::default(),
            dial_seconds: waits(),
            messages: Family::default(),
            bytes: Family::default(),
            queued: Family::default(),
            waiting: Family::default(),
            added: Family::new_with_constructor(added),
            first_audio: waits(),
            barge_ins: Counter::default(),
            drain: waits(),
            truncations: Counter::default(),
            stale: Counter::default(),
            dropped: Seconds::default(),
            filled: Seconds::default(),
            protections: Family::default(),
            protected: Seconds::default(),
            lost_marks: Counter::default(),
            malformed: Counter::default(),
            unknown: Counter::default(),
            model_errors: Counter::default(),
            retries: Counter::default(),
            forgotten: Counter::default(),
            responses: Family::default(),
            tokens: Family::default(),
            tools: Family::new_with_constructor(waits),
            tool_refusals: Counter::default(),
            tool_loops: Counter::default(),
            refused_outputs: Counter::default(),
            keypad: Counter::default(),
            notices: Counter::default(),
            lag: added(),
            written: Mutex::default(),
            shares: Mutex::default(),
        };
        let r = registry;
        r.register("calls", "Calls that ended, by why", new.calls.clone());
        r.register("call_duration_seconds", "From the open WebSocket to the end", new.call_seconds.clone());
        r.register("call_setup_seconds", "From the open WebSocket to both ends hearing each other", {
            new.setup_seconds.clone()
        });
        r.register("model_dials", "Attempts to reach the model, by what became of them", new.dials.clone());
        r.register(
            "session_renewals",
            "Sessions that were to be replaced before their limit, by what became of it",
            new.renewals.clone(),
        );
        r.register(
            "model_dial_seconds",
            "TCP, TLS and the upgrade towards the model",
            new.dial_seconds.clone(),
        );
        r.register("leg_messages", "WebSocket messages, by leg and way", new.messages.clone());
        r.register("leg_bytes", "Bytes of WebSocket messages, by leg and way", new.bytes.clone());
        r.register("leg_queued_messages", "Messages that wait to be written, all calls", new.queued.clone());
        r.register("held_audio_bytes", "Audio held in the bridge, all calls", new.waiting.clone());
        r.register("added_latency_seconds", "How long audio that passes at once is inside the bridge", {
            new.added.clone()
        });
        r.register("first_audio_seconds", "From a turn's end to the first audio of its answer", {
            new.first_audio.clone()
        });
        r.register("barge_ins", "Times the caller took the floor", new.barge_ins.clone());
        r.register(
            "barge_in_drain_seconds",
            "From a barge-in to Twilio's last flushed mark",
            new.drain.clone(),
        );
        r.register("truncations", "Items cut at what was heard of them", new.truncations.clone());
        r.register("stale_audio_bytes", "Model audio dropped behind a barge-in", new.stale.clone());
        r.register("dropped_audio_seconds", "Caller audio dropped because the model did not take it", {
            new.dropped.clone()
        });
        r.register("filled_audio_seconds", "Silence supplied for gaps in caller audio", new.filled.clone());
        r.register("protections", "Protected windows that ended, by what ended them", {
            new.protections.clone()
        });
        r.register("protected_audio_seconds", "Caller audio replaced by silence in protected windows", {
            new.protected.clone()
        });
        r.register("lost_marks", "Marks that never came back", new.lost_marks.clone());
        r.register("malformed_messages", "Messages that could not be read", new.malformed.clone());
        r.register("unknown_messages", "Messages of unknown type", new.unknown.clone());
        r.register("model_errors", "Errors of the model that did not end the call", new.model_errors.clone());
        r.register("response_retries", "Responses asked for again", new.retries.clone());
        r.register("forgotten_items", "Items forgotten of conversations beyond their limits", {
            new.forgotten.clone()
        });
        r.register("responses", "Responses that ended, by status", new.responses.clone());
        r.register("tokens", "Tokens, as the model counted them", new.tokens.clone());
        r.register("tool_seconds", "Function calls that ran, by function and outcome", new.tools.clone());
        r.register("tool_refusals", "Function calls that were answered without running", {
            new.tool_refusals.clone()
        });
        r.register("tool_loops", "Times a model called functions without end and was stopped", {
            new.tool_loops.clone()
        });
        r.register("tool_refused_outputs", "Outputs of functions that the model's server refused", {
            new.refused_outputs.clone()
        });
        r.register("keypad_entries", "Keypad entries handed to the model", new.keypad.clone());
        r.register("notices", "Callers who were told that the call cannot go on", new.notices.clone());
        r.register("event_loop_lag_seconds", "How late the event loop is", new.lag.clone());
        new
    }

    /// Figures that have not moved are shown as 0, not left out: a rate needs its beginning.
    fn show_all<'a>(&self, tools: impl IntoIterator<Item = &'a str>) {
        for reason in EndReason::ALL {
            drop(self.calls.get_or_create(&[("reason", reason.name())]));
        }
        drop(self.calls.get_or_create(&[("reason", CUT)]));
        for outcome in DialOutcome::ALL {
            drop(self.dials.get_or_create(&[("outcome", outcome.name())]));
        }
        for end in ProtectionEnd::ALL {
            drop(self.protections.get_or_create(&[("end", end.name())]));
        }
        for outcome in RenewalOutcome::ALL {
            drop(self.renewals.get_or_create(&[("outcome", outcome.name())]));
        }
        for leg in LEGS {
            drop(self.queued.get_or_create(&[("leg", leg)]));
            for way in ["received", "sent"] {
                drop(self.messages.get_or_create(&[("leg", leg), ("way", way)]));
                drop(self.bytes.get_or_create(&[("leg", leg), ("way", way)]));
            }
        }
        for direction in DIRECTIONS {
            drop(self.waiting.get_or_create(&[("direction", direction)]));
            drop(self.added.get_or_create(&[("direction", direction)]));
        }
        for status in STATUSES {
            drop(self.responses.get_or_create(&[("status", status)]));
        }
        self.count_tokens(&Usage::default());
        for tool in tools {
            for outcome in [ToolOutcome::Done, ToolOutcome::Failed, ToolOutcome::TimedOut] {
                drop(self.tools.get_or_create(&tool_labels(tool, outcome)));
            }
        }
    }

    fn count_tokens(&self, usage: &Usage) {
        for (way, modality, cached, count) in [
            ("input", "text", "no", usage.input_text.saturating_sub(usage.cached_text)),
            ("input", "text", "yes", usage.cached_text),
            ("input", "audio", "no", usage.input_audio.saturating_sub(usage.cached_audio)),
            ("input", "audio", "yes", usage.cached_audio),
            ("output", "text", "no", usage.output_text),
            ("output", "audio", "no", usage.output_audio),
        ] {
            let labels = [("way", way), ("modality", modality), ("cached", cached)];
            self.tokens.get_or_create(&labels).inc_by(count);
        }
    }

    fn count_leg(&self, leg: &'static str, traffic: &LegTraffic) {
        let LegTraffic { received, received_bytes, sent, sent_bytes, queued: _ } = *traffic;
        for (way, messages, bytes) in [("received", received, received_bytes), ("sent", sent, sent_bytes)] {
            self.messages.get_or_create(&[("leg", leg), ("way", way)]).inc_by(messages);
            self.bytes.get_or_create(&[("leg", leg), ("way", way)]).inc_by(bytes);
        }
    }

    fn count_end(&self, reason: EndReason, lasted: Duration, counts: &Counts) {
        self.calls.get_or_create(&[("reason", reason.name())]).inc();
        self.call_seconds.observe(lasted.as_secs_f64());
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        self.truncations.inc_by(counts.truncations);
        self.stale.inc_by(counts.stale_bytes);
        self.dropped.inc_by(seconds(counts.dropped_uplink_ms));
        self.filled.inc_by(seconds(counts.filled_ms));
        self.protected.inc_by(seconds(counts.protected_ms));
        self.lost_marks.inc_by(counts.lost_marks);
        self.malformed.inc_by(counts.malformed);
        self.unknown.inc_by(counts.unknown);
        self.model_errors.inc_by(counts.errors);
        self.refused_outputs.inc_by(counts.refused_outputs);
        self.retries.inc_by(counts.retries);
        self.forgotten.inc_by(counts.forgotten_items);
    }

    fn shares(&self) -> MutexGuard<'_, BTreeMap<CallKey, Share>> {
        // Nothing can panic while this is locked; and if it did, the map would still be whole.
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call's part of the sums is now this.
    fn share(&self, was: Share, is: Share) {
        for (at, leg) in LEGS.into_iter().enumerate() {
            self.queued.get_or_create(&[("leg", leg)]).inc_by(is.queued[at] - was.queued[at]);
        }
        for (at, direction) in DIRECTIONS.into_iter().enumerate() {
            self.waiting.get_or_create(&[("direction", direction)]).inc_by(is.waiting[at] - was.waiting[at]);
        }
    }
}

const LEGS: [&str; 2] = ["caller", "model"];
const DIRECTIONS: [&str; 2] = ["uplink", "downlink"];
/// The end of a call that panicked or had to be cut.
const CUT: &str = "cut";
const STATUSES: [&str; 5] = ["completed", "cancelled", "failed", "incomplete", "other"];

fn tool_labels(tool: &str, outcome: ToolOutcome) -> [(&'static str, String); 2] {
    [("tool", tool.to_owned()), ("outcome", outcome.name().to_owned())]
}

impl Metrics {
    /// Begins to put figures together.
    pub fn builder() -> Builder {
        Builder { registry: Registry::with_prefix("bridge") }
    }

    /// All of them, as Prometheus reads them.
    ///
    /// # Errors
    /// When a figure cannot be written down.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.0.registry)?;
        Ok(text)
    }

    /// `/metrics`.
    pub fn routes(&self) -> Router {
        let metrics = self.clone();
        Router::new().route("/metrics", get(move || std::future::ready(metrics.page())))
    }

    fn page(&self) -> Response {
        // Writing them down takes a while, and any client that reaches the listener may ask.
        let mut written = self.0.written.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        let text = match &*written {
            Some((at, text)) if now.saturating_duration_since(*at) < WRITTEN_EVERY => text.clone(),
            Some(_) | None => match self.text() {
                Ok(text) => written.insert((now, text.into())).1.clone(),
                Err(fmt::Error) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            },
        };
        drop(written);
        ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
    }

    /// Measures for ever how late the event loop is: a timer of every call is late by as much.
    pub async fn watch_loop(self) {
        clock::lateness(LAG_EVERY, |late| self.0.lag.observe(late.as_secs_f64())).await;
    }
}

impl Observe for Metrics {
    fn begins(&self, call: CallKey, _now: Instant, _unix: i64) {
        self.0.shares().insert(call, Share::default());
    }

    fn event(&self, call: CallKey, _now: Instant, event: &CallEvent) {
        let inner = &*self.0;
        match event {
            CallEvent::Dialed { outcome, took } => {
                inner.dials.get_or_create(&[("outcome", outcome.name())]).inc();
                inner.dial_seconds.observe(took.as_secs_f64());
            }
            CallEvent::Renewal { outcome, .. } => {
                inner.renewals.get_or_create(&[("outcome", outcome.name())]).inc();
            }
            CallEvent::Live { after } => inner.setup_seconds.observe(after.as_secs_f64()),
            CallEvent::Unprotected { why, .. } => {
                inner.protections.get_or_create(&[("end", why.name())]).inc();
            }
            CallEvent::BargeIn { .. } => {
                inner.barge_ins.inc();
            }
            CallEvent::Silenced { after } => inner.drain.observe(after.as_secs_f64()),
            CallEvent::Speaking { after: Some(after), .. } => inner.first_audio.observe(after.as_secs_f64()),
            CallEvent::ResponseDone { status, usage, .. } => {
                let status = STATUSES.into_iter().find(|known| known == status).unwrap_or("other");
                inner.responses.get_or_create(&[("status", status)]).inc();
                usage.iter().for_each(|usage| inner.count_tokens(usage));
            }
            CallEvent::Keypad { .. } => {
                inner.keypad.inc();
            }
            CallEvent::ToolAnswered { name, outcome, took: Some(took), .. } => {
                inner.tools.get_or_create(&tool_labels(name, *outcome)).observe(took.as_secs_f64());
            }
            CallEvent::ToolAnswered { took: None, .. } => {
                inner.tool_refusals.inc();
            }
            CallEvent::ToolLoop { .. } => {
                inner.tool_loops.inc();
            }
            CallEvent::Notice { .. } => {
                inner.notices.inc();
            }
            CallEvent::Ended { reason, lasted, counts, .. } => {
                if let Some(share) = inner.shares().get_mut(&call) {
                    share.ended = true;
                }
                inner.count_end(*reason, *lasted, counts);
            }
            CallEvent::Started { .. }
            | CallEvent::Dialing
            | CallEvent::Session { .. }
            | CallEvent::SpeechStarted
            | CallEvent::SpeechStopped
            | CallEvent::Said(_)
            | CallEvent::Floor(_)
            | CallEvent::Speaking { after: None, .. }
            | CallEvent::ToolCalled { .. }
            | CallEvent::ModelError { .. }
            | CallEvent::Tolerated { .. }
            | CallEvent::TimerFired(_)
            | CallEvent::Renewing
            | CallEvent::ExpiringSoon => {}
        }
    }

    fn traffic(&self, call: CallKey, _now: Instant, traffic: &Traffic) {
        let inner = &*self.0;
        inner.count_leg("caller", &traffic.caller);
        inner.count_leg("model", &traffic.model);
        for (direction, latencies) in DIRECTIONS.into_iter().zip([&traffic.uplink, &traffic.downlink]) {
            let added = inner.added.get_or_create(&[("direction", direction)]);
            latencies.iter().for_each(|latency| added.observe(latency.as_secs_f64()));
        }
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let mut shares = inner.shares();
        if let Some(share) = shares.get_mut(&call) {
            let is = Share {
                queued: [count(traffic.caller.queued), count(traffic.model.queued)],
                waiting: [count(traffic.waiting.uplink_bytes), count(traffic.waiting.downlink_bytes)],
                ended: share.ended,
            };
            inner.share(std::mem::replace(share, is), is);
        }
    }

    fn gone(&self, call: CallKey) {
        let Some(share) = self.0.shares().remove(&call) else { return };
        self.0.share(share, Share::default());
        if !share.ended {
            self.0.calls.get_or_create(&[("reason", CUT)]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Waiting;
    use std::collections::BTreeSet;

    fn metrics() -> Metrics {
        Metrics::builder().log(None).journal(None).store(None).otlp(None).build(&Stats::default(), ["lookup"])
    }

    fn served() -> BTreeSet<String> {
        let text = metrics().text().unwrap();
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        names.map(str::to_owned).collect()
    }

    /// Whatever in `text` looks like the name of a figure, without what a histogram adds to it.
    fn named(text: &str) -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let base = |word: &str| {
            let ends = ["_bucket", "_sum", "_count"];
            ends.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
        };
        words.filter(|word| word.starts_with("bridge_")).map(base).collect()
    }

    #[test]
    fn the_documentation_tells_of_every_figure_and_of_no_other() {
        let text = include_str!("../../../docs/guide/observability.md");
        let told = text.lines().filter_map(|line| line.strip_prefix("| `bridge_")?.split('`').next());
        let told: BTreeSet<String> = told.map(|name| format!("bridge_{name}")).collect();
        assert_eq!(told, served());
    }

    #[test]
    fn dashboard_and_alerts_ask_for_figures_that_are_served() {
        let served = served();
        for (file, text) in [
            ("dashboard.json", include_str!("../../../deploy/grafana/dashboard.json")),
            ("alerts.yml", include_str!("../../../deploy/prometheus/alerts.yml")),
        ] {
            let named = named(text);
            assert!(named.len() > 5, "{file} asks for {named:?} only");
            let absent: Vec<_> = named.difference(&served).collect();
            assert!(absent.is_empty(), "{file} asks for {absent:?}");
        }
        let dashboard = include_str!("../../../deploy/grafana/dashboard.json");
        serde_json::from_str::<serde_json::Value>(dashboard).expect("JSON");
    }

    #[test]
    fn dashboard_and_alerts_tell_figures_apart_by_labels_that_are_served() {
        let text = metrics().text().unwrap();
        let has = |name: &str, label: &str| {
            text.lines().any(|line| line.starts_with(&format!("{name}{{")) && line.contains(label))
        };
        let name_at = |text: &str| {
            let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
            text[..end].to_owned()
        };
        // Prometheus adds these.
        let own = |label: &str| !["job", "instance"].contains(&label);
        for asked in [
            include_str!("../../../deploy/grafana/dashboard.json"),
            include_str!("../../../deploy/prometheus/alerts.yml"),
        ] {
            let asked = asked.replace('\\', "");
            let mut found = 0;
            for (at, _) in asked.match_indices("by (") {
                let (labels, rest) = asked[at + 4..].split_once(')').unwrap();
                let name = name_at(&rest[rest.find("bridge_").unwrap()..]);
                for label in labels.split(", ").filter(|label| own(label)) {
                    assert!(has(&name, &format!("{label}=\"")), "{name} by {label}");
                    found += 1;
                }
            }
            for (at, _) in asked.match_indices("bridge_") {
                let name = name_at(&asked[at..]);
                let Some(rest) = asked[at + name.len()..].strip_prefix('{') else { continue };
                for wanted in rest.split_once('}').unwrap().0.split(',') {
                    let label = name_at(wanted);
                    let values = wanted.split('"').nth(1).unwrap();
                    for value in values.split('|').filter(|_| own(&label)) {
                        let value = value.strip_suffix(".*").map_or(format!("{value}\""), str::to_owned);
                        assert!(has(&name, &format!("{label}=\"{value}")), "{name} with {wanted}");
                        found += 1;
                    }
                }
            }
            assert!(found > 5, "{found} labels are asked for");
        }
    }

    fn value(metrics: &Metrics, series: &str) -> f64 {
        let text = metrics.text().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }

    fn tell(metrics: &Metrics, event: &CallEvent) {
        metrics.event(CallKey(1), crate::base::clock::now(), event);
    }

    fn ended(counts: Counts) -> CallEvent {
        let (reason, lasted) = (EndReason::Stopped, Duration::from_secs(20));
        let counts = Box::new(counts);
        CallEvent::Ended { reason, detail: String::new(), lasted, counts, transcript: Vec::new() }
    }

    #[test]
    fn every_series_has_the_prefix_and_is_there_from_the_start() {
        let text = metrics().text().unwrap();
        let names: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert!(names.iter().all(|name| name.starts_with("bridge_")), "{names:?}");
        for name in names.iter().filter_map(|name| name.split(' ').next()) {
            let lines = |line: &str| line.starts_with(name);
            assert!(text.lines().any(lines), "{name} has no series");
        }
        for reason in EndReason::ALL {
            assert!(text.contains(&format!("bridge_calls_total{{reason=\"{reason}\"}} 0\n")), "{reason}");
        }
        assert!(text.contains("bridge_build_info{version=\""));
    }

    #[test]
    fn every_reason_has_a_place_of_its_own() {
        let names: BTreeSet<_> = EndReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), EndReason::ALL.len());
        assert!(
            EndReason::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at),
            "in order, none left out"
        );
    }

    #[test]
    fn a_call_is_counted_once_by_why_it_ended() {
        let t = metrics();
        t.begins(CallKey(1), crate::base::clock::now(), 0);
        let counts = Counts {
            truncations: 2,
            stale_bytes: 77,
            filled_ms: 1_500,
            protected_ms: 2_500,
            ..Counts::default()
        };
        tell(
            &t,
            &CallEvent::Unprotected { why: ProtectionEnd::Heard, silenced: Duration::from_millis(2_500) },
        );
        tell(&t, &ended(counts));
        t.gone(CallKey(1));
        assert_eq!(value(&t, "bridge_protections_total{end=\"heard\"}"), 1.0);
        assert_eq!(value(&t, "bridge_protections_total{end=\"time\"}"), 0.0);
        assert_eq!(value(&t, "bridge_protected_audio_seconds_total"), 2.5);
        assert_eq!(value(&t, "bridge_calls_total{reason=\"stopped\"}"), 1.0);
        assert_eq!(value(&t, "bridge_calls_total{reason=\"cut\"}"), 0.0);
        assert_eq!(value(&t, "bridge_call_duration_seconds_sum"), 20.0);
        assert_eq!(value(&t, "bridge_truncations_total"), 2.0);
        assert_eq!(value(&t, "bridge_stale_audio_bytes_total"), 77.0);
        assert_eq!(value(&t, "bridge_filled_audio_seconds_total"), 1.5);
        t.begins(CallKey(2), crate::base::clock::now(), 0);
        t.gone(CallKey(2));
        assert_eq!(value(&t, "bridge_calls_total{reason=\"cut\"}"), 1.0, "it panicked");
    }

    #[test]
    fn what_waits_is_the_sum_over_calls_and_goes_with_them() {
        let t = metrics();
        let now = crate::base::clock::now();
        let waits = |queued, downlink_bytes| Traffic {
            model: LegTraffic { queued, sent: 3, ..LegTraffic::default() },
            uplink: vec![Duration::from_micros(300); 2],
            waiting: Waiting { uplink_bytes: 0, downlink_bytes },
            ..Traffic::default()
        };
        for (call, queued, bytes) in [(1, 5, 100), (2, 7, 200), (1, 1, 50)] {
            if queued != 1 {
                t.begins(CallKey(call), now, 0);
            }
            t.traffic(CallKey(call), now, &waits(queued, bytes));
        }
        assert_eq!(value(&t, "bridge_leg_queued_messages{leg=\"model\"}"), 8.0);
        assert_eq!(value(&t, "bridge_held_audio_bytes{direction=\"downlink\"}"), 250.0);
        assert_eq!(value(&t, "bridge_leg_messages_total{leg=\"model\",way=\"sent\"}"), 9.0);
        assert_eq!(value(&t, "bridge_added_latency_seconds_count{direction=\"uplink\"}"), 6.0);
        t.gone(CallKey(1));
        t.gone(CallKey(2));
        assert_eq!(value(&t, "bridge_leg_queued_messages{leg=\"model\"}"), 0.0);
        assert_eq!(value(&t, "bridge_held_audio_bytes{direction=\"downlink\"}"), 0.0);
    }

    #[test]
    fn functions_are_timed_by_name_and_cached_tokens_are_told_apart() {
        let t = metrics();
        let answered = |name: &str, outcome, took| CallEvent::ToolAnswered {
            call_id: "c".into(),
            name: name.into(),
            outcome,
            took,
            why: None,
            output: Default::default(),
        };
        tell(&t, &answered("lookup", ToolOutcome::Done, Some(Duration::from_secs(2))));
        tell(&t, &answered("whatever the model made up", ToolOutcome::Refused, None));
        assert_eq!(value(&t, "bridge_tool_seconds_sum{tool=\"lookup\",outcome=\"done\"}"), 2.0);
        assert_eq!(value(&t, "bridge_tool_refusals_total"), 1.0);
        assert!(!t.text().unwrap().contains("made up"), "a name of the model's is no label");
        let usage = Usage { input_text: 100, cached_text: 60, output_audio: 9, ..Usage::default() };
        let done =
            CallEvent::ResponseDone { response: "r".into(), status: "hologram".into(), usage: Some(usage) };
        tell(&t, &done);
        let tokens = |way, modality, cached| {
            let labels = format!("way=\"{way}\",modality=\"{modality}\",cached=\"{cached}\"");
            value(&t, &format!("bridge_tokens_total{{{labels}}}"))
        };
        assert_eq!(tokens("input", "text", "no"), 40.0);
        assert_eq!(tokens("input", "text", "yes"), 60.0);
        assert_eq!(tokens("output", "audio", "no"), 9.0);
        assert_eq!(value(&t, "bridge_responses_total{status=\"other\"}"), 1.0);
    }

    #[test]
    fn figures_of_others_are_read_when_the_page_is_written() {
        let lost = Arc::new(AtomicU64::new(0));
        let read = lost.clone();
        let t = Metrics::builder()
            .asking("journal_lost", "Lines", Kind::Counter, move || {
                read.load(std::sync::atomic::Ordering::SeqCst) as f64
            })
            .build(&Stats::default(), []);
        assert_eq!(value(&t, "bridge_journal_lost_total"), 0.0);
        lost.store(7, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(value(&t, "bridge_journal_lost_total"), 7.0);
        assert_eq!(value(&t, "bridge_draining"), 0.0);
    }

    #[tokio::test]
    async fn the_lateness_of_the_loop_is_measured_again_and_again() {
        let t = metrics();
        let watching = tokio::spawn(t.clone().watch_loop());
        for _ in 0..100 {
            if value(&t, "bridge_event_loop_lag_seconds_count") >= 2.0 {
                return watching.abort();
            }
            tokio::time::sleep(LAG_EVERY).await;
        }
        panic!("not measured");
    }
}
