//! Logs: what happened, to which call, never what anyone said.
//!
//! A call's start and end are `info`, a caller who had to be told that it cannot go on is `warn`, a change of
//! phase is `debug`. Every line of a call carries its key and, once known, its callSid and streamSid.

mod queue;

pub use queue::{FLUSH_PATIENCE, LogGuard, LogQueue, QUEUE_BYTES};

use crate::base::text::Escape;
use crate::call::event::{CallEvent, Floor, RenewalOutcome, ToolOutcome};
use crate::call::settings::{END_CALL, TRANSFER_CALL};
use crate::runtime::observe::Observe;
use crate::runtime::registry::CallKey;
use serde::{Deserialize, Serialize};
use std::io::{self, IsTerminal as _};
use std::panic::PanicHookInfo;
use std::time::{Duration, Instant};
use tracing::{Level, Metadata, debug, info, trace, warn};
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::layer::{Layer, Layered, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry};

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Lines for people or for machines.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or filters such as `info,bridge=debug`.
    pub level: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which lines may be logged at all, whatever `log.level` asks for.
pub type Ceiling = FilterFn<fn(&Metadata<'_>) -> bool>;

/// Receives every line that passes the filters, beside standard error.
pub type AlsoTo = Box<dyn Layer<Layered<EnvFilter, Layered<Ceiling, Registry>>> + Send + Sync>;

/// Libraries stay at `debug`: at `trace` the WebSocket library writes whole messages, and with them the key of the
/// project, words, digits and tokens.
fn ceiling() -> Ceiling {
    filter_fn(|line| {
        let target = line.target();
        let is_own = target == "bridge" || target.starts_with("bridge::");
        is_own || *line.level() <= Level::DEBUG
    })
}

/// Sends the process's logs through a bounded queue to standard error, and to another receiver. Lines that wait are
/// written when the guard is dropped.
///
/// # Errors
/// When `log.level` is no filter, no thread can be started, or logs were installed before.
pub fn install(log: &Settings, also_to: Option<AlsoTo>) -> anyhow::Result<LogGuard> {
    let filter = EnvFilter::try_new(&log.level)?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = io::stderr().is_terminal() && !no_color;
    let escape = match log.format {
        LogFormat::Json => Escape::Json,
        LogFormat::Text if colours => Escape::Coloured,
        LogFormat::Text => Escape::Text,
    };
    let guard = LogQueue::start(io::stderr(), escape, QUEUE_BYTES, |lines| {
        tracing::error!("{lines} log lines were dropped: standard error was not read fast enough");
    })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(colours)
        .log_internal_errors(false) // it would write to standard error itself
        .with_writer(guard.queue());
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let log = tracing_subscriber::registry().with(ceiling()).with(filter).with(also_to).with(lines);
    log.try_init().map_err(|error| anyhow::anyhow!("cannot install the log: {error}"))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(guard)
}

/// Logs where a panic happened. The standard hook would wait for the reader of standard error, in a call's own task.
/// Only words that stand in the code are written: what was put together may hold words of a call.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let at = panic.location().map(ToString::to_string);
    let words = panic.payload().downcast_ref::<&'static str>();
    let thread = std::thread::current();
    let backtrace = std::backtrace::Backtrace::capture();
    let captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
    let backtrace = captured.then(|| backtrace.to_string());
    // Without the spans around it: one of them may be locked by what panicked.
    tracing::error!(parent: None, at, words, thread = thread.name(), backtrace, "a panic");
}

/// Writes the last lines of a process to standard error, without waiting for ever for a reader that has stalled.
pub fn last_words(lines: &str) {
    if let Ok(guard) = LogQueue::start(io::stderr(), Escape::Text, QUEUE_BYTES, |_| {}) {
        lines.lines().for_each(|line| guard.show(line));
    }
}

/// Writes what happens on calls to the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogCalls;

impl Observe for LogCalls {
    fn event(&self, _call: CallKey, _now: Instant, event: &CallEvent) {
        // The call itself is named by the span that every event happens in.
        match event {
            CallEvent::Started { .. } => info!("call started"),
            CallEvent::Dialing => debug!("dialing the model"),
            CallEvent::Dialed { outcome, took } => {
                debug!(outcome = outcome.name(), took_ms = ms(*took), "the dial is over");
            }
            CallEvent::Session { .. } => debug!("the model opened a session"),
            CallEvent::Live { after } => debug!(after_ms = ms(*after), "live"),
            CallEvent::Unprotected { why, silenced } => {
                debug!(why = why.name(), silenced_ms = ms(*silenced), "the protected window is over");
            }
            CallEvent::SpeechStarted => debug!("the caller speaks"),
            CallEvent::SpeechStopped => debug!("the caller's turn ended"),
            CallEvent::BargeIn { item, heard, discarded } => {
                let item = item.as_deref();
                debug!(item, heard_ms = ms(*heard), discarded_ms = ms(*discarded), "barge-in");
            }
            CallEvent::Silenced { after } => debug!(after_ms = ms(*after), "playback is silent"),
            // Every frame may change these.
            CallEvent::Said(_) => {}
            CallEvent::Floor(Floor { caller, agent }) => trace!(caller, agent, "the floor"),
            CallEvent::Speaking { response, after } => {
                debug!(response = response.as_str(), after_ms = after.map(ms), "the agent speaks");
            }
            CallEvent::ResponseDone { response, status, usage } => {
                let tokens = usage.map(|usage| usage.total);
                debug!(response = response.as_str(), status = status.as_str(), tokens, "response done");
            }
            CallEvent::Keypad { keys, entry: _ } => debug!(keys, "keypad entry"),
            CallEvent::ToolCalled { call_id, name, arguments: _ } => {
                debug!(call_id = call_id.as_str(), name = name.as_str(), "function called");
            }
            CallEvent::ToolAnswered { name, outcome, why, took, .. }
                if [END_CALL, TRANSFER_CALL].contains(&name.as_str()) && *outcome != ToolOutcome::Done =>
            {
                let (outcome, took_ms) = (outcome.name(), took.map(ms));
                warn!(name = name.as_str(), outcome, why, took_ms, "the call was not ended or put through");
            }
            CallEvent::ToolAnswered { call_id, name, outcome, why, took, output: _ } => debug!(
                call_id = call_id.as_str(),
                name = name.as_str(),
                outcome = outcome.name(),
                why,
                took_ms = took.map(ms),
                "function answered"
            ),
            CallEvent::ToolLoop { rounds } => {
                warn!(rounds, "the model calls functions again and again: it may call no more for now");
            }
            CallEvent::ModelError { code } => debug!(code = code.as_str(), "the model reported a problem"),
            CallEvent::Tolerated { what } => debug!(what = what.as_str(), "tolerated"),
            CallEvent::TimerFired(timer) => debug!(timer = timer.name(), "timer fired"),
            CallEvent::Renewing => debug!("the session is given up for another one"),
            CallEvent::Renewal { outcome: RenewalOutcome::Renewed, took, tries, items } => {
                info!(took_ms = ms(*took), tries, items, "another session goes on with the call");
            }
            CallEvent::Renewal { outcome, took, tries, .. } => {
                let outcome = outcome.name();
                warn!(outcome, took_ms = ms(*took), tries, "the session was not renewed");
            }
            CallEvent::ExpiringSoon => debug!("the session nears its maximum duration"),
            CallEvent::Notice { reason } => {
                warn!(reason = reason.name(), "the caller is told that the call ends")
            }
            CallEvent::Ended { reason, detail, lasted, counts, transcript } => info!(
                reason = reason.name(),
                detail = detail.as_str(),
                lasted_ms = ms(*lasted),
                lines = transcript.len(),
                caller_frames = counts.caller_frames,
                filled_ms = counts.filled_ms,
                dropped_uplink_ms = counts.dropped_uplink_ms,
                protected_ms = counts.protected_ms,
                deltas = counts.deltas,
                stale_bytes = counts.stale_bytes,
                sent_ms = counts.sent_ms,
                barge_ins = counts.barge_ins,
                truncations = counts.truncations,
                unknown = counts.unknown,
                malformed = counts.malformed,
                lost_marks = counts.lost_marks,
                errors = counts.errors,
                refused_outputs = counts.refused_outputs,
                unannounced = counts.unannounced,
                tool_loops = counts.tool_loops,
                retries = counts.retries,
                peak_held_bytes = counts.peak_held_bytes,
                forgotten_items = counts.forgotten_items,
                "call ended"
            ),
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::event::{Counts, EndReason, Line, Private, Said, Speaker};
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_a_stranger_wrote_begins_a_line_of_its_own_or_colours_it() {
        let hostile = "CA1\n2026-01-01 ERROR forged\r\u{1b}[31m\"";
        for json in [false, true] {
            let paper = Paper::default();
            let writer = paper.clone();
            let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new("trace")).with_ansi(false);
            let log: Box<dyn tracing::Subscriber + Send + Sync> = if json {
                Box::new(log.json().with_writer(move || writer.clone()).finish())
            } else {
                Box::new(log.with_writer(move || writer.clone()).finish())
            };
            tracing::subscriber::with_default(log, || {
                let call = tracing::error_span!("call", call_sid = tracing::field::Empty);
                call.record("call_sid", hostile);
                let _call = call.entered();
                let now = crate::base::clock::now();
                let what = format!("unknown event {hostile}");
                LogCalls.event(CallKey(1), now, &CallEvent::Tolerated { what });
                LogCalls.event(CallKey(1), now, &CallEvent::ModelError { code: hostile.into() });
            });
            let written = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
            assert_eq!(written.lines().count(), 2, "{written:?}");
            let raw = |c: char| c.is_control() && c != '\n';
            assert!(written.contains("forged") && !written.contains(raw), "{written:?}");
        }
    }

    #[test]
    fn nothing_that_was_said_pressed_or_passed_to_a_function_is_logged() {
        let paper = Paper::default();
        let writer = paper.clone();
        let log = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("trace"))
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let secret = || Private::new("my secret");
        assert_eq!(format!("{:?}", secret()), "<9 bytes>");
        let (item, call_id, name) = (|| "item_1".to_owned(), || "call_1".to_owned(), || "f".to_owned());
        let (speaker, text, cut) = (Speaker::Caller, "my secret".into(), false);
        let events = [
            CallEvent::Said(Said::More { item: item(), speaker, words: secret() }),
            CallEvent::Said(Said::Line(Line { item: item(), place: 1, speaker, text, cut })),
            CallEvent::Keypad { keys: 9, entry: secret() },
            CallEvent::ToolCalled { call_id: call_id(), name: name(), arguments: secret() },
            CallEvent::ToolAnswered {
                call_id: call_id(),
                name: name(),
                outcome: ToolOutcome::Done,
                took: None,
                why: None,
                output: secret(),
            },
        ];
        tracing::subscriber::with_default(log, || {
            events.iter().for_each(|event| LogCalls.event(CallKey(1), crate::base::clock::now(), event));
        });
        let written = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        assert!(written.contains("keypad entry") && written.contains("function answered"), "{written}");
        assert!(!written.contains("secret"), "{written}");
    }

    #[test]
    fn the_end_is_logged_with_its_numbers_and_without_a_word_of_the_call() {
        let paper = Paper::default();
        let writer = paper.clone();
        let log = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("trace"))
            .json()
            .with_writer(move || writer.clone())
            .finish();
        let said = Line {
            item: "item_1".into(),
            place: 1,
            speaker: Speaker::Caller,
            text: "my secret".into(),
            cut: false,
        };
        tracing::subscriber::with_default(log, || {
            let _call = tracing::error_span!("call", call_sid = "CA1").entered();
            LogCalls.event(
                CallKey(1),
                crate::base::clock::now(),
                &CallEvent::Ended {
                    reason: EndReason::Stopped,
                    detail: "stop".into(),
                    lasted: Duration::from_millis(1_234),
                    counts: Box::new(Counts { barge_ins: 7, ..Counts::default() }),
                    transcript: vec![said],
                },
            );
        });
        let written = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["span"]["call_sid"], "CA1");
        let fields = &line["fields"];
        assert_eq!((&fields["reason"], &fields["lasted_ms"]), (&"stopped".into(), &1_234.into()));
        assert_eq!((&fields["barge_ins"], &fields["lines"]), (&7.into(), &1.into()));
        assert!(!written.contains("secret"), "{written}");
    }
}
