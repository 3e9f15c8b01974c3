"""The parquet sink as a process, with files of few values, so that much is in flight. A script.

python -m tests.telemetry.sinks.parquet_process RUN_DIR OUT_DIR FILE_VALUES
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from telemetry.sinks import delivery
from telemetry.sinks.parquet import parquet_sink
from telemetry.sinks.runner import Reporter, SinkJob, run_sink

if __name__ == "__main__":
    parquet_sink.FILE_VALUES_MAX = int(sys.argv[3])  # type: ignore[misc]
    delivery.WRITE_ROWS = 20  # type: ignore[misc]
    delivery.COMMIT_INTERVAL_S = 0.05  # type: ignore[misc]
    job = SinkJob("parquet", Path(sys.argv[1]), Path(sys.argv[2]), False, {})
    sys.exit(run_sink(job, threading.Event(), Reporter(None)))
