//! The person: where they are in their script, and what they are waiting for.
//!
//! A person does nothing alone. The call asks when the next thing is due, and then does it.

use super::mic::Mic;
use super::playout::{Moment, Playout};
use crate::peer::At;
use std::collections::VecDeque;

/// Bytes of G.711 in a millisecond.
pub(super) const BYTES_PER_MS: usize = 8;

/// Where a person is in their script.
#[derive(Debug)]
pub(super) struct Person {
    /// The step being done, or the next one.
    pub(super) index: usize,
    /// What they are doing about it.
    pub(super) doing: Doing,
    /// Bytes heard when an agent utterance last began or ended for the script.
    pub(super) heard_before: usize,
}

/// What a person is doing.
#[derive(Debug)]
pub(super) enum Doing {
    /// The step at `index` is next.
    Ready,
    /// Nothing, until then.
    Waiting(At),
    /// Speaking or playing something, until this sound is over.
    Speaking(usize),
    /// Pressing keys.
    Pressing {
        /// Keys still to press.
        keys: VecDeque<char>,
        /// From one key to the next, ms.
        gap_ms: u64,
        /// When the next key is pressed.
        next: At,
    },
    /// Listening, but not for ever.
    Attribution {
        /// For what.
        what: Attribution,
        /// When they lose patience.
        give_up_at: At,
    },
    /// Nothing more: the script is over, or it waits for the bridge.
    Done,
}

/// What a person is listening for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attribution {
    /// Audio that is new since then.
    Start(Moment),
    /// This many bytes of the utterance current then, or of a later one.
    For(Moment, usize),
    /// This many bytes in all.
    Total(usize),
    /// Quiet.
    End,
}

impl Person {
    pub(super) fn new() -> Self {
        Self { index: 0, doing: Doing::Ready, heard_before: 0 }
    }

    /// When there is something to do; a time in the past when there is at once.
    pub(super) fn due(&self, playout: &Playout, mic: &Mic) -> Option<At> {
        match &self.doing {
            Doing::Ready => Some(At(0)),
            Doing::Waiting(until) => Some(*until),
            Doing::Speaking(sound) => mic.has_played(*sound).then_some(At(0)),
            Doing::Pressing { next, .. } => Some(*next),
            Doing::Attribution { what, give_up_at } => {
                Some(self.hears_at(*what, playout).map_or(*give_up_at, |at| at.min(*give_up_at)))
            }
            Doing::Done => None,
        }
    }

    /// When what they listen for is heard, if that is known yet.
    pub(super) fn hears_at(&self, what: Attribution, playout: &Playout) -> Option<At> {
        match what {
            Attribution::Start(then) => playout.began_since(then).map(|(at, _)| at),
            Attribution::For(then, len) => playout.when_heard(then, len),
            Attribution::Total(total) => playout.when_total(total),
            Attribution::End => playout.when_quiet(self.heard_before),
        }
    }

    /// What they listened for was heard: what counts as new begins here.
    pub(super) fn has_heard(&mut self, what: Attribution, playout: &Playout) {
        match what {
            Attribution::Start(then) => {
                self.heard_before = playout.began_since(then).map_or(self.heard_before, |(_, base)| base);
            }
            Attribution::End => self.heard_before = playout.total(),
            Attribution::For(..) | Attribution::Total(_) => {}
        }
    }

    /// On to the next step.
    pub(super) fn finish(&mut self) {
        self.index += 1;
        self.doing = Doing::Ready;
    }
}
