//! Takes out of a server's own words what may be part of a key.
//!
//! Services quote the key they refuse, whole or masked, in texts of errors and reasons of closes. What is kept of such
//! texts goes through here first.

use std::borrow::Cow;

/// What stands in place of what was taken out.
const REDACTED: &str = "[redacted]";
/// What keys and tokens begin with.
const PREFIXES: [&str; 8] = ["sk-", "sk_", "pk-", "rk-", "ek-", "ek_", "whsec_", "eyJ"];
/// Letters and digits in a row that are no word and no id of the protocol.
const RUN_MIN: usize = 24;
/// Most characters of a name.
const NAME_MAX: usize = 80;

/// The text without what looks like a key, or like a part of one.
pub(crate) fn secrets(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut kept = 0;
    let mut bearer = false;
    for (at, word) in words(text) {
        if is_secret(word) || bearer {
            out.push_str(&text[kept..at]);
            out.push_str(REDACTED);
            kept = at + word.len();
        }
        bearer = word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic");
    }
    if kept == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[kept..]);
    Cow::Owned(out)
}

/// A name the server gave to something: a code, a type, the path of a field. One line, of bounded length.
pub(crate) fn name(text: &str) -> String {
    let plain: String = text.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    secrets(&plain).into_owned()
}

/// The stretches of a text that a key could be, and where they begin.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*' | '.' | '…' | '•');
    text.split(move |c| !is_part(c)).map(move |word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}

fn is_secret(word: &str) -> bool {
    let masked = ["***", "•••", "...", "…"].iter().any(|mask| {
        // Dots at the end of a word end a sentence.
        word.split_once(mask).is_some_and(|(_, rest)| rest.contains(|c: char| c.is_ascii_alphanumeric()))
            || (mask.starts_with(['*', '•']) && word.contains(mask))
    });
    let begins = PREFIXES.iter().any(|prefix| word.strip_prefix(prefix).is_some_and(|rest| rest.len() > 2));
    let runs = word.split(|c: char| !c.is_ascii_alphanumeric()).any(|run| {
        run.len() >= RUN_MIN
            && run.contains(|c: char| c.is_ascii_digit())
            && run.contains(|c: char| c.is_ascii_alphabetic())
    });
    masked || begins || runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_parts_of_keys_are_taken_out() {
        for (text, want) in [
            (
                "Incorrect API key provided: sk-pr************x7Qz. Look",
                "Incorrect API key provided: [redacted] Look",
            ),
            ("key sk-proj-abc...wxyz is wrong", "key [redacted] is wrong"),
            ("Authorization: Bearer hunter2 was refused", "Authorization: Bearer [redacted] was refused"),
            ("api-key 0123456789abcdef0123456789abcdef", "api-key [redacted]"),
            ("ends with ****wxyz", "ends with [redacted]"),
            (r#"{"value":"ek_68a1f00d"}"#, r#"{"value":"[redacted]"}"#),
            ("sk-one and sk-two", "[redacted] and [redacted]"),
        ] {
            assert_eq!(secrets(text), want);
        }
    }

    #[test]
    fn what_is_no_key_stays() {
        for text in [
            "invalid_request_error.conversation_already_has_active_response",
            "Your session hit the maximum duration of 60 minutes.",
            "session.audio.input.turn_detection.create_response",
            "Audio content of 6350ms is already shorter than 8160ms",
            "One moment... please, risk-free",
            "item_000000000000000000003",
            "",
        ] {
            assert_eq!(secrets(text), text);
        }
        assert_eq!(name("unknown\n_parameter"), "unknown_parameter");
        assert_eq!(name(&"x".repeat(500)).len(), NAME_MAX);
    }
}
