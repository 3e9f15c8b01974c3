"""The contents of a run as one JSON object, for scripts: `inspect --json`.

Fields are only ever added. Times are seconds since 1970, durations seconds; null stands for
what is not known. With several runs there is one object a line.

    version      int     1
    run          str     id of the run
    path         str     its directory, as it was given
    name, project, host, group   str or null, as its producer told them
    tags         list    of str
    state        str     running or ended
    status       str     finished, failed, preempted or lost; null while it goes on
    exit_code    int     null if unknown
    started_s    float   when the sidecar first heard of it
    rows         int     events in the journal
    bytes        int     of the journal on disk
    events       list    one object for each source and kind: source, kind, sessions, count,
                         per_second, first_s, last_s, first_step, last_step
    missing      list    events that producers counted as lost: kind, reason, count
    unknown_ms   float   time in which further events may be missing, uncounted
    left_out     list    parts of events that could not be recorded: name, reason, count
    left_out_count  int  how many there are in all
    goodput      object  where the time of the run went: total_s, seconds and ratios by cause,
                         goodput_ratio, sessions, steps, lost_steps, step_times; docs/VIEWS.md
    last_words   list    lines on the end of a run that failed or was lost
    sinks        list    one object for each: sink, row, rows_behind, has_all, restarts, skipped,
                         left_out, state, detail
    damaged      list    what is wrong with the small files of the run, in words
    damage       list    of the journal: kind, first_row, next_row, offset, end, detail
    is_damaged   bool    true where the exit code is 1; a torn tail alone is no damage

With `--at-step` an object has: version, run, step, is_found, nearest (the steps before and
behind it that are recorded, or null), values (session, source, row, kind, time_s, name, value)
and histograms (the same with edges and counts). With `--follow` each row is one object: run,
row, source, session, seq, is_late, time_s, event (its tag) and body (its fields).
"""

from __future__ import annotations

from typing import Any

import msgspec

from telemetry.commands.inspect import Contents, Tally, is_broken, journal_bytes
from telemetry.commands.sink_standing import Standing, sink_standings
from telemetry.recorded import Recorded

VERSION = 1


def run_object(recorded: Recorded, contents: Contents) -> dict[str, Any]:
    """Return what `inspect --json` prints of one run."""
    # Imported here: it needs numpy, which no other part of a sidecar loads.
    from telemetry.views.goodput import goodput_of_run

    run = recorded.facts
    standings = sink_standings(recorded, contents.rows)
    damaged = [*recorded.damaged, *(text for each in standings for text in each.damaged)]
    return {
        "version": VERSION,
        "run": recorded.run_id,
        "path": str(recorded.run_dir),
        "name": run.name,
        "project": run.project,
        "host": run.host,
        "group": run.group or None,
        "tags": run.tags or [],
        "state": run.state,
        "status": run.status,
        "exit_code": run.exit_code,
        "started_s": None if run.started_wall_ns is None else run.started_wall_ns / 1e9,
        "rows": contents.rows,
        "bytes": journal_bytes(recorded),
        "events": [
            _tally_object(source, kind, len(contents.sessions[source]), tally)
            for (source, kind), tally in sorted(contents.tallies.items())
        ],
        "missing": [
            {"kind": kind, "reason": reason, "count": count}
            for (kind, reason), count in sorted(contents.missing.items())
        ],
        "unknown_ms": contents.unknown_ms,
        "left_out": [
            {"name": name, "reason": reason, "count": count}
            for (name, reason), count in contents.left_out.most_common()
        ],
        "left_out_count": contents.left_out_count,
        "goodput": msgspec.to_builtins(goodput_of_run(recorded.run_dir)),
        "last_words": list(contents.last_words.lines(run.status)),
        "sinks": [_sink_object(each) for each in standings if each.is_known],
        "damaged": damaged,
        "damage": [each._asdict() for each in contents.damage],
        "is_damaged": bool(damaged) or is_broken(contents),
    }


def _tally_object(source: str, kind: str, sessions: int, tally: Tally) -> dict[str, Any]:
    return {
        "source": source,
        "kind": kind,
        "sessions": sessions,
        "count": tally.count,
        "per_second": tally.per_second,
        "first_s": None if tally.first_ns is None else tally.first_ns / 1e9,
        "last_s": tally.last_ns / 1e9,
        "first_step": tally.first_step,
        "last_step": tally.last_step,
    }


def _sink_object(standing: Standing) -> dict[str, Any]:
    shown = msgspec.structs.asdict(standing)
    for name in ("gone", "is_known", "damaged"):
        del shown[name]
    return shown
