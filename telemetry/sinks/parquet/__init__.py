"""Parquet: a run's journal as columns, for DuckDB, Polars, Spark and `telemetry query`.

values_table    rows of a journal as columns in memory
parquet_files   the files: written, named by rows, and recovered after a crash
parquet_sink    the sink itself, which puts these together

    parquet/run=<run id>/
      00000000000000000000.parquet …   files named by the first row of the journal in them

Each file holds all rows of the journal from the one in its name up to the next file. One row
of a file is one value at one moment; `run` is in the name of the directory, as all readers of
hive partitions take it.

    source    text       process that sent it: rank0, rank1, hardware:<host>, sidecar
    session   text       one start of that process
    row       int64      row of the journal; the values of one event share it
    late      bool       true if it came from a spool after its session was over
    kind      text       train, val, quant, hardware, custom; else the event's own tag:
                         run_started, config_updated, message, alert, gap, run_finished,
                         histogram (a kind of values that is called so: metrics:message, ...)
    step      int64      optimizer step; null where the event has none
    time      timestamp  wall clock of the sender, in microseconds, UTC
    name      text       of the value, as in every sink; of the alert or histogram; the level of
                         a message; else null
    value     float64    the number; true and false are 1 and 0; null for a text
    integer   int64      the number once more, exact, where it was sent as a whole number:
                         a float64 is exact only up to 2^53
    text      text       the value that is a text; of an event without values its fields, as
                         JSON, in which NaN and infinity are texts

Compressed with zstd. The file's own metadata names the run, the journal, the rows that it
covers and the version of these rules. Events that this program does not know, and damaged
ones, are in the journal alone.
"""

try:
    from telemetry.sinks.parquet.parquet_sink import ParquetSink
except ModuleNotFoundError as exc:
    raise ImportError(
        f"parquet files need {exc.name}; install it with: pip install 'training-telemetry[query]'"
    ) from exc

__all__ = ["ParquetSink"]
