//! Names and words that look like the service's and are the same in every run.

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

const WORDS: [&str; 32] = [
    "sure", "let", "me", "look", "that", "up", "for", "you", "the", "order", "left", "our", "house", "on",
    "Tuesday", "and", "should", "reach", "you", "before", "noon", "is", "there", "anything", "else", "I",
    "can", "do", "with", "it", "today", "please",
];

/// Speech has about this many words in two seconds.
const WORDS_IN_TWO_SECONDS: u64 = 5;

fn scramble(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Makes the ids of one connection. An id opens with the connection and a counter, so that no two are alike
/// however many connections there are, and closes with noise, so that no client is tempted to read it.
#[derive(Debug)]
pub(super) struct Ids {
    connection: u64,
    salt: u64,
    made: [u64; 6],
    noise: u64,
}

/// What an id names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Session,
    Conversation,
    Event,
    Item,
    Response,
    Call,
}

impl Ids {
    pub(super) fn new(connection: u64, seed: u64) -> Self {
        let salt = scramble(scramble(connection) ^ seed);
        Self { connection, salt, made: [0; 6], noise: salt }
    }

    pub(super) fn make(&mut self, kind: Kind) -> String {
        let (slot, prefix, length) = match kind {
            Kind::Session => (0, "sess_", 21),
            Kind::Conversation => (1, "conv_", 21),
            Kind::Event => (2, "event_", 21),
            Kind::Item => (3, "item_", 21),
            Kind::Response => (4, "resp_", 21),
            Kind::Call => (5, "call_", 16),
        };
        self.made[slot] += 1;
        let count = self.made[slot];
        let mut id = format!("{prefix}{}x{count}z", self.connection);
        let mut noise = scramble(self.salt ^ (slot as u64) << 56 ^ count);
        while id.len() < prefix.len() + length {
            if noise == 0 {
                noise = scramble(self.salt.wrapping_add(id.len() as u64) ^ count);
            }
            id.push(ALPHABET[(noise % 62) as usize] as char);
            noise /= 62;
        }
        id
    }

    /// Padding of text-like deltas, 1 to 16 characters.
    pub(super) fn obfuscation(&mut self) -> String {
        self.noise = scramble(self.noise);
        let length = self.noise % 16 + 1;
        let mut rest = scramble(self.noise ^ 1);
        let mut text = String::with_capacity(16);
        for i in 0..length {
            if i == 10 {
                rest = scramble(rest);
            }
            text.push(ALPHABET[(rest % 62) as usize] as char);
            rest /= 62;
        }
        text
    }

    /// Words that a speaker may have said in `ms` milliseconds; the same for the same `salt`.
    pub(super) fn words(&self, ms: u64, salt: u64) -> String {
        let count = (ms * WORDS_IN_TWO_SECONDS / 2_000).clamp(1, 4_000);
        let mut text = String::new();
        for i in 0..count {
            let pick = scramble(self.salt ^ salt.wrapping_mul(0x1_0001) ^ i << 32) as usize % WORDS.len();
            match i {
                0 => text.push_str(&capitalised(WORDS[pick])),
                _ => {
                    text.push(' ');
                    text.push_str(WORDS[pick]);
                }
            }
        }
        text.push('.');
        text
    }
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// A text in token-like pieces; joined they give the text again.
pub(super) fn pieces(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut from = 0;
    for (at, _) in text.match_indices(' ') {
        if at > from {
            pieces.push(text[from..at].to_owned());
            from = at;
        }
    }
    if from < text.len() {
        pieces.push(text[from..].to_owned());
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_have_the_length_of_the_service_and_never_repeat() {
        let mut seen = BTreeSet::new();
        for connection in 0..20 {
            let mut ids = Ids::new(connection, 7);
            for _ in 0..200 {
                let item = ids.make(Kind::Item);
                assert_eq!(item.len(), "item_".len() + 21);
                assert!(seen.insert(item));
                assert!(seen.insert(ids.make(Kind::Call)));
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_ids_and_words() {
        let (mut one, mut two) = (Ids::new(3, 9), Ids::new(3, 9));
        assert_eq!(one.make(Kind::Event), two.make(Kind::Event));
        assert_eq!(one.obfuscation(), two.obfuscation());
        assert_eq!(one.words(4_000, 1), two.words(4_000, 1));
        assert_ne!(one.words(4_000, 1), two.words(4_000, 2));
    }

    #[test]
    fn pieces_join_to_the_text() {
        for text in ["Hello, Acme, how can I help?", " padded ", "", "one", "two  spaces"] {
            assert_eq!(pieces(text).concat(), text);
        }
    }
}
