//! Compares two recordings of one session: the events and their order, their fields, and the times between them.
//!
//! What the mock said is the expectation. Deltas of one item are folded into one event, ids are matched with each other
//! instead of being compared, audio is compared by how long it plays, and [`Tolerances`] say what else may differ.

use super::difference::{Difference, What};
use super::recording::{self, GAVE_UP, Line, Recording, Sender};
use super::script::todays_name;
use super::tolerance::{Like, Of, Tolerances};
use crate::base::glob::fits;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Frames that are no further apart than this have come together, microseconds.
const TOGETHER_US: u64 = 20_000;

/// A time between two events.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// What is measured.
    pub name: String,
    /// With the mock, ms.
    pub expected_ms: f64,
    /// With the server, ms; absent when it did not come to it.
    pub seen_ms: Option<f64>,
    /// The least and the most it may be, ms.
    pub band_ms: (f64, f64),
}

/// What came of a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// What is held against the server.
    pub differences: Vec<Difference>,
    /// What is not, with the reason.
    pub tolerated: Vec<(Difference, String)>,
    /// The times that were measured.
    pub measures: Vec<Measure>,
    /// Events that were not compared, because the session ended before them.
    pub not_compared: usize,
    /// How many events were compared.
    pub compared: usize,
}

/// How to compare.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// What may differ.
    pub tolerances: &'a Tolerances,
    /// Values that are known, by event and path.
    pub known: &'a Known,
    /// How late this machine's own timers were, ms; `None` when times are not compared.
    pub lag_ms: Option<f64>,
}

// ------------------------------------------------------------------------------------------ known values

/// Texts that were seen before, by event and path.
#[derive(Clone, Debug, Default)]
pub struct Known(BTreeMap<(String, String), BTreeSet<String>>);

impl Known {
    /// Those of the golden samples.
    pub fn golden() -> Self {
        let mut known = Self::default();
        for sample in golden::wire::realtime() {
            if let Ok(frame) = serde_json::from_str::<Value>(&sample.text) {
                known.learn(&frame);
            }
        }
        known
    }

    /// Adds those of a recording.
    pub fn learn_all(&mut self, recording: &Recording) {
        let server = recording.lines.iter().filter(|line| line.from == Sender::Server);
        server.for_each(|line| self.learn(&line.frame));
    }

    fn learn(&mut self, frame: &Value) {
        let event = todays_name(frame["type"].as_str().unwrap_or_default()).to_owned();
        walk(frame, "", &mut |path, value| {
            if let Some(text) = value.as_str() {
                self.0.entry((event.clone(), path.to_owned())).or_default().insert(text.to_owned());
            }
        });
    }

    fn has(&self, event: &str, path: &str, value: &str) -> bool {
        self.0.get(&(event.to_owned(), path.to_owned())).is_some_and(|values| values.contains(value))
    }
}

fn walk(value: &Value, path: &str, show: &mut impl FnMut(&str, &Value)) {
    show(path, value);
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, inner)| walk(inner, &join(path, key), show)),
        Value::Array(list) => list.iter().for_each(|inner| walk(inner, &format!("{path}[]"), show)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

// ------------------------------------------------------------------------------------------ events

/// An event of the server, or the deltas of one item folded into one.
#[derive(Clone, Debug)]
struct Event<'a> {
    /// Today's name and the kind of its item.
    key: String,
    /// Today's name.
    kind: String,
    lines: Vec<&'a Line>,
}

impl Event<'_> {
    fn first(&self) -> &Value {
        &self.lines[0].frame
    }

    fn wire_name(&self) -> &str {
        self.lines[0].kind()
    }

    /// Both have one name, and an item of one kind as far as it is known.
    fn is_like(&self, other: &Event<'_>) -> bool {
        let is_vague = self.key == self.kind || other.key == other.kind;
        self.key == other.key || (is_vague && self.kind == other.kind)
    }

    fn audio_ms(&self) -> u64 {
        self.lines.iter().filter_map(|line| line.audio.as_ref()).map(|audio| audio.ms).sum()
    }
}

/// The events of the server, in order.
fn events(recording: &Recording) -> Vec<Event<'_>> {
    let mut kinds: BTreeMap<&str, String> = BTreeMap::new();
    let mut events: Vec<Event<'_>> = Vec::new();
    let mut deltas: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in recording.lines.iter().filter(|line| line.from == Sender::Server) {
        let kind = todays_name(line.kind()).to_owned();
        if let Some(id) = line.frame["item"]["id"].as_str() {
            kinds.insert(id, item_kind(&line.frame["item"]));
        }
        let item = line.frame["item"]["id"].as_str().or(line.frame["item_id"].as_str());
        // The item of a turn is named before it exists, and sometimes never shown.
        let key = match item.and_then(|id| kinds.get(id)) {
            Some(item) if !kind.starts_with("input_audio_buffer.") => format!("{kind} ({item})"),
            Some(_) | None => kind.clone(),
        };
        if kind.ends_with(".delta") {
            let of = (kind.clone(), item.unwrap_or_default().to_owned());
            if let Some(&place) = deltas.get(&of) {
                events[place].lines.push(line);
                continue;
            }
            deltas.insert(of, events.len());
        }
        events.push(Event { key, kind, lines: vec![line] });
    }
    // Deltas may come before their item is shown.
    for event in &mut events {
        let item = event.lines[0].frame["item_id"].as_str();
        if let Some(kind) = item.and_then(|id| kinds.get(id))
            && !event.key.ends_with(')')
            && !event.kind.starts_with("input_audio_buffer.")
        {
            event.key = format!("{} ({kind})", event.kind);
        }
    }
    events
}

fn item_kind(item: &Value) -> String {
    match (item["type"].as_str(), item["role"].as_str()) {
        (Some("message"), Some(role)) => format!("{role} message"),
        (Some(kind), _) => kind.to_owned(),
        (None, _) => "item".to_owned(),
    }
}

/// Which events of both sides are the same one: the longest common run, in order.
fn align(expected: &[&Event<'_>], seen: &[&Event<'_>]) -> Vec<(usize, usize)> {
    let (rows, columns) = (expected.len(), seen.len());
    let mut longest = vec![vec![0_usize; columns + 1]; rows + 1];
    for i in (0..rows).rev() {
        for j in (0..columns).rev() {
            longest[i][j] = if expected[i].is_like(seen[j]) {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < rows && j < columns {
        if expected[i].is_like(seen[j]) {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if longest[i + 1][j] >= longest[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

// ------------------------------------------------------------------------------------------ comparing

/// Compares what a server said with what the mock said.
pub fn compare(expected: &Recording, seen: &Recording, rules: Rules<'_>) -> Comparison {
    let mut found = Comparer { rules, ids: BTreeMap::new(), back: BTreeMap::new(), found: Vec::new() };
    let (expected_events, seen_events) = (events(expected), events(seen));
    let floats = |event: &&Event<'_>| rules.tolerances.floats(&event.kind);
    let fixed = |event: &&Event<'_>| !floats(event);
    let main = (
        expected_events.iter().filter(fixed).collect::<Vec<_>>(),
        seen_events.iter().filter(fixed).collect::<Vec<_>>(),
    );
    let loose = (
        expected_events.iter().filter(floats).collect::<Vec<_>>(),
        seen_events.iter().filter(floats).collect::<Vec<_>>(),
    );
    let cut_short = ended_early(expected, seen);
    let mut not_compared = 0;

    let mut pairs = align(&main.0, &main.1);
    let in_order: BTreeSet<_> = pairs.iter().copied().collect();
    let mut missing: Vec<_> = (0..main.0.len()).filter(|i| !pairs.iter().any(|(at, _)| at == i)).collect();
    let mut extra: Vec<_> = (0..main.1.len()).filter(|j| !pairs.iter().any(|(_, at)| at == j)).collect();
    // What is missing here and extra there has moved.
    missing.retain(|&i| {
        let Some(place) = extra.iter().position(|&j| main.1[j].is_like(main.0[i])) else { return true };
        pairs.push((i, extra.remove(place)));
        false
    });
    if cut_short {
        // What would have come after the end says nothing more.
        let last = pairs.iter().map(|(i, _)| *i).max();
        let after: Vec<_> = missing.iter().copied().filter(|&i| last.is_none_or(|last| i > last)).collect();
        let told = after.first().copied();
        missing.retain(|&i| Some(i) == told || !after.contains(&i));
        not_compared += after.len().saturating_sub(1);
    }
    pairs.sort_by_key(|(_, j)| *j);
    for (i, j) in pairs {
        if !in_order.contains(&(i, j)) {
            let (expected, seen) = (after(&main.0, i), after(&main.1, j));
            found.put(What::Order, &main.0[i].key, "", &expected, &seen, &place(main.1[j]));
        }
        found.event(main.0[i], main.1[j]);
    }
    for i in missing {
        let gave_up = seen.lines.iter().find(|line| line.kind() == GAVE_UP);
        let why = match gave_up {
            Some(line) if cut_short => format!(
                "not sent: {} after {} ms",
                line.frame["why"].as_str().unwrap_or_default(),
                line.frame["after_ms"]
            ),
            Some(_) | None => "not sent".to_owned(),
        };
        found.put(What::MissingEvent, &main.0[i].key, "", &after(&main.0, i), &why, "");
    }
    for j in extra {
        let seen_where = after(&main.1, j);
        let event = main.1[j];
        let what = brief(event.first());
        found.put(What::ExtraEvent, &event.key, "", "not sent", &format!("{seen_where}: {what}"), "");
    }
    not_compared += found.loose(&loose.0, &loose.1, cut_short);

    let compared = seen_events.len();
    let mut measures = Vec::new();
    if let Some(lag_ms) = rules.lag_ms {
        measures = found.times(expected, seen, lag_ms);
    }
    let mut comparison = Comparison { measures, not_compared, compared, ..Comparison::default() };
    for difference in found.found {
        match rules.tolerances.excuse(&expected.session, &difference) {
            Some(excuse) => comparison.tolerated.push((difference, excuse.reason.clone())),
            None => comparison.differences.push(difference),
        }
    }
    comparison.differences.extend(left_unexplained(seen, expected, &comparison.differences));
    comparison
}

/// A session that the client gave up is never like one that it did not, whatever else is excused.
fn left_unexplained(seen: &Recording, expected: &Recording, told: &[Difference]) -> Option<Difference> {
    let gave_up = |recording: &Recording| recording.lines.iter().find(|line| line.kind() == GAVE_UP).cloned();
    let line = gave_up(seen).filter(|_| gave_up(expected).is_none())?;
    if told.iter().any(|difference| difference.what == What::MissingEvent) {
        return None;
    }
    let Line { frame, at_us, .. } = line;
    Some(Difference {
        what: What::ExtraEvent,
        event: GAVE_UP.to_owned(),
        field: String::new(),
        expected: "comes to the end of the session".to_owned(),
        seen: format!(
            "{} after {} ms, awaiting {}",
            frame["why"].as_str().unwrap_or_default(),
            frame["after_ms"],
            frame["awaited"]
        ),
        place: format!("+{:.3} s", at_us as f64 / 1e6),
    })
}

/// The session of the server ended before that of the mock.
fn ended_early(expected: &Recording, seen: &Recording) -> bool {
    let ends = |recording: &Recording| {
        let kinds = [GAVE_UP, recording::CLOSE, recording::LOST, recording::REFUSED];
        recording.lines.iter().map(Line::kind).rfind(|kind| kinds.contains(kind)).map(str::to_owned)
    };
    ends(seen).is_some() && ends(seen) != ends(expected)
}

/// `after response.created`, or `at the beginning`.
fn after(events: &[&Event<'_>], index: usize) -> String {
    match index.checked_sub(1) {
        Some(before) => format!("after {}", events[before].key),
        None => "at the beginning".to_owned(),
    }
}

/// When the event came.
fn place(event: &Event<'_>) -> String {
    format!("+{:.3} s", event.lines[0].at_us as f64 / 1e6)
}

/// What is in a frame, in a few words.
fn brief(frame: &Value) -> String {
    let code = &frame["error"]["code"];
    let text = if frame["type"] == recording::CLOSE {
        format!("{} {}", frame["code"], frame["reason"])
    } else if frame["type"] == recording::REFUSED {
        format!("HTTP {}", frame["status"])
    } else if !frame["error"].is_null() {
        format!("{code}: {}", frame["error"]["message"].as_str().unwrap_or_default())
    } else {
        frame.to_string()
    };
    shortened(&text)
}

fn shortened(text: &str) -> String {
    const MOST: usize = 100;
    if text.chars().count() <= MOST {
        text.to_owned()
    } else {
        text.chars().take(MOST).collect::<String>() + " ..."
    }
}

struct Comparer<'a> {
    rules: Rules<'a>,
    /// Ids of the mock, and what the server has for each; and back.
    ids: BTreeMap<String, String>,
    back: BTreeMap<String, String>,
    found: Vec<Difference>,
}

impl Comparer<'_> {
    fn put(&mut self, what: What, event: &str, field: &str, expected: &str, seen: &str, place: &str) {
        let difference = Difference {
            what,
            event: event.to_owned(),
            field: field.to_owned(),
            expected: expected.to_owned(),
            seen: seen.to_owned(),
            place: place.to_owned(),
        };
        if !self.found.contains(&difference) {
            self.found.push(difference);
        }
    }

    /// Events whose place means nothing: by their keys alone.
    fn loose(&mut self, expected: &[&Event<'_>], seen: &[&Event<'_>], cut_short: bool) -> usize {
        let mut left: Vec<_> = seen.to_vec();
        let mut not_compared = 0;
        for event in expected {
            match left.iter().position(|other| other.is_like(event)) {
                Some(place) => {
                    let other = left.remove(place);
                    self.event(event, other);
                }
                None if cut_short => not_compared += 1,
                None => self.put(What::MissingEvent, &event.key, "", "sent", "not sent", ""),
            }
        }
        for event in left {
            let what = brief(event.first());
            self.put(What::ExtraEvent, &event.key, "", "not sent", &what, &place(event));
        }
        not_compared
    }

    /// The fields of an event that both have.
    fn event(&mut self, expected: &Event<'_>, seen: &Event<'_>) {
        let place = place(seen);
        if expected.wire_name() != seen.wire_name() {
            self.put(What::Name, &expected.key, "type", expected.wire_name(), seen.wire_name(), &place);
        }
        if (expected.audio_ms() == 0) != (seen.audio_ms() == 0) {
            let told = |event: &Event<'_>| format!("{} ms of audio", event.audio_ms());
            self.put(What::Value, &expected.key, "delta", &told(expected), &told(seen), &place);
        }
        for line in &seen.lines {
            self.value(expected, expected.first(), &line.frame, "", &place);
        }
    }

    fn value(&mut self, event: &Event<'_>, expected: &Value, seen: &Value, path: &str, place: &str) {
        let like = self.rules.tolerances.like(&event.kind, path);
        if path == "type" || like == Like::Present {
            return;
        }
        match (expected, seen) {
            (Value::Object(ours), Value::Object(theirs)) => {
                for (key, inner) in ours {
                    let here = join(path, key);
                    match theirs.get(key) {
                        Some(other) => self.value(event, inner, other, &here, place),
                        None => {
                            let ours = shortened(&inner.to_string());
                            self.put(What::MissingField, &event.key, &here, &ours, "absent", place);
                        }
                    }
                }
                for (key, inner) in theirs.iter().filter(|(key, _)| !ours.contains_key(*key)) {
                    let theirs = shortened(&inner.to_string());
                    self.put(What::ExtraField, &event.key, &join(path, key), "absent", &theirs, place);
                }
            }
            (Value::Array(ours), Value::Array(theirs)) => {
                if ours.len() != theirs.len() && like != Like::AnyValue {
                    let told = |list: &[Value]| format!("{} elements", list.len());
                    self.put(What::Value, &event.key, path, &told(ours), &told(theirs), place);
                }
                for (ours, theirs) in ours.iter().zip(theirs) {
                    self.value(event, ours, theirs, &format!("{path}[]"), place);
                }
            }
            _ if type_of(expected) != type_of(seen) => {
                let told = |value: &Value| format!("{} {}", type_of(value), shortened(&value.to_string()));
                let (ours, theirs) = if expected.is_null() || seen.is_null() {
                    (shortened(&expected.to_string()), shortened(&seen.to_string()))
                } else {
                    (told(expected), told(seen))
                };
                self.put(What::Type, &event.key, path, &ours, &theirs, place);
            }
            (Value::String(ours), Value::String(theirs)) => {
                self.text(event, ours, theirs, path, &like, place);
            }
            (Value::Number(_), Value::Number(_)) => {
                let (ours, theirs) = (expected.as_f64().unwrap_or(0.0), seen.as_f64().unwrap_or(0.0));
                let alike = match like {
                    Like::Same => ours == theirs,
                    Like::Count => (ours == 0.0) == (theirs == 0.0),
                    Like::Within(most) => (ours - theirs).abs() <= most,
                    Like::AnyValue | Like::Present | Like::Text => true,
                };
                if !alike {
                    self.put(What::Value, &event.key, path, &expected.to_string(), &seen.to_string(), place);
                }
            }
            _ => {
                if expected != seen && like == Like::Same {
                    self.put(What::Value, &event.key, path, &expected.to_string(), &seen.to_string(), place);
                }
            }
        }
    }

    fn text(&mut self, event: &Event<'_>, expected: &str, seen: &str, path: &str, like: &Like, place: &str) {
        let quoted = |text: &str| shortened(&Value::from(text).to_string());
        if is_id(path) && *like == Like::Same {
            return self.id(event, expected, seen, path, place);
        }
        let alike = match like {
            Like::Same => expected == seen,
            Like::Text | Like::Count | Like::Within(_) => expected.is_empty() == seen.is_empty(),
            Like::AnyValue | Like::Present => true,
        };
        if !alike {
            let known = *like != Like::Same || self.rules.known.has(&event.kind, path, seen);
            let what = if known { What::Value } else { What::UnseenValue };
            self.put(what, &event.key, path, &quoted(expected), &quoted(seen), place);
        }
    }

    /// Two ids are alike when each stands for the other wherever it occurs.
    fn id(&mut self, event: &Event<'_>, expected: &str, seen: &str, path: &str, place: &str) {
        let theirs = self.ids.entry(expected.to_owned()).or_insert_with(|| seen.to_owned()).clone();
        let ours = self.back.entry(seen.to_owned()).or_insert_with(|| expected.to_owned()).clone();
        if theirs != seen || ours != expected {
            self.put(What::Value, &event.key, path, "the id of one thing", "the id of another", place);
        }
    }

    // -------------------------------------------------------------------------------------- times

    fn times(&mut self, expected: &Recording, seen: &Recording, lag_ms: f64) -> Vec<Measure> {
        let connect_ms =
            seen.lines.first().and_then(|line| line.frame["connect_us"].as_f64()).unwrap_or(0.0) / 1e3;
        let mut measures = Vec::new();
        for timing in &self.rules.tolerances.timing {
            if !fits(&timing.session, &expected.session) {
                continue;
            }
            let measure = |recording: &Recording| match timing.of {
                Of::Gap => gap(recording, &timing.from, &timing.to),
                Of::DeltaMs => delta_ms(recording),
                Of::BurstMs => burst_ms(recording),
            };
            let Some(ours) = measure(expected) else { continue };
            let theirs = measure(seen);
            // A round trip is part of the way to the server; the upgrade took several. Neither is in the audio.
            let (late, way) = if timing.of == Of::Gap { (lag_ms, connect_ms) } else { (0.0, 0.0) };
            let slack = timing.slack_ms + late;
            let band = ((ours / timing.factor - slack).max(0.0), ours * timing.factor + slack + way);
            if let Some(theirs) = theirs
                && !(band.0..=band.1).contains(&theirs)
            {
                let allowed = format!("{ours:.0} ms, {:.0} to {:.0} allowed", band.0, band.1);
                self.put(What::Timing, &timing.name, "", &allowed, &format!("{theirs:.0} ms"), "");
            }
            measures.push(Measure {
                name: timing.name.clone(),
                expected_ms: ours,
                seen_ms: theirs,
                band_ms: band,
            });
        }
        measures
    }
}

/// How long `to` follows `from`, ms: the middle of all times it does.
fn gap(recording: &Recording, from: &str, to: &str) -> Option<f64> {
    let mut begun = None;
    let mut gaps = Vec::new();
    for line in &recording.lines {
        let kind = todays_name(line.kind());
        if line.from == Sender::Server
            && fits(to, kind)
            && let Some(from) = begun.take()
        {
            gaps.push(line.at_us.saturating_sub(from) as f64 / 1e3);
        }
        if fits(from, kind) {
            begun = Some(line.at_us);
        }
    }
    middle(gaps)
}

fn deltas(recording: &Recording) -> impl Iterator<Item = (&Line, u64)> {
    let server = recording.lines.iter().filter(|line| line.from == Sender::Server);
    let deltas = server.filter(|line| todays_name(line.kind()) == "response.output_audio.delta");
    let played = deltas.filter_map(|line| Some((line, line.audio.as_ref()?.ms)));
    played.filter(|(_, ms)| *ms > 0)
}

/// How long the audio of a delta plays, ms: the middle of all.
fn delta_ms(recording: &Recording) -> Option<f64> {
    middle(deltas(recording).map(|(_, ms)| ms as f64).collect())
}

/// How much audio comes together with the first delta of an item, ms: the middle of all items.
fn burst_ms(recording: &Recording) -> Option<f64> {
    let mut bursts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (line, ms) in deltas(recording) {
        let item = line.frame["item_id"].as_str().unwrap_or_default();
        let (since, all) = bursts.entry(item).or_insert((line.at_us, 0));
        if line.at_us.saturating_sub(*since) <= TOGETHER_US {
            *all += ms;
        }
    }
    middle(bursts.values().map(|(_, ms)| *ms as f64).collect())
}

fn middle(mut all: Vec<f64>) -> Option<f64> {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// The field holds the name of a thing that the server made up.
fn is_id(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path);
    last == "id" || (last.ends_with("_id") && last != "event_id")
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}
