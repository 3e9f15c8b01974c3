"""Several runs under `inspect`, as tables or as JSON, an object a line.

In: directories of runs.
Out: text or JSON on stdout, and the largest exit code.
Never: changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from telemetry.commands.inspect import inspect, look_into
from telemetry.commands.inspect_json import run_object
from telemetry.errors import EXIT_DAMAGED, EXIT_OK
from telemetry.output import print_json
from telemetry.recorded import open_recorded


def inspect_runs(runs: Sequence[Path], *, is_json: bool) -> int:
    """Print what is in each run's journal, and return the largest exit code.

    Raises:
        CommandError: one of them is not a recorded run; none was printed then.
        OutputFailed: stdout can't be written to.
    """
    for run in runs:
        open_recorded(run)
    return max(_inspect_as_json(run) if is_json else inspect(run) for run in runs)


def _inspect_as_json(run: Path) -> int:
    shown = run_object(*look_into(run))
    print_json([shown])
    return EXIT_DAMAGED if shown["is_damaged"] else EXIT_OK
