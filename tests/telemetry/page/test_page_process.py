"""The page as a child of the sidecar: started, restarted, ended, and never in the way."""

from __future__ import annotations

import itertools
import os
import re
import signal
import urllib.request

import psutil

from telemetry.supervise import page_process
from telemetry.supervise.page_process import PageProcess
from tests.fakes import ManualClock
from tests.telemetry.sidecar_process import SidecarProcess
from tests.telemetry.waiting import wait_until

LINK = re.compile(r"page: (http://localhost:\d+/\?token=\S+)")


def links(sidecar: SidecarProcess) -> list[str]:
    return LINK.findall(sidecar.log)


def test_serve_starts_it_prints_its_link_and_ends_it(place):
    """The link opens the list of runs; no process is left behind."""
    with SidecarProcess(place / "data", "--page=127.0.0.1:0") as sidecar:
        (link,) = wait_until(lambda: links(sidecar))
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(link, timeout=20) as answer:
            html = answer.read().decode()
        children = sidecar.service.children(recursive=True)
        code = sidecar.terminate()

    assert code == 0 and "no runs here yet" in html
    assert children and not any(map(psutil.Process.is_running, children))


def test_a_page_that_can_not_start_leaves_the_sidecar_at_work(place):
    """It is tried again, later and later; the log says why."""
    flags = ("--page=192.0.2.1:9465",)
    with SidecarProcess(place / "data", *flags) as sidecar:
        wait_until(lambda: "the page ended with exit code 2" in sidecar.log)
        code = sidecar.terminate()

    assert code == 0 and "--page 192.0.2.1:9465" in sidecar.log


def test_a_frozen_page_does_not_hold_up_the_end(place):
    """It only reads: it is killed."""
    with SidecarProcess(place / "data", "--page=127.0.0.1:0") as sidecar:
        wait_until(lambda: links(sidecar))
        (child,) = sidecar.service.children()
        os.kill(child.pid, signal.SIGSTOP)
        code = sidecar.terminate()

    assert code == 0 and not child.is_running()


def test_it_ends_with_a_sidecar_that_was_killed(place):
    """Its standard input closes with the service, however that ends."""
    with SidecarProcess(place / "data", "--page=127.0.0.1:0") as sidecar:
        wait_until(lambda: links(sidecar))
        service = sidecar.service
        (child,) = service.children()
        service.kill()
        wait_until(lambda: not child.is_running())


def test_after_each_quick_end_it_waits_twice_as_long(tmp_path, monkeypatch):
    """And it keeps its token, so that a browser that is open goes on."""
    clock = ManualClock()
    started = []

    class Ended:
        stdin, returncode = None, 1

        def __init__(self, command, **options):
            started.append((clock.monotonic_ns(), command, options["env"]["TELEMETRY_PAGE_TOKEN"]))

        def poll(self):
            return 1

    monkeypatch.setattr(page_process.subprocess, "Popen", Ended)
    page = PageProcess(tmp_path, "127.0.0.1:0", (), "", clock)
    for _ in range(40):
        page.keep()
        clock.advance(1.0)

    waits = [b[0] - a[0] for a, b in itertools.pairwise(started)]
    assert [round(wait / 1e9) for wait in waits] == [6, 11, 21]
    assert len({token for _, _, token in started}) == 1


def test_off_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(page_process.subprocess, "Popen", None)

    page = PageProcess(tmp_path, "off", (), "", ManualClock())
    page.keep()
    page.end()
