//! Patterns with `*`, as commands and tolerances write them.

/// Whether `text` is like `pattern`, in which `*` stands for anything.
pub(crate) fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_the_whole_text() {
        assert!(fits("*", "a") && fits("a.*", "a.b") && fits("*.b", "a.b") && fits("a*c", "abc"));
        assert!(!fits("a", "ab") && !fits("a.*", "b.a.c") && !fits("a*d", "abc"));
    }
}
