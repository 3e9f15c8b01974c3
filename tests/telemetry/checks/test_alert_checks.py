"""`telemetry doctor` on alerts: rules with mistakes, and receivers that can't be reached."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from telemetry.checks.alerts import look_at_apprise, look_at_rules, look_at_webhook
from telemetry.checks.check import DOUBTFUL, FAILS, WORKS
from tests.telemetry.checks.test_checks import run_doctor

SECRET_PATH = "/services/T000/B000/xxSECRETxx"


@contextlib.contextmanager
def answering(code: int, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve on loopback; yield the address without its scheme, and the requests that came."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            seen.append(self.command)
            self.send_response(code)
            self.send_header("content-length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_GET = answer

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *args: None
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"localhost:{server.server_address[1]}{SECRET_PATH}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def looked(url: str, timeout_s: float = 5.0):
    (finding,) = look_at_webhook(url, timeout_s)
    assert "SECRET" not in finding.text + finding.advice
    return finding


@pytest.mark.parametrize(
    ("code", "state"), [(200, WORKS), (405, WORKS), (404, DOUBTFUL), (503, DOUBTFUL)]
)
def test_a_webhook_that_answers_is_asked_by_head_alone(code, state):
    """A receiver would show a POST as a message."""
    with answering(code) as (address, seen):
        finding = looked(f"http://{address}")

    assert (finding.state, seen) == (state, ["HEAD"])
    assert f"HTTP {code}" in finding.text


def test_a_webhook_that_never_answers_is_given_up():
    """It takes the connection, and then nothing comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        finding = looked(f"http://127.0.0.1:{silent.getsockname()[1]}{SECRET_PATH}", 0.3)

    assert finding.state == FAILS and "does not answer in time" in finding.text


def test_a_webhook_at_which_nobody_listens_fails():
    """The port is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    finding = looked(f"http://127.0.0.1:{port}{SECRET_PATH}")

    assert finding.state == FAILS and "nobody takes connections" in finding.text


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".invalid"])
def test_a_host_that_dns_does_not_know_fails(host, monkeypatch):
    """`.invalid` never exists; the second is longer than a name may be."""
    monkeypatch.setenv("no_proxy", "*")

    finding = looked(f"https://{host}{SECRET_PATH}")

    assert finding.state == FAILS and "not found by DNS" in finding.text


def test_a_server_without_tls_at_https_fails():
    """The most common mistake in an address of one's own."""
    with answering(200) as (address, _):
        finding = looked(f"https://{address}")

    assert finding.state == FAILS and "no TLS" in finding.text and "http://" in finding.advice


def test_a_certificate_that_nobody_trusts_fails(tmp_path):
    """And it says how to trust it."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    with answering(200, tls) as (address, _):
        finding = looked(f"https://{address}")

    assert finding.state == FAILS and "not trusted" in finding.text
    assert "SSL_CERT_FILE" in finding.advice


def test_an_address_that_is_no_web_server_fails():
    """It answers, but not in HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_say, args=(server, b"220 mail.example ESMTP\r\n"))
        thread.start()
        finding = looked(f"http://127.0.0.1:{server.getsockname()[1]}{SECRET_PATH}")
        thread.join()

    assert finding.state == FAILS and "no answer that is HTTP" in finding.text


def _say(server: socket.socket, text: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(text)
        connection.recv(4096)


def test_each_mistake_in_the_rules_is_one_line():
    """A name, a number and a field that are wrong; the right ones stay as asked."""
    text = '{"step_tiem": {}, "step_time": {"ratio": "3"}, "own": {"metric": "x", "abov": 1}}'

    findings = list(look_at_rules(text))

    assert [finding.state for finding in findings] == [FAILS] * 3
    assert all("\n" not in finding.text and finding.advice for finding in findings)
    assert "no such rule" in findings[0].text and "step_time" in findings[0].text


def test_rules_without_a_mistake_are_counted():
    """With those of the user's own."""
    (finding,) = look_at_rules('{"own": {"metric": "train/grad_norm", "above": 9}}')

    assert finding.state == WORKS and "12 rules are on, 1 of your own" in finding.text


def test_doctor_ends_with_1_for_a_rule_and_a_webhook_that_were_configured(tmp_path):
    """From the file and the environment, as the sidecar would have them; nothing secret is said."""
    file = tmp_path / "telemetry.toml"
    file.write_text("[alerts.step_tiem]\nratio = 3.0\n")
    plain = f"--data-dir={tmp_path}/data", "--http=off", "--sinks=tensorboard"
    url = f"http://127.0.0.1:1{SECRET_PATH}"

    well = run_doctor(*plain)
    typo = run_doctor(*plain, f"--config={file}")
    away = run_doctor(*plain, TELEMETRY_ALERT_WEBHOOK=url)

    assert [done.returncode for done in (well, typo, away)] == [0, 1, 1]
    assert b"fails  alert rules: alerts.step_tiem: no such rule" in typo.stdout
    assert b"fails  webhook: nobody takes connections at 127.0.0.1" in away.stdout
    assert b"SECRET" not in away.stdout + away.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_addresses_of_no_service_that_apprise_knows_fail(monkeypatch):
    """By their place in the list: the address itself is a secret. Without the library, that."""
    pytest.importorskip("apprise")

    (bad,) = look_at_apprise(("json://127.0.0.1/xxSECRETxx", "xxSECRETxx"))
    (good,) = look_at_apprise(("json://127.0.0.1/xxSECRETxx",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (missing,) = look_at_apprise(("json://127.0.0.1/xxSECRETxx",))

    assert (bad.state, good.state, missing.state) == (FAILS, WORKS, FAILS)
    assert "address 2" in bad.text and "SECRET" not in bad.text
    assert "pip install" in missing.advice
