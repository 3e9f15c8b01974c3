"""The webhook: every alert arrives, a bad receiver delays nothing, and its address stays secret."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from shared.events import AlertChanged
from telemetry.alerts import webhook as webhook_module
from telemetry.alerts.webhook import WAITING_MAX, Sender, Times, body_of, post, senders_of, webhook
from telemetry.config import as_flags, load, secret_environ
from telemetry.errors import CommandError
from tests.telemetry.sidecar_process import SidecarProcess, clean_env
from tests.telemetry.waiting import wait_until

SECRET_PATH = "/services/T000/B000/xxSECRETxx"
HOT = AlertChanged(
    name="gpu_throttled", subject="gpu/0", text="hot; password=hunter2", value=math.nan
)


class Receiver:
    """A web server that keeps what is posted, and answers with the codes it is told."""

    def __init__(self) -> None:
        self.got: list[dict] = []
        self.codes: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                code = outer.codes.pop(0) if outer.codes else 200
                if code == 200:
                    outer.got.append(json.loads(body))
                self.send_response(code)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}{SECRET_PATH}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def names(self) -> list[str]:
        return [alert["name"] for body in self.got for alert in body["alerts"]]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def sender(receiver: Receiver, interval_s: float = 0.0) -> Sender:
    times = Times(interval_s, retry_first_s=0.02, last_words_s=0.5)
    return Sender("webhook", lambda messages: post(receiver.url, messages), times)


def test_an_alert_arrives_as_text_and_as_data(receiver):
    """Without the secret that a producer put into its text; NaN is null."""
    made = sender(receiver)
    made.put(("", "hardware:n1", HOT))
    wait_until(lambda: receiver.got)
    made.close()

    (body,) = receiver.got
    (alert,) = body["alerts"]
    assert body["text"] == body["content"] and "gpu_throttled gpu/0: hot" in body["text"]
    assert "hunter2" not in json.dumps(body)
    assert (alert["subject"], alert["is_active"], alert["value"]) == ("gpu/0", True, None)


def test_a_receiver_that_fails_is_tried_again_and_gets_all_in_order(receiver):
    """A 500, a 429, and then it works."""
    receiver.codes = [500, 429, 503]
    made = sender(receiver)
    for number in range(5):
        made.put(("r", "sidecar", AlertChanged(name=f"a{number}")))
    wait_until(lambda: len(receiver.names()) == 5)
    made.close()

    assert receiver.names() == [f"a{number}" for number in range(5)] and made.dropped == 0


def test_a_receiver_that_refuses_is_not_tried_again(receiver, caplog):
    """The address is wrong; later alerts are tried again. The log does not show it."""
    receiver.codes = [404]
    made = sender(receiver)
    made.put(("r", "sidecar", AlertChanged(name="first")))
    wait_until(lambda: made.dropped)
    made.put(("r", "sidecar", AlertChanged(name="second")))
    wait_until(lambda: receiver.names())
    made.close()

    assert receiver.names() == ["second"] and "HTTP 404" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_flood_is_posted_together_and_not_one_by_one(receiver):
    """At most one POST an interval."""
    made = sender(receiver, interval_s=0.5)
    began_s = time.monotonic()
    for number in range(41):
        made.put(("r", "sidecar", AlertChanged(name=f"a{number}")))
    wait_until(lambda: len(receiver.names()) == 41)
    took_s = time.monotonic() - began_s
    made.close()

    assert len(receiver.got) <= 4 and took_s >= 0.5 * (len(receiver.got) - 1)


def test_a_receiver_that_never_answers_delays_nobody_and_memory_is_bounded():
    """It takes the connection and is frozen: `put` returns, `close` returns."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        made = webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        began_s = time.monotonic()
        for number in range(3 * WAITING_MAX):
            made.put(("r", "sidecar", AlertChanged(name=f"a{number}")))
        put_s = time.monotonic() - began_s
        made.close()
        took_s = time.monotonic() - began_s

    assert put_s < 0.5 and took_s < 5
    assert len(made._waiting) <= WAITING_MAX and made.dropped >= WAITING_MAX


def test_a_body_can_be_made_of_anything_that_can_be_journaled():
    """Any text, any value."""
    event = AlertChanged(name="\x00\ud7ff", subject='"', text="\x1b" * 9000, value=2**63 - 1)

    assert len(json.loads(body_of([("r", "s", event)]))["text"]) <= webhook_module.TEXT_MAX_CHARS


# --- the address is a secret


@pytest.mark.parametrize(
    "url", ["hooks.slack.com/SECRET", "ftp://x/SECRET", "http://[SECRET", "http://"]
)
def test_an_address_that_is_none_stops_the_start_without_being_shown(url):
    """One line with the flag's name."""
    with pytest.raises(CommandError) as failed:
        load({"alert_webhook": url}, {}, None)

    assert "--alert-webhook" in str(failed.value) and "SECRET" not in str(failed.value)


def test_the_address_is_in_no_flag_of_a_child_and_in_no_representation():
    """It goes on by a variable."""
    config = load({"alert_webhook": "https://h/SECRET", "alert_apprise": "json://SECRET"}, {}, None)
    again = load({}, secret_environ(config), None)

    assert "SECRET" not in repr(config) and "SECRET" not in " ".join(as_flags(config))
    assert again.alert_webhook == "https://h/SECRET" and again.alert_apprise == ("json://SECRET",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_apprise_addresses_that_cannot_be_used_cost_one_line(caplog):
    """The sidecar goes on without; the address is not shown."""
    pytest.importorskip("apprise")

    assert senders_of("", ("nosuchservice://SECRET",)) == []
    assert "apprise" in caplog.text and "SECRET" not in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_apprise_sends_to_a_service_that_it_knows(receiver):
    """Its own `json://`, on loopback."""
    pytest.importorskip("apprise")
    (made,) = senders_of("", (receiver.url.replace("http://", "json://"),))
    bodies: list[dict] = receiver.got
    made.put(("r", "sidecar", AlertChanged(name="first", text="why")))
    wait_until(lambda: bodies)
    made.close()

    assert "first: why" in json.dumps(bodies[0])


def test_a_sidecar_posts_and_shows_the_address_nowhere(tmp_path, receiver):
    """Not in the command lines of its processes, its log or its data."""
    rules = '--alerts={"disk_nearly_full": {"free_bytes": 1e18}}'
    env = clean_env(TELEMETRY_ALERT_WEBHOOK=receiver.url)
    with SidecarProcess(
        tmp_path / "data", rules, "--sample-hz=1", "--host-run", env=env
    ) as sidecar:
        wait_until(lambda: "disk_nearly_full" in receiver.names())
        tree = psutil.Process(sidecar.process.pid)
        lines = [p.cmdline() for p in [tree, *tree.children(recursive=True)]]
        log = sidecar.log
        sidecar.terminate()
    found = subprocess.run(
        ["grep", "-rl", "xxSECRETxx", str(tmp_path)], capture_output=True, check=False
    )

    assert "xxSECRETxx" not in str(lines) + log and found.stdout == b""
    assert receiver.names().count("disk_nearly_full") == 1
