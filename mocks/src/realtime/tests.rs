//! The model as the bridge meets it: frames in, frames out.

use super::*;
use ::base64::Engine;
use ::base64::engine::general_purpose::STANDARD;
use std::collections::BTreeSet;
use std::io::Write;

/// Names a file that all well-formed frames of these tests are appended to, one a line.
const DUMP: &str = "MOCK_REALTIME_DUMP";

struct Bench {
    model: Model,
    now: At,
    news: Vec<Value>,
    others: Vec<Out>,
    all: Vec<String>,
}

impl Bench {
    fn opened(script: ModelScript) -> Self {
        let identity = ModelIdentity { call_sid: "CA1".to_owned(), index: 2, epoch_unix: 1_795_000_000 };
        Self::with(Model::new(script, identity, 7))
    }

    fn with(model: Model) -> Self {
        let mut bench = Self { model, now: At(0), news: Vec::new(), others: Vec::new(), all: Vec::new() };
        bench.model.opened(At(0));
        bench.drain();
        bench
    }

    /// A session that speaks mu-law both ways and transcribes.
    fn live(script: ModelScript) -> Self {
        let mut bench = Self::opened(script);
        bench.advance(20);
        bench.update(json!({"audio": {"input": {"format": {"type": "audio/pcmu"},
            "transcription": {"model": "gpt-transcribe"}}, "output": {"format": {"type": "audio/pcmu"}}}}));
        bench.advance(10);
        bench.news.clear();
        bench
    }

    fn turns(turns: Vec<Turn>) -> Self {
        Self::live(ModelScript { turns, ..ModelScript::default() })
    }

    fn update(&mut self, mut session: Value) {
        session["type"] = json!("realtime");
        self.send(json!({"type": "session.update", "event_id": "c_update", "session": session}));
    }

    fn send(&mut self, event: Value) {
        self.frame(Frame::Text(event.to_string()));
    }

    fn frame(&mut self, frame: Frame) {
        self.model.handle(frame, self.now);
        self.drain();
    }

    fn advance(&mut self, ms: u64) {
        let until = self.now.plus_ms(ms);
        while let Some(at) = self.model.poll_timeout().filter(|at| *at <= until) {
            assert!(at >= self.now, "time runs backwards");
            self.now = at;
            self.model.handle_timeout(at);
            self.drain();
        }
        self.now = until;
    }

    fn drain(&mut self) {
        while let Some(out) = self.model.poll_transmit() {
            let Out::Frame(Frame::Text(text)) = out else {
                self.others.push(out);
                continue;
            };
            if let Ok(event) = serde_json::from_str(&text) {
                self.news.push(event);
            }
            self.all.push(text);
        }
    }

    /// The caller speaks, or not, for `ms`, in frames of 20 ms at the pace of the line.
    fn line(&mut self, ms: u64, code: [u8; 2]) {
        for _ in 0..ms / 20 {
            let frame: Vec<_> = (0..160).map(|i| code[i / 8 % 2]).collect();
            self.send(json!({"type": "input_audio_buffer.append", "audio": STANDARD.encode(frame)}));
            self.advance(20);
        }
    }

    fn speaks(&mut self, ms: u64) {
        self.line(ms, [0x90, 0x10]);
    }

    fn listens(&mut self, ms: u64) {
        self.line(ms, [0xFF, 0xFF]);
    }

    fn creates(&mut self) {
        self.send(json!({"type": "response.create", "event_id": "c_create"}));
    }

    fn cancels(&mut self) {
        self.send(json!({"type": "response.cancel", "event_id": "c_cancel"}));
    }

    fn truncates(&mut self, item: &str, ms: u64) {
        self.send(json!({"type": "conversation.item.truncate", "event_id": "c_cut", "item_id": item,
            "content_index": 0, "audio_end_ms": ms}));
    }

    /// What was sent since the last time.
    fn news(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.news)
    }

    fn kinds(&mut self) -> Vec<String> {
        self.news().iter().map(kind).collect()
    }

    fn only(&mut self, kind: &str) -> Value {
        let mut found: Vec<_> = self.news().into_iter().filter(|event| event["type"] == kind).collect();
        assert_eq!(found.len(), 1, "events of type {kind}");
        found.remove(0)
    }

    /// Code and message of the only error since the last time.
    fn error(&mut self) -> (String, String) {
        let error = self.only("error")["error"].clone();
        (error["code"].as_str().unwrap().to_owned(), error["message"].as_str().unwrap().to_owned())
    }

    fn closed(&self) -> Option<(u16, &str)> {
        self.others.iter().find_map(|out| {
            let Out::Frame(Frame::Close(Some((code, reason)))) = out else { return None };
            Some((*code, reason.as_str()))
        })
    }

    fn item(&self, index: usize) -> &crate::record::ItemRecord {
        &self.model.record().items[index]
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let odd = self.model.script().dialect != Dialect::Ga || !self.model.script().events.is_empty();
        if odd || std::thread::panicking() {
            return;
        }
        if let Ok(path) = std::env::var(DUMP) {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
            file.write_all((self.all.join("\n") + "\n").as_bytes()).unwrap();
        }
    }
}

fn kind(event: &Value) -> String {
    event["type"].as_str().unwrap().to_owned()
}

/// The types in order, a run of equal ones once, without the words.
fn outline(events: &[Value]) -> Vec<String> {
    let mut kinds: Vec<_> = events.iter().map(kind).filter(|kind| !kind.contains("transcript")).collect();
    kinds.dedup();
    kinds
}

const SPOKEN_ANSWER: [&str; 10] = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
];

// -------------------------------------------------------------------------------------------- the opening

#[test]
fn the_session_is_created_first_and_updated_on_request() {
    let mut t = Bench::opened(ModelScript::default());
    assert_eq!(t.kinds(), [""; 0]);
    t.advance(20);
    let created = t.only("session.created");
    assert_eq!(created["session"]["expires_at"], 1_795_003_600);
    assert_eq!(created["session"]["audio"]["input"]["format"], json!({"type": "audio/pcm", "rate": 24_000}));
    t.update(json!({"audio": {"output": {"format": {"type": "audio/pcmu"}}}}));
    assert_eq!(t.kinds(), [""; 0]);
    t.advance(10);
    let updated = t.only("session.updated");
    assert_eq!(updated["session"]["audio"]["output"]["format"], json!({"type": "audio/pcmu"}));
}

#[test]
fn an_update_that_came_early_is_answered_after_the_greeting() {
    let mut t = Bench::opened(ModelScript::default());
    t.update(json!({"instructions": "Be brief."}));
    t.advance(100);
    assert_eq!(t.kinds(), ["session.created", "session.updated"]);
}

#[test]
fn a_refused_update_changes_nothing() {
    let mut t = Bench::live(ModelScript::default());
    t.update(json!({"instructions": "New.", "audio": {"input": {"format": {"type": "audio/pcm"}}}}));
    t.advance(100);
    let error = t.only("error");
    assert_eq!(error["error"]["code"], "missing_required_parameter");
    assert_eq!(error["error"]["param"], "session.audio.input.format.rate");
    assert_eq!(error["error"]["event_id"], "c_update");
    t.update(json!({}));
    t.advance(10);
    let session = t.only("session.updated")["session"].clone();
    assert_ne!(session["instructions"], "New.");
    assert_eq!(session["audio"]["input"]["format"]["type"], "audio/pcmu");
}

#[test]
fn a_script_can_refuse_updates_and_echo_another_format() {
    let mut t =
        Bench::opened(ModelScript { refuses_update: Some("server_busy".to_owned()), ..Default::default() });
    t.advance(20);
    t.update(json!({}));
    t.advance(10);
    assert_eq!(t.error().0, "server_busy");

    let echo = Some(AudioFormat::Pcm);
    let mut t = Bench::opened(ModelScript { echoes_format: echo, ..Default::default() });
    t.advance(20);
    t.update(json!({"audio": {"output": {"format": {"type": "audio/pcmu"}}}}));
    t.advance(10);
    assert_eq!(t.only("session.updated")["session"]["audio"]["output"]["format"]["type"], "audio/pcm");
}

#[test]
fn keys_and_models_are_refused_after_the_upgrade() {
    let good = ("Authorization", "Bearer sk-good");
    let beta = ("OpenAI-Beta", "realtime=v1");
    let model = "/v1/realtime?model=gpt-realtime-2.1";
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, u16, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (model, vec![], 3_000, "invalid_api_key"),
        (model, vec![("Authorization", "Bearer sk-bad")], 3_000, "invalid_api_key"),
        (model, vec![good, beta], 4_000, "beta_api_shape_disabled"),
        ("/v1/realtime", vec![good], 4_000, "missing_model"),
        ("/v1/realtime?model=gpt-4.1", vec![good], 4_000, "invalid_model"),
        ("/v1/realtime?model=gpt-4o-realtime-preview", vec![good], 4_004, "model_not_found"),
    ];
    for (query, headers, close, code) in cases {
        let script = ModelScript { bad_key: Some("sk-bad".to_owned()), ..ModelScript::default() };
        let mut model = Model::new(script, ModelIdentity::default(), 0);
        model.set_query(query);
        model.set_headers(headers);
        let mut t = Bench::with(model);
        t.advance(0);
        assert_eq!(t.error().0, code, "with the answer to the upgrade");
        assert_eq!(t.closed(), Some((close, &*format!("invalid_request_error.{code}"))));
    }
}

#[test]
fn a_good_upgrade_is_greeted_and_names_its_call() {
    let mut model = Model::new(ModelScript::default(), ModelIdentity::default(), 0);
    model.set_query("/v1/realtime?model=gpt-realtime");
    model.set_headers([("authorization", "Bearer sk"), ("x-client-request-id", "CA42")]);
    let mut t = Bench::with(model);
    t.advance(20);
    assert_eq!(t.only("session.created")["session"]["audio"]["output"]["voice"], "alloy");
    assert_eq!(t.model.record().call_sid, "CA42");
}

#[test]
fn presets_close_as_the_service_does() {
    for (opening, close) in [(Opening::BadKey, 3_000), (Opening::UnknownModel, 4_004)] {
        let mut t = Bench::opened(ModelScript { opening, ..ModelScript::default() });
        t.advance(20);
        assert_eq!(t.closed().unwrap().0, close);
        assert!(!t.model.is_finished(), "the answer to our close is still to come");
        t.frame(Frame::Close(None));
        assert!(t.model.is_finished());
    }
}

#[test]
fn a_silent_model_never_says_anything() {
    let mut t = Bench::opened(ModelScript { opening: Opening::Silent, ..ModelScript::default() });
    t.update(json!({}));
    t.creates();
    t.advance(60_000);
    assert_eq!((t.kinds(), t.others.len()), (vec![], 0));
}

#[test]
fn a_dark_model_hears_but_answers_nothing() {
    let mut t = Bench::live(ModelScript { goes_dark_after_ms: Some(100), ..ModelScript::default() });
    t.advance(100);
    t.creates();
    t.frame(Frame::Ping(vec![1]));
    t.advance(60_000);
    t.frame(Frame::Close(Some((1_000, String::new()))));
    assert_eq!((t.kinds(), t.others.len()), (vec![], 0));
    assert!(!t.model.is_finished(), "the socket stays open");
    t.model.gone("reset", t.now);
    assert!(t.model.is_finished());
}

#[test]
fn the_session_expires_with_an_error_and_1001() {
    let mut t = Bench::live(ModelScript { expires_after_s: Some(30), ..ModelScript::default() });
    t.advance(30_000);
    assert_eq!(t.error().0, "session_expired");
    assert_eq!(t.closed().unwrap().0, 1_001);

    let script =
        ModelScript { expires_after_s: Some(30), expiry_error_frame: false, ..ModelScript::default() };
    let mut t = Bench::live(script);
    t.advance(30_000);
    assert_eq!((t.kinds(), t.closed().unwrap().0), (vec![], 1_001));
}

// -------------------------------------------------------------------------------------------- a turn

#[test]
fn a_turn_has_the_order_of_the_service() {
    let mut t = Bench::turns(vec![Turn::answers(3_000)]);
    t.listens(1_000);
    t.speaks(1_000);
    t.listens(2_000);
    let events = t.news();
    let hearing = [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ];
    let expected: Vec<_> = hearing.into_iter().chain(SPOKEN_ANSWER).chain(["rate_limits.updated"]).collect();
    assert_eq!(outline(&events), expected);
    assert_eq!(events[0]["audio_start_ms"], 700);
    assert_eq!(events[1]["audio_end_ms"], 2_500);
    assert_eq!(events[0]["item_id"], events[2]["item_id"]);
    let transcripts = events.iter().filter(|event| kind(event).ends_with("transcription.completed")).count();
    assert_eq!(transcripts, 1);
}

#[test]
fn a_reply_is_delivered_five_times_faster_than_it_plays() {
    let mut t = Bench::turns(vec![Turn::answers(5_300)]);
    t.creates();
    t.advance(6 + 354);
    let mut deltas: Vec<_> =
        t.news().into_iter().filter(|e| e["type"] == "response.output_audio.delta").collect();
    assert_eq!(deltas.len(), 3, "three quarters of a second come at once");
    t.advance(4_550 / 5);
    deltas.extend(t.news().into_iter().filter(|e| e["type"] == "response.output_audio.delta"));
    assert_eq!(deltas.len(), 22);
    let bytes = STANDARD.decode(deltas[3]["delta"].as_str().unwrap()).unwrap();
    assert_eq!(bytes.len(), 2_000, "250 ms of mu-law");
    assert_eq!(t.item(0).sent, 5_300 * 8);
}

#[test]
fn a_second_item_of_the_model_forgets_the_first_when_done() {
    let mut t = Bench::turns(vec![]);
    t.send(json!({"type": "conversation.item.create", "item": {"id": "dtmf_1", "type": "message",
        "role": "user", "content": [{"type": "input_text", "text": "5"}]}}));
    t.creates();
    t.advance(3_000);
    let events = t.news();
    let of = |wanted: &str| {
        let item = |event: &&Value| event["type"] == wanted && event["item"]["role"] == "assistant";
        events.iter().find(item).unwrap()["previous_item_id"].clone()
    };
    assert_eq!(of("conversation.item.added"), "dtmf_1");
    assert_eq!(of("conversation.item.done"), Value::Null);
}

#[test]
fn turn_detection_runs_on_audio_time() {
    let mut t = Bench::turns(vec![]);
    t.speaks(1_000);
    t.advance(10_000);
    assert_eq!(t.kinds(), ["input_audio_buffer.speech_started"], "no audio, no end of speech");
    t.listens(560);
    let stopped = t.news().into_iter().find(|e| e["type"] == "input_audio_buffer.speech_stopped").unwrap();
    assert_eq!(stopped["audio_end_ms"], 1_500);
}

#[test]
fn without_create_response_the_model_only_listens() {
    let mut t = Bench::live(ModelScript::default());
    t.update(
        json!({"audio": {"input": {"turn_detection": {"type": "server_vad", "create_response": false}}}}),
    );
    t.speaks(400);
    t.listens(3_000);
    assert!(!t.kinds().contains(&"response.created".to_owned()));
}

#[test]
fn transcriptions_come_when_the_script_says() {
    let plan = |when, text: &str| Transcription { when, text: Some(text.to_owned()) };
    let transcription = vec![
        plan(When::BeforeResponse, "first"),
        plan(When::Fails, ""),
        plan(When::Never, ""),
        plan(When::Late(4_000), ""),
    ];
    let mut t = Bench::live(ModelScript { transcription, ..ModelScript::default() });
    let mut heard = Vec::new();
    for _ in 0..4 {
        t.speaks(400);
        t.listens(2_600);
        let kinds = t.kinds();
        let place = |wanted: &str| kinds.iter().position(|kind| kind == wanted);
        let completed = place("conversation.item.input_audio_transcription.completed");
        let failed = place("conversation.item.input_audio_transcription.failed");
        heard.push((completed.is_some_and(|at| at < place("response.created").unwrap()), failed.is_some()));
    }
    assert_eq!(heard, [(true, false), (false, true), (false, false), (false, false)]);
    t.advance(4_000);
    let late = t.only("conversation.item.input_audio_transcription.completed");
    assert_eq!(late["transcript"], "");
}

/// The session of a model, in mu-law, with what else it is asked for.
fn session_of(model: &str, script: ModelScript, input: Value) -> Bench {
    let mut model_end = Model::new(script, ModelIdentity::default(), 0);
    model_end.set_query(&format!("/v1/realtime?model={model}"));
    let mut t = Bench::with(model_end);
    t.advance(20);
    let mut asked = input;
    asked["format"] = json!({"type": "audio/pcmu"});
    t.update(json!({"audio": {"input": asked, "output": {"format": {"type": "audio/pcmu"}}}}));
    t.advance(10);
    t
}

#[test]
fn how_long_a_silence_ends_a_turn_depends_on_the_model_where_nothing_is_said_of_it() {
    let default = ModelScript::default();
    let keeps = ModelScript { keeps_default_silence: true, ..ModelScript::default() };
    let other = ModelScript { default_silence_ms: Some(340), ..ModelScript::default() };
    let asked = json!({"turn_detection": {"type": "server_vad", "silence_duration_ms": 700}});
    for (model, script, input, told, ends) in [
        ("gpt-realtime", &default, json!({}), 200, 200),
        ("gpt-realtime-mini", &default, json!({}), 200, 200),
        ("gpt-realtime-mini-2025-12-15", &default, json!({}), 200, 200),
        ("gpt-realtime-2025-08-28", &default, json!({}), 200, 200),
        ("gpt-realtime-2.1", &default, json!({}), 500, 500),
        ("gpt-realtime-2.1-mini", &default, json!({}), 500, 500),
        ("gpt-realtime", &default, json!({"turn_detection": {"type": "server_vad"}}), 200, 200),
        ("gpt-realtime", &default, asked.clone(), 700, 700),
        ("gpt-realtime", &keeps, asked.clone(), 700, 200),
        ("gpt-realtime", &other, json!({}), 340, 340),
    ] {
        let mut t = session_of(model, script.clone(), input);
        let session = t.only("session.updated")["session"].clone();
        assert_eq!(session["audio"]["input"]["turn_detection"]["silence_duration_ms"], told, "{model}");
        t.speaks(400);
        t.listens(1_000);
        let stopped =
            t.news().into_iter().find(|e| e["type"] == "input_audio_buffer.speech_stopped").unwrap();
        assert_eq!(stopped["audio_end_ms"], 400 + ends, "{model}");
    }
}

#[test]
fn some_models_write_words_down_while_they_are_spoken() {
    const DELTA: &str = "conversation.item.input_audio_transcription.delta";
    let text = "Where is my order, please? It is late.";
    let transcription = vec![
        Transcription { text: Some(text.to_owned()), ..Transcription::default() },
        Transcription { when: When::Never, ..Transcription::default() },
    ];
    for (model, early) in [("gpt-realtime-whisper", true), ("gpt-4o-transcribe", false)] {
        let script = ModelScript { transcription: transcription.clone(), ..ModelScript::default() };
        let mut t = session_of("gpt-realtime-2.1", script, json!({"transcription": {"model": model}}));
        t.news();
        t.speaks(1_200);
        assert!(!t.kinds().contains(&DELTA.to_owned()), "{model}: nothing is known so early");
        t.speaks(1_800);
        let before = t.news();
        assert_eq!(before.iter().any(|e| e["type"] == DELTA), early, "{model}");
        t.listens(1_500);
        let after = t.news();
        let committed = after.iter().find(|e| e["type"] == "input_audio_buffer.committed").unwrap();
        let deltas: Vec<_> = before.iter().chain(&after).filter(|e| e["type"] == DELTA).collect();
        assert!(deltas.iter().all(|e| e["item_id"] == committed["item_id"]), "{model}");
        let joined: String = deltas.iter().filter_map(|e| e["delta"].as_str()).collect();
        assert_eq!(joined, format!(" {text}"), "{model}");
        let completed =
            after.iter().find(|e| e["type"] == "conversation.item.input_audio_transcription.completed");
        let completed = completed.unwrap();
        assert_eq!(completed["transcript"], text);
        let kind = if early { "duration" } else { "tokens" };
        assert_eq!(completed["usage"]["type"], kind, "{model}");
        // What is never transcribed has no first words either.
        t.speaks(3_000);
        t.listens(1_500);
        assert!(!t.kinds().contains(&DELTA.to_owned()), "{model}");
    }
}

#[test]
fn a_noise_can_start_a_turn_and_one_utterance_two() {
    let does = Happening::FalseSpeech { for_ms: 300 };
    let script = ModelScript {
        events: vec![TimedEvent { at_ms: 500, does }],
        vad: Vad { extra_speech_started: true, ..Vad::default() },
        ..ModelScript::default()
    };
    let mut t = Bench::live(script);
    t.listens(3_000);
    let events = t.news();
    let started: BTreeSet<_> = events
        .iter()
        .filter(|event| event["type"] == "input_audio_buffer.speech_started")
        .map(|event| event["item_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(started.len(), 2);
    assert!(events.iter().any(|event| event["type"] == "response.created"));
}

#[test]
fn a_quiet_line_can_become_a_turn_of_its_own() {
    let mut t = Bench::turns(vec![Turn::answers(1_000)]);
    t.update(
        json!({"audio": {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5_000}}}}),
    );
    t.creates();
    t.listens(2_000);
    t.news();
    t.listens(6_000);
    let kinds = t.kinds();
    assert_eq!(kinds[..2], ["input_audio_buffer.timeout_triggered", "input_audio_buffer.committed"]);
    assert!(kinds.contains(&"response.created".to_owned()));
}

#[test]
fn a_commit_by_hand_needs_a_tenth_of_a_second() {
    let mut t = Bench::turns(vec![]);
    t.send(json!({"type": "input_audio_buffer.commit"}));
    let (code, message) = t.error();
    assert_eq!(code, "input_audio_buffer_commit_empty");
    assert!(message.ends_with("but buffer only has 0.00ms of audio."), "{message}");
    t.listens(100);
    t.send(json!({"type": "input_audio_buffer.commit"}));
    t.advance(1_000);
    let kinds = t.kinds();
    assert_eq!(
        kinds[..3],
        ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    );
    assert!(!kinds.contains(&"response.created".to_owned()), "a commit by hand is not answered");
}

// -------------------------------------------------------------------------------------------- barge-in

#[test]
fn speech_cancels_the_answer_in_the_order_of_the_service() {
    let mut t = Bench::turns(vec![Turn::answers(20_000)]);
    t.creates();
    t.listens(1_000);
    t.news();
    t.speaks(120);
    t.advance(100);
    let events = t.news();
    let begun = events.iter().position(|e| e["type"] == "input_audio_buffer.speech_started").unwrap();
    let after: Vec<_> = events[begun..].iter().map(kind).collect();
    let expected = [
        "input_audio_buffer.speech_started",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
        "rate_limits.updated",
    ];
    assert_eq!(after, expected);
    let done = events.iter().find(|e| e["type"] == "response.done").unwrap();
    assert_eq!(done["response"]["status"], "cancelled");
    assert_eq!(done["response"]["status_details"]["reason"], "turn_detected");
    assert_eq!(done["response"]["output"][0]["status"], "incomplete");
    assert_eq!(done["response"]["output"][0]["content"][0]["transcript"], t.item(0).transcript);
    let sights = &t.model.record().observations;
    assert!(sights.iter().any(|s| matches!(s.what, ModelObservation::SentAudio { late: true, .. })));
    assert!(
        sights.iter().any(|s| matches!(&s.what, ModelObservation::SentSpeechStarted { active: Some(_), .. }))
    );
}

#[test]
fn without_interrupt_response_the_answer_goes_on() {
    let mut t = Bench::turns(vec![Turn::answers(3_000)]);
    t.update(
        json!({"audio": {"input": {"turn_detection": {"type": "server_vad", "interrupt_response": false}}}}),
    );
    t.creates();
    t.listens(400);
    t.speaks(1_000);
    t.advance(2_000);
    assert_eq!(t.only("response.done")["response"]["status"], "completed");
}

#[test]
fn speech_after_the_answer_cancels_nothing() {
    let mut t = Bench::turns(vec![Turn::answers(5_000)]);
    t.creates();
    t.listens(2_000);
    assert_eq!(t.only("response.done")["response"]["status"], "completed");
    t.speaks(200);
    t.advance(100);
    assert_eq!(t.kinds(), ["input_audio_buffer.speech_started"]);
}

#[test]
fn speech_before_the_response_exists_ends_it_at_once() {
    let mut t = Bench::turns(vec![Turn { created_ms: 3_000, ..Turn::default() }]);
    t.creates();
    t.speaks(200);
    t.advance(100);
    let events = t.news();
    let expected =
        ["input_audio_buffer.speech_started", "response.created", "response.done", "rate_limits.updated"];
    assert_eq!(outline(&events), expected);
    assert_eq!(events[2]["response"]["output"], json!([]));
}

#[test]
fn a_response_that_was_never_created_can_be_done() {
    let turn = Turn { created_ms: 3_000, uncreated: true, ..Turn::default() };
    let mut t = Bench::turns(vec![turn.clone(), turn]);
    t.creates();
    t.speaks(200);
    t.advance(100);
    let events = t.news();
    assert_eq!(
        outline(&events),
        ["input_audio_buffer.speech_started", "response.done", "rate_limits.updated"]
    );
    assert_eq!(events[1]["response"]["status"], "cancelled");
    assert_eq!(events[1]["response"]["status_details"]["reason"], "turn_detected");
    t.listens(9_000);
    let kinds = t.kinds();
    let created = kinds.iter().filter(|kind| *kind == "response.created").count();
    let done = kinds.iter().filter(|kind| *kind == "response.done").count();
    assert_eq!((created, done), (1, 1), "left alone, it is created as any other");
}

#[test]
fn how_a_cancel_goes_is_the_business_of_the_script() {
    for (cancelled_items, status, closed) in [
        (CancelledItems::Incomplete, "incomplete", true),
        (CancelledItems::Completed, "completed", true),
        (CancelledItems::LeftOpen, "in_progress", false),
    ] {
        let turn = Turn { cancelled_items, late_deltas: 2, late_gap_ms: 30, ..Turn::answers(20_000) };
        let mut t = Bench::turns(vec![turn]);
        t.creates();
        t.advance(1_000);
        t.news();
        t.cancels();
        t.advance(59);
        assert_eq!(t.kinds(), ["response.output_audio.delta"], "one delta in 30 ms");
        t.advance(31);
        let events = t.news();
        assert_eq!(events.iter().any(|event| event["type"] == "response.output_item.done"), closed);
        let done = events.iter().find(|event| event["type"] == "response.done").unwrap();
        assert_eq!(done["response"]["status"], "cancelled");
        assert_eq!(done["response"]["output"][0]["status"], status);
    }
}

#[test]
fn a_late_done_comes_after_the_next_response_was_created() {
    let late = Turn { late_done_ms: 1_100, ..Turn::answers(20_000) };
    let mut t = Bench::turns(vec![late, Turn::answers(1_000)]);
    t.creates();
    t.listens(1_000);
    t.speaks(400);
    t.listens(3_000);
    let order: Vec<_> = t
        .news()
        .iter()
        .filter(|event| ["response.created", "response.done"].contains(&&*kind(event)))
        .map(|event| (kind(event), event["response"]["id"].clone()))
        .collect();
    assert_eq!(order.len(), 4);
    assert_eq!((&*order[1].0, &*order[2].0), ("response.created", "response.done"));
    assert_eq!(order[0].1, order[2].1, "the late one is the first one");
}

#[test]
fn responses_outside_the_conversation_are_not_interrupted() {
    let mut t = Bench::turns(vec![Turn::answers(10_000)]);
    t.send(
        json!({"type": "response.create", "response": {"conversation": "none", "metadata": {"topic": "x"}}}),
    );
    t.listens(500);
    let created = t.only("response.created")["response"].clone();
    assert_eq!((&created["conversation_id"], &created["metadata"]), (&Value::Null, &json!({"topic": "x"})));
    t.speaks(300);
    t.advance(3_000);
    assert_eq!(t.only("response.done")["response"]["status"], "completed");
    t.cancels();
    assert_eq!(t.error().0, "response_cancel_not_active");
}

// -------------------------------------------------------------------------------------------- truncation

#[test]
fn an_item_is_cut_at_what_was_generated_at_most() {
    let mut t = Bench::turns(vec![Turn::answers(4_900)]);
    t.creates();
    t.advance(2_000);
    let item = t.item(0).id.clone();
    t.news();
    t.truncates(&item, 8_160);
    let error = t.only("error")["error"].clone();
    assert_eq!(error["code"], "invalid_value");
    assert_eq!(error["message"], "Audio content of 4900ms is already shorter than 8160ms");
    assert_eq!(error["event_id"], Value::Null, "the service does not say which cut it was");
    t.truncates(&item, 1_180);
    let ack = t.only("conversation.item.truncated");
    assert_eq!((&ack["item_id"], &ack["audio_end_ms"]), (&json!(item), &json!(1_180)));
    assert_eq!(t.item(0).truncated_ms, Some(1_180));
    t.truncates(&item, 1_181);
    assert_eq!(t.error().1, "Audio content of 1180ms is already shorter than 1181ms");
}

#[test]
fn a_cut_removes_the_words_and_keeps_the_audio_before_it() {
    let mut t = Bench::turns(vec![Turn::answers(2_000)]);
    t.creates();
    t.advance(2_000);
    let item = t.item(0).id.clone();
    t.truncates(&item, 500);
    t.news();
    t.send(json!({"type": "conversation.item.retrieve", "item_id": item}));
    let content = t.only("conversation.item.retrieved")["item"]["content"][0].clone();
    assert_eq!(content["transcript"], "");
    let audio = STANDARD.decode(content["audio"].as_str().unwrap()).unwrap();
    assert!(audio == t.item(0).coded[..4_000], "500 ms as they were sent");
}

#[test]
fn only_what_the_model_said_can_be_cut() {
    let mut t = Bench::turns(vec![Turn { first_audio_ms: 1_000, ..Turn::default() }]);
    t.truncates("item_unknown", 100);
    assert_eq!(t.error().0, "item_truncate_invalid_item_id");
    t.send(json!({"type": "conversation.item.create", "item": {"id": "text", "type": "message",
        "role": "user", "content": [{"type": "input_text", "text": "5"}]}}));
    t.news();
    t.truncates("text", 0);
    assert_eq!(
        t.error(),
        (
            "unsupported_content_type".to_owned(),
            "Only model output audio messages can be truncated".to_owned()
        )
    );
    t.creates();
    t.advance(700);
    let item = t.item(0).id.clone();
    t.news();
    t.truncates(&item, 0);
    assert_eq!(t.error().0, "unsupported_content_type", "no audio yet");
}

#[test]
fn a_deleted_item_is_gone() {
    let mut t = Bench::turns(vec![]);
    t.creates();
    t.advance(2_000);
    let item = t.item(0).id.clone();
    t.send(json!({"type": "conversation.item.delete", "item_id": item}));
    assert!(t.model.record().conversation.is_empty());
    t.news();
    t.send(json!({"type": "conversation.item.delete", "item_id": item}));
    assert_eq!(t.error().0, "item_delete_invalid_item_id");
}

// -------------------------------------------------------------------------------------------- responses

#[test]
fn a_cancel_with_nothing_to_cancel_is_an_error_without_an_id() {
    let mut t = Bench::turns(vec![]);
    t.cancels();
    let error = t.only("error")["error"].clone();
    assert_eq!(error["code"], "response_cancel_not_active");
    assert_eq!(error["message"], "Cancellation failed: no active response found");
    assert_eq!(error["event_id"], Value::Null);
}

#[test]
fn a_cancel_between_request_and_creation_does_not_stop_the_response() {
    let mut t = Bench::turns(vec![Turn { created_ms: 60, ..Turn::answers(500) }]);
    t.creates();
    t.advance(30);
    t.cancels();
    assert_eq!(t.error().0, "response_cancel_not_active");
    t.advance(2_000);
    assert_eq!(t.only("response.done")["response"]["status"], "completed");
}

#[test]
fn a_cancelled_response_says_who_cancelled_it() {
    let mut t = Bench::turns(vec![Turn { late_deltas: 0, ..Turn::answers(9_000) }]);
    t.creates();
    t.advance(500);
    t.news();
    t.cancels();
    t.advance(50);
    let events = t.news();
    assert!(!events.iter().any(|event| event["type"] == "response.output_audio.delta"));
    let done = events.iter().find(|event| event["type"] == "response.done").unwrap();
    assert_eq!(done["response"]["status_details"]["reason"], "client_cancelled");
}

#[test]
fn one_response_at_a_time() {
    let mut t = Bench::turns(vec![Turn::answers(2_000)]);
    t.creates();
    t.creates();
    let (code, message) = t.error();
    assert_eq!(code, "conversation_already_has_active_response", "the first is not created yet");
    t.advance(500);
    let id = t.only("response.created")["response"]["id"].as_str().unwrap().to_owned();
    assert!(message.contains(&format!("in progress: {id}. Wait until")), "{message}");
    t.creates();
    assert_eq!(t.only("error")["error"]["event_id"], "c_create");
    t.cancels();
    t.creates();
    assert_eq!(t.error().0, code, "until its response.done a cancelled response is in the way");
    t.advance(100);
    t.creates();
    t.advance(100);
    assert!(t.kinds().contains(&"response.created".to_owned()));
}

#[test]
fn a_failed_response_has_no_items() {
    let error = ErrorSpec { code: Some("rate_limit_exceeded".to_owned()), ..ErrorSpec::default() };
    let mut t = Bench::turns(vec![Turn { status: Outcome::Failed(error), ..Turn::default() }]);
    t.creates();
    t.advance(60 + 50);
    let done = t.only("response.done")["response"].clone();
    assert_eq!((&done["status"], &done["output"]), (&json!("failed"), &json!([])));
    assert_eq!(done["status_details"]["error"]["code"], "rate_limit_exceeded");
    let usage = &done["usage"];
    assert_eq!((&usage["total_tokens"], &usage["input_tokens"]), (&json!(0), &json!(0)));
    assert_eq!(usage["output_token_details"], json!({"text_tokens": 0, "audio_tokens": 0}));
}

#[test]
fn what_was_read_before_is_read_from_the_cache_in_blocks_of_sixty_four() {
    let mut t = Bench::turns(vec![Turn::answers(9_000), Turn::answers(500)]);
    let usage = |t: &mut Bench| {
        t.creates();
        t.advance(4_000);
        t.only("response.done")["response"]["usage"].clone()
    };
    t.update(json!({"instructions": "Be brief. ".repeat(100)}));
    let (first, second) = (usage(&mut t), usage(&mut t));
    assert_eq!(first["input_token_details"]["cached_tokens"], 0);
    let given = first["input_tokens"].as_u64().unwrap();
    assert!(given > 64);
    let cached = &second["input_token_details"];
    assert_eq!(cached["cached_tokens"], given / 64 * 64);
    let parts = &cached["cached_tokens_details"];
    let sum = parts["text_tokens"].as_u64().unwrap() + parts["audio_tokens"].as_u64().unwrap();
    assert_eq!(sum, given / 64 * 64);
    let out = &second["output_token_details"];
    assert!(out["reasoning_tokens"].as_u64().unwrap() > 0, "gpt-realtime-2.1 thinks");
    let sum = ["text_tokens", "audio_tokens", "reasoning_tokens"].map(|key| out[key].as_u64().unwrap());
    assert_eq!(second["output_tokens"], sum.iter().sum::<u64>());
}

#[test]
fn limits_do_not_follow_every_response() {
    let silent = Turn { rate_limits: false, ..Turn::answers(300) };
    let mut t = Bench::turns(vec![silent.clone(), Turn::answers(300), Turn { silent: true, ..silent }]);
    let told: Vec<_> = (0..3)
        .map(|_| {
            t.creates();
            t.advance(2_000);
            t.kinds().contains(&"rate_limits.updated".to_owned())
        })
        .collect();
    assert_eq!(told, [false, true, false]);
}

#[test]
fn an_incomplete_response_stops_short() {
    let status = Outcome::Incomplete("max_output_tokens".to_owned());
    let mut t = Bench::turns(vec![Turn { status, ..Turn::answers(700) }]);
    t.creates();
    t.advance(2_000);
    let done = t.only("response.done")["response"].clone();
    assert_eq!((&done["status"], &done["output"][0]["status"]), (&json!("incomplete"), &json!("incomplete")));
}

#[test]
fn answers_may_be_silent_or_written_or_never_come() {
    let written = Turn { text_only: true, transcript: Some("Just text.".to_owned()), ..Turn::default() };
    let mut t = Bench::turns(vec![
        Turn { silent: true, ..Turn::default() },
        written,
        Turn { never_audio: true, ..Turn::default() },
        Turn { never_created: true, ..Turn::default() },
    ]);
    t.creates();
    t.advance(1_000);
    assert_eq!(t.kinds(), ["response.created", "response.done", "rate_limits.updated"]);
    t.creates();
    t.advance(1_000);
    let done = t.only("response.done")["response"].clone();
    assert_eq!(done["output"][0]["content"], json!([{"type": "output_text", "text": "Just text."}]));
    t.creates();
    t.advance(60_000);
    assert_eq!(t.kinds(), ["response.created"]);
    t.cancels();
    t.advance(50);
    assert_eq!(t.only("response.done")["response"]["status"], "cancelled");
    t.creates();
    t.advance(60_000);
    assert_eq!(t.kinds(), [""; 0]);
}

#[test]
fn items_of_one_response_are_added_before_the_earlier_ones_are_done() {
    let mut t = Bench::turns(vec![Turn { items: vec![600, 900], ..Turn::default() }]);
    t.creates();
    t.advance(3_000);
    let kinds = t.kinds();
    let last_added = kinds.iter().rposition(|kind| kind == "response.output_item.added").unwrap();
    let first_done = kinds.iter().position(|kind| kind == "response.output_audio.done").unwrap();
    assert!(last_added < first_done);
    assert_eq!((t.item(0).sent, t.item(1).sent), (4_800, 7_200));
}

#[test]
fn the_connection_can_end_in_the_middle_of_an_answer() {
    let mut t = Bench::turns(vec![Turn { drop_after_ms: Some(500), ..Turn::answers(9_000) }]);
    t.creates();
    t.advance(1_000);
    assert_eq!(t.others, [Out::Drop]);
    assert!(t.model.is_finished());
    let close = CloseAfter { ms: 500, code: 1_012, reason: "restart".to_owned() };
    let mut t = Bench::turns(vec![Turn { close_after: Some(close), ..Turn::answers(9_000) }]);
    t.creates();
    t.advance(1_000);
    assert_eq!(t.closed(), Some((1_012, "restart")));
}

#[test]
fn a_stall_delays_the_rest_of_the_audio() {
    let stall = Some(Stall { after_ms: 300, for_ms: 2_000 });
    let mut t = Bench::turns(vec![Turn { stall, ..Turn::answers(1_300) }]);
    t.creates();
    t.advance(6 + 354 + 1_999);
    assert_eq!(t.item(0).sent, 500 * 8);
    t.advance(1_000);
    assert_eq!(t.item(0).sent, 1_300 * 8);
}

// -------------------------------------------------------------------------------------------- tools

fn calls(calls: Vec<Call>) -> Turn {
    Turn { calls, ..Turn::default() }
}

fn lookup(arguments: &str) -> Call {
    Call { name: "lookup_order".to_owned(), arguments: arguments.to_owned(), call_id: None }
}

#[test]
fn a_function_call_has_the_order_of_the_service() {
    let mut t = Bench::turns(vec![calls(vec![lookup("{\"order_id\":\"A-17\"}")])]);
    t.creates();
    t.advance(2_000);
    let events = t.news();
    let expected = [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
        "rate_limits.updated",
    ];
    assert_eq!(outline(&events), expected);
    let done = events.iter().find(|e| e["type"] == "response.function_call_arguments.done").unwrap();
    assert_eq!(
        (&done["name"], &done["arguments"]),
        (&json!("lookup_order"), &json!("{\"order_id\":\"A-17\"}"))
    );
}

#[test]
fn arguments_are_sent_as_the_script_has_them() {
    for arguments in ["", "{  \n \"city\": \"Zürich\" } \n", "not json"] {
        let mut t = Bench::turns(vec![calls(vec![lookup(arguments)])]);
        t.creates();
        t.advance(2_000);
        assert_eq!(t.only("response.function_call_arguments.done")["arguments"], arguments);
    }
}

#[test]
fn long_arguments_come_in_a_dozen_pieces() {
    let arguments = "{  \n  \"city\": \"Zürich\",\n  \"guests\": 4,\n  \"time\": \"19:30\"  \n}  \n";
    let mut t = Bench::turns(vec![calls(vec![lookup(arguments)])]);
    t.creates();
    t.advance(2_000);
    let is_delta = |e: &&Value| e["type"] == "response.function_call_arguments.delta";
    let deltas: Vec<_> = t.news().iter().filter(is_delta).map(|e| e["delta"].clone()).collect();
    assert!((10..=13).contains(&deltas.len()), "{deltas:?}");
    let joined: String = deltas.iter().filter_map(Value::as_str).collect();
    assert_eq!(joined, arguments);
}

#[test]
fn what_is_said_before_something_else_is_no_final_answer() {
    let turns = vec![
        Turn { items: vec![300, 400], ..calls(vec![lookup("{}")]) },
        Turn { items: vec![300, 400], ..Turn::default() },
    ];
    let phases = |model: &str| {
        let script = ModelScript { turns: turns.clone(), ..ModelScript::default() };
        let mut model_end = Model::new(script, ModelIdentity::default(), 0);
        model_end.set_query(&format!("/v1/realtime?model={model}"));
        let mut t = Bench::with(model_end);
        t.advance(20);
        t.creates();
        t.advance(3_000);
        t.creates();
        t.advance(3_000);
        let news = t.news();
        let dones = news.iter().filter(|e| e["type"] == "response.output_item.done");
        dones.map(|e| e["item"]["phase"].as_str().unwrap_or("none").to_owned()).collect::<Vec<_>>()
    };
    let said = ["commentary", "commentary", "none", "commentary", "final_answer"];
    assert_eq!(phases("gpt-realtime-2.1"), said);
    assert_eq!(phases("gpt-realtime-2"), said);
    assert_eq!(phases("gpt-realtime-2025-08-28"), ["none"; 5]);
}

#[test]
fn an_output_must_answer_a_known_call() {
    let mut t = Bench::turns(vec![calls(vec![lookup("{}")])]);
    let output = |id: &str| {
        let item = json!({"type": "function_call_output", "call_id": id, "output": "{}"});
        json!({"type": "conversation.item.create", "event_id": "c_out", "item": item})
    };
    t.send(output("call_unknown"));
    assert_eq!(t.error().0, "invalid_tool_call_id");
    t.creates();
    t.advance(2_000);
    let call = t.only("response.function_call_arguments.done")["call_id"].as_str().unwrap().to_owned();
    t.send(output(&call));
    assert_eq!(t.kinds(), ["conversation.item.added", "conversation.item.done"]);
    t.send(output(&call));
    let fresh: Vec<_> = t
        .model
        .record()
        .observations
        .iter()
        .filter_map(|sighting| {
            let ModelObservation::GotToolOutput { fresh, .. } = sighting.what else { return None };
            Some(fresh)
        })
        .collect();
    assert_eq!(fresh, [false, true, false]);
}

#[test]
fn a_call_after_speech_is_added_before_the_speech_is_done() {
    let turn = Turn { answers: Some(500), duplicate_call: true, ..calls(vec![lookup("{}")]) };
    let mut t = Bench::turns(vec![turn]);
    t.creates();
    t.advance(2_000);
    let events = t.news();
    let added = events.iter().position(|e| e["item"]["type"] == "function_call").unwrap();
    let done = events.iter().position(|e| e["type"] == "response.output_audio.done").unwrap();
    let is_arguments = |e: &&Value| e["type"] == "response.function_call_arguments.delta";
    let arguments = events[..done].iter().filter(is_arguments).count();
    assert!(added < done);
    assert_eq!(arguments, 2, "all arguments of the first are out before the speech is done");
    let ids: Vec<_> = events
        .iter()
        .filter(|e| e["type"] == "response.function_call_arguments.done")
        .map(|e| (e["call_id"].clone(), e["item_id"].clone()))
        .collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0].0, ids[1].0, "one call");
    assert_ne!(ids[0].1, ids[1].1, "two items");
}

// -------------------------------------------------------------------------------------------- audio

#[test]
fn each_item_is_another_part_of_the_tape() {
    let mut t = Bench::turns(vec![Turn::answers(500); 5]);
    for _ in 0..5 {
        t.creates();
        t.advance(2_000);
    }
    let places: BTreeSet<_> = t.model.record().items.iter().map(|item| item.voice_offset.unwrap()).collect();
    assert_eq!(places.len(), 5);
    assert!(places.contains(&(2 * 7 * 74_400 % golden::agent_voice().len())), "{places:?}");
}

#[test]
fn pcm_is_the_tape_itself_even_in_odd_pieces() {
    let odd = Turn { delta_bytes: Some(4_801), trailing_silence_ms: 100, ..Turn::answers(1_000) };
    let mut t = Bench::opened(ModelScript { turns: vec![odd], ..ModelScript::default() });
    t.advance(20);
    t.creates();
    t.advance(2_000);
    let item = t.item(0).clone();
    let tape = golden::agent_voice();
    let expected: Vec<_> = (0..24_000).map(|i| tape[(item.voice_offset.unwrap() + i) % tape.len()]).collect();
    assert_eq!((item.rate, item.sent, item.audio.len()), (24_000, 26_400, 26_400));
    assert!(item.audio[..24_000] == expected, "the tape, sample by sample");
    assert!(item.audio[24_000..].iter().all(|sample| *sample == 0));
    let sent: Vec<u8> = t
        .news()
        .iter()
        .filter(|event| event["type"] == "response.output_audio.delta")
        .flat_map(|event| STANDARD.decode(event["delta"].as_str().unwrap()).unwrap())
        .collect();
    let bytes: Vec<u8> = item.audio.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    assert!(sent == bytes, "odd pieces join to whole samples");
}

#[test]
fn a_turn_can_say_a_golden_clip() {
    let clip = golden::clip("agent_answer").unwrap();
    let turns = vec![Turn { trailing_silence_ms: 100, ..Turn::says("agent_answer") }, Turn::answers(500)];
    let mut t = Bench::opened(ModelScript { turns, ..ModelScript::default() });
    t.advance(20);
    t.creates();
    t.advance(4_000);
    let item = t.item(0);
    assert_eq!((item.voice_offset, item.rate), (None, 24_000));
    assert_eq!(item.sent, clip.samples.len() + 2_400);
    assert!(item.audio.starts_with(clip.samples), "the clip, sample by sample");
    assert_eq!(item.transcript, clip.words);
    t.creates();
    t.advance(2_000);
    assert_eq!(
        t.item(1).voice_offset,
        Some(2 * 7 * 74_400 % golden::agent_voice().len()),
        "the tape stood still"
    );
}

#[test]
fn a_clip_is_sent_in_the_format_of_the_session() {
    let mut t = Bench::turns(vec![Turn::says("agent_greeting"), Turn::says("multitone")]);
    t.creates();
    t.advance(3_000);
    t.creates();
    t.advance(3_000);
    let narrow = crate::resample::down(golden::clip("agent_greeting").unwrap().samples);
    assert!(t.item(0).coded == crate::ulaw::encode_all(&narrow));
    assert!(t.item(1).coded == crate::ulaw::encode_all(golden::clip("multitone").unwrap().samples));
}

#[test]
fn what_was_appended_is_kept() {
    let mut t = Bench::turns(vec![]);
    t.speaks(40);
    t.listens(20);
    let record = t.model.record();
    assert_eq!((record.appended.len(), &*record.input_format), (480, "audio/pcmu"));
    assert_eq!(record.appended[320..], [0xFF; 160]);
}

// -------------------------------------------------------------------------------------------- rules

#[test]
fn frames_off_the_protocol_are_refused_and_the_session_goes_on() {
    let mut t = Bench::turns(vec![]);
    t.frame(Frame::Binary(vec![1, 2]));
    assert_eq!(
        t.error(),
        (
            "invalid_event".to_owned(),
            "Expected a text WebSocket message; binary frames are not supported.".to_owned()
        )
    );
    t.frame(Frame::Text("{\"type\":".to_owned()));
    assert_eq!(t.error().0, "invalid_json");
    t.send(json!({"event_id": "c"}));
    assert_eq!(t.error().0, "invalid_event");
    t.send(json!({"type": "response.start"}));
    assert_eq!(t.error().0, "invalid_value");
    t.send(json!({"type": "input_audio_buffer.append", "audio": "//8=", "rate": 8000}));
    assert_eq!(t.error().0, "unknown_parameter");
    t.send(json!({"type": "input_audio_buffer.append", "audio": "not base64"}));
    assert_eq!(t.error().0, "invalid_value");
    let rejected = t
        .model
        .record()
        .observations
        .iter()
        .filter(|s| matches!(&s.what, ModelObservation::SentError { rejected: Some(_), .. }))
        .count();
    assert_eq!(rejected, 6, "each refusal is on record");
    t.creates();
    t.advance(100);
    assert_eq!(t.kinds(), ["response.created"]);
}

#[test]
fn an_append_has_fifteen_mebibytes_at_most() {
    let mut t = Bench::turns(vec![]);
    t.send(json!({"type": "input_audio_buffer.append", "audio": "/".repeat(4 * (5 * 1024 * 1024 + 1))}));
    assert_eq!(t.error().0, "string_above_max_length");
    assert!(t.model.record().appended.is_empty());
}

#[test]
fn the_voice_cannot_change_once_it_was_heard() {
    let mut t = Bench::turns(vec![]);
    t.creates();
    t.advance(2_000);
    t.news();
    t.update(json!({"instructions": "New.", "audio": {"output": {"voice": "cedar"}}}));
    assert_eq!(t.error().0, "cannot_update_voice");
}

#[test]
fn things_happen_by_the_clock() {
    let at = |at_ms, does| TimedEvent { at_ms, does };
    let script = ModelScript {
        events: vec![
            at(100, Happening::UnknownEvent),
            at(200, Happening::Malformed),
            at(300, Happening::Binary),
            at(400, Happening::Ping),
            at(500, Happening::DeltaForUnknownResponse),
            at(600, Happening::ExtraFields),
            at(700, Happening::Error(ErrorSpec::default())),
            at(800, Happening::Close { code: 1_011, reason: "oops".to_owned() }),
        ],
        ..ModelScript::default()
    };
    let mut t = Bench::live(script);
    t.advance(1_000);
    let events = t.news();
    let kinds: Vec<_> = events.iter().map(kind).collect();
    assert_eq!(kinds, ["response.weather.updated", "response.output_audio.delta", "error"]);
    assert!(events[2]["x_future"].is_object());
    assert_eq!(t.all.iter().filter(|text| serde_json::from_str::<Value>(text).is_err()).count(), 1);
    let others: Vec<_> = t.others.iter().map(std::mem::discriminant).collect();
    assert_eq!(others.len(), 3);
    assert!(matches!(&t.others[0], Out::Frame(Frame::Binary(_))));
    assert!(matches!(&t.others[1], Out::Frame(Frame::Ping(_))));
    assert_eq!(t.closed(), Some((1_011, "oops")));
    assert!(t.model.record().items.is_empty(), "a delta of an unknown response is no item");
}

#[test]
fn pings_go_both_ways() {
    let mut t = Bench::turns(vec![]);
    t.frame(Frame::Ping(b"hi".to_vec()));
    assert_eq!(t.others, [Out::Frame(Frame::Pong(b"hi".to_vec()))]);
    t.advance(41_000);
    let pings = t.others.iter().filter(|out| matches!(out, Out::Frame(Frame::Ping(_)))).count();
    assert_eq!(pings, 2);
}

#[test]
fn a_goodbye_is_answered() {
    let mut t = Bench::turns(vec![]);
    let goodbye = Frame::Close(Some((1_000, "done".to_owned())));
    t.frame(goodbye.clone());
    assert_eq!(t.others, [Out::Frame(goodbye)]);
    assert!(t.model.is_finished());
    assert_eq!(t.model.poll_timeout(), None);
}

/// Whatever a client does, and however odd the turns are, the promises of the protocol hold.
#[test]
fn no_client_can_break_the_order_of_the_service() {
    for seed in 0..150_u64 {
        let mut state = seed;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let turns = (0..30).map(|_| odd_turn(&mut draw)).collect();
        let mut t = Bench::turns(turns);
        for _ in 0..60 {
            let item = match draw(3) {
                0 => "item_unknown".to_owned(),
                _ => t.model.record().conversation.last().cloned().unwrap_or_default(),
            };
            match draw(12) {
                0 | 1 => t.creates(),
                2 => t.cancels(),
                3 => t.truncates(&item, draw(3_000)),
                4 => t.speaks(draw(40) * 20),
                5 | 6 => t.listens(draw(80) * 20),
                7 => t.send(json!({"type": "conversation.item.delete", "item_id": item})),
                8 => t.send(json!({"type": "conversation.item.retrieve", "item_id": item})),
                9 => t.send(json!({"type": "input_audio_buffer.commit"})),
                10 => t.send(json!({"type": "response.create", "response": {"conversation": "none"}})),
                _ => t.advance(draw(1_000)),
            }
        }
        t.listens(1_000);
        t.advance(30_000);
        // A client that waits for a turn that never speaks cancels it.
        for id in open_responses(&t.news) {
            t.send(json!({"type": "response.cancel", "response_id": id}));
        }
        t.advance(10_000);
        let events = t.news();
        assert_eq!(open_responses(&events), Vec::<String>::new(), "seed {seed}");
        let ids: BTreeSet<_> = events.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), events.len(), "seed {seed}: event ids are unique");
        let mut done = BTreeSet::new();
        for event in &events {
            let of = event["response_id"].as_str().or_else(|| event["response"]["id"].as_str());
            assert!(of.is_none_or(|id| !done.contains(id)), "seed {seed}: {event} after its response.done");
            if event["type"] == "response.done" {
                done.extend(of);
            }
        }
        for item in &t.model.record().items {
            assert_eq!((item.audio.len(), item.coded.len()), (item.sent, item.sent), "seed {seed}");
        }
    }
}

fn odd_turn(draw: &mut impl FnMut(u64) -> u64) -> Turn {
    let mut turn = Turn {
        answers: Some(draw(8_000)),
        created_ms: draw(600),
        first_audio_ms: draw(500),
        late_deltas: draw(4) as u32,
        late_done_ms: if draw(4) == 0 { draw(3_000) } else { 0 },
        delta_bytes: (draw(4) == 0).then(|| 37 + draw(5_000) as usize),
        silent: draw(10) == 0,
        never_audio: draw(10) == 0,
        never_created: draw(10) == 0,
        text_only: draw(10) == 0,
        ..Turn::default()
    };
    match draw(6) {
        0 => turn.status = Outcome::Failed(ErrorSpec::default()),
        1 => turn.calls = vec![lookup("{\"order\": 17}"), lookup("")],
        2 => turn.items = vec![300, 0, 900],
        _ => {}
    }
    turn
}

/// Responses that were created and are not done.
fn open_responses(events: &[Value]) -> Vec<String> {
    let mut open = Vec::new();
    for event in events {
        let id = || event["response"]["id"].as_str().unwrap().to_owned();
        match event["type"].as_str().unwrap() {
            "response.created" => open.push(id()),
            "response.done" => {
                let place = open.iter().position(|other| *other == id());
                open.remove(place.unwrap_or_else(|| panic!("{event} was never created or done twice")));
            }
            _ => {}
        }
    }
    open
}

#[test]
fn the_same_seed_says_the_same_bytes() {
    let play = || {
        let mut t = Bench::turns(vec![Turn::answers(2_000), calls(vec![lookup("{}")])]);
        t.speaks(600);
        t.listens(3_000);
        t.speaks(600);
        t.listens(2_000);
        t.all.clone()
    };
    assert_eq!(play(), play());
}

// -------------------------------------------------------------------------------------------- other dialect

#[test]
fn the_retired_dialect_has_its_own_names() {
    let mut t = Bench::opened(ModelScript { dialect: Dialect::Beta, ..ModelScript::default() });
    t.advance(20);
    assert_eq!(t.kinds(), ["session.created", "conversation.created"]);
    t.send(json!({"type": "session.update", "session": {"modalities": ["audio", "text"], "voice": "alloy",
        "input_audio_format": "g711_ulaw", "output_audio_format": "g711_ulaw",
        "turn_detection": {"type": "server_vad"}}}));
    t.advance(10);
    assert_eq!(t.only("session.updated")["session"]["input_audio_format"], "g711_ulaw");
    t.speaks(400);
    t.listens(2_500);
    let events = t.news();
    let expected = [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.created",
        "response.created",
        "response.output_item.added",
        "conversation.item.created",
        "response.content_part.added",
        "response.audio.delta",
        "response.audio.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
        "rate_limits.updated",
    ];
    assert_eq!(outline(&events), expected);
    let done = events.iter().find(|e| e["type"] == "response.done").unwrap();
    let item = &done["response"]["output"][0];
    assert_eq!((&item["object"], &item["content"][0]["type"]), (&json!("realtime.item"), &json!("audio")));
    assert_eq!(done["response"]["output_audio_format"], "g711_ulaw");
}

#[test]
fn the_retired_dialect_refuses_todays_session() {
    let mut t = Bench::opened(ModelScript { dialect: Dialect::Beta, ..ModelScript::default() });
    t.advance(20);
    t.news();
    t.update(json!({}));
    assert_eq!(t.error().0, "unknown_parameter");
}

// ------------------------------------------------------------------------------------------ another session

#[test]
fn another_connection_of_a_call_goes_on_with_the_script_in_a_session_of_its_own() {
    let event = |at_ms| TimedEvent { at_ms, does: Happening::UnknownEvent };
    let script = ModelScript {
        turns: vec![
            Turn::answers(1_000),
            Turn { transcript: Some("The second.".into()), ..Turn::answers(500) },
        ],
        events: vec![event(100), event(9_000)],
        expires_after_s: Some(60),
        ..ModelScript::default()
    };
    let mut first = Bench::live(script.clone());
    first.creates();
    first.advance(5_000);
    let sessions = |t: &Bench| (t.model.session()["id"].clone(), t.model.session()["expires_at"].clone());

    let identity = ModelIdentity { call_sid: "CA1".to_owned(), index: 3, epoch_unix: 1_795_000_000 };
    let mut model = Model::new(script, identity, 7);
    model.goes_on(first.model.progress());
    let mut second = Bench { model, now: first.now, news: Vec::new(), others: Vec::new(), all: Vec::new() };
    second.model.opened(second.now);
    second.advance(20);
    second.update(json!({}));
    second.advance(10);
    assert_ne!(sessions(&first).0, sessions(&second).0);
    assert_eq!(sessions(&second).1, 1_795_000_000 + 5 + 60);
    second.news();
    second.creates();
    second.advance(5_000);
    let news = second.news();
    let said = news.iter().find(|event| event["type"] == "response.output_audio_transcript.done").unwrap();
    assert_eq!(said["transcript"], "The second.");
    let weather = news.iter().filter(|event| event["type"] == "response.weather.updated").count();
    assert_eq!(weather, 1, "what happened already does not happen again");
}

#[test]
fn a_session_is_told_what_was_said_in_another() {
    let mut t = Bench::turns(Vec::new());
    let message = |role: &str, kind: &str| {
        let content = json!([{"type": kind, "text": format!("By the {role}.")}]);
        json!({"type": "message", "role": role, "content": content})
    };
    let call = json!({"type": "function_call", "call_id": "call_1", "name": "lookup", "arguments": "{}"});
    let output = json!({"type": "function_call_output", "call_id": "call_1", "output": "42"});
    let mut create = |item: &Value| t.send(json!({"type": "conversation.item.create", "item": item}));
    for item in [&message("user", "input_text"), &message("assistant", "output_text"), &call, &output] {
        create(item);
    }
    create(&message("assistant", "input_text"));
    assert_eq!(t.error().0, "invalid_value");
    let told: Vec<_> = t.model.record().observations.iter().map(|seen| words::in_words(&seen.what)).collect();
    let told: Vec<_> =
        told.into_iter().filter(|words| words.starts_with("got ") && !words.contains("off the")).collect();
    assert_eq!(
        told[told.len() - 4..],
        [
            "got user text, 12 characters",
            "got assistant text, 17 characters",
            "got the earlier call call_1 of lookup",
            "got output of call_1, 2 bytes",
        ]
    );
    assert_eq!(t.model.record().conversation.len(), 4);
}

/// Sends an output for this call and returns the code of the refusal, if it is refused.
fn answers(t: &mut Bench, call: &str) -> Option<String> {
    t.news.clear();
    let item = json!({"type": "function_call_output", "call_id": call, "output": "{}"});
    t.send(json!({"type": "conversation.item.create", "event_id": "c_out", "item": item}));
    let error = t.news.iter().find(|event| event["type"] == "error")?;
    assert_eq!(error["error"]["event_id"], "c_out");
    Some(error["error"]["code"].as_str().unwrap().to_owned())
}

fn called(t: &Bench) -> Vec<(String, Option<String>)> {
    let call = |seen: &Observation<ModelObservation>| {
        let ModelObservation::SentFunctionCall { call_id, again, .. } = &seen.what else { return None };
        Some((call_id.clone(), again.clone()))
    };
    t.model.record().observations.iter().filter_map(call).collect()
}

#[test]
fn an_output_that_comes_before_its_response_is_over_can_be_refused() {
    for refuses_early_outputs in [false, true] {
        let turn = Turn { done_after_ms: 500, ..calls(vec![lookup("{}")]) };
        let script = ModelScript { turns: vec![turn], refuses_early_outputs, ..ModelScript::default() };
        let mut t = Bench::live(script);
        t.creates();
        t.advance(600);
        let first = called(&t)[0].0.clone();
        assert!(
            t.model
                .record()
                .observations
                .iter()
                .all(|s| !matches!(s.what, ModelObservation::SentResponseDone { .. }))
        );
        let refused = answers(&mut t, &first);
        assert_eq!(refused.as_deref(), refuses_early_outputs.then_some("invalid_tool_call_id"));
        t.advance(1_000);
        if refuses_early_outputs {
            t.creates();
            t.advance(1_000);
            let again = called(&t);
            assert_eq!((again.len(), again[1].1.as_ref()), (2, Some(&first)), "the call is made again");
            assert_ne!(again[1].0, first);
            assert_eq!(answers(&mut t, &again[1].0), None);
        }
    }
}

#[test]
fn an_output_can_be_refused_whenever_it_comes_and_be_taken_the_next_time() {
    let mut t = Bench::turns(vec![Turn { refuses_outputs: 1, ..calls(vec![lookup("{}")]) }]);
    t.creates();
    t.advance(2_000);
    let first = called(&t)[0].0.clone();
    assert_eq!(answers(&mut t, &first).as_deref(), Some("invalid_tool_call_id"));
    assert_eq!(answers(&mut t, &first), None);
    t.creates();
    t.advance(2_000);
    assert_eq!(called(&t).len(), 1, "what is known is not asked for again");
}

#[test]
fn a_turn_can_be_repeated_and_calls_nothing_where_nothing_may_be_called() {
    for ignores_tool_choice in [false, true] {
        let turns = vec![Turn { repeat: 3, ..calls(vec![lookup("{}")]) }];
        let mut t = Bench::live(ModelScript { turns, ignores_tool_choice, ..ModelScript::default() });
        for asked in [json!({}), json!({"tool_choice": "none"}), json!({})] {
            t.send(json!({"type": "response.create", "response": asked}));
            t.advance(3_000);
        }
        assert_eq!(called(&t).len(), if ignores_tool_choice { 3 } else { 2 });
    }
}

#[test]
fn a_response_can_end_without_having_begun() {
    let status = Outcome::Failed(ErrorSpec::default());
    let mut t = Bench::turns(vec![Turn { unannounced: true, status, ..Turn::default() }]);
    t.creates();
    t.advance(1_000);
    assert!(t.news.iter().all(|event| event["type"] != "response.created"));
    assert_eq!(t.only("response.done")["response"]["status"], "failed");
    t.creates();
    t.advance(1_000);
    assert_eq!(t.news.iter().filter(|event| event["type"] == "response.created").count(), 1);
}

#[test]
fn a_refused_key_is_quoted_as_the_service_quotes_it() {
    assert_eq!(masked("sk-proj-0123456789wxyz"), "sk-pr********wxyz");
    assert_eq!(masked("short"), "*****");
}
