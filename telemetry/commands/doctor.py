"""Doctor: checks the parts of this machine that the sidecar needs, and says what to do.

In: the configuration that `serve` would have, and the machine.
Out: one finding a part, on stdout, as text for a terminal of 80 columns or as JSON; exit
code 1 if something that was configured does not work.
Never: changes anything, shows a secret, or waits longer than TIMEOUT_S.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from shared.redact import redacted_text
from shared.text import clean
from telemetry.checks import alerts, disk, machine, sockets, wandb
from telemetry.checks.check import ABSENT, DOUBTFUL, FAILS, WORKS, Check, Finding, run_checks
from telemetry.config import ServeConfig
from telemetry.errors import EXIT_OK
from telemetry.output import Page

EXIT_TROUBLE: Final = 1
TIMEOUT_S: Final = 20.0
NETWORK_TIMEOUT_S: Final = 8.0
WIDTH: Final = 79
INDENT: Final = " " * 7
TEXT_MAX_CHARS: Final = 2000


def doctor(
    config: ServeConfig, environ: Mapping[str, str], *, is_json: bool, is_asked: bool
) -> int:
    """Check everything, print the findings, and return the exit code.

    is_asked: the sinks were named by the user, and are not only the default.

    Raises:
        OutputFailed: stdout can't be written to.
    """
    findings = run_checks(checks_of(config, environ, is_asked=is_asked), TIMEOUT_S)
    shown = [_shown(finding) for finding in findings]
    _print(json_of(shown) if is_json else text_of(shown))
    return EXIT_TROUBLE if any(f.state == FAILS for f in findings) else EXIT_OK


def checks_of(config: ServeConfig, environ: Mapping[str, str], *, is_asked: bool) -> list[Check]:
    """Return the checks of this configuration, in the order of the page."""
    checks = [
        Check("versions", machine.look_at_versions),
        Check("disk", partial(disk.look_at_disk, config.data_dir, config.min_free_bytes)),
        Check("spool", partial(disk.look_at_spools, config.spool_dir, config.data_dir)),
        Check("socket", partial(sockets.look_at_socket, config)),
        Check("status", partial(sockets.look_at_status, config)),
        Check("limits", sockets.look_at_descriptors),
        Check("GPU", partial(machine.look_at_gpus, environ)),
        Check("clock", machine.look_at_clock),
        Check("sinks", partial(machine.look_at_sinks, config.sinks, is_asked=is_asked)),
        Check(alerts.RULES, partial(alerts.look_at_rules, config.alerts)),
    ]
    if config.alert_webhook:
        look_at = partial(alerts.look_at_webhook, config.alert_webhook, NETWORK_TIMEOUT_S)
        checks.append(Check(alerts.WEBHOOK, look_at))
    if config.alert_apprise:
        checks.append(Check(alerts.APPRISE, partial(alerts.look_at_apprise, config.alert_apprise)))
    if "wandb" in config.sinks:
        look = partial(
            wandb.look_at_server,
            environ,
            config.wandb_mode,
            is_asked=is_asked,
            timeout_s=NETWORK_TIMEOUT_S,
        )
        checks.append(Check("W&B", look))
        checks.append(Check("W&B rate", partial(wandb.look_at_rate, config.data_dir)))
    return checks


def _shown(finding: Finding) -> Finding:
    """Return a finding that can be printed: its texts may come from a server or a path."""
    text, advice = (
        clean(redacted_text(text), TEXT_MAX_CHARS) for text in (finding.text, finding.advice)
    )
    return Finding(finding.part, finding.state, text, advice)


def text_of(findings: Sequence[Finding]) -> str:
    """Return the findings as lines, wrapped where they have spaces."""
    lines: list[str] = []
    for finding in findings:
        lines += _wrapped(f"{finding.state:<5}  {finding.part}: {finding.text}")
        if finding.advice:
            lines += _wrapped(f"{INDENT}-> {finding.advice}")
    return "\n".join([*lines, "", *_wrapped(verdict(findings))])


def _wrapped(text: str) -> list[str]:
    # Escaped before it is wrapped: the escape of a character that the terminal lacks is longer.
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    )  # fmt: skip


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line: the number of findings of each state, and the conclusion."""
    states = [finding.state for finding in findings]
    counts = ", ".join(f"{state} {states.count(state)}" for state in (WORKS, DOUBTFUL, ABSENT))
    if count := states.count(FAILS):
        return f"{counts}, fails {count}: see the lines that begin with 'fails'"
    return f"{counts}: all that was configured works"


def json_of(findings: Sequence[Finding]) -> str:
    """Return the findings as one JSON object, in ASCII."""
    is_well = all(finding.state != FAILS for finding in findings)
    return json.dumps({"ok": is_well, "findings": [f._asdict() for f in findings]}, indent=2)


def _print(text: str) -> None:
    page = Page()
    for line in text.split("\n"):
        page.line(line)
    page.print()
