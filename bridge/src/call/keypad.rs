//! Key presses, gathered until they mean something: the model cannot hear them, and one message for each key
//! would make it answer each key.

use super::settings::Dtmf;

/// Keys gathered so far.
#[derive(Debug, Default)]
pub(crate) struct Keypad {
    keys: String,
    entries: u64,
}

/// A finished entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// A name for the item, at most 32 characters.
    pub(crate) item: String,
    /// What the model is told.
    pub(crate) text: String,
    /// How many keys.
    pub(crate) keys: usize,
    /// The keys.
    pub(crate) pressed: String,
}

impl Keypad {
    /// Takes a key. Returns whether it completes the entry.
    pub(crate) fn press(&mut self, key: char, rule: &Dtmf) -> bool {
        self.keys.push(key);
        key == rule.terminator || self.keys.len() >= rule.max_digits.max(1)
    }

    /// Keys wait for more.
    pub(crate) fn is_gathering(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Ends the entry, if there is one.
    pub(crate) fn finish(&mut self) -> Option<Entry> {
        let keys = std::mem::take(&mut self.keys);
        let count = keys.chars().count();
        self.entries += u64::from(count > 0);
        let text = match count {
            0 => return None,
            1 => format!("The caller pressed {keys} on the keypad."),
            _ => {
                let spaced: Vec<String> = keys.chars().map(String::from).collect();
                format!("The caller entered {} on the keypad.", spaced.join(" "))
            }
        };
        Some(Entry { item: format!("dtmf_{:06}", self.entries), text, keys: count, pressed: keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_ends_with_the_terminator_or_the_limit() {
        let rule = Dtmf { max_digits: 3, ..Dtmf::default() };
        let mut t = Keypad::default();
        assert!(!t.press('4', &rule));
        assert!(!t.press('2', &rule));
        assert!(t.press('#', &rule));
        assert_eq!(t.finish().unwrap().text, "The caller entered 4 2 # on the keypad.");
        assert_eq!(t.finish(), None);
        assert!(!t.press('1', &rule));
        assert!(!t.press('2', &rule));
        assert!(t.press('3', &rule));
        t.finish();
        t.press('5', &rule);
        let entry = t.finish().unwrap();
        assert_eq!(
            (entry.text.as_str(), entry.item.as_str()),
            ("The caller pressed 5 on the keypad.", "dtmf_000003")
        );
    }
}
