//! What ITU-T G.711 comes to for all inputs: every code, every level, and check sums of both.
//!
//! The reference is the ITU's software tool library (G.191, module `g711`): magnitude by one's complement for
//! negative samples. The test vectors of that library are exhaustive (all 65,536 16-bit samples in ascending
//! order), so the check sums alone are a whole conformance test; the vectors beside them tell which sample is
//! wrong. The vectors were computed from the definition and agree with the check sums. These are CRC-32 (the
//! polynomial of zlib).

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

static ULAW: &[u8; 65_536] = include_bytes!("../codec/ulaw.codes.bin");
static ALAW: &[u8; 65_536] = include_bytes!("../codec/alaw.codes.bin");
static ULAW_LEVELS: [i16; 256] = words(include_bytes!("../codec/ulaw.levels.bin"));
static ALAW_LEVELS: [i16; 256] = words(include_bytes!("../codec/alaw.levels.bin"));

/// The mu-law code of each sample of the [`sweep`].
pub fn ulaw_codes() -> &'static [u8; 65_536] {
    ULAW
}

/// The A-law code of each sample of the [`sweep`].
pub fn alaw_codes() -> &'static [u8; 65_536] {
    ALAW
}

/// The 16-bit sample of each mu-law code, in the order of the codes.
pub fn ulaw_levels() -> &'static [i16; 256] {
    &ULAW_LEVELS
}

/// The 16-bit sample of each A-law code, in the order of the codes.
pub fn alaw_levels() -> &'static [i16; 256] {
    &ALAW_LEVELS
}

/// The mu-law code of a sample, looked up in the vector.
pub fn ulaw(sample: i16) -> u8 {
    ULAW[place(sample)]
}

/// The A-law code of a sample, looked up in the vector.
pub fn alaw(sample: i16) -> u8 {
    ALAW[place(sample)]
}

/// Where a sample stands in the sweep.
fn place(sample: i16) -> usize {
    usize::from(sample.cast_unsigned() ^ 0x8000)
}

const fn words(bytes: &[u8; 512]) -> [i16; 256] {
    let mut words = [0; 256];
    let mut n = 0;
    while n < 256 {
        words[n] = i16::from_le_bytes([bytes[2 * n], bytes[2 * n + 1]]);
        n += 1;
    }
    words
}

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

    #[test]
    fn the_vectors_have_the_check_sums_of_the_standard() {
        for (codes, levels, of_codes, of_words, of_decoded) in [
            (ulaw_codes(), ulaw_levels(), ULAW_CODES, ULAW_CODES_WORDS, ULAW_DECODED),
            (alaw_codes(), alaw_levels(), ALAW_CODES, ALAW_CODES_WORDS, ALAW_DECODED),
        ] {
            assert_eq!(crc32(codes.iter().copied()), of_codes);
            assert_eq!(crc32(codes.iter().flat_map(|&code| u16::from(code).to_le_bytes())), of_words);
            let decoded = codes.iter().flat_map(|&code| levels[usize::from(code)].to_le_bytes());
            assert_eq!(crc32(decoded), of_decoded);
        }
    }

    #[test]
    fn a_sample_is_looked_up_where_the_sweep_has_it() {
        assert!(sweep().map(ulaw).eq(ulaw_codes().iter().copied()));
        assert!(sweep().map(alaw).eq(alaw_codes().iter().copied()));
        assert_eq!((ulaw(0), ulaw(-1), alaw(0), ulaw(i16::MIN)), (0xFF, 0x7F, 0xD5, 0x00));
    }
}
