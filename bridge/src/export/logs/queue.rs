//! Log lines on their way to standard error: a bounded queue and one thread that writes.
//!
//! A call only ever appends to memory. The thread writes as fast as the reader of standard error takes it; when the
//! reader stalls, the queue fills, further lines are dropped and counted, and one line names their number as soon as
//! lines flow again. The lock is never held across a write.

use crate::base::text::{Escape, escape};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of log lines that may wait, those being written included.
pub const QUEUE_BYTES: usize = 4 << 20;
/// How long a process that ends waits for the reader of its log.
pub const FLUSH_PATIENCE: Duration = Duration::from_secs(1);
/// From one attempt to the next where standard error does not block and has no room.
const RETRY: Duration = Duration::from_millis(10);

struct Shared {
    limit: usize,
    state: Mutex<State>,
    /// There is something to write, or nothing more will come.
    arrived: Condvar,
    /// All that had arrived was written.
    idle: Condvar,
    lost: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Whole lines.
    waiting: Vec<u8>,
    /// How many.
    lines: u64,
    /// Bytes that the thread is writing.
    in_flight: usize,
    /// Lines dropped since that was last logged.
    dropped: u64,
    closed: bool,
}

/// The end of the queue that takes lines. A handle: clones share a queue.
#[derive(Clone)]
pub struct LogQueue {
    shared: Arc<Shared>,
    escape: Escape,
}

/// Ends the thread when dropped, once what waits is written or [`FLUSH_PATIENCE`] is over.
pub struct LogGuard(LogQueue);

impl LogGuard {
    /// The queue.
    pub fn queue(&self) -> LogQueue {
        self.0.clone()
    }

    /// Writes a line.
    pub(crate) fn show(&self, line: &str) {
        self.0.push(format!("{line}\n").as_bytes());
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.flush(FLUSH_PATIENCE);
        self.0.state().closed = true;
        self.0.shared.arrived.notify_all();
    }
}

impl LogQueue {
    /// Starts the thread that writes to `out`. `dropped` is called there with the number of lines that found no room,
    /// once lines flow again.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(
        out: impl Write + Send + 'static,
        escape: Escape,
        limit: usize,
        dropped: impl Fn(u64) + Send + 'static,
    ) -> io::Result<LogGuard> {
        let (arrived, idle) = (Condvar::new(), Condvar::new());
        let shared = Shared { limit, state: Mutex::default(), arrived, idle, lost: AtomicU64::new(0) };
        let queue = Self { shared: Arc::new(shared), escape };
        let shared = queue.shared.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || shared.write_to(out, dropped))?;
        Ok(LogGuard(queue))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// Takes a line with its line break, or drops and counts it. Never waits for a write.
    pub fn push(&self, line: &[u8]) {
        let line = escape(line, self.escape);
        let mut state = self.state();
        if state.waiting.len() + state.in_flight + line.len() > self.shared.limit {
            state.dropped += 1;
            drop(state);
            self.shared.lost.fetch_add(1, Relaxed);
            return self.shared.arrived.notify_one();
        }
        let is_first = state.waiting.is_empty();
        state.waiting.extend_from_slice(&line);
        state.lines += 1;
        drop(state);
        if is_first {
            self.shared.arrived.notify_one();
        }
    }

    /// Waits until everything that was taken is written, for `patience` at most. Returns whether it is.
    pub fn flush(&self, patience: Duration) -> bool {
        let waits = |state: &mut State| !state.waiting.is_empty() || state.in_flight > 0 || state.dropped > 0;
        let waited = self.shared.idle.wait_timeout_while(self.state(), patience, waits);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Lines dropped so far.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Relaxed)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while this is locked; and if it did, the queue would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut out: impl Write, dropped: impl Fn(u64)) {
        // Lines that the reader refused; a reader that reads again learns of them, too.
        let mut refused = 0;
        loop {
            let waits = |state: &mut State| state.waiting.is_empty() && state.dropped == 0 && !state.closed;
            let state = self.arrived.wait_while(self.state(), waits);
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            if state.waiting.is_empty() && state.dropped == 0 {
                return;
            }
            let State { waiting, lines, in_flight, dropped: untold, .. } = &mut *state;
            let (batch, lines) = (std::mem::take(waiting), std::mem::take(lines));
            let mut untold = std::mem::take(untold);
            *in_flight = batch.len();
            drop(state);

            match write_all(&mut out, &batch) {
                Ok(()) => untold += std::mem::take(&mut refused),
                // A reader that is gone, or a full disk: the log has no other place.
                Err(_) => {
                    refused += lines + std::mem::take(&mut untold);
                    self.lost.fetch_add(lines, Relaxed);
                }
            }
            self.state().in_flight = 0;
            if untold > 0 {
                dropped(untold);
            }
            let state = self.state();
            if state.waiting.is_empty() && state.dropped == 0 {
                self.idle.notify_all();
            }
        }
    }
}

/// Writes all of it, also where standard error was set not to block.
fn write_all(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    out.flush()
}

impl Write for LogQueue {
    /// One call is one line: that is how the formatter writes.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    /// A reader that takes what it is let to take.
    struct Pipe {
        taken: SyncSender<Vec<u8>>,
        lets: Receiver<io::Result<()>>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.lets.recv().unwrap_or(Ok(()))?;
            let _ = self.taken.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn pipe() -> (Pipe, Receiver<Vec<u8>>, SyncSender<io::Result<()>>) {
        let (taken, reads) = sync_channel(100);
        let (lets, let_by) = sync_channel(100);
        (Pipe { taken, lets: let_by }, reads, lets)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn lines_that_find_no_room_are_dropped_counted_and_named_once_when_lines_flow_again() {
        let (out, reads, lets) = pipe();
        let (told, dropped) = sync_channel(10);
        let guard = LogQueue::start(out, Escape::Text, 100, move |lines| told.send(lines).unwrap()).unwrap();
        let queue = guard.queue();
        queue.push(b"first\n");
        // Whether the thread holds the first line already or not, no more than 100 bytes wait.
        for _ in 0..50 {
            queue.push(b"0123456789012345678\n");
        }
        assert_eq!(queue.lost(), 46);
        assert!(!queue.flush(Duration::ZERO), "the reader has taken nothing");
        drop(lets);
        assert_eq!(dropped.recv().unwrap(), 46);
        assert!(queue.flush(LONG));
        let text: Vec<u8> = reads.try_iter().flatten().collect();
        assert_eq!(text.len(), 6 + 4 * 20);
        assert!(dropped.try_recv().is_err(), "once");
        queue.push(b"again\n");
        assert!(queue.flush(LONG));
        assert_eq!(reads.recv().unwrap(), b"again\n");
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_and_named_at_once() {
        let (out, _reads, _lets) = pipe();
        let (tell, told) = sync_channel(10);
        let guard = LogQueue::start(out, Escape::Text, 100, move |lines| tell.send(lines).unwrap()).unwrap();
        guard.queue().push(&[b'x'; 101]);
        assert_eq!(told.recv().unwrap(), 1);
    }

    #[test]
    fn what_waits_is_written_when_the_guard_goes_and_a_stalled_reader_does_not_hold_it_for_ever() {
        let (out, reads, lets) = pipe();
        let guard = LogQueue::start(out, Escape::Text, 100, |_| {}).unwrap();
        lets.send(Ok(())).unwrap();
        guard.queue().push(b"last words\n");
        drop(guard);
        assert_eq!(reads.try_recv().unwrap(), b"last words\n");

        let (out, _reads, _lets) = pipe();
        let guard = LogQueue::start(out, Escape::Text, 100, |_| {}).unwrap();
        guard.queue().push(b"never read\n");
        drop(guard);
    }

    #[test]
    fn a_reader_that_is_gone_costs_its_lines_and_no_more() {
        let (out, reads, lets) = pipe();
        let (tell, told) = sync_channel(10);
        let guard = LogQueue::start(out, Escape::Text, 100, move |lines| tell.send(lines).unwrap()).unwrap();
        lets.send(Err(io::ErrorKind::BrokenPipe.into())).unwrap();
        guard.queue().push(b"lost\n");
        assert!(guard.queue().flush(LONG));
        assert_eq!(guard.queue().lost(), 1);
        lets.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        lets.send(Err(io::ErrorKind::Interrupted.into())).unwrap();
        drop(lets);
        guard.queue().push(b"kept\n");
        assert!(guard.queue().flush(LONG));
        assert_eq!((reads.recv().unwrap().as_slice(), guard.queue().lost()), (&b"kept\n"[..], 1));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [1], "a reader that reads again learns of it");
    }
}
