//! G.711 A-law by table: deliberately not the bridge's way.
//!
//! The table is laid out from the standard's description: eight segments of sixteen steps on a 12-bit magnitude, the
//! first two equally fine, each further one twice as coarse as the one before. A negative sample's magnitude is its
//! one's complement, as in the ITU's own reference, and every other bit of a code is inverted on the line.

use std::sync::LazyLock;

/// The code of silence: the smallest positive level, for A-law has no zero.
pub const SILENCE: u8 = 0xD5;

/// The bits inverted on the line.
const INVERTED: u8 = 0x55;

struct Tables {
    /// Segment and step for each 12-bit magnitude.
    encode: [u8; 2_048],
    decode: [i16; 256],
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut encode = [0; 2_048];
    let mut decode = [0; 256];
    let mut from = 0;
    for code in 0..128u8 {
        let step = 1usize << (code / 16).saturating_sub(1);
        encode[from..from + step].fill(code);
        // The middle of the step in 16-bit units; a unit of magnitude is sixteen of them.
        let level = (from * 16 + step * 8) as i16;
        decode[usize::from((code | 0x80) ^ INVERTED)] = level;
        decode[usize::from(code ^ INVERTED)] = -level;
        from += step;
    }
    Tables { encode, decode }
});

/// One linear 16-bit sample to its code.
pub fn encode(sample: i16) -> u8 {
    let (sign, magnitude) = if sample < 0 { (0, !sample) } else { (0x80, sample) };
    (TABLES.encode[usize::from(magnitude.unsigned_abs()) / 16] | sign) ^ INVERTED
}

/// One code to its linear 16-bit sample.
pub fn decode(code: u8) -> i16 {
    TABLES.decode[usize::from(code)]
}

/// A whole slice of samples.
pub fn encode_all(samples: &[i16]) -> Vec<u8> {
    samples.iter().map(|&sample| encode(sample)).collect()
}

/// A whole slice of codes.
pub fn decode_all(codes: &[u8]) -> Vec<i16> {
    let table = &TABLES.decode;
    codes.iter().map(|&code| table[usize::from(code)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use golden::codec;

    #[test]
    fn all_samples_and_all_codes_are_the_standards() {
        let codes: Vec<u8> = codec::sweep().map(encode).collect();
        assert_eq!(codec::crc32(codes.iter().copied()), codec::ALAW_CODES);
        let decoded = decode_all(&codes);
        assert_eq!(codec::crc32(decoded.into_iter().flat_map(i16::to_le_bytes)), codec::ALAW_DECODED);
    }

    #[test]
    fn silence_is_the_smallest_positive_level() {
        assert_eq!((encode(0), decode(SILENCE)), (SILENCE, 8));
        assert_eq!(decode(0x55), -8);
    }

    #[test]
    fn every_code_survives_a_round_trip() {
        let codes: Vec<u8> = (0..=u8::MAX).collect();
        assert_eq!(encode_all(&decode_all(&codes)), codes);
    }
}
