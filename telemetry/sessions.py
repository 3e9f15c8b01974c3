"""Sessions: keeps the order and the endings of a run's main sessions.

In: `RunStarted` and `RunFinished` of rank 0, in the order of the journal.
Out: the newest main session, and the status that the run has by it.
Never: reads a clock or a file: ingest, sinks and replay come to the same answer.

A main session is one start of `rank0`. Several may be live at once. The newest is that
of the last `RunStarted` whose record is not late: the spool of a former session, which
may arrive long after its successor began, never takes the place of that one.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from shared.events import LOST, Event, RunFinished, RunStarted
from shared.ids import MAIN_SOURCE as MAIN_SOURCE

SESSIONS_MAX: Final = 100
"""Sessions whose order is remembered; a run restarted more often forgets its oldest."""

_WORKER: Final = re.compile(r"rank[0-9]+\.worker[0-9]+")


def begins_newest(source: str, event: Event | None, *, is_late: bool) -> bool:
    """Return True if this event makes its session the newest main session of the run."""
    return isinstance(event, RunStarted) and source == MAIN_SOURCE and not is_late


def is_worker(source: str) -> bool:
    """Return True for the source of a process forked or spawned from an emitting one."""
    return _WORKER.fullmatch(source) is not None


class Ending(NamedTuple):
    """The status and exit code of a session's RunFinished."""

    session: str
    status: str
    exit_code: int | None


class MainSessions:
    """The main sessions of a run, oldest first, with their endings. Not thread-safe."""

    def __init__(self, known: Any = None) -> None:
        """Restore from a value of `to_json`; any other value counts as no sessions."""
        known = known if isinstance(known, dict) else {}
        self._order = _texts(known.get("order"))
        self._is_lost = known.get("is_lost") is True
        self._endings: dict[str, Ending] = {}
        for item in known.get("endings") if isinstance(known.get("endings"), list) else []:
            if (ending := _ending(item)) is not None:
                self._endings[ending.session] = ending
        self._newest = known.get("newest") if known.get("newest") in self._order else None

    @property
    def newest(self) -> str | None:
        """Newest main session; if all sessions came late, the last of them."""
        return self._newest or (self._order[-1] if self._order else None)

    @property
    def ending(self) -> Ending | None:
        """Ending of the run, or None while its newest main session has not finished.

        A run that was declared lost has the ending of the newest session that did finish,
        and `lost` only if none did.
        """
        newest = self.newest
        if newest is not None and newest in self._endings:
            return self._endings[newest]
        if not self._is_lost:
            return None
        finished = [s for s in self._order if s in self._endings]
        return self._endings[finished[-1]] if finished else Ending(newest or "", LOST, None)

    def began(self, session: str, *, is_late: bool) -> None:
        """Note a RunStarted of rank 0."""
        if is_late:
            self._place_before_newest(session)
            return
        if session in self._order:
            self._order.remove(session)
        self._order.append(session)
        self._newest = session
        self._endings.pop(session, None)
        self._is_lost = False
        self._forget_oldest()

    def finished(self, session: str, event: RunFinished) -> None:
        """Note a RunFinished of rank 0."""
        self._place_before_newest(session)
        self._endings[session] = Ending(session, event.status, event.exit_code)

    def given_up(self, event: RunFinished) -> None:
        """Note a RunFinished of the sidecar, for a run whose producers are gone."""
        if event.status == LOST:
            self._is_lost = True
            return
        self.finished(self.newest or "", event)

    def goes_on(self, session: str) -> bool:
        """Note an event of this session; return True if it is the newest and was declared lost."""
        if not self._is_lost or session != self.newest:
            return False
        self._is_lost = False
        return True

    def is_finished(self, session: str) -> bool:
        """Return True if this session has finished."""
        return session in self._endings

    def to_json(self) -> dict[str, Any]:
        return {
            "order": list(self._order),
            "newest": self._newest,
            "is_lost": self._is_lost,
            "endings": [list(ending) for ending in self._endings.values()],
        }

    def _place_before_newest(self, session: str) -> None:
        """Order a session that is not the newest, and was not known."""
        if session in self._order:
            return
        at = self._order.index(self._newest) if self._newest is not None else len(self._order)
        self._order.insert(at, session)
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        while len(self._order) > SESSIONS_MAX:
            self._endings.pop(self._order.pop(0), None)


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, str)][-SESSIONS_MAX:]


def _ending(item: Any) -> Ending | None:
    if not isinstance(item, list) or len(item) != 3:
        return None
    session, status, code = item
    is_right = isinstance(session, str) and isinstance(status, str)
    return Ending(session, status, code) if is_right and isinstance(code, int | None) else None
