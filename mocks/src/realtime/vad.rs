//! The model's voice activity detection: energy in 20 ms windows, on the clock of the appended audio.
//!
//! Nothing here knows what time it is. If audio stops coming in the middle of a word, the word never ends,
//! exactly as with the real service.

use super::script::{AudioFormat, Vad as Knobs};
use super::voice;

/// Length of a window, ms.
const WINDOW_MS: u64 = 20;

/// A decision of the detector, in milliseconds of appended audio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Speech began; the prefix padding is taken off already.
    Started {
        /// Start of the turn's audio.
        audio_start_ms: u64,
    },
    /// Speech ended; the silence that proved it is included.
    Stopped {
        /// End of the turn's audio.
        audio_end_ms: u64,
    },
}

#[derive(Clone, Copy, Debug)]
enum State {
    Quiet { loud_ms: u64 },
    Speaking { quiet_ms: u64 },
}

/// The detector of one session.
#[derive(Debug)]
pub(super) struct Detector {
    /// Mean square of a window that counts as speech.
    threshold: f64,
    onset_ms: u64,
    clock_ms: u64,
    state: State,
    /// Whatever is heard before this counts as speech.
    forced_until_ms: u64,
    /// Audio before this belongs to an earlier turn.
    floor_ms: u64,
    carry: Vec<u8>,
    window: Vec<i16>,
}

impl Detector {
    pub(super) fn new(knobs: &Knobs) -> Self {
        let amplitude = 32_768.0 * 10_f64.powf(knobs.threshold_dbfs / 20.0);
        Self {
            threshold: amplitude * amplitude,
            onset_ms: knobs.onset_ms,
            clock_ms: 0,
            state: State::Quiet { loud_ms: 0 },
            forced_until_ms: 0,
            floor_ms: 0,
            carry: Vec::new(),
            window: Vec::new(),
        }
    }

    /// Forgets a turn in progress; the clock goes on.
    pub(super) fn reset(&mut self) {
        self.state = State::Quiet { loud_ms: 0 };
        self.floor_ms = self.clock_ms;
    }

    /// Drops a window that is not whole yet: the format of what follows is another one.
    pub(super) fn change_format(&mut self) {
        self.carry.clear();
        self.reset();
    }

    /// Milliseconds of audio heard so far.
    pub(super) const fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// Takes the next `ms` of audio for speech.
    pub(super) const fn force(&mut self, ms: u64) {
        self.forced_until_ms = self.clock_ms + ms;
    }

    /// Advances the clock by `bytes` of audio and tells what they proved. `limits` are the prefix and the
    /// silence of the session, ms; they are `None` when it has no turn detection: then only the clock moves.
    pub(super) fn listen(
        &mut self,
        bytes: &[u8],
        format: AudioFormat,
        limits: Option<(u64, u64)>,
    ) -> Vec<Heard> {
        let size = format.bytes_per_ms() * WINDOW_MS as usize;
        let mut heard = Vec::new();
        if self.carry.is_empty() && bytes.len().is_multiple_of(size) {
            for window in bytes.chunks_exact(size) {
                heard.extend(self.window(window, format, limits));
            }
            return heard;
        }
        self.carry.extend_from_slice(bytes);
        let carry = std::mem::take(&mut self.carry);
        let windows = carry.chunks_exact(size);
        let rest = windows.remainder().to_vec();
        for window in windows {
            heard.extend(self.window(window, format, limits));
        }
        self.carry = rest;
        heard
    }

    fn window(&mut self, bytes: &[u8], format: AudioFormat, limits: Option<(u64, u64)>) -> Option<Heard> {
        let began_ms = self.clock_ms;
        self.clock_ms += WINDOW_MS;
        let (prefix_ms, silence_ms) = limits?;
        let loud = began_ms < self.forced_until_ms || self.is_loud(bytes, format);
        match (self.state, loud) {
            (State::Quiet { loud_ms }, true) if loud_ms + WINDOW_MS >= self.onset_ms => {
                self.state = State::Speaking { quiet_ms: 0 };
                let onset = self.clock_ms - (loud_ms + WINDOW_MS);
                Some(Heard::Started { audio_start_ms: onset.saturating_sub(prefix_ms).max(self.floor_ms) })
            }
            (State::Quiet { loud_ms }, true) => {
                self.state = State::Quiet { loud_ms: loud_ms + WINDOW_MS };
                None
            }
            (State::Quiet { .. }, false) => {
                self.state = State::Quiet { loud_ms: 0 };
                None
            }
            (State::Speaking { .. }, true) => {
                self.state = State::Speaking { quiet_ms: 0 };
                None
            }
            (State::Speaking { quiet_ms }, false) if quiet_ms + WINDOW_MS >= silence_ms => {
                self.reset();
                Some(Heard::Stopped { audio_end_ms: self.clock_ms })
            }
            (State::Speaking { quiet_ms }, false) => {
                self.state = State::Speaking { quiet_ms: quiet_ms + WINDOW_MS };
                None
            }
        }
    }

    fn is_loud(&mut self, bytes: &[u8], format: AudioFormat) -> bool {
        self.window.clear();
        voice::decode(format, bytes, &mut self.window);
        let energy: i64 = self.window.iter().map(|&sample| i64::from(sample) * i64::from(sample)).sum();
        energy as f64 >= self.threshold * self.window.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(ms: usize) -> Vec<u8> {
        // 0x90 and 0x10 are a loud positive and a loud negative mu-law code.
        (0..ms * 8).map(|i| if i / 8 % 2 == 0 { 0x90 } else { 0x10 }).collect()
    }

    fn silence(ms: usize) -> Vec<u8> {
        vec![0xFF; ms * 8]
    }

    fn listen(detector: &mut Detector, bytes: &[u8]) -> Vec<Heard> {
        detector.listen(bytes, AudioFormat::Pcmu, Some((300, 500)))
    }

    #[test]
    fn a_turn_begins_before_its_onset_and_ends_after_its_silence() {
        let mut detector = Detector::new(&Knobs::default());
        assert_eq!(listen(&mut detector, &silence(1_000)), []);
        assert_eq!(listen(&mut detector, &tone(800)), [Heard::Started { audio_start_ms: 700 }]);
        assert_eq!(listen(&mut detector, &silence(480)), []);
        assert_eq!(listen(&mut detector, &silence(20)), [Heard::Stopped { audio_end_ms: 2_300 }]);
    }

    #[test]
    fn bursts_and_odd_slices_give_the_same_numbers() {
        let audio = [silence(1_000), tone(800), silence(700)].concat();
        let mut whole = Detector::new(&Knobs::default());
        let mut sliced = Detector::new(&Knobs::default());
        let expected = listen(&mut whole, &audio);
        let got: Vec<_> = audio.chunks(37).flat_map(|slice| listen(&mut sliced, slice)).collect();
        assert_eq!(got, expected);
        assert_eq!(got.len(), 2);
    }

    #[test]
    fn no_audio_no_end() {
        let mut detector = Detector::new(&Knobs::default());
        listen(&mut detector, &tone(800));
        assert_eq!(listen(&mut detector, &[]), [], "only appended silence can end a turn");
    }

    #[test]
    fn a_click_is_not_speech() {
        let mut detector = Detector::new(&Knobs::default());
        assert_eq!(listen(&mut detector, &[tone(20), silence(1_000)].concat()), []);
    }

    #[test]
    fn the_prefix_never_reaches_into_the_turn_before() {
        let mut detector = Detector::new(&Knobs::default());
        listen(&mut detector, &[tone(400), silence(500)].concat());
        assert_eq!(listen(&mut detector, &tone(100)), [Heard::Started { audio_start_ms: 900 }]);
    }

    #[test]
    fn forced_speech_needs_no_sound() {
        let mut detector = Detector::new(&Knobs::default());
        detector.force(200);
        let heard = listen(&mut detector, &silence(1_000));
        assert_eq!(heard, [Heard::Started { audio_start_ms: 0 }, Heard::Stopped { audio_end_ms: 700 }]);
    }

    #[test]
    fn without_turn_detection_only_the_clock_moves() {
        let mut detector = Detector::new(&Knobs::default());
        assert_eq!(detector.listen(&tone(400), AudioFormat::Pcmu, None), []);
        assert_eq!(detector.clock_ms, 400);
    }
}
