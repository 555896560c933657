//! The session: what the client configured, what the defaults filled in, and how both are told back.

use super::rules::Rejection;
use super::script::{AudioFormat, Dialect, Echoes, ModelScript};
use serde_json::{Map, Value, json};

/// The instructions of a session that was given none.
const DEFAULT_INSTRUCTIONS: &str = "You are a helpful, friendly voice assistant. Speak briefly and clearly, \
    in the language of the person you talk to.";

/// The effective configuration of one session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) expires_at: i64,
    /// Answers are text instead of audio.
    pub(super) text: bool,
    pub(super) instructions: String,
    pub(super) input: AudioFormat,
    pub(super) output: AudioFormat,
    pub(super) transcription: Value,
    noise_reduction: Value,
    pub(super) turns: Option<TurnDetection>,
    pub(super) voice: Value,
    pub(super) speed: Value,
    tools: Value,
    tool_choice: Value,
    pub(super) max_output_tokens: Value,
    truncation: Value,
    prompt: Value,
    tracing: Value,
    include: Value,
    pub(super) temperature: Value,
    /// Keys that are only there when the client sent them.
    extra: Map<String, Value>,
}

/// How the session decides that a turn began and ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TurnDetection {
    /// `None` for `server_vad`, the eagerness for `semantic_vad`.
    eagerness: Option<String>,
    threshold: f64,
    pub(super) prefix_ms: u64,
    silence_ms: u64,
    /// The silence that counts, whatever was asked for.
    kept_silence_ms: Option<u64>,
    pub(super) idle_timeout_ms: Option<u64>,
    pub(super) create_response: bool,
    pub(super) interrupt_response: bool,
}

/// Whether a model is of the second generation, which reasons and divides what it says into phases. A date after
/// the name of the first, as in `gpt-realtime-2025-08-28`, makes none.
pub(super) fn is_2x(model: &str) -> bool {
    let rest = model.strip_prefix("gpt-realtime-2");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
}

/// `silence_duration_ms` where nothing was said of it.
fn default_silence_ms(model: &str) -> u64 {
    let first = ["gpt-realtime", "gpt-realtime-mini"].iter().any(|name| {
        let rest = model.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("-20"))
    });
    if first { 200 } else { 500 }
}

impl TurnDetection {
    fn server(model: &str, script: &ModelScript) -> Self {
        let silence_ms = script.default_silence_ms.unwrap_or_else(|| default_silence_ms(model));
        Self {
            eagerness: None,
            threshold: 0.5,
            prefix_ms: script.default_prefix_ms,
            silence_ms,
            kept_silence_ms: script.keeps_default_silence.then_some(silence_ms),
            idle_timeout_ms: None,
            create_response: true,
            interrupt_response: true,
        }
    }

    /// `now` is what is in force; a change of kind starts from the defaults of the new kind.
    fn updated(now: Option<&Self>, asked: &Value, model: &str, script: &ModelScript) -> Option<Self> {
        if asked.is_null() {
            return None;
        }
        let semantic = asked["type"] == "semantic_vad";
        let mut new = match now {
            Some(now) if now.eagerness.is_some() == semantic => now.clone(),
            Some(_) | None => Self::server(model, script),
        };
        if semantic {
            let eagerness = asked["eagerness"].as_str().map(str::to_owned).or(new.eagerness);
            let eagerness = eagerness.unwrap_or_else(|| "auto".to_owned());
            // The longest waits of the service are 8, 4 and 2 s; a plain end of speech is taken sooner.
            new.silence_ms = match eagerness.as_str() {
                "low" => 1_600,
                "high" => 400,
                _ => 800,
            };
            new.eagerness = Some(eagerness);
        }
        let number = |key: &str, old: u64| asked[key].as_u64().unwrap_or(old);
        new.threshold = asked["threshold"].as_f64().unwrap_or(new.threshold);
        new.prefix_ms = number("prefix_padding_ms", new.prefix_ms);
        new.silence_ms = number("silence_duration_ms", new.silence_ms);
        new.create_response = asked["create_response"].as_bool().unwrap_or(new.create_response);
        new.interrupt_response = asked["interrupt_response"].as_bool().unwrap_or(new.interrupt_response);
        if let Some(idle) = asked.get("idle_timeout_ms") {
            new.idle_timeout_ms = idle.as_u64();
        }
        Some(new)
    }

    /// The silence that ends a turn.
    pub(super) fn silence_ms(&self) -> u64 {
        self.kept_silence_ms.filter(|_| self.eagerness.is_none()).unwrap_or(self.silence_ms)
    }

    fn json(&self, dialect: Dialect) -> Value {
        if let Some(eagerness) = &self.eagerness {
            return json!({
                "type": "semantic_vad",
                "eagerness": eagerness,
                "create_response": self.create_response,
                "interrupt_response": self.interrupt_response,
            });
        }
        let mut vad = json!({
            "type": "server_vad",
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_ms,
            "silence_duration_ms": self.silence_ms,
        });
        if dialect == Dialect::Ga {
            vad["idle_timeout_ms"] = json!(self.idle_timeout_ms);
        }
        vad["create_response"] = json!(self.create_response);
        vad["interrupt_response"] = json!(self.interrupt_response);
        vad
    }
}

impl Session {
    pub(super) fn new(id: String, model: &str, expires_at: i64, script: &ModelScript) -> Self {
        let voice = if is_2x(model) { "marin" } else { "alloy" };
        Self {
            id,
            model: model.to_owned(),
            expires_at,
            text: false,
            instructions: DEFAULT_INSTRUCTIONS.to_owned(),
            input: AudioFormat::Pcm,
            output: AudioFormat::Pcm,
            transcription: Value::Null,
            noise_reduction: Value::Null,
            turns: Some(TurnDetection::server(model, script)),
            voice: json!(voice),
            speed: json!(1.0),
            tools: json!([]),
            tool_choice: json!("auto"),
            max_output_tokens: json!("inf"),
            truncation: json!("auto"),
            prompt: Value::Null,
            tracing: Value::Null,
            include: Value::Null,
            temperature: json!(0.8),
            extra: Map::new(),
        }
    }

    /// The session after `asked`, which has passed the form check. `spoken`: assistant audio exists already.
    /// A refusal discards the whole update.
    pub(super) fn updated(
        &self,
        asked: &Value,
        spoken: bool,
        script: &ModelScript,
    ) -> Result<Self, Rejection> {
        let mut new = self.clone();
        match script.dialect {
            Dialect::Ga => new.take_nested(asked, script)?,
            Dialect::Beta => new.take_flat(asked, script),
        }
        if let Some(text) = asked["instructions"].as_str() {
            let text = if text.is_empty() { DEFAULT_INSTRUCTIONS } else { text };
            text.clone_into(&mut new.instructions);
        }
        for (key, slot) in
            [("tools", &mut new.tools), ("tool_choice", &mut new.tool_choice), ("tracing", &mut new.tracing)]
        {
            take(asked, key, slot);
        }
        if spoken && new.voice != self.voice {
            let text = "Cannot update a conversation's voice if assistant audio is present.";
            return Err(Rejection::new("cannot_update_voice", text));
        }
        if let Some(format) = script.echoes_format {
            new.input = format;
            new.output = format;
        }
        new.take_otherwise(script);
        Ok(new)
    }

    fn take_otherwise(&mut self, script: &ModelScript) {
        match (script.echoes, &mut self.turns) {
            (Some(Echoes::NoTurnDetection), turns) => *turns = None,
            (Some(Echoes::SemanticVad), turns) => {
                *turns = TurnDetection::updated(
                    turns.as_ref(),
                    &json!({"type": "semantic_vad"}),
                    &self.model,
                    script,
                );
            }
            (Some(Echoes::OtherAnswers), Some(turns)) => turns.create_response = !turns.create_response,
            (Some(Echoes::OtherInterruptions), Some(turns)) => {
                turns.interrupt_response = !turns.interrupt_response;
            }
            (Some(Echoes::NoTools), _) => self.tools = json!([]),
            (Some(Echoes::OtherAnswers | Echoes::OtherInterruptions | Echoes::Less) | None, _) => {}
        }
    }

    /// The session as `session.updated` shows it.
    pub(super) fn echo(&self, script: &ModelScript) -> Value {
        let mut echo = self.json(script.dialect);
        if script.echoes == Some(Echoes::Less) {
            let nested = echo.pointer_mut("/audio/input").and_then(Value::as_object_mut);
            nested.map(|input| input.remove("turn_detection"));
            if let Some(flat) = echo.as_object_mut() {
                flat.remove("turn_detection");
                flat.remove("tools");
            }
        }
        echo
    }

    fn take_nested(&mut self, asked: &Value, script: &ModelScript) -> Result<(), Rejection> {
        if asked["type"] == "transcription" {
            let text = "Passing a transcription session update event to a realtime session is not allowed.";
            return Err(Rejection::at("invalid_value", text, "session.type"));
        }
        if asked.get("model").is_some_and(|model| *model != self.model) {
            let text = "The model of a session cannot be changed.";
            return Err(Rejection::at("invalid_value", text, "session.model"));
        }
        if asked.get("reasoning").is_some() && !is_2x(&self.model) {
            let text = format!("Unsupported parameter: 'session.reasoning' with model '{}'.", self.model);
            return Err(Rejection::at("unsupported_parameter", text, "session.reasoning"));
        }
        if let Some(modalities) = asked["output_modalities"].as_array() {
            self.text = modalities.iter().any(|m| m == "text");
        }
        let (input, output) = (&asked["audio"]["input"], &asked["audio"]["output"]);
        let format = |holder: &Value| holder["format"]["type"].as_str().and_then(AudioFormat::named);
        self.input = format(input).unwrap_or(self.input);
        self.output = format(output).unwrap_or(self.output);
        if let Some(asked) = input.get("transcription") {
            self.transcription = transcription(asked);
        }
        take(input, "noise_reduction", &mut self.noise_reduction);
        if let Some(asked) = input.get("turn_detection") {
            self.turns = TurnDetection::updated(self.turns.as_ref(), asked, &self.model, script);
        }
        take(output, "voice", &mut self.voice);
        take(output, "speed", &mut self.speed);
        take(asked, "max_output_tokens", &mut self.max_output_tokens);
        take(asked, "truncation", &mut self.truncation);
        take(asked, "prompt", &mut self.prompt);
        take(asked, "include", &mut self.include);
        for key in ["parallel_tool_calls", "reasoning"] {
            if let Some(value) = asked.get(key) {
                self.extra.insert(key.to_owned(), value.clone());
            }
        }
        Ok(())
    }

    fn take_flat(&mut self, asked: &Value, script: &ModelScript) {
        if let Some(modalities) = asked["modalities"].as_array() {
            self.text = !modalities.iter().any(|m| m == "audio");
        }
        let format = |key: &str| asked[key].as_str().and_then(AudioFormat::named);
        self.input = format("input_audio_format").unwrap_or(self.input);
        self.output = format("output_audio_format").unwrap_or(self.output);
        if let Some(asked) = asked.get("input_audio_transcription") {
            self.transcription = transcription(asked);
        }
        take(asked, "input_audio_noise_reduction", &mut self.noise_reduction);
        if let Some(asked) = asked.get("turn_detection") {
            self.turns = TurnDetection::updated(self.turns.as_ref(), asked, &self.model, script);
        }
        take(asked, "voice", &mut self.voice);
        take(asked, "speed", &mut self.speed);
        take(asked, "temperature", &mut self.temperature);
        take(asked, "max_response_output_tokens", &mut self.max_output_tokens);
    }

    /// The session as `session.created` and `session.updated` show it.
    pub(super) fn json(&self, dialect: Dialect) -> Value {
        let turns = self.turns.as_ref().map_or(Value::Null, |turns| turns.json(dialect));
        let session = match dialect {
            Dialect::Ga => json!({
                "type": "realtime",
                "object": "realtime.session",
                "id": self.id,
                "model": self.model,
                "output_modalities": modalities(self.text, dialect),
                "instructions": self.instructions,
                "tools": self.tools,
                "tool_choice": self.tool_choice,
                "max_output_tokens": self.max_output_tokens,
                "tracing": self.tracing,
                "truncation": self.truncation,
                "prompt": self.prompt,
                "expires_at": self.expires_at,
                "audio": {
                    "input": {
                        "format": format_json(self.input, dialect),
                        "transcription": self.transcription,
                        "noise_reduction": self.noise_reduction,
                        "turn_detection": turns,
                    },
                    "output": {
                        "format": format_json(self.output, dialect),
                        "voice": self.voice,
                        "speed": self.speed,
                    },
                },
                "include": self.include,
            }),
            Dialect::Beta => json!({
                "id": self.id,
                "object": "realtime.session",
                "model": self.model,
                "expires_at": self.expires_at,
                "modalities": modalities(self.text, dialect),
                "instructions": self.instructions,
                "voice": self.voice,
                "turn_detection": turns,
                "input_audio_format": format_json(self.input, dialect),
                "output_audio_format": format_json(self.output, dialect),
                "input_audio_transcription": self.transcription,
                "input_audio_noise_reduction": self.noise_reduction,
                "tool_choice": self.tool_choice,
                "temperature": self.temperature,
                "max_response_output_tokens": self.max_output_tokens,
                "speed": self.speed,
                "tracing": self.tracing,
                "tools": self.tools,
            }),
        };
        let Value::Object(mut session) = session else { return session };
        session.extend(self.extra.iter().map(|(key, value)| (key.clone(), value.clone())));
        Value::Object(session)
    }
}

fn take(holder: &Value, key: &str, slot: &mut Value) {
    if let Some(value) = holder.get(key) {
        slot.clone_from(value);
    }
}

/// The service fills in the language and prompt that were not given.
fn transcription(asked: &Value) -> Value {
    let Some(asked) = asked.as_object() else { return Value::Null };
    let mut full = Map::new();
    full.insert("model".to_owned(), asked.get("model").cloned().unwrap_or(Value::Null));
    full.insert("language".to_owned(), Value::Null);
    full.insert("prompt".to_owned(), Value::Null);
    full.extend(asked.iter().map(|(key, value)| (key.clone(), value.clone())));
    Value::Object(full)
}

/// The name of a format: an object today, a bare string in the retired dialect.
pub(super) fn format_json(format: AudioFormat, dialect: Dialect) -> Value {
    match (dialect, format) {
        (Dialect::Beta, _) => json!(format.beta_name()),
        (Dialect::Ga, AudioFormat::Pcm) => json!({"type": "audio/pcm", "rate": 24_000}),
        (Dialect::Ga, AudioFormat::Pcmu | AudioFormat::Pcma) => json!({"type": format.name()}),
    }
}

/// What a response may be made of.
pub(super) fn modalities(text: bool, dialect: Dialect) -> Value {
    match (text, dialect) {
        (true, _) => json!(["text"]),
        (false, Dialect::Ga) => json!(["audio"]),
        (false, Dialect::Beta) => json!(["audio", "text"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (Session, ModelScript) {
        let script = ModelScript::default();
        (Session::new("sess_1".to_owned(), "gpt-realtime-2.1", 3_600, &script), script)
    }

    #[test]
    fn a_date_is_no_second_generation() {
        for (model, is) in [
            ("gpt-realtime-2", true),
            ("gpt-realtime-2.1", true),
            ("gpt-realtime-2.1-mini", true),
            ("gpt-realtime-2-mini", true),
            ("gpt-realtime", false),
            ("gpt-realtime-1.5", false),
            ("gpt-realtime-2025-08-28", false),
            ("gpt-realtime-mini-2025-12-15", false),
        ] {
            assert_eq!(is_2x(model), is, "{model}");
            let session = Session::new("sess_1".to_owned(), model, 0, &ModelScript::default());
            assert_eq!(session.voice, if is { "marin" } else { "alloy" }, "{model}");
            let asked = json!({"type": "realtime", "reasoning": {"effort": "low"}});
            assert_eq!(session.updated(&asked, false, &ModelScript::default()).is_ok(), is, "{model}");
        }
    }

    #[test]
    fn a_fresh_session_has_the_keys_of_the_service() {
        let (session, _) = fresh();
        let json = session.json(Dialect::Ga);
        let mut keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let expected = "audio expires_at id include instructions max_output_tokens model object \
            output_modalities prompt tool_choice tools tracing truncation type";
        assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn only_present_fields_change() {
        let (session, script) = fresh();
        let asked = json!({"type": "realtime", "audio": {"input": {"turn_detection":
            {"type": "server_vad", "interrupt_response": false}}}});
        let new = session.updated(&asked, false, &script).unwrap();
        let turns = new.turns.unwrap();
        assert!(!turns.interrupt_response && turns.create_response);
        assert_eq!((new.input, new.instructions), (session.input, session.instructions));
    }

    #[test]
    fn null_turns_detection_off() {
        let (session, script) = fresh();
        let asked = json!({"type": "realtime", "audio": {"input": {"turn_detection": null}}});
        assert_eq!(session.updated(&asked, false, &script).unwrap().turns, None);
    }

    #[test]
    fn a_session_can_take_and_echo_something_else_than_it_was_asked_to() {
        let asked = json!({"type": "realtime", "tools": [{"type": "function", "name": "look"}],
            "audio": {"input": {"turn_detection": {"type": "server_vad"}}}});
        let echo = |echoes| {
            let script = ModelScript { echoes: Some(echoes), ..ModelScript::default() };
            let session = Session::new("sess_1".to_owned(), "gpt-realtime-2.1", 3_600, &script);
            session.updated(&asked, false, &script).unwrap().echo(&script)
        };
        let turns = |echoes| echo(echoes)["audio"]["input"]["turn_detection"].clone();
        assert_eq!(turns(Echoes::NoTurnDetection), Value::Null);
        assert_eq!(turns(Echoes::SemanticVad)["type"], "semantic_vad");
        assert_eq!(turns(Echoes::OtherAnswers)["create_response"], false);
        assert_eq!(turns(Echoes::OtherInterruptions)["interrupt_response"], false);
        assert_eq!(echo(Echoes::NoTools)["tools"], json!([]));
        let less = echo(Echoes::Less);
        assert!(less.get("tools").is_none() && less["audio"]["input"].get("turn_detection").is_none());
        assert_eq!(less["audio"]["input"]["format"], json!({"type": "audio/pcm", "rate": 24_000}));
    }

    #[test]
    fn the_voice_is_fixed_once_it_was_heard() {
        let (session, script) = fresh();
        let asked = json!({"type": "realtime", "audio": {"output": {"voice": "cedar"}}});
        assert_eq!(session.updated(&asked, true, &script).unwrap_err().code, "cannot_update_voice");
        let same = json!({"type": "realtime", "audio": {"output": {"voice": "marin"}}});
        assert!(session.updated(&same, true, &script).is_ok());
    }

    #[test]
    fn transcription_is_echoed_with_its_nulls() {
        let (session, script) = fresh();
        let asked =
            json!({"type": "realtime", "audio": {"input": {"transcription": {"model": "gpt-transcribe"}}}});
        let echo = session.updated(&asked, false, &script).unwrap().json(Dialect::Ga);
        let expected = json!({"model": "gpt-transcribe", "language": null, "prompt": null});
        assert_eq!(echo["audio"]["input"]["transcription"], expected);
    }

    #[test]
    fn empty_instructions_mean_the_default_ones() {
        let (session, script) = fresh();
        let asked = json!({"type": "realtime", "instructions": ""});
        assert_eq!(session.updated(&asked, false, &script).unwrap().instructions, DEFAULT_INSTRUCTIONS);
    }
}
