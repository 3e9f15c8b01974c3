"""Webhook: posts alerts to an address of the user's, on a thread of its own.

In: messages, from the watching thread.
Out: one POST of JSON for each, or for several that came while the receiver was away.
Never: delays the caller, holds more than WAITING_MAX messages, or shows the address: such
an address is a secret.

    {"text": "...", "content": "...", "alerts": [{"run_id": ..., "source": ..., "name": ...,
     "subject": ..., "is_active": ..., "severity": ..., "text": ..., "value": ...}]}

`text` is what Slack and Mattermost show, `content` what Discord shows. A receiver that
fails is tried again with a delay that doubles; one that refuses (HTTP 400 to 499, but not
408 and 429) is not. At most one POST is sent every INTERVAL_S.
"""

from __future__ import annotations

import http.client
import logging
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from shared.redact import redacted_text
from telemetry.alerts.telling import Message
from telemetry.alerts.words import words_of

log = logging.getLogger("telemetry.alerts.webhook")

TIMEOUT_S: Final = 10.0
WAITING_MAX: Final = 200
TOGETHER_MAX: Final = 20
"""Alerts in one POST."""
TEXT_MAX_CHARS: Final = 1_500
_TRY_AGAIN: Final = frozenset({408, 429})

Send = Callable[[list[Message]], None]


class Times(NamedTuple):
    """The times that a sender waits, in seconds.

    interval_s: between two messages to a receiver. retry_first_s, retry_max_s: before it
    tries again, doubled with each failure. last_words_s: for what waits when the sidecar ends.
    """

    interval_s: float = 3.0
    retry_first_s: float = 2.0
    retry_max_s: float = 300.0
    last_words_s: float = 3.0

    def retry_s(self, failures: int) -> float:
        """Return the time before the next try, after so many failures in a row."""
        return min(self.retry_first_s * 2.0 ** min(failures - 1, 16), self.retry_max_s)


TIMES: Final = Times()


class Refused(Exception):
    """Error: the receiver will never take this."""


class Failed(Exception):
    """Error: the receiver did not take this now; try again."""


class Sender:
    """A queue and a thread that sends what is in it. `put` may be called from any thread."""

    def __init__(self, name: str, send: Send, times: Times = TIMES) -> None:
        """name: the receiver's, for the log: without anything secret in it."""
        self.dropped = 0
        """Messages that were dropped because too many waited, or the receiver refused them."""
        self._name = name
        self._send = send
        self._times = times
        self._lock = threading.Condition()
        self._waiting: deque[Message] = deque()
        self._is_ending = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Add a message; the oldest is dropped where too many wait. Returns at once."""
        with self._lock:
            if len(self._waiting) >= WAITING_MAX:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(message)
            self._lock.notify()

    def close(self) -> None:
        """Let what waits be sent for a moment, then leave the thread to its end."""
        with self._lock:
            self._is_ending = True
            self._lock.notify()
        self._thread.join(self._times.last_words_s)

    def _run(self) -> None:
        while (messages := self._next()) is not None:
            wait_s = self._try(messages)
            with self._lock:
                self._lock.wait_for(lambda: self._is_ending, wait_s)
                if self._is_ending and self._failures:
                    return  # there is no time for another try

    def _next(self) -> list[Message] | None:
        """Wait for messages; return some of them, or None where there will be no more."""
        with self._lock:
            self._lock.wait_for(lambda: self._waiting or self._is_ending)
            count = min(len(self._waiting), TOGETHER_MAX)
            return [self._waiting.popleft() for _ in range(count)] or None

    def _try(self, messages: list[Message]) -> float:
        """Send messages, or put them back; return the time to wait before the next try, in s."""
        try:
            self._send(messages)
        except Refused as exc:
            self.dropped += len(messages)
            log.error("%s refuses alerts: %s; they are dropped", self._name, exc)
            return self._times.interval_s
        except Exception as exc:  # whatever a receiver's library raises
            self._failures += 1
            if self._failures == 1:
                log.warning("%s does not take alerts: %s; tried again", self._name, exc)
            self._put_back(messages)
            return self._times.retry_s(self._failures)
        if self._failures:
            log.info("%s takes alerts again", self._name)
        self._failures = 0
        return self._times.interval_s

    def _put_back(self, messages: list[Message]) -> None:
        with self._lock:
            room = max(0, WAITING_MAX - len(self._waiting))
            kept = messages[len(messages) - room :] if room < len(messages) else messages
            self.dropped += len(messages) - len(kept)
            self._waiting.extendleft(reversed(kept))


def senders_of(url: str, apprise_urls: tuple[str, ...]) -> list[Sender]:
    """Return the senders that a configuration asks for; one that can't be had is logged."""
    senders = [webhook(url)] if url else []
    if apprise_urls:
        try:
            senders.append(apprise(apprise_urls))
        except ImportError:
            log.error("apprise is not installed: pip install 'training-telemetry[apprise]'")
        except ValueError as exc:
            log.error("apprise is left out: %s", exc)
    return senders


def webhook(url: str) -> Sender:
    """Return the sender for a webhook."""
    host = urllib.parse.urlsplit(url).hostname or "?"
    return Sender(f"webhook at {host}", lambda messages: post(url, messages))


def post(url: str, messages: list[Message]) -> None:
    """Post messages.

    Raises:
        Refused: the receiver will never take them.
        Failed: it did not take them now.
    """
    headers = {"content-type": "application/json", "user-agent": "training-telemetry"}
    try:
        request = urllib.request.Request(url, body_of(messages), headers, method="POST")
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return
    except urllib.error.HTTPError as exc:
        with exc:
            is_final = 400 <= exc.code < 500 and exc.code not in _TRY_AGAIN
            raise (Refused if is_final else Failed)(f"HTTP {exc.code}") from None
    except urllib.error.URLError as exc:
        # Its reason names no address; the exception itself may.
        raise Failed(type(exc.reason).__name__) from None
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise Failed(type(exc).__name__) from None


def body_of(messages: list[Message]) -> bytes:
    """Return the JSON of messages."""
    text = text_of(messages)
    alerts = [_alert(message) for message in messages]
    return msgspec.json.encode({"text": text, "content": text, "alerts": alerts})


def text_of(messages: list[Message]) -> str:
    """Return messages as lines for people, without secrets."""
    lines = [
        f"[{event.severity if event.is_active else 'over'}] {run_id or source}: {words_of(event)}"
        for run_id, source, event in messages
    ]
    return redacted_text("\n".join(lines))[:TEXT_MAX_CHARS]


def _alert(message: Message) -> dict[str, Any]:
    run_id, source, event = message
    return {
        "run_id": run_id,
        "source": source,
        "name": event.name,
        "subject": event.subject,
        "is_active": event.is_active,
        "severity": event.severity,
        "text": redacted_text(event.text),
        "value": event.value,
        "lasted_s": event.lasted_s,
    }


def apprise_of(urls: tuple[str, ...]) -> Any:
    """Return the receiver of the library apprise for some addresses.

    Raises:
        ImportError: it is not installed.
        ValueError: it does not know one of the addresses.
    """
    import apprise as library

    # Its own lines would show addresses; what goes wrong is in ours.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    receiver = library.Apprise()
    for place, url in enumerate(urls):
        if not receiver.add(url):
            raise ValueError(f"address {place + 1} is of no service that apprise knows")
    return receiver


def apprise(urls: tuple[str, ...]) -> Sender:
    """Return the sender for addresses of the library apprise: mail, Telegram and many more.

    Raises:
        ImportError, ValueError: as apprise_of says.
    """
    receiver = apprise_of(urls)

    def send(messages: list[Message]) -> None:
        if not receiver.notify(title="training telemetry", body=text_of(messages)):
            raise Failed("apprise says that it was not sent")

    return Sender("apprise", send)
