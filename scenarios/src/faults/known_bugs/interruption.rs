//! Bugs of the moment in which the caller takes the floor, and of what the model remembers of it.

use super::bug::{Bug, bug};
use super::interceptor::{Said, View, hangs_up, to_model, wrong};
use crate::sim::{Act, BridgeOut};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bridge::call::Leg;
use bridge::call::event::{CallEvent, Speaker};
use mocks::peer::At;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const NODE_SAMPLE: &str =
    "https://github.com/twilio-samples/speech-assistant-openai-realtime-api-node/issues/9";
const PYTHON_SAMPLE: &str =
    "https://github.com/twilio-samples/speech-assistant-openai-realtime-api-python/issues/45";

pub(super) fn bugs() -> Vec<Bug> {
    let mut all = cuts();
    all.extend(silences());
    all.extend(fences());
    all
}

/// The ear is not silenced, or silenced when it must not be.
fn silences() -> Vec<Bug> {
    vec![
        bug("no_clear", "The caller interrupts and the agent talks on until everything queued has been played.")
            .seen(&[
                NODE_SAMPLE,
                "https://github.com/cloudflare/agents/issues/2261",
                "https://github.com/aws-samples/sample-amazon-nova-sonic-twilio-integration/issues/2",
                "https://github.com/pipecat-ai/pipecat/issues/366",
            ])
            .caught("clear_on_barge_in", "barge_in/mid_answer")
            .each(|| wrong::<()>().saying(|(), _, said, _| { let clear = said.is_clear(); said.unless(clear) }).boxed()),
        bug(
            "generated_is_taken_for_played",
            "A long answer cannot be interrupted once the model has finished generating it, seconds before the ear \
             has heard it.",
        )
        .seen(&[
            "https://github.com/openai/openai-agents-js/issues/1173",
            "https://github.com/openai/openai-agents-js/pull/1608",
        ])
        .caught("clear_on_barge_in", "barge_in/after_generation_ended")
        .each(|| {
            let says = |(): &mut (), view: &View, said: Said, _: At| {
                let late = view.is_generated() && (said.is_clear() || said.is_cut());
                said.unless(late)
            };
            wrong::<()>().saying(says).boxed()
        }),
        bug(
            "interrupts_although_told_not_to",
            "The setting that protects the agent's words has no effect: speech over them silences it.",
        )
        .seen(&[
            "https://github.com/livekit/agents/issues/6635",
            "https://github.com/rapidaai/voice-ai/issues/280",
        ])
        .caught("clear_on_barge_in", "barge_in/not_allowed")
        .settings(|config| {
            config.vad.interrupt_response &= config.barge_in;
            config.barge_in = true;
        }),
        bug(
            "greeting_interrupts_itself",
            "The greeting is to be protected and is not: its echo from a speakerphone, or a word over it, cuts it short.",
        )
        .seen(&[
            "https://github.com/openclaw/openclaw/issues/10949",
            "https://github.com/pipecat-ai/pipecat/issues/1771",
            "https://github.com/rapidaai/voice-ai/issues/280",
        ])
        .caught("greeting_guard", "greeting/protected_echo")
        .settings(|config| config.greeting_guard = None),
        bug(
            "mute_after_an_interruption",
            "Interrupted between the end of generation and the end of playing, the agent counts as speaking for ever \
             and says nothing more.",
        )
        .seen(&["https://github.com/livekit/agents/issues/3418"])
        .caught("scenario_expectations", "barge_in/after_generation_ended")
        .also(&["downlink_intact", "no_dead_air"])
        .each(|| {
            wrong::<bool>()
                .saying(|stuck, view, said, _| {
                    *stuck |= said.is_clear() && view.is_generated();
                    said.through()
                })
                .hearing(|stuck, _, heard, _| {
                    let lost = *stuck && heard.is_delta();
                    heard.unless(lost)
                })
                .boxed()
        }),
    ]
}

/// The model is told something else than what was heard.
fn cuts() -> Vec<Bug> {
    vec![
        bug(
            "never_cuts",
            "The ear is silenced but the model is not told; it goes on as if all of it had been heard.",
        )
        .seen(&[
            "https://github.com/openai/openai-agents-python/issues/1999",
            "https://github.com/openai/openai-agents-python/issues/2009",
        ])
        .caught("truncation_position", "barge_in/mid_answer")
        .each(|| wrong::<()>().saying(|(), _, said, _| { let cut = said.is_cut(); said.unless(cut) }).boxed()),
        bug(
            "no_cut_after_generation",
            "An answer interrupted after its generation ended stays whole in the model's memory.",
        )
        .seen(&["https://github.com/openai/openai-agents-js/pull/1184"])
        .caught("truncation_position", "barge_in/after_generation_ended")
        .each(|| {
            wrong::<()>()
                .saying(|(), view, said, _| {
                    let forgotten = said.is_cut() && view.is_generated();
                    said.unless(forgotten)
                })
                .boxed()
        }),
        bug("cut_at_what_was_sent", "The cut is where sending had come, seconds ahead of the ear.")
            .seen(&["https://github.com/twilio/twilio-agent-connect-python/pull/118"])
            .caught("truncation_position", "barge_in/mid_answer")
            .each(|| {
                wrong::<()>()
                    .saying(|(), view, said, _| match view.cut_item(&said).filter(|_| said.is_cut()) {
                        Some(item) => {
                            let ms = item.sent_ms();
                            said.cut_at(ms)
                        }
                        None => said.through(),
                    })
                    .boxed()
            }),
        bug(
            "cut_by_the_clock",
            "The cut is the time since the item's first delta, which counts queueing and pauses as heard.",
        )
        .seen(&[
            "https://github.com/pipecat-ai/pipecat/issues/925",
            "https://github.com/pipecat-ai/pipecat/issues/2106",
            "https://github.com/openclaw/openclaw/issues/138592",
        ])
        .caught("truncation_position", "barge_in/in_the_second_item")
        .also(&["protocol_valid"])
        .each(|| {
            wrong::<()>()
                .saying(|(), view, said, now| match view.cut_item(&said).filter(|_| said.is_cut()) {
                    Some(item) => {
                        let ms = now.since(item.first_delta) / 1_000;
                        said.cut_at(ms)
                    }
                    None => said.through(),
                })
                .boxed()
        }),
        bug(
            "cut_runs_past_the_audio",
            "The carrier's clock runs 60 ms ahead of the audio, and the cut with it, past the end of a short item.",
        )
        .seen(&["https://github.com/openclaw/openclaw/pull/125502"])
        .caught("protocol_valid", "barge_in/at_the_last_moment")
        .also(&["truncation_position"])
        .each(|| {
            wrong::<()>()
                .saying(|(), _, said, _| {
                    if !said.is_cut() {
                        return said.through();
                    }
                    let ms = said.json["audio_end_ms"].as_u64().unwrap_or(0) + 60;
                    said.cut_at(ms)
                })
                .boxed()
        }),
        bug(
            "start_stamp_of_an_older_item",
            "The time an item began is taken once and kept until an interruption, so a later item is cut beyond its end.",
        )
        .seen(&[PYTHON_SAMPLE])
        .caught("truncation_position", "barge_in/mid_answer")
        .also(&["protocol_valid"])
        .each(|| {
            wrong::<Option<u64>>()
                .hearing(|start, view, heard, _| {
                    if heard.is_delta() {
                        start.get_or_insert(view.media_ms);
                    }
                    heard.through()
                })
                .saying(|start, view, said, _| {
                    if !said.is_cut() {
                        return said.through();
                    }
                    let since = start.take().unwrap_or(view.media_ms);
                    said.cut_at(view.media_ms.saturating_sub(since))
                })
                .boxed()
        }),
        bug(
            "cuts_the_last_item",
            "What is cut is the item generated last, not the one the ear was at.",
        )
        .seen(&["https://github.com/openai/openai-agents-js/pull/1343", "https://github.com/openai/openai-agents-js/pull/1608"])
        .caught("truncation_position", "barge_in/before_the_third_item")
        .each(|| {
            wrong::<At>()
                .saying(|cut_at, view, said, now| {
                    if !said.is_cut() {
                        return said.through();
                    }
                    // It knows of one item, so it cuts once.
                    if std::mem::replace(cut_at, now) == now {
                        return Vec::new();
                    }
                    let last = view.items.last().map(|item| item.id.clone());
                    said.changed(|json| json["item_id"] = json!(last))
                })
                .boxed()
        }),
        bug(
            "cuts_what_was_heard_to_its_end",
            "Whenever the caller begins to speak the last item is cut, long after all of it was heard; the model says \
             it again.",
        )
        .seen(&[
            "https://github.com/openai/openai-agents-python/issues/2370",
            "https://github.com/openai/openai-agents-python/pull/4122",
        ])
        .caught("truncation_position", "turns/ten")
        .also(&["protocol_valid"])
        .each(|| {
            wrong::<()>()
                .hearing(|(), view, heard, now| {
                    let idle = view.plays_until.plus_ms(200) < now;
                    let last = view.items.last().filter(|_| heard.is_speech_started() && idle);
                    let cut = last.map(|item| {
                        json!({
                            "type": "conversation.item.truncate", "item_id": item.id, "content_index": 0,
                            "audio_end_ms": now.since(item.first_delta) / 1_000,
                        })
                    });
                    let mut acts = heard.through();
                    acts.extend(cut.as_ref().map(to_model));
                    acts
                })
                .boxed()
        }),
        bug(
            "cut_before_the_first_delta",
            "An item that was announced but has no audio yet is cut at 0, which the model refuses.",
        )
        .seen(&[
            "https://github.com/livekit/agents/issues/6157",
            "https://github.com/livekit/agents/issues/1016",
            "https://github.com/livekit/agents-js/issues/134",
        ])
        .caught("scenario_expectations", "barge_in/between_item_and_first_delta")
        .also(&["protocol_valid"])
        .each(|| {
            wrong::<()>()
                .hearing(|(), view, heard, _| {
                    let cut = view.announced.as_ref().filter(|_| heard.is_speech_started()).map(|(_, item)| {
                        json!({
                            "type": "conversation.item.truncate", "item_id": item, "content_index": 0,
                            "audio_end_ms": 0,
                        })
                    });
                    let mut acts = heard.through();
                    acts.extend(cut.as_ref().map(to_model));
                    acts
                })
                .boxed()
        }),
        bug(
            "flushed_marks_count_as_played",
            "The marks a clear returns are credited as played, so the cut lies where the queue ended.",
        )
        .seen(&["https://github.com/openai/openai-agents-python"])
        .caught("truncation_position", "barge_in/mid_answer")
        .each(|| {
            // A cut waits for the marks that are outstanding, and takes their word for it.
            wrong::<Option<Value>>()
                .saying(|held, view, said, _| {
                    if !said.is_cut() || view.marks_outstanding() == 0 || held.is_some() {
                        return said.through();
                    }
                    *held = Some(said.json);
                    Vec::new()
                })
                .hearing(|held, view, heard, _| {
                    let back = heard.is_event("mark") && view.marks_outstanding() == 0;
                    let mut acts = heard.through();
                    if let Some(mut cut) = held.take_if(|_| back) {
                        if let Some((_, ms)) =
                            view.returned.as_ref().filter(|(item, _)| cut["item_id"] == *item.as_str())
                        {
                            cut["audio_end_ms"] = json!(ms);
                        }
                        acts.push(to_model(&cut));
                    }
                    acts
                })
                .boxed()
        }),
        bug("nameless_marks", "Marks are sent without a name, so nothing that comes back can be matched.")
            .seen(&["https://github.com/twilio/twilio-agent-connect-python/pull/82"])
            .caught("protocol_valid", "turns/one")
            .also(&["marks_unique"])
            .each(|| {
                wrong::<()>()
                    .saying(|(), _, said, _| {
                        if said.is_event("mark") {
                            return said.changed(|json| json["mark"] = json!({}));
                        }
                        said.through()
                    })
                    .boxed()
            }),
        bug(
            "transcript_of_what_was_never_heard",
            "The transcript holds the whole answer although it was interrupted in its first words.",
        )
        .seen(&["https://github.com/livekit/agents/issues/2201"])
        .caught("transcript", "transcription/cut_where_hearing_stopped")
        .each(|| {
            wrong::<BTreeMap<String, String>>()
                .hearing(|words, _, heard, _| {
                    if heard.is_type("response.output_audio_transcript.delta") {
                        words.entry(heard.text("item_id").into()).or_default().push_str(heard.text("delta"));
                    }
                    heard.through()
                })
                .noting(|words, event| {
                    let CallEvent::Ended { transcript, .. } = event else { return };
                    for line in transcript.iter_mut().filter(|line| line.speaker == Speaker::Agent) {
                        if let Some(words) = words.get(&line.item) {
                            line.text.clone_from(words);
                        }
                    }
                })
                .boxed()
        }),
    ]
}

/// What was interrupted is heard all the same, or the interruption breaks something else.
fn fences() -> Vec<Bug> {
    vec![
        bug(
            "bare_cancel",
            "A response that was asked for and does not exist yet is cancelled without a name, which does nothing; \
             it is created and spoken.",
        )
        .seen(&["https://github.com/livekit/agents/issues/6223", "https://github.com/livekit/agents/pull/6244"])
        .caught("no_stale_audio", "barge_in/before_response_created_cancelled_by_the_bridge")
        .each(|| {
            wrong::<()>()
                .hearing(|(), view, heard, _| {
                    if heard.is_speech_started() && view.asked > 0 {
                        return vec![to_model(&json!({"type": "response.cancel"}))];
                    }
                    heard.through()
                })
                .boxed()
        }),
        bug("late_deltas_are_played", "Audio of an interrupted response that was still on its way is played.")
            .seen(&["https://github.com/openai/openai-agents-js/pull/1608"])
            .caught("no_stale_audio", "barge_in/late_deltas")
            .each(|| {
                wrong::<()>()
                    .hearing(|(), view, heard, _| {
                        let stale = heard.is_delta() && view.fenced.contains(heard.response());
                        let audio = stale.then(|| heard.audio());
                        let mut acts = heard.through();
                        if let Some(audio) = audio {
                            let payload = BASE64.encode(as_ulaw(&audio, view.is_pcm()));
                            let media =
                                json!({"event": "media", "streamSid": view.stream, "media": {"payload": payload}});
                            acts.push((0, Act::Say(BridgeOut::Text(Leg::Caller, media.to_string()))));
                        }
                        acts
                    })
                    .boxed()
            }),
        bug(
            "writer_queue_survives_the_clear",
            "The clear overtakes 300 ms of audio that wait in a queue of their own and are played behind it.",
        )
        .seen(&[
            "https://github.com/pipecat-ai/pipecat/issues/456",
            "https://github.com/pipecat-ai/pipecat/pull/395",
        ])
        .caught("no_stale_audio", "barge_in/mid_answer")
        .also(&["response_latency"])
        .each(|| {
            wrong::<()>()
                .saying(|(), _, said, _| {
                    if said.is_event("media") || said.is_event("mark") {
                        return said.late(300_000);
                    }
                    said.through()
                })
                .boxed()
        }),
        bug(
            "late_cancel_is_fatal",
            "A cancel that comes after its response ended is refused, and the refusal ends the call.",
        )
        .seen(&[
            "https://github.com/openai/openai-agents-js/issues/189",
            "https://github.com/pipecat-ai/pipecat/issues/3755",
        ])
        .caught("scenario_expectations", "barge_in/before_response_created")
        .each(|| {
            wrong::<()>()
                .hearing(|(), _, heard, _| {
                    let refused = heard.is_type("error")
                        && heard.json["error"]["code"] == "response_cancel_not_active";
                    if refused { hangs_up() } else { heard.through() }
                })
                .boxed()
        }),
        bug(
            "does_not_cancel",
            "The reply is not cancelled when the caller interrupts it, where the server does not do so by itself.",
        )
        .seen(&["https://github.com/openclaw/openclaw/pull/90749"])
        .caught("response_latency", "barge_in/cancelled_by_the_bridge")
        .also(&["downlink_intact", "clear_on_barge_in", "transcript", "protocol_valid", "no_dead_air"])
        .each(|| {
            wrong::<()>()
                .saying(|(), _, said, _| {
                    let cancel = said.is_type("response.cancel");
                    said.unless(cancel)
                })
                .boxed()
        }),
        bug(
            "late_done_ends_the_new_response",
            "The end of the interrupted response comes after the beginning of the next and is taken for its end.",
        )
        .seen(&["https://github.com/ReviewStage/luke/pull/12"])
        .caught("truncation_position", "barge_in/late_done")
        .hidden("ends of cancelled responses that come late are not generated")
        .each(|| {
            // The next response is over as far as this bridge knows: what it still says is not played.
            wrong::<Option<String>>()
                .hearing(|ended, view, heard, _| {
                    if heard.is_done()
                        && let Some(newest) = view.active.last()
                    {
                        *ended = Some(newest.clone());
                        let newest = newest.clone();
                        return heard.changed(|json| json["response"]["id"] = json!(newest));
                    }
                    let over = heard.is_delta() && ended.as_deref() == Some(heard.response());
                    heard.unless(over)
                })
                .boxed()
        }),
    ]
}

/// The audio of a delta as a caller hears it.
fn as_ulaw(audio: &[u8], pcm: bool) -> Vec<u8> {
    if !pcm {
        return audio.to_vec();
    }
    let wide: Vec<i16> = audio.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect();
    mocks::ulaw::encode_all(&mocks::resample::down(&wide))
}
