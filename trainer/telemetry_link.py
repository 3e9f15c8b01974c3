"""The way out of the process for events: an emitter, and a sidecar of this run's own.

In: where the user said that events should go.
Out: an emitter for as long as the run lasts.
Never: raises, or keeps the end of a run waiting without a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from trainer.observe import Observer, open_emitter
from trainer.prepare import Prepared
from trainer.progress import Progress
from trainer.sidecar import PrivateAddress, Sidecar, start_sidecar

CLOSE_TIMEOUT_S = 5.0
UNHEARD_CLOSE_TIMEOUT_S = 0.5
"""How long to wait for acknowledgements at the end; less when there is nobody to give any."""


@contextmanager
def open_telemetry(prepared: Prepared, progress: Progress) -> Iterator[Observer]:
    """An observer for the length of a run, with a sidecar of its own where none was named."""
    args, say = prepared.args, progress.say
    sidecar: Sidecar | None = None
    spool_dir = args.spool_dir or args.output_dir / "spool"
    with ExitStack() as stack:
        endpoint = args.telemetry_endpoint
        if endpoint is None:
            endpoint = stack.enter_context(PrivateAddress())
            if args.no_sidecar:
                say(f"No sidecar: nothing is recorded but the spool in {spool_dir}.")
            else:
                sidecar = start_sidecar(endpoint, args.output_dir / "telemetry", say)
        watch = partial(sidecar.check, say) if sidecar is not None else _nobody_to_watch
        has_listener = sidecar is not None or args.telemetry_endpoint is not None
        emitter = open_emitter(
            endpoint,
            prepared.run_id,
            spool_dir,
            CLOSE_TIMEOUT_S if has_listener else UNHEARD_CLOSE_TIMEOUT_S,
            say,
        )
        try:
            yield Observer(emitter, watch=watch)
        finally:
            progress.close()
            is_recorded = emitter.close()
            if sidecar is not None:
                sidecar.close(say)
            if has_listener and not is_recorded:
                say(
                    f"{emitter.stats().queued:,} events are not recorded yet; they wait in "
                    f"{spool_dir} for the next run, or a sidecar, that starts there."
                )


def _nobody_to_watch() -> None:
    pass
