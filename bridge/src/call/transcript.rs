//! Who said what, in conversation order.
//!
//! Order is the order of items, not of arrival: transcription of the caller runs beside the model and may come
//! before, during or long after the answer. What the caller did not hear is cut from the agent's words, in
//! proportion to the voice that was heard, at a word boundary: the server gives no shortened text. Silence says no
//! words, wherever in an item it is. A turn of the caller whose words never come has a line that says so.
//!
//! Whoever follows a call hears of every change as it comes, at a cost that does not depend on how long the call is:
//! a line has a place of its own, so that one that turns out to belong further up moves nothing else.

use super::downlink::{Truncation, Voice};
use super::event::{Line, Private, Said, Speaker, UNTRANSCRIBED};
use super::settings::{Limits, Renewal};
use crate::wire::realtime::{FunctionCall, HistoryItem};

/// Bytes of text kept for one item.
const TEXT_MAX: usize = 64 * 1024;

/// Longest name of a function call that a server takes from us (documented).
const CALL_ID_MAX: usize = 32;

/// Room between the places of two lines that follow each other: twenty times in a row another fits exactly between.
const STEP: u64 = 1 << 20;

/// No voice says a character in less, ms: eighteen a second are a fast speaker.
const CHARACTER_MS: u64 = 55;

/// No voice rests this long before words that are out already, ms: silence that was generated behind the last sound
/// and is longer means that these words were said.
const REST_MS: u64 = 1_000;

/// Steps remembered of how the words of an item came beside its audio.
const STEPS_MAX: usize = 256;

/// How much of an item was heard.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    heard_ms: u64,
    generated_ms: u64,
    voice: Voice,
    /// The words may be those of audio that had not come yet.
    unfinished: bool,
}

/// So many bytes of text were there when so much audio was.
#[derive(Clone, Copy, Debug)]
struct Step {
    generated_ms: u64,
    text: usize,
}

/// A function call, for a session that takes over.
#[derive(Debug)]
struct Called {
    call_id: String,
    name: String,
    arguments: String,
    /// `None` until it is answered.
    output: Option<String>,
}

#[derive(Debug)]
struct Entry {
    item: String,
    place: u64,
    speaker: Speaker,
    text: String,
    /// All of its words are there.
    complete: bool,
    /// How its words came beside its audio, while they came.
    steps: Vec<Step>,
    /// Where the item was cut, if it was.
    cut: Option<Heard>,
    /// Audio of it was on its way to the ear.
    has_audio: bool,
    /// Something of it was told.
    told: bool,
    /// What was told is not so any more.
    changed: bool,
    /// A turn of the caller whose words are to come, and until they do.
    expects_words: bool,
    /// Its text says that there are no words.
    untranscribed: bool,
    /// The item is a function call.
    call: Option<Called>,
}

impl Entry {
    /// Bytes that it holds, roughly.
    fn weight(&self) -> usize {
        let call = self.call.as_ref().map_or(0, |call| {
            let Called { call_id, name, arguments, output } = call;
            call_id.len() + name.len() + arguments.len() + output.as_ref().map_or(0, String::len)
        });
        let steps = self.steps.len() * size_of::<Step>();
        size_of::<Self>() + self.item.len() + self.text.len() + steps + call
    }

    /// What a session that takes over is told of it. An open call would leave that one waiting for its output.
    fn past(&self) -> Vec<HistoryItem> {
        if let Some(Called { call_id, name, arguments, output }) = &self.call {
            let Some(output) = output.clone() else { return Vec::new() };
            let (call_id, name, arguments) = (call_id.clone(), name.clone(), arguments.clone());
            return vec![
                HistoryItem::Call { call_id: call_id.clone(), name, arguments },
                HistoryItem::Output { call_id, output },
            ];
        }
        let Line { speaker, text, .. } = self.line(self.place);
        match speaker {
            _ if text.is_empty() || self.untranscribed => Vec::new(),
            Speaker::Agent => vec![HistoryItem::Agent(text)],
            Speaker::Caller | Speaker::Keypad => vec![HistoryItem::User(text)],
        }
    }

    /// The line of it, as heard.
    fn line(&self, place: u64) -> Line {
        let text = match self.cut {
            // Words run ahead of the audio; without audio nobody heard them.
            _ if self.speaker == Speaker::Agent && !self.has_audio => String::new(),
            Some(heard) => shortened(&self.text, &self.steps, heard).to_owned(),
            None => self.text.trim().to_owned(),
        };
        Line { item: self.item.clone(), place, speaker: self.speaker, text, cut: self.cut.is_some() }
    }
}

/// The transcript as it grows.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    entries: Vec<Entry>,
    /// Words that were not told yet.
    more: Vec<Said>,
    /// An entry has changed.
    changed: bool,
    /// Bytes of the entries when they were counted last, and those that may have come since.
    counted: usize,
    grew: usize,
}

impl Transcript {
    /// Forgets the beginning of a conversation that is longer than the limits, an eighth more than it must, so that the
    /// bytes are seldom counted. Returns how many items that were.
    pub(crate) fn forget(&mut self, limits: &Limits) -> u64 {
        let Limits { transcript_items, transcript_bytes, .. } = *limits;
        if self.entries.len() <= transcript_items && self.counted + self.grew <= transcript_bytes {
            return 0;
        }
        let mut bytes: usize = self.entries.iter().map(Entry::weight).sum();
        let mut gone = 0;
        if self.entries.len() > transcript_items || bytes > transcript_bytes {
            let (items_kept, bytes_kept) = (transcript_items / 8 * 7, transcript_bytes / 8 * 7);
            for entry in &self.entries {
                if self.entries.len() - gone <= items_kept && bytes <= bytes_kept {
                    break;
                }
                bytes -= entry.weight();
                gone += 1;
            }
            self.entries.drain(..gone);
        }
        (self.counted, self.grew) = (bytes, 0);
        gone as u64
    }

    /// An item entered the conversation behind `previous`.
    pub(crate) fn item(&mut self, item: &str, previous: Option<&str>, speaker: Speaker) {
        if let Some(at) = self.entries.iter().rposition(|e| e.item == item) {
            // Words may come before the item does; now its place is known. Nothing follows itself.
            let Some(previous) = previous.and_then(|p| self.entries.iter().rposition(|e| e.item == p)) else {
                return;
            };
            if at != previous + 1 && at != previous {
                let mut entry = self.entries.remove(at);
                let behind = if previous > at { previous } else { previous + 1 };
                entry.place = self.place(behind);
                self.entries.insert(behind, entry);
                self.change(behind);
            }
            return;
        }
        self.grew += item.len() + size_of::<Entry>();
        let at = previous
            .and_then(|p| self.entries.iter().rposition(|e| e.item == p))
            .map_or(self.entries.len(), |previous| previous + 1);
        let entry = Entry {
            item: item.to_owned(),
            place: self.place(at),
            speaker,
            text: String::new(),
            complete: false,
            steps: Vec::new(),
            cut: None,
            has_audio: false,
            told: false,
            changed: false,
            expects_words: false,
            untranscribed: false,
            call: None,
        };
        self.entries.insert(at, entry);
    }

    /// A turn of the caller became an item behind `previous`. `words`: they will be transcribed.
    pub(crate) fn committed(&mut self, item: &str, previous: Option<&str>, words: bool) {
        self.item(item, previous, Speaker::Caller);
        let at = self.at(item, Speaker::Caller);
        self.entries[at].expects_words = words && !self.entries[at].complete;
    }

    /// The words of this turn will not come.
    pub(crate) fn untranscribed(&mut self, item: &str) {
        let at = self.at(item, Speaker::Caller);
        if !self.entries[at].complete {
            self.words(item, Speaker::Caller, UNTRANSCRIBED);
            self.entries[at].untranscribed = true;
        }
    }

    /// A place for what is to be inserted at `at`. When there is no room left it is that of the line before it.
    fn place(&self, at: usize) -> u64 {
        let before = at.checked_sub(1).map_or(0, |before| self.entries[before].place);
        self.entries.get(at).map_or(before + STEP, |behind| before + behind.place.saturating_sub(before) / 2)
    }

    /// What was told of this one, if anything was, is not so any more.
    fn change(&mut self, at: usize) {
        let entry = &mut self.entries[at];
        entry.changed = entry.told || !entry.text.is_empty();
        self.changed |= entry.changed;
    }

    fn at(&mut self, item: &str, speaker: Speaker) -> usize {
        self.entries.iter().rposition(|e| e.item == item).unwrap_or_else(|| {
            self.item(item, None, speaker);
            self.entries.len() - 1
        })
    }

    /// More words of the agent, when so much audio of the item had come: they are ahead of it.
    pub(crate) fn agent_words(&mut self, item: &str, delta: &str, generated_ms: u64) {
        let at = self.at(item, Speaker::Agent);
        let entry = &mut self.entries[at];
        if entry.text.len() + delta.len() > TEXT_MAX || delta.is_empty() {
            return;
        }
        self.grew += delta.len();
        entry.text.push_str(delta);
        let (text, room) = (entry.text.len(), entry.steps.len() < STEPS_MAX);
        match entry.steps.last_mut() {
            Some(last) if last.generated_ms == generated_ms || !room => *last = Step { generated_ms, text },
            _ => entry.steps.push(Step { generated_ms, text }),
        }
        if entry.cut.is_some() || entry.complete {
            return self.change(at);
        }
        entry.told = true;
        let (item, words) = (item.to_owned(), Private::new(delta));
        self.more.push(Said::More { item, speaker: entry.speaker, words });
    }

    /// The first audio of an item of the agent is on its way to the ear.
    pub(crate) fn has_audio(&mut self, item: &str) {
        let at = self.at(item, Speaker::Agent);
        let entry = &mut self.entries[at];
        if !std::mem::replace(&mut entry.has_audio, true) && (entry.complete || entry.cut.is_some()) {
            self.change(at);
        }
    }

    /// All words of an item.
    pub(crate) fn words(&mut self, item: &str, speaker: Speaker, text: &str) {
        let at = self.at(item, speaker);
        let entry = &mut self.entries[at];
        entry.complete = true;
        entry.expects_words = false;
        entry.untranscribed = false;
        entry.text.clear();
        let mut end = text.len().min(TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        entry.text.push_str(&text[..end]);
        self.grew += end;
        self.change(at);
    }

    /// These items were not heard to their ends.
    pub(crate) fn truncate_all(&mut self, truncations: &[Truncation]) {
        for &Truncation { ref item, heard_ms, generated_ms, voice, unfinished, .. } in truncations {
            let at = self.at(item, Speaker::Agent);
            self.entries[at].cut = Some(Heard { heard_ms, generated_ms, voice, unfinished });
            self.change(at);
        }
    }

    /// The agent called a function. What is too long to be repeated is not remembered.
    pub(crate) fn called(&mut self, call: &FunctionCall) {
        if call.call_id.len() > CALL_ID_MAX || call.arguments.len() > TEXT_MAX {
            return;
        }
        let at = self.at(call.item.as_deref().unwrap_or(&call.call_id), Speaker::Agent);
        let FunctionCall { call_id, name, arguments, .. } = call.clone();
        self.grew += call_id.len() + name.len() + arguments.len();
        self.entries[at].call = Some(Called { call_id, name, arguments, output: None });
    }

    /// A function call was answered.
    pub(crate) fn answered(&mut self, call_id: &str, output: &str) {
        let mut calls = self.entries.iter_mut().rev().filter_map(|entry| entry.call.as_mut());
        if let Some(call) = calls.find(|call| call.call_id == call_id).filter(|_| output.len() <= TEXT_MAX) {
            call.output = Some(output.to_owned());
            self.grew += output.len();
        }
    }

    /// The conversation so far, as heard, for a session that takes over: the newest that fits the limits, without a
    /// hole.
    pub(crate) fn history(&self, limits: &Renewal) -> Vec<HistoryItem> {
        let (mut items, mut bytes) = (0, 0);
        let mut newest: Vec<Vec<HistoryItem>> = Vec::new();
        for past in self.entries.iter().rev().map(Entry::past) {
            items += past.len();
            bytes += past.iter().map(HistoryItem::text_len).sum::<usize>();
            if items > limits.history_items || bytes > limits.history_bytes {
                break;
            }
            newest.push(past);
        }
        newest.into_iter().rev().flatten().collect()
    }

    /// No more words will come: what was said of incomplete lines is set right, and turns without words say so.
    pub(crate) fn close(&mut self) {
        for at in 0..self.entries.len() {
            if self.entries[at].expects_words {
                let item = self.entries[at].item.clone();
                self.untranscribed(&item);
            }
            if self.entries[at].told && !self.entries[at].complete {
                self.change(at);
            }
        }
    }

    /// What is new since it was last asked for.
    pub(crate) fn news(&mut self) -> Vec<Said> {
        let mut news = std::mem::take(&mut self.more);
        if std::mem::take(&mut self.changed) {
            for entry in self.entries.iter_mut().filter(|entry| entry.changed) {
                entry.changed = false;
                let line = entry.line(entry.place);
                // What was never told and not heard either is no news.
                if entry.told || !line.text.is_empty() {
                    entry.told = true;
                    news.push(Said::Line(line));
                }
            }
        }
        news
    }

    /// The lines with words in them, each with a place of its own.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut place = 0;
        let lines = self.entries.iter().map(|entry| {
            place = entry.place.max(place + 1);
            entry.line(place)
        });
        lines.filter(|line| !line.text.is_empty()).collect()
    }
}

/// The whole words of `text` that fit into what was heard of it.
fn shortened<'a>(text: &'a str, steps: &[Step], heard: Heard) -> &'a str {
    let Heard { voice, unfinished, .. } = heard;
    let rests = voice.quiet_ms >= REST_MS;
    // What came during the rest is what will be said behind it.
    let said = steps.iter().rev().find(|step| step.generated_ms < voice.ends_ms).map(|step| step.text);
    let text = said.filter(|_| unfinished && rests).and_then(|said| text.get(..said)).unwrap_or(text).trim();
    // An item without any sound has but its length.
    let (heard_ms, all_ms) = match voice.all_ms {
        0 => (heard.heard_ms, heard.generated_ms),
        all_ms => (voice.heard_ms, all_ms),
    };
    let ahead = unfinished && !rests;
    let said_ms = if ahead { text.chars().count() as u64 * CHARACTER_MS } else { 0 };
    let all_ms = all_ms.max(said_ms);
    if all_ms == 0 || heard_ms >= all_ms {
        return text;
    }
    let fits = text.len() as u64 * heard_ms / all_ms;
    let mut end = 0;
    for (at, c) in text.char_indices() {
        if at as u64 > fits {
            break;
        }
        if c.is_whitespace() {
            end = at;
        }
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_transcription_stands_before_the_answer() {
        let mut t = Transcript::default();
        t.item("user", None, Speaker::Caller);
        t.item("agent", Some("user"), Speaker::Agent);
        t.has_audio("agent");
        t.agent_words("agent", "It has", 0);
        t.agent_words("agent", " shipped.", 0);
        t.words("user", Speaker::Caller, "Where is my order?");
        let texts: Vec<_> = t.lines().into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["Where is my order?", "It has shipped."]);
    }

    #[test]
    fn words_before_their_item_find_their_place() {
        let mut t = Transcript::default();
        t.words("user2", Speaker::Caller, "two");
        t.item("agent1", None, Speaker::Agent);
        t.has_audio("agent1");
        t.agent_words("agent1", "one", 0);
        t.item("user2", Some("agent1"), Speaker::Caller);
        let texts: Vec<_> = t.lines().into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["one", "two"]);
    }

    #[test]
    fn an_item_that_stands_too_late_or_too_early_is_moved_behind_the_one_it_follows() {
        let mut t = Transcript::default();
        for item in ["a", "b", "c", "d"] {
            t.words(item, Speaker::Caller, item);
        }
        let order = |t: &Transcript| t.lines().into_iter().map(|line| line.text).collect::<String>();
        t.item("d", Some("a"), Speaker::Caller);
        assert_eq!(order(&t), "adbc");
        t.item("a", Some("b"), Speaker::Caller);
        assert_eq!(order(&t), "dbac");
    }

    #[test]
    fn there_is_room_for_twenty_lines_in_a_row_that_come_between_two() {
        let mut t = Transcript::default();
        t.item("first", None, Speaker::Agent);
        t.item("last", Some("first"), Speaker::Agent);
        for between in 0..20 {
            t.item(&between.to_string(), Some("first"), Speaker::Agent);
        }
        assert!(t.entries.is_sorted_by(|a, b| a.place < b.place));
    }

    #[test]
    fn words_that_come_behind_a_cut_are_not_told_as_if_they_were_said() {
        let mut t = Transcript::default();
        t.has_audio("agent");
        t.agent_words("agent", "one two", 0);
        t.truncate_all(&[cut("agent", 500)]);
        t.news();
        t.agent_words("agent", " three four", 0);
        let news = t.news();
        assert!(matches!(&news[..], [Said::Line(line)] if line.text == "one two"), "{news:?}");
    }

    #[test]
    fn an_item_that_is_said_to_follow_itself_stays_where_it_is() {
        let mut t = Transcript::default();
        t.words("one", Speaker::Caller, "one");
        t.words("two", Speaker::Caller, "two");
        t.item("two", Some("two"), Speaker::Caller);
        t.item("one", Some("one"), Speaker::Caller);
        let texts: Vec<_> = t.lines().into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["one", "two"]);
    }

    #[test]
    fn a_turn_whose_words_never_come_has_a_line_that_says_so() {
        let mut t = Transcript::default();
        t.committed("user1", None, true);
        t.committed("user2", Some("user1"), true);
        t.words("user2", Speaker::Caller, "");
        t.committed("user3", Some("user2"), false);
        t.item("user4", Some("user3"), Speaker::Caller);
        t.committed("user5", Some("user4"), true);
        t.untranscribed("user5");
        let texts = |t: &Transcript| t.lines().into_iter().map(|l| (l.item, l.text)).collect::<Vec<_>>();
        let no_words = |item: &str| (item.to_owned(), UNTRANSCRIBED.to_owned());
        assert_eq!(texts(&t), [no_words("user5")], "the others may yet come");
        assert_eq!(t.news().len(), 1);
        t.close();
        assert_eq!(texts(&t), [no_words("user1"), no_words("user5")]);
        assert_eq!(t.news().len(), 1);
        assert_eq!(t.history(&all()), [], "a session that takes over is not told of it");
        t.words("user1", Speaker::Caller, "late");
        assert_eq!(t.history(&all()), [HistoryItem::User("late".into())]);
    }

    #[test]
    fn a_conversation_beyond_its_limits_forgets_its_beginning_and_nothing_else() {
        let items = Limits { transcript_items: 100, ..Limits::default() };
        let bytes = Limits { transcript_bytes: 100_000, ..Limits::default() };
        let long = "many words ".repeat(500);
        for (limits, text) in [(items, "word"), (bytes, long.as_str())] {
            let mut t = Transcript::default();
            let mut forgotten = 0;
            for n in 0..1_000 {
                t.words(&format!("item {n}"), Speaker::Caller, text);
                t.news();
                forgotten += t.forget(&limits);
                let held: usize = t.entries.iter().map(Entry::weight).sum();
                assert!(t.entries.len() <= 100 && (held <= 100_000 || limits.transcript_bytes > 100_000));
            }
            let items: Vec<_> = t.lines().into_iter().map(|line| line.item).collect();
            assert_eq!(items.len() as u64 + forgotten, 1_000);
            assert!(items.len() >= 14 && items.last().is_some_and(|item| item == "item 999"), "{items:?}");
            assert_eq!(items[0], format!("item {forgotten}"));
        }
        // What a function was passed and answered is held, too, and so are names.
        let mut t = Transcript::default();
        let limits = Limits { transcript_bytes: 100_000, ..Limits::default() };
        for n in 0..100 {
            let (call_id, arguments) = (format!("call {n}"), "x".repeat(5_000));
            let (item, name, complete) = (None, "f".into(), true);
            t.called(&FunctionCall { item, call_id: call_id.clone(), name, arguments, complete });
            t.answered(&call_id, &"y".repeat(5_000));
            t.item(&"z".repeat(5_000 + n), None, Speaker::Agent);
            t.forget(&limits);
            assert!(t.entries.iter().map(Entry::weight).sum::<usize>() <= 100_000);
        }
        assert!(!t.entries.is_empty());
        // Words that replace themselves again and again are held once.
        let mut t = Transcript::default();
        for _ in 0..1_000 {
            t.words("one", Speaker::Caller, &long);
            assert_eq!(t.forget(&limits), 0);
        }
    }

    #[test]
    fn words_without_audio_were_not_said() {
        let mut t = Transcript::default();
        t.agent_words("agent", "never heard", 0);
        assert_eq!(t.lines(), []);
    }

    #[test]
    fn the_voice_of_an_item_is_news_once_and_only_when_its_words_are_known() {
        let mut t = Transcript::default();
        t.agent_words("agent", "one", 0);
        assert_eq!(t.news().len(), 1);
        t.has_audio("agent");
        assert_eq!(t.news(), [], "more words will come");
        t.words("other", Speaker::Agent, "two");
        assert_eq!(t.news(), []);
        t.has_audio("other");
        assert_eq!(t.news().len(), 1);
        t.has_audio("other");
        assert_eq!(t.news(), []);
        t.close();
        let lines = t.news();
        assert!(matches!(&lines[..], [Said::Line(line)] if line.text == "one"), "{lines:?}");
    }

    /// An item of a second, all of it voice, cut where so much of it was heard.
    fn cut(item: &str, heard_ms: u64) -> Truncation {
        let voice = Voice { heard_ms, all_ms: 1_000, ends_ms: 1_000, quiet_ms: 0 };
        Truncation {
            item: item.to_owned(),
            content: 0,
            heard_ms,
            generated_ms: 1_000,
            voice,
            unfinished: false,
        }
    }

    /// An item of nothing but voice.
    fn heard(heard_ms: u64, all_ms: u64) -> Heard {
        let voice = Voice { heard_ms, all_ms, ends_ms: all_ms, quiet_ms: 0 };
        Heard { heard_ms, generated_ms: all_ms, voice, unfinished: false }
    }

    #[test]
    fn what_was_not_heard_is_cut_at_a_word() {
        assert_eq!(shortened("one two three four", &[], heard(500, 1_000)), "one two");
        assert_eq!(shortened("one two three four", &[], heard(0, 1_000)), "");
        assert_eq!(shortened("one two three four", &[], heard(1_000, 1_000)), "one two three four");
        assert_eq!(shortened("äöü äöü äöü", &[], heard(1, 2)), "äöü");
    }

    #[test]
    fn words_that_ran_ahead_of_their_audio_are_cut_by_the_pace_of_a_voice() {
        let unfinished = |ms| Heard { unfinished: true, ..heard(ms, ms) };
        assert_eq!(shortened("one two three four", &[], unfinished(500)), "one two");
        assert_eq!(shortened("one two", &[], unfinished(400)), "one two", "all of it fits");
    }

    #[test]
    fn a_word_heard_to_its_last_letter_is_kept() {
        assert_eq!(shortened("one two", &[], heard(3, 7)), "one");
        assert_eq!(shortened("one two", &[], heard(2, 7)), "");
    }

    const TEN: &str = "one two three four five six seven eight nine ten";

    /// Ten words in 2.1 s and 2.8 s of silence behind them, interrupted here.
    fn trailing_silence(heard_ms: u64) -> Heard {
        let voice = Voice { heard_ms: heard_ms.min(2_100), all_ms: 2_100, ends_ms: 2_100, quiet_ms: 2_800 };
        Heard { heard_ms, generated_ms: 4_900, voice, unfinished: false }
    }

    #[test]
    fn words_are_those_of_the_voice_and_not_of_the_silence_behind_it() {
        assert_eq!(shortened(TEN, &[], trailing_silence(3_200)), TEN);
        assert_eq!(shortened(TEN, &[], trailing_silence(2_100)), TEN);
        assert_eq!(shortened(TEN, &[], trailing_silence(1_050)), "one two three four five");
    }

    #[test]
    fn a_long_rest_tells_that_the_words_before_it_were_said_whatever_is_still_to_come() {
        let steps = [(0, 3), (750, TEN.len())].map(|(generated_ms, text)| Step { generated_ms, text });
        // 2.1 s are less than a usual voice takes for these words.
        let resting = Heard { unfinished: true, ..trailing_silence(3_200) };
        assert_eq!(shortened(TEN, &steps, resting), TEN);
        let voice = Voice { quiet_ms: 900, ..resting.voice };
        let breath = Heard { generated_ms: 3_000, heard_ms: 3_000, voice, unfinished: true };
        assert_eq!(
            shortened(TEN, &steps, breath),
            "one two three four five six seven",
            "more may be said of it"
        );
    }

    #[test]
    fn words_that_came_during_a_rest_are_said_behind_it() {
        let (before, during) = ("one two".len(), TEN.len());
        let steps = [(0, before), (2_250, during)].map(|(generated_ms, text)| Step { generated_ms, text });
        let resting = Heard { unfinished: true, ..trailing_silence(3_200) };
        assert_eq!(shortened(TEN, &steps, resting), "one two");
        assert_eq!(shortened(TEN, &steps, trailing_silence(3_200)), TEN, "there was nothing more to come");
    }

    #[test]
    fn an_item_without_any_sound_is_cut_by_its_length() {
        let voice = Voice { quiet_ms: 1_000, ..Voice::default() };
        let silent = Heard { heard_ms: 500, generated_ms: 1_000, voice, unfinished: false };
        assert_eq!(shortened("one two three four", &[], silent), "one two");
    }

    #[test]
    fn words_beyond_the_limit_are_left_out_between_two_characters() {
        let mut t = Transcript::default();
        t.words("user", Speaker::Caller, &("x".repeat(65_535) + "ö" + "y"));
        assert_eq!(t.lines()[0].text, "x".repeat(65_535));
        t.has_audio("agent");
        t.agent_words("agent", &"x".repeat(65_536), 0);
        t.agent_words("agent", "y", 0);
        assert_eq!(t.lines()[1].text.len(), 65_536);
    }

    fn all() -> Renewal {
        Renewal::default()
    }

    fn function_call(call_id: &str) -> FunctionCall {
        let (name, arguments) = ("lookup".to_owned(), "{}".to_owned());
        FunctionCall { item: None, call_id: call_id.into(), name, arguments, complete: true }
    }

    #[test]
    fn another_session_is_told_what_was_heard_and_what_was_done() {
        let mut t = Transcript::default();
        t.item("greeting", None, Speaker::Agent);
        t.has_audio("greeting");
        t.words("greeting", Speaker::Agent, "one two three four");
        t.truncate_all(&[cut("greeting", 500)]);
        t.item("user", Some("greeting"), Speaker::Caller);
        t.item("call", Some("user"), Speaker::Agent);
        t.called(&FunctionCall { item: Some("call".into()), ..function_call("call_1") });
        t.item("unheard", Some("call"), Speaker::Agent);
        t.words("unheard", Speaker::Agent, "never heard");
        t.called(&function_call("call_2"));
        t.answered("call_1", "42");
        t.words("dtmf", Speaker::Keypad, "The caller pressed 1.");
        t.words("user", Speaker::Caller, "Where is it?");
        let call_id = || "call_1".to_owned();
        let history = [
            HistoryItem::Agent("one two".into()),
            HistoryItem::User("Where is it?".into()),
            HistoryItem::Call { call_id: call_id(), name: "lookup".into(), arguments: "{}".into() },
            HistoryItem::Output { call_id: call_id(), output: "42".into() },
            HistoryItem::User("The caller pressed 1.".into()),
        ];
        assert_eq!(t.history(&all()), history, "an open call is not repeated");
        let limited = |history_items, history_bytes| {
            t.history(&Renewal { history_items, history_bytes, ..Renewal::default() })
        };
        assert_eq!(limited(4, 10_000), history[1..], "the oldest is left out");
        assert_eq!(limited(2, 10_000), history[4..], "a call and its output stay together");
        assert_eq!(limited(100, 21), history[4..]);
        assert_eq!(limited(100, 20), []);
    }

    #[test]
    fn calls_a_server_would_not_take_are_left_out() {
        let mut t = Transcript::default();
        for call_id in ["x".repeat(CALL_ID_MAX), "y".repeat(CALL_ID_MAX + 1)] {
            t.called(&function_call(&call_id));
            t.answered(&call_id, "42");
        }
        let history = t.history(&all());
        assert!(
            matches!(&history[..], [HistoryItem::Call { call_id, .. }, _] if call_id.starts_with('x')),
            "{history:?}"
        );
        for (call_id, len) in [("longest", 65_536), ("too long", 65_537)] {
            t.called(&FunctionCall { arguments: "x".repeat(len), ..function_call(call_id) });
            t.answered(call_id, "42");
        }
        let limits = Renewal { history_bytes: usize::MAX, ..all() };
        let history = t.history(&limits);
        assert!(matches!(&history[2..], [HistoryItem::Call { call_id, .. }, _] if call_id == "longest"));
    }

    /// What somebody knows who heard all the news: the words of each item, in order.
    #[derive(Default)]
    struct Listener(std::collections::BTreeMap<String, (u64, String)>);

    impl Listener {
        fn hears(&mut self, news: Vec<Said>) {
            for said in news {
                match said {
                    Said::More { item, words, .. } => {
                        self.0.entry(item).or_insert((u64::MAX, String::new())).1.push_str(words.expose());
                    }
                    Said::Line(line) => {
                        self.0.insert(line.item, (line.place, line.text));
                    }
                }
            }
        }

        fn knows(&self) -> Vec<&str> {
            let mut lines: Vec<_> = self.0.values().filter(|(_, text)| !text.is_empty()).collect();
            lines.sort();
            lines.into_iter().map(|(_, text)| text.as_str()).collect()
        }
    }

    #[test]
    fn whoever_hears_the_news_knows_the_transcript() {
        let (mut t, mut listener) = (Transcript::default(), Listener::default());
        t.item("user", None, Speaker::Caller);
        t.item("agent", Some("user"), Speaker::Agent);
        assert_eq!(t.news(), [], "nobody has said anything");
        t.agent_words("agent", "It has", 0);
        listener.hears(t.news());
        assert_eq!(listener.knows(), ["It has"], "before it is heard");
        t.has_audio("agent");
        t.agent_words("agent", " shipped yesterday.", 0);
        t.words("agent", Speaker::Agent, "It has shipped yesterday.");
        listener.hears(t.news());
        t.words("user", Speaker::Caller, "Where is my order?");
        listener.hears(t.news());
        assert_eq!(listener.knows(), ["Where is my order?", "It has shipped yesterday."]);
        t.truncate_all(&[cut("agent", 500)]);
        listener.hears(t.news());
        assert_eq!(listener.knows(), ["Where is my order?", "It has"]);
        t.truncate_all(&[cut("agent", 0)]);
        listener.hears(t.news());
        assert_eq!(listener.knows(), ["Where is my order?"], "what was not heard is taken back");
        assert_eq!(t.news(), []);
    }

    #[test]
    fn a_line_that_moves_is_told_anew_and_moves_no_other() {
        let (mut t, mut listener) = (Transcript::default(), Listener::default());
        t.words("user2", Speaker::Caller, "two");
        t.words("user3", Speaker::Caller, "three");
        t.item("user1", None, Speaker::Caller);
        t.words("user1", Speaker::Caller, "one");
        listener.hears(t.news());
        assert_eq!(listener.knows(), ["two", "three", "one"]);
        t.item("user2", Some("user1"), Speaker::Caller);
        let news = t.news();
        assert!(matches!(&news[..], [Said::Line(line)] if line.item == "user2"), "{news:?}");
        listener.hears(news);
        assert_eq!(listener.knows(), ["three", "one", "two"]);
        let places: Vec<_> = t.lines().into_iter().map(|line| line.place).collect();
        assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    }

    #[test]
    fn places_that_run_out_of_room_are_still_told_apart_at_the_end() {
        let mut t = Transcript::default();
        t.words("first", Speaker::Caller, "first");
        t.words("last", Speaker::Caller, "last");
        for n in 0..100 {
            let item = format!("between{n}");
            t.item(&item, Some("first"), Speaker::Caller);
            t.words(&item, Speaker::Caller, &item);
        }
        let lines = t.lines();
        assert_eq!((lines[0].text.as_str(), lines[1].text.as_str()), ("first", "between99"));
        assert_eq!(lines[101].text, "last");
        assert!(lines.is_sorted_by(|a, b| a.place < b.place));
    }
}
