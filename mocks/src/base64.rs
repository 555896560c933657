//! Audio as text. Half of what a mock does is this, so that it uses the processor's vector instructions where there are
//! some; the text is the same with and without.

use base64::engine::general_purpose::STANDARD;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use base64::engine::{general_purpose::PAD, simd::Simd};
use base64::{DecodeError, Engine as _};
use std::sync::LazyLock;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static ENGINE: LazyLock<Simd> = LazyLock::new(|| Simd::standard(PAD));
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
static ENGINE: LazyLock<base64::engine::GeneralPurpose> = LazyLock::new(|| STANDARD);

/// Puts the text of these bytes behind what `out` holds.
pub(crate) fn encode(bytes: &[u8], out: &mut String) {
    ENGINE.encode_string(bytes, out);
}

/// The text of these bytes.
pub(crate) fn text(bytes: &[u8]) -> String {
    ENGINE.encode(bytes)
}

/// The bytes of a text.
///
/// # Errors
/// What is wrong with it, and where.
pub(crate) fn decode(text: &str) -> Result<Vec<u8>, DecodeError> {
    // The vector instructions find that something is wrong, the plain engine names the place.
    ENGINE.decode(text).or_else(|_| STANDARD.decode(text))
}
