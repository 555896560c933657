//! One sequencer for everything the model says: at most one `response.create` outstanding, at most one response
//! active, and no audio of a response after the caller interrupted it.
//!
//! Three ways a response comes about: the server's voice detection answers a turn by itself, the bridge asks for
//! one, or a server starts one unasked (taken like the first). What the bridge wants while it may not ask is
//! remembered, once; a turn the server will answer by itself satisfies what was wanted before it, because the
//! answer is generated from a conversation that already holds the items the want was about.
//!
//! A list says which responses are audible, not which are interrupted: a response is on it from its creation until the
//! caller interrupts, so that audio of a response that was not announced, or that ended long ago, is dropped as well.
//!
//! The response under way is a [`Slot`]:
//!
//! ```text
//!   any state ── created, to be played ──► Audible
//!   any state ── created, interrupted before or spoken over ──► CancelOnCreate
//!   any state ── done, refused, given up, waited for long enough ──► Empty
//!
//!   Audible ── the caller interrupts ──► Interrupted ◄── the server had cancelled it ── CancelOnCreate
//!   Audible ── no audio in time ──► Interrupted ──► GivenUp
//!   Empty ── a request is refused, because one runs ──► Unannounced
//! ```
//!
//! Beside it there may be a request of ours and a turn that the server is going to answer:
//!
//! | slot | request | server turn |
//! |---|---|---|
//! | `Empty` | none, in order, behind a turn | none, expected; none if the request is in order |
//! | `Audible` | none, superseded | none, expected and not interrupted |
//! | `Interrupted`, `CancelOnCreate` | any | none, expected; none if the request is in order |
//! | `GivenUp` | none | none, expected |
//! | `Unannounced` | none | none |

use std::collections::VecDeque;
use std::time::Instant;

/// Responses that may be heard, remembered by id. More than one is there only because the last deltas of a
/// response may come after its end.
const AUDIBLE_MAX: usize = 16;

/// Why the bridge wants a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponseReason {
    /// The first words of the call.
    Greeting,
    /// The caller's turn ended and the server does not answer by itself.
    Turn,
    /// The caller used the keypad.
    Keypad,
    /// Function calls were answered.
    ToolOutput,
    /// The last response failed.
    Retry,
    /// A function takes its time.
    HoldMessage,
    /// The call is about to end, and nothing was said.
    Farewell,
}

impl ResponseReason {
    /// Whether a response that was already running when this one was wanted makes it needless.
    const fn is_met_by_a_running_response(self) -> bool {
        match self {
            Self::Greeting | Self::Turn | Self::Retry | Self::HoldMessage => true,
            Self::Keypad | Self::ToolOutput | Self::Farewell => false,
        }
    }
}

/// A response that is being generated.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    id: String,
    /// When its latest audio was taken.
    pub(crate) spoke_at: Option<Instant>,
    /// It only fills the time of a function: if it says nothing, nothing is amiss.
    pub(crate) is_hold_message: bool,
    /// It called a function.
    pub(crate) called: bool,
}

/// What becomes of the audio of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    Play,
    /// The caller interrupted it, perhaps before it existed; one that is created is cancelled by id.
    Discard,
}

/// The response under way.
#[derive(Clone, Debug, Default)]
enum Slot {
    #[default]
    Empty,
    Audible(Active),
    /// It was interrupted while it ran: a server that cancels by itself has cancelled it.
    Interrupted(Active),
    /// It was interrupted before it existed: no server cancels it by itself.
    CancelOnCreate(Active),
    /// It was cancelled because no audio of it came in time, and has not ended yet.
    GivenUp(String),
    /// The server refused a request because a response runs, and none is known.
    Unannounced(Disposition),
}

impl Slot {
    /// The transitions that exist.
    const fn may_become(&self, next: &Self) -> bool {
        match next {
            Self::Empty | Self::Audible(_) | Self::CancelOnCreate(_) => true,
            Self::Interrupted(_) => matches!(self, Self::Audible(_) | Self::CancelOnCreate(_)),
            Self::GivenUp(_) => matches!(self, Self::Interrupted(_)),
            Self::Unannounced(_) => matches!(self, Self::Empty | Self::Unannounced(_)),
        }
    }

    const fn active(&self) -> Option<&Active> {
        match self {
            Self::Audible(active) | Self::Interrupted(active) | Self::CancelOnCreate(active) => Some(active),
            Self::Empty | Self::GivenUp(_) | Self::Unannounced(_) => None,
        }
    }
}

/// How a request stands to what else the server may create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// A response that names no request is the answer to this one.
    Next,
    /// A turn of the caller ended since: such a response may be the answer to that.
    BehindTurn,
    /// The server began a response of its own instead.
    Superseded,
}

/// A `response.create` that was sent and not yet answered.
#[derive(Debug)]
struct Request {
    number: u64,
    why: ResponseReason,
    order: Order,
    disposition: Disposition,
}

/// Names a request in the errors about it.
pub(crate) fn event_id(request: u64) -> String {
    format!("create_{request}")
}

/// Which response it was that ended.
#[derive(Clone, Debug)]
pub(crate) enum Done {
    /// The one that could be heard.
    Audible(Active),
    /// One that was interrupted or given up, or that has a successor.
    Discarded,
    /// One that never began. `wanted`: it was to be the answer to a request or a turn, and was not interrupted.
    NeverCreated { wanted: bool },
}

/// The responses of one call.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    slot: Slot,
    request: Option<Request>,
    wanted: Option<ResponseReason>,
    /// The server will answer the turn that just ended.
    server_turn: Option<Disposition>,
    audible: VecDeque<String>,
    /// Responses that were created lately.
    known: VecDeque<String>,
    next_request: u64,
}

impl Responses {
    fn becomes(&mut self, next: Slot) {
        debug_assert!(self.slot.may_become(&next), "{:?} becomes {next:?}", self.slot);
        self.slot = next;
    }

    /// Notes that a response is wanted; asked for by [`Responses::ask`] as soon as it may be.
    pub(crate) fn want(&mut self, why: ResponseReason) {
        self.wanted = Some(why);
    }

    /// Asks for the wanted response if nothing stands in the way. Returns the number of the request to send.
    pub(crate) fn ask(&mut self, caller_speaks: bool) -> Option<(u64, ResponseReason)> {
        let is_free =
            matches!(self.slot, Slot::Empty) && self.request.is_none() && self.server_turn.is_none();
        let why = self.wanted.take_if(|_| is_free && !caller_speaks)?;
        self.next_request += 1;
        let number = self.next_request;
        self.request = Some(Request { number, why, order: Order::Next, disposition: Disposition::Play });
        Some((number, why))
    }

    /// The caller's turn ended and the server answers it by itself.
    pub(crate) fn expect_server_turn(&mut self) {
        debug_assert!(self.request.as_ref().is_none_or(|ours| ours.order != Order::Next), "the turn ended");
        if matches!(self.slot, Slot::Unannounced(_)) {
            self.becomes(Slot::Empty);
        }
        self.server_turn = Some(Disposition::Play);
        self.wanted = None;
    }

    /// A response came into being. `speaking_over`: the caller is speaking, and that interrupts.
    pub(crate) fn created(&mut self, id: &str, request: Option<u64>, speaking_over: bool) -> Disposition {
        if let Slot::Unannounced(disposition) = self.slot {
            self.server_turn = Some(disposition);
        }
        // A server that does not return metadata still answers requests in order, unless a turn came between.
        let unnamed = request.is_none() && self.server_turn.is_none();
        let is_ours =
            |ours: &mut Request| Some(ours.number) == request || (unnamed && ours.order == Order::Next);
        let ours = self.request.take_if(is_ours);
        let is_hold_message = ours.as_ref().is_some_and(|ours| ours.why == ResponseReason::HoldMessage);
        let disposition = match ours {
            Some(ours) => ours.disposition,
            None if request.is_some() => Disposition::Discard, // one we gave up waiting for
            None => {
                // The server answers turns, and a turn is over when it does: while the caller is speaking an
                // unasked response belongs to the turn before, which has just been interrupted.
                let turn = self.server_turn.take().unwrap_or(Disposition::Play);
                if let Some(request) = &mut self.request {
                    request.order = Order::Superseded;
                }
                self.wanted.take_if(|why| *why == ResponseReason::Turn); // this is its answer
                if speaking_over { Disposition::Discard } else { turn }
            }
        };
        if disposition == Disposition::Discard && self.server_turn.take() == Some(Disposition::Play) {
            // The server makes one at a time: this one of ours kept it from answering the turn that ended meanwhile.
            self.wanted.get_or_insert(ResponseReason::Turn);
        }
        remember(&mut self.known, id);
        let active = Active { id: id.to_owned(), spoke_at: None, is_hold_message, called: false };
        // A cancelled predecessor may end later than its successor begins.
        match disposition {
            Disposition::Play => {
                remember(&mut self.audible, id);
                self.becomes(Slot::Audible(active));
            }
            Disposition::Discard => self.becomes(Slot::CancelOnCreate(active)),
        }
        disposition
    }

    /// A turn of the caller ended.
    pub(crate) fn turn_ended(&mut self) {
        if let Some(request) = self.request.as_mut().filter(|request| request.order == Order::Next) {
            request.order = Order::BehindTurn;
        }
    }

    /// The server makes one at a time, and one that runs or was asked for keeps it from answering the turn that ended.
    /// `cancels`: it cancels by itself what the caller interrupts.
    pub(crate) const fn keeps_server_from_answering(&self, cancels: bool) -> bool {
        match self.slot {
            Slot::Audible(_) | Slot::CancelOnCreate(_) => true,
            Slot::Interrupted(_) => !cancels,
            Slot::Empty | Slot::GivenUp(_) | Slot::Unannounced(_) => !cancels && self.request.is_some(),
        }
    }

    /// A response ended. `request`: what it says it was made for, if it does.
    pub(crate) fn done(&mut self, id: &str, request: Option<u64>) -> Done {
        if matches!(&self.slot, Slot::GivenUp(given_up) if given_up == id) {
            self.becomes(Slot::Empty);
        }
        if self.slot.active().is_none_or(|active| active.id != id) {
            if !self.known.iter().any(|known| known == id) {
                return Done::NeverCreated { wanted: self.never_created(request) };
            }
            if matches!(self.slot, Slot::Unannounced(_)) {
                self.becomes(Slot::Empty); // this is the one that was in the way
            }
            return Done::Discarded;
        }
        // The server handles what it is sent in order: a request that was superseded by a response which has ended
        // by now was neither granted nor refused, and will not be.
        if let Some(lost) = self.request.take_if(|request| request.order == Order::Superseded) {
            self.want_again(&lost);
        }
        let ended = self.slot.clone();
        self.becomes(Slot::Empty);
        if let Slot::Audible(active) = ended { Done::Audible(active) } else { Done::Discarded }
    }

    /// Nothing came of a request: it is made again unless it was interrupted, or the response that runs will do.
    fn want_again(&mut self, lost: &Request) {
        if lost.disposition == Disposition::Play && !lost.why.is_met_by_a_running_response() {
            self.wanted = Some(lost.why);
        }
    }

    /// A response ended that had not begun: nothing will come of what it was made for. One that does not say may be the
    /// answer to a turn, and nothing else.
    fn never_created(&mut self, request: Option<u64>) -> bool {
        if let Some(ours) = self.request.take_if(|ours| Some(ours.number) == request) {
            return ours.disposition == Disposition::Play && ours.why != ResponseReason::HoldMessage;
        }
        if request.is_some() {
            return false;
        }
        if let Slot::Unannounced(disposition) = self.slot {
            self.becomes(Slot::Empty);
            return disposition == Disposition::Play;
        }
        self.server_turn.take() == Some(Disposition::Play)
    }

    /// The caller took the floor: nothing that exists or was asked for may be heard any more.
    /// Returns the active response if it was not interrupted before.
    pub(crate) fn interrupt(&mut self) -> Option<String> {
        self.wanted = None;
        self.audible.clear();
        if let Some(request) = &mut self.request {
            request.disposition = Disposition::Discard;
        }
        self.server_turn = self.server_turn.map(|_| Disposition::Discard);
        match self.slot.clone() {
            Slot::Audible(active) => {
                let id = active.id.clone();
                self.becomes(Slot::Interrupted(active));
                return Some(id);
            }
            Slot::Unannounced(_) => self.becomes(Slot::Unannounced(Disposition::Discard)),
            Slot::Empty | Slot::Interrupted(_) | Slot::CancelOnCreate(_) | Slot::GivenUp(_) => {}
        }
        None
    }

    /// Whether this response may be heard: it was announced, and not interrupted since.
    pub(crate) fn is_audible_response(&self, id: &str) -> bool {
        self.audible.iter().any(|audible| audible == id)
    }

    /// A response was asked for and has not come into being.
    pub(crate) const fn is_requested(&self) -> bool {
        self.request.is_some()
    }

    /// All that is awaited is a word that fills the time of a function.
    pub(crate) fn is_only_a_hold_message(&self) -> bool {
        let requested = self.request.as_ref().is_some_and(|ours| ours.why == ResponseReason::HoldMessage);
        self.slot.active().map_or(requested, |active| active.is_hold_message) && self.server_turn.is_none()
    }

    /// Our request was refused because another response is running. One that was not announced will be announced, or
    /// is over soon: until then asking again is refused again.
    pub(crate) fn refused_as_busy(&mut self, error_of: Option<&str>) {
        let is_ours = |ours: &mut Request| error_of.is_none_or(|id| id == event_id(ours.number));
        let Some(ours) = self.request.take_if(is_ours) else { return };
        self.want_again(&ours);
        if matches!(self.slot, Slot::Empty) && self.server_turn.is_none() {
            self.becomes(Slot::Unannounced(ours.disposition));
        }
    }

    /// The server has nothing to cancel, although a response that was interrupted before it existed has not ended: the
    /// server has cancelled that one by itself, and so answers the turn behind it if it answers turns. Returns whether
    /// it will.
    pub(crate) fn cancelled_by_server(&mut self, answers_turns: bool) -> bool {
        let Slot::CancelOnCreate(active) = &self.slot else { return false };
        self.becomes(Slot::Interrupted(active.clone()));
        let answers = answers_turns && self.wanted == Some(ResponseReason::Turn);
        if answers {
            self.expect_server_turn();
        }
        answers
    }

    /// Our request was refused for another reason. Returns why it was made, if it was ours and still wanted.
    pub(crate) fn refused(&mut self, error_of: &str) -> Option<ResponseReason> {
        let ours = self.request.take_if(|ours| event_id(ours.number) == error_of)?;
        (ours.disposition == Disposition::Play).then_some(ours.why)
    }

    /// Nothing came of what was expected: forget it, so that it can be asked for again. Returns the response to
    /// cancel, if one exists.
    pub(crate) fn give_up(&mut self) -> Option<String> {
        self.request = None;
        self.server_turn = None;
        let running = self.interrupt();
        // One that was interrupted before has had its time to end.
        self.becomes(running.clone().map_or(Slot::Empty, Slot::GivenUp));
        running
    }

    /// The same for what only fills the time of a function; what is wanted behind it is still wanted.
    pub(crate) fn give_up_hold_message(&mut self) -> Option<String> {
        let wanted = self.wanted.take();
        let running = self.give_up();
        self.wanted = wanted;
        running
    }

    /// What is wanted waits for the end of a response that was cancelled, or of one that was not announced.
    pub(crate) const fn waits_for_an_end(&self) -> bool {
        self.server_turn.is_some() || !matches!(self.slot, Slot::Empty | Slot::Audible(_))
    }

    /// The response that was given up is not waited for any more. Returns whether it was, and kept something back.
    pub(crate) fn forget_given_up(&mut self) -> bool {
        let was_given_up = matches!(self.slot, Slot::GivenUp(_));
        if was_given_up {
            self.becomes(Slot::Empty);
        }
        was_given_up && self.wanted.is_some()
    }

    /// Another session takes over: what was known of the old one's responses means nothing there. Requests are counted
    /// on, so that no two of a call share a name.
    pub(crate) fn reset(&mut self) {
        *self = Self { next_request: self.next_request, ..Self::default() };
    }

    /// The response being generated, interrupted or not.
    pub(crate) fn running(&self) -> Option<&str> {
        self.slot.active().map(|active| active.id.as_str())
    }

    /// When the latest audio of the response that can be heard was taken.
    pub(crate) const fn spoke_at(&self) -> Option<Instant> {
        if let Slot::Audible(active) = &self.slot { active.spoke_at } else { None }
    }

    /// The response under way, if it is this one and can be heard.
    pub(crate) fn audible_mut(&mut self, id: &str) -> Option<&mut Active> {
        if let Slot::Audible(active) = &mut self.slot {
            Some(active).filter(|active| active.id == id)
        } else {
            None
        }
    }

    /// A response is running, asked for, or about to be made by the server, and not interrupted.
    pub(crate) fn is_expected(&self) -> bool {
        matches!(self.slot, Slot::Audible(_) | Slot::Unannounced(Disposition::Play))
            || self.request.as_ref().is_some_and(|ours| ours.disposition == Disposition::Play)
            || self.server_turn == Some(Disposition::Play)
            || self.wanted.is_some()
    }

    /// Something that must be cancelled explicitly when a key press interrupts: voice detection does not see it.
    pub(crate) const fn is_anything_coming(&self) -> bool {
        let slot = !matches!(self.slot, Slot::Empty | Slot::GivenUp(_));
        slot || self.request.is_some() || self.server_turn.is_some()
    }
}

/// Adds an id to those remembered.
fn remember(ids: &mut VecDeque<String>, id: &str) {
    if ids.len() >= AUDIBLE_MAX {
        ids.pop_front();
    }
    ids.push_back(id.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    #[test]
    fn never_two_requests_outstanding() {
        let mut t = Responses::default();
        t.want(ResponseReason::Greeting);
        assert!(t.ask(false).is_some());
        t.want(ResponseReason::Keypad);
        assert!(t.ask(false).is_none());
        t.created("r1", Some(1), false);
        assert!(t.ask(false).is_none());
        t.done("r1", None);
        assert!(t.ask(false).is_some());
    }

    #[test]
    fn what_comes_of_a_request_that_was_given_up_is_not_taken_for_the_next() {
        let mut t = Responses::default();
        t.want(ResponseReason::Greeting);
        t.ask(false);
        t.give_up();
        t.want(ResponseReason::Retry);
        t.ask(false);
        assert_eq!(t.created("late", Some(1), false), Disposition::Discard);
        t.done("late", None);
        assert_eq!(t.created("next", Some(2), false), Disposition::Play);
    }

    #[test]
    fn the_last_of_a_response_is_welcome_during_the_next_and_few_are_remembered() {
        let mut t = Responses::default();
        for nth in 0..=AUDIBLE_MAX {
            t.expect_server_turn();
            t.created(&nth.to_string(), None, false);
            t.done(&nth.to_string(), None);
        }
        assert!(!t.is_audible_response("0"));
        assert!((1..=AUDIBLE_MAX).all(|nth| t.is_audible_response(&nth.to_string())));
    }

    #[test]
    fn no_two_requests_of_a_call_share_a_name_though_its_session_was_renewed() {
        let mut t = Responses::default();
        t.want(ResponseReason::Greeting);
        let first = t.ask(false).unwrap().0;
        t.reset();
        t.want(ResponseReason::Keypad);
        let second = t.ask(false).unwrap().0;
        assert_ne!(event_id(first), event_id(second));
    }

    #[test]
    fn what_is_coming_is_expected_until_it_is_interrupted() {
        let new = || {
            let t = Responses::default();
            assert!(!t.is_expected() && !t.is_anything_coming() && !t.is_requested());
            t
        };
        let mut wanted = new();
        wanted.want(ResponseReason::Turn);
        assert!(wanted.is_expected() && !wanted.is_anything_coming() && !wanted.is_requested());
        let mut asked = new();
        asked.want(ResponseReason::Turn);
        asked.ask(false);
        assert!(asked.is_expected() && asked.is_anything_coming() && asked.is_requested());
        let mut automatic = new();
        automatic.expect_server_turn();
        assert!(automatic.is_expected() && automatic.is_anything_coming() && !automatic.is_requested());
        let mut active = new();
        active.created("r1", None, false);
        assert!(active.is_expected() && active.is_anything_coming() && !active.is_requested());
        for mut t in [asked, automatic, active] {
            t.interrupt();
            assert!(!t.is_expected() && t.is_anything_coming());
        }
    }

    #[test]
    fn who_speaks_over_an_automatic_response_does_not_want_it_whenever_it_is_made() {
        let mut t = Responses::default();
        assert_eq!(t.created("r1", None, true), Disposition::Discard);
        let mut t = Responses::default();
        t.expect_server_turn();
        t.interrupt();
        assert_eq!(t.created("r1", None, false), Disposition::Discard);
    }

    #[test]
    fn a_request_that_was_overtaken_is_made_again_unless_it_was_interrupted() {
        let superseded = || {
            let mut t = Responses::default();
            t.want(ResponseReason::ToolOutput);
            t.ask(false);
            t.turn_ended();
            t.expect_server_turn();
            t
        };
        let mut t = superseded();
        t.created("r1", None, false);
        t.done("r1", None);
        assert!(t.ask(false).is_some_and(|(_, why)| why == ResponseReason::ToolOutput));
        let mut t = superseded();
        t.interrupt();
        t.created("r1", None, true);
        t.done("r1", None);
        assert!(t.ask(false).is_none());
    }

    #[test]
    fn a_request_interrupted_in_flight_is_unwanted_when_it_is_created() {
        let mut t = Responses::default();
        t.want(ResponseReason::Greeting);
        t.ask(false);
        assert_eq!(t.interrupt(), None, "there is no id to cancel yet");
        assert_eq!(t.created("r1", Some(1), true), Disposition::Discard);
        assert!(!t.is_audible_response("r1"));
    }

    #[test]
    fn what_was_asked_for_too_early_keeps_the_server_from_answering_the_turn() {
        let asked_too_early = || {
            let mut t = Responses::default();
            t.want(ResponseReason::Keypad);
            t.ask(false);
            t.interrupt();
            t.turn_ended();
            t.expect_server_turn();
            t
        };
        let mut t = asked_too_early();
        assert_eq!(t.created("r1", Some(1), false), Disposition::Discard);
        assert!(matches!(t.slot, Slot::CancelOnCreate(_)) && t.ask(false).is_none(), "one at a time");
        t.done("r1", None);
        assert!(t.ask(false).is_some_and(|(_, why)| why == ResponseReason::Turn));
        let mut t = asked_too_early();
        t.interrupt();
        t.created("r1", Some(1), true);
        t.done("r1", None);
        assert!(t.ask(false).is_none(), "that turn has been interrupted, too");
        let mut t = asked_too_early();
        t.created("r1", Some(1), false);
        t.created("r2", None, false);
        t.done("r2", None);
        assert!(t.ask(false).is_none(), "the server answered it after all");
    }

    #[test]
    fn an_unasked_response_during_speech_belongs_to_the_turn_before() {
        let mut t = Responses::default();
        t.expect_server_turn();
        t.interrupt();
        assert_eq!(t.created("r1", None, true), Disposition::Discard);
        t.done("r1", None);
        t.expect_server_turn();
        assert_eq!(t.created("r2", None, false), Disposition::Play);
    }

    #[test]
    fn a_request_the_server_forgot_does_not_block_the_next() {
        let mut t = Responses::default();
        t.want(ResponseReason::Greeting);
        t.ask(false);
        t.turn_ended();
        t.expect_server_turn();
        t.created("r1", None, false);
        t.want(ResponseReason::ToolOutput);
        assert!(t.ask(false).is_none());
        t.done("r1", None);
        assert!(t.ask(false).is_some(), "the greeting will not come any more");
    }

    #[test]
    fn a_late_done_of_the_old_response_does_not_end_the_new_one() {
        let mut t = Responses::default();
        t.created("old", None, false);
        t.interrupt();
        t.created("new", None, false);
        assert!(matches!(t.done("old", None), Done::Discarded));
        assert_eq!(t.running(), Some("new"));
    }

    #[test]
    fn a_busy_refusal_keeps_what_the_running_response_cannot_know() {
        let mut t = Responses::default();
        t.want(ResponseReason::ToolOutput);
        t.ask(false);
        t.refused_as_busy(Some("create_1"));
        t.created("r0", None, false);
        t.done("r0", None);
        assert!(t.ask(false).is_some(), "a tool's output is still to be spoken about");
        let mut t = Responses::default();
        t.want(ResponseReason::Greeting);
        t.ask(false);
        t.turn_ended();
        t.created("r1", None, false);
        t.refused_as_busy(Some("create_1"));
        t.done("r1", None);
        assert!(t.ask(false).is_none(), "the agent has spoken already: no greeting");
    }

    #[test]
    fn after_a_busy_refusal_the_unannounced_response_is_waited_for() {
        let refused = |interrupted: bool| {
            let mut t = Responses::default();
            t.want(ResponseReason::ToolOutput);
            t.ask(false);
            if interrupted {
                t.interrupt();
            }
            t.refused_as_busy(Some("create_1"));
            t.want(ResponseReason::Keypad);
            assert!(t.waits_for_an_end() && t.ask(false).is_none());
            t
        };
        let mut t = refused(false);
        assert_eq!(t.created("r1", None, false), Disposition::Play);
        t.done("r1", None);
        assert!(t.ask(false).is_some());
        assert_eq!(refused(true).created("r1", None, false), Disposition::Discard);
        let mut t = refused(false);
        assert!(matches!(t.done("r1", None), Done::NeverCreated { wanted: true }));
        assert!(t.ask(false).is_some());
    }

    #[test]
    fn a_late_end_of_an_earlier_response_ends_the_wait() {
        let mut t = Responses::default();
        t.created("r1", None, true);
        t.created("r2", None, false);
        t.done("r2", None);
        t.want(ResponseReason::ToolOutput);
        t.ask(false);
        t.refused_as_busy(Some("create_1"));
        assert!(t.ask(false).is_none());
        assert!(matches!(t.done("r1", None), Done::Discarded));
        assert!(t.ask(false).is_some());
    }

    #[test]
    fn a_retry_waits_for_the_end_of_the_response_that_was_given_up() {
        let given_up = || {
            let mut t = Responses::default();
            t.expect_server_turn();
            t.created("silent", None, false);
            assert_eq!(t.give_up().as_deref(), Some("silent"));
            t.want(ResponseReason::Retry);
            assert!(t.is_expected() && t.ask(false).is_none(), "the server makes one at a time");
            t
        };
        let mut t = given_up();
        assert!(matches!(t.done("silent", None), Done::Discarded));
        assert!(t.ask(false).is_some_and(|(_, why)| why == ResponseReason::Retry));
        let mut t = given_up();
        assert!(t.forget_given_up(), "a server may never say that it ended");
        assert!(t.ask(false).is_some() && !t.forget_given_up());
    }

    #[test]
    fn a_server_that_cancelled_by_itself_answers_the_turn_by_itself() {
        let interrupted = || {
            let mut t = Responses::default();
            t.created("r1", None, true);
            t
        };
        let mut t = interrupted();
        t.want(ResponseReason::Turn);
        assert!(t.cancelled_by_server(true));
        t.done("r1", None);
        assert!(t.ask(false).is_none() && t.is_expected());
        let mut t = interrupted();
        t.want(ResponseReason::Turn);
        assert!(!t.cancelled_by_server(false), "it answers no turn");
        t.done("r1", None);
        assert!(t.ask(false).is_some_and(|(_, why)| why == ResponseReason::Turn));
        let mut t = interrupted();
        t.want(ResponseReason::Keypad);
        assert!(!t.cancelled_by_server(true));
        t.done("r1", None);
        assert!(t.ask(false).is_some_and(|(_, why)| why == ResponseReason::Keypad));
    }

    #[test]
    fn the_turn_the_server_answers_satisfies_what_was_wanted_before() {
        let mut t = Responses::default();
        t.want(ResponseReason::Keypad);
        assert!(t.ask(true).is_none(), "not while the caller speaks");
        t.expect_server_turn();
        t.created("r1", None, false);
        t.done("r1", None);
        assert!(t.ask(false).is_none());
    }

    #[test]
    fn a_server_that_returns_no_metadata_answers_requests_in_order() {
        let filler = |turn_ended: bool| {
            let mut t = Responses::default();
            t.want(ResponseReason::HoldMessage);
            t.ask(false);
            if turn_ended {
                t.turn_ended();
            }
            t.created("r1", None, false);
            t.slot.active().is_some_and(|active| active.is_hold_message)
        };
        assert!(filler(false));
        assert!(!filler(true), "it may as well be the answer to the turn");
    }

    #[test]
    fn what_the_server_does_by_itself_answers_a_turn_and_nothing_else() {
        let asked_again = |why: ResponseReason| {
            let mut t = Responses::default();
            t.want(why);
            t.created("r1", None, false);
            t.done("r1", None);
            t.ask(false).is_some()
        };
        assert!(!asked_again(ResponseReason::Turn));
        assert!(asked_again(ResponseReason::ToolOutput));
    }

    #[test]
    fn another_session_counts_on() {
        let mut t = Responses::default();
        t.want(ResponseReason::Greeting);
        let number = |asked: Option<(u64, ResponseReason)>| asked.expect("a request").0;
        let first = number(t.ask(false));
        t.reset();
        t.want(ResponseReason::Keypad);
        assert!(number(t.ask(false)) > first);
    }

    /// What can happen to the responses of a call.
    #[derive(Clone, Debug)]
    enum Input {
        Want(ResponseReason),
        Ask,
        TurnEnded,
        /// `request`: 0 names none, 1 the one outstanding, 2 one that was given up.
        Created {
            request: u8,
            speaking_over: bool,
        },
        /// The response under way, one that had a successor, or one that never began.
        Done {
            which: u8,
            request: u8,
        },
        Interrupt,
        RefusedAsBusy {
            named: bool,
        },
        Refused,
        NothingToCancel,
        GiveUp,
        ForgetGivenUp,
    }

    fn input() -> impl Strategy<Value = Input> {
        use ResponseReason::*;
        let wants = select(vec![Greeting, Keypad, ToolOutput, Retry, HoldMessage, Farewell]);
        prop_oneof![
            wants.prop_map(Input::Want),
            Just(Input::Ask),
            Just(Input::TurnEnded),
            (0..3u8, any::<bool>())
                .prop_map(|(request, speaking_over)| Input::Created { request, speaking_over }),
            (0..3u8, 0..3u8).prop_map(|(which, request)| Input::Done { which, request }),
            Just(Input::Interrupt),
            any::<bool>().prop_map(|named| Input::RefusedAsBusy { named }),
            Just(Input::Refused),
            Just(Input::NothingToCancel),
            Just(Input::GiveUp),
            Just(Input::ForgetGivenUp),
        ]
    }

    /// The table above.
    fn is_in_the_table(t: &Responses) -> bool {
        let order = t.request.as_ref().map(|request| request.order);
        let behind_a_turn = t.server_turn.is_none() || order != Some(Order::Next);
        let slot = match t.slot {
            Slot::Empty => order != Some(Order::Superseded),
            Slot::Audible(_) => {
                matches!(order, None | Some(Order::Superseded)) && t.server_turn != Some(Disposition::Discard)
            }
            Slot::Interrupted(_) | Slot::CancelOnCreate(_) => true,
            Slot::GivenUp(_) => order.is_none(),
            Slot::Unannounced(_) => order.is_none() && t.server_turn.is_none(),
        };
        slot && behind_a_turn
    }

    /// The responses, and what is known of them from outside.
    #[derive(Default)]
    struct Model {
        t: Responses,
        answers_turns: bool,
        cancels: bool,
        /// Requests that were sent and neither granted nor refused, nor given up.
        outstanding: Option<u64>,
        created: u32,
        audible: Vec<String>,
        interrupted: Vec<String>,
    }

    impl Model {
        fn ask(&mut self) {
            if let Some((number, _)) = self.t.ask(false) {
                assert_eq!(self.outstanding.replace(number), None, "two requests at a time");
            }
        }

        fn request(&self, request: u8) -> Option<u64> {
            match request {
                0 => None,
                1 => self.outstanding,
                _ => Some(0),
            }
        }

        fn apply(&mut self, input: &Input) {
            match *input {
                Input::Want(why) => {
                    self.t.want(why);
                    assert!(self.t.is_expected());
                }
                Input::Ask => self.ask(),
                Input::TurnEnded => {
                    self.t.turn_ended();
                    if self.answers_turns && !self.t.keeps_server_from_answering(self.cancels) {
                        self.t.expect_server_turn();
                    } else {
                        self.t.want(ResponseReason::Turn);
                    }
                    assert!(self.t.is_expected(), "a turn is answered");
                }
                Input::Created { request, speaking_over } => {
                    let (id, named) = (format!("r{}", self.created), self.request(request));
                    self.created += 1;
                    let disposition = self.t.created(&id, named, speaking_over);
                    assert_eq!(disposition == Disposition::Play, self.t.is_audible_response(&id));
                    let list = if disposition == Disposition::Play {
                        &mut self.audible
                    } else {
                        &mut self.interrupted
                    };
                    list.push(id);
                }
                Input::Done { which, request } => {
                    let id = match which {
                        0 => self.t.running().unwrap_or("r0").to_owned(),
                        1 => "r0".to_owned(),
                        _ => "unknown".to_owned(),
                    };
                    let _ = self.t.done(&id, self.request(request));
                }
                Input::Interrupt => {
                    self.t.interrupt();
                    self.interrupted.append(&mut self.audible);
                    assert!(!self.t.is_expected());
                }
                Input::RefusedAsBusy { named } => {
                    let id = self.outstanding.filter(|_| named).map(event_id);
                    self.t.refused_as_busy(id.as_deref());
                }
                Input::Refused => {
                    let _ = self.outstanding.and_then(|number| self.t.refused(&event_id(number)));
                }
                Input::NothingToCancel => {
                    self.t.cancelled_by_server(self.answers_turns);
                }
                Input::GiveUp if self.t.is_only_a_hold_message() => {
                    self.t.give_up_hold_message();
                    self.interrupted.append(&mut self.audible);
                }
                Input::GiveUp => {
                    self.t.give_up();
                    self.interrupted.append(&mut self.audible);
                }
                Input::ForgetGivenUp => {
                    self.t.forget_given_up();
                }
            }
            self.outstanding = self.outstanding.filter(|_| self.t.is_requested());
            assert!(is_in_the_table(&self.t), "{:?}", self.t);
            assert!(!self.interrupted.iter().any(|id| self.t.is_audible_response(id)), "heard after all");
        }

        /// Everything outstanding ends: what is wanted then is asked for.
        fn drain(&mut self) {
            let is_wanted = self.t.wanted.is_some();
            self.t.forget_given_up();
            while let Some(id) = self.t.running().map(str::to_owned) {
                self.t.done(&id, None);
            }
            if let Some(number) = self.outstanding {
                self.t.refused(&event_id(number));
            }
            self.t.done("unknown", None);
            assert!(self.t.ask(false).is_some() || !is_wanted, "a want is lost: {:?}", self.t);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_024))]

        #[test]
        fn one_request_at_a_time_nothing_after_an_interruption_and_no_want_lost(
            inputs in prop::collection::vec(input(), 1..60),
            answers_turns: bool,
            cancels: bool,
        ) {
            let mut model = Model { answers_turns, cancels, ..Model::default() };
            inputs.iter().for_each(|input| model.apply(input));
            model.drain();
        }
    }
}
