//! What travels from calls and log lines to the thread that sends, and the end of the queue that they hold.

use super::wire::{LogRecord, Span};
use crate::export::worker::{Sender, Weigh};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// The thread that sends.
pub(super) const THREAD: &str = "otlp";

/// Figures of an exporter that outlive it. A handle.
#[derive(Clone)]
pub struct StatsHandle(pub(super) Arc<Shared>);

impl StatsHandle {
    /// What became of spans and log records so far.
    pub fn snapshot(&self) -> Stats {
        self.0.snapshot()
    }
}

/// What became of spans and log records so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Taken by the collector.
    pub sent: u64,
    /// Found no room, or could not be sent.
    pub lost: u64,
}

#[derive(Default)]
pub(super) struct Shared {
    pub(super) sent: AtomicU64,
    pub(super) lost: AtomicU64,
}

impl Shared {
    pub(super) fn snapshot(&self) -> Stats {
        Stats { sent: self.sent.load(SeqCst), lost: self.lost.load(SeqCst) }
    }
}

pub(super) enum Item {
    Span(Box<Span>),
    Log(Box<LogRecord>),
}

impl Weigh for Item {
    /// They are alike: their number bounds them.
    fn weight(&self) -> usize {
        0
    }
}

/// The end of the queue that calls and log lines hold.
#[derive(Clone)]
pub(super) struct Outbox {
    pub(super) queue: Sender<Item>,
    pub(super) shared: Arc<Shared>,
}

impl Outbox {
    pub(super) fn put(&self, item: Item) {
        if self.queue.send(item).is_err() {
            self.shared.lost.fetch_add(1, SeqCst);
        }
    }
}
