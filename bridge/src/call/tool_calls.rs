//! The function calls of a conversation: run, answered, and the two that end the call or put the caller through.

use super::context::{CallContext, Cx, Failure};
use super::event::{CallEvent, EndReason, Private, ToolOutcome};
use super::hangup::{Exit, ExitAction, PendingExit};
use super::io::{ToolResult, Transmit};
use super::settings::ms;
use super::timers::Timer;
use super::tools::{self, Leftover, Run, ToSend, Tools, Verdict};
use crate::wire::realtime::{ClientEvent, FunctionCall};
use std::time::{Duration, Instant};

/// What the model is told of a function that was stopped.
pub(super) const TOO_LONG: &str = "the function took too long";

/// The function calls of one conversation.
#[derive(Default)]
pub(super) struct ToolCalls {
    pub(super) tools: Tools,
    /// The call is to end, or be put through.
    exit: Option<PendingExit>,
    /// The caller was told that what runs now takes its time.
    pub(super) hold_message_played: bool,
}

impl ToolCalls {
    /// The model called a function, in a response that was `interrupted` or not. Returns whether that is news.
    pub(super) fn called(
        &mut self,
        cx: &mut Cx<'_>,
        call: &FunctionCall,
        response: &str,
        interrupted: bool,
    ) -> Result<bool, Failure> {
        let stopped = self.tools.is_stopped();
        let verdict = self.tools.called(call, response, interrupted, &cx.config, cx.now);
        if verdict != Verdict::Ignore && cx.config.renewal.is_some() {
            cx.transcript.called(call);
        }
        if !stopped && self.tools.is_stopped() {
            cx.counts.tool_loops += 1;
            cx.event(CallEvent::ToolLoop { rounds: self.tools.rounds() });
        }
        match verdict {
            Verdict::Ignore => return Ok(false),
            Verdict::Endless => {
                let detail = "the model calls functions without end".to_owned();
                return Err(Failure { reason: EndReason::ResponseFailed, detail });
            }
            Verdict::Run { arguments } => {
                called(cx, call, &arguments);
                let (call_id, name) = (call.call_id.clone(), call.name.clone());
                cx.outbox.push_back(Transmit::RunTool { call_id, name, arguments });
            }
            Verdict::Exit { way: action, arguments } => {
                called(cx, call, &arguments);
                if self.exit.is_some() {
                    const WHY: &str = "the call is being ended or put through already";
                    self.tools.answers(&call.call_id, response, &tools::failure(WHY), cx.now);
                    refused(cx, &call.call_id, &call.name, WHY);
                } else {
                    let (call_id, response) = (call.call_id.clone(), response.to_owned());
                    self.exit =
                        Some(PendingExit::AwaitingPlayout(Exit { call_id, action, arguments, response }));
                    cx.set_timer(Timer::Farewell, cx.config.hangup.farewell_ms);
                }
            }
            Verdict::Answer { output, why } => {
                self.tools.answers(&call.call_id, response, &output, cx.now);
                refused(cx, &call.call_id, &call.name, why);
                if !interrupted {
                    self.tools.is_to_be_spoken_about(response);
                }
            }
            Verdict::Reuse { output } => {
                answered(cx, &call.call_id, &call.name, ToolOutcome::Reused, None, None, &output);
                self.tools.is_to_be_spoken_about(response);
            }
        }
        self.send_outputs(cx);
        Ok(true)
    }

    /// A run ended. Returns whether its output was waited for: otherwise it took too long and was answered already.
    ///
    /// # Errors
    /// When the call has left the model with it.
    pub(super) fn ended(&mut self, cx: &mut Cx<'_>, result: ToolResult) -> Result<bool, Failure> {
        let why = result.output.as_ref().err().cloned();
        let outcome = if why.is_none() { ToolOutcome::Done } else { ToolOutcome::Failed };
        let output = result.output.unwrap_or_else(|why| tools::failure(&why));
        let Some(run) = self.tools.ended(&result.call_id, &output, cx.now) else { return Ok(false) };
        self.run_over(cx, &run, outcome, &output, why.as_deref())?;
        Ok(true)
    }

    /// Runs take too long.
    ///
    /// # Errors
    /// As [`ToolCalls::ended`].
    pub(super) fn overdue(&mut self, cx: &mut Cx<'_>) -> Result<(), Failure> {
        let output = tools::failure(TOO_LONG);
        while let Some(run) = self.tools.take_late(&output, cx.now) {
            cx.outbox.push_back(Transmit::CancelTool { call_id: run.call_id.clone() });
            self.run_over(cx, &run, ToolOutcome::TimedOut, &output, Some(TOO_LONG))?;
        }
        Ok(())
    }

    fn run_over(
        &mut self,
        cx: &mut Cx<'_>,
        run: &Run,
        outcome: ToolOutcome,
        output: &str,
        failed: Option<&str>,
    ) -> Result<(), Failure> {
        let left = self.exited(&run.call_id, failed);
        let took = cx.now - run.began;
        answered(cx, &run.call_id, &run.name, outcome, Some(took), None, output);
        if let Some(left) = left {
            self.send_outputs(cx);
            return Err(left);
        }
        self.tools.is_to_be_spoken_about(&run.response);
        Ok(())
    }

    pub(super) fn send_outputs(&mut self, cx: &mut Cx<'_>) {
        for ToSend { event_id, call_id, output } in self.tools.take_outputs(cx.now) {
            cx.send_to_model(ClientEvent::ToolOutput { event_id, call_id, output });
        }
        self.watch(cx);
    }

    fn watch(&mut self, cx: &mut CallContext) {
        match self.tools.due() {
            Some(at) => cx.timers.set(Timer::Tool, at),
            None => cx.timers.stop(Timer::Tool),
        }
        self.hold_message_played &= self.tools.is_running();
    }

    /// The server refused an output, while a response was `running` or none. Returns whether it is sent once more.
    pub(super) fn output_refused(
        &mut self,
        cx: &mut Cx<'_>,
        event_id: Option<&str>,
        running: Option<&str>,
    ) -> bool {
        cx.counts.refused_outputs += 1;
        let Some(response) = self.tools.refused(event_id, running, cx.now) else { return false };
        // A response that was asked for meanwhile may have been made without it.
        self.tools.is_to_be_spoken_about(&response);
        self.send_outputs(cx);
        true
    }

    /// Once every call of a response is answered, one response speaks about all of them. A caller who is speaking has
    /// the floor: the answer to that turn will know the outputs. A call that is being left has had its last words.
    pub(super) fn take_unspoken(&mut self) -> bool {
        self.tools.take_unspoken() && self.exit_action().is_none()
    }

    // ---------------------------------------------------------------------------------------- hangup, transfer

    /// The call is to end or be put through, or is at this moment.
    pub(super) const fn is_leaving(&self) -> bool {
        self.exit.is_some()
    }

    /// The response after which the call is to end or be put through.
    pub(super) fn exits_after(&self) -> Option<&str> {
        if let Some(PendingExit::AwaitingPlayout(exit)) = &self.exit { Some(&exit.response) } else { None }
    }

    /// The call is being ended or put through at this moment.
    pub(super) const fn exit_action(&self) -> Option<ExitAction> {
        if let Some(PendingExit::Requested { action, .. }) = &self.exit { Some(*action) } else { None }
    }

    fn take_awaiting_playout(&mut self, cx: &mut CallContext) -> Option<Exit> {
        let exit = self.exit.take_if(|exit| matches!(exit, PendingExit::AwaitingPlayout(_)))?;
        cx.timers.stop(Timer::Farewell);
        if let PendingExit::AwaitingPlayout(exit) = exit { Some(exit) } else { None }
    }

    /// Ends the call or puts the caller through, heard or not.
    pub(super) fn exit(&mut self, cx: &mut Cx<'_>) {
        let Some(Exit { call_id, action, arguments, response }) = self.take_awaiting_playout(cx) else {
            return;
        };
        let by = cx.now + ms(cx.config.hangup.carrier_ms);
        self.tools.runs(&call_id, action.name(), &response, cx.now, by);
        self.watch(cx);
        self.exit = Some(PendingExit::Requested { call_id: call_id.clone(), action });
        cx.outbox.push_back(Transmit::RunTool { call_id, name: action.name().to_owned(), arguments });
    }

    /// The caller spoke before the call could end: it goes on.
    pub(super) fn keep_call(&mut self, cx: &mut Cx<'_>) {
        // Whatever the caller says is answered by a response that knows of this.
        const WHY: &str = "not done: the caller spoke first, and the call goes on";
        let Some(Exit { call_id, action, response, .. }) = self.take_awaiting_playout(cx) else { return };
        self.tools.answers(&call_id, &response, &tools::failure(WHY), cx.now);
        refused(cx, &call_id, action.name(), WHY);
        self.send_outputs(cx);
    }

    /// The end a function call has brought about, if it was to. A call that could not be ended by Twilio's leave is
    /// ended all the same, by closing its stream; one that could not be put through goes on.
    fn exited(&mut self, call_id: &str, failed: Option<&str>) -> Option<Failure> {
        let action = self.exit_action()?;
        self.exit
            .take_if(|exit| matches!(exit, PendingExit::Requested { call_id: id, .. } if id == call_id))?;
        let detail = match (action, failed) {
            (ExitAction::Transfer, Some(_)) => return None,
            (_, None) => action.name().to_owned(),
            (ExitAction::HangUp, Some(why)) => format!("by closing the stream, because: {why}"),
        };
        Some(Failure { reason: action.reason(), detail })
    }

    /// The conversation is over. Returns the functions that run: what was begun is finished, and what comes of it is
    /// recorded.
    pub(super) fn end(mut self, cx: &mut CallContext, now: Instant) -> Leftover {
        if let Some(Exit { call_id, action, .. }) = self.take_awaiting_playout(cx) {
            refused(cx, &call_id, action.name(), "not done: the call ended first");
        }
        self.tools.run_out(ms(cx.config.timeouts.tool_after_end_ms), now)
    }
}

fn called(cx: &mut CallContext, call: &FunctionCall, arguments: &str) {
    cx.event(CallEvent::ToolCalled {
        call_id: call.call_id.clone(),
        name: call.name.clone(),
        arguments: Private::new(arguments),
    });
}

/// A function call is answered, whenever its output is sent. `why`: it was not run.
fn answered(
    cx: &mut CallContext,
    call_id: &str,
    name: &str,
    outcome: ToolOutcome,
    took: Option<Duration>,
    why: Option<&'static str>,
    output: &str,
) {
    if cx.config.renewal.is_some() {
        cx.transcript.answered(call_id, output);
    }
    let (call_id, name, output) = (call_id.to_owned(), name.to_owned(), Private::new(output));
    cx.event(CallEvent::ToolAnswered { call_id, name, outcome, took, why, output });
}

/// A function call is answered without being run.
fn refused(cx: &mut CallContext, call_id: &str, name: &str, why: &'static str) {
    answered(cx, call_id, name, ToolOutcome::Refused, None, Some(why), &tools::failure(why));
}
