"""The run's connection to telemetry: an emitter, and a sidecar of the run's own.

In: the arguments that say where events go.
Out: an observer for the length of the run.
Never: raises, or delays the end of a run without a bound.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from shared.terminal import Say
from trainer.args import TrainArgs
from trainer.reporting.observer import Observer, open_emitter
from trainer.reporting.progress import Progress
from trainer.reporting.sidecar import (
    PrivateAddress,
    Sidecar,
    is_installed,
    serve_command,
    start_sidecar,
)
from trainer.training.processes import Processes

NOBODY = "ipc:///dev/null/telemetry.sock"
"""An address at which nobody can listen."""
CLOSE_TIMEOUT_S = 5.0
UNHEARD_CLOSE_TIMEOUT_S = 0.5
"""Wait for acknowledgements at the end of a run, and the shorter one without a listener."""


@contextmanager
def open_telemetry(
    args: TrainArgs, run_id: str, processes: Processes, progress: Progress
) -> Iterator[Observer]:
    """Open an observer for the length of a run; start a sidecar if no endpoint was given.

    Of several processes the first starts the sidecar, and those on its host share it.
    """
    say = progress.say
    spool_dir = (args.spool_dir or args.output_dir / "spool").absolute()
    with ExitStack() as stack:
        # At the start: find or start the sidecar, then the emitter.
        endpoint, sidecar, has_listener = _listener(args, spool_dir, processes, say, stack)
        watch = partial(sidecar.check, say) if sidecar is not None else _nobody_to_watch
        emitter = open_emitter(
            endpoint,
            run_id,
            processes.rank,
            spool_dir,
            CLOSE_TIMEOUT_S if has_listener else UNHEARD_CLOSE_TIMEOUT_S,
            say,
        )
        try:
            yield Observer(emitter, watch=watch)
        finally:
            # At the end: send what is queued.
            progress.close()
            is_recorded = emitter.close()
            # The sidecar serves several processes: wait until the others have sent theirs.
            if sidecar is not None or not processes.is_first:
                processes.wait_for_others("telemetry_closed", CLOSE_TIMEOUT_S)
            # Let the sidecar drain and end.
            if sidecar is not None:
                sidecar.close(say)
            # Tell the user where events are that could not be sent.
            if has_listener and not is_recorded:
                say(
                    f"{emitter.stats().queued:,} events are not recorded yet; they wait in "
                    f"{spool_dir} for the next run, or a sidecar, that starts there."
                )


def _listener(
    args: TrainArgs,
    spool_dir: Path,
    processes: Processes,
    say: Say,
    stack: ExitStack,
) -> tuple[str, Sidecar | None, bool]:
    """Return the address to emit to, the sidecar to close if any, and if anybody listens."""
    if args.telemetry_endpoint is not None:
        return args.telemetry_endpoint, None, True
    output_dir = args.output_dir.absolute()
    sidecar, found = None, stack.enter_context(PrivateAddress(output_dir))
    # An emitter that reaches no sidecar keeps all events in its spool.
    address = found or NOBODY
    if found is None:
        say(
            f"There is no directory for a socket: nothing is recorded but the spool in {spool_dir}."
        )
    elif args.no_sidecar:
        say(f"No sidecar: nothing is recorded but the spool in {spool_dir}.")
    elif processes.is_first and not is_installed():
        say("The sidecar is not installed: nothing is recorded but the spool.")
    elif processes.is_first:
        sidecar = start_sidecar(serve_command(address, output_dir / "telemetry", spool_dir), say)
    [shared, is_started] = processes.share([address, sidecar is not None])
    if processes.place.node == 0:
        return shared, sidecar, is_started
    if processes.place.local_rank == 0:
        print(
            "No sidecar on this host: its events wait in the spool. Start one on each host "
            "and set TELEMETRY_ENDPOINT there.",
            file=sys.stderr,
        )
    return address, None, False


def _nobody_to_watch() -> None:
    pass
