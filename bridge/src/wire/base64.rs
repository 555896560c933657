//! Audio as text: the base64 that both wires carry it in.
//!
//! One engine for both legs, because a frame of 24 kHz audio spends more time here than in its JSON: where the
//! processor has the instructions the library uses them, found once when the first frame comes. The text is the
//! same with and without.

use base64::Engine as _;
use base64::engine::general_purpose::PAD;
use std::sync::LazyLock;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static ENGINE: LazyLock<base64::engine::simd::Simd> =
    LazyLock::new(|| base64::engine::simd::Simd::standard(PAD));
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
static ENGINE: LazyLock<base64::engine::GeneralPurpose> =
    LazyLock::new(|| base64::engine::GeneralPurpose::new(&base64::alphabet::STANDARD, PAD));

/// The text is not base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotBase64;

/// The bytes a text stands for.
///
/// # Errors
/// [`NotBase64`] when it stands for none.
pub fn read(text: &str) -> Result<Vec<u8>, NotBase64> {
    ENGINE.decode(text).map_err(|_| NotBase64)
}

/// Puts the text that stands for `bytes` behind what `out` holds.
///
/// # Panics
/// Never: base64 is as long as it is and has no letters but ASCII's.
pub fn write(bytes: &[u8], out: &mut String) {
    // Straight into its place; the library's own way goes through a kilobyte on the stack.
    let mut text = std::mem::take(out).into_bytes();
    let begins = text.len();
    text.resize(begins + text_len(bytes.len()), 0);
    ENGINE.encode_slice(bytes, &mut text[begins..]).expect("there is room for the text");
    *out = String::from_utf8(text).expect("base64 is text");
}

/// How long the text for `bytes` bytes is.
pub const fn text_len(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_way_of_coding_gives_the_same_text(bytes: Vec<u8>) {
            let mut text = "before".to_owned();
            write(&bytes, &mut text);
            prop_assert_eq!(&text[6..], &STANDARD.encode(&bytes));
            prop_assert_eq!(text.len() - 6, text_len(bytes.len()));
            prop_assert_eq!(read(&text[6..]), Ok(bytes));
        }

        #[test]
        fn what_one_way_refuses_all_refuse(text in "[A-Za-z0-9+/=]{0,200}[ -~]?[A-Za-z0-9+/=]{0,90}") {
            prop_assert_eq!(read(&text).ok(), STANDARD.decode(&text).ok());
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in ["a", "a secret", "/38", "/38=\n", "/3\u{e9}="] {
            assert_eq!(read(text), Err(NotBase64), "{text:?}");
        }
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(read("/38="), Ok(vec![0xFF, 0x7F]));
    }
}
