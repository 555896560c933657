//! What a suite must have reached at least once.
//!
//! A green run proves little when the interesting thing never happened. Each milestone is a fact about one trace,
//! computed from what the two ends saw (and from the name of the end, which only the bridge knows). A milestone
//! that no scenario and no seed reaches is a failure of the suite.

use crate::model::backend::Backend;
use crate::oracle::audio_attribution::Attribution;
use crate::oracle::barge_in::{BargeIn, barge_ins, cuts};
use crate::oracle::case::CallUnderTest;
use crate::oracle::greet::window;
use crate::oracle::sessions::followed;
use crate::oracle::tolerance::Tolerance;
use crate::sim::trace::Trace;
use bridge::call::event::{CallEvent, EndReason};
use mocks::peer::At;
use mocks::record::{CallerObservation, ModelObservation};
use std::collections::BTreeSet;

/// One 20 ms frame, in bytes.
const FRAME: usize = 160;

/// More pieces, or hesitations, than a few unlucky messages make.
const MANY: u64 = 1_000;
/// A queue that one message does not make, microseconds.
const NARROW_US: u64 = 400_000;
/// A queue that nobody wants, microseconds.
const BLOATED_US: u64 = 1_000_000;

/// A fact worth having reached.
#[derive(Clone, Copy)]
struct Milestone {
    name: &'static str,
    /// It takes conditions that only the pipes can make.
    only_on_pipes: bool,
    reached: fn(&Scene<'_, '_>) -> bool,
}

/// One call, and what happened in it.
struct Scene<'a, 'b> {
    case: &'b CallUnderTest<'a>,
    barge_ins: &'b [BargeIn],
}

/// The name of every milestone.
pub const ALL: &[&str] = &{
    let mut names = [""; MILESTONES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = MILESTONES[i].name;
        i += 1;
    }
    names
};

/// The names of the milestones that can be reached on these backends, in the order of [`ALL`].
pub fn possible(backends: &[Backend]) -> Vec<&'static str> {
    let possible = |m: &&Milestone| !m.only_on_pipes || backends.contains(&Backend::Pipes);
    MILESTONES.iter().filter(possible).map(|m| m.name).collect()
}

/// The milestones this trace reached, in the order of [`ALL`].
pub fn reached(trace: &Trace) -> Vec<&'static str> {
    let attribution = Attribution::of_all(trace);
    let mut names = BTreeSet::new();
    for (index, (call, attribution)) in trace.calls.iter().zip(attribution.iter()).enumerate() {
        let case = CallUnderTest { trace, index, call, attribution, tolerance: Tolerance::of(trace, index) };
        let barge_ins = barge_ins(&case);
        let scene = Scene { case: &case, barge_ins: &barge_ins };
        names.extend(MILESTONES.iter().filter(|m| (m.reached)(&scene)).map(|m| m.name));
    }
    ALL.iter().copied().filter(|name| names.contains(name)).collect()
}

macro_rules! milestones {
    (anywhere { $($name:literal => $reached:expr,)* } only_on_pipes { $($piped:literal => $when:expr,)* }) => {
        const MILESTONES: &[Milestone] = &[
            $(Milestone { name: $name, only_on_pipes: false, reached: $reached },)*
            $(Milestone { name: $piped, only_on_pipes: true, reached: $when },)*
        ];
    };
}

milestones! { anywhere {
    "an answer was heard to its end" => |s| s.case.attribution.items.iter().any(|i| {
        i.on_time > 0 && !i.silent && s.case.attribution.item_played(i, At(u64::MAX)) + FRAME >= i.len
    }),
    "two turns in one call" => |s| s.models(|m| matches!(m, ModelObservation::SentSpeechStopped { .. })) >= 2,
    "the agent spoke first" => |s| {
        let spoke = s.first_caller(|c| matches!(c, CallerObservation::SpeechBegan { .. }));
        s.case.attribution.played.first().is_some_and(|p| spoke.is_none_or(|at| p.at < at))
    },
    "barge-in with a clear" => |s| s.barged_in(),
    "barge-in in the first frame" => |s| s.interrupted(|heard, _, _| heard > 0 && heard <= FRAME),
    "barge-in after generation ended" => |s| s.interrupted(|_, done, barge_in| done.is_some_and(|d| d < barge_in.at)),
    "barge-in while generating" => |s| s.interrupted(|_, done, barge_in| done.is_none_or(|d| d >= barge_in.at)),
    "barge-in before the first delta" => |s| s.barge_ins.iter().any(|b| b.owed && s.is_between(b, true)),
    "barge-in before response.created" => |s| s.barge_ins.iter().any(|b| b.owed && s.is_asked_for(b)),
    "two barge-ins in one call" => |s| s.barge_ins.iter().filter(|b| !b.clears.is_empty()).count() >= 2,
    "speech with nothing to clear" => |s| s.barge_ins.iter().any(|b| b.owed && b.clears.is_empty()),
    "an item was cut" => |s| s.models(|m| matches!(m, ModelObservation::SentTruncated { .. })) > 0,
    "a cut at zero or a deletion" => |s| {
        cuts(s.case, s.barge_ins).iter().any(|c| c.audio_end_ms == 0)
            || s.models(|m| matches!(m, ModelObservation::GotDelete { .. })) > 0
    },
    "two items of one response" => |s| {
        let items = &s.case.attribution.items;
        items.iter().enumerate().any(|(i, item)| {
            items[..i].iter().any(|other| other.response == item.response && other.model == item.model)
        })
    },
    "a late delta was sent and not heard" => |s| s.case.attribution.items.iter().any(|item| {
        item.on_time < item.len && s.case.attribution.item_played(item, At(u64::MAX)) <= item.on_time
    }),
    "a delta of an odd size" => |s| s.models(|m| {
        matches!(m, ModelObservation::SentAudio { samples, .. } if samples % FRAME != 0)
    }) > 0,
    "a mark came back played" => |s| s.callers(|c| matches!(c, CallerObservation::SentMark { flushed: false, .. })) > 0,
    "a mark came back flushed" => |s| s.callers(|c| matches!(c, CallerObservation::SentMark { flushed: true, .. })) > 0,
    "a gap of the microphone was filled" => |s| {
        let gap = s.case.call.caller.mic.windows(2).any(|two| two[1].timestamp_ms > two[0].timestamp_ms + 60);
        gap && s.models(|m| matches!(m, ModelObservation::GotAppend { .. })) > 0
    },
    "the caller waited while the model was dialled" => |s| {
        let opened = s.first_model(|m| matches!(m, ModelObservation::Opened));
        let spoke = s.case.call.caller.mic.first().map(|frame| frame.at);
        opened.is_some_and(|opened| spoke.is_some_and(|spoke| opened.since(spoke) > 500_000))
    },
    "the call ended while the model was dialled" => |s| {
        s.callers(|c| matches!(c, CallerObservation::SentStart)) > 0
            && s.first_model(|m| matches!(m, ModelObservation::Opened)).is_none_or(|at| at > s.case.tolerance.over())
    },
    "the model died while dialling" => |s| {
        s.models(|m| matches!(m, ModelObservation::Refused { .. })) > 0
            || s.ended_by(EndReason::DialFailed)
    },
    "the model died in the middle of an answer" => |s| (0..s.case.call.models.len()).any(|m| {
        s.case.tolerance.model_broke(m).is_some_and(|died| {
            s.case.attribution.items.iter().any(|i| i.model == m && !i.sent.is_empty() && i.done.is_none_or(|d| d > died))
        })
    }),
    "a session was refused" => |s| s.ended_by(EndReason::SessionRefused) || s.ended_by(EndReason::ModelRefused),
    "a response failed" => |s| s.models(|m| {
        matches!(m, ModelObservation::SentResponseDone { status, .. } if status == "failed")
    }) > 0,
    "a response was asked for again" => |s| {
        s.event(|e| matches!(e, CallEvent::Ended { counts, .. } if counts.retries > 0))
    },
    "an error that ended nothing" => |s| {
        s.models(|m| matches!(m, ModelObservation::SentError { rejected: None, .. })) > 0
            && s.ended_by(EndReason::Stopped)
    },
    "a notice was played" => |s| s.event(|e| matches!(e, CallEvent::Notice { .. })),
    "a leg clogged" => |s| {
        s.ended_by(EndReason::CallerClogged)
            || s.ended_by(EndReason::ModelClogged)
            || s.event(|e| matches!(e, CallEvent::Ended { counts, .. } if counts.dropped_uplink_ms > 0))
    },
    "a function was called and answered" => |s| s.models(|m| matches!(m, ModelObservation::GotToolOutput { .. })) > 0,
    "a refused output was sent again" => |s| {
        s.event(|e| matches!(e, CallEvent::Ended { counts, .. } if counts.refused_outputs > 0))
    },
    "functions without end were stopped" => |s| s.event(|e| matches!(e, CallEvent::ToolLoop { .. })),
    "a function was finished behind its call" => |s| {
        let over = s.case.tolerance.over();
        s.case.call.bridge.iter().any(|(at, event)| {
            *at > over && matches!(event, CallEvent::ToolAnswered { took: Some(_), .. })
        })
    },
    "a response ended that had never begun" => |s| {
        s.event(|e| matches!(e, CallEvent::Ended { counts, .. } if counts.unannounced > 0))
    },
    "a function call was interrupted" => |s| s.barge_ins.iter().any(|b| {
        let observations = &s.case.call.models[b.model].observations;
        let called = observations.iter().any(|x| matches!(x.what, ModelObservation::SentFunctionCall { .. }) && x.at <= b.at);
        let answered = |x: &&mocks::record::Observation<ModelObservation>| matches!(x.what, ModelObservation::GotToolOutput { .. });
        called && observations.iter().rev().find(answered).is_none_or(|x| x.at > b.at)
    }),
    "keys were pressed and told" => |s| {
        s.callers(|c| matches!(c, CallerObservation::SentDtmf { .. })) > 0
            && s.models(|m| matches!(m, ModelObservation::GotText { .. })) > 0
    },
    "the caller spoke in the protected window" => |s| window(s.case).is_some_and(|window| {
        s.case.call.caller.mic[..window.inside].iter().any(|frame| frame.speech)
    }),
    "the protected window ended in mid-word" => |s| window(s.case).is_some_and(|window| {
        let speaks = |frame: usize| s.case.call.caller.mic.get(frame).is_some_and(|frame| frame.speech);
        window.inside > 0 && (window.inside - 1..=window.outside).all(speaks)
    }),
    "a malformed frame of the caller was survived" => |s| {
        s.callers(|c| matches!(c, CallerObservation::SentRaw { .. })) > 0 && s.ended_by(EndReason::Stopped)
    },
    "a malformed frame of the model was survived" => |s| {
        s.models(|m| matches!(m, ModelObservation::SentOther { kind } if s.case.tolerance.is_odd(kind))) > 0
            && s.ended_by(EndReason::Stopped)
    },
    "the microphone was G.711 all the way" => |s| s.case.call.models.iter().any(|m| m.input_format == "audio/pcmu"),
    "the microphone was transcoded" => |s| s.case.call.models.iter().any(|m| m.input_format == "audio/pcm"),
    "a session was renewed" => |s| !followed(s.case.call).is_empty(),
    "two calls at once" => |s| s.case.trace.calls.len() > 1,
    "ended: stopped" => |s| s.ended_by(EndReason::Stopped),
    "ended: caller_closed" => |s| s.ended_by(EndReason::CallerClosed),
    "ended: caller_lost" => |s| s.ended_by(EndReason::CallerLost),
    "ended: caller_silent" => |s| s.ended_by(EndReason::CallerSilent),
    "ended: no_start" => |s| s.ended_by(EndReason::NoStart),
    "ended: no_media" => |s| s.ended_by(EndReason::NoMedia),
    "ended: unsupported_media" => |s| s.ended_by(EndReason::UnsupportedMedia),
    "ended: caller_malformed" => |s| s.ended_by(EndReason::CallerMalformed),
    "ended: replaced" => |s| s.ended_by(EndReason::Replaced),
    "ended: dial_failed" => |s| s.ended_by(EndReason::DialFailed),
    "ended: model_refused" => |s| s.ended_by(EndReason::ModelRefused),
    "ended: session_timeout" => |s| s.ended_by(EndReason::SessionTimeout),
    "ended: session_refused" => |s| s.ended_by(EndReason::SessionRefused),
    "ended: model_lost" => |s| s.ended_by(EndReason::ModelLost),
    "ended: model_silent" => |s| s.ended_by(EndReason::ModelSilent),
    "ended: session_expired" => |s| s.ended_by(EndReason::SessionExpired),
    "ended: response_failed" => |s| s.ended_by(EndReason::ResponseFailed),
    "ended: too_long" => |s| s.ended_by(EndReason::TooLong),
} only_on_pipes {
    "a barge-in while everything came in pieces" => |s| {
        let network = &s.case.trace.network;
        s.barged_in() && network.pieces > MANY && network.hesitations > MANY
    },
    "a barge-in over a narrow line" => |s| s.barged_in() && s.case.trace.network.queued_us > NARROW_US,
    "a second of bytes in the network's queue" => |s| s.case.trace.network.queued_us > BLOATED_US,
    "a reset found a writer waiting" => |s| s.case.trace.network.resets_of_blocked > 0,
    "a far end heard on after it closed its own half" => |s| s.case.trace.network.heard_half_closed > 0,
} }

impl Scene<'_, '_> {
    fn callers(&self, is: impl Fn(&CallerObservation) -> bool) -> usize {
        self.case.call.caller.observations.iter().filter(|s| is(&s.what)).count()
    }

    fn models(&self, is: impl Fn(&ModelObservation) -> bool) -> usize {
        self.case.call.models.iter().flat_map(|m| &m.observations).filter(|s| is(&s.what)).count()
    }

    fn first_caller(&self, is: impl Fn(&CallerObservation) -> bool) -> Option<At> {
        self.case.call.caller.observations.iter().find(|s| is(&s.what)).map(|s| s.at)
    }

    fn first_model(&self, is: impl Fn(&ModelObservation) -> bool) -> Option<At> {
        self.case.call.models.iter().flat_map(|m| &m.observations).find(|s| is(&s.what)).map(|s| s.at)
    }

    fn event(&self, is: impl Fn(&CallEvent) -> bool) -> bool {
        self.case.call.bridge.iter().any(|(_, event)| is(event))
    }

    fn barged_in(&self) -> bool {
        self.barge_ins.iter().any(|b| b.clears.iter().any(|c| c.discarded > 0))
    }

    fn ended_by(&self, wanted: EndReason) -> bool {
        self.event(|event| matches!(event, CallEvent::Ended { reason, .. } if *reason == wanted))
    }

    /// An interrupted item: bytes heard of it, when its generation ended, and the interruption.
    fn interrupted(&self, is: impl Fn(usize, Option<At>, &BargeIn) -> bool) -> bool {
        self.barge_ins.iter().filter(|b| b.clears.iter().any(|c| c.discarded > 0)).any(|b| {
            let stopped = b.stopped_at();
            self.case
                .attribution
                .items
                .iter()
                .filter(|i| i.model == b.model && b.fenced.contains(&i.response))
                .any(|i| {
                    let heard = self.case.attribution.item_played(i, stopped);
                    heard > 0 && heard + FRAME < i.len && is(heard, i.done, b)
                })
        })
    }

    /// A response existed at the interruption and had sent no audio yet.
    fn is_between(&self, barge_in: &BargeIn, created: bool) -> bool {
        let observations = &self.case.call.models[barge_in.model].observations;
        observations.iter().any(|s| {
            let ModelObservation::SentResponseCreated { response, .. } = &s.what else { return false };
            let spoke = observations.iter().any(|x| {
                matches!(&x.what, ModelObservation::SentAudio { response: r, .. } if r == response)
                    && x.at <= barge_in.at
            });
            let over = observations.iter().any(|x| {
                matches!(&x.what, ModelObservation::SentResponseDone { response: r, .. } if r == response)
                    && x.at < barge_in.at
            });
            (s.at <= barge_in.at) == created && !spoke && !over
        })
    }

    /// A response had been asked for at the interruption and did not exist yet.
    fn is_asked_for(&self, barge_in: &BargeIn) -> bool {
        let observations = &self.case.call.models[barge_in.model].observations;
        observations.iter().any(|s| {
            let ModelObservation::SentResponseCreated { asked: Some(id), .. } = &s.what else { return false };
            let asked = observations.iter().any(|x| {
                matches!(&x.what, ModelObservation::GotCreate { event_id: Some(e), .. } if e == id)
                    && x.at <= barge_in.at
            });
            asked && s.at > barge_in.at
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::bench::Bench;

    #[test]
    fn no_two_milestones_share_a_name() {
        let names: BTreeSet<_> = ALL.iter().collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn what_only_pipes_can_reach_is_asked_of_nobody_else() {
        let piped = |backends: &[Backend]| possible(backends).contains(&"a reset found a writer waiting");
        assert!(piped(&Backend::ALL) && piped(&[Backend::Pipes]));
        assert!(!piped(&[Backend::Memory, Backend::Simulated]));
        assert_eq!(possible(&Backend::ALL), ALL);
    }

    #[test]
    fn an_ordinary_call_reaches_the_ordinary_ones() {
        let reached = reached(&Bench::answered(1_500).transcript(1.0).trace());
        assert!(reached.contains(&"an answer was heard to its end"), "{reached:?}");
        assert!(reached.contains(&"ended: stopped"), "{reached:?}");
        assert!(!reached.contains(&"barge-in with a clear"), "{reached:?}");
        assert!(!reached.contains(&"ended: model_lost"), "{reached:?}");
    }

    #[test]
    fn an_interruption_reaches_its_own() {
        let reached = reached(&Bench::barge_in().trace());
        assert!(reached.contains(&"barge-in with a clear"), "{reached:?}");
        assert!(reached.contains(&"barge-in after generation ended"), "{reached:?}");
        assert!(!reached.contains(&"barge-in in the first frame"), "{reached:?}");
        assert!(!reached.contains(&"barge-in before the first delta"), "{reached:?}");
    }
}
