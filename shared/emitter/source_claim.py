"""Source claim: the source name under which a process records, claimed from other processes.

In: the stream of a process, and the directory in which it spools.
Out: the stream under its own name: that of a worker, where its parent has the plain one.
Never: keeps a process from recording. Without its claim it only gets another name, or logs.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from shared.emitter.claims import Claim, ClaimTaken, claim_worker, holder
from shared.emitter.process import spawned_by
from shared.emitter.stream import OutgoingStream
from shared.ids import main_source, worker_source

log = logging.getLogger("telemetry.emitter")


class SourceClaim:
    """The claim of one process on the source name of its stream.

    Not thread-safe: the sender thread owns it, but for `abandon`.
    """

    def __init__(self, directory: Path | None, stream: OutgoingStream, is_worker: bool) -> None:
        """Claim nothing yet. Without a directory there is nothing to claim the name in."""
        self._directory = directory
        self._stream = stream
        self._is_worker = is_worker
        self._is_settled = False
        self._claim: Claim | None = None

    def claim_if_worker(self) -> None:
        """Take the name of a worker if this process is one, before its first HELLO."""
        if self._is_worker or self._is_of_parent():
            self._claim_worker()

    def claim_once(self) -> None:
        """Claim the name; warn if another process records under it. Both are recorded."""
        if self._is_settled:
            return
        self._is_settled = True
        if self._directory is None:
            return
        run_id, source = self._stream.id.run_id, self._stream.id.source
        try:
            self._claim = Claim(self._directory, f"{run_id}.{source}")
        except ClaimTaken as exc:
            log.warning(
                "run %s is already being recorded as %s by process %s; both are recorded, "
                "each as a session of its own",
                run_id, source, exc.pid,
            )  # fmt: skip
        except OSError:
            pass  # no lock could be taken; the spool warns about that when it is needed

    def release(self) -> None:
        """Give the name back. May be called twice."""
        if self._claim is not None:
            self._claim.release()

    def abandon(self) -> None:
        """Close this process's copy of the claim in a forked child; its parent still holds it."""
        if self._claim is not None:
            self._claim.abandon()

    def _is_of_parent(self) -> bool:
        """True if the process that spawned this one records the run under the same source."""
        parent, stream = spawned_by(), self._stream
        if not parent or self._directory is None:
            return False
        return holder(self._directory, f"{stream.id.run_id}.{stream.id.source}") == parent

    def _claim_worker(self) -> None:
        """Become a worker of the source, numbered by the lowest free number or the pid."""
        run_id, source = self._stream.id.run_id, main_source(self._stream.id.source)
        number = os.getpid()
        if self._directory is not None:
            # Where no lock can be taken, the pid stays: it is unique too.
            with contextlib.suppress(OSError):
                number, self._claim = claim_worker(self._directory, run_id, source)
        self._stream.rename(worker_source(source, number))
        self._is_settled = True
