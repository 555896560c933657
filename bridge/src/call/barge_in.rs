//! What counts as a barge-in, who cancels the response, and what is owed to both ends. Decided here and nowhere else.
//!
//! | the caller | `barge_in` off | key guarded | otherwise | who cancels |
//! |---|---|---|---|---|
//! | speaks | nothing | | interrupts | the server, or the bridge if `interrupt_response` is off |
//! | presses a key | nothing | nothing | interrupts what is audible or coming | the bridge |
//! | speaks while a response is created | it plays | | it is discarded | the bridge |
//!
//! The greeting guard has no say in speech: guarded audio reaches the model as silence, and what the model takes for
//! speech all the same is treated as speech. No voice detection notices a key, and no server cancels a response that
//! begins after the speech; so the bridge cancels both.
//!
//! An interruption owes Twilio a `clear` if something was sent and not heard, the model a truncation of each item with
//! unheard audio, and a cancel of the response that runs. When nothing is audible nothing is sent.

use super::context::Cx;
use super::downlink::{Downlink, Interruption};
use super::event::{CallEvent, ProtectionEnd};
use super::io::Transmit;
use super::responses::Responses;
use super::settings::CallConfig;
use super::timers::Timer;
use crate::wire::realtime::ClientEvent;
use crate::wire::twilio::ToTwilio;

/// What the caller does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause {
    /// By the server's voice detection.
    Speech,
    /// `guarded`: in the window at the beginning of the call. `hits`: something is audible, coming, or about to end the
    /// call.
    Key { guarded: bool, hits: bool },
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    /// No answer is due before the caller is done.
    HoldsAnswer,
    /// That, and what is audible or coming is discarded. `cancel`: the bridge cancels the response that runs.
    Interrupts {
        cancel: bool,
    },
}

/// What the configuration makes of a caller who speaks over the agent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    caller_interrupts: bool,
    /// The server cancels by itself what speech interrupts.
    pub(super) server_cancels: bool,
    /// The server answers turns by itself.
    pub(super) server_answers: bool,
}

impl Policy {
    pub(super) fn of(config: &CallConfig) -> Self {
        Self {
            caller_interrupts: config.barge_in,
            server_cancels: config.server_interrupts(),
            server_answers: config.vad.create_response,
        }
    }

    pub(super) const fn effect(self, cause: Cause) -> Effect {
        if !self.caller_interrupts {
            return Effect::Nothing;
        }
        match cause {
            Cause::Speech => Effect::Interrupts { cancel: !self.server_cancels },
            Cause::Key { guarded: true, .. } => Effect::Nothing,
            Cause::Key { hits: false, .. } => Effect::HoldsAnswer,
            Cause::Key { hits: true, .. } => Effect::Interrupts { cancel: true },
        }
    }

    /// A response that is created now is spoken over.
    pub(super) const fn discards_new(self, caller_speaks: bool) -> bool {
        caller_speaks && self.caller_interrupts
    }

    /// The server answers the turn that ended; otherwise the bridge has to ask for it.
    pub(super) const fn leaves_turn_to_server(self, responses: &Responses) -> bool {
        self.server_answers && !responses.keeps_server_from_answering(self.server_cancels)
    }
}

/// Silences the caller's playback first, then tells the model what was heard, and discards what is coming. Returns the
/// response that runs, if it was interrupted by this.
pub(super) fn interrupt(
    cx: &mut Cx<'_>,
    downlink: &mut Downlink,
    responses: &mut Responses,
) -> Option<String> {
    let playing = downlink.playing_item(cx.now);
    let coming = responses.is_expected();
    let Interruption { clear, truncations, discarded } = downlink.interrupt(cx.now);
    if clear {
        cx.outbox.push_back(Transmit::WithdrawAudio);
        cx.call.send_to_caller(cx.stream, ToTwilio::Clear);
    }
    cx.transcript.truncate_all(&truncations);
    cx.counts.truncations += truncations.len() as u64;
    for cut in &truncations {
        let (item, content, audio_end_ms) = (cut.item.clone(), cut.content, cut.heard_ms);
        cx.send_to_model(ClientEvent::Truncate { item, content, audio_end_ms });
    }
    cx.timers.stop(Timer::Pace);
    cx.timers.stop(Timer::Mark);
    if clear || coming || !truncations.is_empty() {
        cx.counts.barge_ins += 1;
        let (item, heard) = playing.map_or_else(Default::default, |(item, heard)| (Some(item), heard));
        cx.event(CallEvent::BargeIn { item, heard, discarded });
    }
    responses.interrupt()
}

/// The first response with audio: the greeting, or what came in its place. The greeting guard ends with it.
#[derive(Default)]
pub(super) enum FirstWords {
    /// It is not complete.
    #[default]
    ToCome,
    /// The downlink's number of its last item.
    Generated(u64),
    /// They will not be heard to their end.
    Interrupted,
}

impl FirstWords {
    /// A response with audio is complete.
    pub(super) const fn generated(&mut self, downlink: &Downlink) {
        if matches!(self, Self::ToCome) {
            *self = Self::Generated(downlink.last_item());
        }
    }

    /// What has become of them, once they need no protection any more.
    pub(super) fn over(&self, downlink: &Downlink) -> Option<ProtectionEnd> {
        match self {
            Self::Interrupted => Some(ProtectionEnd::Interrupted),
            Self::Generated(last) => downlink.is_heard_through(*last).then_some(ProtectionEnd::Heard),
            Self::ToCome => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(barge_in: bool, interrupt_response: bool) -> Policy {
        let mut config = CallConfig { barge_in, ..CallConfig::default() };
        config.vad.interrupt_response = interrupt_response;
        Policy::of(&config)
    }

    #[test]
    fn speech_is_cancelled_by_the_server_where_it_does_that() {
        assert_eq!(policy(true, true).effect(Cause::Speech), Effect::Interrupts { cancel: false });
        assert_eq!(policy(true, false).effect(Cause::Speech), Effect::Interrupts { cancel: true });
    }

    #[test]
    fn a_key_is_cancelled_by_the_bridge_and_only_if_it_hits_something() {
        let policy = policy(true, true);
        let key = |guarded, hits| policy.effect(Cause::Key { guarded, hits });
        assert_eq!(key(false, true), Effect::Interrupts { cancel: true });
        assert_eq!(key(false, false), Effect::HoldsAnswer);
        assert_eq!((key(true, true), key(true, false)), (Effect::Nothing, Effect::Nothing));
    }

    #[test]
    fn without_barge_in_nothing_is_interrupted_and_the_server_cancels_nothing() {
        let policy = policy(false, true);
        assert_eq!(policy.effect(Cause::Speech), Effect::Nothing);
        assert_eq!(policy.effect(Cause::Key { guarded: false, hits: true }), Effect::Nothing);
        assert!(!policy.discards_new(true) && !policy.server_cancels);
    }
}
