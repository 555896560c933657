//! Traces and logs for a collector: OTLP over HTTP, as protobuf. Off unless an endpoint is configured.
//!
//! One trace a call: a span for the call, one for each turn in it, and in the turn one for each response of the model
//! and each function. Names are those of OpenTelemetry's conventions for generative AI where it has one; these are
//! still in development, so all of them are in [`names`]. Words are in no span and in no log record.
//!
//! Calls and log lines only ever put something into a bounded queue, and only if there is room. A thread of its own
//! sends batches; a collector that is away is tried again a few times, then its batch is dropped and counted.

mod logs;
pub mod names;
mod outbox;
mod settings;
mod spans;
mod wire;

pub use logs::LogLayer;
pub use outbox::{Stats, StatsHandle};
pub use settings::Settings;
pub use spans::TraceCalls;

use crate::base::log_limit::LogLimit;
use crate::base::secret::Secret;
use crate::export::worker::{self, Batches, Bounds, Pace};
use crate::net::dial::{Dial, TlsDial};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use outbox::{Item, Outbox, Shared, THREAD};
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Spans and log records that may wait.
const BOUNDS: Bounds = Bounds { items: 8_192, bytes: usize::MAX };
/// Sent at once, and how long it is gathered. Losses are looked at once a minute at least.
const PACE: Pace = Pace { batch: 512, gather: Duration::from_millis(500), idle: Duration::from_secs(60) };
/// How long one attempt to send may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// From one attempt to the next; doubles.
const RETRY: Duration = Duration::from_millis(250);
/// Attempts, then a batch is dropped.
const ATTEMPTS: u32 = 4;
/// How long a stopping process waits for its collector.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// The thread that sends.
pub struct Exporter {
    outbox: Outbox,
    model: String,
    worker: worker::Worker<Item>,
}

/// Where to send, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// Such as `http://collector:4318`; `/v1/traces` and `/v1/logs` are appended.
    pub endpoint: String,
    /// Sent with every request.
    pub headers: BTreeMap<String, Secret>,
    /// `service.name`.
    pub service: String,
    /// The model that calls talk to.
    pub model: String,
}

impl Exporter {
    /// Starts the thread. Nothing is connected before there is something to send.
    ///
    /// # Errors
    /// When the endpoint is no URL, or there is no thread to be had.
    pub fn start(target: Target) -> anyhow::Result<Self> {
        let rest = target.endpoint.strip_prefix("http").filter(|rest| rest.contains("://"));
        let wanted = || anyhow::anyhow!("otlp.endpoint {:?}: write http://host:4318", target.endpoint);
        let url = format!("ws{}", rest.ok_or_else(wanted)?).parse().map_err(|_| wanted())?;
        let dial = TlsDial::new(&url)?;
        let shared = Arc::new(Shared::default());
        let model = target.model.clone();
        let losses = LogLimit::once_a_minute();
        let worker = Worker { dial, target, shared: shared.clone(), counted: 0, losses };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (queue, worker) = worker::start(THREAD, BOUNDS, move |items| worker.run(&items, &runtime))?;
        Ok(Self { outbox: Outbox { queue, shared }, model, worker })
    }

    /// Makes a trace of every call.
    pub fn calls(&self) -> TraceCalls {
        TraceCalls::new(self.outbox.clone(), &self.model)
    }

    /// Makes a record of every log line.
    pub fn logs(&self) -> LogLayer {
        LogLayer::new(self.outbox.clone())
    }

    /// Figures.
    pub fn gauge(&self) -> StatsHandle {
        StatsHandle(self.outbox.shared.clone())
    }

    /// Sends what waits, but not for ever: a collector that is away does not keep a process alive.
    pub fn stop(self) -> Stats {
        let Self { outbox, worker, .. } = self;
        if !worker.stop(STOP_PATIENCE) {
            tracing::warn!("the collector of traces does not answer: the last of them are lost");
        }
        outbox.shared.snapshot()
    }
}

/// Opens what the settings name. `None` when nothing is to be sent.
///
/// # Errors
/// As for [`Exporter::start`].
pub fn open(settings: &Settings, model: &str) -> anyhow::Result<Option<Exporter>> {
    let Settings { endpoint, headers, service } = settings;
    let Some(endpoint) = endpoint.clone() else { return Ok(None) };
    let (headers, service, model) = (headers.clone(), service.clone(), model.to_owned());
    Exporter::start(Target { endpoint, headers, service, model }).map(Some)
}

struct Worker {
    dial: TlsDial,
    target: Target,
    shared: Arc<Shared>,
    /// Of what was lost, so much has been looked at.
    counted: u64,
    losses: LogLimit,
}

impl Worker {
    fn run(mut self, items: &Batches<Item>, runtime: &Runtime) {
        loop {
            let (batch, stopping) = items.next(PACE);
            if batch.is_empty() && stopping && items.close() {
                return;
            }
            self.complain();
            // A process that stops tries once.
            runtime.block_on(self.send(batch, if stopping { 1 } else { ATTEMPTS }));
        }
    }

    async fn send(&self, batch: Vec<Item>, attempts: u32) {
        let (mut spans, mut logs) = (Vec::new(), Vec::new());
        for item in batch {
            match item {
                Item::Span(span) => spans.push(*span),
                Item::Log(record) => logs.push(*record),
            }
        }
        let service = &self.target.service;
        if !spans.is_empty() {
            let count = spans.len();
            let request = wire::TraceRequest::new(service, spans).encode_to_vec();
            self.deliver("/v1/traces", request, count, attempts).await;
        }
        if !logs.is_empty() {
            let count = logs.len();
            let request = wire::LogRequest::new(service, logs).encode_to_vec();
            self.deliver("/v1/logs", request, count, attempts).await;
        }
    }

    /// Logs what was lost, here and where there was no room, in one line a minute.
    fn complain(&mut self) {
        let lost = self.shared.lost.load(SeqCst);
        let times = lost - std::mem::replace(&mut self.counted, lost);
        if let Some(dropped) = self.losses.count(times) {
            let endpoint = &self.target.endpoint;
            tracing::warn!(endpoint, dropped, "traces and logs cannot be sent and are dropped");
        }
    }

    async fn deliver(&self, path: &str, request: Vec<u8>, count: usize, attempts: u32) {
        let mut wait = RETRY;
        for attempt in 1..=attempts {
            let sent = tokio::time::timeout(ATTEMPT, self.post(path, request.clone())).await;
            let again = match sent {
                Ok(Ok(status)) if status.is_success() => {
                    self.shared.sent.fetch_add(count as u64, SeqCst);
                    return;
                }
                // What was refused for what it is will be refused again.
                Ok(Ok(status)) => status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
                Ok(Err(_)) | Err(_) => true,
            };
            if !again {
                break;
            }
            if attempt < attempts {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
        }
        self.shared.lost.fetch_add(count as u64, SeqCst);
    }

    async fn post(&self, path: &str, request: Vec<u8>) -> anyhow::Result<StatusCode> {
        let stream = self.dial.dial().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let base = self.target.endpoint.trim_end_matches('/');
        let (_, authority) = base.split_once("://").unwrap_or_default();
        let (host, prefix) = authority.split_once('/').unwrap_or((authority, ""));
        let slash = if prefix.is_empty() { "" } else { "/" };
        let mut post = Request::post(format!("{slash}{prefix}{path}"))
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("bridge/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &self.target.headers {
            post = post.header(name, value.expose());
        }
        let answer = sender.send_request(post.body(Body::from(request))?);
        tokio::select! {
            biased;
            answer = answer => Ok(answer?.status()),
            closed = connection => {
                closed?;
                anyhow::bail!("the collector closed the connection")
            }
        }
    }
}
