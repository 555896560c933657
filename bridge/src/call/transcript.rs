//! Who said what, in conversation order.
//!
//! Order is the order of items, not of arrival: transcription of the caller runs beside the model and may come
//! before, during or long after the answer. What the caller did not hear is cut from the agent's words, in
//! proportion, at a word boundary: the server gives no shortened text.

use super::downlink::Cut;
use super::event::{Line, Speaker};

/// Items remembered; a longer conversation forgets its beginning.
const ITEMS_MAX: usize = 10_000;

/// Bytes of text kept for one item.
const TEXT_MAX: usize = 64 * 1024;

/// No voice says a character in less, ms: eighteen a second are a fast speaker.
const CHARACTER_MS: u64 = 55;

/// How much of an item was heard.
#[derive(Clone, Copy, Debug)]
struct Heard {
    heard_ms: u64,
    generated_ms: u64,
    /// The words may be those of audio that had not come yet.
    unfinished: bool,
}

#[derive(Debug)]
struct Entry {
    item: String,
    speaker: Speaker,
    text: String,
    /// Where the item was cut, if it was.
    cut: Option<Heard>,
    /// Audio of it was on its way to the ear.
    voiced: bool,
}

/// The transcript as it grows.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    entries: Vec<Entry>,
}

impl Transcript {
    /// An item entered the conversation behind `previous`.
    pub(crate) fn item(&mut self, item: &str, previous: Option<&str>, speaker: Speaker) {
        if let Some(at) = self.entries.iter().rposition(|e| e.item == item) {
            // Words may come before the item does; now its place is known.
            let Some(previous) = previous.and_then(|p| self.entries.iter().rposition(|e| e.item == p)) else {
                return;
            };
            if at != previous + 1 {
                let entry = self.entries.remove(at);
                let behind = if previous > at { previous } else { previous + 1 };
                self.entries.insert(behind, entry);
            }
            return;
        }
        if self.entries.len() >= ITEMS_MAX {
            self.entries.remove(0);
        }
        let at = previous
            .and_then(|p| self.entries.iter().rposition(|e| e.item == p))
            .map_or(self.entries.len(), |previous| previous + 1);
        let entry = Entry { item: item.to_owned(), speaker, text: String::new(), cut: None, voiced: false };
        self.entries.insert(at, entry);
    }

    fn entry(&mut self, item: &str, speaker: Speaker) -> &mut Entry {
        let at = self.entries.iter().rposition(|e| e.item == item).unwrap_or_else(|| {
            self.item(item, None, speaker);
            self.entries.len() - 1
        });
        &mut self.entries[at]
    }

    /// More words of the agent.
    pub(crate) fn agent_words(&mut self, item: &str, delta: &str) {
        let entry = self.entry(item, Speaker::Agent);
        if entry.text.len() + delta.len() <= TEXT_MAX {
            entry.text.push_str(delta);
        }
    }

    /// The first audio of an item of the agent is on its way to the ear.
    pub(crate) fn voiced(&mut self, item: &str) {
        self.entry(item, Speaker::Agent).voiced = true;
    }

    /// All words of an item.
    pub(crate) fn words(&mut self, item: &str, speaker: Speaker, text: &str) {
        let entry = self.entry(item, speaker);
        entry.text.clear();
        let mut end = text.len().min(TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        entry.text.push_str(&text[..end]);
    }

    /// These items were not heard to their ends.
    pub(crate) fn cut_all(&mut self, cuts: &[Cut]) {
        for &Cut { ref item, heard_ms, generated_ms, unfinished, .. } in cuts {
            self.entry(item, Speaker::Agent).cut = Some(Heard { heard_ms, generated_ms, unfinished });
        }
    }

    /// The lines with words in them.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.entries
            .iter()
            .map(|entry| Line {
                item: entry.item.clone(),
                speaker: entry.speaker,
                text: match entry.cut {
                    // Words run ahead of the audio; without audio nobody heard them.
                    _ if entry.speaker == Speaker::Agent && !entry.voiced => String::new(),
                    Some(heard) => shortened(&entry.text, heard).to_owned(),
                    None => entry.text.trim().to_owned(),
                },
                cut: entry.cut.is_some(),
            })
            .filter(|line| !line.text.is_empty())
            .collect()
    }
}

/// The whole words of `text` that fit into what was heard of it.
fn shortened(text: &str, heard: Heard) -> &str {
    let text = text.trim();
    let said_ms = if heard.unfinished { text.chars().count() as u64 * CHARACTER_MS } else { 0 };
    let generated_ms = heard.generated_ms.max(said_ms);
    if generated_ms == 0 || heard.heard_ms >= generated_ms {
        return text;
    }
    let fits = text.len() as u64 * heard.heard_ms / generated_ms;
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
        t.voiced("agent");
        t.agent_words("agent", "It has");
        t.agent_words("agent", " shipped.");
        t.words("user", Speaker::Caller, "Where is my order?");
        let texts: Vec<_> = t.lines().into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["Where is my order?", "It has shipped."]);
    }

    #[test]
    fn words_before_their_item_find_their_place() {
        let mut t = Transcript::default();
        t.words("user2", Speaker::Caller, "two");
        t.item("agent1", None, Speaker::Agent);
        t.voiced("agent1");
        t.agent_words("agent1", "one");
        t.item("user2", Some("agent1"), Speaker::Caller);
        let texts: Vec<_> = t.lines().into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["one", "two"]);
    }

    #[test]
    fn words_without_audio_were_not_said() {
        let mut t = Transcript::default();
        t.agent_words("agent", "never heard");
        assert_eq!(t.lines(), []);
    }

    #[test]
    fn what_was_not_heard_is_cut_at_a_word() {
        let heard = |heard_ms, generated_ms| Heard { heard_ms, generated_ms, unfinished: false };
        assert_eq!(shortened("one two three four", heard(500, 1_000)), "one two");
        assert_eq!(shortened("one two three four", heard(0, 1_000)), "");
        assert_eq!(shortened("one two three four", heard(1_000, 1_000)), "one two three four");
        assert_eq!(shortened("äöü äöü äöü", heard(1, 2)), "äöü");
    }

    #[test]
    fn words_that_ran_ahead_of_their_audio_are_cut_by_the_pace_of_a_voice() {
        let heard = Heard { heard_ms: 500, generated_ms: 500, unfinished: true };
        assert_eq!(shortened("one two three four", heard), "one two");
        let all = Heard { heard_ms: 400, generated_ms: 400, unfinished: true };
        assert_eq!(shortened("one two", all), "one two", "all of it fits");
    }

    #[test]
    fn a_word_heard_to_its_last_letter_is_kept() {
        let heard = Heard { heard_ms: 3, generated_ms: 7, unfinished: false };
        assert_eq!(shortened("one two", heard), "one");
        assert_eq!(shortened("one two", Heard { heard_ms: 2, ..heard }), "");
    }

    #[test]
    fn words_beyond_the_limit_are_left_out_between_two_characters() {
        let mut t = Transcript::default();
        t.words("user", Speaker::Caller, &("x".repeat(TEXT_MAX - 1) + "ö" + "y"));
        assert_eq!(t.lines()[0].text, "x".repeat(TEXT_MAX - 1));
        t.voiced("agent");
        t.agent_words("agent", &"x".repeat(TEXT_MAX));
        t.agent_words("agent", "y");
        assert_eq!(t.lines()[1].text.len(), TEXT_MAX);
    }
}
