//! Servers that drift from the mock, each found by name. All of it in memory, on a clock that does not wait.

use super::client::{Budget, Limits};
use super::compare::{Comparison, Known, Rules, compare};
use super::difference::What;
use super::play::{Scheme, Server, expected, in_memory};
use super::recording::Recording;
use super::script::{self, Session};
use super::tolerance::Tolerances;
use bridge::base::secret::Secret;
use mocks::net::Roots;
use mocks::peer::{At, Frame, Out, Peer};
use mocks::realtime::{CloseAfter, Dialect, Model, ModelIdentity, ModelScript, Opening, Turn};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;

fn server(dialect: Dialect) -> Server {
    Server {
        url: "ws://localhost/v1/realtime".parse().unwrap(),
        key: Secret::new("any"),
        scheme: Scheme::Bearer,
        model: "gpt-realtime-2.1".to_owned(),
        dialect,
        roots: Roots::public(),
    }
}

fn session(name: &str) -> Session {
    script::all().unwrap().into_iter().find(|session| session.name == name).unwrap()
}

/// A mock whose frames are changed on their way.
struct Drifting<F> {
    model: Model,
    change: F,
    outs: VecDeque<Out>,
}

impl<F: FnMut(Value) -> Vec<Value>> Peer for Drifting<F> {
    fn opened(&mut self, now: At) {
        self.model.opened(now);
    }

    fn handle(&mut self, frame: Frame, now: At) {
        self.model.handle(frame, now);
    }

    fn gone(&mut self, why: &str, now: At) {
        self.model.gone(why, now);
    }

    fn handle_timeout(&mut self, now: At) {
        self.model.handle_timeout(now);
    }

    fn poll_transmit(&mut self) -> Option<Out> {
        while self.outs.is_empty() {
            match self.model.poll_transmit()? {
                Out::Frame(Frame::Text(text)) => {
                    let frames = (self.change)(serde_json::from_str(&text).unwrap());
                    self.outs.extend(frames.iter().map(|frame| Out::Frame(Frame::Text(frame.to_string()))));
                }
                out @ (Out::Frame(_) | Out::Drop | Out::PauseReading | Out::ResumeReading) => {
                    self.outs.push_back(out);
                }
            }
        }
        self.outs.pop_front()
    }

    fn poll_timeout(&self) -> Option<At> {
        self.model.poll_timeout()
    }

    fn is_finished(&self) -> bool {
        self.model.is_finished() && self.outs.is_empty()
    }
}

fn play(
    name: &str,
    script: impl FnOnce(&mut ModelScript),
    change: impl FnMut(Value) -> Vec<Value>,
    limits: Limits,
) -> Recording {
    let session = session(name);
    let mut knobs = session.mock(Dialect::Ga);
    script(&mut knobs);
    let identity = ModelIdentity { index: 3, epoch_unix: 9, ..ModelIdentity::default() };
    let model = Model::new(knobs, identity, 77);
    let peer = Drifting { model, change, outs: VecDeque::new() };
    in_memory(&session, &server(Dialect::Ga), limits, peer)
}

fn compared(name: &str, seen: &Recording) -> Comparison {
    let tolerances = Tolerances::read().unwrap();
    let session = session(name);
    let expectation = expected(&session, &server(Dialect::Ga));
    let mut known = Known::golden();
    known.learn_all(&expectation);
    compare(&expectation, seen, Rules { tolerances: &tolerances, known: &known, lag_ms: Some(0.0) })
}

/// What comes of a server that changes its frames like this.
fn drifted(name: &str, change: impl FnMut(Value) -> Vec<Value>) -> Comparison {
    compared(name, &play(name, |_| {}, change, Limits::default()))
}

/// What comes of a server that does what this script says.
fn scripted(name: &str, script: impl FnOnce(&mut ModelScript)) -> Comparison {
    compared(name, &play(name, script, |frame| vec![frame], Limits::default()))
}

/// A change of every event of this type.
fn each(kind: &'static str, mut change: impl FnMut(&mut Value)) -> impl FnMut(Value) -> Vec<Value> {
    move |mut frame| {
        if frame["type"] == kind {
            change(&mut frame);
        }
        vec![frame]
    }
}

/// Exactly one kind of difference, of this event and field.
#[track_caller]
fn only(comparison: &Comparison, what: What, event: &str, field: &str) {
    assert!(!comparison.differences.is_empty(), "nothing was found");
    for found in &comparison.differences {
        assert_eq!(
            (found.what, found.event.as_str(), found.field.as_str()),
            (what, event, field),
            "{found:?}"
        );
    }
}

// ------------------------------------------------------------------------------------------ the same

#[test]
fn the_mock_is_like_itself_with_other_ids_and_words_in_every_session() {
    for session in script::all().unwrap() {
        if session.connect == script::Connect::default() {
            let comparison = scripted(&session.name, |_| {});
            assert_eq!(comparison.differences, [], "{}", session.name);
            assert!(comparison.compared > 3 && comparison.not_compared == 0, "{}", session.name);
        }
    }
}

#[test]
fn every_session_comes_to_its_end_with_the_mock_in_both_dialects() {
    for dialect in [Dialect::Ga, Dialect::Beta] {
        for session in script::chosen(None, dialect).unwrap() {
            let recording = expected(&session, &server(dialect));
            let gave_up = recording.lines.iter().find(|line| line.kind() == super::recording::GAVE_UP);
            assert_eq!(gave_up, None, "{} {dialect:?}", session.name);
            assert_eq!(expected(&session, &server(dialect)), recording, "the same twice");
        }
    }
}

#[test]
fn every_refusal_is_one_and_a_session_that_was_refused_goes_on() {
    for name in ["refusals", "bad_settings"] {
        let recording = expected(&session(name), &server(Dialect::Ga));
        let codes: Vec<_> =
            recording.lines.iter().filter_map(|line| line.frame["error"]["code"].as_str()).collect();
        assert_eq!(codes.len(), 9, "{name}: {codes:?}");
        assert_eq!(recording.lines.last().unwrap().kind(), "session.updated", "{name}");
    }
}

#[test]
fn an_answer_of_another_length_in_other_words_is_no_difference() {
    let comparison = scripted("turn", |script| {
        script.turns = vec![Turn { transcript: Some("Another answer.".to_owned()), ..Turn::answers(5_200) }];
    });
    assert_eq!(comparison.differences, []);
}

// ------------------------------------------------------------------------------------------ differences

#[test]
fn a_missing_event_is_found() {
    let comparison = drifted("turn", |frame| {
        if frame["type"] == "input_audio_buffer.committed" { Vec::new() } else { vec![frame] }
    });
    only(&comparison, What::MissingEvent, "input_audio_buffer.committed", "");
}

#[test]
fn an_extra_event_is_found() {
    let comparison = drifted("greeting", |frame| {
        let more = json!({"type": "conversation.created", "event_id": "e", "conversation": {"id": "c"}});
        if frame["type"] == "session.created" { vec![frame, more] } else { vec![frame] }
    });
    only(&comparison, What::ExtraEvent, "conversation.created", "");
}

#[test]
fn another_order_is_found_and_is_no_missing_event() {
    let mut held = None;
    let comparison = drifted("greeting", |frame| match frame["type"].as_str() {
        Some("conversation.item.done") => {
            held = Some(frame);
            Vec::new()
        }
        Some("response.output_item.done") => vec![frame].into_iter().chain(held.take()).collect(),
        _ => vec![frame],
    });
    assert_eq!(comparison.differences.len(), 1, "{:?}", comparison.differences);
    assert_eq!(comparison.differences[0].what, What::Order);
}

#[test]
fn a_retired_name_is_found_and_the_event_is_still_compared() {
    let comparison = drifted(
        "greeting",
        each("response.output_audio.delta", |frame| frame["type"] = json!("response.audio.delta")),
    );
    only(&comparison, What::Name, "response.output_audio.delta (assistant message)", "type");
    assert_eq!(comparison.differences[0].seen, "response.audio.delta");
}

#[test]
fn a_missing_and_an_extra_field_are_found() {
    let take = |frame: &mut Value| {
        frame["response"].as_object_mut().unwrap().remove("conversation_id");
    };
    let comparison = drifted("greeting", each("response.created", take));
    only(&comparison, What::MissingField, "response.created", "response.conversation_id");
    let add = |frame: &mut Value| frame["response"]["mood"] = json!("good");
    let comparison = drifted("greeting", each("response.created", add));
    only(&comparison, What::ExtraField, "response.created", "response.mood");
}

#[test]
fn a_field_that_one_of_many_deltas_lacks_is_found() {
    let mut count = 0;
    let comparison = drifted(
        "greeting",
        each("response.output_audio.delta", move |frame| {
            count += 1;
            if count == 5 {
                frame.as_object_mut().unwrap().remove("output_index");
            }
        }),
    );
    only(&comparison, What::MissingField, "response.output_audio.delta (assistant message)", "output_index");
}

#[test]
fn another_type_is_found() {
    let text = |frame: &mut Value| frame["audio_end_ms"] = json!(frame["audio_end_ms"].to_string());
    let comparison = drifted("truncate", each("conversation.item.truncated", text));
    only(&comparison, What::Type, "conversation.item.truncated (assistant message)", "audio_end_ms");
    let null = |frame: &mut Value| frame["session"]["audio"]["input"]["turn_detection"] = Value::Null;
    let comparison = drifted("greeting", each("session.updated", null));
    only(&comparison, What::Type, "session.updated", "session.audio.input.turn_detection");
}

#[test]
fn an_unknown_value_is_told_from_one_that_is_known_and_wrong() {
    let done = |status: &'static str| {
        each("response.done", move |frame| frame["response"]["status"] = json!(status))
    };
    let comparison = drifted("greeting", done("finished"));
    only(&comparison, What::UnseenValue, "response.done", "response.status");
    let comparison = drifted("greeting", done("cancelled"));
    only(&comparison, What::Value, "response.done", "response.status");
}

#[test]
fn an_echo_that_is_not_what_was_asked_for_is_found() {
    let interrupts = |frame: &mut Value| {
        frame["session"]["audio"]["input"]["turn_detection"]["interrupt_response"] = json!(false)
    };
    let comparison = drifted("greeting", each("session.updated", interrupts));
    let field = "session.audio.input.turn_detection.interrupt_response";
    only(&comparison, What::Value, "session.updated", field);
}

#[test]
fn an_id_that_names_another_thing_is_found() {
    let other = |frame: &mut Value| frame["item_id"] = frame["response_id"].clone();
    let comparison = drifted("greeting", each("response.content_part.done", other));
    assert_eq!(comparison.differences[0].what, What::Value);
    assert_eq!(comparison.differences[0].field, "item_id");
    let stale = |frame: &mut Value| frame["previous_item_id"] = json!("item_of_another_call");
    let comparison = drifted("turn", each("input_audio_buffer.committed", stale));
    only(&comparison, What::Type, "input_audio_buffer.committed", "previous_item_id");
}

#[test]
fn another_refusal_is_found_by_its_code() {
    let comparison = drifted("refusals", |mut frame| {
        if frame["error"]["code"] == "invalid_tool_call_id" {
            frame["error"]["code"] = json!("invalid_value");
        }
        vec![frame]
    });
    only(&comparison, What::Value, "error", "error.code");
    let comparison = scripted("greeting", |script| script.refuses_update = Some("no_such_thing".to_owned()));
    assert!(comparison.differences.iter().any(|found| found.what == What::MissingEvent
        && found.event == "session.updated"
        && found.seen.starts_with("not sent")));
}

#[test]
fn another_way_to_refuse_a_key_is_found() {
    let session = session("bad_key");
    let server = server(Dialect::Ga);
    let expectation = expected(&session, &server);
    let last = expectation.lines.last().unwrap();
    assert_eq!((last.kind(), &last.frame["code"]), (super::recording::CLOSE, &json!(3_000)));
    let mut seen = expectation.clone();
    seen.lines.last_mut().unwrap().frame["code"] = json!(1_008);
    only(&compared("bad_key", &seen), What::Value, super::recording::CLOSE, "code");
}

#[test]
fn an_answer_without_sound_is_found() {
    let comparison =
        drifted("greeting", each("response.output_audio.delta", |frame| frame["delta"] = json!("")));
    only(&comparison, What::Value, "response.output_audio.delta (assistant message)", "delta");
}

#[test]
fn a_time_out_of_its_band_is_found() {
    let comparison = scripted("greeting", |script| {
        script.turns = vec![Turn { first_audio_ms: 9_000, ..Turn::answers(2_600) }];
    });
    only(&comparison, What::Timing, "response.created to the first audio", "");
    // An answer that comes no faster than it plays.
    let slow = Turn { delta_ms: 2_000, speed: 1.0, ..Turn::answers(12_000) };
    let comparison = scripted("greeting", |script| script.turns = vec![slow]);
    let names: Vec<_> = comparison.differences.iter().map(|found| found.event.as_str()).collect();
    assert_eq!(names, ["one delta of audio to the next", "audio in a delta"]);
}

// ------------------------------------------------------------------------------------------ tolerated

#[test]
fn what_is_tolerated_is_told_with_its_reason() {
    let comparison =
        drifted(
            "greeting",
            |frame| {
                if frame["type"] == "rate_limits.updated" { Vec::new() } else { vec![frame] }
            },
        );
    assert_eq!(comparison.differences, []);
    let (found, reason) = &comparison.tolerated[0];
    assert_eq!((found.what, found.event.as_str()), (What::MissingEvent, "rate_limits.updated"));
    assert!(reason.contains("every response"));
}

#[test]
fn words_of_the_caller_may_come_anywhere() {
    let mut held = Vec::new();
    let comparison = drifted("turn", |frame| {
        if frame["type"] == "response.output_item.done" {
            return vec![frame];
        }
        if frame["type"].as_str().unwrap().contains("input_audio_transcription") {
            held.push(frame);
            // The session is over when the last of them has come.
            return if held.last().unwrap()["transcript"].is_string() {
                std::mem::take(&mut held)
            } else {
                Vec::new()
            };
        }
        vec![frame]
    });
    assert_eq!(comparison.differences, []);
}

// ------------------------------------------------------------------------------------------ bounds

#[test]
fn a_silent_server_is_left_after_one_step_and_the_rest_is_not_told() {
    let seen =
        play("turn", |script| script.opening = Opening::Silent, |frame| vec![frame], Limits::default());
    assert!(seen.lines.last().unwrap().at_us <= 20_100_000, "{:?}", seen.lines.last());
    let comparison = compared("turn", &seen);
    only(&comparison, What::MissingEvent, "session.created", "");
    assert!(comparison.differences[0].seen.contains("20000 ms"), "{:?}", comparison.differences);
    assert!(comparison.not_compared > 10);
}

#[test]
fn a_server_that_stops_in_the_middle_is_left_and_what_it_did_not_send_is_named() {
    let comparison = scripted("greeting", |script| {
        script.turns = vec![Turn { never_created: true, ..Turn::default() }];
    });
    only(&comparison, What::MissingEvent, "response.created", "");
}

#[test]
fn a_session_that_was_given_up_is_never_the_same() {
    let mut stopped = false;
    let comparison = drifted("cancel", move |frame| {
        stopped |= frame["type"] == "response.output_audio.done";
        if stopped { Vec::new() } else { vec![frame] }
    });
    assert!(comparison.tolerated.iter().any(|(found, _)| found.what == What::MissingEvent));
    only(&comparison, What::ExtraEvent, super::recording::GAVE_UP, "");
    assert!(comparison.differences[0].seen.contains("response.done"), "{:?}", comparison.differences);
}

#[test]
fn a_server_that_closes_early_is_found_by_its_close() {
    let close = Some(CloseAfter { ms: 700, code: 1_011, reason: "no more".to_owned() });
    let comparison = scripted("turn", |script| script.close_after = close);
    let (close, missing): (Vec<_>, Vec<_>) =
        comparison.differences.iter().partition(|found| found.what == What::ExtraEvent);
    assert_eq!((close.len(), close[0].event.as_str()), (1, super::recording::CLOSE));
    assert!(close[0].seen.contains("1011") && close[0].seen.contains("no more"), "{close:?}");
    assert!(missing.len() == 1 && missing[0].what == What::MissingEvent, "{missing:?}");
    let comparison = scripted("turn", |script| script.drops_after_ms = Some(700));
    assert!(comparison.differences.iter().any(|found| found.event == super::recording::LOST));
}

#[test]
fn a_server_without_an_end_is_left() {
    let seen = play("greeting", |_| {}, |frame| vec![frame; 30_000], Limits::default());
    assert!(seen.lines.len() < 21_000);
    assert!(seen.lines.last().unwrap().frame["why"].as_str().unwrap().contains("without an end"));
    let steps = Limits { session_ms: 1_000, ..Limits::default() };
    let seen = play("turn", |_| {}, |frame| vec![frame], steps);
    assert!(seen.lines.last().unwrap().frame["why"].as_str().unwrap().contains("too long"));
}

#[test]
fn a_run_ends_when_the_audio_that_was_allowed_is_used_up() {
    let budget = Arc::new(Budget::new(3_000));
    let limits = Limits { budget, ..Limits::default() };
    let long = |script: &mut ModelScript| script.turns = vec![Turn::answers(600_000)];
    let seen = play("greeting", long, |frame| vec![frame], limits.clone());
    let (_, model_ms) = seen.audio_ms();
    assert!((2_700..3_500).contains(&model_ms), "{model_ms}");
    assert!(seen.lines.last().unwrap().frame["why"].as_str().unwrap().contains("used up"));
    // It is used up for the sessions after it, too.
    let (_, model_ms) = play("greeting", long, |frame| vec![frame], limits).audio_ms();
    assert!(model_ms < 500, "{model_ms}");
}

// ------------------------------------------------------------------------------------------ the upgrade

#[test]
fn the_address_carries_the_model_once_and_keeps_what_else_is_in_it() {
    let mut server = server(Dialect::Ga);
    let greeting = session("greeting");
    server.url = "wss://example.com/?model=other&api-version=7".parse().unwrap();
    assert_eq!(server.target(&greeting), "/v1/realtime?api-version=7&model=gpt-realtime-2.1");
    assert_eq!(server.target(&session("missing_model")), "/v1/realtime?api-version=7");
    assert_eq!(server.place(), "wss://example.com/v1/realtime");
    server.url = "wss://example.com/openai/v1/realtime".parse().unwrap();
    assert_eq!(server.target(&session("other_model")), "/openai/v1/realtime?model=gpt-4o-mini");
}

#[test]
fn the_key_is_shown_as_the_scheme_says_and_never_where_it_is_made_up() {
    let mut server = server(Dialect::Beta);
    server.key = Secret::new("sesame");
    let find = |server: &Server, session: &str, name: &str| {
        let headers = server.headers(&self::session(session));
        headers.into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    };
    assert_eq!(find(&server, "greeting", "authorization").as_deref(), Some("Bearer sesame"));
    assert_eq!(find(&server, "greeting", "openai-beta").as_deref(), Some("realtime=v1"));
    server.scheme = "Api-Key".parse().unwrap();
    assert_eq!(find(&server, "greeting", "api-key").as_deref(), Some("sesame"));
    assert_eq!(find(&server, "greeting", "authorization"), None);
    assert!(!find(&server, "bad_key", "api-key").unwrap().contains("sesame"));
    assert!("a b".parse::<Scheme>().is_err());
    assert!(!format!("{server:?}").contains("sesame"));
}
