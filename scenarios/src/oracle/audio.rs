//! What was said is what was heard, on both legs, in time.

use super::barge_in::{barge_ins, cuts, stale};
use super::case::{CallUnderTest, Oracle, Violations, each, in_ms};
use super::greet::window;
use super::speech::{ON_ITS_WAY_US, anchors, given_before, spoken_is_loud};
use super::tolerance::Leg;
use crate::oracle::audio_attribution::{self, BYTES_PER_MS, DELAY, Given, Item, Source, WINDOW};
use crate::sim::trace::Trace;
use bridge::call::event::CallEvent;
use bridge::call::settings::{END_CALL, TRANSFER_CALL};
use mocks::peer::At;
use mocks::record::{CallerObservation, MicFrame, ModelObservation, Observation};
use std::collections::{BTreeMap, BTreeSet};

/// A hole in an item that a listener notices: one frame.
const HOLE_US: u64 = 20_000;
/// A hole from this length on is none of rounding.
const CRACK_US: u64 = 1_000;
/// So much in small holes makes an item sound broken: five frames.
const CHOPPY_US: u64 = 100_000;
/// How long before a hole the bridge must have had the audio to be blamed for it: three frames.
const IN_HAND_US: u64 = 60_000;
/// How far the lead at the ear may exceed the configured one: one mark distance, one batch and some play-out.
const LEAD_SLACK_MS: u64 = 300;
/// A configured lead from here on means "all at once".
const NO_PACING_MS: u64 = 540_000;
/// What the bridge itself may add to an answer in an ideal network.
const BRIDGE_SHARE_US: u64 = 5_000;
/// The first 20 ms frame needs this much of the model's audio: the frame and a resampler's filter.
const FIRST_FRAME: usize = WINDOW + DELAY;
/// How long a caller waits for a sign of life, beyond the timeouts that were configured.
pub const PATIENCE_MS: u64 = 12_000;
/// Timestamps of `media` wander by 2 ms around their grid, at both ends of a gap.
const TIMESTAMP_WANDER_MS: f64 = 4.0;
/// Filled gaps agree with the timestamps to one frame.
const FILL_MS: f64 = 20.0;
/// A pause in the middle of speech may be filled by the clock, before its timestamps are known: with the silence
/// that ends a turn, and this much more.
const PAUSE_FILL_MS: f64 = 500.0;
/// A pause is known this long after the last frame that was given, at the latest.
const PAUSE_SEEN_US: u64 = 2_000_000;

/// See [`Oracle::about`].
pub const DOWNLINK_INTACT: Oracle = Oracle {
    name: "downlink_intact",
    about: "Each item reaches the ear whole, once and in order, unless it was interrupted, because a lost or repeated \
            syllable is the first thing a caller notices.",
    check: bytes_out,
};

/// See [`Oracle::about`].
pub const UPLINK_INTACT: Oracle = Oracle {
    name: "uplink_intact",
    about: "The model is given what the microphone sent, in order, with gaps filled by their timestamps, because its \
            sense of time is the audio it was given.",
    check: bytes_in,
};

/// See [`Oracle::about`].
pub const PACING: Oracle = Oracle {
    name: "pacing",
    about: "The ear never runs dry while the bridge holds audio, and is never fed further ahead than agreed, because \
            holes are heard and a long queue must be cleared.",
    check: pace,
};

/// See [`Oracle::about`].
pub const RESPONSE_LATENCY: Oracle = Oracle {
    name: "response_latency",
    about: "In an ideal network an answer is heard within the budget and the bridge adds next to nothing, because every \
            tenth of a second makes a conversation harder.",
    check: latency,
};

/// See [`Oracle::about`].
pub const NO_DEAD_AIR: Oracle = Oracle {
    name: "no_dead_air",
    about: "A caller who waits hears an answer, a notice or the end of the call before patience is over, because \
            silence is the one failure nobody can report.",
    check: audible,
};

// ------------------------------------------------------------------------------------------- bytes out

fn bytes_out(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, DOWNLINK_INTACT.name, |case, violations| {
        let interruptions = barge_ins(case);
        let mut last_begin: Option<(usize, &Item)> = None;
        for item in case.attribution.items.iter().filter(|item| !item.silent) {
            let interrupted = interruptions
                .iter()
                .filter(|b| b.model == item.model && b.fenced.contains(&item.response))
                .any(|b| case.attribution.item_played(item, b.stopped_at()) + WINDOW < item.len);
            // What was on its way to being made when the caller cut in may be cancelled as it comes.
            let interrupted = interrupted
                || cancelled_at(case, item).is_some_and(|at| interruptions.iter().any(|b| b.at <= at));
            // A request and the interruption may meet in one instant: then the bridge's cancel says which was first.
            let interrupted = interrupted
                || cancel_for(case, item).is_some_and(|at| interruptions.iter().any(|b| b.at_bridge <= at));
            // What came after the interruption is the fence's business.
            let stop = interruptions
                .iter()
                .filter(|b| b.model == item.model && b.fenced.contains(&item.response))
                .filter_map(|b| b.clears.first().map(|c| c.offset))
                .min()
                .unwrap_or(usize::MAX);
            let cut_in = interruptions
                .iter()
                .filter(|b| b.model == item.model && b.fenced.contains(&item.response))
                .map(|b| b.at_bridge)
                .min()
                .unwrap_or(At(u64::MAX));
            check_item(case, item, interrupted, (stop, cut_in), violations);
            if let Some((stretch, _)) = case.attribution.of_item(item).next() {
                if let Some((before, other)) = last_begin.filter(|(before, _)| *before > stretch.offset) {
                    let at = case.attribution.arrived_at(before).unwrap_or_default();
                    violations.push(at, format!("{} came after {}, which was made later", other.id, item.id));
                }
                last_begin = Some((stretch.offset, item));
            }
        }
        check_rest(case, violations);
    })
}

/// When the bridge's cancel of this item's response reached the model, if one did.
fn cancel_for(case: &CallUnderTest<'_>, item: &Item) -> Option<At> {
    let observations = &case.call.models[item.model].observations;
    observations.iter().find_map(|seen| {
        let ModelObservation::GotCancel { response: Some(id) } = &seen.what else { return None };
        (*id == item.response).then_some(seen.at)
    })
}

/// When the response of this item ended cancelled, if it did.
fn cancelled_at(case: &CallUnderTest<'_>, item: &Item) -> Option<At> {
    let observations = &case.call.models[item.model].observations;
    observations.iter().find_map(|seen| {
        let ModelObservation::SentResponseDone { response, status } = &seen.what else { return None };
        (*response == item.response && status == "cancelled").then_some(seen.at)
    })
}

/// `stop` and `cut_in`: from where on in the ear, and from when on, the item is the fence's business.
fn check_item(
    case: &CallUnderTest<'_>,
    item: &Item,
    interrupted: bool,
    (stop, cut_in): (usize, At),
    violations: &mut Violations,
) {
    let attribution = case.attribution;
    let mut reached = 0;
    let mut last_end: Option<usize> = None;
    for (stretch, sample) in attribution.of_item(item).filter(|(s, _)| s.offset < stop) {
        let at = attribution.arrived_at(stretch.offset).unwrap_or_default();
        if sample + 2 * DELAY < reached {
            let (ms, from) = ((reached - sample) / BYTES_PER_MS, sample / BYTES_PER_MS);
            violations.push(
                at,
                format!("{} was repeated or came out of order: {ms} ms from {from} ms on", item.id),
            );
        } else if sample > reached + 2 * DELAY {
            let (ms, from) = ((sample - reached) / BYTES_PER_MS, reached / BYTES_PER_MS);
            violations.push(at, format!("{ms} ms of {} are missing, from {from} ms on", item.id));
        }
        if let Some(end) = last_end.filter(|end| stretch.offset > end + WINDOW) {
            let ms = (stretch.offset - end) / BYTES_PER_MS;
            violations.push(at, format!("{ms} ms that are not of {} came in the middle of it", item.id));
        }
        reached = reached.max(sample + stretch.len);
        last_end = Some(stretch.end());
    }
    // What does not fill a frame waits for the rest of its item, and so does what is in the resampler's filter.
    let over = case.tolerance.over().min(case.tolerance.model_over(item.model));
    let known_whole = |done: At| {
        At(done.0 + network_us(case, done)) < over && At(done.0 + case.tolerance.latency(Leg::Model)) < cut_in
    };
    let waits = if item.done.is_some_and(known_whole) { 0 } else { WINDOW };
    let wanted = item.on_time.min(item.len).saturating_sub(waits);
    if interrupted || was_given_up(case, item) || reached + 2 * DELAY >= wanted || !was_time(case, item) {
        return;
    }
    let (ms, of) = ((wanted - reached) / BYTES_PER_MS, wanted / BYTES_PER_MS);
    let at = item.sent.last().map_or(At(0), |(at, _)| *at);
    violations.push(at, format!("the last {ms} ms of {of} ms of {} never came", item.id));
}

/// Whether the bridge had waited for this item as long as it waits for any, and told the model so.
fn was_given_up(case: &CallUnderTest<'_>, item: &Item) -> bool {
    let tolerance = &case.tolerance;
    let observations = &case.call.models[item.model].observations;
    let Some(first) = item.first_sent() else { return false };
    let cancelled = cancel_for(case, item).is_some();
    let asked = observations.iter().rev().filter(|seen| seen.at < first).find(|seen| {
        matches!(seen.what, ModelObservation::SentSpeechStopped { .. } | ModelObservation::GotCreate { .. })
    });
    let waited =
        asked.map_or(0, |asked| first.since(asked.at)) + tolerance.round_trip_until(Leg::Model, first);
    cancelled && waited + ON_ITS_WAY_US >= tolerance.config.timeouts.first_audio_ms * 1_000
}

/// How long something the model said at `at` may take to the ear.
fn network_us(case: &CallUnderTest<'_>, at: At) -> u64 {
    let tolerance = &case.tolerance;
    tolerance.latency(Leg::Model)
        + tolerance.latency(Leg::Caller)
        + tolerance.slack(Leg::Model, at)
        + tolerance.slack(Leg::Caller, at)
}

/// Whether the call lived long enough for all of this item to be played after everything before it.
fn was_time(case: &CallUnderTest<'_>, item: &Item) -> bool {
    /// Who was still there when the last sample was due must have been sent it.
    const SPARE_US: u64 = 50_000;
    let tolerance = &case.tolerance;
    let Some((sent, _)) = item.sent.last() else { return false };
    let network = tolerance.latency(Leg::Model) + tolerance.latency(Leg::Caller);
    let slack = tolerance.slack(Leg::Model, *sent) + tolerance.slack(Leg::Caller, *sent);
    let len = item.len as u64 * 125;
    let began = case
        .attribution
        .of_item(item)
        .next()
        .and_then(|(s, at)| Some((case.attribution.played_at(s.offset)?, at)));
    let end = match began {
        Some((played, at)) => (played.0.saturating_sub(at as u64 * 125) + len).max(sent.0 + network),
        // At worst it waits for all that was generated before it.
        None => {
            let made = |of: &Item| (of.first_sent(), of.index);
            let before = case.attribution.items.iter().filter(|other| made(other) < made(item));
            // What a clear has thrown away is not waited for.
            let cleared = |other: &Item| {
                let clears = &case.attribution.clears;
                other.first_sent().is_some_and(|from| clears.iter().any(|c| from <= c.at && c.at <= *sent))
            };
            let ahead: u64 = before
                .filter(|other| !cleared(other))
                .filter(|other| case.attribution.item_played(other, *sent) < other.len)
                .map(|other| other.len as u64 * 125)
                .sum();
            sent.0 + network + ahead + len
        }
    };
    // Nor is anything played before it was made: an answer may pause in its middle.
    let mut made = (0, 0);
    for (at, upto) in &item.sent {
        let more = (upto.saturating_sub(made.1)) as u64 * 125;
        made = (made.0.max(at.0 + network) + more, *upto);
    }
    let end = At(end.max(made.0) + slack + SPARE_US);
    end < tolerance.over() && end < tolerance.model_over(item.model) && tolerance.ear_works()
}

/// At most one frame of silence is added to an item, and nothing that the model did not say comes between two.
/// What follows the last item may be the notice of a failing call, which is nobody's item and may pause.
fn check_rest(case: &CallUnderTest<'_>, violations: &mut Violations) {
    let stretches = &case.attribution.stretches;
    let silent_items = case.attribution.items.iter().any(|item| item.silent);
    // Only the bridge knows that it gave a notice; a notice may begin with, or be, silence.
    let told = !case.tolerance.bridge_speaks()
        || case.call.bridge.iter().any(|(_, event)| matches!(event, CallEvent::Notice { .. }));
    // Somebody else's bridge may send two frames at a time.
    let padding = if case.tolerance.bridge_speaks() { WINDOW } else { 2 * WINDOW };
    for (i, stretch) in stretches.iter().enumerate().skip(1) {
        let follows = is_item(stretches[i - 1].source);
        let next = stretches.get(i + 1).map(|s| s.source);
        let at = || case.attribution.arrived_at(stretch.offset).unwrap_or_default();
        let ms = stretch.len / BYTES_PER_MS;
        if stretch.source == Source::Silence
            && follows
            && next.map_or(!told, is_item)
            && stretch.len > padding + 2 * DELAY
            && !silent_items
        {
            violations.push(at(), format!("{ms} ms of silence were sent that the model did not say"));
        }
        if stretch.source == Source::Unknown && follows && next.is_some_and(is_item) {
            violations.push(at(), format!("{ms} ms of sound the model did not make"));
        }
    }
}

const fn is_item(source: Source) -> bool {
    matches!(source, Source::Item { .. })
}

// -------------------------------------------------------------------------------------------- bytes in

fn bytes_in(trace: &Trace) -> Vec<super::case::Violation> {
    bytes_in_granting(trace, Wander::IsNoGap)
}

/// The same, for a bridge that takes each step of the timestamps for a gap: what it fills in is not held against it.
pub(crate) fn bytes_in_but_for_wander(trace: &Trace) -> Vec<super::case::Violation> {
    bytes_in_granting(trace, Wander::MayBeFilled)
}

/// What the wander of Twilio's timestamps is to a bridge. One call was observed, 2 ms off its grid after 72 frames; how
/// often they step is not known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wander {
    IsNoGap,
    MayBeFilled,
}

fn bytes_in_granting(trace: &Trace, wander: Wander) -> Vec<super::case::Violation> {
    each(trace, UPLINK_INTACT.name, |case, violations| {
        for m in 0..case.call.models.len() {
            check_given(case, m, wander, violations);
        }
    })
}

/// Frames that the model must not have been given, or need not: they are replaced by silence of the same length.
fn protected(case: &CallUnderTest<'_>) -> usize {
    window(case).map_or(0, |window| window.outside)
}

fn check_given(case: &CallUnderTest<'_>, m: usize, wander: Wander, violations: &mut Violations) {
    let mic = &case.call.caller.mic;
    let protected = protected(case);
    let model = &case.call.models[m];
    let given = &case.attribution.given[m];
    let appends: Vec<(At, usize)> = model
        .observations
        .iter()
        .filter_map(|seen| {
            if let ModelObservation::GotAppend { offset, .. } = seen.what {
                Some((seen.at, offset))
            } else {
                None
            }
        })
        .collect();
    let Some((first_append, _)) = appends.first().copied() else {
        check_deafness(case, m, violations);
        return;
    };
    let bytes_per_sample = if model.input_format == "audio/pcm" { 6 } else { 1 };
    let when = |offset: usize| {
        let after = appends.partition_point(|(_, at)| *at <= offset * bytes_per_sample);
        appends[after.saturating_sub(1)].0
    };
    let from_mic: Vec<&Given> = given.iter().filter(|g| g.spoken.is_some()).collect();
    // Another session goes on where the one before has stopped.
    let before = given_before(case, m);
    if let Some(first) = from_mic.first() {
        let lost = first.spoken.unwrap_or(0).saturating_sub(first.offset + before);
        let since = case.tolerance.without_model_since(m).or(mic.first().map(|frame| frame.at));
        let waited = since.map_or(0, |since| first_append.since(since));
        let allowed = in_ms(waited) - case.tolerance.config.limits.backlog_ms as f64 + 2.0 * FILL_MS;
        let allowed = allowed.max(2.0 * FILL_MS) + case.tolerance.early_media_ms() as f64;
        let lost_ms = lost as f64 / BYTES_PER_MS as f64;
        if lost_ms > allowed && has_speech(&mic[protected..], before, before + lost) {
            let which = if before == 0 { "the first " } else { "between two sessions " };
            violations
                .push(first_append, format!("{which}{lost_ms:.0} ms of the caller never reached the model"));
        }
    }
    for pair in from_mic.windows(2) {
        let [before, after] = pair else { continue };
        let (Some(from), Some(to)) = (before.spoken.map(|s| s + before.len), after.spoken) else { continue };
        if to + 2 * DELAY < from {
            let ms = (from - to) / BYTES_PER_MS;
            let at = when(after.offset);
            violations
                .push(at, format!("{ms} ms of the caller were given to the model twice or out of order"));
        }
    }
    check_distances(case, m, &from_mic, protected, (&when, wander), violations);
    for stretch in given.iter().filter(|g| g.spoken.is_none() && !g.silence && g.len > 2 * WINDOW) {
        let ms = stretch.len / BYTES_PER_MS;
        violations.push(when(stretch.offset), format!("the model was given {ms} ms the caller never sent"));
    }
    let given_to = from_mic.last().and_then(|g| g.spoken.map(|s| s + g.len)).unwrap_or(0).max(before);
    let tolerance = &case.tolerance;
    let end = tolerance.over().min(tolerance.model_over(m));
    let on_its_way = tolerance.latency(Leg::Caller) + tolerance.latency(Leg::Model) + ON_ITS_WAY_US;
    // What was said before a later session was ready was for the ones before it, unless this one is to go on with it.
    let listens_from = if m == 0 || tolerance.config.renewal.is_some() {
        At(0)
    } else {
        tolerance.ready_at(m).unwrap_or(At(u64::MAX))
    };
    let lost = mic[protected..].iter().find(|frame| {
        let slack = tolerance.slack(Leg::Caller, frame.at) + tolerance.slack(Leg::Model, frame.at);
        frame.speech
            && frame.at >= listens_from
            && frame.offset >= given_to + 2 * DELAY
            && frame.at.0 + on_its_way + slack < end.0
            && tolerance.model_listens(frame.at)
            && spoken_is_loud(case, frame)
    });
    if let Some(frame) = lost {
        violations.push(frame.at, format!("nothing of the caller reached the model from {} on", frame.at));
    }
}

/// A session that was ready and a caller who spoke, but no audio at all.
fn check_deafness(case: &CallUnderTest<'_>, m: usize, violations: &mut Violations) {
    let Some(ready) = case.tolerance.ready_at(m) else { return };
    let end = case.tolerance.over().min(case.tolerance.model_over(m));
    let due = At(ready.0
        + 1_000_000
        + case.tolerance.slack(Leg::Model, ready)
        + case.tolerance.slack(Leg::Caller, ready));
    let mut heard = case.call.caller.mic.iter().skip(protected(case));
    let spoke = heard.any(|frame| frame.speech && frame.at > ready && frame.at < due);
    if spoke && due < end && case.tolerance.session_fits(m) {
        violations.push(due, "the session was ready and the caller spoke, but the model was given nothing");
    }
}

/// From one frame of speech to the next, what the model was given lasts as long as the timestamps say, and no
/// speech is missing. Only speech is held on to: one silence looks like another.
fn check_distances(
    case: &CallUnderTest<'_>,
    m: usize,
    from_mic: &[&Given],
    protected: usize,
    (when, wander): (&dyn Fn(usize) -> At, Wander),
    violations: &mut Violations,
) {
    let mic = &case.call.caller.mic;
    let tolerance = &case.tolerance;
    let longest = tolerance.config.limits.gap_ms as f64;
    let grid_ms = FILL_MS + TIMESTAMP_WANDER_MS + in_ms(2 * DELAY as u64 * 125);
    let turn_end = f64::from(tolerance.config.vad.silence_duration_ms);
    let anchors = anchors(case, from_mic);
    for pair in anchors.windows(2) {
        let [before, after] = pair else { continue };
        let at = when(after.given);
        if !tolerance.model_listens(at) || tolerance.model_over(m) <= at || after.given < before.given {
            continue;
        }
        let (mut expected, mut gap, mut missing) = (0.0, 0.0, 0.0);
        let (mut beyond, mut stepped) = (0.0, 0.0);
        for i in before.frame + 1..=after.frame {
            let step = mic[i].timestamp_ms.saturating_sub(mic[i - 1].timestamp_ms) as f64;
            let frame = mic[i - 1].len as f64 / BYTES_PER_MS as f64;
            let left_out = (step - frame).max(0.0);
            expected += step.min(frame) + left_out.min(longest);
            beyond += (left_out - longest).max(0.0);
            gap += left_out;
            if left_out <= TIMESTAMP_WANDER_MS {
                stepped += left_out;
            }
            let again = mic[i].timestamp_ms == mic[i - 1].timestamp_ms;
            if i < after.frame && i >= protected && mic[i].speech && !again && spoken_is_loud(case, &mic[i]) {
                missing += mic[i].len as f64 / BYTES_PER_MS as f64;
            }
        }
        let given = (after.given - before.given) as f64 / BYTES_PER_MS as f64;
        let pause = if tolerance.caller_may_pause(when(before.given), at) {
            let once = turn_end + PAUSE_FILL_MS;
            let from = when(before.given).0.saturating_sub(PAUSE_SEEN_US);
            // Silence is supplied to each turn that does not end for want of it.
            let begun = case.call.models.iter().flat_map(|model| &model.observations).filter(|seen| {
                matches!(seen.what, ModelObservation::SentSpeechStarted { .. })
                    && (At(from)..=at).contains(&seen.at)
            });
            let pauses = begun.count().max(1) as f64;
            // As long as nobody says that the turn has ended, it is not over: that is under way, or kept back.
            let unsaid = in_ms(tolerance.outages(Leg::Model, from, at.0));
            (pauses + 1.0) * once + unsaid
        } else {
            0.0
        };
        // What the clock has filled is no longer part of the gap whose length is bounded.
        let most = expected + if pause > 0.0 { beyond } else { 0.0 };
        let off = if given > expected { (given - most).max(0.0) } else { given - expected };
        let filled = if wander == Wander::MayBeFilled { stepped } else { 0.0 };
        if missing > 0.0 && off < -FILL_MS / 2.0 {
            violations.push(at, format!("{missing:.0} ms of the caller's speech never reached the model"));
        } else if off < -grid_ms || off > grid_ms + pause + filled {
            violations.push(
                at,
                format!("{given:.0} ms were given to the model where {expected:.0} ms were spoken, {gap:.0} ms of them left out"),
            );
        }
    }
}

fn has_speech(mic: &[MicFrame], from: usize, to: usize) -> bool {
    let mut seen = None;
    mic.iter().filter(|f| f.offset + f.len > from && f.offset < to).any(|frame| {
        // A frame sent twice may be given once.
        let again = seen == Some(frame.timestamp_ms);
        seen = Some(frame.timestamp_ms);
        frame.speech && !again && frame.offset + frame.len / 2 >= from
    })
}

// ------------------------------------------------------------------------------------------------ pace

fn pace(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, PACING.name, |case, violations| {
        check_holes(case, violations);
        check_lead(case, violations);
        for seen in &case.call.caller.observations {
            if let CallerObservation::Warned { code: 31_931, detail } = &seen.what
                && !case.tolerance.ear_is_short()
            {
                violations.push(seen.at, format!("the ear discarded audio (31931): {detail}"));
            }
        }
    })
}

/// What lies ahead of the ear when the bridge is about to send the next batch, and has it.
fn lead_at_least_us(case: &CallUnderTest<'_>) -> u64 {
    let pacing = &case.tolerance.config.pacing;
    (pacing.lead_ms - pacing.mark_every_ms.min(pacing.lead_ms / 2)) * 1_000
}

fn check_holes(case: &CallUnderTest<'_>, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    if !tolerance.ear_works() {
        // A line too slow for speech has holes that nobody could have filled.
        return;
    }
    // Holes too short to be heard alone, by item: the first, how many, how long in all.
    let mut cracks: BTreeMap<&str, (At, usize, u64)> = BTreeMap::new();
    for pair in case.attribution.played.windows(2) {
        let [before, after] = pair else { continue };
        let hole = after.at.since(before.end());
        if hole < CRACK_US {
            continue;
        }
        // Silence that comes late is heard by nobody.
        let goes_on = &case.call.caller.received[after.offset..after.offset + after.len.min(WINDOW)];
        if audio_attribution::is_quiet(goes_on) {
            continue;
        }
        let Some((item, sample)) = case.attribution.item_at(after.offset) else { continue };
        let last = (before.offset + before.len).saturating_sub(1);
        let same = case.attribution.item_at(last).is_some_and(|(other, _)| other.id == item.id);
        // The bridge sends whole frames: it had the one that was missing when all of it had been sent, and the last
        // one when it was told that there is no more.
        let sent = item.sent_at(sample + FIRST_FRAME).or(item.done);
        let Some(sent) = sent.filter(|_| same) else { continue };
        // A carrier that tells late what was played looks like an outage for a while.
        let held_up = tolerance.held_up(Leg::Caller, before.end()) + tolerance.late_marks_us();
        if held_up >= lead_at_least_us(case) {
            // What lies at the ear is no longer than the outage.
            continue;
        }
        let slack = tolerance.held_up(Leg::Model, sent) + held_up;
        let in_hand =
            sent.0 + tolerance.latency(Leg::Model) + tolerance.latency(Leg::Caller) + slack + IN_HAND_US;
        if in_hand < before.end().0 && hole < HOLE_US {
            let (_, count, all) = cracks.entry(&item.id).or_insert((before.end(), 0, 0));
            *count += 1;
            *all += hole;
        } else if in_hand < before.end().0 {
            violations.push(
                before.end(),
                format!(
                    "a hole of {:.0} ms in {} at {} ms, which the bridge had for {:.0} ms",
                    in_ms(hole),
                    item.id,
                    sample / BYTES_PER_MS,
                    in_ms(before.end().0 - in_hand + IN_HAND_US)
                ),
            );
        }
    }
    for (id, (at, count, all)) in cracks.into_iter().filter(|(_, (_, _, all))| *all >= CHOPPY_US) {
        let ms = in_ms(all);
        violations.push(
            at,
            format!("{count} small holes in {id}, {ms:.0} ms in all, and the bridge had what was missing"),
        );
    }
}

fn check_lead(case: &CallUnderTest<'_>, violations: &mut Violations) {
    let lead_ms = case.tolerance.config.pacing.lead_ms;
    if lead_ms >= NO_PACING_MS || !case.tolerance.ear_works() {
        return;
    }
    // Without marks an outage cannot be known, and nothing corrects what it left behind. With a lead below their
    // distance the ear runs dry in between, and a late mark may as well be a carrier's habit.
    let outages_show =
        case.tolerance.marks_come_back() && lead_ms > 2 * case.tolerance.config.pacing.mark_every_ms;
    let mut worst: Option<(At, u64)> = None;
    let mut latest = None;
    for arrival in &case.attribution.arrivals {
        // A caller who is gone plays nothing, and clears nothing.
        if arrival.at >= case.tolerance.over() {
            break;
        }
        // What a clear of the same instant threw away counts for nothing.
        if latest == Some(arrival.at) || case.attribution.clears.iter().any(|clear| clear.at == arrival.at) {
            continue;
        }
        latest = Some(arrival.at);
        let held_up = if outages_show {
            case.tolerance.held_up(Leg::Caller, arrival.at)
        } else {
            case.tolerance.held_up_in_all()
        };
        let most = lead_ms + LEAD_SLACK_MS + (held_up + 2 * case.tolerance.latency(Leg::Caller)) / 1_000;
        let lead = (case.attribution.queued(arrival.at) / BYTES_PER_MS) as u64;
        if lead > most && worst.is_none_or(|(_, w)| lead > w) {
            worst = Some((arrival.at, lead));
        }
    }
    if let Some((at, lead)) = worst {
        violations.push(
            at,
            format!("the ear was {lead} ms behind what was sent; at most {lead_ms} ms were agreed"),
        );
    }
}

// --------------------------------------------------------------------------------------------- latency

/// One answer to one turn of the caller, from the microphone to the ear, and where the time went. Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// When the caller fell silent.
    pub at: At,
    /// From there to the first agent sample at the ear.
    pub mic_to_mic: f64,
    /// From the end of speech to the model's noticing it, without the network: the silence it waits for.
    pub detection: f64,
    /// From there to the model's first audio.
    pub model: f64,
    /// Both legs, both ways.
    pub network: f64,
    /// What the bridge added.
    pub bridge: f64,
    /// What the ear added: play-out, and what it had to play before.
    pub carrier: f64,
}

/// The answers of one call.
pub(crate) fn answers(case: &CallUnderTest<'_>) -> Vec<Answer> {
    let tolerance = &case.tolerance;
    // What was said in the protected window is no turn.
    let protected = window(case);
    let ends: Vec<At> = case
        .call
        .caller
        .observations
        .iter()
        .filter(|seen| matches!(seen.what, CallerObservation::SpeechEnded { .. }))
        .map(|seen| seen.at)
        .filter(|at| protected.is_none_or(|window| !window.holds(case, *at)))
        .collect();
    let mut answers = Vec::new();
    let network_one_way = tolerance.latency(Leg::Caller) + tolerance.latency(Leg::Model);
    for (m, model) in case.call.models.iter().enumerate() {
        let mut over = None;
        for (index, seen) in model.observations.iter().enumerate() {
            let ModelObservation::SentSpeechStopped { .. } = seen.what else { continue };
            let stopped = seen.at;
            let Some(ended) = ends.iter().rev().find(|end| end.0 + network_one_way <= stopped.0) else {
                continue;
            };
            // The first turn that ended after the caller's last word has that word in it. A further one is noise, and
            // its answer is not the one that was waited for.
            if over.replace(*ended) == Some(*ended) {
                continue;
            }
            let rest = &model.observations[index + 1..];
            let next_turn =
                rest.iter().find(|s| matches!(s.what, ModelObservation::SentSpeechStarted { .. }));
            let created = rest.iter().find_map(|s| {
                if let ModelObservation::SentResponseCreated { response, .. } = &s.what {
                    Some((s.at, response))
                } else {
                    None
                }
            });
            let Some((created_at, response)) = created else { continue };
            if next_turn.is_some_and(|next| next.at < created_at) {
                continue;
            }
            // What waited for a session was heard late, which says nothing about how fast the bridge is.
            let waited = tolerance.without_model_since(m).is_some()
                && tolerance.ready_at(m).is_some_and(|at| at > *ended);
            let item =
                case.attribution.items.iter().find(|i| i.model == m && i.response == *response && !i.silent);
            let Some(item) = item.filter(|_| !waited) else { continue };
            let Some((first, sample)) = case.attribution.of_item(item).next() else { continue };
            if sample > DELAY {
                continue;
            }
            if !tolerance.config.barge_in && case.attribution.queued(At(created_at.0 + network_one_way)) > 0 {
                // It waits for its turn, and says nothing about how fast the bridge is.
                continue;
            }
            let needed = FIRST_FRAME.min(item.len.saturating_sub(1));
            let (Some(sent), Some(arrived), Some(played)) = (
                item.sent_at(needed),
                case.attribution.arrived_at(first.offset),
                case.attribution.played_at(first.offset),
            ) else {
                continue;
            };
            // What was interrupted before its first sound was no answer any more.
            if next_turn.is_some_and(|next| next.at < sent) {
                continue;
            }
            answers.push(Answer {
                at: *ended,
                mic_to_mic: in_ms(played.since(*ended)),
                detection: in_ms(stopped.since(*ended)) - in_ms(network_one_way),
                model: in_ms(sent.since(stopped)),
                network: in_ms(2 * network_one_way),
                bridge: in_ms(arrived.since(sent)) - in_ms(network_one_way),
                carrier: in_ms(played.since(arrived)),
            });
        }
    }
    answers.sort_by_key(|answer| answer.at);
    answers
}

fn latency(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, RESPONSE_LATENCY.name, |case, violations| {
        if !case.tolerance.is_ideal() {
            return;
        }
        let share = in_ms(BRIDGE_SHARE_US + case.tolerance.backend_us());
        for answer in answers(case) {
            if answer.bridge > share {
                violations.push(
                    answer.at,
                    format!("the bridge held the first audio of an answer for {:.0} ms", answer.bridge),
                );
            }
            let budget = case.tolerance.budget_ms();
            // In real time the end of speech is as late as this machine, too.
            if answer.mic_to_mic > budget as f64 + in_ms(case.tolerance.real_time_us()) {
                violations.push(
                    answer.at,
                    format!("the answer came after {:.0} ms; the budget is {budget} ms", answer.mic_to_mic),
                );
            }
        }
    })
}

// --------------------------------------------------------------------------------------------- audible

/// A caller who is told that the call cannot go on hears all of it before the stream is closed.
fn check_last_words(case: &CallUnderTest<'_>, violations: &mut Violations) {
    /// A frame that was being played, and one that was about to be.
    const SPARE_MS: u64 = 40;
    let told = case.call.bridge.iter().any(|(_, event)| matches!(event, CallEvent::Notice { .. }));
    let tolerance = &case.tolerance;
    let Some(closed) = tolerance.closed_by_bridge().filter(|_| told && tolerance.marks_come_back()) else {
        return;
    };
    let replaced = case
        .trace
        .calls
        .iter()
        .enumerate()
        .any(|(i, other)| i != case.index && other.caller.call_sid == case.call.caller.call_sid);
    if tolerance.caller_gone().is_some() || replaced {
        return;
    }
    // Marks that are given up before they can be back prove nothing.
    if tolerance.config.timeouts.mark_ms * 1_000
        <= 2 * tolerance.latency(Leg::Caller) + tolerance.held_up_in_all()
    {
        return;
    }
    let left_ms = (case.attribution.queued(closed) / BYTES_PER_MS) as u64;
    let slack_ms = (tolerance.held_up(Leg::Caller, closed) + tolerance.gathering_us()) / 1_000;
    if left_ms > SPARE_MS + slack_ms {
        violations.push(closed, format!("the stream was closed over {left_ms} ms of the last words"));
    }
}

/// What a caller waits for.
struct Wait {
    from: At,
    patience_ms: u64,
    why: &'static str,
}

fn audible(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, NO_DEAD_AIR.name, |case, violations| {
        if !case.tolerance.ear_works() {
            return;
        }
        check_last_words(case, violations);
        for m in 0..case.call.models.len() {
            check_fillers(case, m, violations);
        }
        for wait in waits(case) {
            let end = end_of_wait(case, wait.from);
            let patience_ms = if calls_functions(case, wait.from, end) {
                // Functions may take their time, and the whole of it has a limit of its own.
                wait.patience_ms.max(case.tolerance.dead_air_ms() + PATIENCE_MS)
            } else {
                wait.patience_ms
            };
            let allowed = patience_ms * 1_000 + case.tolerance.held_up_in_all();
            let silence = end.since(wait.from);
            if silence > allowed {
                violations.push(
                    wait.from,
                    format!("{} and heard nothing for {:.1} s", wait.why, silence as f64 / 1_000_000.0),
                );
            }
        }
    })
}

fn calls_functions(case: &CallUnderTest<'_>, from: At, to: At) -> bool {
    let observations = case.call.models.iter().flat_map(|model| &model.observations);
    observations.into_iter().any(|seen| {
        (from..=to).contains(&seen.at) && matches!(seen.what, ModelObservation::SentFunctionCall { .. })
    })
}

/// Where a filler is configured, a caller who has been waiting for so long is told that it takes a moment as soon as a
/// function runs and nothing else is about to be said, however many functions ran before.
fn check_fillers(case: &CallUnderTest<'_>, m: usize, violations: &mut Violations) {
    let tolerance = &case.tolerance;
    let Some(filler) = tolerance.config.hold_message.as_ref().filter(|_| tolerance.bridge_speaks()) else {
        return;
    };
    let observations = &case.call.models[m].observations;
    let way = |at: At| tolerance.latency(Leg::Model) + tolerance.slack(Leg::Model, at) + ON_ITS_WAY_US;
    for turn in observations.iter().filter(|s| matches!(s.what, ModelObservation::SentSpeechStopped { .. })) {
        let over = end_of_wait(case, turn.at).min(tolerance.model_over(m)).min(tolerance.over());
        for seen in observations.iter().filter(|s| (turn.at..over).contains(&s.at)) {
            let ModelObservation::SentFunctionCall { call_id, response, .. } = &seen.what else { continue };
            let done = observations.iter().find_map(|s| {
                let ModelObservation::SentResponseDone { response: r, .. } = &s.what else { return None };
                (r == response).then_some(s.at)
            });
            let Some(done) = done else { continue };
            // The wait began when the bridge heard of the turn's end.
            let waits = At(turn.at.plus_ms(filler.after_ms).0 + tolerance.slack(Leg::Model, turn.at));
            let from = done.max(seen.at).max(waits);
            // What is on its way to a caller who is held up may be heard by then, as far as the bridge can know.
            let due = At(from.0 + 2 * way(from) + tolerance.slack(Leg::Caller, from));
            let is_way_out = |name: &str| [END_CALL, TRANSFER_CALL].contains(&name);
            // Whatever else was going on by then explains the silence, or ends it.
            let other = observations.iter().filter(|s| (turn.at..=due).contains(&s.at)).any(|s| {
                let what = &s.what;
                let behind = s.at >= done;
                matches!(what, ModelObservation::SentSpeechStarted { .. })
                    || (behind && matches!(what, ModelObservation::GotCreate { .. }))
                    || (behind
                        && matches!(what, ModelObservation::SentResponseCreated { response: r, .. } if r != response))
                    || matches!(what, ModelObservation::GotToolOutput { call_id: id, .. } if id == call_id)
                    || matches!(what, ModelObservation::SentFunctionCall { name, .. } if is_way_out(name))
            });
            // One word for all functions that run at one time.
            let answered = |id: &str| {
                let is_its = |s: &Observation<ModelObservation>| matches!(&s.what, ModelObservation::GotToolOutput { call_id, .. } if call_id == id);
                observations.iter().any(|s| s.at < done && is_its(s))
            };
            let beside = observations.iter().filter(|s| s.at < done).any(|s| {
                let ModelObservation::SentFunctionCall { call_id: id, response: r, .. } = &s.what else {
                    return false;
                };
                r != response && !answered(id)
            });
            let keys = case.call.caller.observations.iter().any(|s| {
                s.at >= turn.at && s.at <= due && matches!(s.what, CallerObservation::SentDtmf { .. })
            });
            // What was said by then and is on its way is heard soon.
            let said = case.attribution.items.iter().any(|item| {
                let since_turn = |at: At| (turn.at..=due).contains(&at);
                item.model == m && !item.silent && item.first_sent().is_some_and(since_turn)
            });
            if due < over && !other && !beside && !keys && !said {
                let waited = in_ms(due.since(turn.at));
                violations.push(
                    due,
                    format!("a function ran, the caller had waited for {waited:.0} ms and was told nothing"),
                );
                return;
            }
        }
    }
}

fn waits(case: &CallUnderTest<'_>) -> Vec<Wait> {
    let timeouts = &case.tolerance.config.timeouts;
    // Asked, asked again, and given up.
    let answer_ms = PATIENCE_MS + 2 * timeouts.first_audio_ms + timeouts.retry_ms;
    let ready_ms = timeouts.dial_ms + timeouts.session_created_ms + timeouts.session_updated_ms;
    let mut waits = Vec::new();
    for (m, model) in case.call.models.iter().enumerate() {
        for seen in &model.observations {
            if matches!(seen.what, ModelObservation::SentSpeechStopped { .. }) {
                waits.push(Wait { from: seen.at, patience_ms: answer_ms, why: "the caller's turn ended" });
            }
        }
        // A try to renew the session that failed cost nobody anything, and where another session goes on, only an answer
        // that was cut off is waited for.
        let came_back = case.tolerance.model_came_back(m);
        let repeated = case.tolerance.config.renewal.is_some() && came_back;
        let dead = case.tolerance.model_broke(m).filter(|_| !repeated);
        if let Some(at) = dead.filter(|at| !came_back || is_speaking(&model.observations, *at)) {
            waits.push(Wait { from: at, patience_ms: PATIENCE_MS, why: "the model was gone" });
        }
    }
    let began = case.call.caller.observations.iter().find(|s| matches!(s.what, CallerObservation::SentStart));
    if let Some(began) = began.filter(|_| case.tolerance.greets() || case.call.models.is_empty()) {
        let media = case.call.caller.mic.first().map_or(timeouts.first_media_ms, |_| 0);
        let patience_ms = ready_ms + answer_ms + media;
        waits.push(Wait { from: began.at, patience_ms, why: "the call was answered" });
    }
    waits
}

/// Whether a response was under way at `at`.
fn is_speaking(observations: &[Observation<ModelObservation>], at: At) -> bool {
    let mut active = BTreeSet::new();
    for seen in observations.iter().filter(|seen| seen.at <= at) {
        if let ModelObservation::SentResponseCreated { response, .. } = &seen.what {
            active.insert(response);
        } else if let ModelObservation::SentResponseDone { response, .. } = &seen.what {
            active.remove(response);
        }
    }
    !active.is_empty()
}

/// When the caller no longer waits: something was heard, the caller spoke, or the call was over.
fn end_of_wait(case: &CallUnderTest<'_>, from: At) -> At {
    let heard = case.attribution.played.iter().filter(|p| p.end() > from).map(|p| p.at.max(from)).min();
    let spoke = case
        .call
        .caller
        .observations
        .iter()
        .find(|s| s.at > from && matches!(s.what, CallerObservation::SpeechBegan { .. }))
        .map(|s| s.at);
    let end = case.tolerance.over().min(case.trace.ended_at);
    [heard, spoke].into_iter().flatten().fold(end, At::min).max(from)
}

/// How long each frame of the caller's speech took from the microphone to the model, milliseconds; the network's share
/// is in it.
pub fn delays_up(trace: &Trace) -> Vec<f64> {
    use std::cell::RefCell;
    let delays = RefCell::new(Vec::new());
    each(trace, "figures", |case, _| {
        for (m, given) in case.attribution.given.iter().enumerate() {
            let model = &case.call.models[m];
            let bytes_per_sample = if model.input_format == "audio/pcm" { 6 } else { 1 };
            let appends: Vec<(At, usize)> = model
                .observations
                .iter()
                .filter_map(|seen| {
                    let ModelObservation::GotAppend { offset, len } = seen.what else { return None };
                    Some((seen.at, offset + len))
                })
                .collect();
            let from_mic: Vec<&Given> = given.iter().filter(|g| g.spoken.is_some()).collect();
            for anchor in anchors(case, &from_mic) {
                let frame = &case.call.caller.mic[anchor.frame];
                let end = (anchor.given + frame.len.saturating_sub(DELAY)) * bytes_per_sample;
                let given = appends.get(appends.partition_point(|(_, reached)| *reached < end));
                // A frame that was sent before there was a model waited for it, which is not the bridge's doing.
                let Some((at, _)) = given.filter(|(at, _)| *at >= frame.at) else { continue };
                if case.tolerance.ready_at(m).is_some_and(|ready| ready < frame.at) {
                    delays.borrow_mut().push(in_ms(at.since(frame.at)));
                }
            }
        }
    });
    delays.into_inner()
}

// --------------------------------------------------------------------------------------------- figures

/// What a table of a run shows, in milliseconds unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// For each cut: where it was made, less what the ear had heard.
    pub truncation_errors: Vec<f64>,
    /// For each clear that answered an interruption: from `speech_started` to the ear.
    pub clear_latencies: Vec<f64>,
    /// Bytes heard or queued of responses that had been interrupted.
    pub stale_bytes: usize,
    /// Every answer.
    pub answers: Vec<Answer>,
}

/// Measures a trace.
pub fn figures(trace: &Trace) -> Figures {
    use std::cell::RefCell;
    let figures = RefCell::new(Figures::default());
    each(trace, "figures", |case, _| {
        let mut figures = figures.borrow_mut();
        let interruptions = barge_ins(case);
        for cut in cuts(case, &interruptions) {
            if let (Some(heard), Some(_)) = (cut.played_ms, cut.barge_in) {
                figures.truncation_errors.push(cut.audio_end_ms as f64 - heard);
            }
        }
        for barge_in in &interruptions {
            if let Some(clear) = barge_in.clears.first() {
                figures.clear_latencies.push(in_ms(clear.at.since(barge_in.at)));
            }
            figures.stale_bytes += stale(case, barge_in).iter().map(|(_, _, bytes)| bytes).sum::<usize>();
        }
        figures.answers.extend(answers(case));
    });
    figures.into_inner()
}

#[cfg(test)]
mod tests {
    use super::super::bench::Bench;
    use super::*;
    use crate::model::backend::Backend;
    use mocks::record::{Ending, ModelRecord};

    #[test]
    fn an_answer_heard_whole_passes() {
        let trace = Bench::answered(1_500).trace();
        assert_eq!(bytes_out(&trace), []);
        assert_eq!(pace(&trace), []);
        assert_eq!(latency(&trace), []);
        assert_eq!(audible(&trace), []);
    }

    #[test]
    fn lost_and_repeated_and_swapped_audio_is_found() {
        let lost = bytes_out(&Bench::answered_with(1_500, |frames| drop(frames.drain(20..22))).trace());
        assert!(lost.iter().any(|v| v.what.contains("40 ms of item_1 are missing")), "{lost:?}");
        let twice = bytes_out(&Bench::answered_with(1_500, |f| f.insert(20, f[19].clone())).trace());
        assert!(twice.iter().any(|v| v.what.contains("repeated")), "{twice:?}");
        let swapped = bytes_out(&Bench::answered_with(1_500, |f| f.swap(20, 25)).trace());
        assert!(swapped.iter().any(|v| v.what.contains("out of order")), "{swapped:?}");
        let tail = bytes_out(&Bench::answered_with(1_500, |f| f.truncate(70)).trace());
        assert!(tail.iter().any(|v| v.what.contains("100 ms of 1500 ms of item_1 never came")), "{tail:?}");
    }

    #[test]
    fn audio_the_model_did_not_make_is_found() {
        let found = bytes_out(&Bench::answered_with(1_500, |f| f[30] = vec![0; WINDOW]).trace());
        assert!(found.iter().any(|v| v.what.contains("did not make")), "{found:?}");
    }

    #[test]
    fn a_hole_the_bridge_could_have_filled_is_found() {
        let mut bench = Bench::answered(1_500);
        bench.tear_open(600, 100);
        let found = pace(&bench.trace());
        assert!(found.iter().any(|v| v.what.contains("hole of 100 ms")), "{found:?}");
    }

    #[test]
    fn too_far_a_lead_is_found() {
        let mut bench = Bench::answered(9_000);
        bench.all_at_once();
        let found = pace(&bench.trace());
        assert!(found.iter().any(|v| v.what.contains("at most 3000 ms")), "{found:?}");
    }

    #[test]
    fn an_answer_held_back_is_found() {
        let mut bench = Bench::answered(1_500);
        bench.later(400);
        let found = latency(&bench.trace());
        assert!(found.iter().any(|v| v.what.contains("for 400 ms")), "{found:?}");
    }

    #[test]
    fn the_budget_of_an_answer_grants_what_real_time_takes() {
        let mut bench = Bench::answered(1_500);
        bench.later(320);
        let mut trace = bench.trace();
        let over = |trace: &Trace| latency(trace).iter().any(|found| found.what.contains("the budget"));
        assert!(over(&trace), "{:?}", latency(&trace));
        trace.backend = Backend::Attach;
        assert!(!over(&trace), "{:?}", latency(&trace));
    }

    #[test]
    fn silence_without_end_is_found() {
        let mut bench = Bench::answered(1_500);
        bench.say_nothing_for(60_000);
        let found = audible(&bench.trace());
        assert!(found.iter().any(|v| v.what.contains("heard nothing")), "{found:?}");
    }

    /// The same call with another session behind the first, given this.
    fn followed(mut trace: Trace, ready_ms: u64, appended: Vec<u8>) -> Trace {
        let ended = Ending::ByPeer { code: Some(1_000), reason: String::new() };
        let len = appended.len();
        let observations = [
            (0, ModelObservation::Opened),
            (20, ModelObservation::SentSessionUpdated),
            (40, ModelObservation::GotAppend { offset: 0, len }),
            (30_000, ModelObservation::Ended(ended)),
        ];
        let observations = observations
            .map(|(ms, what)| Observation { at: At::ms(ready_ms + ms), what })
            .into_iter()
            .collect();
        let input_format = "audio/pcmu".to_owned();
        trace.calls[0].models.push(ModelRecord {
            observations,
            appended,
            input_format,
            ..ModelRecord::default()
        });
        trace
    }

    #[test]
    fn who_goes_on_with_another_session_keeps_nobody_waiting_but_for_a_lost_answer() {
        let dies = |at: u64| {
            let mut bench = Bench::answered_with(1_000, Vec::clear).bridge_closed(60_000);
            bench.model_dies(at);
            bench.trace()
        };
        let silence = || vec![0xFF; 160];
        let gone =
            |trace: &Trace| audible(trace).iter().any(|found| found.what.contains("the model was gone"));
        assert!(gone(&dies(10_000)));
        assert!(!gone(&followed(dies(10_000), 10_300, silence())), "nothing was owed");
        assert!(gone(&followed(dies(2_000), 2_300, silence())), "an answer was under way");
    }

    #[test]
    fn a_later_session_need_not_be_told_what_the_one_before_was_told() {
        let trace = Bench::spoken("audio/pcmu", |_| {}).trace();
        let last = trace.calls[0].caller.mic.last().expect("a caller who spoke").at.0 / 1_000;
        assert_eq!(bytes_in(&followed(trace, last + 500, vec![0xFF; 160])), []);
    }

    #[test]
    fn steps_of_the_timestamps_are_told_from_gaps() {
        let mut stepped = Bench::spoken("audio/pcmu", |frames| {
            for frame in frames.iter_mut().skip(1).step_by(2) {
                frame.extend_from_slice(&[0xFF; 16]);
            }
        })
        .trace();
        for frame in stepped.calls[0].caller.mic.iter_mut().skip(1).step_by(2) {
            frame.timestamp_ms += 2;
        }
        // Two words with a silence between them, in which nothing can be held on to.
        let mut words: Vec<_> = stepped.calls[0].caller.mic.iter_mut().filter(|frame| frame.speech).collect();
        let last = words.len() - 3;
        for frame in &mut words[3..last] {
            frame.speech = false;
        }
        assert!(!bytes_in(&stepped).is_empty());
        assert_eq!(bytes_in_but_for_wander(&stepped), []);
        let gap = Bench::spoken_with_gap("audio/pcmu", 500, 0).trace();
        assert!(!bytes_in_but_for_wander(&gap).is_empty(), "half a second is no step");
    }

    #[test]
    fn what_the_caller_said_reaches_the_model() {
        for format in ["audio/pcmu", "audio/pcm"] {
            assert_eq!(bytes_in(&Bench::spoken(format, |_| {}).trace()), [], "{format}");
        }
    }

    #[test]
    fn lost_repeated_and_swapped_speech_is_found() {
        for format in ["audio/pcmu", "audio/pcm"] {
            let lost = bytes_in(&Bench::spoken(format, |f| drop(f.drain(30..33))).trace());
            assert!(lost.iter().any(|v| v.what.contains("never reached")), "{format} {lost:?}");
            let twice = bytes_in(&Bench::spoken(format, |f| f.insert(30, f[29].clone())).trace());
            assert!(!twice.is_empty(), "{format}");
            let swapped = bytes_in(&Bench::spoken(format, |f| f.swap(30, 35)).trace());
            assert!(!swapped.is_empty(), "{format}");
        }
    }

    #[test]
    fn a_gap_must_be_filled_by_its_timestamps() {
        for format in ["audio/pcmu", "audio/pcm"] {
            let filled = Bench::spoken_with_gap(format, 500, 500).trace();
            assert_eq!(bytes_in(&filled), [], "{format}");
            let bare = bytes_in(&Bench::spoken_with_gap(format, 500, 0).trace());
            assert!(bare.iter().any(|v| v.what.contains("500 ms of them left out")), "{format} {bare:?}");
        }
    }
}
