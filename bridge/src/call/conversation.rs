//! Both ends can hear each other: turns, barge-in, keypad, function calls.

use super::audio_clock::AudioClock;
use super::context::{CallContext, Failure, Stream, fatal};
use super::downlink::{Downlink, Interruption};
use super::event::{CallEvent, EndReason, Floor, Private, ProtectionEnd, Speaker, ToolOutcome};
use super::hangup::{ExitAction, PendingExit};
use super::io::{ToolResult, Transmit};
use super::keypad::Keypad;
use super::last_words::LastWords;
use super::responses::{self, Disposition, Done, ResponseReason, Responses};
use super::session;
use super::settings::ms;
use super::timers::{Timer, Timers};
use super::tools::{self, Leftover, Run, ToSend, Tools, Verdict};
use super::uplink::Uplink;
use crate::wire::realtime::{ApiError, ClientEvent, FunctionCall, ResponseDone, ServerEvent};
use crate::wire::twilio::ToTwilio;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long the words of a turn are waited for before the session is renewed without them.
const WORDS_PATIENCE: Duration = Duration::from_secs(5);
/// Names that a turn may be given before it ends.
const TURN_NAMES_MAX: usize = 16;
/// Turns without words that are remembered; older ones are waited for no longer.
const PENDING_TRANSCRIPTIONS_MAX: usize = 16;

/// The first response that says anything: the greeting, or what came in its place.
enum FirstWords {
    /// It is not complete.
    ToCome,
    /// The downlink's number of its last item.
    Generated(u64),
    /// They will not be heard to their end.
    Interrupted,
}

/// A conversation in progress.
pub(super) struct Conversation {
    pub(super) downlink: Downlink,
    responses: Responses,
    first_words: FirstWords,
    keypad: Keypad,
    tools: Tools,
    /// The caller was told that what runs now takes its time.
    hold_message_played: bool,
    /// Since when the caller has been waiting and nothing can be heard, whatever functions run meanwhile.
    waits_since: Option<Instant>,
    /// The call is to end, or be put through, once the caller has heard everything.
    pending_exit: Option<PendingExit>,
    /// It is being done: the function call, and what it is.
    exiting: Option<(String, ExitAction)>,
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
    pub(super) fn begin(cx: &mut CallContext, uplink: &mut Uplink, downlink: Downlink, now: Instant) -> Self {
        let mut conversation = Self {
            downlink,
            responses: Responses::default(),
            first_words: FirstWords::ToCome,
            keypad: Keypad::default(),
            tools: Tools::default(),
            hold_message_played: false,
            waits_since: None,
            pending_exit: None,
            exiting: None,
            caller_speaks: false,
            turn: Vec::new(),
            ended_turn: Vec::new(),
            uncommitted: false,
            clock: AudioClock::default(),
            asked_at: None,
            silent_responses: 0,
            reads_paused: false,
            pending_transcriptions: VecDeque::new(),
        };
        conversation.send_uplink(cx, uplink, false, now);
        if cx.config.greeting.is_some() {
            conversation.responses.want(ResponseReason::Greeting);
        }
        // A finished entry takes the greeting's place: its answer is what the caller waits for.
        uplink.take_keys().chars().for_each(|key| conversation.gather(cx, key, now));
        conversation.ask(cx, now);
        conversation
    }

    // ---------------------------------------------------------------------------------------- caller leg

    /// Caller audio was taken into the uplink.
    pub(super) fn caller_audio(
        &mut self,
        cx: &mut CallContext,
        uplink: &mut Uplink,
        model_backpressured: bool,
        now: Instant,
    ) {
        if self.caller_speaks {
            cx.timers.set(Timer::MediaPause, now + ms(cx.config.timeouts.media_pause_ms));
        }
        self.send_uplink(cx, uplink, model_backpressured, now);
    }

    pub(super) fn send_uplink(
        &mut self,
        cx: &mut CallContext,
        uplink: &mut Uplink,
        model_backpressured: bool,
        now: Instant,
    ) {
        if model_backpressured {
            return;
        }
        let per_ms = u64::from(cx.config.format.bytes_per_ms());
        while let Some(audio) = uplink.append() {
            self.clock.sent(Duration::from_micros(audio.len() as u64 * 1_000 / per_ms), now);
            cx.send_to_model(ClientEvent::AppendAudio { audio });
        }
    }

    /// The caller's carrier sends nothing although the caller was speaking: supply the silence it leaves out, or
    /// voice detection, which runs on audio time, would wait for ever. What it takes for speech may be longer than
    /// the caller's was, so there is more silence, at the speed of speech, until the turn ends or media goes on.
    pub(super) fn media_paused(
        &mut self,
        cx: &mut CallContext,
        uplink: &mut Uplink,
        model_backpressured: bool,
        now: Instant,
    ) {
        if !self.caller_speaks {
            return;
        }
        let silence_ms = u64::from(cx.config.vad.silence_duration_ms) + 500;
        cx.counts.filled_ms += uplink.supply_silence(silence_ms, now);
        self.send_uplink(cx, uplink, model_backpressured, now);
        cx.timers.set(Timer::MediaPause, now + ms(silence_ms));
    }

    /// `protected`: it may silence nothing yet.
    pub(super) fn key(
        &mut self,
        cx: &mut CallContext,
        stream: &Stream,
        key: char,
        protected: bool,
        now: Instant,
    ) {
        // A key press is a barge-in that voice detection cannot see, so the cancelling is up to us.
        let interrupts = self.downlink.is_audible(now)
            || self.responses.is_anything_coming()
            || self.pending_exit.is_some();
        if cx.config.barge_in && !protected {
            no_answer_is_due(cx);
            let interrupted = if interrupts { self.interrupt(cx, stream, now) } else { None };
            if let Some(response) = interrupted {
                cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
            }
        }
        self.gather(cx, key, now);
    }

    fn gather(&mut self, cx: &mut CallContext, key: char, now: Instant) {
        cx.timers.set(Timer::Keypad, now + ms(cx.config.dtmf.quiet_ms));
        if self.keypad.press(key, &cx.config.dtmf) {
            self.keypad_complete(cx, now);
        }
    }

    pub(super) fn keypad_complete(&mut self, cx: &mut CallContext, now: Instant) {
        cx.timers.stop(Timer::Keypad);
        let Some(entry) = self.keypad.finish() else { return };
        self.tools.new_turn(!self.caller_speaks);
        cx.transcript.words(&entry.item, Speaker::Keypad, &entry.text);
        cx.event(CallEvent::Keypad { keys: entry.keys, entry: Private::new(entry.pressed) });
        cx.send_to_model(ClientEvent::UserText { item: entry.item, text: entry.text });
        self.asked_at = Some(now);
        self.responses.want(ResponseReason::Keypad);
        self.ask(cx, now);
        if !self.caller_speaks {
            // Even when it has to wait for a cancelled response to end, the answer may not fail to come.
            let by = now + ms(cx.config.timeouts.first_audio_ms);
            cx.timers.set_if_unset(Timer::FirstAudio, by);
        }
    }

    // ---------------------------------------------------------------------------------------- model leg

    pub(super) fn model_event(
        &mut self,
        cx: &mut CallContext,
        stream: &Stream,
        backpressured: bool,
        event: ServerEvent,
        now: Instant,
    ) -> Result<(), Failure> {
        match event {
            ServerEvent::AudioDelta { response, item, content, audio } => {
                self.audio(cx, stream, backpressured, &response, &item, content, &audio, now);
            }
            ServerEvent::SpeechStarted { item } => self.speech_started(cx, stream, item, now),
            ServerEvent::SpeechStopped { item, audio_end_ms } => {
                // A turn ends once, even when its commit was told first.
                if self.caller_speaks || item.is_none_or(|item| !self.ended_turn.contains(&item)) {
                    self.turn_ended(cx, audio_end_ms, now);
                }
            }
            ServerEvent::AudioDone { response, item } => {
                if self.responses.is_audible_response(&response) {
                    self.downlink.finish_item(&item);
                    self.pump(cx, stream, backpressured, now);
                }
            }
            ServerEvent::ResponseCreated { response, request } => {
                let interrupted = self.caller_speaks && cx.config.barge_in;
                if self.responses.created(&response, request, interrupted) == Disposition::Discard {
                    cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
                }
            }
            ServerEvent::ResponseDone(done) => {
                return self.response_done(cx, stream, backpressured, done, now);
            }
            ServerEvent::OutputItemDone { response, call: Some(call) } => {
                return self.function_call(cx, &response, &call, now);
            }
            ServerEvent::OutputItemDone { call: None, .. } | ServerEvent::Truncated { .. } => {}
            ServerEvent::Committed { item, previous } => {
                let transcribed = cx.config.transcription.is_some();
                cx.transcript.committed(&item, previous.as_deref(), transcribed);
                // What is committed has ended, whether or not that was said; but it may be the turn before this one.
                if self.caller_speaks && !self.ended_turn.contains(&item) {
                    self.turn_ended(cx, None, now);
                }
                // The one before it was told of before this one began.
                self.uncommitted = self.caller_speaks;
                if transcribed {
                    self.pending_transcriptions.push_front((item, now));
                    self.pending_transcriptions.truncate(PENDING_TRANSCRIPTIONS_MAX);
                }
            }
            ServerEvent::ItemAdded { item, previous, role, answers } => {
                if let Some(call_id) = answers {
                    self.tools.taken(&call_id);
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
            ServerEvent::Error(error) => return self.error(cx, &error, now),
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

    #[expect(clippy::too_many_arguments, reason = "the parts of one audio delta, plus where it goes")]
    fn audio(
        &mut self,
        cx: &mut CallContext,
        stream: &Stream,
        backpressured: bool,
        response: &str,
        item: &str,
        content: u32,
        audio: &[u8],
        now: Instant,
    ) {
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
        if self.responses.spoke(response, now) {
            cx.timers.stop(Timer::FirstAudio);
            self.silent_responses = 0;
            let after = self.asked_at.take().map(|asked| now - asked);
            cx.event(CallEvent::Speaking { response: response.to_owned(), after });
        }
        self.pump(cx, stream, backpressured, now);
        let held_max = cx.config.limits.max_buffered_ms * 8;
        if !self.reads_paused && self.downlink.buffered_bytes() as u64 > held_max {
            self.reads_paused = true;
            // What is not read cannot answer.
            cx.timers.stop(Timer::ModelPing);
            cx.timers.stop(Timer::ModelPong);
            cx.outbox.push_back(Transmit::PauseModelReads(true));
        }
    }

    fn speech_started(&mut self, cx: &mut CallContext, stream: &Stream, item: Option<String>, now: Instant) {
        self.caller_speaks = true;
        self.uncommitted = true;
        cx.timers.set(Timer::MediaPause, now + ms(cx.config.timeouts.media_pause_ms));
        if let Some(item) = item {
            cx.transcript.item(&item, None, Speaker::Caller);
            self.turn.push(item);
            self.turn.truncate(TURN_NAMES_MAX);
        }
        if cx.config.barge_in {
            no_answer_is_due(cx);
            let interrupted = self.interrupt(cx, stream, now);
            if let Some(response) = interrupted.filter(|_| !cx.config.vad.interrupt_response) {
                cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
            }
        }
        cx.event(CallEvent::SpeechStarted);
    }

    fn turn_ended(&mut self, cx: &mut CallContext, audio_end_ms: Option<u64>, now: Instant) {
        self.caller_speaks = false;
        self.ended_turn = std::mem::take(&mut self.turn);
        // The caller has waited since the last word, not since the server was sure of it.
        let silence_ms = u64::from(cx.config.vad.silence_duration_ms);
        let spoken_ms = audio_end_ms.map_or(0, |end_ms| end_ms.saturating_sub(silence_ms));
        let last_word = (spoken_ms > 0).then(|| self.clock.when(spoken_ms)).flatten();
        self.asked_at = Some(last_word.map_or(now, |at| at.min(now)));
        self.tools.new_turn(true);
        self.responses.turn_ended();
        cx.timers.stop(Timer::MediaPause);
        cx.event(CallEvent::SpeechStopped);
        if cx.config.vad.create_response {
            let cancels = cx.config.barge_in && cx.config.vad.interrupt_response;
            if self.responses.keeps_server_from_answering(cancels) {
                self.want_turn(cx, now);
            } else {
                self.responses.expect_server_turn();
                self.expect_audio(cx, now);
            }
        } else {
            self.want_turn(cx, now);
        }
    }

    /// The caller's turn is over and it is up to us to have it answered.
    fn want_turn(&mut self, cx: &mut CallContext, now: Instant) {
        self.responses.want(ResponseReason::Turn);
        self.ask(cx, now);
        if self.responses.is_requested() || self.responses.waits_for_an_end() {
            // It may have to wait for a request that was made before, and that may never be answered; or for the end of
            // another response.
            self.expect_audio(cx, now);
        }
    }

    /// The caller takes the floor. Silences the ear first, then tells the model what was heard. Returns the
    /// active response when it was interrupted by this.
    fn interrupt(&mut self, cx: &mut CallContext, stream: &Stream, now: Instant) -> Option<String> {
        self.first_words = FirstWords::Interrupted;
        let playing = self.downlink.playing_item(now);
        let coming = self.responses.is_expected();
        let Interruption { clear, truncations, discarded } = self.downlink.interrupt(now);
        if clear {
            cx.outbox.push_back(Transmit::WithdrawAudio);
            cx.send_to_caller(stream, ToTwilio::Clear);
        }
        cx.transcript.truncate_all(&truncations);
        cx.counts.truncations += truncations.len() as u64;
        for cut in &truncations {
            cx.send_to_model(ClientEvent::Truncate {
                item: cut.item.clone(),
                content: cut.content,
                audio_end_ms: cut.heard_ms,
            });
        }
        cx.timers.stop(Timer::Pace);
        cx.timers.stop(Timer::Mark);
        self.release(cx, now);
        let active = self.responses.interrupt();
        if clear || coming || !truncations.is_empty() {
            cx.counts.barge_ins += 1;
            let (item, heard) = playing.map_or_else(Default::default, |(item, heard)| (Some(item), heard));
            cx.event(CallEvent::BargeIn { item, heard, discarded });
        }
        self.asked_at = None;
        if let Some(farewell) = self.pending_exit.take() {
            cx.timers.stop(Timer::Farewell);
            // Whatever the caller says is answered by a response that knows of this.
            const WHY: &str = "not done: the caller spoke first, and the call goes on";
            self.tools.answers(&farewell.call_id, &farewell.response, &tools::failure(WHY), now);
            self.refused(cx, &farewell.call_id, farewell.way.name(), WHY);
            self.send_outputs(cx, now);
        }
        active
    }

    fn response_done(
        &mut self,
        cx: &mut CallContext,
        stream: &Stream,
        backpressured: bool,
        done: ResponseDone,
        now: Instant,
    ) -> Result<(), Failure> {
        if self.responses.is_audible_response(&done.response) {
            self.downlink.finish_response(&done.response);
            self.pump(cx, stream, backpressured, now);
        }
        for call in &done.calls {
            self.function_call(cx, &done.response, call, now)?;
        }
        self.tools.response_over(&done.response);
        self.send_outputs(cx, now);
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
                    return self.nothing_was_said(cx, &why, now);
                }
                None
            }
        };
        let spoke = active.as_ref().is_some_and(|active| active.spoke_at.is_some());
        if spoke && matches!(self.first_words, FirstWords::ToCome) {
            self.first_words = FirstWords::Generated(self.downlink.last_item());
        }
        let is_silent = active.as_ref().is_some_and(|active| active.spoke_at.is_none());
        if is_silent
            && cx.config.hangup.farewell.is_some()
            && self.pending_exit.as_ref().is_some_and(|farewell| farewell.response == done.response)
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
            return self.nothing_was_said(cx, done.error.as_deref().unwrap_or(&done.status), now);
        }
        self.speak_about_tools();
        self.ask(cx, now);
        Ok(())
    }

    /// A response ended, or never came, and the caller heard nothing of it: try once more, then say so.
    fn nothing_was_said(&mut self, cx: &mut CallContext, why: &str, now: Instant) -> Result<(), Failure> {
        cx.timers.stop(Timer::FirstAudio);
        if self.pending_exit.is_some() {
            return Ok(()); // then without a word
        }
        self.silent_responses += 1;
        if self.silent_responses > 1 || is_hopeless(why) {
            return Err(Failure { reason: EndReason::ResponseFailed, detail: why.to_owned() });
        }
        cx.event(CallEvent::ModelError { code: why.to_owned() });
        cx.timers.set(Timer::Retry, now + ms(cx.config.timeouts.retry_ms));
        Ok(())
    }

    pub(super) fn retry(&mut self, cx: &mut CallContext, now: Instant) {
        cx.counts.retries += 1;
        self.responses.want(ResponseReason::Retry);
        self.ask(cx, now);
        // It may have to wait for the end of what was given up.
        cx.timers.set_if_unset(Timer::FirstAudio, now + ms(cx.config.timeouts.first_audio_ms));
    }

    pub(super) fn first_audio_overdue(&mut self, cx: &mut CallContext, now: Instant) -> Result<(), Failure> {
        if self.responses.is_only_a_hold_message() {
            // Then the function's time passes in silence.
            if let Some(response) = self.responses.give_up_hold_message() {
                cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
            }
            self.ask(cx, now);
            return Ok(());
        }
        if self.responses.forget_given_up() {
            // No message said that it had ended. What was wanted behind it is asked for all the same.
            self.ask(cx, now);
            return Ok(());
        }
        // What is wanted waits for a response that is speaking; only one that has fallen silent is given up.
        let by = self.responses.spoke_at().map(|at| at + ms(cx.config.timeouts.first_audio_ms));
        if let Some(by) = by.filter(|by| *by > now || self.reads_paused) {
            cx.timers.set(Timer::FirstAudio, by.max(now + ms(cx.config.timeouts.retry_ms.max(1))));
            return Ok(());
        }
        if let Some(response) = self.responses.give_up() {
            cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
        }
        self.nothing_was_said(cx, "no audio in time", now)
    }

    fn error(&mut self, cx: &mut CallContext, error: &ApiError, now: Instant) -> Result<(), Failure> {
        let name = error.name();
        if let Some(reason) = fatal(name) {
            return Err(Failure { reason, detail: error.in_words() });
        }
        cx.counts.errors += 1;
        cx.event(CallEvent::ModelError { code: name.to_owned() });
        if name == "invalid_tool_call_id" {
            cx.counts.refused_outputs += 1;
            let running = self.responses.running();
            if let Some(response) = self.tools.refused(error.event_id.as_deref(), running, now) {
                // A response that was asked for meanwhile may have been made without it.
                self.tools.is_to_be_spoken_about(&response);
                self.send_outputs(cx, now);
                self.speak_about_tools();
                self.ask(cx, now);
            }
            return Ok(());
        }
        if name == "response_cancel_not_active"
            && self.responses.cancelled_by_server(cx.config.vad.create_response)
        {
            self.expect_audio(cx, now);
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
                self.ask(cx, now);
                Ok(())
            }
            Some(_) => self.nothing_was_said(cx, name, now),
        }
    }

    // ---------------------------------------------------------------------------------------- functions

    fn function_call(
        &mut self,
        cx: &mut CallContext,
        response: &str,
        call: &FunctionCall,
        now: Instant,
    ) -> Result<(), Failure> {
        let interrupted = !self.responses.is_audible_response(response);
        let stopped = self.tools.is_stopped();
        let verdict = self.tools.called(call, response, interrupted, &cx.config, now);
        if verdict != Verdict::Ignore && cx.config.renewal.is_some() {
            cx.transcript.called(call);
        }
        if !stopped && self.tools.is_stopped() {
            let rounds = self.tools.rounds();
            cx.counts.tool_loops += 1;
            cx.event(CallEvent::ToolLoop { rounds });
        }
        match verdict {
            Verdict::Ignore => return Ok(()),
            Verdict::Endless => {
                let detail = "the model calls functions without end".to_owned();
                return Err(Failure { reason: EndReason::ResponseFailed, detail });
            }
            Verdict::Run { arguments } => {
                called(cx, call, &arguments);
                cx.outbox.push_back(Transmit::RunTool {
                    call_id: call.call_id.clone(),
                    name: call.name.clone(),
                    arguments,
                });
                self.watch_tools(cx);
            }
            Verdict::Exit { way, arguments } => {
                called(cx, call, &arguments);
                if self.pending_exit.is_some() || self.exiting.is_some() {
                    const WHY: &str = "the call is being ended or put through already";
                    self.tools.answers(&call.call_id, response, &tools::failure(WHY), now);
                    self.refused(cx, &call.call_id, &call.name, WHY);
                } else {
                    let (call_id, response) = (call.call_id.clone(), response.to_owned());
                    self.pending_exit = Some(PendingExit { call_id, way, arguments, response });
                    cx.timers.set(Timer::Farewell, now + ms(cx.config.hangup.farewell_ms));
                }
            }
            Verdict::Answer { output, why } => {
                self.tools.answers(&call.call_id, response, &output, now);
                self.refused(cx, &call.call_id, &call.name, why);
                if !interrupted {
                    self.tools.is_to_be_spoken_about(response);
                }
            }
            Verdict::Reuse { output } => {
                self.answered(cx, &call.call_id, &call.name, ToolOutcome::Reused, None, &output);
                self.tools.is_to_be_spoken_about(response);
            }
        }
        if self.responses.called(response) {
            // What it has to say comes with the outputs. The timer of one that cannot be heard may belong to the turn
            // that interrupted it.
            cx.timers.stop(Timer::FirstAudio);
        }
        self.send_outputs(cx, now);
        Ok(())
    }

    /// Returns how the call left the model, if that was it.
    pub(super) fn tool_ended(
        &mut self,
        cx: &mut CallContext,
        result: ToolResult,
        now: Instant,
    ) -> Option<Failure> {
        let why = result.output.as_ref().err().cloned();
        let outcome = if why.is_none() { ToolOutcome::Done } else { ToolOutcome::Failed };
        let output = result.output.unwrap_or_else(|why| tools::failure(&why));
        // Without one it took too long and was answered already.
        let run = self.tools.ended(&result.call_id, &output, now)?;
        if let left @ Some(_) = self.run_over(cx, run, outcome, &output, why.as_deref(), now) {
            return left;
        }
        self.outputs_came(cx, now);
        None
    }

    /// As [`Conversation::tool_ended`].
    pub(super) fn tool_overdue(&mut self, cx: &mut CallContext, now: Instant) -> Option<Failure> {
        let output = tools::failure(TOO_LONG);
        while let Some(run) = self.tools.take_late(&output, now) {
            cx.outbox.push_back(Transmit::CancelTool { call_id: run.call_id.clone() });
            let outcome = ToolOutcome::TimedOut;
            if let left @ Some(_) = self.run_over(cx, run, outcome, &output, Some(TOO_LONG), now) {
                return left;
            }
        }
        self.outputs_came(cx, now);
        None
    }

    fn run_over(
        &mut self,
        cx: &mut CallContext,
        run: Run,
        outcome: ToolOutcome,
        output: &str,
        failed: Option<&str>,
        now: Instant,
    ) -> Option<Failure> {
        let left = self.exited(&run.call_id, failed);
        self.answered(cx, &run.call_id, &run.name, outcome, Some(now - run.began), output);
        if left.is_some() {
            self.send_outputs(cx, now);
            return left;
        }
        self.tools.is_to_be_spoken_about(&run.response);
        None
    }

    /// Sends what may be sent, and has it spoken about.
    fn outputs_came(&mut self, cx: &mut CallContext, now: Instant) {
        self.send_outputs(cx, now);
        self.speak_about_tools();
        self.ask(cx, now);
    }

    fn send_outputs(&mut self, cx: &mut CallContext, now: Instant) {
        for ToSend { event_id, call_id, output } in self.tools.take_outputs(now) {
            cx.send_to_model(ClientEvent::ToolOutput { event_id, call_id, output });
        }
        self.watch_tools(cx);
    }

    // ---------------------------------------------------------------------------------------- leaving

    /// Ends the call or puts the caller through, if that is wanted and the caller has heard everything.
    pub(super) fn exit_if_heard(&mut self, cx: &mut CallContext, now: Instant) {
        let heard = self.downlink.is_quiet() && !self.responses.is_expected() && !self.caller_speaks;
        // What the model has begun is finished first; the farewell's limit bounds that, too.
        if heard && self.pending_exit.is_some() && !self.tools.is_running() {
            self.exit(cx, now);
        }
    }

    /// Does it, heard or not.
    pub(super) fn exit(&mut self, cx: &mut CallContext, now: Instant) {
        let Some(PendingExit { call_id, way, arguments, response }) = self.pending_exit.take() else {
            return;
        };
        cx.timers.stop(Timer::Farewell);
        let by = now + ms(cx.config.hangup.carrier_ms);
        self.tools.runs(&call_id, way.name(), &response, now, by);
        self.watch_tools(cx);
        self.exiting = Some((call_id.clone(), way));
        cx.outbox.push_back(Transmit::RunTool { call_id, name: way.name().to_owned(), arguments });
    }

    /// The call is being ended or put through at this moment.
    pub(super) fn exit_action(&self) -> Option<ExitAction> {
        self.exiting.as_ref().map(|(_, way)| *way)
    }

    /// The end a function call has brought about, if it was to. A call that could not be ended by Twilio's leave is
    /// ended all the same, by closing its stream; one that could not be put through goes on.
    fn exited(&mut self, call_id: &str, failed: Option<&str>) -> Option<Failure> {
        let (_, way) = self.exiting.take_if(|(leaving, _)| leaving == call_id)?;
        let detail = match (way, failed) {
            (ExitAction::Transfer, Some(_)) => return None,
            (_, None) => way.name().to_owned(),
            (ExitAction::HangUp, Some(why)) => format!("by closing the stream, because: {why}"),
        };
        Some(Failure { reason: way.reason(), detail })
    }

    /// A function call is answered, whenever its output is sent.
    fn answered(
        &self,
        cx: &mut CallContext,
        call_id: &str,
        name: &str,
        outcome: ToolOutcome,
        took: Option<Duration>,
        output: &str,
    ) {
        if cx.config.renewal.is_some() {
            cx.transcript.answered(call_id, output);
        }
        cx.event(CallEvent::ToolAnswered {
            call_id: call_id.to_owned(),
            name: name.to_owned(),
            outcome,
            took,
            why: None,
            output: Private::new(output),
        });
    }

    /// A function call is answered without being run.
    fn refused(&self, cx: &mut CallContext, call_id: &str, name: &str, why: &'static str) {
        let output = tools::failure(why);
        if cx.config.renewal.is_some() {
            cx.transcript.answered(call_id, &output);
        }
        cx.event(CallEvent::ToolAnswered {
            call_id: call_id.to_owned(),
            name: name.to_owned(),
            outcome: ToolOutcome::Refused,
            took: None,
            why: Some(why),
            output: Private::new(output),
        });
    }

    /// Watches how long the caller has been waiting in silence. Function calls end no wait, and neither do requests: only
    /// what can be heard does.
    pub(super) fn watch_silence(&mut self, cx: &mut CallContext, now: Instant) {
        let runs = self.tools.is_running();
        let coming = self.responses.is_expected() || self.responses.is_anything_coming();
        let repeats = cx.timers.is_set(Timer::Retry);
        let waits = (runs || self.responses.is_expected() || repeats)
            && !self.caller_speaks
            && self.downlink.is_quiet();
        let leaves = self.pending_exit.is_some() || self.exiting.is_some();
        if !waits || leaves {
            self.waits_since = None;
            cx.timers.stop(Timer::DeadAir);
            return cx.timers.stop(Timer::Filler);
        }
        let since = *self.waits_since.get_or_insert(now);
        cx.timers.set(Timer::DeadAir, since + cx.config.dead_air());
        match cx.config.hold_message.as_ref().filter(|_| runs && !coming && !self.hold_message_played) {
            Some(filler) => cx.timers.set(Timer::Filler, since + ms(filler.after_ms)),
            None => cx.timers.stop(Timer::Filler),
        }
    }

    /// The caller has been waiting for a while and a function runs: a caller who hears that it takes its time knows that
    /// the line is alive.
    pub(super) fn play_hold_message(&mut self, cx: &mut CallContext, now: Instant) {
        let coming = self.responses.is_expected() || self.responses.is_anything_coming();
        if coming || self.caller_speaks || !self.tools.is_running() {
            return; // the next watch sees to it
        }
        self.hold_message_played = true;
        self.responses.want(ResponseReason::HoldMessage);
        self.ask(cx, now);
    }

    fn watch_tools(&mut self, cx: &mut CallContext) {
        match self.tools.due() {
            Some(at) => cx.timers.set(Timer::Tool, at),
            None => cx.timers.stop(Timer::Tool),
        }
        self.hold_message_played &= self.tools.is_running();
    }

    /// Once every call of a response is answered, one response speaks about all of them. A caller who is speaking has
    /// the floor: the answer to that turn will know the outputs. A call that is being left has had its last words.
    fn speak_about_tools(&mut self) {
        if self.tools.take_unspoken() && self.exiting.is_none() {
            self.responses.want(ResponseReason::ToolOutput);
        }
    }

    // ---------------------------------------------------------------------------------------- common

    /// What has become of the agent's first words, once they need no protection any more.
    pub(super) fn first_words_over(&self) -> Option<ProtectionEnd> {
        match self.first_words {
            FirstWords::Interrupted => Some(ProtectionEnd::Interrupted),
            FirstWords::Generated(last) => {
                self.downlink.is_heard_through(last).then_some(ProtectionEnd::Heard)
            }
            FirstWords::ToCome => None,
        }
    }

    /// Asks for what is wanted, if it may.
    fn ask(&mut self, cx: &mut CallContext, now: Instant) {
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
            may_call: why != ResponseReason::HoldMessage && !self.tools.is_stopped(),
        });
        self.expect_audio(cx, now);
    }

    fn expect_audio(&mut self, cx: &mut CallContext, now: Instant) {
        self.asked_at.get_or_insert(now);
        cx.timers.set(Timer::FirstAudio, now + ms(cx.config.timeouts.first_audio_ms));
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
        let leaves = self.pending_exit.is_some() || self.exiting.is_some();
        let busy = responds
            || repeats
            || leaves
            || self.tools.is_running()
            || self.tools.is_keeping()
            || self.keypad.is_gathering();
        let words_due = self.pending_transcriptions.iter().any(|(_, since)| *since + WORDS_PATIENCE > now);
        !self.caller_speaks && self.downlink.is_quiet() && !busy && !words_due
    }

    /// Another session takes over, which knows nothing but the history.
    pub(super) fn resume_on_new_session(&mut self, cx: &mut CallContext, uplink: &mut Uplink, now: Instant) {
        self.responses.reset();
        self.tools.reset();
        self.pending_transcriptions.clear();
        self.uncommitted = false;
        self.silent_responses = 0;
        self.asked_at = None;
        self.clock = AudioClock::default();
        uplink.replay_recent();
        self.send_uplink(cx, uplink, false, now);
        uplink.take_keys().chars().for_each(|key| self.gather(cx, key, now));
    }

    /// Sends the audio that may be sent and comes back for the rest.
    pub(super) fn pump(&mut self, cx: &mut CallContext, stream: &Stream, backpressured: bool, now: Instant) {
        cx.pump(&mut self.downlink, stream, backpressured, now);
        self.release(cx, now);
    }

    fn release(&mut self, cx: &mut CallContext, now: Instant) {
        if self.reads_paused
            && (self.downlink.buffered_bytes() as u64) < cx.config.limits.max_buffered_ms * 8 / 2
        {
            self.reads_paused = false;
            cx.timers.set(Timer::ModelPing, now + ms(cx.config.timeouts.ping_ms));
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

    /// The conversation is over. Hands out what is on its way to the ear, and the functions that run: what was begun is
    /// finished, and what came of it is told.
    pub(super) fn end(mut self, cx: &mut CallContext, now: Instant) -> (Downlink, Leftover) {
        cx.timers.stop(Timer::Farewell);
        if let Some(farewell) = self.pending_exit.take() {
            self.refused(cx, &farewell.call_id, farewell.way.name(), "not done: the call ended first");
        }
        let longest = ms(cx.config.timeouts.tool_after_end_ms);
        (self.downlink, self.tools.run_out(longest, now))
    }
}

/// What the model is told of a function that was stopped.
pub(super) const TOO_LONG: &str = "the function took too long";

fn called(cx: &mut CallContext, call: &FunctionCall, arguments: &str) {
    cx.event(CallEvent::ToolCalled {
        call_id: call.call_id.clone(),
        name: call.name.clone(),
        arguments: Private::new(arguments),
    });
}

/// Errors after which asking again is pointless.
fn is_hopeless(code: &str) -> bool {
    matches!(code, "insufficient_quota" | "billing_hard_limit_reached" | "account_deactivated")
}

/// The caller speaks, or presses keys: nothing is missed before they are done, and that may take its time.
fn no_answer_is_due(cx: &mut CallContext) {
    cx.timers.stop(Timer::FirstAudio);
    cx.timers.stop(Timer::Retry);
}
