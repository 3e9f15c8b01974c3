"""Tables that a question can name, and the SQL that makes them of recorded values.

In: nothing; the names here are documented in docs/QUERY.md.
Out: SQL of DuckDB.
Never: names a table that holds more than the runs asked about.

    events      everything, a line for each value: the columns of docs/FORMATS.md, "Parquet files"
    metrics     the values, with `superseded`: true where a later start did the step again
    sessions    each start of each process, with its times, steps and GPUs
    messages, alerts, gaps, histograms      what these events say, in columns
    runs        one line for each run: what run.json and the end of its journal say
"""

from __future__ import annotations

from typing import Final

COLUMNS: Final = (
    ("run", "VARCHAR"),
    ("source", "VARCHAR"),
    ("session", "VARCHAR"),
    ("row", "BIGINT"),
    ("late", "BOOLEAN"),
    ("kind", "VARCHAR"),
    ("step", "BIGINT"),
    ("time", "TIMESTAMPTZ"),
    ("name", "VARCHAR"),
    ("value", "DOUBLE"),
    ("integer", "BIGINT"),
    ("text", "VARCHAR"),
)
NAMES: Final = ", ".join(f'"{name}"' for name, _ in COLUMNS)
JOURNALED: Final = f"""
CREATE TABLE journaled ({", ".join(f'"{name}" {kind}' for name, kind in COLUMNS)})
"""
"""The values that are in no parquet file."""

RUNS: Final = """
CREATE TABLE runs AS
SELECT
    * EXCLUDE (started_s, last_s),
    to_timestamp(started_s) AS started, to_timestamp(last_s) AS last
FROM (SELECT
    (unnest(from_json($runs, '[{"run": "VARCHAR", "name": "VARCHAR", "project": "VARCHAR",
        "tags": ["VARCHAR"], "group": "VARCHAR", "host": "VARCHAR", "state": "VARCHAR",
        "exit_code": "BIGINT", "started_s": "DOUBLE", "last_s": "DOUBLE", "seconds": "DOUBLE",
        "rows": "BIGINT", "step": "BIGINT", "loss": "DOUBLE", "bytes": "BIGINT",
        "path": "VARCHAR", "config": "JSON"}]'), recursive := true)))
"""
SAID: Final = (
    "run_started", "config_updated", "run_finished", "message", "alert", "gap", "histogram",
)  # fmt: skip
"""Kinds of lines that are no values: `text` has the fields of the event as JSON."""

_PLACE: Final = 'run, source, session, "row", time'

SESSIONS: Final = """
CREATE TABLE sessions AS
WITH spans AS (
    SELECT
        run, source, session,
        min("row") AS first_row,
        max("row") FILTER (kind = 'run_started' AND NOT late) AS started_row,
        min(time) AS started, max(time) AS ended,
        arg_min(step, "row") FILTER (step IS NOT NULL AND kind <> 'histogram') AS first_step,
        arg_max(step, "row") FILTER (step IS NOT NULL AND kind <> 'histogram') AS last_step,
        arg_max(text, "row") FILTER (kind = 'run_started') AS told,
        arg_max(text, "row") FILTER (kind = 'run_finished') AS finished
    FROM events
    GROUP BY run, source, session
), places AS (
    -- A session that did not say that it started, or said it late, is before the newest then.
    SELECT *, coalesce(started_row, max(started_row) OVER (
        PARTITION BY run, source ORDER BY first_row
    ) - 0.5, -0.5) AS place,
    coalesce((told ->> '$.resumed_from_step')::BIGINT + 1, first_step) AS begins_at
    FROM spans
)
SELECT
    run, source, session, first_row, started, ended,
    epoch(ended) - epoch(started) AS seconds, first_step, last_step,
    (told ->> '$.resumed_from_step')::BIGINT AS resumed_from_step,
    told ->> '$.host' AS host,
    coalesce(from_json(told -> '$.gpu_uuids', '["VARCHAR"]'), []) AS gpus,
    finished ->> '$.status' AS status,
    (finished ->> '$.exit_code')::BIGINT AS exit_code,
    CASE WHEN source LIKE 'rank%' AND source NOT LIKE '%.worker%' THEN min(begins_at) OVER (
        PARTITION BY run, source ORDER BY place, first_row
        ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
    ) END AS superseded_from
FROM places
"""

VIEWS: Final = {
    "metrics": f"""
        SELECT e.* EXCLUDE (late),
            coalesce(e.step >= s.superseded_from, false) AS superseded
        FROM events e LEFT JOIN sessions s USING (run, source, session)
        WHERE e.kind NOT IN {SAID}
    """,
    "messages": f"""
        SELECT {_PLACE}, name AS level, text ->> '$.text' AS text
        FROM events WHERE kind = 'message'
    """,
    "alerts": f"""
        SELECT {_PLACE}, name, text ->> '$.subject' AS subject,
            (text ->> '$.is_active')::BOOLEAN AS is_active, text ->> '$.severity' AS severity,
            text ->> '$.text' AS text, try_cast(text ->> '$.value' AS DOUBLE) AS value,
            try_cast(text ->> '$.lasted_s' AS DOUBLE) AS lasted_s
        FROM events WHERE kind = 'alert'
    """,
    "gaps": f"""
        SELECT {_PLACE}, (text ->> '$.count')::BIGINT AS count, text ->> '$.reason' AS reason,
            (text -> '$.by_kind') AS by_kind,
            try_cast(text ->> '$.unknown_ms' AS DOUBLE) AS unknown_ms
        FROM events WHERE kind = 'gap'
    """,
    "histograms": f"""
        SELECT {_PLACE}, step, text ->> '$.kind' AS kind, name,
            from_json(text -> '$.edges', '["DOUBLE"]') AS edges,
            from_json(text -> '$.counts', '["DOUBLE"]') AS counts
        FROM events WHERE kind = 'histogram'
    """,
}
TABLES: Final = ("runs", *VIEWS, "sessions", "events")
