//! The bridge's own process, when we are to start it: its output is kept, its end is noticed, and all of it is ended.

use anyhow::{Context as _, bail, ensure};
use mocks::net::Url;
use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How long a bridge may take until it listens.
const READY: Duration = Duration::from_secs(60);
/// How long it may take to stop when it is asked to.
const STOP: Duration = Duration::from_secs(5);
/// Lines of its output that are kept.
const KEPT: usize = 20_000;

/// A command line, run by the shell, in a process group of its own.
pub(super) struct Process {
    command: String,
    child: Child,
    /// Its process group, which outlives it.
    group: Option<u32>,
    said: Output,
}

/// What a bridge printed. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Output(Arc<Mutex<VecDeque<String>>>);

impl Output {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The last lines, each on its own.
    pub(super) fn last(&self, most: usize) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().skip(lines.len().saturating_sub(most)).cloned().collect()
    }

    async fn keep(self, from: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(from).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            self.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    }
}

impl Process {
    /// Starts it and waits until it listens where it is to be called.
    ///
    /// # Errors
    /// When it cannot be started, ends, or never listens. The message has the last words of its output.
    pub(super) async fn start(command: &str, place: &Url, said: Output) -> anyhow::Result<Self> {
        let taken = TcpStream::connect((place.host.as_str(), place.port)).await.is_ok();
        ensure!(
            !taken,
            "something listens at {place} already, and would be judged instead of `{command}`: stop it, or leave \
             --spawn away"
        );
        let child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start `{command}`"))?;
        let group = child.id();
        let mut process = Self { command: command.to_owned(), child, group, said };
        if let Some(out) = process.child.stdout.take() {
            tokio::spawn(process.said.clone().keep(out));
        }
        if let Some(err) = process.child.stderr.take() {
            tokio::spawn(process.said.clone().keep(err));
        }
        let listens = async {
            while TcpStream::connect((place.host.as_str(), place.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let how = tokio::select! {
            biased;
            ended = process.child.wait() => match ended {
                Ok(status) => format!("ended ({status}) before it listened at {place}"),
                Err(error) => format!("cannot be waited for: {error}"),
            },
            ready = tokio::time::timeout(READY, listens) => match ready {
                Ok(()) => return Ok(process),
                Err(_) => format!("does not listen at {place} after {} s", READY.as_secs()),
            },
        };
        let last: String = process.said.last(20).iter().map(|line| format!("\n  {line}")).collect();
        process.stop().await;
        bail!("`{command}` {how}{last}")
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// The same command, started anew.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub(super) async fn again(mut self, place: &Url) -> anyhow::Result<Self> {
        self.stop().await;
        Self::start(&self.command, place, self.said.clone()).await
    }

    /// Ends it and all that it started: asked first, then not asked.
    pub(super) async fn stop(&mut self) {
        self.tell("TERM").await;
        if !self.is_gone().await {
            self.tell("KILL").await;
            // Nothing of it runs any more, or nothing can be done about it.
            let _gone = self.is_gone().await;
        }
    }

    /// Waits for a while until no process of the group is left.
    async fn is_gone(&mut self) -> bool {
        let gone = async {
            while self.tell("0").await {
                // A child that has ended is still of the group until it is waited for.
                let _looked = self.child.try_wait();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(STOP, gone).await.is_ok()
    }

    /// Sends a signal to the whole group. False when no process of it is left.
    async fn tell(&self, signal: &str) -> bool {
        let Some(group) = self.group else { return false };
        let kill = Command::new("sh").args(["-c", &format!("kill -s {signal} -- -{group}")]).output().await;
        kill.is_ok_and(|kill| kill.status.success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere() -> Url {
        "ws://127.0.0.1:9/x".parse().unwrap()
    }

    #[tokio::test]
    async fn a_bridge_that_does_not_come_up_is_reported_with_its_last_words() {
        let started = Process::start("echo no key; exit 3", &nowhere(), Output::default()).await;
        let error = started.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("exit status: 3") && error.contains("no key"), "{error}");
    }

    #[tokio::test]
    async fn a_bridge_is_ended_with_all_that_it_started() {
        let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let place: Url = format!("ws://{address}/").parse().unwrap();
        let said = Output::default();
        let command = "trap '' TERM; sleep 60 & echo pid $!; exec sleep 2";
        let listens = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            tokio::net::TcpListener::bind(address).await.unwrap()
        };
        let (started, listener) = tokio::join!(Process::start(command, &place, said.clone()), listens);
        let mut process = started.unwrap();
        let again =
            Process::start(command, &place, Output::default()).await.err().map(|error| error.to_string());
        assert!(
            again.is_some_and(|error| error.contains("listens at")),
            "it would not be the one that is judged"
        );
        drop(listener);
        let pid = loop {
            if let Some(pid) =
                said.last(1).first().and_then(|line| line.strip_prefix("pid ").map(str::to_owned))
            {
                break pid;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        process.stop().await;
        assert!(process.ended().is_some(), "the shell ended by itself, but not what it had started");
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }
}
