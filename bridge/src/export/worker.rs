//! One thread in the background and the bounded queue in front of it. Journal, store and OTLP export are built on it.
//!
//! A call only appends to memory, under a lock that is never held across a write. What finds no room is refused at once,
//! and the sender counts it. The thread takes batches: it lets items gather for a moment first, so a busy process pays for
//! no wake-up per item. An item occupies its room until the thread comes back for the next batch, so what is being written
//! is within the bounds, too.

use crate::base::clock;
use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What may wait, items that are being written included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) items: usize,
    /// In the measure of [`Weigh`].
    pub(crate) bytes: usize,
}

/// How the thread waits for a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Most items of a batch.
    pub(crate) batch: usize,
    /// How long items gather after the first has come.
    pub(crate) gather: Duration,
    /// How long the first is waited for; then the batch is empty.
    pub(crate) idle: Duration,
}

/// An item that can be queued.
pub(crate) trait Weigh {
    /// Bytes of memory it holds, roughly.
    fn weight(&self) -> usize;
}

struct Queue<T> {
    bounds: Bounds,
    state: Mutex<State<T>>,
    /// The first item has come, or the thread is to stop.
    changed: Condvar,
}

struct State<T> {
    /// With the time of each one's arrival.
    waiting: VecDeque<(Instant, T)>,
    waiting_bytes: usize,
    /// The batch that the thread holds.
    taken: usize,
    taken_bytes: usize,
    taken_since: Option<Instant>,
    /// The thread waits for the first item.
    is_idle: bool,
    stopping: bool,
    /// The thread has ended.
    is_closed: bool,
}

/// The end of the queue that takes items. A handle: clones share a queue.
pub(crate) struct Sender<T>(Arc<Queue<T>>);

/// The end of the queue that the thread holds.
pub(crate) struct Batches<T>(Arc<Queue<T>>);

/// The thread. It is told to stop when this is dropped.
pub(crate) struct Worker<T> {
    queue: Arc<Queue<T>>,
    /// Disconnected once the thread has ended; nothing is ever sent.
    ended: Mutex<Receiver<()>>,
}

/// Starts a thread that is called `name` and runs `work`, which comes back when it was told to stop.
///
/// # Errors
/// When no thread can be started.
pub(crate) fn start<T: Weigh + Send + 'static>(
    name: &str,
    bounds: Bounds,
    work: impl FnOnce(Batches<T>) + Send + 'static,
) -> io::Result<(Sender<T>, Worker<T>)> {
    let (sender, batches) = queue(bounds);
    let queue = sender.0.clone();
    let (done, ended) = sync_channel(0);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        work(batches);
        drop::<std::sync::mpsc::SyncSender<()>>(done);
    })?;
    Ok((sender, Worker { queue, ended: Mutex::new(ended) }))
}

/// A queue by itself.
pub(crate) fn queue<T>(bounds: Bounds) -> (Sender<T>, Batches<T>) {
    let state = State {
        waiting: VecDeque::new(),
        waiting_bytes: 0,
        taken: 0,
        taken_bytes: 0,
        taken_since: None,
        is_idle: false,
        stopping: false,
        is_closed: false,
    };
    let queue = Arc::new(Queue { bounds, state: Mutex::new(state), changed: Condvar::new() });
    (Sender(queue.clone()), Batches(queue))
}

impl<T> Queue<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        // Nothing can panic while this is locked; and if it did, the queue would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.state().stopping = true;
        self.changed.notify_all();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Weigh> Sender<T> {
    /// Puts an item into the queue.
    ///
    /// # Errors
    /// The item, when there is no room for it or the thread has ended.
    pub(crate) fn send(&self, item: T) -> Result<(), T> {
        let (weight, now) = (item.weight(), clock::now());
        let mut state = self.0.state();
        let Bounds { items, bytes } = self.0.bounds;
        let fits = state.waiting.len() + state.taken < items
            && state.waiting_bytes + state.taken_bytes + weight <= bytes;
        if !fits || state.is_closed {
            return Err(item);
        }
        state.waiting.push_back((now, item));
        state.waiting_bytes += weight;
        let wakes = std::mem::take(&mut state.is_idle);
        drop(state);
        if wakes {
            self.0.changed.notify_one();
        }
        Ok(())
    }
}

impl<T> Sender<T> {
    /// Items in the queue and in the batch that is being written, and their bytes.
    pub(crate) fn queued(&self) -> (usize, usize) {
        let state = self.0.state();
        (state.waiting.len() + state.taken, state.waiting_bytes + state.taken_bytes)
    }

    /// How long the oldest of them has been waiting.
    pub(crate) fn lag(&self) -> Duration {
        let state = self.0.state();
        let oldest = state.taken_since.or_else(|| state.waiting.front().map(|(at, _)| *at));
        oldest.map_or(Duration::ZERO, |at| clock::now().saturating_duration_since(at))
    }
}

impl<T: Weigh> Batches<T> {
    /// Gives back the room of the batch before and waits for the next one. Returns it, and whether the thread is to stop:
    /// it does when [`Batches::close`] lets it. A thread that is to stop is not made to wait.
    pub(crate) fn next(&self, pace: Pace) -> (Vec<T>, bool) {
        let mut state = self.0.state();
        (state.taken, state.taken_bytes, state.taken_since) = (0, 0, None);
        if state.waiting.is_empty() {
            state.is_idle = true;
            let empty = |state: &mut State<T>| state.waiting.is_empty() && !state.stopping;
            let waited = self.0.changed.wait_timeout_while(state, pace.idle, empty);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.is_idle = false;
        }
        if !state.waiting.is_empty() && state.waiting.len() < pace.batch {
            let gathers = |state: &mut State<T>| !state.stopping;
            let waited = self.0.changed.wait_timeout_while(state, pace.gather, gathers);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let taken = pace.batch.min(state.waiting.len());
        state.taken = taken;
        state.taken_since = state.waiting.front().map(|(at, _)| *at);
        let batch: Vec<T> = state.waiting.drain(..taken).map(|(_, item)| item).collect();
        state.taken_bytes = batch.iter().map(Weigh::weight).sum();
        state.waiting_bytes -= state.taken_bytes;
        (batch, state.stopping)
    }
}

impl<T> Batches<T> {
    /// Ends the queue if nothing waits in it: what is sent from now on is refused. Returns whether it did.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.0.state();
        state.is_closed = state.waiting.is_empty();
        state.is_closed
    }
}

impl<T> Drop for Batches<T> {
    fn drop(&mut self) {
        self.0.state().is_closed = true; // also where the thread panicked
    }
}

impl<T> Worker<T> {
    /// Has the thread write what waits and end. Returns whether it did within `patience`: what it writes to may hang, and
    /// must not keep a process alive.
    pub(crate) fn stop(self, patience: Duration) -> bool {
        self.queue.stop();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.recv_timeout(patience) != Err(RecvTimeoutError::Timeout)
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weigh for u32 {
        fn weight(&self) -> usize {
            *self as usize
        }
    }

    const LONG: Duration = Duration::from_secs(60);
    const AT_ONCE: Pace = Pace { batch: 100, gather: Duration::ZERO, idle: LONG };

    fn bounds(items: usize, bytes: usize) -> Bounds {
        Bounds { items, bytes }
    }

    /// A thread that takes a batch whenever it is let, and sends it here.
    fn on_demand(
        limits: Bounds,
        pace: Pace,
    ) -> (Sender<u32>, Worker<u32>, std::sync::mpsc::SyncSender<()>, Receiver<Vec<u32>>) {
        let (lets, let_by) = sync_channel::<()>(100);
        let (shows, shown) = sync_channel(100);
        let work = move |batches: Batches<u32>| {
            while let_by.recv().is_ok() {
                let (batch, stopping) = batches.next(pace);
                let ends = stopping && batch.is_empty() && batches.close();
                shows.send(batch).unwrap();
                if ends {
                    break;
                }
            }
        };
        let (sender, worker) = start("test", limits, work).unwrap();
        (sender, worker, lets, shown)
    }

    #[test]
    fn items_and_bytes_are_bounded_until_the_next_batch() {
        let (sender, _worker, lets, shown) = on_demand(bounds(3, 100), AT_ONCE);
        assert_eq!(
            [40, 40, 40, 20, 1].map(|item| sender.send(item).is_ok()),
            [true, true, false, true, false]
        );
        assert_eq!(sender.queued(), (3, 100));
        lets.send(()).unwrap();
        assert_eq!(shown.recv().unwrap(), [40, 40, 20]);
        assert_eq!((sender.queued(), sender.send(0)), ((3, 100), Err(0)), "they are being written");
        assert!(sender.lag() < LONG);
        lets.send(()).unwrap();
        while sender.queued().0 > 0 {
            std::thread::yield_now();
        }
        assert_eq!(sender.lag(), Duration::ZERO);
        assert_eq!(sender.send(7), Ok(()), "it wakes a thread that waits for the first");
        assert_eq!(shown.recv().unwrap(), [7]);
    }

    #[test]
    fn a_batch_has_a_most_and_the_order_is_kept() {
        let (sender, _worker, lets, shown) = on_demand(bounds(100, 1_000), Pace { batch: 2, ..AT_ONCE });
        (1..=5).for_each(|item| sender.send(item).unwrap());
        for expected in [vec![1, 2], vec![3, 4], vec![5]] {
            lets.send(()).unwrap();
            assert_eq!(shown.recv().unwrap(), expected);
        }
    }

    #[test]
    fn items_gather_and_a_stop_cuts_the_wait_short() {
        let (sender, worker, lets, shown) = on_demand(bounds(100, 1_000), Pace { gather: LONG, ..AT_ONCE });
        sender.send(1).unwrap();
        lets.send(()).unwrap();
        lets.send(()).unwrap();
        sender.send(2).unwrap();
        assert!(worker.stop(LONG));
        assert_eq!(
            shown.iter().collect::<Vec<_>>(),
            [vec![1, 2], Vec::new()],
            "it writes what waits, then ends"
        );
        assert_eq!((sender.send(3), sender.queued()), (Err(3), (0, 0)), "and takes no more");
    }

    #[test]
    fn an_idle_thread_comes_back_with_nothing() {
        let (_sender, _worker, lets, shown) =
            on_demand(bounds(1, 1), Pace { idle: Duration::from_millis(1), ..AT_ONCE });
        lets.send(()).unwrap();
        assert!(shown.recv().unwrap().is_empty());
    }

    #[test]
    fn a_thread_that_hangs_is_not_waited_for() {
        let (sender, worker, lets, _shown) = on_demand(bounds(9, 9), AT_ONCE);
        sender.send(1).unwrap();
        assert!(!worker.stop(Duration::from_millis(1)));
        drop(lets);
    }

    #[test]
    fn what_is_sent_to_a_thread_that_panicked_comes_back() {
        let work = |_batches: Batches<u32>| panic!("as if it had a bug");
        let (sender, worker) = start("panics", bounds(9, 9), work).unwrap();
        assert!(worker.stop(LONG), "it has ended");
        assert_eq!(sender.send(1), Err(1));
    }
}
