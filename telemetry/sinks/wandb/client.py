"""Client: starts a run in wandb, sends rows to it, and ends it.

In: the identity of the run, and the rows to send.
Out: a run in wandb-core, or one of our exceptions.
Never: decides which rows are sent, or retries.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from shared.wandb_variables import ONLINE
from telemetry.journal.rows import STEP
from telemetry.sinks.base import SinkContext, SinkRejected, SinkUnavailable
from telemetry.sinks.wandb.core import (
    core_killed_after,
    kill_core,
    let_go,
    library,
    translated,
    without_secrets,
)
from telemetry.sinks.wandb.limits import LIMITS, Limits
from telemetry.sinks.wandb.run_identity import JOURNAL, bare_identity, identity
from telemetry.sinks.wandb.selection import AXES, RESERVED, Alert, Histogram, Values
from telemetry.sinks.wandb.values import exit_code as held_exit_code

Mode = Literal["online", "offline"]
FLUSH_INTERVAL_S: Final = 1.0
LOG_TAIL_BYTES: Final = 256 * 1024


class Refused(SinkUnavailable):
    """Error: the server has refused rows, and wandb-core has given them up."""


class RefusedSettings(Exception):
    """Error: wandb refuses the identity or config of the run or, online, has no usable key."""


class Answer(NamedTuple):
    """The server's answer to a start: True if it has the run already, and the first free row."""

    resumed: bool
    first_row: int


class Client:
    """A live run in wandb. Not thread-safe."""

    def __init__(
        self, wandb: Any, run: Any, is_refused: Callable[[], bool], limits: Limits = LIMITS
    ) -> None:
        self._wandb = wandb
        self._run = run
        self._is_refused = is_refused
        self._limits = limits
        self._known = {*AXES, *RESERVED}
        for axis in sorted(set(AXES.values())):
            self._define(axis, None)
        for name, axis in AXES.items():
            self._define(name, axis)

    @property
    def file(self) -> Path:
        """The `.wandb` file that wandb-core writes."""
        return Path(self._run.settings.sync_file)

    @property
    def journal(self) -> str:
        """Uuid of the journal whose rows the run has, from its config; empty if unknown."""
        return str(self._run.config.get(JOURNAL) or "")

    def answer(self) -> Answer:
        return Answer(bool(self._run.resumed), int(self._run.starting_step or 0))

    def send(self, row: int, values: Values) -> None:
        """Send one history row.

        Raises:
            Refused: the server has refused the upload.
            RowRefused: wandb refuses this row.
            SinkUnavailable: wandb-core has ended.
        """
        self.check()
        with translated(of_row=True):
            if STEP in values:
                self._define_new(values)
            self._run.log(self._wandb_values(values), step=row, commit=True)

    def update_config(self, config: dict[str, Any]) -> None:
        with translated(of_row=True):
            self._run.config.update(config, allow_val_change=True)

    def update_summary(self, summary: dict[str, Any]) -> None:
        with translated(of_row=True):
            self._run.summary.update(summary)

    def alert(self, alert: Alert) -> None:
        with translated(of_row=True):
            self._run.alert(alert.title, alert.text, level=alert.level)

    def add_tag(self, tag: str) -> None:
        with translated():
            self._run.tags = (*(self._run.tags or ()), tag)

    def mark_preempting(self) -> None:
        """Mark the run as interrupted: W&B shows it as preempted once it ends."""
        with translated():
            self._run.mark_preempting()

    def finish(self, exit_code: int, limit_s: float | None = None) -> None:
        """Flush and end the run, within limit_s; online, wait until the server has all of it.

        wandb's own finish_timeout bounds only the upload of rows: if a server answers 500
        to other requests, or wandb-core is stopped, wandb waits for ever.

        Raises:
            Refused: the server has refused the upload.
            SinkUnavailable: the run could not be flushed in time.
        """
        with translated(), core_killed_after(limit_s or self._limits.finish_limit_s):
            self._run.finish(exit_code=held_exit_code(exit_code))
        self.check()
        if self._gave_up():
            raise Refused("the W&B server has refused the run's last data")

    def abandon(self) -> None:
        """Kill wandb-core at once; everything that it has not sent is lost."""
        kill_core()
        with suppress(SinkUnavailable):
            # This call fails, but it ends the threads that wandb has for the run.
            self.finish(1)
        let_go()

    def check(self) -> None:
        """Raise if wandb has reported a fatal error, which it otherwise only prints.

        Raises:
            Refused: the server has refused the upload, or a user has stopped the run there.
        """
        if self._is_refused():
            raise Refused("the W&B server has refused the run's data, or asked to stop")

    def _gave_up(self) -> bool:
        """True if uploads ended early. wandb checks this only every 15 s, and not at the end."""
        path = Path(self._run.settings.sync_dir) / "logs" / "debug-internal.log"
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
                return b"filestream: fatal error" in file.read()
        except (OSError, TypeError):
            return False

    def _wandb_values(self, values: Values) -> dict[str, Any]:
        return {
            name: self._wandb.Histogram(np_histogram=(value.counts, value.edges))
            if isinstance(value, Histogram)
            else value
            for name, value in values.items()
        }

    def _define_new(self, values: Values) -> None:
        """Define the x axis of names that no glob covers, when they are first seen."""
        for name in values.keys() - self._known:
            self._known.add(name)
            if f"{name.partition('/')[0]}/*" not in AXES:
                self._define(name, STEP)

    def _define(self, name: str, axis: str | None) -> None:
        """Define the x axis of one name; not of a name with `*`, which wandb takes for a glob."""
        if name not in AXES and "*" in name:
            return
        # step_sync=False: otherwise wandb adds an x of 0, or the last x, to rows without one.
        self._run.define_metric(name, step_metric=axis, step_sync=False if axis else None)


def start(
    context: SinkContext,
    mode: Mode,
    directory: Path | None = None,
    bare_for: str = "",
    limits: Limits = LIMITS,
) -> Client:
    """Start or resume the run in wandb; its files go below directory (default: out_dir).

    bare_for: if not empty, the run is started with its id alone, and this is the reason.

    Raises:
        SinkUnavailable: wandb is not installed, or the server can't be reached.
        SinkRejected: the server says that this run id can't be used any more.
        RefusedSettings: wandb refuses the identity or config of the run, or has no key.
    """
    wandb = library()
    directory = directory or context.out_dir
    refused: list[bool] = []
    with translated():
        try:
            run = wandb.init(
                **(bare_identity(context, bare_for) if bare_for else identity(context)),
                dir=str(directory),
                mode=mode,
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(
                    **_SETTINGS,
                    init_timeout=limits.start_s,
                    finish_timeout=limits.finish_s,
                    sweep_id=context.run.wandb_sweep_id or None,
                    # No transaction log online: `wandb sync` could upload it a second time.
                    x_skip_transaction_log=mode == ONLINE,
                    stop_on_fatal_error=mode == ONLINE,
                    stop_fn=functools.partial(refused.append, True),
                ),
            )
        # wandb's own checks, then errors inside its code for values it did not expect.
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as exc:
            raise RefusedSettings(without_secrets(exc)) from exc
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as exc:
            raise RefusedSettings(without_secrets(exc)) from exc
        except wandb.errors.CommError as exc:
            if _GONE.search(str(exc)):
                raise SinkRejected(
                    f"the W&B server does not take run {context.run_id}: {without_secrets(exc)}"
                ) from exc
            raise
        client = Client(wandb, run, lambda: bool(refused), limits)
    if directory.resolve() not in client.file.resolve().parents:
        raise SinkUnavailable(f"{directory} can't be written: wandb went to {client.file}")
    return client


# Answers of a server for a run id that it will never accept again.
_GONE: Final = re.compile(r"HTTP 409|HTTP 410|previously created and deleted")

_SETTINGS: Final[dict[str, Any]] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    # On SageMaker, wandb would take the run id from the training job's environment.
    "sagemaker_disable": True,
    "save_code": False,
    "finish_timeout_raises": True,
    "use_dot_wandb": False,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    # The default is 15 s: commits would lag by that, and a crash would repeat as much.
    "x_transaction_log_flush_interval": FLUSH_INTERVAL_S,
}
