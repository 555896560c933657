//! What ITU-T G.711 comes to, as check sums over all inputs.
//!
//! The reference is the ITU's software tool library (G.191, module `g711`): magnitude by one's complement for
//! negative samples. The test vectors of that library are exhaustive (all 65,536 16-bit samples in ascending
//! order), so these numbers are a whole conformance test. They are CRC-32 (the polynomial of zlib).

/// All 65,536 samples in ascending order, as little-endian 16-bit words.
pub const SWEEP: u32 = 0xC8BA_7682;
/// The mu-law codes of the sweep, as little-endian 16-bit words.
pub const ULAW_CODES_WORDS: u32 = 0xCD17_0E15;
/// The mu-law codes of the sweep, one byte each.
pub const ULAW_CODES: u32 = 0x6399_D432;
/// The samples decoded from those codes, as little-endian 16-bit words.
pub const ULAW_DECODED: u32 = 0x6364_1C01;
/// The A-law codes of the sweep, as little-endian 16-bit words.
pub const ALAW_CODES_WORDS: u32 = 0x7471_9FE4;
/// The A-law codes of the sweep, one byte each.
pub const ALAW_CODES: u32 = 0x9133_796E;
/// The samples decoded from those codes, as little-endian 16-bit words.
pub const ALAW_DECODED: u32 = 0xABCE_AA69;

/// CRC-32 with the polynomial of zlib.
pub fn crc32(bytes: impl IntoIterator<Item = u8>) -> u32 {
    !bytes.into_iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// All 16-bit samples in ascending order.
pub fn sweep() -> impl Iterator<Item = i16> {
    i16::MIN..=i16::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweep_is_the_one_of_the_standard() {
        assert_eq!(crc32(sweep().flat_map(i16::to_le_bytes)), SWEEP);
    }
}
