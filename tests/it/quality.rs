//! The audio path meets its goals, and the document that shows them shows what they are. Its bytes are the recorded
//! ones in every build, and nothing that is wrong with it leaves them as they are.

use super::tidy::root;
use bridge::audio::{Companding, Downlink, FRAME_BYTES, Format, Uplink};
use scenarios::audio::quality::{self, DIGESTS, Material};
use std::fs;

#[test]
fn every_goal_of_the_audio_path_is_met_and_documented() {
    let goals = quality::measure();
    let table = quality::table(&goals);
    assert!(quality::all_met(&goals), "\n{table}");
    let document = fs::read_to_string(root().join("docs/dev/audio.md")).expect("docs/dev/audio.md");
    assert!(
        document.contains(&table),
        "docs/dev/audio.md shows other figures than `cargo scn audio check`:\n{table}"
    );
}

/// The digest of `way` for `companding`, as recorded.
fn recorded(way: &str, companding: Companding) -> &'static str {
    DIGESTS.iter().find(|(w, l, _)| *w == way && *l == companding).expect("every way is recorded").2
}

/// Bytes of a frame at 24 kHz.
const WIDE_BYTES: usize = 6 * FRAME_BYTES;
const LAWS: [Companding; 2] = [Companding::Ulaw, Companding::Alaw];

#[test]
fn the_audio_path_makes_the_recorded_bytes_in_this_build() {
    let recorded = DIGESTS.map(|(_, _, digest)| digest.to_owned());
    assert_eq!(quality::digests(), recorded, "audio changed; if that is right, DIGESTS must say so");
}

#[test]
fn a_filter_that_forgets_between_frames_does_not_make_the_recorded_bytes() {
    for companding in LAWS {
        let material = Material::new(companding);
        let mut up = Vec::new();
        for frame in material.codes.chunks(FRAME_BYTES) {
            Uplink::new(companding, Format::Pcm24k).push(frame, &mut up);
        }
        assert_eq!(up.len(), material.up(companding).len());
        assert_ne!(golden::digest(&up), recorded("up", companding));
        let mut down = Vec::new();
        let mut link = Downlink::new(Format::Pcm24k, companding);
        for frame in material.wide.chunks(WIDE_BYTES) {
            link.push(frame, &mut down);
            link.flush(&mut down);
        }
        assert_eq!(down.len(), material.down(companding).len());
        assert_ne!(golden::digest(&down), recorded("down", companding));
    }
}

#[test]
fn a_filter_that_forgets_once_does_not_make_the_recorded_bytes() {
    let (companding, material) = (Companding::Ulaw, Material::new(Companding::Ulaw));
    let (mut link, mut up) = (Uplink::new(companding, Format::Pcm24k), Vec::new());
    for (n, frame) in material.codes.chunks(FRAME_BYTES).enumerate() {
        if n == 300 {
            link = Uplink::new(companding, Format::Pcm24k);
        }
        link.push(frame, &mut up);
    }
    assert_ne!(golden::digest(&up), recorded("up", companding));
}

#[test]
fn bytes_in_the_wrong_order_are_not_the_recorded_ones() {
    let swap = |bytes: &mut Vec<u8>| bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.reverse());
    for companding in LAWS {
        let mut material = Material::new(companding);
        let mut up = material.up(companding);
        swap(&mut up);
        assert_ne!(golden::digest(&up), recorded("up", companding));
        swap(&mut material.wide);
        assert_ne!(golden::digest(&material.down(companding)), recorded("down", companding));
    }
}

#[test]
fn audio_that_is_a_frame_late_is_not_the_recorded_one() {
    for companding in LAWS {
        let mut material = Material::new(companding);
        material.codes.rotate_right(FRAME_BYTES);
        material.codes[..FRAME_BYTES].fill(companding.silence());
        assert_ne!(golden::digest(&material.up(companding)), recorded("up", companding));
        material.wide.rotate_right(WIDE_BYTES);
        material.wide[..WIDE_BYTES].fill(0);
        assert_ne!(golden::digest(&material.down(companding)), recorded("down", companding));
    }
}
