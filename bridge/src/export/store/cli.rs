//! `bridge calls`: what is stored, for people and for other programs.

use super::memory::Memory;
use super::postgres::Postgres;
use super::rows::{CallRow, Page, Store, StoredCall};
use super::sqlite::Sqlite;
use super::{Place, Settings};
use crate::base::text::{shown, shown_json};
use anyhow::Context as _;
use clap::Subcommand;
use std::io::Write;

/// Calls read at once for an export.
const PAGE: usize = 200;

/// What to show of stored calls.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Calls {
    /// The newest calls, one a line.
    List {
        /// How many.
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
        /// Only this callSid.
        #[arg(long, default_value = "", value_name = "SID")]
        call_sid: String,
    },
    /// One call with all that was said.
    Show {
        /// Its id, or a callSid: then the newest stream of it.
        call: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Every call as one line of JSON, the newest first.
    Export {
        /// Only this callSid.
        #[arg(long, default_value = "", value_name = "SID")]
        call_sid: String,
    },
}

/// Does what was asked for.
///
/// # Errors
/// When nothing is stored, the store cannot be read, or `out` cannot be written to.
pub async fn run(settings: &Settings, calls: &Calls, out: &mut impl Write) -> anyhow::Result<()> {
    match settings.place().map_err(anyhow::Error::msg)? {
        Place::Nowhere => anyhow::bail!("store.url is empty: no calls are stored"),
        Place::File(path) => {
            anyhow::ensure!(path.exists(), "{} is not there: no call was stored in it yet", path.display());
            let cannot = || format!("cannot read {}", path.display());
            match Sqlite::read(&path).await.with_context(cannot)? {
                Some(store) => print(&store, calls, out).await.with_context(cannot),
                None => print(&Memory::default(), calls, out).await,
            }
        }
        Place::Server(url) => {
            let store = Postgres::open(url.expose()).map_err(anyhow::Error::msg).context("store.url")?;
            print(&store, calls, out).await.context("cannot read the database of store.url")
        }
    }
}

async fn print<S: Store>(store: &S, calls: &Calls, out: &mut impl Write) -> anyhow::Result<()> {
    match calls {
        Calls::List { limit, call_sid } => {
            let page = Page { limit: *limit, before: None, call_sid: call_sid.clone() };
            writeln!(out, "{:<20}  {:>8}  {:<16}  {:<34}  id", "began", "lasted", "end", "callSid")?;
            for row in store.list(&page).await? {
                list_line(&row, out)?;
            }
        }
        Calls::Show { call, json } => {
            let found = store.find(call).await?;
            let found =
                found.with_context(|| format!("no call {call:?} is stored; see bridge calls list"))?;
            if *json {
                writeln!(out, "{}", shown_json(&serde_json::to_string_pretty(&found)?))?;
            } else {
                call_page(&found, out)?;
            }
        }
        Calls::Export { call_sid } => {
            let mut page = Page { limit: PAGE, before: None, call_sid: call_sid.clone() };
            loop {
                let rows = store.list(&page).await?;
                for row in &rows {
                    if let Some(stored) = store.find(&row.id).await? {
                        writeln!(out, "{}", shown_json(&serde_json::to_string(&stored)?))?;
                    }
                }
                match rows.last() {
                    Some(last) if rows.len() == PAGE => page.before = Some((last.began_ms, last.id.clone())),
                    Some(_) | None => break,
                }
            }
        }
    }
    out.flush()?;
    Ok(())
}

fn list_line(row: &CallRow, out: &mut impl Write) -> std::io::Result<()> {
    let (began, lasted, end) = (utc(row.began_ms), lasted(row), row.reason.as_deref().unwrap_or("goes on"));
    writeln!(out, "{began:<20}  {lasted:>8}  {end:<16}  {:<34}  {}", shown(&row.call_sid), shown(&row.id))
}

fn call_page(stored: &StoredCall, out: &mut impl Write) -> std::io::Result<()> {
    let call = &stored.call;
    writeln!(out, "call      {}", shown(&call.id))?;
    writeln!(out, "callSid   {}", shown(&call.call_sid))?;
    writeln!(out, "streamSid {}", shown(&call.stream_sid))?;
    writeln!(out, "session   {}", shown(call.session_id.as_deref().unwrap_or("none")))?;
    writeln!(out, "began     {}", utc(call.began_ms))?;
    writeln!(out, "lasted    {}", lasted(call))?;
    let detail = call.detail.as_deref().filter(|detail| !detail.is_empty());
    let detail = detail.map(|detail| format!(" ({})", shown(detail))).unwrap_or_default();
    writeln!(out, "end       {}{detail}", shown(call.reason.as_deref().unwrap_or("goes on")))?;
    let sum =
        |of: fn(&super::rows::Tokens) -> i64| stored.responses.iter().map(|r| of(&r.tokens)).sum::<i64>();
    let (read, written) = (sum(|t| t.input_text + t.input_audio), sum(|t| t.output_text + t.output_audio));
    writeln!(out, "tokens    {read} read, {written} written, in {} responses", stored.responses.len())?;
    writeln!(out)?;
    for line in &stored.lines {
        let cut = if line.cut { " [cut]" } else { "" };
        writeln!(out, "{:<7} {}{cut}", line.speaker, shown(&line.text))?;
    }
    for tool in &stored.tools {
        let outcome = tool.outcome.as_deref().unwrap_or("abandoned");
        let took = tool.took_ms.map(|ms| format!(" after {ms} ms")).unwrap_or_default();
        let arguments = shown(tool.arguments.as_deref().unwrap_or_default());
        writeln!(out, "tool    {}({arguments}): {outcome}{took}", shown(&tool.name))?;
    }
    Ok(())
}

fn lasted(row: &CallRow) -> String {
    row.ended_ms.map_or_else(String::new, |ended| {
        let seconds = (ended - row.began_ms).max(0) / 1_000;
        format!("{}:{:02}", seconds / 60, seconds % 60)
    })
}

/// Unix milliseconds as a date and a time in UTC.
fn utc(unix_ms: i64) -> String {
    let seconds = unix_ms.div_euclid(1_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years that begin in March, in eras of 400: leap days come last.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    let (h, m, s) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02} {h:02}:{m:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::text::is_unsafe;
    use crate::export::store::{CallName, LineRow, Record, What};
    use std::sync::Arc;

    #[test]
    fn times_are_told_in_utc() {
        assert_eq!(utc(0), "1970-01-01 00:00:00Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(utc(1_795_330_799_999), "2026-11-22 06:59:59Z");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01 00:00:00Z");
    }

    async fn shown_as(store: &Memory, calls: Calls) -> String {
        let mut out = Vec::new();
        print(store, &calls, &mut out).await.unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn an_export_says_every_call_once_however_many_there_are() {
        let store = Memory::default();
        for n in 0..PAGE as i64 * 2 + 1 {
            // Several begin at the same time.
            let name = CallName { id: format!("call-{n:04}"), began_ms: n / 3, ..CallName::default() };
            let record = Record { call: Arc::new(name), at_ms: n, what: What::Began };
            store.write(&[record]).await.unwrap();
        }
        let text = shown_as(&store, Calls::Export { call_sid: String::new() }).await;
        let ids: std::collections::BTreeSet<String> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!((text.lines().count(), ids.len()), (PAGE * 2 + 1, PAGE * 2 + 1));
    }

    #[tokio::test]
    async fn what_callers_say_cannot_write_on_the_terminal() {
        let store = Memory::default();
        let text = "\u{1b}[2Jhi\nthere\u{9b}2J\u{202e}";
        let line = LineRow { speaker: "caller".into(), text: text.into(), ..LineRow::default() };
        let call =
            Arc::new(CallName { id: "1".into(), call_sid: "CA1\u{1b}[2J".into(), ..CallName::default() });
        store.write(&[Record { call, at_ms: 0, what: What::Line(line) }]).await.unwrap();
        let page = shown_as(&store, Calls::Show { call: "1".into(), json: false }).await;
        let list = shown_as(&store, Calls::List { limit: 9, call_sid: String::new() }).await;
        assert!(page.contains("caller  \\u{1b}[2Jhi there\\u{9b}2J\\u{202e}\n"), "{page}");
        let json = shown_as(&store, Calls::Show { call: "1".into(), json: true }).await;
        let export = shown_as(&store, Calls::Export { call_sid: String::new() }).await;
        for out in [&page, &list, &json, &export] {
            assert!(!out.contains(|c| is_unsafe(c) && c != '\n'), "{out:?}");
        }
        let read: serde_json::Value = serde_json::from_str(&export).unwrap();
        assert_eq!(read["lines"][0]["text"], text, "a program reads what was said");
    }
}
