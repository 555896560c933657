//! One sequencer for everything the model says: at most one `response.create` outstanding, at most one response
//! active, and nothing more is heard of a response the caller interrupted.
//!
//! Three ways a response comes about: the server's voice detection answers a turn by itself, the bridge asks for
//! one, or a server starts one unasked (taken like the first). What the bridge wants while it may not ask is
//! remembered, once; a turn the server will answer by itself satisfies what was wanted before it, because the
//! answer is generated from a conversation that already holds the items the want was about.
//!
//! A list says which responses are audible, not which are interrupted: a response is on it from its creation until the
//! caller interrupts, so that audio of a response that was not announced, or that ended long ago, is dropped as well.

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
    pub(crate) id: String,
    /// When its latest audio was taken.
    pub(crate) spoke_at: Option<Instant>,
    /// It only fills the time of a function: if it says nothing, nothing is amiss.
    pub(crate) is_hold_message: bool,
    /// It called a function.
    pub(crate) called: bool,
    /// It was interrupted: nothing of it is played.
    pub(crate) interrupted: bool,
    /// It was interrupted before it existed: no server cancels it by itself.
    pub(crate) cancel_on_create: bool,
}

/// A `response.create` that was sent and not yet answered.
#[derive(Clone, Debug)]
pub(crate) struct Requested {
    pub(crate) number: u64,
    pub(crate) event_id: String,
    why: ResponseReason,
    interrupted: bool,
    /// A turn of the caller ended since it was sent: an unnamed response may be the answer to that.
    turn_ended: bool,
    /// The server began a response of its own instead of ours.
    superseded: bool,
}

/// What to do about a response that was just created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// Let it speak.
    Audible,
    /// It was interrupted before it existed: cancel it by id.
    CancelOnCreate,
}

/// Which response it was that ended.
#[derive(Clone, Debug)]
pub(crate) enum Done {
    /// The active one.
    Active(Active),
    /// One before it.
    Earlier,
    /// One that never began. `wanted`: it was to be the answer to a request or a turn, and was not interrupted.
    NeverCreated { wanted: bool },
}

/// An answer the server makes by itself and has not announced yet.
#[derive(Clone, Copy, Debug)]
struct ServerTurn {
    /// The caller interrupted it already.
    interrupted: bool,
    /// It only seems so, because the server refused a request while no response was known to run.
    guessed: bool,
}

/// The responses of one call.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    active: Option<Active>,
    requested: Option<Requested>,
    wanted: Option<ResponseReason>,
    /// The server will answer the turn that just ended.
    server_turn: Option<ServerTurn>,
    /// The response that was given up last and has not ended yet.
    given_up: Option<String>,
    audible: VecDeque<String>,
    /// Responses that were created lately.
    known: VecDeque<String>,
    next_request: u64,
}

impl Responses {
    /// Notes that a response is wanted; asked for by [`Responses::ask`] as soon as it may be.
    pub(crate) fn want(&mut self, why: ResponseReason) {
        self.wanted = Some(why);
    }

    /// Asks for the wanted response if nothing stands in the way. Returns the request to send.
    pub(crate) fn ask(&mut self, caller_speaks: bool) -> Option<(Requested, ResponseReason)> {
        let busy = self.active.is_some() || self.given_up.is_some();
        if caller_speaks || busy || self.requested.is_some() || self.server_turn.is_some() {
            return None;
        }
        let why = self.wanted.take()?;
        self.next_request += 1;
        let number = self.next_request;
        let request = Requested {
            number,
            event_id: format!("create_{number}"),
            why,
            interrupted: false,
            turn_ended: false,
            superseded: false,
        };
        self.requested = Some(request.clone());
        Some((request, why))
    }

    /// The caller's turn ended and the server answers it by itself.
    pub(crate) fn expect_server_turn(&mut self) {
        self.server_turn = Some(ServerTurn { interrupted: false, guessed: false });
        self.wanted = None;
    }

    /// A response came into being. `speaking_over`: the caller is speaking, and that interrupts.
    pub(crate) fn created(&mut self, id: &str, request: Option<u64>, speaking_over: bool) -> Created {
        self.given_up = None; // the server makes one at a time
        if let Some(turn) = &mut self.server_turn {
            turn.guessed = false;
        }
        // A server that does not return metadata still answers requests in order, unless a turn came between.
        let unnamed = request.is_none() && self.server_turn.is_none();
        let ours = self.requested.take_if(|r| Some(r.number) == request || (unnamed && !r.turn_ended));
        let is_hold_message = ours.as_ref().is_some_and(|ours| ours.why == ResponseReason::HoldMessage);
        let interrupted = match &ours {
            Some(ours) => ours.interrupted,
            None if request.is_some() => true, // one we gave up waiting for
            None => {
                // The server answers turns, and a turn is over when it does: while the caller is speaking an
                // unasked response belongs to the turn before, which has just been interrupted.
                let turn = self.server_turn.take();
                let interrupted = speaking_over || turn.is_some_and(|turn| turn.interrupted);
                if let Some(requested) = &mut self.requested {
                    requested.superseded = true;
                }
                self.wanted.take_if(|why| *why == ResponseReason::Turn); // this is its answer
                interrupted
            }
        };
        if interrupted
            && let Some(turn) = self.server_turn.take()
            && !turn.interrupted
        {
            // The server makes one at a time: this one of ours kept it from answering the turn that ended meanwhile.
            self.wanted.get_or_insert(ResponseReason::Turn);
        }
        if self.known.len() >= AUDIBLE_MAX {
            self.known.pop_front();
        }
        self.known.push_back(id.to_owned());
        // A cancelled predecessor may end later than its successor begins.
        self.active = Some(Active {
            id: id.to_owned(),
            spoke_at: None,
            is_hold_message,
            called: false,
            interrupted,
            cancel_on_create: interrupted,
        });
        if interrupted {
            return Created::CancelOnCreate;
        }
        if self.audible.len() >= AUDIBLE_MAX {
            self.audible.pop_front();
        }
        self.audible.push_back(id.to_owned());
        Created::Audible
    }

    /// A turn of the caller ended.
    pub(crate) const fn turn_ended(&mut self) {
        if let Some(requested) = &mut self.requested {
            requested.turn_ended = true;
        }
    }

    /// A response ended. `request`: what it says it was made for, if it does.
    pub(crate) fn done(&mut self, id: &str, request: Option<u64>) -> Done {
        self.given_up.take_if(|given_up| given_up == id);
        let Some(ended) = self.active.take_if(|active| active.id == id) else {
            return if self.known.iter().any(|known| known == id) {
                self.server_turn.take_if(|turn| turn.guessed); // this is the one that was in the way
                Done::Earlier
            } else {
                Done::NeverCreated { wanted: self.never_created(request) }
            };
        };
        // The server handles what it is sent in order: a request that was superseded by a response which has ended
        // by now was neither granted nor refused, and will not be.
        if let Some(lost) = self.requested.take_if(|requested| requested.superseded)
            && !lost.interrupted
            && !lost.why.is_met_by_a_running_response()
        {
            self.wanted = Some(lost.why);
        }
        Done::Active(ended)
    }

    /// A response ended that had not begun: nothing will come of what it was made for. One that does not say may be the
    /// answer to a turn, and nothing else.
    fn never_created(&mut self, request: Option<u64>) -> bool {
        if let Some(ours) = self.requested.take_if(|ours| Some(ours.number) == request) {
            return !ours.interrupted && ours.why != ResponseReason::HoldMessage;
        }
        request.is_none() && self.server_turn.take().is_some_and(|turn| !turn.interrupted)
    }

    /// The caller took the floor: nothing that exists or was asked for may be heard any more.
    /// Returns the active response if it was not interrupted before.
    pub(crate) fn interrupt(&mut self) -> Option<String> {
        self.wanted = None;
        self.audible.clear();
        if let Some(requested) = &mut self.requested {
            requested.interrupted = true;
        }
        if let Some(turn) = &mut self.server_turn {
            turn.interrupted = true;
        }
        let active = self.active.as_mut().filter(|active| !active.interrupted)?;
        active.interrupted = true;
        Some(active.id.clone())
    }

    /// Whether this response may be heard: it was announced, and not interrupted since.
    pub(crate) fn is_audible_response(&self, id: &str) -> bool {
        self.audible.iter().any(|audible| audible == id)
    }

    /// A response was asked for and has not come into being.
    pub(crate) const fn is_requested(&self) -> bool {
        self.requested.is_some()
    }

    /// All that is awaited is a word that fills the time of a function.
    pub(crate) fn is_only_a_hold_message(&self) -> bool {
        let active = self.active.as_ref().is_some_and(|active| active.is_hold_message);
        let requested = self.requested.as_ref().is_some_and(|ours| ours.why == ResponseReason::HoldMessage);
        (active || (requested && self.active.is_none())) && self.server_turn.is_none()
    }

    /// Our request was refused because another response is running. Returns whether it was ours. One that was not
    /// announced will be announced, or is over soon: until then asking again is refused again.
    pub(crate) fn refused_as_busy(&mut self, event_id: Option<&str>) -> bool {
        let Some(ours) = self.requested.take_if(|r| event_id.is_none_or(|id| id == r.event_id)) else {
            return false;
        };
        if !ours.interrupted && !ours.why.is_met_by_a_running_response() {
            self.wanted = Some(ours.why);
        }
        if self.active.is_none() && self.given_up.is_none() && self.server_turn.is_none() {
            self.server_turn = Some(ServerTurn { interrupted: ours.interrupted, guessed: true });
        }
        true
    }

    /// The server has nothing to cancel, although a response that was interrupted before it existed has not ended: the
    /// server has cancelled that one by itself, and so answers the turn behind it if it answers turns. Returns whether it
    /// will.
    pub(crate) fn cancelled_by_server(&mut self, answers_turns: bool) -> bool {
        let Some(active) = self.active.as_mut().filter(|active| active.cancel_on_create) else {
            return false;
        };
        active.cancel_on_create = false;
        let answers = answers_turns && self.wanted == Some(ResponseReason::Turn);
        if answers {
            self.expect_server_turn();
        }
        answers
    }

    /// Our request was refused for another reason. Returns why it was made, if it was ours and still wanted.
    pub(crate) fn refused(&mut self, event_id: &str) -> Option<ResponseReason> {
        let ours = self.requested.take_if(|r| r.event_id == event_id)?;
        (!ours.interrupted).then_some(ours.why)
    }

    /// Nothing came of what was expected: forget it, so that it can be asked for again. Returns the response to
    /// cancel, if one exists.
    pub(crate) fn give_up(&mut self) -> Option<String> {
        self.requested = None;
        self.server_turn = None;
        let running = self.interrupt();
        self.active = None;
        // One that was interrupted before has had its time to end.
        self.given_up.clone_from(&running);
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
    pub(crate) fn waits_for_an_end(&self) -> bool {
        self.given_up.is_some()
            || self.server_turn.is_some()
            || self.active.as_ref().is_some_and(|active| active.interrupted)
    }

    /// The response that was given up is not waited for any more. Returns whether it was, and kept something back.
    pub(crate) fn forget_given_up(&mut self) -> bool {
        self.given_up.take().is_some() && self.wanted.is_some()
    }

    /// Another session takes over: what was known of the old one's responses means nothing there. Requests are counted
    /// on, so that no two of a call share a name.
    pub(crate) fn reset(&mut self) {
        *self = Self { next_request: self.next_request, ..Self::default() };
    }

    /// The response being generated.
    pub(crate) const fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    /// The response being generated, if it is this one.
    pub(crate) fn active_mut(&mut self, id: &str) -> Option<&mut Active> {
        self.active.as_mut().filter(|active| active.id == id)
    }

    /// A response is running, asked for, or about to be made by the server, and not interrupted.
    pub(crate) fn is_expected(&self) -> bool {
        self.active.as_ref().is_some_and(|a| !a.interrupted)
            || self.requested.as_ref().is_some_and(|r| !r.interrupted)
            || self.server_turn.is_some_and(|turn| !turn.interrupted)
            || self.wanted.is_some()
    }

    /// Something that must be cancelled explicitly when a key press interrupts: voice detection does not see it.
    pub(crate) fn is_anything_coming(&self) -> bool {
        self.active.is_some() || self.requested.is_some() || self.server_turn.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(t.created("late", Some(1), false), Created::CancelOnCreate);
        t.done("late", None);
        assert_eq!(t.created("next", Some(2), false), Created::Audible);
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
        let first = t.ask(false).unwrap().0.event_id;
        t.reset();
        t.want(ResponseReason::Keypad);
        let second = t.ask(false).unwrap().0.event_id;
        assert_ne!(first, second);
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
        assert_eq!(t.created("r1", None, true), Created::CancelOnCreate);
        let mut t = Responses::default();
        t.expect_server_turn();
        t.interrupt();
        assert_eq!(t.created("r1", None, false), Created::CancelOnCreate);
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
        assert_eq!(t.created("r1", Some(1), true), Created::CancelOnCreate);
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
        assert_eq!(t.created("r1", Some(1), false), Created::CancelOnCreate);
        assert!(
            t.active().is_some_and(|active| active.cancel_on_create) && t.ask(false).is_none(),
            "one at a time"
        );
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
        assert_eq!(t.created("r1", None, true), Created::CancelOnCreate);
        t.done("r1", None);
        t.expect_server_turn();
        assert_eq!(t.created("r2", None, false), Created::Audible);
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
        assert!(matches!(t.done("old", None), Done::Earlier));
        assert!(t.active().is_some_and(|a| a.id == "new"));
    }

    #[test]
    fn a_busy_refusal_keeps_what_the_running_response_cannot_know() {
        let mut t = Responses::default();
        t.want(ResponseReason::ToolOutput);
        t.ask(false);
        assert!(t.refused_as_busy(Some("create_1")));
        t.created("r0", None, false);
        t.done("r0", None);
        assert!(t.ask(false).is_some(), "a tool's output is still to be spoken about");
        let mut t = Responses::default();
        t.want(ResponseReason::Greeting);
        t.ask(false);
        t.turn_ended();
        t.created("r1", None, false);
        assert!(t.refused_as_busy(Some("create_1")));
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
        assert_eq!(t.created("r1", None, false), Created::Audible);
        t.done("r1", None);
        assert!(t.ask(false).is_some());
        assert_eq!(refused(true).created("r1", None, false), Created::CancelOnCreate);
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
        assert!(matches!(t.done("r1", None), Done::Earlier));
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
        assert!(matches!(t.done("silent", None), Done::Earlier));
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
            t.active().is_some_and(|active| active.is_hold_message)
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
        let number = |asked: Option<(Requested, ResponseReason)>| asked.expect("a request").0.number;
        let first = number(t.ask(false));
        t.reset();
        t.want(ResponseReason::Keypad);
        assert!(number(t.ask(false)) > first);
    }
}
