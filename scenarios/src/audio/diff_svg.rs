//! Two recordings as one picture: what was, what is, and where they part.
//!
//! From top to bottom: the numbers; both waveforms over each other; the error of each 20 ms; the samples around
//! the first difference; and a spectrogram of each, side by side. One SVG file that needs nothing else.

use crate::audio::diff::{self, Difference};
use crate::audio::golden_audio::{self, Recording};
use anyhow::Context as _;
use std::fmt::Write as _;
use std::fs;

/// Width of the drawing between its margins.
const WIDTH: f64 = 1_160.0;
const MARGIN: f64 = 20.0;
const BEFORE: &str = "#3366aa";
const AFTER: &str = "#dd5533";
/// Half of what is shown around the first difference, ms.
const AROUND_MS: usize = 10;
/// A spectrogram's columns and rows, and the size of a cell.
const COLUMNS: usize = 190;
const ROWS: usize = 60;
const CELL: usize = 3;
/// Samples of one spectrum.
const SPECTRUM: usize = 256;
/// Shades of a spectrogram, and the levels of the first and the last, dB of full scale.
const SHADES: usize = 16;
const SHADED_DB: (f64, f64) = (-100.0, -20.0);
/// Floor of the error bars, dB of full scale.
const ERROR_FLOOR_DB: f64 = -90.0;

/// Draws the picture and says where it is, seen from the root of the repository.
///
/// # Errors
/// When it cannot be written.
pub fn save(before: &Recording, after: &Recording, difference: &Difference) -> anyhow::Result<String> {
    let file = format!("target/scn/audio/{}.svg", after.name);
    let path = golden_audio::root().join(&file);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(&path, draw(before, after, difference))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}

/// The picture as the text of an SVG file.
pub fn draw(before: &Recording, after: &Recording, difference: &Difference) -> String {
    let rate = before.rate.max(1);
    let long = before.samples.len().max(after.samples.len()).max(1);
    let mut page = Page::default();
    page.text(MARGIN, 16.0, &after.name);
    page.coloured_text(MARGIN + 620.0, 0.0, 12.0, BEFORE, "before");
    page.coloured_text(MARGIN + 690.0, 0.0, 12.0, AFTER, "now");
    page.y += 8.0;
    for line in difference.to_string().lines() {
        page.text(MARGIN, 12.0, line);
    }

    let peak =
        before.samples.iter().chain(&after.samples).map(|s| s.unsigned_abs()).max().unwrap_or(0).max(64);
    page.heading(&format!("both, over each other, to {peak} of 32768"));
    let top = page.panel(150.0);
    for (recording, colour) in [(before, BEFORE), (after, AFTER)] {
        let path = envelope(&recording.samples, long, f64::from(peak), top, 150.0);
        let _infallible =
            writeln!(page.body, r#"<path d="{path}" fill="{colour}" fill-opacity="0.55" stroke="none"/>"#);
    }
    page.seconds(long as f64 / f64::from(rate));

    page.heading("error of each 20 ms, -90 to 0 dBFS");
    let top = page.panel(60.0);
    let errors = diff::errors_dbfs(&before.samples, &after.samples, rate);
    let width = WIDTH * f64::from(rate) / 50.0 / long as f64;
    let mut bars = String::new();
    for (n, error) in errors.iter().enumerate() {
        let height = 60.0 * ((error - ERROR_FLOOR_DB) / -ERROR_FLOOR_DB).clamp(0.0, 1.0);
        if height > 0.0 {
            let x = MARGIN + n as f64 * width;
            let y = top + 60.0 - height;
            let right = (x + width.max(1.0)).min(MARGIN + WIDTH);
            let _infallible = write!(bars, "M{x:.1} {y:.1}H{right:.1}v{height:.1}H{x:.1}z");
        }
    }
    let _infallible = writeln!(page.body, r#"<path d="{bars}" fill="{AFTER}" stroke="none"/>"#);

    let around = AROUND_MS * rate as usize / 1_000;
    let from = difference.first.saturating_sub(around);
    let middle = from as f64 / f64::from(rate) + AROUND_MS as f64 / 1e3;
    page.heading(&format!("the samples around {middle:+.4} s"));
    let top = page.panel(150.0);
    let shown = |samples: &[i16]| samples.iter().skip(from).take(2 * around).copied().collect::<Vec<_>>();
    let (old, new) = (shown(&before.samples), shown(&after.samples));
    let peak = old.iter().chain(&new).map(|s| s.unsigned_abs()).max().unwrap_or(0).max(64);
    for (samples, colour, wide) in [(&old, BEFORE, 3.0), (&new, AFTER, 1.2)] {
        let points = line(samples, 2 * around, f64::from(peak), top, 150.0);
        let _infallible = writeln!(
            page.body,
            r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{wide}"/>"#
        );
    }

    page.heading(&format!("spectrograms, 0 to {} Hz: before, now", rate / 2));
    let top = page.panel((ROWS * CELL) as f64);
    for (recording, left) in [(before, MARGIN), (after, MARGIN + WIDTH - (COLUMNS * CELL) as f64)] {
        let cells = spectrogram(&recording.samples, long);
        let _infallible = writeln!(
            page.body,
            r#"<g transform="translate({left:.0} {top:.0}) scale({CELL})" shape-rendering="crispEdges">"#
        );
        page.body.push_str(&shaded(&cells));
        page.body.push_str("</g>\n");
    }
    page.done()
}

/// An SVG file in the making; `y` is where the next thing goes.
#[derive(Default)]
struct Page {
    body: String,
    y: f64,
}

impl Page {
    fn text(&mut self, x: f64, size: f64, text: &str) {
        self.y += size * 1.35;
        self.coloured_text(x, 0.0, size, "#222222", text);
    }

    fn coloured_text(&mut self, x: f64, dy: f64, size: f64, colour: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let y = self.y + dy;
        let _infallible = writeln!(
            self.body,
            r#"<text x="{x:.0}" y="{y:.0}" font-size="{size}" fill="{colour}" xml:space="preserve">{text}</text>"#
        );
    }

    fn heading(&mut self, text: &str) {
        self.y += 12.0;
        self.text(MARGIN, 12.0, text);
        self.y += 4.0;
    }

    /// Room for a drawing; returns its top.
    fn panel(&mut self, height: f64) -> f64 {
        let top = self.y;
        let _infallible = writeln!(
            self.body,
            r##"<rect x="{MARGIN}" y="{top:.0}" width="{WIDTH}" height="{height}" fill="#f4f4f2"/>"##
        );
        self.y += height;
        top
    }

    fn seconds(&mut self, all: f64) {
        let step = if all > 6.0 { 1.0 } else { 0.5 };
        let mut second = 0.0;
        // A number at the very end would reach over the edge.
        while second <= 0.98 * all {
            let x = MARGIN + WIDTH * second / all;
            self.coloured_text(x, 12.0, 10.0, "#666666", &format!("{second} s"));
            second += step;
        }
        self.y += 12.0;
    }

    fn done(self) -> String {
        let (width, height) = (WIDTH + 2.0 * MARGIN, self.y + MARGIN);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width} {height:.0}\" font-family=\"monospace\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}</svg>\n",
            self.body
        )
    }
}

/// The least and the greatest sample of each column, as one outline.
fn envelope(samples: &[i16], long: usize, peak: f64, top: f64, height: f64) -> String {
    let columns = WIDTH as usize;
    let middle = top + height / 2.0;
    let y = |sample: i16| middle - f64::from(sample) / peak * height / 2.0;
    let column = |n: usize| {
        let from = (n * long / columns).min(samples.len());
        let to = ((n + 1) * long / columns).max(from + 1).min(samples.len());
        let part = samples.get(from..to).unwrap_or_default();
        (part.iter().min().copied().unwrap_or(0), part.iter().max().copied().unwrap_or(0))
    };
    let mut path = format!("M{MARGIN} {middle:.1}");
    for n in 0..columns {
        let _infallible = write!(path, "L{:.0} {:.1}", MARGIN + n as f64, y(column(n).1) - 0.3);
    }
    for n in (0..columns).rev() {
        let _infallible = write!(path, "L{:.0} {:.1}", MARGIN + n as f64, y(column(n).0) + 0.3);
    }
    path.push('z');
    path
}

fn line(samples: &[i16], room: usize, peak: f64, top: f64, height: f64) -> String {
    let mut points = String::new();
    for (n, sample) in samples.iter().enumerate() {
        let x = MARGIN + WIDTH * n as f64 / room.max(1) as f64;
        let y = top + height / 2.0 - f64::from(*sample) / peak * height / 2.0;
        let _infallible = write!(points, "{x:.1},{y:.1} ");
    }
    points
}

/// Shade of each cell, column by column, from low to high.
fn spectrogram(samples: &[i16], long: usize) -> Vec<[usize; ROWS]> {
    use std::f64::consts::{PI, TAU};
    let hann = |n: usize| 0.5 - 0.5 * (TAU * (n as f64 + 0.5) / SPECTRUM as f64).cos();
    let waves: Vec<Vec<(f32, f32)>> = (0..ROWS)
        .map(|row| {
            let turn = PI * (row as f64 + 0.5) / ROWS as f64;
            let wave = |n: usize| {
                let (sin, cos) = (turn * n as f64).sin_cos();
                ((cos * hann(n)) as f32, (sin * hann(n)) as f32)
            };
            (0..SPECTRUM).map(wave).collect()
        })
        .collect();
    // A sine of full scale has this much in its own cell.
    let full = (SPECTRUM as f64 / 4.0 * 32_768.0).powi(2);
    let hop = long as f64 / COLUMNS as f64;
    let looks = (hop / SPECTRUM as f64).ceil().clamp(1.0, 8.0) as usize;
    let column = |column: usize| {
        let mut shades = [0; ROWS];
        for look in 0..looks {
            let from = ((column as f64 + look as f64 / looks as f64) * hop) as usize;
            let part = samples.get(from.min(samples.len())..).unwrap_or_default();
            if part.iter().take(SPECTRUM).all(|sample| *sample == 0) {
                continue;
            }
            for (shade, wave) in shades.iter_mut().zip(&waves) {
                let (mut re, mut im) = (0f32, 0f32);
                for (sample, (cos, sin)) in part.iter().zip(wave) {
                    re += f32::from(*sample) * cos;
                    im += f32::from(*sample) * sin;
                }
                let level = 10.0 * (f64::from(re * re + im * im) / full).log10();
                let share = (level - SHADED_DB.0) / (SHADED_DB.1 - SHADED_DB.0);
                *shade = (*shade).max((share.clamp(0.0, 0.999) * SHADES as f64) as usize);
            }
        }
        shades
    };
    (0..COLUMNS).map(column).collect()
}

/// One path for each shade; neighbours of one shade in a row are one rectangle.
fn shaded(cells: &[[usize; ROWS]]) -> String {
    let mut paths = vec![String::new(); SHADES];
    for row in 0..ROWS {
        let mut column = 0;
        while let Some(shade) = cells.get(column).map(|cells| cells[row]) {
            let run = cells[column..].iter().take_while(|cells| cells[row] == shade).count();
            if shade > 0 {
                let y = ROWS - 1 - row;
                let _infallible = write!(paths[shade], "M{column} {y}h{run}v1h-{run}z");
            }
            column += run;
        }
    }
    let (width, height) = (COLUMNS, ROWS);
    let mut text = format!("<path d=\"M0 0h{width}v{height}h-{width}z\" fill=\"{}\"/>\n", colour(0));
    for (shade, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
        let _infallible = writeln!(text, r#"<path d="{path}" fill="{}"/>"#, colour(shade));
    }
    text
}

/// From night blue over red to a bright yellow.
fn colour(shade: usize) -> String {
    let share = shade as f64 / (SHADES - 1) as f64;
    let red = 255.0 * (share * 1.6).min(1.0);
    let green = 235.0 * ((share - 0.4) / 0.6).max(0.0);
    let blue = 40.0 + 110.0 * (share * std::f64::consts::PI).sin() * (1.0 - share);
    format!("#{:02x}{:02x}{:02x}", red as u8, green as u8, blue as u8)
}
