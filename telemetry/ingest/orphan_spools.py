"""Spools: sends the spool files of emitters that are gone to the sidecar.

In: directories in which emitters spool, of this container or of another.
Out: their frames over the wire, each under the session that made them.
Never: touches a spool whose emitter lives, or deletes one before all of it is on disk.

Runs on a thread of its own, as a client of the sidecar like any other.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

from shared.clock import Clock
from shared.emitter.connection import Connection
from shared.emitter.conversation import Conversation
from shared.emitter.peers import Peer, adopted_peers, forget_finished
from telemetry.ingest.reception import WAIT
from telemetry.ingest.streams import OWN_STREAM

log = logging.getLogger("telemetry.ingest.orphan_spools")

LOOK_S: Final = 5.0
POLL_S: Final = 0.02
REFUSED_RETRY_NS: Final = 60_000_000_000
"""Time between two tries to send a refused spool, for example of a removed run."""

NOT_YET: Final = (WAIT, "unknown stream")
"""Beginnings of refusal reasons that are temporary: the stream is asked for again."""


class SpoolCarrier:
    """Watches spool directories, and sends the orphaned spools in them."""

    def __init__(self, endpoint: str, directories: tuple[Path, ...], clock: Clock) -> None:
        self._endpoint = endpoint
        self._directories = directories
        self._clock = clock
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._is_idle = not directories
        self._peers: list[Peer] = []
        self._not_before_ns: dict[Path, int] = {}
        """Monotonic time from which a refused spool may be tried again, by its path."""
        # Numbers above OWN_STREAM: the sidecar takes that one for an emitter's own stream.
        self._last_number = OWN_STREAM
        self._thread = threading.Thread(target=self._run, name="spools", daemon=True)

    @property
    def is_idle(self) -> bool:
        """True if the last look found nothing that is still to be sent or synced."""
        return self._is_idle

    def start(self) -> None:
        if self._directories:
            self._thread.start()

    def look_now(self) -> None:
        """Look again at once, because an emitter has just ended."""
        if self._directories:
            self._is_idle = False
            self._wake.set()

    def close(self) -> None:
        """Stop the thread; events that were not sent stay in their spools. May be called twice."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        with Connection(self._endpoint) as connection:
            talk = Conversation(connection, self._clock)
            while not self._stop.is_set():
                try:
                    self._look()
                    self._carry(connection, talk)
                    self._is_idle = not self._wake.is_set()
                except Exception:
                    log.exception("taking in spools failed; it goes on")
                self._wake.wait(LOOK_S)
                self._wake.clear()
        for peer in self._peers:
            if peer.spool is not None:
                peer.spool.close(delete=False)

    def _carry(self, connection: Connection, talk: Conversation) -> None:
        """Send what was found, until all of it is on disk."""
        while self._peers and not self._stop.is_set():
            talk.poll(self._peers)
            forget_finished(self._peers)
            self._set_refused_aside()
            connection.wait(POLL_S)

    def _look(self) -> None:
        for directory in self._directories:
            try:
                found = adopted_peers(directory, self._last_number + 1)
            except OSError as exc:
                log.warning("spool directory %s: %s", directory, exc.strerror)
                continue
            self._last_number += len(found)
            self._peers += [peer for peer in found if self._may_try(peer)]

    def _may_try(self, peer: Peer) -> bool:
        """Return True if a spool is to be sent; close it and return False if refused lately."""
        assert peer.spool is not None
        path = peer.spool.path
        if self._clock.monotonic_ns() < self._not_before_ns.get(path, 0):
            peer.spool.close(delete=False)
            return False
        if path not in self._not_before_ns:
            log.info("taking in what run %s left in its spool", peer.stream.id.run_id)
        return True

    def _set_refused_aside(self) -> None:
        """Close refused spools and leave them on disk, so that others need not wait for them."""
        for peer in [peer for peer in self._peers if _is_refused(peer)]:
            assert peer.spool is not None
            self._peers.remove(peer)
            if peer.spool.path not in self._not_before_ns:
                log.warning("the spool %s stays: %s", peer.spool.path, peer.refusal)
            retry_ns = self._clock.monotonic_ns() + REFUSED_RETRY_NS
            self._not_before_ns[peer.spool.path] = retry_ns
            peer.spool.close(delete=False)


def _is_refused(peer: Peer) -> bool:
    """Return True if the sidecar has refused this stream, for longer than a moment."""
    return bool(peer.refusal) and not peer.refusal.startswith(NOT_YET)
