"""Secrets in what a user hands over as a run's configuration.

In: a configuration in plain values.
Out: the same, with a word in the place of keys, passwords and what stands in URLs.
Never: guesses by what a value looks like; a hash or a path would be taken for a key.
"""

from __future__ import annotations

import re
from typing import Any

SECRET = "(secret)"

_NAMES = re.compile(
    r"(^|[_.-])(api_?key|secret|(secret|private|access)_?key|password|passwd|credentials?"
    r"|(auth|access|api|hf|bearer)_?token)$",
    re.IGNORECASE,
)
_IN_URL = (
    (re.compile(r"(://)[^/@\s]+@"), rf"\1{SECRET}@"),
    (re.compile(r"([?&](?:api_?key|key|token|access_token)=)[^&\s]+", re.I), rf"\1{SECRET}"),
)


def redacted(value: Any, name: str = "") -> Any:
    """value without the texts that stand under the name of a secret, or in a URL as one."""
    if isinstance(value, dict):
        return {key: redacted(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [redacted(item, name) for item in value]
    if not isinstance(value, str):
        return value
    if value and _NAMES.search(name):
        return SECRET
    for pattern, word in _IN_URL:
        value = pattern.sub(word, value)
    return value
