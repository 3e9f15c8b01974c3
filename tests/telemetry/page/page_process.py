"""The page in a process of its own, as a person starts it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

from shared.closing import Closing
from tests.telemetry.sidecar_process import clean_env


class PageProcess(Closing):
    """`python -m telemetry page` over a data directory, on a port of its own choosing."""

    def __init__(self, data_dir: Path, *flags: str, **env: str) -> None:
        command = [sys.executable, "-m", "telemetry", "page", str(data_dir), "--page=127.0.0.1:0"]
        self.process = subprocess.Popen(
            [*command, *flags], env=clean_env(**env), stdin=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        self.link = self.said.partition("page: ")[2].strip()
        parts = urllib.parse.urlsplit(self.link)
        self.port = parts.port or 0
        self.base = f"http://localhost:{self.port}"
        self.token = urllib.parse.parse_qs(parts.query).get("token", [""])[0]
        self._cookie = ""

    def get(
        self, path: str, host: str = "localhost", method: str = "GET", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of one request."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.putrequest(method, path, skip_host=True)
            link.putheader("Host", f"{host}:{self.port}")
            for name, value in headers.items():
                link.putheader(name.replace("_", "-"), value)
            link.endheaders()
            answer = link.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            link.close()

    @property
    def cookie(self) -> str:
        """The cookie that the link is exchanged for."""
        if not self._cookie:
            said = self.get(f"/?token={self.token}")[1]["Set-Cookie"]
            self._cookie = said.partition(";")[0]
        return self._cookie

    def html(self, path: str) -> tuple[int, str]:
        status, _, body = self.get(path, Cookie=self.cookie)
        return status, body.decode()

    def json(self, path: str) -> Any:
        status, _, body = self.get(path, Cookie=self.cookie)
        assert status == 200, body
        return json.loads(body)

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)
