//! The statements that SQLite and Postgres share, and what one store does with them. Every one of them may be carried
//! out twice.

use sqlx::migrate::Migrator;

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!();

/// Writes what is known of a call when it begins. What came later stays.
pub(super) const BEGAN: &str = "\
    INSERT INTO calls (id, process, call_sid, stream_sid, began_ms) VALUES ($1, $2, $3, $4, $5) \
    ON CONFLICT (id) DO NOTHING";
pub(super) const SESSION: &str = "UPDATE calls SET session_id = $2 WHERE id = $1";
pub(super) const ENDED: &str = "\
    INSERT INTO calls (id, process, call_sid, stream_sid, began_ms, session_id, ended_ms, reason, detail, counts) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO UPDATE SET session_id = excluded.session_id, \
    ended_ms = excluded.ended_ms, reason = excluded.reason, detail = excluded.detail, counts = excluded.counts";
/// The time of a line is that of its first words.
pub(super) const LINE: &str = "\
    INSERT INTO lines (call_id, item, place, at_ms, speaker, text, cut) VALUES ($1, $2, $3, $4, $5, $6, $7) \
    ON CONFLICT (call_id, item) DO UPDATE SET place = excluded.place, speaker = excluded.speaker, \
    text = excluded.text, cut = excluded.cut";
pub(super) const TOOL_CALLED: &str = "\
    INSERT INTO tools (call_id, tool_call_id, at_ms, name, arguments) VALUES ($1, $2, $3, $4, $5) \
    ON CONFLICT (call_id, tool_call_id) DO UPDATE SET arguments = excluded.arguments";
pub(super) const TOOL_ANSWERED: &str = "\
    INSERT INTO tools (call_id, tool_call_id, at_ms, name, outcome, output, took_ms) \
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (call_id, tool_call_id) DO UPDATE SET \
    outcome = excluded.outcome, output = excluded.output, took_ms = excluded.took_ms";
pub(super) const KEYPAD: &str = "\
    INSERT INTO keypad (call_id, number, at_ms, entry) VALUES ($1, $2, $3, $4) \
    ON CONFLICT (call_id, number) DO UPDATE SET entry = excluded.entry";
pub(super) const RESPONSE: &str = "\
    INSERT INTO responses (call_id, response_id, at_ms, status, input_text, input_audio, cached_text, cached_audio, \
    output_text, output_audio) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
    ON CONFLICT (call_id, response_id) DO UPDATE SET status = excluded.status, input_text = excluded.input_text, \
    input_audio = excluded.input_audio, cached_text = excluded.cached_text, cached_audio = excluded.cached_audio, \
    output_text = excluded.output_text, output_audio = excluded.output_audio";

/// Newest first, in pages: what began before a call, or at the same time under a smaller id.
pub(super) const LIST: &str = "\
    SELECT id, process, call_sid, stream_sid, session_id, began_ms, ended_ms, reason, detail, counts FROM calls \
    WHERE (began_ms < $1 OR (began_ms = $1 AND id < $2)) AND ($3 = '' OR call_sid = $3) \
    ORDER BY began_ms DESC, id DESC LIMIT $4";
/// By id or, because that is the name people have, by callSid: then the newest.
pub(super) const FIND: &str = "\
    SELECT id, process, call_sid, stream_sid, session_id, began_ms, ended_ms, reason, detail, counts FROM calls \
    WHERE id = $1 OR call_sid = $1 ORDER BY began_ms DESC, id DESC LIMIT 1";
pub(super) const LINES: &str = "\
    SELECT item, place, at_ms, speaker, text, cut FROM lines WHERE call_id = $1 AND text <> '' ORDER BY place, item";
pub(super) const TOOLS: &str = "\
    SELECT tool_call_id, at_ms, name, arguments, outcome, output, took_ms FROM tools WHERE call_id = $1 \
    ORDER BY at_ms, tool_call_id";
pub(super) const KEYPADS: &str = "SELECT number, at_ms, entry FROM keypad WHERE call_id = $1 ORDER BY number";
pub(super) const RESPONSES: &str = "\
    SELECT response_id, at_ms, status, input_text, input_audio, cached_text, cached_audio, output_text, output_audio \
    FROM responses WHERE call_id = $1 ORDER BY at_ms, response_id";

/// What both kinds of store do in the same words: the library has no type that stands for either. Each says in `explain`
/// what an error means, checks in `may_write` what can be checked before anything is written, does in `migrated` what is to be
/// done once the tables are there, and finds out in `recovered` whether what was written has gone.
macro_rules! speaks_sql {
    ($store:ty, $connection:ty, $row:ty) => {
        impl $store {
            async fn write_one(connection: &mut $connection, record: &Record) -> Result<(), sqlx::Error> {
                let Record { call, at_ms, what } = record;
                let id = call.id.as_str();
                match what {
                    What::Began => {
                        let began = sqlx::query(sql::BEGAN).bind(id).bind(&call.process).bind(&call.call_sid);
                        began.bind(&call.stream_sid).bind(call.began_ms).execute(connection).await?;
                    }
                    What::Session { id: session } => {
                        sqlx::query(sql::SESSION).bind(id).bind(session).execute(connection).await?;
                    }
                    What::Line(line) => Self::write_line(connection, id, *at_ms, line).await?,
                    What::ToolCalled { tool_call_id, name, arguments } => {
                        let called = sqlx::query(sql::TOOL_CALLED).bind(id).bind(tool_call_id).bind(*at_ms);
                        called.bind(name).bind(arguments).execute(connection).await?;
                    }
                    What::ToolAnswered { tool_call_id, name, outcome, output, took_ms } => {
                        let answered =
                            sqlx::query(sql::TOOL_ANSWERED).bind(id).bind(tool_call_id).bind(*at_ms);
                        let answered = answered.bind(name).bind(outcome).bind(output).bind(*took_ms);
                        answered.execute(connection).await?;
                    }
                    What::Keypad { number, entry } => {
                        let keypad = sqlx::query(sql::KEYPAD).bind(id).bind(*number).bind(*at_ms).bind(entry);
                        keypad.execute(connection).await?;
                    }
                    What::Response { response_id, status, tokens } => {
                        let done =
                            sqlx::query(sql::RESPONSE).bind(id).bind(response_id).bind(*at_ms).bind(status);
                        let done =
                            done.bind(tokens.input_text).bind(tokens.input_audio).bind(tokens.cached_text);
                        let done = done.bind(tokens.cached_audio).bind(tokens.output_text);
                        done.bind(tokens.output_audio).execute(connection).await?;
                    }
                    What::Ended { session_id, reason, detail, counts, lines } => {
                        let ended = sqlx::query(sql::ENDED).bind(id).bind(&call.process).bind(&call.call_sid);
                        let ended = ended.bind(&call.stream_sid).bind(call.began_ms).bind(session_id);
                        let ended = ended.bind(*at_ms).bind(reason).bind(detail).bind(counts);
                        ended.execute(&mut *connection).await?;
                        for line in lines {
                            Self::write_line(connection, id, *at_ms, line).await?;
                        }
                    }
                }
                Ok(())
            }

            async fn write_line(
                connection: &mut $connection,
                id: &str,
                at_ms: i64,
                line: &LineRow,
            ) -> Result<(), sqlx::Error> {
                let said = sqlx::query(sql::LINE).bind(id).bind(&line.item).bind(line.place).bind(at_ms);
                said.bind(&line.speaker).bind(&line.text).bind(line.cut).execute(connection).await?;
                Ok(())
            }

            async fn write_all(&self, batch: &[Record]) -> Result<(), sqlx::Error> {
                let mut connection = self.pool().acquire().await?;
                let written = Self::write_at_once(&mut connection, batch).await;
                if written.is_err() {
                    // A full disk may end a transaction by itself, and the library does not notice: it would take the
                    // next one for a part of that, which is never committed and locks every other writer out.
                    let _closed = connection.close().await;
                }
                written
            }

            async fn write_at_once(
                connection: &mut $connection,
                batch: &[Record],
            ) -> Result<(), sqlx::Error> {
                let mut transaction = connection.begin().await?;
                for record in batch {
                    Self::write_one(&mut transaction, record).await?;
                }
                transaction.commit().await
            }

            fn call_row(row: &$row) -> Result<CallRow, sqlx::Error> {
                let counts: Option<String> = row.try_get("counts")?;
                Ok(CallRow {
                    id: row.try_get("id")?,
                    process: row.try_get("process")?,
                    call_sid: row.try_get("call_sid")?,
                    stream_sid: row.try_get("stream_sid")?,
                    session_id: row.try_get("session_id")?,
                    began_ms: row.try_get("began_ms")?,
                    ended_ms: row.try_get("ended_ms")?,
                    reason: row.try_get("reason")?,
                    detail: row.try_get("detail")?,
                    counts: counts.and_then(|text| serde_json::from_str(&text).ok()),
                })
            }

            async fn list_calls(&self, page: &Page) -> Result<Vec<CallRow>, sqlx::Error> {
                let (began_ms, id) = page.before.clone().unwrap_or((i64::MAX, String::new()));
                let limit = i64::try_from(page.limit).unwrap_or(i64::MAX);
                let rows = sqlx::query(sql::LIST).bind(began_ms).bind(id).bind(&page.call_sid).bind(limit);
                rows.fetch_all(&self.pool()).await?.iter().map(Self::call_row).collect()
            }

            async fn find_call(&self, name: &str) -> Result<Option<StoredCall>, sqlx::Error> {
                let Some(row) = sqlx::query(sql::FIND).bind(name).fetch_optional(&self.pool()).await? else {
                    return Ok(None);
                };
                let call = Self::call_row(&row)?;
                let mut found = StoredCall { call, ..StoredCall::default() };
                let id = found.call.id.clone();
                for row in sqlx::query(sql::LINES).bind(&id).fetch_all(&self.pool()).await? {
                    found.lines.push(LineRow {
                        item: row.try_get("item")?,
                        place: row.try_get("place")?,
                        at_ms: row.try_get("at_ms")?,
                        speaker: row.try_get("speaker")?,
                        text: row.try_get("text")?,
                        cut: row.try_get("cut")?,
                    });
                }
                for row in sqlx::query(sql::TOOLS).bind(&id).fetch_all(&self.pool()).await? {
                    found.tools.push(ToolRow {
                        tool_call_id: row.try_get("tool_call_id")?,
                        at_ms: row.try_get("at_ms")?,
                        name: row.try_get("name")?,
                        arguments: row.try_get("arguments")?,
                        outcome: row.try_get("outcome")?,
                        output: row.try_get("output")?,
                        took_ms: row.try_get("took_ms")?,
                    });
                }
                for row in sqlx::query(sql::KEYPADS).bind(&id).fetch_all(&self.pool()).await? {
                    found.keypad.push(KeypadRow {
                        number: row.try_get("number")?,
                        at_ms: row.try_get("at_ms")?,
                        entry: row.try_get("entry")?,
                    });
                }
                for row in sqlx::query(sql::RESPONSES).bind(&id).fetch_all(&self.pool()).await? {
                    found.responses.push(ResponseRow {
                        response_id: row.try_get("response_id")?,
                        at_ms: row.try_get("at_ms")?,
                        status: row.try_get("status")?,
                        tokens: Tokens {
                            input_text: row.try_get("input_text")?,
                            input_audio: row.try_get("input_audio")?,
                            cached_text: row.try_get("cached_text")?,
                            cached_audio: row.try_get("cached_audio")?,
                            output_text: row.try_get("output_text")?,
                            output_audio: row.try_get("output_audio")?,
                        },
                    });
                }
                Ok(Some(found))
            }
        }

        impl Store for $store {
            async fn prepare(&self) -> Result<(), StoreError> {
                self.may_write()?;
                sql::MIGRATIONS.run(&self.pool()).await.map_err(|error| {
                    if let MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) = &error {
                        explain(error)
                    } else {
                        StoreError::Never(error.to_string())
                    }
                })?;
                self.migrated().await
            }

            async fn recover(&self) -> Result<bool, StoreError> {
                self.recovered().await
            }

            async fn write(&self, batch: &[Record]) -> Result<(), StoreError> {
                self.write_all(batch).await.map_err(|error| explain(&error))
            }

            async fn list(&self, page: &Page) -> Result<Vec<CallRow>, StoreError> {
                self.list_calls(page).await.map_err(|error| explain(&error))
            }

            async fn find(&self, name: &str) -> Result<Option<StoredCall>, StoreError> {
                self.find_call(name).await.map_err(|error| explain(&error))
            }

            async fn close(&self) {
                self.pool().close().await;
            }
        }
    };
}
pub(super) use speaks_sql;
