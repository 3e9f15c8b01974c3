"""Spools: what trainers that are gone left behind, taken in by the sidecar itself.

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
from shared.connection import Connection
from shared.conversation import Conversation, Peer, adopted_peers
from shared.outgoing import State
from telemetry.streams import OWN_STREAM

log = logging.getLogger("telemetry.spools")

LOOK_S: Final = 5.0
TURN_S: Final = 0.02


class SpoolCarrier:
    """Watches spool directories, and sends what is left in them."""

    def __init__(self, endpoint: str, directories: tuple[Path, ...], clock: Clock) -> None:
        self._endpoint = endpoint
        self._directories = directories
        self._clock = clock
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._is_idle = not directories
        self._peers: list[Peer] = []
        # An emitter's own stream is its first: what is carried is never taken for one.
        self._last_number = OWN_STREAM
        self._thread = threading.Thread(target=self._run, name="spools", daemon=True)

    @property
    def is_idle(self) -> bool:
        """Nothing was left in the spools when it last looked, or all of it is on disk."""
        return self._is_idle

    def start(self) -> None:
        if self._directories:
            self._thread.start()

    def look_now(self) -> None:
        """Look again at once: an emitter has just ended."""
        if self._directories:
            self._is_idle = False
            self._wake.set()

    def close(self) -> None:
        """Stop; what was not sent stays where it is. May be called twice."""
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
            talk.turn(self._peers)
            self._forget_finished()
            connection.wait(TURN_S)

    def _look(self) -> None:
        for directory in self._directories:
            try:
                found = adopted_peers(directory, self._last_number + 1)
            except OSError as exc:
                log.warning("spool directory %s: %s", directory, exc.strerror)
                continue
            self._last_number += len(found)
            self._peers += found
            for peer in found:
                log.info("taking in what run %s left in its spool", peer.stream.run_id)

    def _forget_finished(self) -> None:
        for peer in [peer for peer in self._peers if peer.stream.state is State.DONE]:
            self._peers.remove(peer)
            if peer.spool is not None:
                peer.spool.close(delete=True)
