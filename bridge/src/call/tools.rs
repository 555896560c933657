//! Function calls in flight. Each is answered exactly once, whatever becomes of it; audio never waits for one.

use super::leaving::{self, Way};
use super::settings::{CallConfig, ms};
use crate::realtime::FunctionCall;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Instant;

/// Call ids remembered, so that a call reported twice runs once.
const SEEN_MAX: usize = 256;

#[derive(Debug)]
struct Running {
    call_id: String,
    name: String,
    began: Instant,
    give_up_at: Instant,
}

/// A run that is over, or that nobody waits for any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) call_id: String,
    pub(crate) name: String,
    pub(crate) began: Instant,
}

impl From<Running> for Run {
    fn from(Running { call_id, name, began, give_up_at: _ }: Running) -> Self {
        Self { call_id, name, began }
    }
}

/// What to do with a function call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Run it with these arguments (a JSON object).
    Run { arguments: String },
    /// Run it with these arguments when the caller has heard the farewell.
    Leave { way: Way, arguments: String },
    /// Answer it now.
    Answer { output: String },
    /// Nothing: it was seen before, or the model never finished writing it.
    Ignore,
}

/// The function calls of one phone call.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    running: Vec<Running>,
    seen: VecDeque<String>,
    /// Something was answered that no response has spoken about.
    unspoken: bool,
}

impl Tools {
    /// The model called a function.
    pub(crate) fn called(
        &mut self,
        call: &FunctionCall,
        interrupted: bool,
        config: &CallConfig,
        now: Instant,
    ) -> Verdict {
        if !call.complete || self.seen.contains(&call.call_id) {
            return Verdict::Ignore;
        }
        if self.seen.len() >= SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(call.call_id.clone());
        let refuse = |why: &str| Verdict::Answer { output: failure(why) };
        if interrupted {
            return refuse("not run: the caller interrupted");
        }
        let arguments = call.arguments.trim();
        let arguments = if arguments.is_empty() { "{}" } else { arguments };
        let value = serde_json::from_str::<Value>(arguments).ok().filter(Value::is_object);
        if let (Some(way), Some(value)) = (leaving::way(&call.name, &config.leaving), &value) {
            return match leaving::resolved(way, value, &config.leaving) {
                Ok(arguments) => Verdict::Leave { way, arguments },
                Err(why) => refuse(why),
            };
        }
        let Some(spec) = config.tools.iter().find(|tool| tool.name == call.name) else {
            return refuse("there is no such function");
        };
        if self.running.len() >= config.limits.tools_running {
            return refuse("too many functions are running");
        }
        if value.is_none() {
            return refuse("the arguments are not a JSON object");
        }
        self.runs(&call.call_id, &call.name, now, now + ms(spec.timeout_ms));
        Verdict::Run { arguments: arguments.to_owned() }
    }

    /// A run begins.
    pub(crate) fn runs(&mut self, call_id: &str, name: &str, now: Instant, give_up_at: Instant) {
        let (call_id, name) = (call_id.to_owned(), name.to_owned());
        self.running.push(Running { call_id, name, began: now, give_up_at });
    }

    /// A run ended. Returns it if anybody still waits for it.
    pub(crate) fn ended(&mut self, call_id: &str) -> Option<Run> {
        let at = self.running.iter().position(|running| running.call_id == call_id)?;
        Some(self.running.remove(at).into())
    }

    /// An output was sent to the model.
    pub(crate) const fn answered(&mut self) {
        self.unspoken = true;
    }

    /// All calls are answered and something is to be said about it. Says so once.
    pub(crate) fn take_unspoken(&mut self) -> bool {
        self.running.is_empty() && std::mem::take(&mut self.unspoken)
    }

    /// When the first of them takes too long.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.running.iter().map(|running| running.give_up_at).min()
    }

    /// Takes one that takes too long.
    pub(crate) fn take_late(&mut self, now: Instant) -> Option<Run> {
        let late = self.running.iter().position(|running| running.give_up_at <= now)?;
        Some(self.running.remove(late).into())
    }

    /// Forgets all of them; nobody is left to answer to.
    pub(crate) fn abandon(&mut self) -> Vec<String> {
        self.running.drain(..).map(|running| running.call_id).collect()
    }

    /// Whether the model is waiting for an output.
    pub(crate) const fn is_running(&self) -> bool {
        !self.running.is_empty()
    }
}

/// An output that tells the model why there is none.
pub(crate) fn failure(why: &str) -> String {
    json!({ "error": why }).to_string()
}
