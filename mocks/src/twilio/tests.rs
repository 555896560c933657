//! One fact each about the caller's end. Times are milliseconds since the WebSocket opened; the benches begin
//! their stream at once, so the first frame leaves at 0.

use super::*;
use crate::ulaw;
use serde_json::{Value, json};

const SID: &str = "MZ89abcdef0123456789abcdef01234567";

/// A caller and the bridge's end of their socket.
struct Call {
    caller: Caller,
    now: At,
    sent: Vec<(At, Out)>,
}

impl Call {
    /// A caller with these steps whose stream begins at once.
    fn of(steps: impl IntoIterator<Item = CallerStep>) -> Self {
        Self::with(steps, |_| {})
    }

    fn with(steps: impl IntoIterator<Item = CallerStep>, change: impl FnOnce(&mut CallerScript)) -> Self {
        let mut script = CallerScript { connected_after_ms: 0, ..CallerScript::of(steps) };
        change(&mut script);
        let identity = Identity {
            account_sid: "AC0123456789abcdef0123456789abcdef".into(),
            call_sid: "CAfedcba9876543210fedcba9876543210".into(),
            stream_sid: SID.into(),
        };
        let mut call = Self { caller: Caller::new(script, identity, 7), now: At(0), sent: Vec::new() };
        call.caller.opened(At(0));
        call.drain();
        call
    }

    /// A caller who listens for ever.
    fn listening() -> Self {
        Self::of([CallerStep::WaitsForClose])
    }

    fn drain(&mut self) {
        while let Some(out) = self.caller.poll_transmit() {
            self.sent.push((self.now, out));
        }
    }

    fn until(&mut self, end: At) {
        while let Some(due) = self.caller.poll_timeout().filter(|due| *due <= end) {
            assert!(due >= self.now, "time runs backwards: {due} at {}", self.now);
            self.now = due;
            self.caller.handle_timeout(due);
            self.drain();
        }
        self.now = end;
    }

    fn until_ms(&mut self, ms: u64) {
        self.until(At::ms(ms));
    }

    fn gets(&mut self, frame: Frame) {
        self.caller.handle(frame, self.now);
        self.drain();
    }

    fn gets_text(&mut self, text: &str) {
        self.gets(Frame::Text(text.replace("SID", SID)));
    }

    /// The bridge sends this many bytes of audio.
    fn gets_audio(&mut self, bytes: usize) {
        let payload = BASE64.encode(vec![0x11; bytes]);
        let text = json!({"event": "media", "streamSid": SID, "media": {"payload": payload}}).to_string();
        self.gets(Frame::Text(text));
    }

    fn gets_mark(&mut self, name: &str) {
        let text = json!({"event": "mark", "streamSid": SID, "mark": {"name": name}}).to_string();
        self.gets(Frame::Text(text));
    }

    fn gets_clear(&mut self) {
        self.gets_text(r#"{"event":"clear","streamSid":"SID"}"#);
    }

    /// Messages sent so far, with their times.
    fn messages(&self) -> Vec<(At, Value)> {
        let json = |text: &String| serde_json::from_str(text).unwrap();
        self.sent
            .iter()
            .filter_map(
                |(at, out)| {
                    if let Out::Frame(Frame::Text(text)) = out { Some((*at, json(text))) } else { None }
                },
            )
            .collect()
    }

    fn of_event(&self, event: &str) -> Vec<(At, Value)> {
        self.messages().into_iter().filter(|(_, message)| message["event"] == event).collect()
    }

    /// Names of echoed marks and when.
    fn echoes(&self) -> Vec<(At, String)> {
        let name = |message: &Value| message["mark"]["name"].as_str().unwrap().to_owned();
        self.of_event("mark").iter().map(|(at, message)| (*at, name(message))).collect()
    }

    fn sights(&self) -> Vec<&CallerObservation> {
        self.caller.record().observations.iter().map(|sighting| &sighting.what).collect()
    }

    /// When the script reached each step.
    fn steps(&self) -> Vec<(At, String)> {
        let observations = &self.caller.record().observations;
        observations
            .iter()
            .filter_map(|sighting| {
                let CallerObservation::Step { what, .. } = &sighting.what else { return None };
                Some((sighting.at, what.clone()))
            })
            .collect()
    }

    /// When the script reached the step after the first.
    fn second_step(&self) -> Option<At> {
        self.steps().get(1).map(|(at, _)| *at)
    }

    fn warnings(&self) -> Vec<(u16, String)> {
        self.sights()
            .into_iter()
            .filter_map(|sight| {
                let CallerObservation::Warned { code, detail } = sight else { return None };
                Some((*code, detail.clone()))
            })
            .collect()
    }

    fn ending(&self) -> Option<&Ending> {
        self.sights().into_iter().find_map(|sight| {
            let CallerObservation::Ended(ending) = sight else { return None };
            Some(ending)
        })
    }

    /// What was sent at the very end.
    fn last_outs(&self, count: usize) -> Vec<&Out> {
        self.sent[self.sent.len() - count..].iter().map(|(_, out)| out).collect()
    }

    fn heard(&self) -> Vec<(At, usize, usize)> {
        self.caller.record().played.iter().map(|stretch| (stretch.at, stretch.offset, stretch.len)).collect()
    }
}

fn number(value: &Value) -> u64 {
    value.as_str().expect("counters are strings").parse().unwrap()
}

fn close(code: u16) -> Out {
    Out::Frame(Frame::Close(Some((code, String::new()))))
}

// ---------------------------------------------------------------------------------------------- the stream

#[test]
fn connected_start_and_the_first_media_come_together_after_ninety_milliseconds() {
    let mut call = Call::with([CallerStep::WaitsForClose], |script| script.connected_after_ms = 90);
    call.until_ms(100);
    let first: Vec<(At, String)> = call
        .messages()
        .iter()
        .map(|(at, message)| (*at, message["event"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(
        first,
        [(At::ms(90), "connected".into()), (At::ms(90), "start".into()), (At::ms(90), "media".into())]
    );
}

#[test]
fn sequence_counts_every_message_and_chunk_only_media() {
    let mut call = Call::of([CallerStep::Presses("12".into()), CallerStep::WaitsForClose]);
    call.gets_mark("a");
    call.until_ms(1_000);
    let numbered: Vec<u64> =
        call.messages().iter().skip(1).map(|(_, message)| number(&message["sequenceNumber"])).collect();
    assert_eq!(numbered, (1..=numbered.len() as u64).collect::<Vec<_>>());
    let chunks: Vec<u64> =
        call.of_event("media").iter().map(|(_, message)| number(&message["media"]["chunk"])).collect();
    assert_eq!(chunks, (1..=51).collect::<Vec<_>>());
    assert_eq!(numbered.len(), 1 + 51 + 2 + 1, "start, media, dtmf, mark");
}

#[test]
fn a_frame_leaves_every_twenty_milliseconds() {
    let mut call = Call::listening();
    call.until_ms(200);
    let times: Vec<At> = call.of_event("media").iter().map(|(at, _)| *at).collect();
    assert_eq!(times, (0..=10).map(|k| At::ms(20 * k)).collect::<Vec<_>>());
}

#[test]
fn the_record_of_the_microphone_is_what_was_sent() {
    let mut call = Call::of([CallerStep::Says(40), CallerStep::WaitsForClose]);
    call.until_ms(100);
    let record = call.caller.record();
    for ((at, message), frame) in call.of_event("media").iter().zip(&record.mic) {
        let audio = BASE64.decode(message["media"]["payload"].as_str().unwrap()).unwrap();
        assert_eq!((*at, number(&message["media"]["timestamp"])), (frame.at, frame.timestamp_ms));
        assert_eq!(audio, record.spoken[frame.offset..frame.offset + frame.len]);
    }
    let speech: Vec<bool> = record.mic.iter().map(|frame| frame.speech).collect();
    assert_eq!(speech, [false, true, true, false, false, false]);
}

#[test]
fn start_carries_parameters_and_format() {
    let call = Call::with([], |script| {
        script.custom_parameters = [("tenant".to_owned(), "t-42".to_owned())].into();
        script.media_format.sample_rate = 16_000;
    });
    let start = &call.of_event("start")[0].1["start"];
    assert_eq!(start["customParameters"], json!({"tenant": "t-42"}));
    assert_eq!(
        start["mediaFormat"],
        json!({"encoding": "audio/x-mulaw", "sampleRate": 16_000, "channels": 1})
    );
}

#[test]
fn the_order_of_the_first_messages_can_be_disturbed() {
    let call = Call::with([CallerStep::WaitsForClose], |script| {
        script.send_connected = false;
        script.media_before_start = 2;
        script.start_repeats = 1;
    });
    let events: Vec<Value> =
        call.messages().into_iter().map(|(_, message)| message["event"].clone()).collect();
    assert_eq!(events, ["media", "media", "start", "start", "media"]);
}

#[test]
fn a_late_start_is_late_and_nothing_comes_before_it() {
    let mut call = Call::with([], |script| script.start_after_ms = 3_000);
    call.until_ms(2_999);
    assert_eq!(call.messages().len(), 1, "only connected");
    call.until_ms(3_000);
    assert_eq!(call.of_event("start").len(), 1);
}

#[test]
fn dtx_leaves_silence_out_and_keeps_counting_chunks() {
    let mut call =
        Call::with([CallerStep::Waits(100), CallerStep::Says(40), CallerStep::WaitsForClose], |script| {
            script.idle = Idle::Dtx;
            script.first_timestamp_ms = Some(150);
            script.timestamp_jitter = false;
        });
    call.until_ms(300);
    let media = call.of_event("media");
    let numbers: Vec<(u64, u64)> = media
        .iter()
        .map(|(_, message)| (number(&message["media"]["chunk"]), number(&message["media"]["timestamp"])))
        .collect();
    assert_eq!(numbers, [(1, 270), (2, 290)]);
    let speech = call.sights().into_iter().filter(|sight| {
        matches!(
            sight,
            CallerObservation::SpeechBegan { utterance: 0 } | CallerObservation::SpeechEnded { utterance: 0 }
        )
    });
    assert_eq!(speech.count(), 2);
}

#[test]
fn held_up_media_arrives_in_one_burst_with_the_timestamps_it_was_made_at() {
    let mut call = Call::with(
        [CallerStep::Waits(100), CallerStep::PausesMedia(200), CallerStep::WaitsForClose],
        |script| script.timestamp_jitter = false,
    );
    call.until_ms(400);
    let media = call.of_event("media");
    let burst: Vec<&(At, Value)> = media.iter().filter(|(at, _)| *at == At::ms(300)).collect();
    assert_eq!(burst.len(), 10, "those of 120 to 300 ms");
    assert!(media.iter().all(|(at, _)| !(At::ms(101)..At::ms(300)).contains(at)));
    let stamps: Vec<u64> = media.iter().map(|(_, message)| number(&message["media"]["timestamp"])).collect();
    assert!(stamps.windows(2).all(|two| two[1] == two[0] + 20));
}

#[test]
fn the_same_seed_sends_the_same_bytes_and_another_seed_does_not() {
    let play = |seed| {
        let script = CallerScript { arrival_jitter_ms: 5, ..CallerScript::of([CallerStep::Waits(500)]) };
        let mut caller = Caller::new(script, Identity::default(), seed);
        caller.opened(At(0));
        while let Some(due) = caller.poll_timeout() {
            caller.handle_timeout(due);
        }
        caller.into_record()
    };
    assert_eq!(play(1), play(1));
    assert_ne!(play(1), play(2));
}

#[test]
fn the_upgrade_is_that_of_twilio() {
    let call = Call::listening();
    let headers = call.caller.upgrade_headers();
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["User-Agent", "Connection", "Upgrade", "Sec-WebSocket-Version", "Sec-WebSocket-Key"]);
    assert_eq!(headers[0].1, "Twilio.TmeWs/1.0");
    assert_eq!(BASE64.decode(&headers[4].1).unwrap().len(), 16);
}

// ------------------------------------------------------------------------------------------ the play-out

#[test]
fn a_mark_comes_back_when_the_audio_before_it_was_played() {
    let mut call = Call::listening();
    call.until(At(33_001));
    call.gets_audio(161);
    call.gets_mark("a");
    call.gets_audio(160);
    call.gets_mark("b");
    call.until_ms(200);
    assert_eq!(call.echoes(), [(At(33_001 + 161 * 125), "a".into()), (At(33_001 + 321 * 125), "b".into())]);
    assert_eq!(call.heard(), [(At(33_001), 0, 321)]);
}

#[test]
fn a_mark_with_nothing_before_it_comes_back_at_once() {
    let mut call = Call::listening();
    call.until_ms(50);
    call.gets_mark("a");
    assert_eq!(call.echoes(), [(At::ms(50), "a".into())]);
}

#[test]
fn marks_may_share_a_name_and_a_place() {
    let mut call = Call::listening();
    call.gets_audio(80);
    call.gets_mark("same");
    call.gets_mark("same");
    call.until_ms(11);
    assert_eq!(call.echoes(), [(At::ms(10), "same".into()), (At::ms(10), "same".into())]);
}

#[test]
fn a_clear_returns_every_mark_at_once_and_says_they_were_flushed() {
    let mut call = Call::listening();
    call.gets_audio(160);
    call.gets_mark("played");
    call.gets_audio(1_600);
    call.gets_mark("b");
    call.gets_mark("c");
    call.until_ms(30);
    call.gets_clear();
    assert_eq!(
        call.echoes(),
        [(At::ms(20), "played".into()), (At::ms(30), "b".into()), (At::ms(30), "c".into())]
    );
    let flushed: Vec<bool> = call
        .sights()
        .into_iter()
        .filter_map(|sight| {
            let CallerObservation::SentMark { flushed, .. } = sight else { return None };
            Some(*flushed)
        })
        .collect();
    assert_eq!(flushed, [false, true, true]);
    assert!(call.sights().contains(&&CallerObservation::GotClear { discarded: 1_760 - 240, marks: 2 }));
}

#[test]
fn audio_after_a_clear_is_heard_and_what_was_cleared_is_not() {
    let mut call = Call::listening();
    call.gets_audio(1_600);
    call.until_ms(30);
    call.gets_clear();
    call.until_ms(31);
    call.gets_audio(80);
    call.until_ms(100);
    assert_eq!(call.heard(), [(At(0), 0, 240), (At::ms(31), 1_600, 80)]);
}

#[test]
fn a_mark_due_at_the_moment_of_the_clear_was_played() {
    let mut call = Call::listening();
    call.gets_audio(160);
    call.gets_mark("a");
    call.now = At::ms(20);
    call.gets_clear();
    assert!(call.sights().contains(&&CallerObservation::SentMark { name: "a".into(), flushed: false }));
}

#[test]
fn marks_can_be_late_or_lost() {
    let mut late = Call::with([CallerStep::WaitsForClose], |script| script.echo_marks = EchoMarks::Late(300));
    late.gets_audio(160);
    late.gets_mark("a");
    late.until_ms(1_000);
    assert_eq!(late.echoes(), [(At::ms(320), "a".into())]);

    let mut never = Call::with([CallerStep::WaitsForClose], |script| script.echo_marks = EchoMarks::Never);
    never.gets_mark("a");
    never.gets_clear();
    never.until_ms(1_000);
    assert_eq!(never.echoes(), []);
}

#[test]
fn a_late_echo_of_a_played_mark_stays_played_when_a_clear_comes_between() {
    let mut call = Call::with([CallerStep::WaitsForClose], |script| script.echo_marks = EchoMarks::Late(300));
    call.gets_audio(160);
    call.gets_mark("played");
    call.gets_audio(160);
    call.gets_mark("flushed");
    call.until_ms(30);
    call.gets_clear();
    assert!(call.sights().contains(&&CallerObservation::GotClear { discarded: 80, marks: 1 }));
    call.until_ms(1_000);
    assert_eq!(call.echoes(), [(At::ms(320), "played".into()), (At::ms(330), "flushed".into())]);
    assert!(call.sights().contains(&&CallerObservation::SentMark { name: "played".into(), flushed: false }));
}

#[test]
fn playback_going_quiet_is_seen_when_it_happened() {
    let mut call = Call::listening();
    call.gets_audio(100);
    call.until_ms(40);
    let quiet: Vec<&Observation<CallerObservation>> = call
        .caller
        .record()
        .observations
        .iter()
        .filter(|sighting| matches!(sighting.what, CallerObservation::WentQuiet { .. }))
        .collect();
    assert_eq!(quiet, [&Observation { at: At(12_500), what: CallerObservation::WentQuiet { heard: 100 } }]);
}

#[test]
fn more_than_ten_minutes_of_audio_are_discarded_with_one_warning() {
    let mut call = Call::listening();
    for _ in 0..3 {
        call.gets_audio(2_000_000);
    }
    call.gets_audio(160);
    assert_eq!(call.caller.record().received.len(), 4_800_000);
    assert_eq!(call.warnings().len(), 1);
    assert_eq!(call.warnings()[0].0, 31_931);
    call.until_ms(20);
    call.gets_audio(320);
    assert_eq!(call.caller.record().received.len(), 4_800_160, "what was played made room");
}

// ---------------------------------------------------------------------------------------------- wrong input

#[test]
fn every_malformed_message_is_a_warning_and_is_ignored() {
    let cases = [
        "hello",
        r#"{"event":"media","streamSid":"SID"}"#,
        r#"{"event":"media","streamSid":"MZ0","media":{"payload":"////"}}"#,
        r#"{"event":"media","streamSid":"SID","media":{"payload":"//_-"}}"#,
        r#"{"event":"media","streamSid":"SID","media":{"payload":"////"},"sequenceNumber":"1"}"#,
        r#"{"event":"mark","streamSid":"SID","mark":{}}"#,
        r#"{"event":"stop","streamSid":"SID"}"#,
    ];
    let mut call = Call::listening();
    for (count, text) in cases.iter().enumerate() {
        call.gets_text(text);
        assert_eq!(call.warnings().len(), count + 1, "{text}");
    }
    assert!(call.warnings().iter().all(|(code, _)| *code == 31_951));
    assert!(call.caller.record().received.is_empty() && call.echoes().is_empty());
}

#[test]
fn an_extra_field_is_overlooked_by_a_lenient_caller() {
    let mut call = Call::with([CallerStep::WaitsForClose], |script| script.strict = false);
    call.gets_text(r#"{"event":"media","streamSid":"SID","media":{"payload":"////","track":"x"}}"#);
    assert_eq!((call.warnings().len(), call.caller.record().received.len()), (0, 3));
}

#[test]
fn a_wav_header_is_a_warning_and_is_played_as_noise() {
    let mut call = Call::listening();
    let payload = BASE64.encode(b"RIFF....WAVEfmt ");
    call.gets_text(&json!({"event": "media", "streamSid": SID, "media": {"payload": payload}}).to_string());
    assert_eq!(call.warnings().len(), 1);
    assert_eq!(call.caller.record().received.len(), 16);
}

#[test]
fn binary_frames_are_one_warning() {
    let mut call = Call::listening();
    call.gets(Frame::Binary(vec![1]));
    call.gets(Frame::Binary(vec![2]));
    assert_eq!(call.warnings(), [(31_950, "a binary frame of 1 bytes".into())]);
}

#[test]
fn a_message_before_start_is_a_warning() {
    let mut call = Call::with([CallerStep::WaitsForClose], |script| script.start_after_ms = 100);
    call.gets_clear();
    assert!(call.warnings()[0].1.contains("before start"), "{:?}", call.warnings());
}

// ---------------------------------------------------------------------------------------------- the person

#[test]
fn the_person_speaks_for_whole_frames_and_then_goes_on() {
    let mut call = Call::of([CallerStep::Says(50), CallerStep::WaitsForClose]);
    call.until_ms(200);
    assert_eq!(call.second_step(), Some(At::ms(80)), "frames at 20, 40 and 60 ms, silence at 80 ms");
    let record = call.caller.record();
    assert_eq!(record.spoken[160..640], mic::tape()[..480]);
}

#[test]
fn a_clip_of_speech_is_spoken_and_then_the_person_goes_on() {
    let mut call = Call::of([CallerStep::Plays("caller_stop".into()), CallerStep::WaitsForClose]);
    call.until_ms(2_000);
    let clip = golden::clip("caller_stop").unwrap();
    let lasts = clip.duration_ms();
    assert_eq!(call.second_step(), Some(At::ms(20 + lasts)), "silence follows the clip");
    assert_eq!(call.steps()[0].1, "plays caller_stop");
    let record = call.caller.record();
    assert!(record.spoken[160..].starts_with(&crate::ulaw::encode_all(clip.samples)));
    let speech: Vec<At> = record
        .observations
        .iter()
        .filter(|seen| {
            matches!(seen.what, CallerObservation::SpeechBegan { .. } | CallerObservation::SpeechEnded { .. })
        })
        .map(|seen| seen.at)
        .collect();
    assert_eq!(speech, [At::ms(20), At::ms(20 + lasts)]);
}

#[test]
fn tones_are_in_the_line_and_nowhere_else() {
    let mut call = Call::of([CallerStep::PlaysTones("42#".into()), CallerStep::WaitsForClose]);
    call.until_ms(1_000);
    assert_eq!(call.second_step(), Some(At::ms(20 + 3 * 160)));
    assert!(call.of_event("dtmf").is_empty());
    let spoken = |sight: &&CallerObservation| matches!(sight, CallerObservation::SpeechBegan { .. });
    assert_eq!(call.sights().into_iter().filter(|sight| spoken(sight)).count(), 0);
    let four = crate::ulaw::encode_all(golden::dtmf('4').unwrap());
    assert_eq!(call.caller.record().spoken[160..160 + four.len()], four);
}

#[test]
fn one_can_start_saying_something_and_listen_meanwhile() {
    let mut call =
        Call::of([CallerStep::StartsSaying(1_000), CallerStep::HearsStart, CallerStep::WaitsForClose]);
    call.until_ms(100);
    call.gets_audio(160);
    assert_eq!(call.steps()[2].0, At::ms(100));
}

#[test]
fn keys_are_a_tenth_of_a_second_apart_or_as_the_step_says() {
    let mut call = Call::of([
        CallerStep::Presses("1#".into()),
        CallerStep::PressesAt { keys: "23".into(), gap_ms: 40 },
        CallerStep::WaitsForClose,
    ]);
    call.until_ms(500);
    let keys: Vec<(At, String)> = call
        .of_event("dtmf")
        .iter()
        .map(|(at, message)| (*at, message["dtmf"]["digit"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(
        keys,
        [
            (At::ms(0), "1".into()),
            (At::ms(100), "#".into()),
            (At::ms(100), "2".into()),
            (At::ms(140), "3".into())
        ]
    );
}

#[test]
fn the_start_of_the_agent_is_heard_when_it_is_played() {
    let mut call = Call::with([CallerStep::HearsStart, CallerStep::WaitsForClose], |script| {
        script.play_out_ms = 60;
    });
    call.until_ms(33);
    call.gets_audio(160);
    call.until_ms(200);
    assert_eq!(call.second_step(), Some(At::ms(93)));
}

#[test]
fn audio_that_plays_already_is_no_start() {
    let mut call = Call::of([CallerStep::Waits(10), CallerStep::HearsStart, CallerStep::WaitsForClose]);
    call.gets_audio(1_600);
    call.until_ms(150);
    call.gets_audio(800);
    call.until_ms(400);
    assert_eq!(call.steps().len(), 2, "audio resumed within the same utterance");
    call.gets_clear();
    call.gets_audio(800);
    assert_eq!(call.steps().get(2).map(|(at, _)| *at), Some(At::ms(400)));
}

#[test]
fn hears_for_counts_what_is_played_not_what_has_arrived() {
    let mut call = Call::of([CallerStep::HearsFor(150), CallerStep::WaitsForClose]);
    call.until_ms(10);
    call.gets_audio(800);
    call.until_ms(130);
    call.gets_audio(8_000);
    call.until_ms(1_000);
    assert_eq!(call.second_step(), Some(At::ms(180)), "100 ms, a gap of 20 ms, 50 ms");
}

#[test]
fn hears_for_begins_anew_with_each_utterance() {
    let mut call = Call::of([CallerStep::HearsFor(150), CallerStep::WaitsForClose]);
    call.gets_audio(800);
    call.until_ms(1_000);
    call.gets_audio(8_000);
    call.until_ms(2_000);
    assert_eq!(call.second_step(), Some(At::ms(1_150)));
}

#[test]
fn hears_total_counts_all_utterances() {
    let mut call = Call::of([CallerStep::HearsTotal(150), CallerStep::WaitsForClose]);
    call.gets_audio(800);
    call.until_ms(1_000);
    call.gets_audio(8_000);
    call.until_ms(2_000);
    assert_eq!(call.second_step(), Some(At::ms(1_050)));
}

#[test]
fn the_agent_has_ended_after_four_tenths_of_a_second_of_quiet() {
    let mut call = Call::of([CallerStep::HearsEnd, CallerStep::WaitsForClose]);
    call.until_ms(1_000);
    call.gets_audio(800);
    call.until_ms(1_499);
    call.gets_audio(800);
    call.until_ms(3_000);
    assert_eq!(call.second_step(), Some(At::ms(1_499 + 100 + 400)));
}

#[test]
fn an_end_needs_something_new_to_have_been_heard() {
    let mut call = Call::of([CallerStep::HearsEnd, CallerStep::HearsEnd, CallerStep::WaitsForClose]);
    call.gets_audio(800);
    call.until_ms(1_000);
    assert_eq!(call.steps().len(), 2);
    call.gets_audio(800);
    call.until_ms(2_000);
    assert_eq!(call.steps()[2].0, At::ms(1_500));
}

#[test]
fn an_end_after_a_start_is_that_of_what_started() {
    let mut call = Call::of([CallerStep::HearsStart, CallerStep::HearsEnd, CallerStep::WaitsForClose]);
    call.gets_audio(800);
    call.until_ms(1_000);
    assert_eq!(call.steps()[1..].iter().map(|(at, _)| *at).collect::<Vec<_>>(), [At::ms(0), At::ms(500)]);
}

#[test]
fn a_person_who_hears_nothing_loses_patience_and_goes_on() {
    let mut call = Call::with([CallerStep::HearsStart], |script| script.patience_ms = 700);
    call.until_ms(1_000);
    let steps: Vec<String> = call.steps().into_iter().map(|(_, what)| what).collect();
    assert_eq!(steps, ["hears the agent start", "gave up after 700 ms", "hangs up: the script is over"]);
}

#[test]
fn waiting_and_speaking_need_no_patience() {
    let mut call =
        Call::with([CallerStep::Waits(900), CallerStep::Says(900), CallerStep::WaitsForClose], |script| {
            script.patience_ms = 100
        });
    call.until_ms(3_000);
    assert_eq!(call.steps().len(), 3, "{:?}", call.steps());
}

#[test]
fn off_protocol_messages_go_out_as_the_script_says() {
    let mut call = Call::of([
        CallerStep::SendsRaw(r#"{"a":"{streamSid}","n":"{sequenceNumber}"}"#.into()),
        CallerStep::SendsBinary(5),
        CallerStep::SendsOversized(70_000),
        CallerStep::SendsUnknownEvent,
        CallerStep::SendsMediaWithWrongSid,
        CallerStep::SendsBadBase64,
        CallerStep::SendsPing,
        CallerStep::RepeatsStart,
        CallerStep::RepeatsFrame,
        CallerStep::RepeatsMark { name: "x".into() },
        CallerStep::WaitsForClose,
    ]);
    let raw =
        call.sights().into_iter().filter(|sight| matches!(sight, CallerObservation::SentRaw { .. })).count();
    assert_eq!(raw, 10);
    let messages: Vec<Value> = call.messages().into_iter().map(|(_, message)| message).collect();
    assert_eq!(messages[3], json!({"a": SID, "n": "3"}));
    assert!(call.sent.contains(&(At(0), Out::Frame(Frame::Binary(vec![0xFF; 5])))));
    assert!(messages[4].to_string().len() > 70_000);
    assert_ne!(messages[6]["streamSid"], SID);
    assert!(BASE64.decode(messages[7]["media"]["payload"].as_str().unwrap()).is_err());
    assert_eq!(messages[8]["event"], "start");
    assert_eq!(messages[9], messages[2], "the first frame once more");
    assert_eq!(messages[10]["mark"]["name"], "x");
    call.until_ms(20);
    assert_eq!(call.caller.record().mic.len(), 2, "none of this came from the microphone");
}

// ---------------------------------------------------------------------------------------------- the ends

#[test]
fn hanging_up_is_stop_and_close_at_once() {
    let mut call = Call::of([CallerStep::Waits(50), CallerStep::HangsUp]);
    call.until_ms(60);
    let stop = call.of_event("stop");
    assert_eq!(stop.len(), 1);
    assert_eq!((stop[0].0, number(&stop[0].1["sequenceNumber"])), (At::ms(50), 5));
    assert_eq!(call.last_outs(1), [&close(1_000)]);
    assert_eq!(call.ending(), None, "the answer is outstanding");
    call.gets(Frame::Close(Some((1_000, String::new()))));
    assert_eq!(call.ending(), Some(&Ending::ByUs { code: Some(1_000) }));
    assert!(call.caller.is_finished() && call.caller.poll_timeout().is_none());
}

#[test]
fn nothing_is_heard_or_echoed_after_hanging_up() {
    let mut call = Call::of([CallerStep::Waits(50), CallerStep::HangsUp]);
    call.gets_audio(1_600);
    call.gets_mark("a");
    call.until_ms(60);
    call.gets_audio(160);
    call.gets_mark("b");
    call.until_ms(1_000);
    assert_eq!(call.heard(), [(At(0), 0, 400)]);
    assert_eq!(call.echoes(), []);
    assert_eq!(call.caller.record().received.len(), 1_760, "but it was received");
}

#[test]
fn a_close_that_is_not_answered_ends_with_a_drop() {
    let mut call = Call::of([CallerStep::HangsUp]);
    call.until_ms(5_000);
    assert_eq!(call.last_outs(1), [&Out::Drop]);
    assert!(call.caller.is_finished());
}

#[test]
fn a_close_of_the_bridge_is_answered_in_kind() {
    let mut call = Call::listening();
    call.until_ms(30);
    call.gets(Frame::Close(Some((1_008, "no".into()))));
    assert_eq!(call.last_outs(1), [&close(1_008)]);
    assert_eq!(call.ending(), Some(&Ending::ByPeer { code: Some(1_008), reason: "no".into() }));
    assert_eq!(
        call.sights().last(),
        Some(&&CallerObservation::StatusCallback { event: "stream-stopped".into() })
    );
    assert!(call.of_event("stop").is_empty());
    assert!(call.caller.is_finished());
}

#[test]
fn a_stop_without_a_close_leaves_the_socket_to_the_bridge() {
    let mut call = Call::with([CallerStep::StopWithoutClose], |script| script.hang_up_after_ms = Some(9_000));
    call.until_ms(8_000);
    assert_eq!(call.of_event("stop").len(), 1);
    assert!(!call.sent.contains(&(At::ms(0), close(1_000))));
    assert_eq!(call.of_event("media").len(), 1);
    call.until_ms(9_000);
    assert_eq!(call.last_outs(1), [&close(1_000)], "the safety net");
}

#[test]
fn a_close_without_stop_is_a_close_frame_alone() {
    let mut call = Call::of([CallerStep::ClosesWithoutStop]);
    assert_eq!(call.last_outs(1), [&close(1_000)]);
    assert!(call.of_event("stop").is_empty());
    call.gets(Frame::Close(None));
    assert_eq!(call.ending(), Some(&Ending::ByUs { code: Some(1_000) }));
}

#[test]
fn a_drop_is_neither_stop_nor_close() {
    let call = Call::of([CallerStep::Drops]);
    assert_eq!(call.last_outs(1), [&Out::Drop]);
    assert!(call.of_event("stop").is_empty());
    assert_eq!(call.ending(), Some(&Ending::ByUs { code: None }));
    assert!(call.caller.is_finished());
}

#[test]
fn who_goes_dark_neither_speaks_nor_answers() {
    let mut call = Call::with([CallerStep::GoesDark], |script| script.hang_up_after_ms = Some(10_000));
    assert_eq!(call.last_outs(1), [&Out::PauseReading]);
    let before = call.sent.len();
    call.gets(Frame::Ping(vec![1]));
    call.gets_mark("a");
    call.gets(Frame::Close(None));
    call.until_ms(9_999);
    assert_eq!(call.sent.len(), before);
    call.until_ms(10_000);
    assert_eq!(call.last_outs(1), [&Out::Drop]);
    assert!(call.caller.is_finished());
}

#[test]
fn who_stops_reading_still_speaks_and_can_read_again() {
    let mut call = Call::of([
        CallerStep::StopsReading,
        CallerStep::Waits(100),
        CallerStep::ReadsAgain,
        CallerStep::WaitsForClose,
    ]);
    call.until_ms(100);
    let at = |wanted: &Out| call.sent.iter().find(|(_, out)| out == wanted).map(|(at, _)| *at);
    assert_eq!(at(&Out::PauseReading), Some(At(0)));
    assert_eq!(at(&Out::ResumeReading), Some(At::ms(100)));
    assert_eq!(call.of_event("media").len(), 6);
}

#[test]
fn hanging_up_reads_again_so_that_the_answer_is_seen() {
    let call = Call::of([CallerStep::StopsReading, CallerStep::HangsUp]);
    assert!(call.sent.iter().any(|(_, out)| *out == Out::ResumeReading));
}

#[test]
fn the_end_of_the_connection_is_told_with_its_words() {
    let mut call = Call::listening();
    call.until_ms(30);
    call.caller.gone("reset by peer", call.now);
    assert_eq!(call.ending(), Some(&Ending::Lost { why: "reset by peer".into() }));
    assert_eq!(
        call.sights().last(),
        Some(&&CallerObservation::StatusCallback { event: "stream-error".into() })
    );
    assert!(call.caller.is_finished());
}

#[test]
fn a_refused_upgrade_is_the_end() {
    let mut caller = Caller::new(CallerScript::default(), Identity::default(), 1);
    caller.refused(503, At::ms(5));
    assert_eq!(caller.record().observations[0].what, CallerObservation::Refused { status: 503 });
    assert!(caller.is_finished() && caller.poll_timeout().is_none());
}

#[test]
fn every_call_ends_whatever_the_script_is_doing() {
    let mut call = Call::listening();
    call.until_ms(120_000);
    assert_eq!(call.of_event("stop").len(), 1);
    assert_eq!(call.last_outs(1), [&close(1_000)]);
}

#[test]
fn a_caller_who_hangs_up_before_start_has_nothing_to_stop() {
    for (limit, expected) in [(50, 0), (95, 1)] {
        let mut call = Call::with([], |script| {
            script.connected_after_ms = 90;
            script.start_after_ms = 10;
            script.hang_up_after_ms = Some(limit);
        });
        call.until_ms(98);
        assert_eq!(call.messages().len(), expected);
        assert_eq!(call.last_outs(1), [&close(1_000)]);
    }
}

#[test]
fn pings_are_answered_unless_the_script_says_otherwise() {
    let mut call = Call::listening();
    call.gets(Frame::Ping(vec![1, 2]));
    assert_eq!(call.last_outs(1), [&Out::Frame(Frame::Pong(vec![1, 2]))]);

    let mut mute = Call::with([CallerStep::WaitsForClose], |script| script.pong = false);
    let before = mute.sent.len();
    mute.gets(Frame::Ping(vec![1, 2]));
    assert_eq!(mute.sent.len(), before);
}

#[test]
fn sightings_are_in_order_of_time() {
    let mut call = Call::with(
        [
            CallerStep::StartsSaying(500),
            CallerStep::HearsFor(100),
            CallerStep::PausesMedia(150),
            CallerStep::Presses("12".into()),
            CallerStep::HearsEnd,
        ],
        |script| script.arrival_jitter_ms = 15,
    );
    for k in 0..40 {
        call.until(At(k * 31_337));
        call.gets_audio(97);
        call.gets_mark("m");
    }
    call.until_ms(10_000);
    let times: Vec<At> = call.caller.record().observations.iter().map(|sighting| sighting.at).collect();
    assert!(times.is_sorted());
    assert!(call.caller.is_finished());
}

// ------------------------------------------------------------------------------------- sound and silence

impl Call {
    /// The bridge sends these codes.
    fn gets_codes(&mut self, codes: &[u8]) {
        let payload = BASE64.encode(codes);
        let text = json!({"event": "media", "streamSid": SID, "media": {"payload": payload}}).to_string();
        self.gets(Frame::Text(text));
    }
}

#[test]
fn silence_that_is_sent_is_not_the_start_of_anything() {
    for quiet in [0xFF, 0x7F, 0xF6, 0x76] {
        let mut call = Call::of([CallerStep::HearsStart, CallerStep::WaitsForClose]);
        call.gets_codes(&[quiet; 8_000]);
        call.until_ms(1_500);
        assert_eq!(call.second_step(), None, "{quiet:#x}");
        call.gets_codes(&[vec![quiet; 800], vec![0x11; 160]].concat());
        call.until_ms(1_700);
        assert_eq!(call.second_step(), Some(At::ms(1_600)), "{quiet:#x}");
    }
}

#[test]
fn an_utterance_ends_with_its_sound_whatever_is_sent_behind_it() {
    let mut call = Call::of([CallerStep::HearsEnd, CallerStep::WaitsForClose]);
    call.gets_codes(&[vec![0x11; 1_600], vec![0xFF; 24_000]].concat());
    call.until_ms(5_000);
    assert_eq!(call.second_step(), Some(At::ms(600)));
}

#[test]
fn pauses_of_speech_are_heard_and_long_silence_is_not() {
    for (pause_ms, heard_at_ms) in [(380, 480), (600, 1_080)] {
        let mut call = Call::of([CallerStep::HearsTotal(480), CallerStep::WaitsForClose]);
        let pause = vec![0xFF; pause_ms * 8];
        call.gets_codes(&[vec![0x11; 400], vec![0x11; 400], pause, vec![0x11; 8_000]].concat());
        call.until_ms(5_000);
        let after = if pause_ms < 400 { heard_at_ms } else { 100 + pause_ms as u64 + 380 };
        assert_eq!(call.second_step(), Some(At::ms(after)), "{pause_ms}");
        let heard = audible_bytes(call.caller.record()) as u64 / 8;
        assert_eq!(heard, if pause_ms < 400 { 1_480 } else { 1_100 }, "{pause_ms}");
    }
}

#[test]
fn frames_one_by_one_are_heard_like_a_burst() {
    let mut call = Call::of([CallerStep::HearsStart, CallerStep::HearsEnd, CallerStep::WaitsForClose]);
    let sounds = |n: u64| (5..20).contains(&n) || (30..40).contains(&n);
    for n in 0..100 {
        call.until_ms(20 * n);
        call.gets_codes(&[if sounds(n) { 0x11 } else { 0xFF }; 160]);
    }
    call.until_ms(5_000);
    let steps: Vec<At> = call.steps().into_iter().map(|(at, _)| at).collect();
    assert_eq!(steps, [At(0), At::ms(100), At::ms(800 + 400)]);
    assert_eq!(audible_bytes(call.caller.record()), 35 * 160);
}

#[test]
fn digital_silence_is_nothing_heard() {
    let mut call = Call::listening();
    call.gets_codes(&[0xFF; 21_600]);
    call.until_ms(5_000);
    let played: usize = call.caller.record().played.iter().map(|stretch| stretch.len).sum();
    assert_eq!((played, audible_bytes(call.caller.record())), (21_600, 0));
}

#[test]
fn the_noise_of_a_line_is_as_loud_as_it_is_wanted() {
    for noise in [0, 8, 16, 72] {
        let mut call = Call::with([CallerStep::WaitsForClose], |script| script.idle_noise = noise);
        call.until_ms(2_000);
        let samples: Vec<i16> = call.caller.record().spoken.iter().map(|code| ulaw::decode(*code)).collect();
        let loudest = samples.iter().map(|sample| sample.unsigned_abs()).max();
        assert_eq!(loudest, Some(noise), "{noise}");
        assert!(samples.contains(&i16::try_from(noise).unwrap()) && samples.contains(&0));
    }
}

#[test]
fn a_first_frame_that_is_late_is_caught_up_with() {
    let mut call = Call::with([CallerStep::WaitsForClose], |script| script.first_frame_late_ms = 200);
    call.until_ms(240);
    let times: Vec<u64> = call.of_event("media").iter().map(|(at, _)| at.0 / 1_000).collect();
    assert_eq!(times, [[200; 11].as_slice(), &[220, 240]].concat());
    let first = &call.of_event("media")[0].1["media"]["timestamp"];
    assert!((57..=171).contains(&first.as_str().unwrap().parse::<u64>().unwrap()), "{first}");
}

#[test]
fn what_recordings_differ_in_can_be_chosen() {
    let mut call = Call::with([CallerStep::Presses("5".into())], |script| {
        script.empty_parameters = false;
        script.dtmf_track = "inbound".into();
    });
    call.until_ms(100);
    assert!(call.of_event("start")[0].1["start"].get("customParameters").is_none());
    assert_eq!(call.of_event("dtmf")[0].1["dtmf"]["track"], "inbound");
    let mut call = Call::with([CallerStep::WaitsForClose], |script| script.flushed_after_ms = 300);
    call.gets_audio(8_000);
    call.gets_mark("a");
    call.until_ms(100);
    call.gets_clear();
    call.until_ms(1_000);
    assert_eq!(call.echoes(), [(At::ms(400), "a".into())]);
}
