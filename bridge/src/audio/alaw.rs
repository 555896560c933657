//! G.711 A-law by arithmetic, without branches, so that whole frames vectorise.
//!
//! Exact to the ITU's reference (G.191): a 12-bit magnitude, negative samples by one's complement. Above the lowest
//! segment the code of a magnitude is its floating-point form, as in mu-law; in the lowest it is the magnitude.

/// Every other bit is inverted on the line, so that silence is not a row of equal bits.
const EVEN_BITS: u8 = 0x55;
/// Magnitudes of the lowest segment, which is as fine as the second.
const LINEAR: i16 = 16;
/// Exponent of the lowest segment if it were one like the others (2^3), shifted to where the code expects it.
const LOWEST: i16 = (127 + 3) << 4;

/// One linear 16-bit sample to its code. All but the floating point in 16 bits: twice as many fit into a register.
#[inline]
pub fn encode(sample: i16) -> u8 {
    let negative = sample >> 15;
    let magnitude = (sample ^ negative) >> 4;
    let bits = (i32::from(magnitude) as f32).to_bits();
    let code = if magnitude < LINEAR { magnitude } else { (bits >> 19) as i16 - LOWEST };
    (code | (!negative & 0x80)) as u8 ^ EVEN_BITS
}

/// One code to its linear 16-bit sample.
#[inline]
pub const fn decode(code: u8) -> i16 {
    let code = (code ^ EVEN_BITS) as i32;
    let (segment, step) = ((code >> 4) & 7, code & 0x0F);
    let magnitude = if segment == 0 { (step << 4) + 8 } else { ((step << 4) + 0x108) << (segment - 1) };
    (if code & 0x80 == 0 { -magnitude } else { magnitude }) as i16
}

/// [`decode`] of every code. Shifts by a different amount for each sample do not vectorise; a look-up is quicker.
static SAMPLES: [i16; 256] = {
    let mut samples = [0; 256];
    let mut code = 0;
    while code < samples.len() {
        samples[code] = decode(code as u8);
        code += 1;
    }
    samples
};

/// Encodes a slice into the beginning of `codes`, as far as both reach.
pub fn encode_slice(samples: &[i16], codes: &mut [u8]) {
    codes.iter_mut().zip(samples).for_each(|(code, &sample)| *code = encode(sample));
}

/// Decodes a slice into the beginning of `samples`, as far as both reach.
pub fn decode_slice(codes: &[u8], samples: &mut [i16]) {
    samples.iter_mut().zip(codes).for_each(|(sample, &code)| *sample = SAMPLES[usize::from(code)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32 with the polynomial of zlib.
    fn crc32(bytes: impl IntoIterator<Item = u8>) -> u32 {
        !bytes.into_iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
        })
    }

    #[test]
    fn all_samples_and_all_codes_are_the_standards() {
        let codes: Vec<u8> = (i16::MIN..=i16::MAX).map(encode).collect();
        assert_eq!(crc32(codes.iter().copied()), 0x9133_796E);
        assert_eq!(crc32(codes.iter().flat_map(|&c| decode(c).to_le_bytes())), 0xABCE_AA69);
    }

    #[test]
    fn whole_slices_are_coded_like_single_samples() {
        let samples: Vec<i16> = (i16::MIN..=i16::MAX).collect();
        let mut codes = vec![0; samples.len()];
        encode_slice(&samples, &mut codes);
        assert!(codes.iter().zip(&samples).all(|(&code, &sample)| code == encode(sample)));
        let mut decoded = vec![0; codes.len()];
        decode_slice(&codes, &mut decoded);
        assert!(decoded.iter().zip(&codes).all(|(&sample, &code)| sample == decode(code)));
    }

    #[test]
    fn every_code_survives_the_round_trip() {
        for code in 0..=u8::MAX {
            assert_eq!(encode(decode(code)), code);
        }
    }
}
