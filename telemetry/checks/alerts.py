"""Alerts: the rules of the configuration, and the receivers that they are told to.

In: the settings of alerts.
Out: findings.
Never: posts a message, or shows a receiver's address beyond its host: such an address is a
secret.
"""

from __future__ import annotations

import http.client
import importlib.util
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Final

from telemetry.alerts.rules import read_rules
from telemetry.alerts.webhook import apprise_of
from telemetry.checks.check import DOUBTFUL, FAILS, WORKS, Finding

RULES: Final = "alert rules"
WEBHOOK: Final = "webhook"
APPRISE: Final = "apprise"
_NOT_THERE: Final = frozenset({401, 403, 404, 410})
"""Answers to HEAD that a receiver may give for a wrong address, or because it takes only POST."""


def look_at_rules(text: str) -> Iterator[Finding]:
    """Yield a finding for each entry of the table [alerts] that can't be used, or one for all."""
    rules = read_rules(text)
    for complaint in rules.complaints:
        advice = "correct it in the table [alerts] of --config, or in --alerts: docs/ALERTS.md"
        yield Finding(RULES, FAILS, complaint, advice)
    if not rules.complaints:
        own = f", {len(rules.own)} of your own" if rules.own else ""
        yield Finding(RULES, WORKS, f"{len(rules.by_name)} rules are on{own}")


def look_at_webhook(url: str, timeout_s: float) -> Iterator[Finding]:
    """Yield a finding on a webhook: asked by HEAD, which no receiver shows as a message."""
    host = urllib.parse.urlsplit(url).hostname or ""
    request = urllib.request.Request(url, method="HEAD", headers={"user-agent": "telemetry"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            code = answer.status
    except urllib.error.HTTPError as exc:
        with exc:
            code = exc.code
    except (OSError, http.client.HTTPException, ValueError) as exc:
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        yield Finding(WEBHOOK, FAILS, *_why(host, reason))
        return
    yield _answered(host, code)


def _answered(host: str, code: int) -> Finding:
    text = f"{host} answers (HTTP {code} to HEAD); no message was sent"
    if code >= 500:
        advice = "the receiver has trouble of its own; alerts are tried again until it takes them"
        return Finding(WEBHOOK, DOUBTFUL, text, advice)
    if code in _NOT_THERE:
        advice = "it may take POST alone; if no alert arrives, compare the address with the service"
        return Finding(WEBHOOK, DOUBTFUL, text, advice)
    return Finding(WEBHOOK, WORKS, text)


def _why(host: str, reason: object) -> tuple[str, str]:
    """Return the cause of a failure and the advice, without anything of the address but its host.

    The texts of these exceptions may have the address in them.
    """
    if isinstance(reason, ssl.SSLCertVerificationError):
        text = f"{host} has a certificate that is not trusted: {reason.verify_message}"
        return text, "add its authority to this machine, or point SSL_CERT_FILE to it"
    if isinstance(reason, ssl.SSLError):
        text = f"{host} speaks no TLS that we understand ({reason.reason or 'no reason given'})"
        return text, "look whether the address begins with https:// where it must be http://"
    if isinstance(reason, UnicodeError) or type(reason).__name__ == "gaierror":
        text = f"the name {host!r} is not found by DNS"
        return text, "look for a typing error in the host, at /etc/resolv.conf and at proxies"
    if isinstance(reason, TimeoutError):
        text = f"{host} does not answer in time"
        return text, "look at firewalls and proxies; nothing waits for it, but no alert arrives"
    if isinstance(reason, ConnectionRefusedError):
        text = f"nobody takes connections at {host}"
        return text, "start the receiver, or correct the port of the address"
    if isinstance(reason, OSError) and reason.strerror:
        return f"{host} can't be reached: {reason.strerror}", "look at the network and at proxies"
    text = f"{host} gives no answer that is HTTP ({type(reason).__name__})"
    return text, "look whether this is the address of a webhook"


def look_at_apprise(urls: tuple[str, ...]) -> Iterator[Finding]:
    """Yield a finding on the addresses for the library apprise; none of them is asked."""
    if importlib.util.find_spec("apprise") is None:
        advice = "pip install 'training-telemetry[apprise]'"
        yield Finding(APPRISE, FAILS, "it is not installed", advice)
        return
    try:
        apprise_of(urls)
    except ValueError as exc:
        yield Finding(APPRISE, FAILS, str(exc), "see the list of services in apprise's manual")
    else:
        yield Finding(APPRISE, WORKS, f"it knows the services of {len(urls)} addresses")
