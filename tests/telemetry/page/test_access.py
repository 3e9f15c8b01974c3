"""Access to the page: its token, its host names, its policy, and its bounds."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from telemetry.page import page_server
from tests.telemetry.page.page_process import PageProcess
from tests.telemetry.page.recorded_runs import HOSTILE, write_run
from tests.telemetry.sidecar_process import clean_env


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageProcess]:
    data_dir = tmp_path_factory.mktemp("data")
    write_run(data_dir, "r-plain", steps=60)
    write_run(data_dir, "r-hostile", steps=60, hostile=HOSTILE)
    with PageProcess(data_dir, "--page-host=node7.cluster") as page:
        yield page


@pytest.mark.parametrize(
    "path", ["/", "/api/runs", "/static/page.css", "/?token=", "/?token=wrong"]
)
def test_without_the_token_nothing_is_shown(page, path):
    """Not even a script: another user of the machine learns only that there is a page."""
    status, headers, body = page.get(path)

    assert status == 401 and b"prints the link" in body
    assert "Set-Cookie" not in headers


def test_the_link_is_exchanged_for_a_cookie_and_the_token_leaves_the_address(page):
    """No history, bookmark or Referer keeps it."""
    status, headers, _ = page.get(f"/?token={page.token}&a=1")

    assert status == 303 and headers["Location"] == "/?a=1"
    words = headers["Set-Cookie"].lower()
    assert "httponly" in words and "samesite=strict" in words
    assert page.token not in headers["Set-Cookie"]


def test_a_wrong_cookie_opens_nothing(page):
    name = page.cookie.partition("=")[0]

    assert page.get("/", Cookie=f"{name}={'0' * 64}")[0] == 401
    assert page.get("/", Cookie="\x7f=;;;=")[0] == 401
    assert page.get("/", Cookie=page.cookie)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("127.0.0.1", 200), ("[::1]", 200), ("NODE7.cluster", 200),
        ("evil.example", 403), ("localhost.evil.example", 403), ("", 403), ("10.0.0.1", 403),
    ],
)  # fmt: skip
def test_it_answers_only_under_names_that_are_its_own(page, host, status):
    """A site whose name is made to lead to this machine sends its own name."""
    assert page.get("/", host=host, Cookie=page.cookie)[0] == status


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_only_get_is_answered(page, method):
    assert page.get("/", method=method, Cookie=page.cookie)[0] == 405


def test_each_answer_has_the_policy(page):
    """No script but our files; each answer has a nonce of its own."""
    answers = [page.get(path, Cookie=page.cookie)[1] for path in ("/", "/", "/api/runs", "/no")]

    policies = {headers["Content-Security-Policy"] for headers in answers}
    assert len(policies) == len(answers)
    assert all("script-src 'self';" in policy for policy in policies)
    assert all("default-src 'none'" in policy for policy in policies)
    assert all(headers["X-Content-Type-Options"] == "nosniff" for headers in answers)


def test_what_trainers_send_is_escaped_in_the_page(page):
    """Tags become text, and a character that turns the direction of reading a code."""
    status, html = page.html("/")

    assert status == 200 and "r-hostile" in html
    assert "<script>window" not in html and "<img" not in html
    assert "&lt;script&gt;window.hostile=1" in html
    assert "\u202e" not in html and "\\u202e" in html


@pytest.mark.parametrize("path", ["/static/../page_app.py", "/static/%2e%2e%2fpage_app.py", "/x"])
def test_an_unknown_address_is_not_found(page, path):
    status, html = page.html(path)

    assert status == 404 and "import" not in html


def test_above_the_bound_the_oldest_connection_is_closed(page):
    """Idle ones can't lock a person out."""
    idle = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(80)]

    began_s = time.monotonic()
    assert page.get("/", Cookie=page.cookie)[0] == 200
    idle[0].settimeout(page_server.HEAD_MAX_S)
    assert idle[0].recv(1) == b""
    assert time.monotonic() - began_s < page_server.HEAD_MAX_S / 2
    for each in idle:
        each.close()


def test_an_address_that_is_taken_is_one_clear_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"--page=127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "telemetry", "page", str(tmp_path), address],
            env=clean_env(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    assert done.returncode == 2 and "choose another address" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no", "there is no directory"),
        ("runs", "has the runs of a data directory; give"),
        ("runs/r", "is one run; give the data directory"),
    ],
)
def test_what_is_no_data_directory_is_one_clear_line(tmp_path: Path, path: str, words: str):
    write_run(tmp_path, "r", steps=5)
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "page", str(tmp_path / path)],
        env=clean_env(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_an_empty_directory_is_a_page_that_says_so(tmp_path: Path):
    """Nothing is made in it."""
    with PageProcess(tmp_path) as page:
        status, html = page.html("/")

    assert status == 200 and "no runs here yet" in html
    assert list(tmp_path.iterdir()) == []
