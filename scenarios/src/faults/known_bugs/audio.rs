//! Bugs of samples and of time.

use super::bug::{Bug, bug};
use super::interceptor::{Acts, View, wrong};
use crate::sim::{Act, BridgeOut};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bridge::call::Leg;
use mocks::peer::At;
use serde_json::json;
use std::collections::VecDeque;

/// Bytes of one frame.
const FRAME: usize = 160;
/// What a timer of 20 ms comes to when each is set after the last has fired.
const LATE_FRAME_US: u64 = 22_500;
/// Samples at 24 kHz over which a resampler that begins anew knows too little.
const EDGE: usize = 45;

pub(super) fn bugs() -> Vec<Bug> {
    let mut all = times();
    all.extend(samples());
    all
}

fn times() -> Vec<Bug> {
    vec![
        bug(
            "timer_drifts",
            "Each frame is sent 20 ms after the last was done, which is more than 20 ms: the ear runs dry again and \
             again.",
        )
        .seen(&[
            "https://github.com/openclaw/openclaw/issues/119070",
            "https://github.com/openclaw/openclaw/pull/119086",
        ])
        .caught("pacing", "turns/one")
        .each(|| wrong::<Sender>().saying(paced).waking(Sender::next).boxed()),
        bug("no_lead", "Frames are sent just in time, so every short stall of the network is heard.")
            .seen(&["https://github.com/pipecat-ai/pipecat/pull/4855"])
            .caught("pacing", "network/caller_leg_stalls_in_an_answer")
            .settings(|config| config.pacing.lead_ms = 40),
        bug(
            "everything_at_once",
            "Audio is sent as fast as it is generated; beyond ten minutes the carrier throws it away.",
        )
        .seen(&["https://www.twilio.com/docs/api/errors/31931"])
        .caught("pacing", "limits/more_audio_than_twilio_holds")
        .settings(|config| config.pacing.lead_ms = 24 * 60 * 60 * 1_000),
        bug(
            "every_pause_is_added",
            "Each answer begins a little later than the one before, because what was waited is never made up for.",
        )
        .seen(&["https://github.com/aplisay/llm-agent/pull/311"])
        .caught("response_latency", "turns/ten")
        .also(&["no_dead_air"])
        .each(|| {
            wrong::<u64>()
                .hearing(|answers, _, heard, _| {
                    *answers += u64::from(heard.is_type("response.created"));
                    if heard.is_of_a_response() { heard.late(*answers * 120_000) } else { heard.through() }
                })
                .boxed()
        }),
        bug("keys_come_twice", "Each pressed key is taken twice.")
            .seen(&["https://github.com/twilio/twilio-client.js/issues/296"])
            .caught("dtmf_delivered", "dtmf/one_key")
            .also(&["scenario_expectations"])
            .each(|| {
                wrong::<()>()
                    .hearing(|(), _, heard, _| {
                        let twice = heard.is_event("dtmf").then(|| heard.told.clone());
                        let mut acts = heard.through();
                        acts.extend(twice.map(super::interceptor::hears));
                        acts
                    })
                    .boxed()
            }),
    ]
}

/// Sends one frame after the other by a timer that is set anew each time.
#[derive(Default)]
struct Sender {
    /// Frames and marks, in order.
    queue: VecDeque<BridgeOut>,
    runs: bool,
}

impl Sender {
    fn next(&mut self, _now: At) -> Acts {
        let mut acts = Acts::new();
        let mut frames = 0;
        while let Some(out) = self.queue.front() {
            let is_mark = matches!(out, BridgeOut::Text(_, text) if text.contains("\"mark\""));
            frames += usize::from(!is_mark);
            if frames > 1 {
                break;
            }
            acts.extend(self.queue.pop_front().map(|out| (0, Act::Say(out))));
        }
        self.runs = frames > 0;
        if self.runs {
            acts.push((LATE_FRAME_US, Act::Wake));
        }
        acts
    }
}

fn paced(sender: &mut Sender, view: &View, said: super::interceptor::Said, now: At) -> Acts {
    if said.is_clear() {
        sender.queue.clear();
        return said.through();
    }
    match said.media() {
        Some(audio) => {
            for frame in audio.chunks(FRAME) {
                let payload = BASE64.encode(frame);
                let media =
                    json!({"event": "media", "streamSid": view.stream, "media": {"payload": payload}});
                sender.queue.push_back(BridgeOut::Text(Leg::Caller, media.to_string()));
            }
        }
        None if said.is_event("mark") => sender.queue.push_back(said.out),
        None => return said.through(),
    }
    if sender.runs { Vec::new() } else { sender.next(now) }
}

fn samples() -> Vec<Bug> {
    vec![
        bug(
            "odd_byte_is_dropped",
            "A delta ends in the middle of a sample; its last byte is dropped and everything behind it is noise.",
        )
        .seen(&[
            "https://github.com/NousResearch/hermes-agent/pull/70851",
            "https://github.com/openai/openai-agents-python/pull/2456",
        ])
        .caught("downlink_intact", "turns/odd_deltas")
        .each(|| {
            wrong::<()>()
                .hearing(|(), view, heard, _| {
                    if !heard.is_delta() || !view.is_pcm() {
                        return heard.through();
                    }
                    let mut audio = heard.audio();
                    audio.truncate(audio.len() / 2 * 2);
                    heard.with_audio(&audio)
                })
                .boxed()
        }),
        bug(
            "every_third_sample",
            "24 kHz become 8 kHz by taking every third sample: what was above 4 kHz is heard below it.",
        )
        .seen(&[
            "https://github.com/hkjarral/AVA-AI-Voice-Agent-for-Asterisk/issues/553",
            "https://github.com/gptme/gptme-contrib/pull/806",
        ])
        .caught("golden", "greeting/plain")
        .hidden("speech stays recognisable; only a recording of the same call tells")
        .each(|| {
            // The bridge narrows what it is given; it is given what survives, held for three samples.
            wrong::<usize>()
                .hearing(|at, view, heard, _| {
                    if !heard.is_delta() || !view.is_pcm() {
                        return heard.through();
                    }
                    let mut audio = heard.audio();
                    let mut held = [0; 2];
                    for sample in audio.chunks_exact_mut(2) {
                        if at.is_multiple_of(3) {
                            held.copy_from_slice(sample);
                        }
                        sample.copy_from_slice(&held);
                        *at += 1;
                    }
                    heard.with_audio(&audio)
                })
                .boxed()
        }),
        bug(
            "resampler_begins_anew",
            "Each delta is resampled by itself: a click wherever one ends and the next begins.",
        )
        .seen(&[
            "https://github.com/pipecat-ai/pipecat/issues/2070",
            "https://github.com/pipecat-ai/pipecat/issues/1653",
        ])
        .caught("downlink_intact", "turns/odd_deltas")
        .each(|| {
            // A filter that knows nothing before and behind a delta fades at both of its edges.
            wrong::<()>()
                .hearing(|(), view, heard, _| {
                    if !heard.is_delta() || !view.is_pcm() {
                        return heard.through();
                    }
                    let mut audio = heard.audio();
                    let samples = audio.len() / 2;
                    for (n, pair) in audio.chunks_exact_mut(2).enumerate() {
                        let near = n.min(samples - 1 - n);
                        if near < EDGE {
                            let sample = i32::from(i16::from_le_bytes([pair[0], pair[1]]));
                            let faded = sample * (near as i32 + EDGE as i32) / (2 * EDGE as i32);
                            pair.copy_from_slice(&(faded as i16).to_le_bytes());
                        }
                    }
                    heard.with_audio(&audio)
                })
                .boxed()
        }),
        bug(
            "end_of_an_answer_is_not_flushed",
            "What is left of an answer when its end is announced is never sent: the last syllable is missing.",
        )
        .seen(&["https://github.com/livekit/agents/issues/1988"])
        .caught("downlink_intact", "turns/one")
        .each(|| {
            // One delta is always held back, and the last one is never asked for.
            wrong::<Option<crate::sim::Told>>()
                .hearing(|held, _, heard, _| {
                    if heard.is_delta() {
                        return held.replace(heard.told).map(super::interceptor::hears).into_iter().collect();
                    }
                    if heard.is_type("response.output_audio.done") {
                        *held = None;
                    }
                    heard.through()
                })
                .boxed()
        }),
    ]
}
