//! Text of strangers on its way to a terminal, a log or a file that is shown on one.

use std::borrow::Cow;

/// What stands for a character that is not shown as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Escape {
    /// `\u{9b}`, as in Rust.
    Text,
    /// The same, but escape sequences stay: the line is coloured for a terminal.
    Coloured,
    /// `\u009b`, which a reader of JSON takes for the character itself.
    Json,
}

/// A character that moves a terminal's cursor, colours it, or turns the order of what stands around it.
pub(crate) const fn is_unsafe(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}'
        | '\u{7f}'..='\u{9f}'
        | '\u{61c}'
        | '\u{200e}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}'
    )
}

/// A line as it may be written: what is unsafe in it is escaped, but for the line break at its end.
pub(crate) fn escape(line: &[u8], how: Escape) -> Cow<'_, [u8]> {
    let (body, end) = line.strip_suffix(b"\n").map_or((line, &b""[..]), |body| (body, &b"\n"[..]));
    // Escape sequences and everything beyond ASCII begin with one of these.
    if body.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        return Cow::Borrowed(line);
    }
    let text = String::from_utf8_lossy(body);
    let keeps = |c: char| !is_unsafe(c) || (c == '\u{1b}' && how == Escape::Coloured);
    if matches!(text, Cow::Borrowed(_)) && text.chars().all(keeps) {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len() + 16);
    for c in text.chars() {
        match how {
            _ if keeps(c) => out.push(c),
            // All of them are in the first plane.
            Escape::Json => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            Escape::Text | Escape::Coloured => out.extend(c.escape_unicode()),
        }
    }
    let mut out = out.into_bytes();
    out.extend_from_slice(end);
    Cow::Owned(out)
}

/// Text of strangers as it may be shown on a terminal, in one line.
#[cfg(feature = "store")]
pub(crate) fn shown(text: &str) -> String {
    let text: String = text.chars().map(|c| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c }).collect();
    String::from_utf8_lossy(&escape(text.as_bytes(), Escape::Text)).into_owned()
}

/// JSON as it may be shown on a terminal: it means the same.
#[cfg(feature = "store")]
pub(crate) fn shown_json(json: &str) -> String {
    // Line breaks outside of strings are the printer's own.
    let lines = json.split('\n').map(|line| escape(line.as_bytes(), Escape::Json));
    let lines: Vec<_> = lines.map(|line| String::from_utf8_lossy(&line).into_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{9b}2Jb\u{202e}c\u{1b}[31md\u{2066}e\u{85}f\u{200f}g\u{7f}h\u{2028}i";

    #[test]
    fn what_moves_the_cursor_or_turns_the_order_is_escaped_and_ordinary_words_are_not() {
        let text = shown(HOSTILE);
        assert!(!text.contains(is_unsafe), "{text:?}");
        assert!(text.starts_with("a\\u{9b}2Jb\\u{202e}c\\u{1b}[31md"), "{text}");
        assert_eq!(shown("one\ntwo\tthree"), "one two three");
        for words in ["Grüße, 世界", "شكرا", "נתראה", "👨‍👩‍👧", "می‌خواهم", ""]
        {
            assert_eq!(shown(words), words);
        }
    }

    #[test]
    fn json_means_the_same_afterwards() {
        let json = serde_json::to_string_pretty(&serde_json::json!({ "text": HOSTILE, "n": [1] })).unwrap();
        let safe = shown_json(&json);
        assert!(!safe.contains(|c| is_unsafe(c) && c != '\n'), "{safe:?}");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&safe), read(&json));
    }

    #[test]
    fn a_line_keeps_its_end_and_its_own_colours() {
        assert_eq!(*escape(b"a\nb\x1b[0m\n", Escape::Text), *b"a\\u{a}b\\u{1b}[0m\n");
        assert_eq!(*escape(b"a\nb\x1b[0m\n", Escape::Coloured), *b"a\\u{a}b\x1b[0m\n");
        assert_eq!(*escape(b"plain\n", Escape::Text), *b"plain\n");
        assert_eq!(*escape(b"\xff\x9b\n", Escape::Text), *"\u{fffd}\u{fffd}\n".as_bytes());
    }
}
