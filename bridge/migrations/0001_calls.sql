-- Times are Unix milliseconds. Rows of a call are written as it goes on: without `ended_ms` it goes on still, or its
-- process died with it.
CREATE TABLE calls (
    id         TEXT PRIMARY KEY,
    process    TEXT NOT NULL,
    call_sid   TEXT NOT NULL,
    stream_sid TEXT NOT NULL,
    session_id TEXT,
    began_ms   BIGINT NOT NULL,
    ended_ms   BIGINT,
    reason     TEXT,
    detail     TEXT,
    counts     TEXT
);
CREATE INDEX calls_by_beginning ON calls (began_ms, id);
CREATE INDEX calls_by_sid ON calls (call_sid);

-- Who said what, ordered by `place`. A line without text was not heard.
CREATE TABLE lines (
    call_id TEXT NOT NULL,
    item    TEXT NOT NULL,
    place   BIGINT NOT NULL,
    at_ms   BIGINT NOT NULL,
    speaker TEXT NOT NULL,
    text    TEXT NOT NULL,
    cut     BOOLEAN NOT NULL,
    PRIMARY KEY (call_id, item)
);

CREATE TABLE tools (
    call_id      TEXT NOT NULL,
    tool_call_id TEXT NOT NULL,
    at_ms        BIGINT NOT NULL,
    name         TEXT NOT NULL,
    arguments    TEXT,
    outcome      TEXT,
    output       TEXT,
    took_ms      BIGINT,
    PRIMARY KEY (call_id, tool_call_id)
);

CREATE TABLE keypad (
    call_id TEXT NOT NULL,
    number  BIGINT NOT NULL,
    at_ms   BIGINT NOT NULL,
    entry   TEXT NOT NULL,
    PRIMARY KEY (call_id, number)
);

CREATE TABLE responses (
    call_id      TEXT NOT NULL,
    response_id  TEXT NOT NULL,
    at_ms        BIGINT NOT NULL,
    status       TEXT NOT NULL,
    input_text   BIGINT NOT NULL,
    input_audio  BIGINT NOT NULL,
    cached_text  BIGINT NOT NULL,
    cached_audio BIGINT NOT NULL,
    output_text  BIGINT NOT NULL,
    output_audio BIGINT NOT NULL,
    PRIMARY KEY (call_id, response_id)
);
