//! A store that is gone with its process: for simulated worlds, and as the plainest statement of what a store does.

use super::rows::{
    CallRow, KeypadRow, LineRow, Page, Record, ResponseRow, Store, StoreError, StoredCall, ToolRow, What,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Calls in memory. A handle: clones see the same calls.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<BTreeMap<String, StoredCall>>>);

impl Memory {
    fn calls(&self) -> MutexGuard<'_, BTreeMap<String, StoredCall>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The row of this key, made if there is none.
fn upsert<T>(rows: &mut Vec<T>, is: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> &mut T {
    let at = rows.iter().position(is).unwrap_or_else(|| {
        rows.push(new());
        rows.len() - 1
    });
    &mut rows[at]
}

fn tool<'a>(tools: &'a mut Vec<ToolRow>, at_ms: i64, id: &str, name: &str) -> &'a mut ToolRow {
    let new = || ToolRow { at_ms, name: name.into(), tool_call_id: id.into(), ..ToolRow::default() };
    upsert(tools, |row| row.tool_call_id == id, new)
}

fn put_line(lines: &mut Vec<LineRow>, at_ms: i64, line: &LineRow) {
    let row = upsert(lines, |row| row.item == line.item, || LineRow { at_ms, ..LineRow::default() });
    *row = LineRow { at_ms: row.at_ms, ..line.clone() };
}

fn apply(stored: &mut StoredCall, at_ms: i64, what: &What) {
    match what {
        What::Began => {}
        What::Session { id } => stored.call.session_id = Some(id.clone()),
        What::Line(line) => put_line(&mut stored.lines, at_ms, line),
        What::ToolCalled { tool_call_id, name, arguments } => {
            tool(&mut stored.tools, at_ms, tool_call_id, name).arguments = Some(arguments.clone());
        }
        What::ToolAnswered { tool_call_id, name, outcome, output, took_ms } => {
            let row = tool(&mut stored.tools, at_ms, tool_call_id, name);
            row.outcome = Some((*outcome).to_owned());
            row.output = Some(output.clone());
            row.took_ms = *took_ms;
        }
        What::Keypad { number, entry } => {
            let new = || KeypadRow { number: *number, at_ms, entry: String::new() };
            upsert(&mut stored.keypad, |row| row.number == *number, new).entry.clone_from(entry);
        }
        What::Response { response_id, status, tokens } => {
            let new = || ResponseRow { response_id: response_id.clone(), at_ms, ..ResponseRow::default() };
            let row = upsert(&mut stored.responses, |row| row.response_id == *response_id, new);
            row.status.clone_from(status);
            row.tokens = *tokens;
        }
        What::Ended { session_id, reason, detail, counts, lines } => {
            stored.call = CallRow {
                session_id: session_id.clone(),
                ended_ms: Some(at_ms),
                reason: Some(reason.clone()),
                detail: Some(detail.clone()),
                counts: counts.as_ref().and_then(|text| serde_json::from_str(text).ok()),
                ..std::mem::take(&mut stored.call)
            };
            lines.iter().for_each(|line| put_line(&mut stored.lines, at_ms, line));
        }
    }
}

impl Store for Memory {
    async fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn write(&self, batch: &[Record]) -> Result<(), StoreError> {
        let mut calls = self.calls();
        for Record { call, at_ms, what } in batch {
            let new = || CallRow {
                id: call.id.clone(),
                process: call.process.clone(),
                call_sid: call.call_sid.clone(),
                stream_sid: call.stream_sid.clone(),
                began_ms: call.began_ms,
                ..CallRow::default()
            };
            let stored = calls
                .entry(call.id.clone())
                .or_insert_with(|| StoredCall { call: new(), ..StoredCall::default() });
            apply(stored, *at_ms, what);
        }
        Ok(())
    }

    async fn list(&self, page: &Page) -> Result<Vec<CallRow>, StoreError> {
        let mut rows: Vec<CallRow> = self.calls().values().map(|stored| stored.call.clone()).collect();
        rows.sort_by(|a, b| (b.began_ms, &b.id).cmp(&(a.began_ms, &a.id)));
        rows.retain(|row| {
            let earlier = page.before.as_ref().is_none_or(|(ms, id)| (row.began_ms, &row.id) < (*ms, id));
            earlier && (page.call_sid.is_empty() || page.call_sid == row.call_sid)
        });
        rows.truncate(page.limit);
        Ok(rows)
    }

    async fn find(&self, name: &str) -> Result<Option<StoredCall>, StoreError> {
        let calls = self.calls();
        let found = calls.values().filter(|stored| stored.call.id == name || stored.call.call_sid == name);
        let newest = found.max_by(|a, b| (a.call.began_ms, &a.call.id).cmp(&(b.call.began_ms, &b.call.id)));
        Ok(newest.cloned().map(|mut stored| {
            stored.lines.retain(|line| !line.text.is_empty());
            stored.lines.sort_by(|a, b| (a.place, &a.item).cmp(&(b.place, &b.item)));
            stored
        }))
    }

    async fn close(&self) {}
}
