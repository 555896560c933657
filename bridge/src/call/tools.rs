//! Function calls in flight. Each is answered exactly once, whatever becomes of it; audio never waits for one.
//!
//! An output goes to the server when the response that made the call is over: some servers refuse one that comes
//! sooner, although they know the call, and then call again under another id. Such a refusal is recognised: the output
//! is sent once more, and the call that repeats it is answered with the output there is, not run a second time.
//!
//! Outputs are grouped by response: the model is asked to go on when all calls of one response are answered, whatever
//! an older response still waits for.
//!
//! A model that calls again and again without a word to the caller is stopped: by the number of responses in a row that
//! call functions, and by the number of times the same call is made.

use super::hangup::{self, ExitAction};
use super::settings::{CallConfig, ms};
use crate::wire::realtime::FunctionCall;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Call ids remembered, so that a call reported twice runs once.
const SEEN_MAX: usize = 256;
/// Turns of the caller within which a call that repeats a refused one gets the output that is there.
const REPEATED_WITHIN: u8 = 2;
/// Outputs remembered until the server has taken them, and outputs that it refused.
const SENT_MAX: usize = 32;
/// Different calls of one turn that are counted.
const COUNTED_MAX: usize = 64;
/// How long an output waits for the end of its response. A server that does not end one is told all the same.
const OUTPUT_WAITS: Duration = Duration::from_secs(5);

/// What is called: the same function with the same arguments is the same call, whatever its id.
#[derive(Clone, Debug, PartialEq)]
struct Called {
    name: String,
    arguments: Value,
}

#[derive(Debug)]
struct Running {
    call_id: String,
    called: Called,
    response: String,
    began: Instant,
    give_up_at: Instant,
}

/// A run that is over, or that is not waited for any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) call_id: String,
    pub(crate) name: String,
    /// The response that made the call.
    pub(crate) response: String,
    pub(crate) began: Instant,
}

/// An output for the server, and what it answers.
#[derive(Clone, Debug)]
struct Output {
    /// Counts the outputs of the call.
    number: u64,
    call_id: String,
    response: String,
    output: String,
    /// The run it comes from; an output of no run can be had again at any time.
    ran: Option<Called>,
    /// It was refused before.
    again: bool,
    /// It is not kept back for longer.
    send_by: Instant,
}

/// An output that the server refused.
#[derive(Clone, Debug)]
struct Refused {
    called: Called,
    output: String,
    /// The response that ran when it was refused, which cannot know of that: what it calls repeats nothing.
    beside: Option<String>,
    /// The call that repeats it and was answered with the output, if one was.
    repeated_as: Option<String>,
    /// Turns of the caller that have ended since.
    turns: u8,
}

/// What to tell the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToSend {
    pub(crate) event_id: String,
    pub(crate) call_id: String,
    pub(crate) output: String,
}

/// What to do with a function call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Run it with these arguments (a JSON object).
    Run { arguments: String },
    /// Run it with these arguments when the caller has heard the farewell.
    Exit { way: ExitAction, arguments: String },
    /// Answer it now with this, and why, in words without content.
    Answer { output: String, why: &'static str },
    /// Its output is there: that of an earlier run, which the server had refused.
    Reuse { output: String },
    /// The model calls without end, and does so although it was stopped: nothing helps.
    Endless,
    /// Nothing: it was seen before, or the model never finished writing it.
    Ignore,
}

/// Calls since the caller's last turn.
#[derive(Debug, Default)]
struct Loop {
    /// Responses that called functions, and the last of them.
    rounds: u32,
    last: String,
    /// In how many responses each call was made, and the last of them.
    calls: Vec<(Called, u32, String)>,
    /// The response in which it was too much.
    stopped_in: Option<String>,
}

/// The function calls of one phone call.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    running: Vec<Running>,
    seen: VecDeque<String>,
    /// Responses that made calls and are not over.
    open: Vec<String>,
    /// Responses of whose calls something was answered that no response has spoken about.
    unspoken: Vec<String>,
    /// Outputs that wait for the end of their response.
    kept: Vec<Output>,
    /// Outputs that the server has neither taken nor refused.
    sent: VecDeque<Output>,
    /// Outputs of runs that the server refused, and how many turns of the caller ago: the same call under another id
    /// gets them.
    refused: VecDeque<Refused>,
    outputs: u64,
    since_turn: Loop,
}

impl Tools {
    /// The model called a function.
    pub(crate) fn called(
        &mut self,
        call: &FunctionCall,
        response: &str,
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
        if !self.open.iter().any(|open| open == response) {
            self.open.push(response.to_owned());
        }
        let refuse = |why| Verdict::Answer { output: failure(why), why };
        if interrupted {
            return refuse("not run: the caller interrupted");
        }
        let arguments = call.arguments.trim();
        let arguments = if arguments.is_empty() { "{}" } else { arguments };
        let value = serde_json::from_str::<Value>(arguments).ok().filter(Value::is_object);
        let called = Called { name: call.name.clone(), arguments: value.clone().unwrap_or_default() };
        let too_much = self.since_turn.counts(&called, response, config);
        if self.since_turn.stopped_in.as_ref().is_some_and(|stopped| stopped != response) {
            return Verdict::Endless;
        }
        if let Some(why) = too_much.or(self.since_turn.stopped_in.is_some().then_some(TOO_MANY_ROUNDS)) {
            self.since_turn.stopped_in.get_or_insert_with(|| response.to_owned());
            return refuse(why);
        }
        let same = |refused: &Refused| refused.called == called;
        let free = self.refused.iter().position(|refused| same(refused) && refused.repeated_as.is_none());
        if let Some(at) = free.or_else(|| self.refused.iter().position(same)) {
            // Of two refused outputs of the same call each answers a repetition of its own.
            if self.refused[at].beside.as_deref() != Some(response) {
                self.refused[at].repeated_as = Some(call.call_id.clone());
            }
            let output = self.refused[at].output.clone();
            self.keep(&call.call_id, response, &output, Some(called), now);
            return Verdict::Reuse { output };
        }
        if let Some(way) = hangup::way(&call.name, &config.hangup) {
            // To hang up needs no arguments, so that no arguments can keep it from being done.
            let value = value.or((way == ExitAction::HangUp).then_some(Value::Null));
            return match value
                .ok_or(NO_OBJECT)
                .and_then(|value| hangup::resolved(way, &value, &config.hangup))
            {
                Ok(arguments) => Verdict::Exit { way, arguments },
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
            return refuse(NO_OBJECT);
        }
        let give_up_at = now + ms(spec.timeout_ms);
        let (call_id, response) = (call.call_id.clone(), response.to_owned());
        self.running.push(Running { call_id, called, response, began: now, give_up_at });
        Verdict::Run { arguments: arguments.to_owned() }
    }

    /// A run begins that the model has called for in this response, some time ago.
    pub(crate) fn runs(
        &mut self,
        call_id: &str,
        name: &str,
        response: &str,
        now: Instant,
        give_up_at: Instant,
    ) {
        let called = Called { name: name.to_owned(), arguments: Value::Null };
        let (call_id, response) = (call_id.to_owned(), response.to_owned());
        self.running.push(Running { call_id, called, response, began: now, give_up_at });
    }

    /// A run ended with this output for the server. Returns it if anybody still waits for it.
    pub(crate) fn ended(&mut self, call_id: &str, output: &str, now: Instant) -> Option<Run> {
        let at = self.running.iter().position(|running| running.call_id == call_id)?;
        Some(self.takes(at, output, now))
    }

    /// Takes one that takes too long, with this output in place of its own.
    pub(crate) fn take_late(&mut self, output: &str, now: Instant) -> Option<Run> {
        let late = self.running.iter().position(|running| running.give_up_at <= now)?;
        Some(self.takes(late, output, now))
    }

    fn takes(&mut self, at: usize, output: &str, now: Instant) -> Run {
        let Running { call_id, called, response, began, give_up_at: _ } = self.running.remove(at);
        let name = called.name.clone();
        self.keep(&call_id, &response, output, Some(called), now);
        Run { call_id, name, response, began }
    }

    /// There is an output of no run.
    pub(crate) fn answers(&mut self, call_id: &str, response: &str, output: &str, now: Instant) {
        self.keep(call_id, response, output, None, now);
    }

    fn keep(&mut self, call_id: &str, response: &str, output: &str, ran: Option<Called>, now: Instant) {
        self.outputs += 1;
        self.kept.push(Output {
            number: self.outputs,
            call_id: call_id.to_owned(),
            response: response.to_owned(),
            output: output.to_owned(),
            ran,
            again: false,
            send_by: now + OUTPUT_WAITS,
        });
    }

    /// Something is to be said about the output of a call of this response.
    pub(crate) fn is_to_be_spoken_about(&mut self, response: &str) {
        if !self.unspoken.iter().any(|unspoken| unspoken == response) {
            self.unspoken.push(response.to_owned());
        }
    }

    /// A response is over: it makes no more calls, and its outputs may be sent.
    pub(crate) fn response_over(&mut self, response: &str) {
        self.open.retain(|open| open != response);
    }

    /// The outputs that may be sent now.
    pub(crate) fn take_outputs(&mut self, now: Instant) -> Vec<ToSend> {
        let is_due = |output: &Output| output.send_by <= now || !self.open.contains(&output.response);
        let (due, kept) = std::mem::take(&mut self.kept).into_iter().partition(is_due);
        self.kept = kept;
        let due: Vec<Output> = due;
        let to_send = due.iter().map(|output| ToSend {
            event_id: format!("output_{}", output.number),
            call_id: output.call_id.clone(),
            output: output.output.clone(),
        });
        let to_send = to_send.collect();
        self.sent.extend(due);
        while self.sent.len() > SENT_MAX {
            self.sent.pop_front();
        }
        to_send
    }

    /// The server has taken the output of this call.
    pub(crate) fn taken(&mut self, call_id: &str) {
        let Some(at) = self.sent.iter().position(|sent| sent.call_id == call_id) else { return };
        self.sent.remove(at);
        self.refused.retain(|refused| refused.repeated_as.as_deref() != Some(call_id));
    }

    /// The server refused an output, as if it did not know the call: the one of this event, or the oldest that it has
    /// said nothing about. It is to be sent once more. `running`: the response that runs. Returns the response of its
    /// call.
    pub(crate) fn refused(
        &mut self,
        event_id: Option<&str>,
        running: Option<&str>,
        now: Instant,
    ) -> Option<String> {
        let named = |sent: &Output| event_id.is_some_and(|id| id == format!("output_{}", sent.number));
        let at = match event_id {
            Some(_) => self.sent.iter().position(named)?,
            None => 0,
        };
        let mut output = self.sent.remove(at)?;
        if let Some(called) = output.ran.take() {
            let repeats = |refused: &Refused| refused.repeated_as.as_ref() == Some(&output.call_id);
            self.refused.retain(|refused| !repeats(refused));
            if self.refused.len() >= SENT_MAX {
                self.refused.pop_front();
            }
            let output = output.output.clone();
            let beside = running.map(str::to_owned);
            self.refused.push_back(Refused { called, output, beside, repeated_as: None, turns: 0 });
        }
        if output.again {
            return None;
        }
        self.outputs += 1;
        let response = output.response.clone();
        let send_by = now + OUTPUT_WAITS;
        self.kept.push(Output { number: self.outputs, again: true, send_by, ..output });
        Some(response)
    }

    /// A turn of the caller ended: what was called before it has nothing to do with what is called now.
    /// `is_answered`: the model answers this turn, because the caller is not speaking on.
    pub(crate) fn new_turn(&mut self, is_answered: bool) {
        self.since_turn = Loop::default();
        if !is_answered {
            return;
        }
        // The call that repeats it may be in the answer to this turn. A keypad entry is a turn, too, and may be complete
        // while that answer is under way.
        self.refused.retain(|refused| refused.turns < REPEATED_WITHIN);
        self.refused.iter_mut().for_each(|refused| refused.turns += 1);
    }

    /// The model calls functions without end: the next response may call none.
    pub(crate) const fn is_stopped(&self) -> bool {
        self.since_turn.stopped_in.is_some()
    }

    /// Responses in a row that called functions.
    pub(crate) const fn rounds(&self) -> u32 {
        self.since_turn.rounds
    }

    /// All calls of a response are answered and something is to be said about it. Says so once.
    pub(crate) fn take_unspoken(&mut self) -> bool {
        let runs = |response: &str| self.running.iter().any(|running| running.response == response);
        let waiting = |unspoken: &String| runs(unspoken) || self.open.contains(unspoken);
        let (waiting, answered): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unspoken).into_iter().partition(waiting);
        self.unspoken = waiting;
        !answered.is_empty()
    }

    /// When the first of them takes too long, or an output has waited for long enough.
    pub(crate) fn due(&self) -> Option<Instant> {
        let late = self.running.iter().map(|running| running.give_up_at);
        late.chain(self.kept.iter().map(|kept| kept.send_by)).min()
    }

    /// The model is waiting for an output.
    pub(crate) const fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// The server is to be told an output.
    pub(crate) const fn is_keeping(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Another session takes over, which has been told all calls and outputs.
    pub(crate) fn reset(&mut self) {
        self.open.clear();
        self.kept.clear();
        self.sent.clear();
    }

    /// The conversation is over: what runs goes on for `longest` at most, and its output goes nowhere.
    pub(crate) fn run_out(self, longest: Duration, now: Instant) -> Leftover {
        let mut running = self.running;
        for run in &mut running {
            run.give_up_at = run.give_up_at.min(now + longest);
        }
        Leftover(running)
    }
}

/// Functions that were running when their conversation ended. What they do is done all the same, and is told.
#[derive(Debug, Default)]
pub(crate) struct Leftover(Vec<Running>);

impl Leftover {
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the first of them takes too long.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.0.iter().map(|running| running.give_up_at).min()
    }

    /// A run ended.
    pub(crate) fn ended(&mut self, call_id: &str) -> Option<Run> {
        let at = self.0.iter().position(|running| running.call_id == call_id)?;
        Some(self.take(at))
    }

    /// Takes one that takes too long.
    pub(crate) fn take_late(&mut self, now: Instant) -> Option<Run> {
        let late = self.0.iter().position(|running| running.give_up_at <= now)?;
        Some(self.take(late))
    }

    fn take(&mut self, at: usize) -> Run {
        let Running { call_id, called, response, began, give_up_at: _ } = self.0.remove(at);
        Run { call_id, name: called.name, response, began }
    }
}

const NO_OBJECT: &str = "the arguments are not a JSON object";
const TOO_MANY_ROUNDS: &str =
    "not run: too many functions were called in a row; tell the caller what is known";
const TOO_OFTEN: &str =
    "not run: it was called too often with these arguments; tell the caller what is known";

impl Loop {
    /// Counts a call. Returns why it is one too many, if it is.
    fn counts(&mut self, called: &Called, response: &str, config: &CallConfig) -> Option<&'static str> {
        if self.rounds == 0 || self.last != response {
            self.rounds += 1;
            response.clone_into(&mut self.last);
        }
        let times = match self.calls.iter_mut().find(|(counted, ..)| counted == called) {
            Some((_, times, last)) => {
                if last != response {
                    *times += 1;
                    response.clone_into(last);
                }
                *times
            }
            None => {
                if self.calls.len() < COUNTED_MAX {
                    self.calls.push((called.clone(), 1, response.to_owned()));
                }
                1
            }
        };
        if self.rounds > config.limits.function_rounds {
            Some(TOO_MANY_ROUNDS)
        } else if times > config.limits.same_calls {
            Some(TOO_OFTEN)
        } else {
            None
        }
    }
}

/// An output that tells the model why there is none.
pub(crate) fn failure(why: &str) -> String {
    json!({ "error": why }).to_string()
}
