//! Bugs of responses, functions and the session.

use super::bug::{Bug, bug};
use super::interceptor::{Heard, hangs_up, hears, to_model, wrong};
use crate::sim::Told;
use bridge::call::event::{CallEvent, Speaker};
use bridge::call::settings::Dialect;
use bridge::call::{Leg, LegChange};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Longer than any call of any scenario.
const FOR_EVER_MS: u64 = 24 * 60 * 60 * 1_000;

pub(super) fn bugs() -> Vec<Bug> {
    let mut all = requests();
    all.extend(failures());
    all.extend(functions());
    all.extend(sessions());
    all
}

fn error_code(heard: &Heard) -> Option<&str> {
    let error = &heard.json["error"];
    heard.is_type("error").then(|| error["code"].as_str().or(error["type"].as_str()))?
}

/// More than one response is asked for, or one that was is forgotten.
fn requests() -> Vec<Bug> {
    vec![
        bug(
            "asks_while_the_agent_speaks",
            "A function is called while its response is still being generated, and the next response is asked for.",
        )
        .seen(&[
            "https://github.com/livekit/agents/issues/2064",
            "https://github.com/openai/openai-agents-python/issues/1466",
            "https://github.com/tleyden/arty/issues/81",
        ])
        .caught("single_response", "tools/unknown_function")
        .also(&["protocol_valid"])
        .each(|| {
            wrong::<()>()
                .hearing(|(), _, heard, _| {
                    let calls = heard.is_type("response.output_item.done")
                        && heard.json["item"]["type"] == "function_call";
                    let mut acts = heard.through();
                    if calls {
                        acts.push(to_model(&serde_json::json!({"type": "response.create"})));
                    }
                    acts
                })
                .boxed()
        }),
        bug(
            "asks_right_after_a_cancel",
            "The next response is asked for together with the cancel, before the cancelled one has ended.",
        )
        .seen(&[
            "https://github.com/openai/openai-agents-js/pull/1127",
            "https://github.com/jhakulin/realtime-ai/issues/30",
            "https://github.com/langwatch/scenario/issues/657",
        ])
        .caught("single_response", "dtmf/interrupts_the_answer")
        .also(&["protocol_valid"])
        .each(|| {
            wrong::<()>()
                .saying(|(), _, said, _| if said.is_type("response.cancel") { said.and_create() } else { said.through() })
                .boxed()
        }),
        bug(
            "answers_what_the_server_answers",
            "A response is asked for at the end of every turn, although the server answers turns by itself.",
        )
        .seen(&["https://github.com/livekit/agents/issues/6817"])
        .caught("single_response", "turns/one")
        .also(&["protocol_valid"])
        .each(|| {
            wrong::<()>()
                .hearing(|(), _, heard, _| {
                    let ended = heard.is_type("input_audio_buffer.speech_stopped");
                    let mut acts = heard.through();
                    // Its own idea of the end of a turn comes a moment after the server's.
                    if ended {
                        let (_, create) = to_model(&json!({"type": "response.create"}));
                        acts.push((150_000, create));
                    }
                    acts
                })
                .boxed()
        }),
        bug(
            "refusal_is_not_matched",
            "The refusal of a request is not recognised as its answer; the caller waits for a timeout.",
        )
        .seen(&["https://github.com/livekit/agents/issues/6817"])
        .caught("scenario_expectations", "model_failures/refuses_the_settings")
        .also(&["response_latency", "no_dead_air", "tool_calls_answered"])
        .each(|| {
            wrong::<()>()
                .hearing(|(), _, heard, _| {
                    let refusal = heard.is_type("error") && heard.json["error"]["event_id"].is_string();
                    heard.unless(refusal)
                })
                .boxed()
        }),
    ]
}

/// The model fails and nobody says so, or says too much.
fn failures() -> Vec<Bug> {
    vec![
        bug("every_error_is_fatal", "Any error of the model ends the call, also those that end nothing.")
            .seen(&[
                "https://github.com/pipecat-ai/pipecat/pull/3960",
                "https://github.com/pipecat-ai/pipecat/issues/1652",
            ])
            .caught("survives_model_error", "model_failures/passing_error")
            .each(|| {
                wrong::<()>()
                    .hearing(|(), _, heard, _| if error_code(&heard).is_some() { hangs_up() } else { heard.through() })
                    .boxed()
            }),
        bug(
            "failed_response_is_no_error",
            "A response ends `failed`, no `error` event comes with it, and the caller hears nothing ever after.",
        )
        .seen(&[
            "https://github.com/twilio-samples/speech-assistant-openai-realtime-api-node/issues/37",
            "https://github.com/livekit/agents/pull/2967",
            "https://github.com/openclaw/openclaw/pull/136847",
        ])
        .caught("no_dead_air", "model_failures/response_fails_once")
        .settings(|config| config.timeouts.first_audio_ms = FOR_EVER_MS)
        .each(|| {
            wrong::<()>()
                .hearing(|(), _, heard, _| {
                    if heard.is_done() && heard.json["response"]["status"] == "failed" {
                        return heard.changed(|json| json["response"]["status"] = json!("cancelled"));
                    }
                    heard.through()
                })
                .boxed()
        }),
        bug("text_is_not_spoken", "The model answers in text and the caller waits for a voice.")
            .seen(&["https://github.com/livekit/agents/issues/2694"])
            .caught("no_dead_air", "model_failures/text_only_response")
            .settings(|config| config.timeouts.first_audio_ms = FOR_EVER_MS)
            .each(|| {
                wrong::<BTreeSet<String>>()
                    .hearing(|spoke, _, heard, _| {
                        if heard.is_delta() {
                            spoke.insert(heard.response().to_owned());
                        }
                        if heard.is_done() && !spoke.contains(heard.response()) {
                            return heard.changed(|json| json["response"]["status"] = json!("cancelled"));
                        }
                        heard.through()
                    })
                    .boxed()
            }),
        bug(
            "unreachable_model_is_silence",
            "The model cannot be reached; the caller hears nothing of it and is not let go.",
        )
        .seen(&[
            "https://github.com/twilio-samples/live-translation-openai-realtime-api/issues/8",
            "https://github.com/openclaw/openclaw/issues/75197",
        ])
        .caught("teardown", "model_failures/refuses_tcp")
        .also(&["no_dead_air"])
        .settings(|config| config.timeouts.dial_ms = FOR_EVER_MS)
        .each(|| {
            wrong::<()>()
                .hearing(|(), _, heard, _| {
                    let failed = matches!(heard.told, Told::Leg(Leg::Model, LegChange::DialFailed { .. }));
                    heard.unless(failed)
                })
                .boxed()
        }),
        bug(
            "never_speaks_first",
            "The call was to begin with a greeting, and the model waits for the caller to speak.",
        )
        .seen(&[
            "https://github.com/jambonz/jambonz-feature-server/issues/1543",
            "https://github.com/twilio-samples/speech-assistant-openai-realtime-api-python/issues/9",
        ])
        .caught("scenario_expectations", "greeting/plain")
        .also(&["no_dead_air"])
        .settings(|config| config.greeting = None),
    ]
}

/// A function call that is not answered, answered late, or in the way.
fn functions() -> Vec<Bug> {
    vec![
        bug(
            "output_is_lost_when_interrupted",
            "The caller speaks while a function runs; its output is thrown away and the call stays open.",
        )
        .seen(&[
            "https://github.com/livekit/agents/pull/6785",
            "https://github.com/livekit/agents/issues/6569",
            "https://github.com/pipecat-ai/pipecat/issues/5779",
        ])
        .caught("scenario_expectations", "tools/returns_while_the_caller_speaks")
        .also(&["tool_calls_answered"])
        .each(|| {
            wrong::<BTreeSet<String>>()
                .hearing(|lost, view, heard, _| {
                    if heard.is_speech_started() {
                        lost.extend(view.tools.iter().cloned());
                    }
                    heard.through()
                })
                .saying(|lost, _, said, _| {
                    let gone = said.answers().is_some_and(|call_id| lost.contains(call_id));
                    said.unless(gone)
                })
                .boxed()
        }),
        bug("failed_function_is_not_answered", "A function fails and the model is never told.")
            .seen(&[
                "https://github.com/livekit/agents/pull/6600",
                "https://github.com/livekit/agents-js/issues/2249",
            ])
            .caught("scenario_expectations", "tools/fails")
            .also(&["tool_calls_answered"])
            .each(|| {
                wrong::<BTreeSet<String>>()
                    .hearing(|failed, _, heard, _| {
                        if let Told::Tool(result) = &heard.told
                            && result.output.is_err()
                        {
                            failed.insert(result.call_id.clone());
                        }
                        heard.through()
                    })
                    .saying(|failed, _, said, _| {
                        let gone = said.answers().is_some_and(|call_id| failed.contains(call_id));
                        said.unless(gone)
                    })
                    .boxed()
            }),
        bug(
            "function_without_a_time_limit",
            "A function that never returns leaves its call open for as long as the phone call lasts.",
        )
        .seen(&["https://github.com/openai/openai-agents-python/pull/3437"])
        .caught("tool_calls_answered", "tools/never_returns")
        .settings(|config| config.tools.iter_mut().for_each(|tool| tool.timeout_ms = FOR_EVER_MS)),
        bug(
            "output_without_a_response",
            "The output of a function is handed over and the model is not asked to go on.",
        )
        .seen(&["https://github.com/openai/openai-agents-python/pull/3437"])
        .caught("tool_calls_answered", "tools/chain")
        .each(|| {
            wrong::<bool>()
                .saying(|answered, _, said, _| {
                    *answered |= said.answers().is_some();
                    let forgotten = said.is_type("response.create") && std::mem::take(answered);
                    said.unless(forgotten)
                })
                .boxed()
        }),
        bug(
            "function_in_the_read_loop",
            "While a function runs nothing is read from the model, so the caller cannot interrupt.",
        )
        .seen(&["https://github.com/inkbox-ai/hermes-agent-plugin/issues/7"])
        .caught("response_latency", "tools/interrupted")
        .also(&["clear_on_barge_in", "downlink_intact", "pacing", "protocol_valid"])
        .each(|| {
            wrong::<Vec<Told>>()
                .hearing(|unread, view, heard, _| {
                    // The message that calls the function is read; what comes behind it waits.
                    let calls = heard.is_type("response.output_item.done");
                    if heard.is_from_model() && (!unread.is_empty() || (!view.tools.is_empty() && !calls)) {
                        unread.push(heard.told);
                        return Vec::new();
                    }
                    heard.through()
                })
                .saying(|unread, _, said, _| {
                    let back = said.answers().is_some();
                    let mut acts = said.through();
                    if back {
                        acts.extend(unread.drain(..).map(hears));
                    }
                    acts
                })
                .boxed()
        }),
        bug(
            "words_beside_a_function_are_lost",
            "A response both speaks and calls a function, and what it said is missing from the transcript.",
        )
        .seen(&[
            "https://github.com/openai/openai-agents-js/pull/1341",
            "https://github.com/openai/openai-agents-js/pull/1406",
        ])
        .caught("transcript", "tools/after_a_spoken_message")
        .each(|| {
            wrong::<Spoken>()
                .hearing(|spoken, _, heard, _| {
                    if heard.is_delta() {
                        spoken.items.insert(heard.text("item_id").to_owned(), heard.response().to_owned());
                    } else if heard.is_type("response.function_call_arguments.done") {
                        spoken.called.insert(heard.response().to_owned());
                    }
                    heard.through()
                })
                .noting(|spoken, event| {
                    let CallEvent::Ended { transcript, .. } = event else { return };
                    transcript.retain(|line| {
                        let response = spoken.items.get(&line.item);
                        !response.is_some_and(|response| spoken.called.contains(response))
                    });
                })
                .boxed()
        }),
    ]
}

/// Which response each item belongs to, and which responses called a function.
#[derive(Default)]
struct Spoken {
    items: BTreeMap<String, String>,
    called: BTreeSet<String>,
}

/// The session is not what the bridge thinks it is.
fn sessions() -> Vec<Bug> {
    vec![
        bug(
            "hand_off_resets_the_format",
            "An update in mid-call carries the default audio format: noise, then silence.",
        )
        .seen(&[
            "https://github.com/openai/openai-agents-js/issues/122",
            "https://github.com/openai/openai-agents-js/pull/1366",
            "https://github.com/XiyaoWang0519/agent-call/pull/1",
        ])
        .caught("format_confirmed", "turns/pcmu")
        .each(|| {
            wrong::<bool>()
                .hearing(|handed_off, view, heard, _| {
                    let first = heard.is_done() && view.ready && !std::mem::replace(handed_off, heard.is_done());
                    let mut acts = heard.through();
                    if first {
                        let format = json!({"type": "audio/pcm", "rate": 24_000});
                        let audio = json!({"input": {"format": format}, "output": {"format": format}});
                        let session = json!({"type": "realtime", "audio": audio});
                        acts.push(to_model(&json!({"type": "session.update", "session": session})));
                    }
                    acts
                })
                .boxed()
        }),
        bug(
            "refused_update_is_overlooked",
            "One unknown parameter makes the service refuse all settings, and the call goes on as if it had not.",
        )
        .seen(&[
            "https://github.com/openai/openai-realtime-api-beta/issues/9",
            "https://github.com/openai/openai-realtime-api-beta/issues/18",
        ])
        .caught("format_confirmed", "turns/one")
        .also(&["protocol_valid"])
        .each(|| {
            wrong::<Value>()
                .saying(|asked, _, said, _| {
                    if !said.is_type("session.update") {
                        return said.through();
                    }
                    *asked = said.json["session"].clone();
                    said.changed(|json| json["session"]["turn_detection_mode"] = json!("eager"))
                })
                .hearing(|asked, view, heard, _| {
                    if heard.is_type("error") && !view.ready && asked.is_object() {
                        let updated = json!({"type": "session.updated", "session": asked.take()});
                        return vec![hears(Told::Text(Leg::Model, updated.to_string()))];
                    }
                    heard.through()
                })
                .boxed()
        }),
        bug(
            "settings_in_their_old_places",
            "The service has moved a field, and settings in the old place are refused or ignored.",
        )
        .seen(&["https://github.com/twilio-samples/speech-assistant-openai-realtime-api-python/issues/54"])
        .caught("protocol_valid", "turns/one")
        .settings(|config| config.dialect = Dialect::Beta),
        bug(
            "transcript_in_the_order_of_arrival",
            "Lines are written as they come, so the caller's question stands behind the answer.",
        )
        .seen(&[
            "https://github.com/livekit/agents/pull/6579",
            "https://github.com/livekit/agents/pull/6616",
            "https://github.com/livekit/agents-js/issues/2165",
        ])
        .caught("transcript", "transcription/late")
        .each(|| {
            wrong::<Vec<String>>()
                .hearing(|order, _, heard, _| {
                    let words = heard.is_type("conversation.item.input_audio_transcription.completed")
                        || heard.is_type("response.output_audio_transcript.done");
                    if words {
                        order.push(heard.text("item_id").to_owned());
                    }
                    heard.through()
                })
                .noting(|order, event| {
                    let CallEvent::Ended { transcript, .. } = event else { return };
                    // What never came stays where it was.
                    let rank = |item: &str| order.iter().position(|known| known == item);
                    transcript.retain(|line| line.speaker == Speaker::Keypad || rank(&line.item).is_some());
                    transcript.sort_by_key(|line| rank(&line.item));
                })
                .boxed()
        }),
    ]
}
