"""Limits: bounds on the number of open runs, and on the rate of new ones.

In: the peer that wants a run opened, and how many are open.
Out: nothing if it may be opened, else `Wait` with the reason.
Never: refuses for good: a peer that waits and asks again gets in.

A new run costs a directory and several syncs. A flood of ever new run ids must neither
fill the disk with directories nor delay runs that train; a launch of hundreds of runs at
once, each by a process of its own, is ordinary.

Not thread-safe: the journal thread owns it.
"""

from __future__ import annotations

from typing import Final

from shared.clock import Clock

PEER_BURST: Final = 200
PEER_PER_S: Final = 3.0
ALL_BURST: Final = 1_000
ALL_PER_S: Final = 10.0
PEERS_MAX: Final = 10_000
POLL_NS: Final = 25_000_000
"""Time of one poll that may go into opening runs."""


class Wait(Exception):
    """Not now; the message says why."""


class Allowance:
    """A number of things that grows with time, up to a burst."""

    def __init__(self, burst: float, per_s: float, now_ns: int) -> None:
        self._burst, self._per_s = burst, per_s
        self._left, self._at_ns = burst, now_ns

    def left(self, now_ns: int) -> float:
        self._left = min(self._burst, self._left + (now_ns - self._at_ns) / 1e9 * self._per_s)
        self._at_ns = now_ns
        return self._left

    def spend(self) -> None:
        self._left -= 1


class RunLimits:
    """The allowances of all peers together and of each peer. Not thread-safe."""

    def __init__(self, clock: Clock, runs_max: int, peers_max: int = PEERS_MAX) -> None:
        self._clock = clock
        self._peers_max = peers_max
        self._runs_max = runs_max
        self._all = Allowance(ALL_BURST, ALL_PER_S, clock.monotonic_ns())
        self._of_peer: dict[bytes, Allowance] = {}
        self._spent_ns = 0

    @property
    def is_poll_spent(self) -> bool:
        """True if this poll has opened as much as it may."""
        return self._spent_ns >= POLL_NS

    def begin_poll(self) -> None:
        self._spent_ns = 0

    def spend_time(self, spent_ns: int) -> None:
        """Note how long an opening took."""
        self._spent_ns += spent_ns

    def check(self, peer: bytes, *, is_new: bool, open_runs: int) -> None:
        """Check that a run may be opened now, and count it if it is new.

        Raises:
            Wait: this poll has no more time, or too many runs are open or were begun lately.
        """
        if self.is_poll_spent:
            raise Wait("wait: other runs are being opened")
        if open_runs >= self._runs_max:
            raise Wait(
                f"wait: {open_runs} runs are open, as many as file descriptors allow; "
                "raise the limit of open files (ulimit -n) for more"
            )
        if is_new:
            self._spend(peer)

    def _spend(self, peer: bytes) -> None:
        now = self._clock.monotonic_ns()
        own = self._of_peer.get(peer)
        if own is None:
            if len(self._of_peer) >= self._peers_max:
                self._forget_full(now)
            own = self._of_peer[peer] = Allowance(PEER_BURST, PEER_PER_S, now)
        if own.left(now) < 1 or self._all.left(now) < 1:
            raise Wait("wait: too many new runs a minute")
        own.spend()
        self._all.spend()

    def _forget_full(self, now: int) -> None:
        """Forget peers that spent nothing lately, or all of them where all did."""
        kept = {p: a for p, a in self._of_peer.items() if a.left(now) < PEER_BURST}
        self._of_peer = kept if len(kept) < self._peers_max else {}
