//! A caller who interrupts gets silence at once, hears nothing stale, and the model remembers what was heard.

use super::case::{CallUnderTest, Oracle, Violations, each, in_ms};
use super::greet::window;
use super::tolerance::Leg;
use crate::oracle::audio_attribution::{self, Attribution, BYTES_PER_MS, Clear, Item};
use crate::sim::trace::Trace;
use mocks::peer::At;
use mocks::record::{CallerObservation, ModelObservation, Observation};
use std::collections::BTreeSet;

/// What a bridge may take from reading `speech_started` to writing `clear`. It needs no timer for it.
pub const REACTION_US: u64 = 5_000;
/// One frame: nobody can tell better than this where in a frame the ear stopped.
pub const FRAME_US: u64 = 20_000;
/// How far behind its moment a `clear` or a cut is still taken for the answer to this interruption.
const BELONGS_US: u64 = 2_000_000;

/// See [`Oracle::about`].
pub const CLEAR_ON_BARGE_IN: Oracle = Oracle {
    name: "clear_on_barge_in",
    about: "A barge-in with unheard audio at the ear is answered by exactly one clear, at once, and one without by none, \
            because a caller who is talked over hangs up.",
    check: clear,
};

/// See [`Oracle::about`].
pub const NO_STALE_AUDIO: Oracle = Oracle {
    name: "no_stale_audio",
    about: "After a barge-in no byte of a response that existed then reaches the ear, because half a stale sentence \
            sounds like a broken machine.",
    check: fence,
};

/// See [`Oracle::about`].
pub const TRUNCATION_POSITION: Oracle = Oracle {
    name: "truncation_position",
    about: "The interrupted item is cut once, where the ear stopped, and no other is touched, because otherwise the \
            model believes it said what nobody heard.",
    check: truncation_position,
};

/// The caller began to speak, as the model said it, or pressed a key.
pub(crate) struct BargeIn {
    /// The model connection.
    pub(crate) model: usize,
    /// The caller spoke. A key may silence the agent, too, but need not.
    pub(crate) spoken: bool,
    /// When the model said so, or the key was sent.
    pub(crate) at: At,
    /// When the bridge knew, at the earliest.
    pub(crate) at_bridge: At,
    /// When an immediate `clear` reaches the ear, at the earliest.
    pub(crate) at_ear: At,
    /// How much later than that it may be.
    pub(crate) slack_us: u64,
    /// An outage may lie on its way to the bridge, or on the clear's to the ear: what arrives together then does not
    /// show what belongs together.
    held_up: bool,
    /// What is done about it cannot reach the ear before.
    soonest: At,
    /// There was time left to do something about it. What comes of it otherwise is still its consequence.
    pub(crate) owed: bool,
    /// The clears that came because of it.
    pub(crate) clears: Vec<Clear>,
    /// The responses nothing more may be heard of.
    pub(crate) fenced: BTreeSet<String>,
}

impl BargeIn {
    /// When nothing stale may arrive any more.
    fn fence_at(&self) -> At {
        match self.clears.first() {
            Some(clear) if !self.held_up => clear.at,
            _ => At(self.at_ear.0 + REACTION_US + self.slack_us),
        }
    }

    /// When the ear stopped.
    pub(crate) fn stopped_at(&self) -> At {
        self.clears.first().map_or(self.at_ear, |clear| clear.at)
    }
}

/// Every `speech_started` and every key of a call with what it is owed, in order; those that are to interrupt nothing
/// are left out.
pub(crate) fn barge_ins(case: &CallUnderTest<'_>) -> Vec<BargeIn> {
    if !case.tolerance.config.barge_in {
        return Vec::new();
    }
    let protected = window(case);
    let mut all = Vec::new();
    for (m, model) in case.call.models.iter().enumerate() {
        for (index, seen) in model.observations.iter().enumerate() {
            if let ModelObservation::SentSpeechStarted { .. } = seen.what {
                let mut said = barge_in(case, m, seen.at, Leg::Model);
                // What was made in the same moment, but after, is not interrupted.
                said.fenced.retain(|response| !is_created(&model.observations[index..], response, seen.at));
                said.fenced.extend(made_in_speech(&model.observations[index..]));
                all.push(said);
            }
        }
    }
    for seen in &case.call.caller.observations {
        let CallerObservation::SentDtmf { .. } = seen.what else { continue };
        // A key that an outage holds up comes to a session that was not there when it was pressed.
        let comes =
            At(seen.at.0 + case.tolerance.latency(Leg::Caller) + case.tolerance.slack(Leg::Caller, seen.at));
        if protected.is_some_and(|window| window.holds(case, seen.at)) {
            continue;
        }
        let open = (0..case.call.models.len())
            .rfind(|m| case.tolerance.ready_at(*m).is_some_and(|ready| ready < comes));
        if let Some(m) = open {
            all.push(barge_in(case, m, seen.at, Leg::Caller));
        }
    }
    all.sort_by_key(|b| b.at_bridge);
    for clear in &case.attribution.clears {
        attribute(clear, &mut all);
    }
    all
}

/// One clear answers every interruption that it is in time for and that had none yet: a word and a key may come at
/// once. One that is in time for none belongs to the last before it.
fn attribute(clear: &Clear, all: &mut [BargeIn]) {
    let mut answered = false;
    for b in all.iter_mut().filter(|b| b.clears.is_empty() && b.soonest <= clear.at) {
        if clear.at.since(b.at_ear) <= REACTION_US + b.slack_us {
            b.clears.push(*clear);
            answered = true;
        }
    }
    if answered {
        return;
    }
    let cause = all.iter_mut().rev().find(|b| b.soonest <= clear.at);
    if let Some(cause) = cause.filter(|b| clear.at.since(b.at_ear) <= BELONGS_US + b.slack_us) {
        cause.clears.push(*clear);
    }
}

/// The interruption the bridge was told of on this leg.
fn barge_in(case: &CallUnderTest<'_>, model: usize, at: At, told_on: Leg) -> BargeIn {
    let tolerance = &case.tolerance;
    let at_bridge = At(at.0 + tolerance.latency(told_on));
    let at_ear = At(at_bridge.0 + tolerance.latency(Leg::Caller));
    let up_us = tolerance.slack(told_on, at);
    // An outage on the way to the bridge may lead into one on the way to the ear.
    let down_us =
        tolerance.slack(Leg::Caller, at_bridge).max(tolerance.slack(Leg::Caller, At(at_bridge.0 + up_us)));
    let slack_us = up_us + down_us + tolerance.reading_us(at_ear);
    // Nor is anybody to blame for what an end that cannot keep up learns, and when.
    let too_late = tolerance.reads_slower_than_speech()
        || tolerance.over() <= At(at_ear.0 + REACTION_US + slack_us)
        || tolerance.given_up(model) <= At(at_bridge.0 + up_us);
    BargeIn {
        model,
        spoken: told_on == Leg::Model,
        at,
        at_bridge,
        at_ear,
        slack_us,
        soonest: At(at.0 + tolerance.least_way(told_on, at) + tolerance.least_way(Leg::Caller, at_bridge)),
        owed: !too_late,
        held_up: tolerance.is_held_up(told_on, at) || tolerance.is_held_up(Leg::Caller, at_bridge),
        clears: Vec::new(),
        fenced: fenced(case, model, at_bridge),
    }
}

/// Whether this response was made at this very moment, in what follows.
fn is_created(following: &[Observation<ModelObservation>], response: &str, at: At) -> bool {
    following.iter().take_while(|seen| seen.at == at).any(
        |seen| matches!(&seen.what, ModelObservation::SentResponseCreated { response: id, asked: None, .. } if id == response),
    )
}

/// The responses the server made by itself before the speech that begins here was over: they answer the turn before.
fn made_in_speech(following: &[Observation<ModelObservation>]) -> impl Iterator<Item = String> {
    following
        .iter()
        .take_while(|seen| !matches!(seen.what, ModelObservation::SentSpeechStopped { .. }))
        .filter_map(|seen| {
            let ModelObservation::SentResponseCreated { response, asked: None, .. } = &seen.what else {
                return None;
            };
            Some(response.clone())
        })
}

/// The responses the bridge had been told of on this connection at `at_bridge`, and those it had asked for.
fn fenced(case: &CallUnderTest<'_>, model: usize, at_bridge: At) -> BTreeSet<String> {
    let up = case.tolerance.latency(Leg::Model);
    let created_by = At(at_bridge.0.saturating_sub(up));
    // A request is on its way to the model for one latency; one that left before the bridge knew is fenced, too.
    let asked_before = At(at_bridge.0 + up);
    let mut asked = BTreeSet::new();
    let mut fenced = BTreeSet::new();
    for seen in &case.call.models[model].observations {
        if let ModelObservation::GotCreate { event_id: Some(id), .. } = &seen.what
            && seen.at < asked_before
        {
            asked.insert(id.clone());
        }
        if let ModelObservation::SentResponseCreated { response, asked: by, .. } = &seen.what
            && (seen.at <= created_by || by.as_ref().is_some_and(|id| asked.contains(id)))
        {
            fenced.insert(response.clone());
        }
    }
    fenced
}

/// How far the ear's end and the bridge's idea of it may be apart: the mark that says so is under way.
fn unsure_us(case: &CallUnderTest<'_>, at: At) -> u64 {
    let tolerance = &case.tolerance;
    // Where each stretch of speech began behind an outage, no mark has shown how late marks are without one.
    let (outages, in_all) = tolerance.outages_until(Leg::Caller, at);
    2 * tolerance.latency(Leg::Caller)
        + tolerance.held_up(Leg::Caller, at)
        + tolerance.jitter_us(Leg::Caller)
        + if outages > 1 { in_all } else { 0 }
        + FRAME_US
        + tolerance.gathering_us()
        + tolerance.behind_a_mark_us()
}

fn clear(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, CLEAR_ON_BARGE_IN.name, |case, violations| {
        let barge_ins = barge_ins(case);
        for barge_in in barge_ins.iter().filter(|b| b.spoken && b.owed) {
            check_clear(case, barge_in, violations);
        }
        for clear in &case.attribution.clears {
            let answered = barge_ins.iter().any(|b| b.clears.contains(clear));
            let explained =
                case.tolerance.explains_clear(clear.at) || case.tolerance.reads_slower_than_speech();
            if !answered && !explained {
                let ms = clear.discarded / BYTES_PER_MS;
                violations.push(clear.at, format!("a clear threw {ms} ms away and nobody had interrupted"));
            }
        }
    })
}

fn check_clear(case: &CallUnderTest<'_>, barge_in: &BargeIn, violations: &mut Violations) {
    let attribution = case.attribution;
    let unsure = unsure_us(case, barge_in.at_bridge);
    let latest = At(barge_in.at_ear.0 + REACTION_US + barge_in.slack_us);
    match barge_in.clears.as_slice() {
        [] => {
            let unheard = attribution.queued(barge_in.at_ear);
            let us = unheard as u64 * 125;
            if us > unsure + barge_in.slack_us && is_agent(attribution, barge_in.at_ear, unheard) {
                let ms = unheard / BYTES_PER_MS;
                violations.push(latest, format!("no clear, and {ms} ms of the agent were still to be heard"));
            }
        }
        [clear, more @ ..] => {
            if clear.at > latest {
                let late = in_ms(clear.at.since(barge_in.at));
                let best = in_ms(barge_in.at_ear.since(barge_in.at));
                violations.push(
                    clear.at,
                    format!("the clear reached the ear {late} ms after speech_started; the network takes {best} ms"),
                );
            }
            let ear_ended = attribution.played.iter().rev().find(|p| p.at <= clear.at).map(|p| p.end());
            let long_idle = ear_ended.is_none_or(|end| clear.at.since(end) > unsure + barge_in.slack_us);
            if clear.discarded == 0 && clear.marks == 0 && long_idle {
                violations.push(clear.at, "a clear, and nothing was queued");
            }
            for extra in more.iter().enumerate().filter(|_| !barge_in.held_up) {
                // Audio of a new response may have to be cleared again by a new interruption, never by the same.
                violations.push(extra.1.at, format!("clear number {} for one interruption", extra.0 + 2));
            }
        }
    }
}

/// Whether anything the model said is among the last `unheard` bytes received by `at`.
fn is_agent(attribution: &Attribution, at: At, unheard: usize) -> bool {
    let end = attribution.received_by(at);
    let from = end.saturating_sub(unheard);
    (from..end).step_by(BYTES_PER_MS).any(|offset| attribution.item_at(offset).is_some())
}

fn fence(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, NO_STALE_AUDIO.name, |case, violations| {
        // A key that silenced nothing is not bound to have stopped anything.
        let silences = |b: &BargeIn| b.owed && (b.spoken || !b.clears.is_empty());
        for barge_in in barge_ins(case).into_iter().filter(silences) {
            let stale = stale(case, &barge_in);
            if let Some((at, item, _)) = stale.first() {
                let bytes: usize = stale.iter().map(|(_, _, bytes)| bytes).sum();
                let ms = bytes / BYTES_PER_MS;
                violations.push(
                    *at,
                    format!("{ms} ms of {} came after the interruption of {}", item.id, barge_in.at),
                );
            }
        }
    })
}

/// What arrived after the fence although it had been fenced: when, of which item, how many bytes.
pub(crate) fn stale<'a>(case: &CallUnderTest<'a>, barge_in: &BargeIn) -> Vec<(At, &'a Item, usize)> {
    let attribution = case.attribution;
    let fence = barge_in.fence_at();
    let mut stale = Vec::new();
    let before = attribution.arrivals.partition_point(|a| a.at <= fence);
    // A `clear` of the same instant separates by order, not by time.
    let offset = match barge_in.clears.first() {
        Some(clear) if !barge_in.held_up => clear.offset,
        _ => attribution.arrivals.get(before).map_or(usize::MAX, |a| a.offset),
    };
    for stretch in attribution.stretches.iter().filter(|s| s.end() > offset) {
        let from = stretch.offset.max(offset);
        let Some((item, _)) = attribution.item_at(from) else { continue };
        if item.model != barge_in.model || !barge_in.fenced.contains(&item.response) {
            continue;
        }
        let audio = &case.call.caller.received[from..stretch.end()];
        if audio.len() >= audio_attribution::TELLING && !audio_attribution::is_quiet(audio) {
            let at = attribution.arrived_at(from).unwrap_or(fence);
            stale.push((at, item, stretch.end() - from));
        }
    }
    stale
}

/// Where one item was cut, and where the ear was.
pub(crate) struct Cut {
    pub(crate) at: At,
    pub(crate) item: String,
    pub(crate) audio_end_ms: u64,
    /// What had been played of it when the caller's playback stopped, ms; `None` when the item has no audio.
    pub(crate) played_ms: Option<f64>,
    /// Which interruption it answers.
    pub(crate) barge_in: Option<usize>,
}

/// Every `conversation.item.truncate` of a call.
pub(crate) fn cuts(case: &CallUnderTest<'_>, barge_ins: &[BargeIn]) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let up = case.tolerance.latency(Leg::Model);
    for (m, model) in case.call.models.iter().enumerate() {
        for seen in &model.observations {
            let ModelObservation::GotTruncate { item, audio_end_ms: Some(audio_end_ms), .. } = &seen.what
            else {
                continue;
            };
            let response = case.attribution.item(m, item).map(|known| &known.response);
            let may_be = |b: &BargeIn| {
                b.model == m
                    && b.at_bridge.0 + up <= seen.at.0
                    && seen.at.since(b.at_bridge) <= BELONGS_US + up + b.slack_us
            };
            let in_time = |b: &BargeIn| {
                let slack = b.slack_us + case.tolerance.slack(Leg::Model, b.at_bridge);
                may_be(b) && seen.at.0 <= b.at_bridge.0 + up + 2 * REACTION_US + slack
            };
            // What silenced the ear is what the cut is about, whatever else was said while it was under way; but what
            // came before the response is not.
            let about = |b: &BargeIn| response.is_none_or(|response| b.fenced.contains(response));
            let silenced = |b: &BargeIn| in_time(b) && !b.clears.is_empty();
            let cause = barge_ins
                .iter()
                .rposition(|b| silenced(b) && about(b))
                .or_else(|| barge_ins.iter().rposition(|b| may_be(b) && about(b)))
                .or_else(|| barge_ins.iter().rposition(silenced))
                .or_else(|| barge_ins.iter().rposition(may_be));
            let stopped = cause.map_or(seen.at, |b| barge_ins[b].stopped_at());
            let played_ms =
                case.attribution.item(m, item).map(|known| case.attribution.item_played_ms(known, stopped));
            let (item, audio_end_ms) = (item.clone(), *audio_end_ms);
            cuts.push(Cut { at: seen.at, item, audio_end_ms, played_ms, barge_in: cause });
        }
    }
    cuts
}

fn truncation_position(trace: &Trace) -> Vec<super::case::Violation> {
    each(trace, TRUNCATION_POSITION.name, |case, violations| {
        let barge_ins = barge_ins(case);
        let cuts = cuts(case, &barge_ins);
        for (i, cut) in cuts.iter().enumerate() {
            if cuts[..i].iter().any(|before| before.item == cut.item) {
                violations.push(cut.at, format!("{} was cut a second time", cut.item));
            }
            check_cut(case, &barge_ins, cut, violations);
        }
        for (b, _) in barge_ins.iter().enumerate().filter(|(_, b)| b.owed) {
            check_memory(case, b, &barge_ins, &cuts, violations);
        }
    })
}

/// A cut is where the ear stopped, inside what was generated, and of something not heard to its end.
fn check_cut(case: &CallUnderTest<'_>, barge_ins: &[BargeIn], cut: &Cut, violations: &mut Violations) {
    let Some(barge_in) = cut.barge_in.map(|b| &barge_ins[b]) else {
        if !case.tolerance.explains_clear(cut.at) && !is_near_the_end(case, cut.at) {
            violations.push(
                cut.at,
                format!("{} was cut at {} ms and nobody had spoken", cut.item, cut.audio_end_ms),
            );
        }
        return;
    };
    let (Some(played_ms), Some(item)) = (cut.played_ms, case.attribution.item(barge_in.model, &cut.item))
    else {
        if cut.audio_end_ms > 0 {
            violations
                .push(cut.at, format!("{} was cut at {} ms and has no audio", cut.item, cut.audio_end_ms));
        }
        return;
    };
    if case.tolerance.over() <= barge_in.at_ear {
        // Nobody was there any more to hear what the bridge could not know was not heard.
        return;
    }
    let tolerance_us =
        unsure_us(case, barge_in.stopped_at()) + REACTION_US + case.tolerance.reading_us(barge_in.at_ear);
    let tolerance = in_ms(tolerance_us);
    // Nothing was there to be cleared: the ear went on for as long as the bridge did not know.
    let unknown_us = if barge_in.clears.is_empty() { barge_in.slack_us } else { 0 };
    let later = case.attribution.item_played_ms(item, At(barge_in.stopped_at().0 + unknown_us));
    let said = cut.audio_end_ms as f64;
    let off = (said - later).max(played_ms - said);
    if off > tolerance {
        violations.push(
            cut.at,
            format!(
                "{} was cut at {} ms, but the ear had {played_ms:.0} ms (at most {tolerance:.0} ms apart)",
                cut.item, cut.audio_end_ms
            ),
        );
    }
    let generated = item.sent_by(cut.at).div_ceil(BYTES_PER_MS) as u64;
    if cut.audio_end_ms > generated {
        violations.push(
            cut.at,
            format!(
                "{} was cut at {} ms, but only {generated} ms had been generated",
                cut.item, cut.audio_end_ms
            ),
        );
    }
    let earlier = At(barge_in.stopped_at().0.saturating_sub(tolerance_us));
    // Nor was it over for a bridge that had not been told.
    let was_over = item.done.is_some_and(|done| At(done.0 + case.tolerance.latency(Leg::Model)) < earlier);
    if was_over && case.attribution.item_played(item, earlier) + BYTES_PER_MS >= item.len {
        violations.push(cut.at, format!("{} was cut although it had been heard to its end", cut.item));
    }
}

/// The item that was playing must be cut: the model takes the whole of it for said.
fn check_memory(
    case: &CallUnderTest<'_>,
    index: usize,
    barge_ins: &[BargeIn],
    cuts: &[Cut],
    violations: &mut Violations,
) {
    let barge_in = &barge_ins[index];
    let stopped = barge_in.stopped_at();
    let up = case.tolerance.latency(Leg::Model);
    let later = At(barge_in.at_bridge.0 + barge_in.slack_us);
    let slack = barge_in.slack_us
        + case.tolerance.slack(Leg::Model, barge_in.at).max(case.tolerance.slack(Leg::Model, later));
    let due = At(barge_in.at_bridge.0 + up + 2 * REACTION_US + slack);
    if !barge_in.spoken && barge_in.clears.is_empty() {
        return;
    }
    if case.tolerance.model_over(barge_in.model) <= due || case.tolerance.over() <= due {
        return;
    }
    let tolerance = unsure_us(case, stopped) + REACTION_US + barge_in.slack_us;
    for item in case.attribution.items.iter().filter(|i| i.model == barge_in.model) {
        if !barge_in.fenced.contains(&item.response) || item.silent {
            continue;
        }
        // What an earlier clear took from the ear was to be cut then.
        let stopped_before =
            barge_ins[..index].iter().any(|b| !b.clears.is_empty() && b.fenced.contains(&item.response));
        if stopped_before {
            continue;
        }
        let heard = case.attribution.item_played(item, stopped);
        let earlier = case.attribution.item_played(item, At(stopped.0.saturating_sub(tolerance)));
        // Only what was audible when the ear stopped: an item interrupted before keeps its old cut.
        let was_cut =
            cuts.iter().any(|c| c.item == item.id && (c.at <= due || c.barge_in.is_some_and(|b| b <= index)));
        let generated = item.sent_by(At(barge_in.at_bridge.0.saturating_sub(up)));
        let unheard = generated.saturating_sub(heard) as u64 * 125;
        if earlier > 0 && unheard > tolerance && !was_cut && !was_deleted(case, barge_in.model, &item.id) {
            violations.push(
                due,
                format!(
                    "{} was never cut: {} ms were heard and {} ms were generated",
                    item.id,
                    heard / BYTES_PER_MS,
                    generated / BYTES_PER_MS
                ),
            );
        }
        for cut in cuts.iter().filter(|c| c.item == item.id && c.barge_in == Some(index)) {
            if cut.at > due {
                violations.push(cut.at, format!("{} was cut {} ms late", item.id, in_ms(cut.at.since(due))));
            }
        }
    }
}

fn was_deleted(case: &CallUnderTest<'_>, model: usize, id: &str) -> bool {
    case.call.models[model]
        .observations
        .iter()
        .any(|seen| matches!(&seen.what, ModelObservation::GotDelete { item } if item == id))
}

/// A bridge that ends a call may say so by cutting what will never be heard.
fn is_near_the_end(case: &CallUnderTest<'_>, at: At) -> bool {
    at.0 + BELONGS_US >= case.tolerance.over().0
}

#[cfg(test)]
mod tests {
    use super::super::bench::Bench;
    use super::*;
    use mocks::record::Ending;

    #[test]
    fn a_prompt_clear_and_an_honest_cut_pass() {
        let trace = Bench::barge_in().trace();
        assert_eq!(clear(&trace), []);
        assert_eq!(fence(&trace), []);
        assert_eq!(truncation_position(&trace), []);
    }

    #[test]
    fn a_missing_clear_is_found() {
        let found = clear(&Bench::barge_in_with(|b| b.clear_after_ms = None).trace());
        assert!(found.iter().any(|v| v.what.contains("no clear")), "{found:?}");
    }

    #[test]
    fn a_word_that_crosses_the_close_of_the_session_is_owed_nothing() {
        let mut bench = Bench::answered(5_000);
        bench.speech_started(4_000);
        let found = clear(&bench.trace());
        assert!(found.iter().any(|v| v.what.contains("no clear")), "{found:?}");
        bench.model(
            4_010,
            ModelObservation::Ended(Ending::ByPeer { code: Some(1_000), reason: String::new() }),
        );
        assert_eq!(clear(&bench.trace()), []);
    }

    #[test]
    fn a_late_clear_is_found() {
        let found = clear(&Bench::barge_in_with(|b| b.clear_after_ms = Some(250)).trace());
        assert!(found.iter().any(|v| v.what.contains("reached the ear")), "{found:?}");
    }

    #[test]
    fn a_second_clear_is_found() {
        let found = clear(&Bench::barge_in_with(|b| b.clears = 2).trace());
        assert!(found.iter().any(|v| v.what.contains("number 2")), "{found:?}");
    }

    #[test]
    fn a_clear_of_nothing_is_found() {
        let mut bench = Bench::answered(1_000);
        bench.speech_started(5_000);
        bench.clear(5_000 + Bench::ROUND_MS);
        let found = clear(&bench.trace());
        assert!(found.iter().any(|v| v.what.contains("nothing was queued")), "{found:?}");
    }

    #[test]
    fn audio_of_an_interrupted_response_is_stale() {
        let found = fence(&Bench::barge_in_with(|b| b.stale_ms = 40).trace());
        assert!(found.iter().any(|v| v.what.contains("40 ms of")), "{found:?}");
    }

    #[test]
    fn a_cut_too_late_or_too_early_is_found() {
        for off in [-200, 200] {
            let found = truncation_position(&Bench::barge_in_with(|b| b.cut_off_ms = off).trace());
            assert!(found.iter().any(|v| v.what.contains("but the ear had")), "{found:?}");
        }
    }

    #[test]
    fn an_item_that_was_never_cut_is_found() {
        let found = truncation_position(&Bench::barge_in_with(|b| b.cuts = 0).trace());
        assert!(found.iter().any(|v| v.what.contains("never cut")), "{found:?}");
    }

    #[test]
    fn an_item_that_was_cut_twice_is_found() {
        let found = truncation_position(&Bench::barge_in_with(|b| b.cuts = 2).trace());
        assert!(found.iter().any(|v| v.what.contains("second time")), "{found:?}");
    }

    #[test]
    fn a_cut_of_another_item_is_found() {
        let found = truncation_position(&Bench::barge_in_with(|b| b.cut_item = "item_9".into()).trace());
        assert!(found.iter().any(|v| v.what.contains("has no audio")), "{found:?}");
    }
}
