"""Redaction: secrets removed from configurations, command lines, notes and messages.

In: plain values, or a text.
Out: the same, with `(secret)` in the place of keys, passwords and credentials in URLs.
Never: guesses from the form of a value; a hash or a path would be taken for a key.

A name is split into words at `_ - . / :`, at spaces and at changes of case, so that
`githubToken`, `GITHUB_TOKEN` and `github-token` are the same. It names a secret when

- one of its words is or ends in password, passwd, passphrase, pwd, secret, credential,
  authorization, apikey and the like, also in the plural or with digits behind; or
- its last word is `token`, unless the word before says that it is a token of a text
  (pad, eos, mask, image, ...); `tokens` only behind a word such as api or access; or
- its last word is `key` or `keys` behind one of api, access, private, ssh and the like.

So `tokenizer`, `max_tokens`, `num_tokens`, `tokens_per_second`, `token_count`, `pad_token`
and `pad_token_id` are kept. A name that begins with `num_`, `max_` and the like is no secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

SECRET: Final = "(secret)"

_ALWAYS: Final = re.compile(
    r"(\w*(password|passwd|passphrase|passcode|apikey)|pwd|secret|credential|authorization"
    r"|authtoken|accesstoken|accesskey|secretkey|privatekey|bearer|jwt|cookie)s?\d*"
)
_COUNTS_WORDS: Final = "num n max min count len total has is "
_COUNTS: Final = frozenset(_COUNTS_WORDS.split())
_OF_ACCESS_WORDS: Final = (
    "api access private secret auth oauth ssh encryption signing master account storage "
    "bearer refresh session github gitlab hf huggingface wandb slack bot service "
)
_OF_ACCESS: Final = frozenset(_OF_ACCESS_WORDS.split())
_OF_TEXT_WORDS: Final = (
    "pad padding eos bos unk sep cls mask begin end start stop special image video audio text "
    "next prev last first prompt class newline decoder encoder blank space subword eot eom "
    "eoi boi sos per think vision separator target source forced "
    "predicted generated current input output additional "
)
_OF_TEXT: Final = frozenset(_OF_TEXT_WORDS.split())
_BEFORE_PASS_WORDS: Final = "db user smtp mysql ftp http proxy auth login admin root "
_BEFORE_PASS: Final = frozenset(_BEFORE_PASS_WORDS.split())
_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|[^\W_]+")

_VALUE: Final = r"(?:(?:bearer|basic|token)\s+)?(?:\"[^\"]*\"|'[^']*'|[^\s,;&}\])'\"]+)"
_NAMED: Final = re.compile(
    r"(?P<lead>(?<![\w-])-{0,2})(?P<name>[A-Za-z][\w.-]{0,99})(?P<join>['\"]?\s*[=:]\s*)"
    rf"(?P<value>{_VALUE})",
    re.IGNORECASE,
)
_FLAGGED: Final = re.compile(
    r"(?P<lead>(?<![\w-])-{1,2})(?P<name>[A-Za-z][\w.-]{0,99})(?P<join>\s+)(?!-)"
    rf"(?P<value>{_VALUE})",
    re.IGNORECASE,
)
_FLAG: Final = re.compile(r"-{1,2}(?P<name>[A-Za-z][\w.-]{0,99})")
_USER_OF_URL: Final = re.compile(r"(://)[^/@\s]+@")
_KEY_OF_URL: Final = re.compile(r"([?&](?:key|sig|signature)=)[^&\s]+", re.IGNORECASE)


def redacted(value: Any, name: str = "") -> Any:
    """Return value with every secret replaced: by its name, or named inside a text."""
    return _hidden(value) if is_secret(name) else _shown(value)


def redacted_text(text: str) -> str:
    """Return text without the passwords of its URLs, and the values of secrets named in it."""
    if ":" not in text and "=" not in text and "-" not in text:
        return text
    text = _USER_OF_URL.sub(rf"\1{SECRET}@", text)
    text = _KEY_OF_URL.sub(rf"\1{SECRET}", text)
    return _without_values(_without_values(text, _NAMED), _FLAGGED)


def is_secret(name: str) -> bool:
    """True if a value of this name must not be recorded."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[0] in _COUNTS:
        return False
    if any(_ALWAYS.fullmatch(word) for word in words):
        return True
    last, before = words[-1].rstrip("0123456789"), words[-2] if len(words) > 1 else ""
    if last == "token":
        return before not in _OF_TEXT
    if last == "pass":
        return len(words) == 1 or before in _BEFORE_PASS
    return last in ("tokens", "key", "keys") and before in _OF_ACCESS


def _hidden(value: Any) -> Any:
    """Replace every text and number in a secret value, at any depth."""
    if isinstance(value, dict):
        return {key: _hidden(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_hidden(item) for item in value]
    return SECRET if value and not isinstance(value, bool) else value


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: redacted(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return _list(value)
    return redacted_text(value) if isinstance(value, str) else value


def _list(items: list[Any]) -> list[Any]:
    """Redact a list, which may be a command line, or a pair of a name and its value."""
    shown: list[Any] = []
    for at, item in enumerate(items):
        before = items[at - 1] if at else None
        is_flagged = _is_flag_of_secret(before) and not _is_flag(item)
        is_second = len(items) == 2 and at == 1 and isinstance(before, str) and is_secret(before)
        shown.append(_hidden(item) if is_flagged or is_second else _shown(item))
    return shown


def _is_flag(item: Any) -> bool:
    return isinstance(item, str) and item.startswith("--")


def _is_flag_of_secret(item: Any) -> bool:
    flag = _FLAG.fullmatch(item) if isinstance(item, str) else None
    return flag is not None and is_secret(flag["name"])


def _without_values(text: str, pattern: re.Pattern[str]) -> str:
    """Replace the value of each secret whose name the pattern finds in text."""
    return "".join(_pieces(text, pattern.search))


def _pieces(text: str, search: Callable[[str, int], re.Match[str] | None]) -> list[str]:
    pieces, at = [], 0
    while (found := search(text, at)) is not None:
        # If the name is no secret, its value may contain a further name: search on behind the name.
        is_shown = not is_secret(found["name"]) or found["value"].startswith(SECRET[:-1])
        end = found.end("join") if is_shown else found.end("value")
        pieces.append(text[at : found.start("value")] if not is_shown else text[at:end])
        if not is_shown:
            pieces.append(SECRET)
        at = end
    return [*pieces, text[at:]]
