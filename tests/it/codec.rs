//! Two independent G.711s and two independent resamplers agree, and both match the standard.

use bridge::audio::dtmf::Detector;
use bridge::audio::{Companding, Downlink, FRAME_BYTES, Format, Uplink, alaw, ulaw};
use golden::codec;
use mocks::resample::{best_lag, down, up};

#[test]
fn both_codecs_are_the_standards_on_every_input() {
    let ours: Vec<u8> = codec::sweep().map(ulaw::encode).collect();
    let theirs: Vec<u8> = codec::sweep().map(mocks::ulaw::encode).collect();
    assert_eq!(ours, theirs);
    assert_eq!(codec::crc32(ours), codec::ULAW_CODES);
    for code in 0..=u8::MAX {
        assert_eq!(ulaw::decode(code), mocks::ulaw::decode(code), "code {code:#04x}");
    }
    let decoded = theirs.into_iter().map(ulaw::decode).flat_map(i16::to_le_bytes);
    assert_eq!(codec::crc32(decoded), codec::ULAW_DECODED);
}

#[test]
fn both_a_law_codecs_are_the_standards_on_every_input() {
    let ours: Vec<u8> = codec::sweep().map(alaw::encode).collect();
    let theirs: Vec<u8> = codec::sweep().map(mocks::alaw::encode).collect();
    assert_eq!(ours, theirs);
    assert_eq!(codec::crc32(ours), codec::ALAW_CODES);
    for code in 0..=u8::MAX {
        assert_eq!(alaw::decode(code), mocks::alaw::decode(code), "code {code:#04x}");
    }
    let decoded = theirs.into_iter().map(alaw::decode).flat_map(i16::to_le_bytes);
    assert_eq!(codec::crc32(decoded), codec::ALAW_DECODED);
}

fn bytes(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|s| s.to_le_bytes()).collect()
}

fn samples(bytes: &[u8]) -> Vec<i16> {
    bytes.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
}

#[test]
fn uplink_fits_the_witness_with_a_constant_delay() {
    let codes = mocks::ulaw::encode_all(&golden::caller_voice()[..40_000]);
    let mut out = Vec::new();
    Uplink::new(Companding::Ulaw, Format::Pcm24k).push(&codes, &mut out);
    let fit = best_lag(&up(&mocks::ulaw::decode_all(&codes))[3_000..110_000], &samples(&out)[3_000..], 60);
    assert_eq!(fit.lag, 45, "1.875 ms at 24 kHz");
    assert!(fit.snr_db >= 40.0 && (fit.gain - 1.0).abs() < 0.005, "{fit:?}");
}

#[test]
fn downlink_fits_the_witness_without_delay_to_the_limit_of_the_code() {
    let voice = &golden::agent_voice()[..120_000];
    let mut out = Vec::new();
    let mut link = Downlink::new(Format::Pcm24k, Companding::Ulaw);
    link.push(&bytes(voice), &mut out);
    link.flush(&mut out);
    assert_eq!(out.len(), 40_000);
    let reference = down(voice);
    let fit = best_lag(&reference[500..39_000], &mocks::ulaw::decode_all(&out)[500..], 20);
    assert_eq!(fit.lag, 0);
    // mu-law alone reaches about 38 dB on speech-like signals.
    assert!(fit.snr_db >= 36.0 && (fit.gain - 1.0).abs() < 0.005, "{fit:?}");
    let perfect = mocks::ulaw::encode_all(&reference);
    let limit = best_lag(&reference[500..39_000], &mocks::ulaw::decode_all(&perfect)[500..], 0);
    assert!(fit.snr_db >= limit.snr_db - 1.0, "{fit:?} where the code alone gives {limit:?}");
}

#[test]
fn pass_through_is_bit_exact_both_ways() {
    let codes: Vec<u8> = (0..=u8::MAX).cycle().take(3_333).collect();
    let (mut up, mut back) = (Vec::new(), Vec::new());
    Uplink::new(Companding::Ulaw, Format::Pcmu).push(&codes, &mut up);
    let mut link = Downlink::new(Format::Pcmu, Companding::Ulaw);
    link.push(&up, &mut back);
    link.flush(&mut back);
    assert_eq!(codes, back);
}

#[test]
fn no_voice_is_taken_for_a_pressed_key() {
    for voice in [golden::caller_voice().to_vec(), down(golden::agent_voice())] {
        for gain in [1.0, 0.5, 0.1] {
            let mut detector = Detector::default();
            for (n, frame) in voice.as_chunks::<FRAME_BYTES>().0.iter().enumerate() {
                let heard = frame.map(|x| ulaw::decode(ulaw::encode((f64::from(x) * gain) as i16)));
                assert_eq!(detector.hear(&heard), None, "at {} ms, {gain} times as loud", n * 20);
            }
        }
    }
}
