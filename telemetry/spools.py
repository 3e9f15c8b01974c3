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
from telemetry.reception import WAIT
from telemetry.streams import OWN_STREAM

log = logging.getLogger("telemetry.spools")

LOOK_S: Final = 5.0
TURN_S: Final = 0.02
REFUSED_RETRY_NS: Final = 60_000_000_000
"""Between two tries to send a spool that was refused: of a run that was removed, say."""

NOT_YET: Final = (WAIT, "unknown stream")
"""How the reasons begin for which the same stream is simply asked for again."""


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
        self._not_before_ns: dict[Path, int] = {}
        """When a spool that was refused may be tried again, by its path."""
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
            self._set_refused_aside()
            connection.wait(TURN_S)

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
        """True if a spool that was found is to be sent; one that was refused lately stays."""
        assert peer.spool is not None
        path = peer.spool.path
        if self._clock.monotonic_ns() < self._not_before_ns.get(path, 0):
            peer.spool.close(delete=False)
            return False
        if path not in self._not_before_ns:
            log.info("taking in what run %s left in its spool", peer.stream.run_id)
        return True

    def _set_refused_aside(self) -> None:
        """Leave spools where they are that are not taken: others are not to wait for them."""
        for peer in [peer for peer in self._peers if _is_refused(peer)]:
            assert peer.spool is not None
            self._peers.remove(peer)
            if peer.spool.path not in self._not_before_ns:
                log.warning("the spool %s stays: %s", peer.spool.path, peer.refusal)
            retry_ns = self._clock.monotonic_ns() + REFUSED_RETRY_NS
            self._not_before_ns[peer.spool.path] = retry_ns
            peer.spool.close(delete=False)

    def _forget_finished(self) -> None:
        for peer in [peer for peer in self._peers if peer.stream.state is State.DONE]:
            self._peers.remove(peer)
            if peer.spool is not None:
                peer.spool.close(delete=True)


def _is_refused(peer: Peer) -> bool:
    """True if the sidecar does not take this stream, now or ever."""
    return bool(peer.refusal) and not peer.refusal.startswith(NOT_YET)
