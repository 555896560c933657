//! The caller is gone, and what they said last is still being written down.
//!
//! "Thank you, goodbye" and hanging up is how calls end, and words come half a second behind the turn. So the session is
//! kept for a moment: the turn that was going on is committed as it is, which costs no answer, and the words of
//! committed turns are waited for. Nothing else is sent but the cancel of a response that has no listener.

use super::context::CallContext;
use super::event::{CallEvent, Speaker};
use crate::wire::realtime::{ClientEvent, ServerEvent};

/// Names the commit, so that its refusal can be matched.
const COMMIT: &str = "commit_1";

/// What is still to come of the caller's turns.
#[derive(Debug)]
pub(super) struct LastWords {
    /// A turn was not committed yet.
    uncommitted: bool,
    /// The commit was sent, behind all of the caller's audio.
    commits: bool,
    /// Turns whose words are to come.
    pending_transcriptions: Vec<String>,
}

impl LastWords {
    /// `speaks`: the caller was speaking, so that no voice detection will end the turn: no more audio comes.
    pub(super) fn await_them(
        cx: &mut CallContext,
        speaks: bool,
        uncommitted: bool,
        pending_transcriptions: Vec<String>,
    ) -> Self {
        let mut last_words = Self { uncommitted, commits: false, pending_transcriptions };
        if speaks {
            last_words.commit(cx);
        }
        last_words
    }

    fn commit(&mut self, cx: &mut CallContext) {
        if !std::mem::replace(&mut self.commits, true) {
            cx.send_to_model(ClientEvent::CommitAudio { event_id: COMMIT.into() });
        }
    }

    /// All words are there.
    pub(super) const fn are_complete(&self) -> bool {
        !self.uncommitted && self.pending_transcriptions.is_empty()
    }

    /// The model says something to a caller who is gone.
    pub(super) fn model_event(&mut self, cx: &mut CallContext, event: ServerEvent) {
        match event {
            // Of audio that was on its way: the commit behind it ends this turn.
            ServerEvent::SpeechStarted { .. } => {
                self.uncommitted = true;
                self.commit(cx);
            }
            // A second commit is ours, which crossed the server's own: there is nothing but silence in it.
            ServerEvent::Committed { item, previous } if self.uncommitted => {
                self.uncommitted = false;
                cx.transcript.committed(&item, previous.as_deref(), true);
                self.pending_transcriptions.push(item);
            }
            ServerEvent::ItemAdded { item, previous, role, .. } if role == "user" => {
                if self.pending_transcriptions.contains(&item) {
                    cx.transcript.item(&item, previous.as_deref(), Speaker::Caller);
                }
            }
            ServerEvent::Transcribed { item, text } => {
                if self.take(&item) {
                    cx.transcript.words(&item, Speaker::Caller, &text);
                }
            }
            ServerEvent::TranscriptionFailed { item } => {
                if self.take(&item) {
                    cx.transcript.untranscribed(&item);
                }
            }
            // The answer that a server gives by itself is paid for as long as it runs.
            ServerEvent::ResponseCreated { response, .. } => {
                cx.send_to_model(ClientEvent::CancelResponse { response: Some(response) });
            }
            ServerEvent::ResponseDone(done) => cx.event(CallEvent::ResponseDone {
                response: done.response,
                status: done.status,
                usage: done.usage,
            }),
            // Too short to be a turn, or committed by the server just before.
            ServerEvent::Error(error) if error.event_id.as_deref() == Some(COMMIT) => {
                self.uncommitted = false
            }
            ServerEvent::Error(error) => {
                cx.counts.errors += 1;
                cx.event(CallEvent::ModelError { code: error.name().to_owned() });
            }
            ServerEvent::Other { kind, known: false } => {
                cx.unknown_event(&kind);
            }
            ServerEvent::SessionCreated { .. }
            | ServerEvent::SessionUpdated { .. }
            | ServerEvent::SpeechStopped { .. }
            | ServerEvent::Committed { .. }
            | ServerEvent::ItemAdded { .. }
            | ServerEvent::Truncated { .. }
            | ServerEvent::AudioDelta { .. }
            | ServerEvent::AudioDone { .. }
            | ServerEvent::AgentWords { .. }
            | ServerEvent::AgentWordsDone { .. }
            | ServerEvent::OutputItemDone { .. }
            | ServerEvent::Other { .. } => {}
        }
    }

    /// The words of this turn have come, if they were waited for.
    fn take(&mut self, item: &str) -> bool {
        let waiting = self.pending_transcriptions.len();
        self.pending_transcriptions.retain(|pending| pending != item);
        self.pending_transcriptions.len() < waiting
    }
}
