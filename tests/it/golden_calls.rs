//! Chosen calls sound as they sounded, sample for sample; and when one does not, the numbers say in which way.
//!
//! The recordings are below `golden/calls`. `cargo scn audio check` shows what changed, and `cargo scn audio accept` writes them.

use scenarios::audio::diff::Difference;
use scenarios::audio::diff_svg;
use scenarios::audio::golden_audio::Played;
use scenarios::audio::golden_audio::{self, Recording, Standing};
use std::fmt::Write as _;
use std::fs;

fn played() -> Vec<(String, Played)> {
    let chosen = golden_audio::chosen(None).expect("every recorded call is in the catalogue");
    chosen
        .into_iter()
        .map(|(chosen, scenario)| {
            let played =
                golden_audio::play(chosen, &scenario).unwrap_or_else(|e| panic!("{}: {e}", scenario.name));
            (scenario.name, played)
        })
        .collect()
}

#[test]
fn recorded_calls_sound_as_they_sounded() {
    let mut unlike = String::new();
    for (_, played) in played() {
        for now in &played.recordings {
            match now.standing(&played.drains).expect("a readable recording") {
                Standing::Same => {}
                Standing::New => writeln!(unlike, "{} is not there", now.file()).unwrap(),
                Standing::Changed { before, difference } => {
                    let picture = diff_svg::save(&before, now, &difference).expect("a picture");
                    writeln!(unlike, "{} differs\n{difference}\n  picture    {picture}", now.file()).unwrap();
                }
            }
        }
    }
    assert!(unlike.is_empty(), "\n{unlike}when today's audio is right: cargo scn audio accept\n");
    assert_eq!(golden_audio::strays().expect("a readable folder"), Vec::<std::path::PathBuf>::new());
}

#[test]
fn recordings_stay_small_enough_for_a_repository() {
    let files = fs::read_dir(golden_audio::folder()).expect("golden/calls");
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!((500_000..6_000_000).contains(&bytes), "{bytes} bytes of recordings");
}

/// How long the agent goes on after the caller took the floor, and whose time that is, in every recorded call.
#[test]
fn recorded_interruptions_drain_as_they_drained() {
    let mut text = String::new();
    for (name, played) in played() {
        for drain in played.drains {
            writeln!(text, "{name}\n  {drain}").unwrap();
        }
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../timelines");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("drain", text));
}

// ---------------------------------------------------------------------------------- recordings that are spoiled

/// What an agent said in a recorded call, its first second and a half.
fn good() -> Recording {
    let (chosen, scenario) =
        golden_audio::chosen(Some("greeting/plain")).expect("a recorded call").pop().expect("one of them");
    let mut heard = golden_audio::play(chosen, &scenario).expect("a recording").recordings.swap_remove(0);
    let first = heard.samples.iter().position(|sample| *sample != 0).expect("a greeting");
    heard.samples = heard.samples[first - 1_600..first + 10_400].to_vec();
    heard
}

/// Where it is spoiled: the beginning of a frame well within the greeting.
const SPOILED: usize = 4_800;
const FRAME: usize = 160;

fn spoiled(name: &str, spoil: impl FnOnce(&mut Vec<i16>)) -> Difference {
    let before = good();
    let mut after = before.clone();
    after.name = format!("spoiled__{name}");
    spoil(&mut after.samples);
    let difference = Difference::between(&before, &after, &[]).expect("a difference");
    let svg = diff_svg::draw(&before, &after, &difference);
    well_formed(&svg);
    assert!(svg.len() < 500_000, "a picture of {} bytes", svg.len());
    let path = golden_audio::root().join(diff_svg::save(&before, &after, &difference).expect("a picture"));
    assert_eq!(fs::read_to_string(path).expect("the picture"), svg);
    difference
}

#[test]
fn two_frames_out_of_order_are_a_lag_of_a_frame_in_two_frames() {
    let d = spoiled("frames_swapped", |samples| {
        let (a, b) = samples[SPOILED..].split_at_mut(FRAME);
        a.swap_with_slice(&mut b[..FRAME]);
    });
    assert_eq!(d.lag.unsigned_abs(), FRAME, "{d}");
    assert!((0.3..0.9).contains(&d.likeness), "{d}");
    assert!((SPOILED..SPOILED + 2 * FRAME).contains(&d.first) && d.last < SPOILED + 2 * FRAME, "{d}");
    assert!(d.worst.1 < 6.0 && d.segmental_db > 70.0, "the segmental SNR alone would pass this: {d}");
    assert!((d.level_dbfs.0 - d.level_dbfs.1).abs() < 1e-9, "{d}");
}

#[test]
fn a_frame_that_is_missing_is_a_part_without_level() {
    let d = spoiled("frame_silent", |samples| samples[SPOILED..SPOILED + FRAME].fill(0));
    assert_eq!((d.lag, d.likeness, d.gain_db), (0, 0.0, f64::NEG_INFINITY), "{d}");
    assert!(d.differing <= FRAME && d.last - d.first < FRAME, "{d}");
    assert!(d.worst.1.abs() < 1e-9 && d.segmental_db > 70.0, "{d}");
    assert!(d.level_dbfs.1 < d.level_dbfs.0, "{d}");
}

#[test]
fn a_tenth_of_a_decibel_is_a_gain_and_nothing_else() {
    let d = spoiled("louder", |samples| {
        let gain = 10f64.powf(0.1 / 20.0);
        samples.iter_mut().for_each(|sample| *sample = (f64::from(*sample) * gain).round() as i16);
    });
    assert!((d.gain_db - 0.1).abs() < 0.01, "{d}");
    assert!(d.lag == 0 && d.likeness > 0.9999, "{d}");
    assert!((36.0..41.0).contains(&d.snr_db), "{d}");
    assert!((d.level_dbfs.1 - d.level_dbfs.0 - 0.1).abs() < 0.01, "{d}");
}

#[test]
fn a_slip_by_one_sample_is_a_lag_of_one() {
    let d = spoiled("slipped", |samples| {
        samples.insert(SPOILED, samples[SPOILED]);
        samples.pop();
    });
    assert_eq!(d.lag, 1, "{d}");
    assert!(d.likeness > 0.999 && d.gain_db.abs() < 0.05, "{d}");
    assert!(d.first >= SPOILED && d.snr_db < 15.0 && d.differing > 3_000, "{d}");
}

#[test]
fn the_wrong_law_is_unlike_at_every_lag() {
    let d = spoiled("wrong_law", |samples| {
        let codes = mocks::alaw::encode_all(samples);
        *samples = mocks::ulaw::decode_all(&codes);
    });
    assert!(d.snr_db < 0.0 && d.segmental_db < 0.0, "{d}");
    assert!(d.likeness < 0.9 && d.gain_db > 3.0, "{d}");
    assert_eq!(d.first, 0, "silence differs, too: {d}");
    assert!(d.differing > 11_000, "{d}");
}

#[test]
fn a_frame_too_many_is_a_lag_of_a_frame() {
    let d = spoiled("frame_late", |samples| {
        samples.splice(0..0, [0; FRAME]);
        samples.truncate(samples.len() - FRAME);
    });
    assert_eq!(d.lag.unsigned_abs(), FRAME, "{d}");
    assert!(d.likeness > 0.999 && d.gain_db.abs() < 0.05 && d.snr_db < 6.0, "{d}");
}

#[test]
fn bytes_in_the_wrong_order_are_noise() {
    let d = spoiled("bytes_swapped", |samples| {
        samples.iter_mut().for_each(|sample| *sample = sample.swap_bytes());
    });
    assert!(d.likeness < 0.5 && d.snr_db < 0.0 && d.gain_db > 3.0 && d.differing > 5_000, "{d}");
}

#[test]
fn a_filter_that_forgets_between_frames_is_seen_in_the_worst_of_them() {
    let d = spoiled("state_dropped", |samples| {
        let wide = mocks::resample::up(samples);
        let mut codes = Vec::new();
        let mut link =
            bridge::audio::Downlink::new(bridge::audio::Format::Pcm24k, bridge::audio::Companding::Ulaw);
        for frame in wide.chunks(3 * FRAME) {
            let bytes: Vec<u8> = frame.iter().flat_map(|sample| sample.to_le_bytes()).collect();
            link.push(&bytes, &mut codes);
            link.flush(&mut codes);
        }
        *samples = mocks::ulaw::decode_all(&codes);
    });
    assert!(d.lag == 0 && d.likeness > 0.999 && (20.0..35.0).contains(&d.snr_db), "{d}");
    assert!(d.worst.1 < 0.0 && d.differing > 500, "{d}");
}

#[test]
fn zero_bytes_for_silence_are_far_too_loud() {
    let d = spoiled("zero_bytes", |samples| {
        samples[SPOILED..SPOILED + FRAME].fill(mocks::ulaw::decode(0));
    });
    assert!(d.gain_db > 10.0 && d.greatest > 25_000 && d.segmental_db > 70.0, "{d}");
    assert!(d.worst.1 < -10.0 && d.likeness < 0.5, "{d}");
}

#[test]
fn a_clear_that_comes_late_is_a_longer_drain() {
    let before = good();
    let mut quick = before.clone();
    quick.samples[8_000..].fill(0);
    let mut late = before;
    late.samples[8_800..].fill(0);
    let d = Difference::between(&quick, &late, &[950.0]).expect("a difference");
    let [(_, was, is)] = d.drained_ms[..] else { panic!("one interruption, {d}") };
    assert!((was - 50.0).abs() < 3.0 && (is - 150.0).abs() < 3.0, "{d}");
    assert!(d.to_string().contains("after +0.950 s"), "{d}");
}

/// Every element that begins ends in order, every attribute is quoted, and no sign that has to be escaped is bare.
fn well_formed(svg: &str) {
    let mut open = Vec::new();
    let mut rest = svg;
    while let Some(at) = rest.find('<') {
        let (text, tag) = rest.split_at(at);
        assert!(
            !text.contains('>')
                && !text.replace("&lt;", "").replace("&gt;", "").replace("&amp;", "").contains('&')
        );
        let end = tag.find('>').expect("a tag that ends");
        let inner = &tag[1..end];
        assert_eq!(inner.matches('"').count() % 2, 0, "<{inner}>");
        let name = inner.split_whitespace().next().unwrap_or_default();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> ends nothing");
        } else if !inner.ends_with('/') {
            open.push(name);
        }
        assert!(!inner.contains("NaN") && !inner.contains("inf"), "<{inner}>");
        rest = &tag[end + 1..];
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} never end");
    assert!(svg.starts_with("<svg xmlns="));
}
