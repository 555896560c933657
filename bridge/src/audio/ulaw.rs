//! G.711 mu-law by arithmetic, without branches, so that whole frames vectorise.
//!
//! Exact to the ITU's reference (G.191): a 14-bit magnitude, negative samples by one's complement. The code of a
//! magnitude is its floating-point form: the exponent is the segment, the top four bits of the mantissa the step.

/// Added to the 14-bit magnitude, so that every magnitude has one of eight exponents.
const BIAS: i16 = 33;
/// Largest biased magnitude.
const CLIP: i16 = 8_191;
/// Exponent of the lowest segment (2^5), shifted to where the code expects it.
const LOWEST: i16 = (127 + 5) << 4;

/// One linear 16-bit sample to its code. All but the floating point in 16 bits: twice as many fit into a register.
#[inline]
pub fn encode(sample: i16) -> u8 {
    let negative = sample >> 15;
    let magnitude = ((sample ^ negative) >> 2).min(CLIP - BIAS) + BIAS;
    let bits = (i32::from(magnitude) as f32).to_bits();
    let code = ((bits >> 19) as i16 - LOWEST) & 0x7F;
    !(code | (negative & 0x80)) as u8
}

/// One code to its linear 16-bit sample.
#[inline]
pub const fn decode(code: u8) -> i16 {
    let code = !code as i32;
    let magnitude = (((code & 0x0F) * 2 + BIAS as i32) << ((code >> 4) & 7)) - BIAS as i32;
    let sign = -(code >> 7);
    (((magnitude << 2) ^ sign) - sign) as i16
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
        assert_eq!(crc32(codes.iter().copied()), 0x6399_D432);
        assert_eq!(crc32(codes.iter().flat_map(|&c| decode(c).to_le_bytes())), 0x6364_1C01);
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
    fn every_code_but_negative_zero_survives_the_round_trip() {
        for code in 0..=u8::MAX {
            let again = encode(decode(code));
            assert_eq!(again, if code == 0x7F { 0xFF } else { code });
        }
    }
}
