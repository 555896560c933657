//! Both ends can hear each other: turns, barge-in, keypad, and what function calls mean for the responses.

use super::audio_clock::AudioClock;
use super::barge_in::{self, Cause, Effect, FirstWords, Policy};
use super::context::{CallContext, Cx, Failure, fatal};
use super::downlink::Downlink;
use super::event::{CallEvent, EndReason, Floor, Private, Speaker};
use super::io::{ToolResult, Transmit};
use super::keypad::Keypad;
use super::last_words::LastWords;
use super::responses::{self, Disposition, Done, ResponseReason, Responses};
use super::session;
use super::settings::ms;
use super::timers::{Timer, Timers};
use super::tool_calls::ToolCalls;
use super::tools::Leftover;
use crate::wire::realtime::{ApiError, ClientEvent, FunctionCall, ResponseDone, ServerEvent};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long the words of a turn are waited for before the session is renewed without them.
const WORDS_PATIENCE: Duration = Duration::from_secs(5);
/// Names that a turn may be given before it ends.
const TURN_NAMES_MAX: usize = 16;
/// Turns without words that are remembered; older ones are waited for no longer.
const PENDING_TRANSCRIPTIONS_MAX: usize = 16;

/// A conversation in progress.
pub(super) struct Conversation {
    pub(super) downlink: Downlink,
    responses: Responses,
    pub(super) first_words: FirstWords,
    keypad: Keypad,
    pub(super) tool_calls: ToolCalls,
    /// Since when the caller has been waiting and nothing can be heard, whatever functions run meanwhile.
    waits_since: Option<Instant>,
    /// By the server's voice detection: started and not stopped.
    caller_speaks: bool,
    /// The items that the turn that goes on was announced as, and those of the turn before it.
    turn: Vec<String>,
    ended_turn: Vec<String>,
    /// A turn began that was not committed yet.
    uncommitted: bool,
    /// When the caller's audio was sent.
    clock: AudioClock,
    /// Since when the caller waits for the audio that comes next: from the end of speech, or from when a response was
    /// asked for. Functions do not set it back.
    asked_at: Option<Instant>,
    /// Responses in a row of which nothing could be heard.
    silent_responses: u32,
    /// Reading from the model is suspended.
    reads_paused: bool,
    /// Turns whose words are to come, and since when.
    pending_transcriptions: VecDeque<(String, Instant)>,
}

impl Conversation {
    pub(super) fn new(downlink: Downlink) -> Self {
        Self {
            downlink,
            responses: Responses::default(),
            first_words: FirstWords::default(),
            keypad: Keypad::default(),
            tool_calls: ToolCalls::default(),
            waits_since: None,
            caller_speaks: false,
            turn: Vec::new(),
            ended_turn: Vec::new(),
            uncommitted: false,
            clock: AudioClock::default(),
            asked_at: None,
            silent_responses: 0,
            reads_paused: false,
            pending_transcriptions: VecDeque::new(),
        }
    }

    /// The first session is ready.
    pub(super) fn begin(&mut self, cx: &mut Cx<'_>) {
        self.send_uplink(cx);
        if cx.config.greeting.is_some() {
            self.responses.want(ResponseReason::Greeting);
        }
        // A finished entry takes the greeting's place: its answer is what the caller waits for.
        cx.uplink.take_keys().chars().for_each(|key| self.gather(cx, key));
        self.ask(cx);
    }

    // ---------------------------------------------------------------------------------------- caller leg

    /// Caller audio was taken into the uplink.
    pub(super) fn caller_audio(&mut self, cx: &mut Cx<'_>) {
        if self.caller_speaks {
            cx.set_timer(Timer::MediaPause, cx.config.timeouts.media_pause_ms);
        }
        self.send_uplink(cx);
    }

    pub(super) fn send_uplink(&mut self, cx: &mut Cx<'_>) {
        if cx.model_backpressured {
            return;
        }
        let per_ms = u64::from(cx.config.format.bytes_per_ms());
        while let Some(audio) = cx.uplink.append() {
            self.clock.sent(Duration::from_micros(audio.len() as u64 * 1_000 / per_ms), cx.now);
            cx.send_to_model(ClientEvent::AppendAudio { audio });
        }
    }

    /// The caller's carrier sends nothing although the caller was speaking: supply the silence it leaves out, or
    /// voice detection, which runs on audio time, would wait for ever. What it takes for speech may be longer than
    /// the caller's was, so there is more silence, at the speed of speech, until the turn ends or media goes on.
    pub(super) fn media_paused(&mut self, cx: &mut Cx<'_>) {
        if !self.caller_speaks {
            return;
        }
        let silence_ms = u64::from(cx.config.vad.silence_duration_ms) + 500;
        cx.counts.filled_ms += cx.uplink.supply_silence(silence_ms, cx.now);
        self.send_uplink(cx);
        cx.set_timer(Timer::MediaPause, silence_ms);
    }

    pub(super) fn key(&mut self, cx: &mut Cx<'_>, key: char) {
        let hits = self.downlink.is_audible(cx.now)
            || self.responses.is_anything_coming()
            || self.tool_calls.exits_after().is_some();
        let guarded = cx.uplink.is_protected();
        self.barge_in(cx, Cause::Key { guarded, hits });
        self.gather(cx, key);
    }

    fn gather(&mut self, cx: &mut Cx<'_>, key: char) {
        cx.set_timer(Timer::Keypad, cx.config.dtmf.quiet_ms);
        if self.keypad.press(key, &cx.config.dtmf) {
            self.keypad_complete(cx);
        }
    }

    pub(super) fn keypad_complete(&mut self, cx: &mut Cx<'_>) {
        cx.timers.stop(Timer::Keypad);
        let Some(entry) = self.keypad.finish() else { return };
        self.tool_calls.tools.new_turn(!self.caller_speaks);
        cx.transcript.words(&entry.item, Speaker::Keypad, &entry.text);
        cx.event(CallEvent::Keypad { keys: entry.keys, entry: Private::new(entry.pressed) });
        cx.send_to_model(ClientEvent::UserText { item: entry.item, text: entry.text });
        self.asked_at = Some(cx.now);
        self.responses.want(ResponseReason::Keypad);
        self.ask(cx);
        if !self.caller_speaks {
            // Even when it has to wait for a cancelled response to end, the answer may not fail to come.
            cx.set_timer_if_unset(Timer::FirstAudio, cx.config.timeouts.first_audio_ms);
        }
    }

    // ---------------------------------------------------------------------------------------- model leg

    pub(super) fn model_event(&mut self, cx: &mut Cx<'_>, event: ServerEvent) -> Result<(), Failure> {
        match event {
            ServerEvent::AudioDelta { response, item, content, audio } => {
                self.audio(cx, &response, &item, content, &audio);
            }
            ServerEvent::SpeechStarted { item } => self.speech_started(cx, item),
            ServerEvent::SpeechStopped { item, audio_end_ms } => {
                // A turn ends once, even when its commit was told first.
                if self.caller_speaks || item.is_none_or(|item| !self.ended_turn.contains(&item)) {
                    self.turn_ended(cx, audio_end_ms);
                }
            }
            ServerEvent::AudioDone { response, item } => {
                if self.responses.is_audible_response(&response) {
                    self.downlink.finish_item(&item);
                    self.pump(cx);
                }
            }
            ServerEvent::ResponseCreated { response, request } => {
                let spoken_over = Policy::of(&cx.config).discards_new(self.caller_speaks);
                if self.responses.created(&response, request, spoken_over) == Disposition::Discard {
                    cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
                }
            }
            ServerEvent::ResponseDone(done) => {
                return self.response_done(cx, done);
            }
            ServerEvent::OutputItemDone { response, call: Some(call) } => {
                return self.function_call(cx, &response, &call);
            }
            ServerEvent::OutputItemDone { call: None, .. } | ServerEvent::Truncated { .. } => {}
            ServerEvent::Committed { item, previous } => {
                let transcribed = cx.config.transcription.is_some();
                cx.transcript.committed(&item, previous.as_deref(), transcribed);
                // What is committed has ended, whether or not that was said; but it may be the turn before this one.
                if self.caller_speaks && !self.ended_turn.contains(&item) {
                    self.turn_ended(cx, None);
                }
                // The one before it was told of before this one began.
                self.uncommitted = self.caller_speaks;
                if transcribed {
                    self.pending_transcriptions.push_front((item, cx.now));
                    self.pending_transcriptions.truncate(PENDING_TRANSCRIPTIONS_MAX);
                }
            }
            ServerEvent::ItemAdded { item, previous, role, answers } => {
                if let Some(call_id) = answers {
                    self.tool_calls.tools.taken(&call_id);
                }
                match role.as_str() {
                    "user" => cx.transcript.item(&item, previous.as_deref(), Speaker::Caller),
                    // Function calls and their outputs have no words but hold a place in the order.
                    _ => cx.transcript.item(&item, previous.as_deref(), Speaker::Agent),
                }
            }
            ServerEvent::AgentWords { item, delta } => {
                cx.transcript.agent_words(&item, &delta, self.downlink.generated_ms(&item));
            }
            ServerEvent::AgentWordsDone { item, text } => cx.transcript.words(&item, Speaker::Agent, &text),
            ServerEvent::Transcribed { item, text } => {
                cx.transcript.words(&item, Speaker::Caller, &text);
                self.pending_transcriptions.retain(|(pending, _)| *pending != item);
            }
            ServerEvent::TranscriptionFailed { item } => {
                cx.tolerate("a turn that could not be transcribed");
                cx.transcript.untranscribed(&item);
                self.pending_transcriptions.retain(|(pending, _)| *pending != item);
            }
            ServerEvent::Error(error) => return self.error(cx, &error),
            ServerEvent::SessionCreated { .. } => cx.tolerate("a second session.created"),
            ServerEvent::SessionUpdated { session, .. } => {
                // We never change a running session. If the server did, go on only if it is the same in all that matters.
                session::check(&cx.config, &session)?;
            }
            ServerEvent::Other { kind, known: false } => cx.unknown_event(&kind),
            ServerEvent::Other { known: true, .. } => {}
        }
        Ok(())
    }

    fn audio(&mut self, cx: &mut Cx<'_>, response: &str, item: &str, content: u32, audio: &[u8]) {
        cx.counts.deltas += 1;
        if !self.responses.is_audible_response(response) {
            cx.counts.stale_bytes += audio.len() as u64;
            return;
        }
        if audio.is_empty() {
            return;
        }
        if self.downlink.push(response, item, content, audio) {
            cx.transcript.has_audio(item);
        }
        if self
            .responses
            .audible_mut(response)
            .is_some_and(|active| active.spoke_at.replace(cx.now).is_none())
        {
            cx.timers.stop(Timer::FirstAudio);
            self.silent_responses = 0;
            let after = self.asked_at.take().map(|asked| cx.now - asked);
            cx.event(CallEvent::Speaking { response: response.to_owned(), after });
        }
        self.pump(cx);
        let held_max = cx.config.limits.max_buffered_ms * 8;
        if !self.reads_paused && self.downlink.buffered_bytes() as u64 > held_max {
            self.reads_paused = true;
            // What is not read cannot answer.
            cx.timers.stop(Timer::ModelPing);
            cx.timers.stop(Timer::ModelPong);
            cx.outbox.push_back(Transmit::PauseModelReads(true));
        }
    }

    fn speech_started(&mut self, cx: &mut Cx<'_>, item: Option<String>) {
        self.caller_speaks = true;
        self.uncommitted = true;
        cx.set_timer(Timer::MediaPause, cx.config.timeouts.media_pause_ms);
        if let Some(item) = item {
            cx.transcript.item(&item, None, Speaker::Caller);
            self.turn.push(item);
            self.turn.truncate(TURN_NAMES_MAX);
        }
        self.barge_in(cx, Cause::Speech);
        cx.event(CallEvent::SpeechStarted);
    }

    fn turn_ended(&mut self, cx: &mut Cx<'_>, audio_end_ms: Option<u64>) {
        self.caller_speaks = false;
        self.ended_turn = std::mem::take(&mut self.turn);
        // The caller has waited since the last word, not since the server was sure of it.
        let silence_ms = u64::from(cx.config.vad.silence_duration_ms);
        let spoken_ms = audio_end_ms.map_or(0, |end_ms| end_ms.saturating_sub(silence_ms));
        let last_word = (spoken_ms > 0).then(|| self.clock.when(spoken_ms)).flatten();
        self.asked_at = Some(last_word.map_or(cx.now, |at| at.min(cx.now)));
        self.tool_calls.tools.new_turn(true);
        self.responses.turn_ended();
        cx.timers.stop(Timer::MediaPause);
        cx.event(CallEvent::SpeechStopped);
        if Policy::of(&cx.config).leaves_turn_to_server(&self.responses) {
            self.responses.expect_server_turn();
            self.expect_audio(cx);
        } else {
            self.want_turn(cx);
        }
    }

    /// The caller's turn is over and it is up to us to have it answered.
    fn want_turn(&mut self, cx: &mut Cx<'_>) {
        self.responses.want(ResponseReason::Turn);
        self.ask(cx);
        if self.responses.is_requested() || self.responses.waits_for_an_end() {
            // It may have to wait for a request that was made before, and that may never be answered; or for the end of
            // another response.
            self.expect_audio(cx);
        }
    }

    /// The caller does something that may be a barge-in.
    fn barge_in(&mut self, cx: &mut Cx<'_>, cause: Cause) {
        let cancel = match Policy::of(&cx.config).effect(cause) {
            Effect::Nothing => return,
            Effect::HoldsAnswer => return no_answer_is_due(cx),
            Effect::Interrupts { cancel } => cancel,
        };
        no_answer_is_due(cx);
        self.first_words = FirstWords::Interrupted;
        let running = barge_in::interrupt(cx, &mut self.downlink, &mut self.responses);
        self.release(cx);
        self.asked_at = None;
        self.tool_calls.keep_call(cx);
        if let Some(response) = running.filter(|_| cancel) {
            cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
        }
    }

    fn response_done(&mut self, cx: &mut Cx<'_>, done: ResponseDone) -> Result<(), Failure> {
        if self.responses.is_audible_response(&done.response) {
            self.downlink.finish_response(&done.response);
            self.pump(cx);
        }
        for call in &done.calls {
            self.function_call(cx, &done.response, call)?;
        }
        self.tool_calls.tools.response_over(&done.response);
        self.tool_calls.send_outputs(cx);
        let active = match self.responses.done(&done.response, done.request) {
            Done::Audible(active) => Some(active),
            Done::Discarded => None,
            Done::NeverCreated { wanted } => {
                cx.counts.unannounced += 1;
                cx.tolerate("the end of a response that never began");
                if wanted && done.status != "cancelled" {
                    let why = done.error.clone().unwrap_or_else(|| done.status.clone());
                    cx.event(CallEvent::ResponseDone {
                        response: done.response,
                        status: done.status,
                        usage: done.usage,
                    });
                    return self.nothing_was_said(cx, &why);
                }
                None
            }
        };
        if active.as_ref().is_some_and(|active| active.spoke_at.is_some()) {
            self.first_words.generated(&self.downlink);
        }
        let is_silent = active.as_ref().is_some_and(|active| active.spoke_at.is_none());
        if is_silent
            && cx.config.hangup.farewell.is_some()
            && self.tool_calls.exits_after() == Some(&done.response)
        {
            self.responses.want(ResponseReason::Farewell);
        }
        cx.event(CallEvent::ResponseDone {
            response: done.response,
            status: done.status.clone(),
            usage: done.usage,
        });
        if let Some(active) = active
            && active.spoke_at.is_none()
            && !active.called
            && !active.is_hold_message
            && done.status != "cancelled"
        {
            return self.nothing_was_said(cx, done.error.as_deref().unwrap_or(&done.status));
        }
        self.speak_about_tools(cx);
        Ok(())
    }

    /// A response ended, or never came, and the caller heard nothing of it: try once more, then say so.
    fn nothing_was_said(&mut self, cx: &mut Cx<'_>, why: &str) -> Result<(), Failure> {
        cx.timers.stop(Timer::FirstAudio);
        if self.tool_calls.exits_after().is_some() {
            return Ok(()); // then without a word
        }
        self.silent_responses += 1;
        if self.silent_responses > 1 || is_hopeless(why) {
            return Err(Failure { reason: EndReason::ResponseFailed, detail: why.to_owned() });
        }
        cx.event(CallEvent::ModelError { code: why.to_owned() });
        cx.set_timer(Timer::Retry, cx.config.timeouts.retry_ms);
        Ok(())
    }

    pub(super) fn retry(&mut self, cx: &mut Cx<'_>) {
        cx.counts.retries += 1;
        self.responses.want(ResponseReason::Retry);
        self.ask(cx);
        // It may have to wait for the end of what was given up.
        cx.set_timer_if_unset(Timer::FirstAudio, cx.config.timeouts.first_audio_ms);
    }

    pub(super) fn first_audio_overdue(&mut self, cx: &mut Cx<'_>) -> Result<(), Failure> {
        if self.responses.is_only_a_hold_message() {
            // Then the function's time passes in silence.
            if let Some(response) = self.responses.give_up_hold_message() {
                cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
            }
            self.ask(cx);
            return Ok(());
        }
        if self.responses.forget_given_up() {
            // No message said that it had ended. What was wanted behind it is asked for all the same.
            self.ask(cx);
            return Ok(());
        }
        // What is wanted waits for a response that is speaking; only one that has fallen silent is given up.
        let by = self.responses.spoke_at().map(|at| at + ms(cx.config.timeouts.first_audio_ms));
        if let Some(by) = by.filter(|by| *by > cx.now || self.reads_paused) {
            let soonest = cx.now + ms(cx.config.timeouts.retry_ms.max(1));
            cx.timers.set(Timer::FirstAudio, by.max(soonest));
            return Ok(());
        }
        if let Some(response) = self.responses.give_up() {
            cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
        }
        self.nothing_was_said(cx, "no audio in time")
    }

    fn error(&mut self, cx: &mut Cx<'_>, error: &ApiError) -> Result<(), Failure> {
        let name = error.name();
        if let Some(reason) = fatal(name) {
            return Err(Failure { reason, detail: error.in_words() });
        }
        cx.counts.errors += 1;
        cx.event(CallEvent::ModelError { code: name.to_owned() });
        if name == "invalid_tool_call_id" {
            if self.tool_calls.output_refused(cx, error.event_id.as_deref(), self.responses.running()) {
                self.speak_about_tools(cx);
            }
            return Ok(());
        }
        if name == "response_cancel_not_active"
            && self.responses.cancelled_by_server(Policy::of(&cx.config).server_answers)
        {
            self.expect_audio(cx);
        }
        if name == "conversation_already_has_active_response" {
            // The running response will speak; should it not, the first-audio timer is still there.
            self.responses.refused_as_busy(error.event_id.as_deref());
            return Ok(());
        }
        match error.event_id.as_deref().and_then(|id| self.responses.refused(id)) {
            None => Ok(()),
            // Then in silence; and what was wanted meanwhile need not wait for it any more.
            Some(ResponseReason::HoldMessage) => {
                self.ask(cx);
                Ok(())
            }
            Some(_) => self.nothing_was_said(cx, name),
        }
    }

    // ---------------------------------------------------------------------------------------- functions

    fn function_call(&mut self, cx: &mut Cx<'_>, response: &str, call: &FunctionCall) -> Result<(), Failure> {
        let interrupted = !self.responses.is_audible_response(response);
        if self.tool_calls.called(cx, call, response, interrupted)?
            && let Some(active) = self.responses.audible_mut(response)
        {
            active.called = true;
            // What it has to say comes with the outputs. The timer of one that cannot be heard may belong to the turn
            // that interrupted it.
            cx.timers.stop(Timer::FirstAudio);
        }
        Ok(())
    }

    /// A run ended.
    ///
    /// # Errors
    /// When the call has left the model with it.
    pub(super) fn tool_ended(&mut self, cx: &mut Cx<'_>, result: ToolResult) -> Result<(), Failure> {
        if self.tool_calls.ended(cx, result)? {
            self.outputs_came(cx);
        }
        Ok(())
    }

    /// Runs take too long.
    ///
    /// # Errors
    /// As [`Conversation::tool_ended`].
    pub(super) fn tool_overdue(&mut self, cx: &mut Cx<'_>) -> Result<(), Failure> {
        self.tool_calls.overdue(cx)?;
        self.outputs_came(cx);
        Ok(())
    }

    /// Sends what may be sent, and has it spoken about.
    fn outputs_came(&mut self, cx: &mut Cx<'_>) {
        self.tool_calls.send_outputs(cx);
        self.speak_about_tools(cx);
    }

    /// Asks for what is wanted, and that is a word about the outputs that are there.
    fn speak_about_tools(&mut self, cx: &mut Cx<'_>) {
        if self.tool_calls.take_unspoken() {
            self.responses.want(ResponseReason::ToolOutput);
        }
        self.ask(cx);
    }

    /// Ends the call or puts the caller through, if that is wanted and the caller has heard everything.
    pub(super) fn exit_if_heard(&mut self, cx: &mut Cx<'_>) {
        let heard = self.downlink.is_quiet() && !self.responses.is_expected() && !self.caller_speaks;
        // What the model has begun is finished first; the farewell's limit bounds that, too.
        if heard && !self.tool_calls.tools.is_running() {
            self.tool_calls.exit(cx);
        }
    }

    /// Watches how long the caller has been waiting in silence. Function calls end no wait, and neither do requests: only
    /// what can be heard does.
    pub(super) fn watch_silence(&mut self, cx: &mut Cx<'_>) {
        let runs = self.tool_calls.tools.is_running();
        let coming = self.responses.is_expected() || self.responses.is_anything_coming();
        let repeats = cx.timers.is_set(Timer::Retry);
        let waits = (runs || self.responses.is_expected() || repeats)
            && !self.caller_speaks
            && self.downlink.is_quiet();
        if !waits || self.tool_calls.is_leaving() {
            self.waits_since = None;
            cx.timers.stop(Timer::DeadAir);
            return cx.timers.stop(Timer::Filler);
        }
        let since = *self.waits_since.get_or_insert(cx.now);
        let by = since + cx.config.dead_air();
        cx.timers.set(Timer::DeadAir, by);
        let played = self.tool_calls.hold_message_played;
        let hold_message = cx.config.hold_message.as_ref().filter(|_| runs && !coming && !played);
        match hold_message.map(|hold_message| hold_message.after_ms) {
            Some(after_ms) => cx.timers.set(Timer::Filler, since + ms(after_ms)),
            None => cx.timers.stop(Timer::Filler),
        }
    }

    /// The caller has been waiting for a while and a function runs: a caller who hears that it takes its time knows that
    /// the line is alive.
    pub(super) fn play_hold_message(&mut self, cx: &mut Cx<'_>) {
        let coming = self.responses.is_expected() || self.responses.is_anything_coming();
        if coming || self.caller_speaks || !self.tool_calls.tools.is_running() {
            return; // the next watch sees to it
        }
        self.tool_calls.hold_message_played = true;
        self.responses.want(ResponseReason::HoldMessage);
        self.ask(cx);
    }

    // ---------------------------------------------------------------------------------------- common

    /// Asks for what is wanted, if it may.
    fn ask(&mut self, cx: &mut Cx<'_>) {
        let Some((number, why)) = self.responses.ask(self.caller_speaks) else { return };
        let instructions = match why {
            ResponseReason::Greeting => cx.config.greeting.clone(),
            ResponseReason::Farewell => cx.config.hangup.farewell.clone(),
            ResponseReason::HoldMessage => {
                cx.config.hold_message.as_ref().map(|filler| filler.instructions.clone())
            }
            ResponseReason::Turn
            | ResponseReason::Keypad
            | ResponseReason::ToolOutput
            | ResponseReason::Retry => None,
        };
        cx.send_to_model(ClientEvent::CreateResponse {
            event_id: responses::event_id(number),
            request: number,
            instructions,
            may_call: why != ResponseReason::HoldMessage && !self.tool_calls.tools.is_stopped(),
        });
        self.expect_audio(cx);
    }

    fn expect_audio(&mut self, cx: &mut Cx<'_>) {
        self.asked_at.get_or_insert(cx.now);
        cx.set_timer(Timer::FirstAudio, cx.config.timeouts.first_audio_ms);
    }

    /// Who is audible, or about to go on.
    pub(super) fn floor(&self, now: Instant) -> Floor {
        let goes_on = self.responses.spoke_at().is_some();
        Floor { caller: self.caller_speaks, agent: goes_on || self.downlink.is_audible(now) }
    }

    /// Nobody speaks or is about to, and nothing is due: the session can be replaced without anybody noticing.
    pub(super) fn is_idle(&self, timers: &Timers, now: Instant) -> bool {
        let responds = self.responses.is_anything_coming() || self.responses.is_expected();
        let repeats = timers.is_set(Timer::Retry) || timers.is_set(Timer::FirstAudio);
        let busy = responds
            || repeats
            || self.tool_calls.is_leaving()
            || self.tool_calls.tools.is_running()
            || self.tool_calls.tools.is_keeping()
            || self.keypad.is_gathering();
        let words_due = self.pending_transcriptions.iter().any(|(_, since)| *since + WORDS_PATIENCE > now);
        !self.caller_speaks && self.downlink.is_quiet() && !busy && !words_due
    }

    /// Another session takes over, which knows nothing but the history.
    pub(super) fn resume_on_new_session(&mut self, cx: &mut Cx<'_>) {
        self.responses.reset();
        self.tool_calls.tools.reset();
        self.pending_transcriptions.clear();
        self.uncommitted = false;
        self.silent_responses = 0;
        self.asked_at = None;
        self.clock = AudioClock::default();
        cx.uplink.replay_recent();
        self.send_uplink(cx);
        cx.uplink.take_keys().chars().for_each(|key| self.gather(cx, key));
    }

    /// Sends the audio that may be sent and comes back for the rest.
    pub(super) fn pump(&mut self, cx: &mut Cx<'_>) {
        cx.call.pump(&mut self.downlink, cx.stream, cx.caller_backpressured, cx.now);
        self.release(cx);
    }

    fn release(&mut self, cx: &mut Cx<'_>) {
        if self.reads_paused
            && (self.downlink.buffered_bytes() as u64) < cx.config.limits.max_buffered_ms * 8 / 2
        {
            self.reads_paused = false;
            cx.set_timer(Timer::ModelPing, cx.config.timeouts.ping_ms);
            cx.outbox.push_back(Transmit::PauseModelReads(false));
        }
    }

    /// The caller is gone: what was said last may yet be written down. `None` when nothing is to come.
    pub(super) fn last_words(&mut self, cx: &mut CallContext) -> Option<LastWords> {
        let awaited = self.uncommitted || !self.pending_transcriptions.is_empty();
        if !awaited || cx.config.transcription.is_none() {
            return None;
        }
        // Words may stand behind audio that was not read.
        if std::mem::take(&mut self.reads_paused) {
            cx.outbox.push_back(Transmit::PauseModelReads(false));
        }
        if let Some(response) = self.responses.interrupt() {
            cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
        }
        let pending_transcriptions = self.pending_transcriptions.drain(..).map(|(item, _)| item).collect();
        Some(LastWords::await_them(cx, self.caller_speaks, self.uncommitted, pending_transcriptions))
    }

    /// The conversation is over. Returns what is on its way to the caller, and the functions that run.
    pub(super) fn end(self, cx: &mut CallContext, now: Instant) -> (Downlink, Leftover) {
        (self.downlink, self.tool_calls.end(cx, now))
    }
}

/// Errors after which asking again is pointless.
fn is_hopeless(code: &str) -> bool {
    matches!(code, "insufficient_quota" | "billing_hard_limit_reached" | "account_deactivated")
}

/// Nothing is missed before the caller is done, and that may take its time.
fn no_answer_is_due(cx: &mut CallContext) {
    cx.timers.stop(Timer::FirstAudio);
    cx.timers.stop(Timer::Retry);
}
