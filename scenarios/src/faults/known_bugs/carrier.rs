//! Bugs of the caller's stream: how it begins, who owns it, how it ends.

use super::bug::{Bug, bug};
use super::interceptor::{Acts, FaultBuilder, hangs_up, hears, wrong};
use crate::sim::{BridgeOut, Defect, Told};
use bridge::call::{Control, Leg, LegChange};
use mocks::peer::At;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Longer than any call of any scenario.
const FOR_EVER_MS: u64 = 24 * 60 * 60 * 1_000;
/// How old a call gets before a reaper takes it for dead.
const REAPED_MS: u64 = 10_000;

pub(super) fn bugs() -> Vec<Bug> {
    let mut all = ends();
    all.extend(begins());
    all.extend(lasts());
    all
}

/// Pings that nobody answers are taken for answered.
fn never_missing(said: super::interceptor::Said, leg: Leg) -> Acts {
    if said.out == BridgeOut::Ping(leg) {
        return vec![hears(Told::Leg(leg, LegChange::Pong))];
    }
    said.through()
}

/// One end hangs up and the other is not told.
fn ends() -> Vec<Bug> {
    vec![
        bug(
            "hang_up_is_not_passed_on",
            "The caller hangs up and the session with the model lives on, and is paid for, until its own limit.",
        )
        .seen(&[
            "https://github.com/twilio-samples/speech-assistant-openai-realtime-api-python/issues/10",
            "https://github.com/openai/openai-agents-python/pull/5110",
        ])
        .caught("teardown", "turns/one")
        .settings(|config| config.timeouts.caller_silent_ms = FOR_EVER_MS)
        .each(|| {
            wrong::<()>()
                .saying(|(), _, said, _| never_missing(said, Leg::Caller))
                .hearing(|(), _, heard, _| {
                    let end = heard.is_event("stop") || heard.is_end_of(Leg::Caller);
                    heard.unless(end)
                })
                .boxed()
        }),
        bug("waits_for_close_and_gets_stop", "The end of a stream is expected as a closed socket; `stop` says nothing.")
            .seen(&["https://github.com/deepgram/deepgram-twilio-streaming-voice-agent/issues/4"])
            .caught("teardown", "caller_hangup/stop_without_close")
            .each(|| {
                wrong::<()>()
                    .hearing(|(), _, heard, _| {
                        let stop = heard.is_event("stop");
                        heard.unless(stop)
                    })
                    .boxed()
            }),
        bug(
            "hang_up_waits_for_a_function",
            "The caller leaves while a function runs, and the rest of the call waits for it.",
        )
        .seen(&["https://github.com/pipecat-ai/pipecat/issues/3179"])
        .caught("teardown", "caller_hangup/during_a_function")
        .each(|| {
            wrong::<()>()
                .saying(|(), view, said, _| {
                    if said.ends_model() && !view.tools.is_empty() {
                        return said.late(10_000_000);
                    }
                    said.through()
                })
                .boxed()
        }),
        bug(
            "lost_model_is_not_noticed",
            "The model's connection ends, at its time limit or before, and the caller is left in silence.",
        )
        .seen(&[
            "https://github.com/livekit/agents/issues/2341",
            "https://github.com/livekit/agents/issues/1252",
            "https://github.com/pipecat-ai/pipecat/issues/3170",
        ])
        .caught("teardown", "model_failures/drops_mid_answer")
        .also(&["no_dead_air"])
        .settings(|config| config.timeouts.first_audio_ms = FOR_EVER_MS)
        .each(|| {
            wrong::<()>()
                .saying(|(), _, said, _| never_missing(said, Leg::Model))
                .hearing(|(), _, heard, _| {
                    let end = heard.is_end_of(Leg::Model);
                    heard.unless(end)
                })
                .boxed()
        }),
        bug(
            "farewell_cut_off",
            "The last words are taken for heard as soon as they are sent, and the call ends over them.",
        )
        .seen(&[
            "https://github.com/openclaw/openclaw/issues/155271",
            "https://github.com/pipecat-ai/pipecat/issues/728",
            "https://github.com/pipecat-ai/pipecat/issues/482",
        ])
        .caught("no_dead_air", "model_failures/drops_mid_answer")
        .each(|| {
            wrong::<bool>()
                .hearing(|leaving, _, heard, _| {
                    *leaving |= heard.is_end_of(Leg::Model);
                    heard.through()
                })
                .saying(|leaving, _, said, _| {
                    let is_sent = *leaving && said.is_event("mark");
                    let mut acts = said.through();
                    if is_sent {
                        acts.extend(hangs_up());
                    }
                    acts
                })
                .boxed()
        }),
        bug(
            "waits_for_a_lost_mark",
            "A mark that never comes back is waited for: nobody knows what was heard, and a call that waits for its last \
             words does not end.",
        )
        .seen(&[
            "https://github.com/pipecat-ai/pipecat/issues/1461",
            "https://github.com/pipecat-ai/pipecat/pull/1634",
        ])
        .caught("truncation_position", "misbehaviour/marks_never_come_back")
        .also(&["teardown", "clear_on_barge_in", "downlink_intact", "pacing"])
        .settings(|config| {
            config.timeouts.mark_ms = FOR_EVER_MS;
            config.timeouts.notice_ms = FOR_EVER_MS;
        }),
        bug("live_call_is_reaped", "A call that is going well is ended because it has lasted for so long.")
            .seen(&["https://github.com/openclaw/openclaw/issues/79121"])
            .caught("scenario_expectations", "turns/ten")
            .each(|| {
                wrong::<Option<At>>()
                    .hearing(|since, _, heard, now| {
                        if now.since(*since.get_or_insert(now)) > REAPED_MS * 1_000 {
                            *since = Some(At(u64::MAX));
                            return hangs_up();
                        }
                        heard.through()
                    })
                    .boxed()
            }),
    ]
}

/// The first messages of a stream are lost.
fn begins() -> Vec<Bug> {
    vec![
        bug(
            "deaf_until_the_model_is_ready",
            "What the caller says before the session is ready is thrown away.",
        )
        .seen(&[
            "https://github.com/openai/openai-agents-js/pull/1324",
            "https://github.com/openai/openai-agents-js/pull/1677",
        ])
        .caught("uplink_intact", "turns/speech_while_dialling")
        .each(|| {
            wrong::<bool>()
                .hearing(|first, view, heard, _| {
                    let early = heard.is_event("media") && !view.ready && std::mem::replace(first, true);
                    heard.unless(early)
                })
                .boxed()
        }),
        bug(
            "start_is_missed",
            "Handlers are attached too late: the first messages are gone, and the call never learns its stream.",
        )
        .seen(&[
            "https://github.com/twilio-labs/call-gpt/issues/44",
            "https://github.com/twilio-labs/call-gpt/issues/46",
        ])
        .caught("scenario_expectations", "greeting/plain")
        .also(&["no_dead_air", "opening_order"])
        .settings(|config| config.timeouts.start_ms = FOR_EVER_MS)
        .each(|| {
            wrong::<()>()
                .hearing(|(), _, heard, _| {
                    let missed = heard.is_event("connected") || heard.is_event("start");
                    heard.unless(missed)
                })
                .boxed()
        }),
    ]
}

/// Two streams of one call.
fn lasts() -> Vec<Bug> {
    vec![
        bug(
            "two_agents_on_one_call",
            "A call comes back on a new stream while the old one is thought to be alive: two agents talk.",
        )
        .seen(&["https://github.com/openclaw/openclaw/pull/125463"])
        .caught("one_stream_per_call", "server/second_stream_of_a_call")
        .each(|| {
            wrong::<()>()
                .hearing(|(), _, heard, _| {
                    let replaced = heard.told == Told::Control(Control::Replaced);
                    heard.unless(replaced)
                })
                .boxed()
        }),
        bug(
            "predecessor_ends_its_successor",
            "The old stream of a call closes late and takes the new one with it.",
        )
        .seen(&[
            "https://github.com/openclaw/openclaw/pull/125469",
            "https://github.com/openclaw/openclaw/pull/29862",
        ])
        .caught("one_stream_per_call", "server/second_stream_of_a_call")
        .also(&["scenario_expectations"])
        .world(|| {
            let ended: Rc<RefCell<BTreeSet<String>>> = Rc::default();
            Box::new(move |_| successor(ended.clone()))
        }),
    ]
}

/// Which calls have lost a stream, and whether this one was it.
#[derive(Default)]
struct Streams {
    ended: Rc<RefCell<BTreeSet<String>>>,
    replaced: bool,
}

fn successor(ended: Rc<RefCell<BTreeSet<String>>>) -> Box<dyn Defect> {
    let wrong: FaultBuilder<Streams> = wrong().with(Streams { ended, replaced: false });
    wrong
        .hearing(|streams, view, heard, _| {
            if heard.told == Told::Control(Control::Replaced) {
                streams.replaced = true;
                streams.ended.borrow_mut().insert(view.call_sid.clone());
            } else if !streams.replaced && streams.ended.borrow_mut().remove(&view.call_sid) {
                return hangs_up();
            }
            heard.through()
        })
        .boxed()
}
