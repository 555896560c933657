//! What a caller says before hanging up.

use super::super::event::{Line, UNTRANSCRIBED};
use super::super::settings::Transcription;
use super::*;

const STOP: &str = r#"{"event":"stop","streamSid":"MZ1"}"#;

impl Bench {
    fn transcribed() -> Self {
        Self::live_with(|c| {
            c.transcription = Some(Transcription { model: "gpt-transcribe".into(), language: None });
        })
    }

    fn committed(&mut self, item: &str) {
        self.model(&format!(
            r#"{{"type":"input_audio_buffer.committed","item_id":"{item}","previous_item_id":null}}"#
        ));
    }

    fn words(&mut self, item: &str, text: &str) {
        self.model(&format!(
            r#"{{"type":"conversation.item.input_audio_transcription.completed","item_id":"{item}","transcript":"{text}"}}"#
        ));
    }

    fn both_are_gone(&mut self) -> Vec<Line> {
        for leg in [Leg::Caller, Leg::Model] {
            self.leg(leg, LegChange::Closed { code: Some(1_000), reason: String::new() });
        }
        let Some(CallEvent::Ended { transcript, .. }) = self.events.last() else {
            panic!("the call is not over")
        };
        transcript.clone()
    }
}

fn texts(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

#[test]
fn a_turn_that_goes_on_at_stop_is_committed_and_its_words_are_waited_for() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.twilio(STOP);
    t.expect("commit");
    t.expect("close Caller 1000");
    t.expect_quiet();
    t.committed("item_user");
    t.expect_quiet();
    t.advance(400);
    t.words("item_user", "Thank you, goodbye.");
    t.expect("close Model 1000");
    assert_eq!(texts(&t.both_are_gone()), ["Thank you, goodbye."]);
    assert_eq!(t.end_reason(), Some(EndReason::Stopped));
}

#[test]
fn a_turn_that_began_on_the_way_to_the_model_is_waited_for_too() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.twilio(STOP);
    t.expect("commit");
    t.expect("close Caller 1000");
    t.committed("item_first");
    t.model(r#"{"type":"input_audio_buffer.speech_started","audio_start_ms":900,"item_id":"item_last"}"#);
    t.words("item_first", "I see.");
    t.expect_quiet();
    t.committed("item_last");
    t.words("item_last", "Goodbye.");
    t.expect("close Model 1000");
    assert_eq!(texts(&t.both_are_gone()), ["I see.", "Goodbye."]);
}

#[test]
fn a_turn_heard_behind_a_committed_one_is_committed_once() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.model_detects_silence();
    t.committed("item_first");
    t.sent.clear();
    t.twilio(STOP);
    t.expect("close Caller 1000");
    for _ in 0..2 {
        t.model(r#"{"type":"input_audio_buffer.speech_started","audio_start_ms":900,"item_id":"item_last"}"#);
    }
    t.expect("commit");
    t.expect_quiet();
}

#[test]
fn a_committed_turn_is_waited_for_and_its_answer_is_cancelled() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.model_detects_silence();
    t.committed("item_user");
    t.sent.clear();
    t.twilio(STOP);
    t.expect("close Caller 1000");
    t.response_begins("r1");
    t.expect("cancel r1");
    t.model_says("r1", "item_1", 200);
    t.response_done("r1", "cancelled");
    t.words("item_user", "Goodbye.");
    t.expect("close Model 1000");
    t.expect_quiet();
    assert_eq!(texts(&t.both_are_gone()), ["Goodbye."]);
}

#[test]
fn an_answer_that_runs_when_the_caller_leaves_is_cancelled() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.model_detects_silence();
    t.committed("item_user");
    t.response_begins("r1");
    t.sent.clear();
    t.twilio(STOP);
    t.expect("cancel r1");
    t.expect("close Caller 1000");
}

#[test]
fn words_that_do_not_come_are_waited_for_no_longer_than_a_second() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.model_detects_silence();
    t.committed("item_user");
    t.sent.clear();
    t.twilio(STOP);
    t.expect("close Caller 1000");
    t.leg(Leg::Caller, LegChange::Closed { code: Some(1_000), reason: String::new() });
    t.advance(999);
    t.expect_quiet();
    t.advance(1);
    t.expect("close Model 1000");
    assert_eq!(texts(&t.both_are_gone()), [UNTRANSCRIBED]);
}

#[test]
fn a_caller_who_does_not_answer_our_close_is_dropped_while_words_are_waited_for() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.twilio(STOP);
    t.expect("commit");
    t.expect("close Caller 1000");
    t.advance(800);
    t.expect("drop Caller");
    t.advance(200);
    t.expect("close Model 1000");
    t.advance(800);
    t.expect("drop Model");
    assert_eq!(t.end_reason(), Some(EndReason::Stopped));
}

#[test]
fn a_model_that_goes_meanwhile_ends_the_wait() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.twilio(STOP);
    t.leg(Leg::Model, LegChange::Lost { why: "reset".into() });
    t.leg(Leg::Caller, LegChange::Lost { why: "reset".into() });
    assert_eq!(t.end_reason(), Some(EndReason::Stopped));
}

#[test]
fn a_commit_that_is_refused_ends_the_wait() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.twilio(STOP);
    t.expect("commit");
    t.expect("close Caller 1000");
    t.model(r#"{"type":"error","error":{"type":"invalid_request_error","code":"input_audio_buffer_commit_empty","event_id":"commit_1"}}"#);
    t.expect("close Model 1000");
}

#[test]
fn a_commit_that_crosses_the_servers_own_adds_no_turn() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.twilio(STOP);
    t.model_detects_silence();
    t.committed("item_user");
    t.committed("item_of_silence");
    t.words("item_of_silence", "Thanks for watching!");
    t.words("item_user", "Goodbye.");
    assert_eq!(texts(&t.both_are_gone()), ["Goodbye."]);
}

#[test]
fn nothing_is_waited_for_where_nothing_is_to_come() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.model_detects_silence();
    t.committed("item_user");
    t.words("item_user", "Hello.");
    t.sent.clear();
    t.twilio(STOP);
    t.expect("close Model 1000");
    t.expect("close Caller 1000");

    let mut t = Bench::live();
    t.model_detects_speech();
    t.twilio(STOP);
    t.expect("close Model 1000");

    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.call.handle_control(Control::Replaced, t.now());
    t.drain();
    t.expect("close Model 1000");
}

#[test]
fn waiting_for_words_can_be_switched_off() {
    let mut t = Bench::live_with(|c| {
        c.transcription = Some(Transcription { model: "gpt-transcribe".into(), language: None });
        c.timeouts.last_words_ms = 0;
    });
    t.model_detects_speech();
    t.twilio(STOP);
    t.expect("close Model 1000");
}

#[test]
fn a_turn_that_could_not_be_transcribed_says_so_at_once() {
    let mut t = Bench::transcribed();
    t.model_detects_speech();
    t.model_detects_silence();
    t.committed("item_user");
    t.model(r#"{"type":"conversation.item.input_audio_transcription.failed","item_id":"item_user"}"#);
    let told = t
        .events
        .iter()
        .any(|event| matches!(event, CallEvent::Said(event::Said::Line(line)) if line.text == UNTRANSCRIBED));
    assert!(told, "{:?}", t.events);
}

#[test]
fn what_was_held_back_is_read_for_the_sake_of_the_words_behind_it() {
    let mut t = Bench::live_with(|c| {
        c.transcription = Some(Transcription { model: "gpt-transcribe".into(), language: None });
        c.limits.max_buffered_ms = 1_000;
    });
    t.model_detects_speech();
    t.model_detects_silence();
    t.committed("item_user");
    t.response_begins("r1");
    t.model_says("r1", "item_1", 10_000);
    t.sent.clear();
    t.twilio(STOP);
    t.expect("hold false");
    t.expect("cancel r1");
}
