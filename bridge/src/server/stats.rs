//! What a server is doing now: its calls, its connections, and what it has refused.

use crate::base::clock;
use crate::base::log_limit::LogLimit;
use crate::call::Control;
use crate::runtime::registry::{CallKey, Registry};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinError};

/// How often it is measured how late the process comes to its tasks.
const LAG_EVERY: Duration = Duration::from_millis(100);

/// What became of the connections of all listeners of the process.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) open: AtomicUsize,
    /// Closed because too many came behind them.
    pub(crate) evicted: AtomicU64,
    /// Closed as they came: there were too many, and none was idle.
    pub(crate) turned_away: AtomicU64,
    /// Closed because the other side did not take its answers.
    pub(crate) unread: AtomicU64,
    /// Attempts to take one that failed.
    pub(crate) unaccepted: AtomicU64,
    /// Requests begin one behind the other, and calls have their turn in between: however many are asked for at once,
    /// they are not what a call has to wait for.
    pub(crate) entrance: tokio::sync::Mutex<()>,
    pub(crate) crowded: LogLimit,
    pub(crate) unread_line: LogLimit,
    pub(crate) unaccepted_line: LogLimit,
}

/// When no further call is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// Most calls at once.
    pub max_calls: usize,
    /// How late the process may come to its tasks, ms; 0 for no limit.
    pub loop_lag_ms_max: u64,
}

/// What a server is doing now. A handle: clones see the same server.
#[derive(Clone, Default)]
pub struct Stats(pub(crate) Arc<Shared>);

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) active: AtomicUsize,
    pub(crate) calls: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) panicked: AtomicU64,
    pub(crate) unsigned: AtomicU64,
    /// Streams that were closed before they were admitted, and webhooks of calls that are over.
    pub(crate) rejected: AtomicU64,
    pub(crate) replayed: AtomicU64,
    /// WebSockets whose stream was not admitted yet.
    pub(crate) unadmitted: AtomicUsize,
    /// How late the process comes to its tasks, microseconds.
    pub(crate) lag_us: AtomicU64,
    pub(crate) draining: AtomicBool,
    /// Connections of every listener that are no calls.
    pub(crate) connections: Counts,
    pub(crate) unsigned_line: LogLimit,
    pub(crate) rejected_line: LogLimit,
    pub(crate) refused_line: LogLimit,
    /// A call, or an upgrade on its way to one, has ended.
    pub(crate) freed: Notify,
    pub(crate) sessions: Mutex<Sessions>,
}

#[derive(Default)]
pub(crate) struct Sessions {
    pub(crate) registry: Registry,
    /// Which call carries which stream.
    pub(crate) streams: BTreeMap<String, CallKey>,
    pub(crate) controls: BTreeMap<CallKey, mpsc::Sender<Control>>,
    /// Streams that were not admitted yet, oldest first.
    pub(crate) unadmitted: BTreeMap<CallKey, AbortHandle>,
}

impl Stats {
    /// Calls now, and upgrades on their way to one.
    pub fn active(&self) -> usize {
        self.0.active.load(SeqCst)
    }

    /// Phone calls with an owner: callSids in the registry.
    pub fn registered(&self) -> usize {
        self.sessions().registry.len()
    }

    /// Calls carried so far.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(SeqCst)
    }

    /// Upgrades refused so far.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(SeqCst)
    }

    /// Requests refused because Twilio had not signed them.
    pub fn unsigned(&self) -> u64 {
        self.0.unsigned.load(SeqCst)
    }

    /// Connections now, of every listener, that are no calls.
    pub fn connections_open(&self) -> usize {
        self.0.connections.open.load(SeqCst)
    }

    /// Connections closed because too many came behind them, or as they came because none was idle.
    pub fn connections_evicted(&self) -> u64 {
        self.0.connections.evicted.load(SeqCst) + self.0.connections.turned_away.load(SeqCst)
    }

    /// Connections closed because their answers were not read.
    pub fn connections_unread(&self) -> u64 {
        self.0.connections.unread.load(SeqCst)
    }

    /// Connections that could not be taken, for want of descriptors mostly.
    pub fn connections_unaccepted(&self) -> u64 {
        self.0.connections.unaccepted.load(SeqCst)
    }

    pub(crate) fn connections(&self) -> &Counts {
        &self.0.connections
    }

    /// Streams closed before they were admitted: without their token, without `start`, or to make room for another.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(SeqCst)
    }

    /// Webhooks refused because they had been answered before and their call was over.
    pub fn replayed(&self) -> u64 {
        self.0.replayed.load(SeqCst)
    }

    /// How late the process comes to its tasks, by its worst of the last second or so.
    pub fn loop_lag(&self) -> Duration {
        Duration::from_micros(self.0.lag_us.load(SeqCst))
    }

    /// Panics so far.
    pub fn panicked(&self) -> u64 {
        self.0.panicked.load(SeqCst)
    }

    /// No new calls are taken any more.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(SeqCst)
    }

    /// Ends a call politely. Returns whether there was one.
    pub fn hang_up(&self, call: CallKey) -> bool {
        self.tell(call, Control::HangUp)
    }

    pub(crate) fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Nothing can panic while this is locked; and if it did, the maps would still be whole.
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that has eight control messages unanswered is on its way out already.
    pub(crate) fn tell(&self, call: CallKey, control: Control) -> bool {
        self.sessions().controls.get(&call).is_some_and(|to| to.try_send(control).is_ok())
    }

    /// Twilio reports that this stream has ended; its call may be over already, or not be one of this bridge.
    pub(crate) fn stream_over(&self, stream_sid: &str, failed: bool) {
        let call = self.sessions().streams.get(stream_sid).copied();
        if let Some(call) = call {
            self.tell(call, Control::StreamOver { failed });
        }
    }

    /// Why no further call would be taken now, if none would.
    pub(crate) fn no_room(&self, limits: CallLimits) -> Option<&'static str> {
        let late =
            limits.loop_lag_ms_max > 0 && self.loop_lag() > Duration::from_millis(limits.loop_lag_ms_max);
        match () {
            () if self.is_draining() => Some("shutting down: no new calls"),
            () if self.active() >= limits.max_calls => Some("all lines are busy"),
            () if late => Some("this machine is too busy for one more call"),
            () => None,
        }
    }

    /// Takes a place for a call, if there is one.
    pub(crate) fn admit(&self, limits: CallLimits) -> Result<CallPermit, &'static str> {
        if let Some(why) = self.no_room(limits) {
            return Err(why);
        }
        self.line(limits)
    }

    /// The same for a call whose webhook was answered already.
    pub(crate) fn line(&self, limits: CallLimits) -> Result<CallPermit, &'static str> {
        let more = |active| (active < limits.max_calls).then_some(active + 1);
        match self.0.active.fetch_update(SeqCst, SeqCst, more) {
            Ok(_) => Ok(CallPermit(self.clone())),
            Err(_) => Err("all lines are busy"),
        }
    }

    pub(crate) fn refuse(&self, why: &str) {
        self.0.refused.fetch_add(1, SeqCst);
        if let Some(left_out) = self.0.refused_line.may() {
            tracing::warn!(
                active = self.active(),
                lag_ms = self.loop_lag().as_millis() as u64,
                why,
                left_out,
                "a call was refused"
            );
        }
    }

    /// Counts a stream or a webhook that got nothing. Not each is logged: a client with one signature can have many.
    pub(crate) fn reject(&self, counter: impl Fn(&Shared) -> &AtomicU64, why: &str) {
        counter(&self.0).fetch_add(1, SeqCst);
        if let Some(left_out) = self.0.rejected_line.may() {
            tracing::warn!(why, left_out, "signed, but rejected");
        }
    }

    /// Measures for ever how late the process comes to a task that is due.
    pub(crate) async fn measure_lag(self) {
        clock::lateness(LAG_EVERY, |late| {
            let late = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
            // A stall is remembered for about a second: what caused it is seldom over with it.
            let faded = self.0.lag_us.load(SeqCst) / 4 * 3;
            self.0.lag_us.store(late.max(faded), SeqCst);
        })
        .await;
    }

    pub(crate) fn count_panic(&self, error: &JoinError) {
        if error.is_panic() {
            self.0.panicked.fetch_add(1, SeqCst);
            // The error itself would repeat the panic's words.
            tracing::error!("a task panicked; the others go on");
        }
    }
}

/// One of `max_calls`, given back when dropped.
pub(crate) struct CallPermit(Stats);

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.0.0.active.fetch_sub(1, SeqCst);
        self.0.0.freed.notify_one();
    }
}

/// A WebSocket whose stream was not admitted yet; counted until it is, or is gone.
pub(crate) struct Unadmitted(Stats);

impl Unadmitted {
    pub(crate) fn new(stats: &Stats) -> Self {
        stats.0.unadmitted.fetch_add(1, SeqCst);
        Self(stats.clone())
    }
}

impl Drop for Unadmitted {
    fn drop(&mut self) {
        self.0.0.unadmitted.fetch_sub(1, SeqCst);
        self.0.0.freed.notify_one();
    }
}
