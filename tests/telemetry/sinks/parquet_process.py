"""The parquet sink as a process, with files of few values, so that much is in flight. A script.

python -m tests.telemetry.sinks.parquet_process RUN_DIR OUT_DIR FILE_VALUES
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from telemetry.sinks.base import SinkContext
from telemetry.sinks.delivery import Pace
from telemetry.sinks.parquet import ParquetSink
from telemetry.sinks.runner import Reporter, SinkJob, run_sink

if __name__ == "__main__":

    def make(_: str, context: SinkContext) -> ParquetSink:
        return ParquetSink(context, file_values_max=int(sys.argv[3]))

    pace = Pace(write_rows=20, commit_interval_s=0.05)
    job = SinkJob("parquet", Path(sys.argv[1]), Path(sys.argv[2]), False, {}, make, pace)
    sys.exit(run_sink(job, threading.Event(), Reporter(None)))
