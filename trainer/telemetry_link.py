"""The way out of the process for events: an emitter, and a sidecar of this run's own.

In: where the user said that events should go.
Out: an emitter for as long as the run lasts.
Never: raises, or keeps the end of a run waiting without a bound.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from trainer.observe import Observer, open_emitter
from trainer.prepare import Prepared
from trainer.progress import Progress
from trainer.sidecar import PrivateAddress, Sidecar, start_sidecar

NOBODY = "ipc:///dev/null/telemetry.sock"
"""An address at which nobody can listen."""
CLOSE_TIMEOUT_S = 5.0
UNHEARD_CLOSE_TIMEOUT_S = 0.5
"""How long to wait for acknowledgements at the end; less when there is nobody to give any."""


@contextmanager
def open_telemetry(prepared: Prepared, progress: Progress) -> Iterator[Observer]:
    """An observer for the length of a run, with a sidecar of its own where none was named.

    Of several processes the first starts the sidecar, and those on its host share it.
    """
    args, say, processes = prepared.args, progress.say, prepared.processes
    spool_dir = (args.spool_dir or args.output_dir / "spool").absolute()
    with ExitStack() as stack:
        endpoint, sidecar, has_listener = _listener(prepared, spool_dir, progress, stack)
        watch = partial(sidecar.check, say) if sidecar is not None else _nobody_to_watch
        emitter = open_emitter(
            endpoint,
            prepared.run_id,
            processes.rank,
            spool_dir,
            CLOSE_TIMEOUT_S if has_listener else UNHEARD_CLOSE_TIMEOUT_S,
            say,
        )
        try:
            yield Observer(emitter, watch=watch)
        finally:
            progress.close()
            is_recorded = emitter.close()
            if sidecar is not None or not processes.is_first:
                # The sidecar ends for all of them: first let the others say their last word.
                processes.wait_for_others("telemetry_closed", CLOSE_TIMEOUT_S)
            if sidecar is not None:
                sidecar.close(say)
            if has_listener and not is_recorded:
                say(
                    f"{emitter.stats().queued:,} events are not recorded yet; they wait in "
                    f"{spool_dir} for the next run, or a sidecar, that starts there."
                )


def _listener(
    prepared: Prepared, spool_dir: Path, progress: Progress, stack: ExitStack
) -> tuple[str, Sidecar | None, bool]:
    """The address to emit to, the sidecar to end, and whether anybody listens there."""
    args, say, processes = prepared.args, progress.say, prepared.processes
    if args.telemetry_endpoint is not None:
        return args.telemetry_endpoint, None, True
    output_dir = args.output_dir.absolute()
    sidecar, found = None, stack.enter_context(PrivateAddress(output_dir))
    # An emitter that nobody hears keeps all in its spool.
    address = found or NOBODY
    if found is None:
        say(
            f"There is no directory for a socket: nothing is recorded but the spool in {spool_dir}."
        )
    elif args.no_sidecar:
        say(f"No sidecar: nothing is recorded but the spool in {spool_dir}.")
    elif processes.is_first:
        sidecar = start_sidecar(address, output_dir / "telemetry", spool_dir, say)
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
