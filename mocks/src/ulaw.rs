//! G.711 mu-law by table: deliberately not the bridge's way.
//!
//! The table is laid out from the standard's description: eight segments of sixteen steps, each segment twice as
//! coarse as the one before, on a 14-bit magnitude. A negative sample's magnitude is its one's complement, as in
//! the ITU's own reference.

use std::sync::LazyLock;

/// What the magnitude is shifted by before it is cut into segments, in 14-bit units.
const BIAS: usize = 33;
/// Largest biased magnitude.
const CLIP: usize = 8_191;

struct Tables {
    /// Code without sign, complemented, for each biased 14-bit magnitude.
    encode: Vec<u8>,
    decode: [i16; 256],
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut encode = vec![0x7F; CLIP + 1];
    let mut decode = [0; 256];
    for segment in 0..8usize {
        let step = 2 << segment;
        for index in 0..16usize {
            let code = (segment * 16 + index) as u8;
            let from = (32 << segment) + index * step;
            encode[from..from + step].fill(code);
            // The middle of the step, without the bias, back in 16-bit units.
            let level = ((from + step / 2 - BIAS) * 4) as i16;
            decode[usize::from(!code)] = level;
            decode[usize::from(!(code | 0x80))] = -level;
        }
    }
    Tables { encode, decode }
});

/// One linear 16-bit sample to its code.
pub fn encode(sample: i16) -> u8 {
    let (sign, magnitude) = if sample < 0 { (0x80, !sample) } else { (0, sample) };
    let biased = (usize::from(magnitude.unsigned_abs()) / 4 + BIAS).min(CLIP);
    !(TABLES.encode[biased] | sign)
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
        assert_eq!(codec::crc32(codes.iter().copied()), codec::ULAW_CODES);
        let decoded = decode_all(&codes);
        assert_eq!(codec::crc32(decoded.into_iter().flat_map(i16::to_le_bytes)), codec::ULAW_DECODED);
    }

    #[test]
    fn silence_is_all_ones_and_zero_is_full_scale() {
        assert_eq!(encode(0), 0xFF);
        assert_eq!(decode(0x7F), 0);
        assert_eq!(decode(0x00), -32_124);
    }
}
