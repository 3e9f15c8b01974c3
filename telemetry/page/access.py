"""Access: lets only the holder of the page's token in, and says what a browser may do with it.

In: HTTP requests from any process of this machine, and from any page open in its browsers.
Out: those with the token go on to the application; each answer carries the page's policy.
Never: answers a request for another host's name, or one that is no GET; compares a secret in
a time that tells how much of it was right.

The token comes once, in the query of the link; it is exchanged for a cookie, and the browser
is sent on to the same address without it, so that it stays in no history or bookmark. The cookie
is HttpOnly and SameSite=Strict: neither a script nor another site can use it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES: Final = 24
NONCE_BYTES: Final = 18
QUERY_MAX_BYTES: Final = 16 * 1024

POLICY: Final = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "style-src 'self' 'nonce-{nonce}'; style-src-elem 'self' 'nonce-{nonce}'; "
    "style-src-attr 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""The Content-Security-Policy. Plotly makes style elements, which get the nonce by
`assets/nonce.js`, and sets style attributes; pictures of heat maps are data: addresses."""

HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
CLOSED: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>telemetry: the link is needed</title>
<h1>This page opens by its link</h1>
<p>The sidecar prints the link, with its token, when it starts: <code>page: http://…/?token=…</code>.
Open that link once; this browser then remembers it until the sidecar is started anew.</p>
<p>If you have just opened the link: <a href="/">go on to the runs</a>.</p>
"""


def new_token() -> str:
    """Return a token that can't be guessed, fit for a link."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class Access:
    """A layer around the application: checks method, host and token. Stateless; thread-safe."""

    def __init__(self, app: ASGIApp, token: str, port: int, hosts: Collection[str] = ()) -> None:
        """Guard an application. hosts: names, besides those of loopback, that it is reached by."""
        self._app, self._token = app, token.encode()
        # Cookies are not told apart by port: two pages on one machine need two names.
        self.cookie_name = f"telemetry_page_{port}"
        self.cookie_value = hashlib.sha256(b"cookie:" + self._token).hexdigest()
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        nonce = secrets.token_urlsafe(NONCE_BYTES)
        scope.setdefault("state", {})["nonce"] = nonce
        answer: ASGIApp = self._refusal(scope) or self._app

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY.format(nonce=nonce)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await answer(scope, receive, send_with_policy)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that must not reach the application, else None."""
        headers = Headers(scope=scope)
        if scope["method"] != "GET":
            return PlainTextResponse("only GET\n", 405, {"Allow": "GET"})
        if not self._is_ours(headers.getlist("host")):
            text = "the page is not reached by this name; see --page-host\n"
            return PlainTextResponse(text, 403)
        query = scope.get("query_string", b"")
        if len(query) > QUERY_MAX_BYTES:
            return PlainTextResponse("the query is too long\n", 414)
        if self._has_cookie(headers):
            return self._without_token(scope, query) if b"token=" in query else None
        return self._exchange(scope, query)

    def _is_ours(self, hosts: list[str]) -> bool:
        """Return True if the Host header names loopback or a host that was allowed.

        A page of another site whose name is made to lead here sends that site's name.
        """
        if len(hosts) != 1:
            return False
        host = hosts[0].lower()
        name = host.partition("]")[0].lstrip("[") if host[:1] == "[" else host.partition(":")[0]
        if name in self._hosts or name == "localhost":
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def _has_cookie(self, headers: Headers) -> bool:
        cookies = SimpleCookie()
        try:
            for line in headers.getlist("cookie"):
                cookies.load(line)
        except CookieError:
            return False
        found = cookies.get(self.cookie_name)
        return found is not None and _equal(found.value.encode(), self.cookie_value.encode())

    def _exchange(self, scope: Scope, query: bytes) -> Response:
        """Return the redirect that sets the cookie, or the page that asks for the link."""
        said = dict(parse_qsl(query.decode("latin-1"))).get("token", "")
        if not _equal(said.encode(), self._token):
            return HTMLResponse(CLOSED, 401)
        answer = self._without_token(scope, query)
        answer.set_cookie(self.cookie_name, self.cookie_value, httponly=True, samesite="strict")
        return answer

    @staticmethod
    def _without_token(scope: Scope, query: bytes) -> Response:
        rest = [pair for pair in parse_qsl(query.decode("latin-1")) if pair[0] != "token"]
        # A path that begins with two slashes would lead to another host.
        path = "/" + scope["path"].lstrip("/\\")
        return RedirectResponse(path + ("?" + urlencode(rest) if rest else ""), 303)


def _equal(one: bytes, other: bytes) -> bool:
    return hmac.compare_digest(one, other)
