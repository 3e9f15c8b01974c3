r"""W&B limits: names, tags and notes of a run, changed to what Weights & Biases accepts.

In: the project, name, tags and notes that a run was given.
Out: the same within W&B's limits, and one line for each change.
Never: refuses a run, or loses a value: the caller keeps the original in the run's config.

    project             none of / \ # ? % : and no control characters: each becomes `-`;
                        at most 128 characters
    name, group, job    control characters are escaped; at most 128 characters
    tags                1 to 64 characters each, each once, at most 100
    notes               at most 64,000 characters
    entity              left out if W&B can't have it: a changed name would be another
                        account
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from shared.text import clean

PROJECT_MAX_CHARS: Final = 128
NAME_MAX_CHARS: Final = 128
TAG_MAX_CHARS: Final = 64
TAGS_MAX: Final = 100
NOTES_MAX_CHARS: Final = 64_000
FORBIDDEN: Final = "/\\#?%:"
_ENTITY: Final = re.compile(r"[\w.-]{1,128}")


class Change(NamedTuple):
    """One changed field: its original value, the value for W&B, and the reason."""

    field: str
    said: Any
    becomes: Any
    why: str

    def __str__(self) -> str:
        shown = clean(repr(self.becomes), 60) if self.becomes else "left out"
        return f"{self.field} {clean(repr(self.said), 60)} is {shown} in W&B: {self.why}"


class Cleaned(NamedTuple):
    """The fields for W&B, by the names of RunStarted's fields, and the changes made."""

    fields: dict[str, Any]
    changes: list[Change]


def cleaned(said: Mapping[str, Any]) -> Cleaned:
    """Return project, entity, name, group, job_type, notes and tags within W&B's limits."""
    fields: dict[str, Any] = {}
    changes: list[Change] = []
    for field, (rule, why) in _RULES.items():
        value = said.get(field) or ""
        text = value if isinstance(value, str) else str(value)
        fields[field] = rule(text)
        if fields[field] != text:
            changes.append(Change(field, text, fields[field], why))
    tags = said.get("tags") or ()
    fields["tags"] = _tags(tags)
    if fields["tags"] != list(tags):
        why = f"a tag has 1 to {TAG_MAX_CHARS} characters and comes once, at most {TAGS_MAX}"
        changes.append(Change("tags", list(tags), fields["tags"], why))
    return Cleaned(fields, changes)


def _project(text: str) -> str:
    shown = text.strip()[: 4 * PROJECT_MAX_CHARS]
    plain = (c if clean(c) == c and c not in FORBIDDEN else "-" for c in shown)
    return "".join(plain)[:PROJECT_MAX_CHARS].strip()


def _name(text: str) -> str:
    return clean(text, NAME_MAX_CHARS)


def _notes(text: str) -> str:
    # Cleaned part by part: notes are Markdown, so line breaks and tabs have to stay.
    parts = re.split("([\n\t])", text.replace("\r\n", "\n")[:NOTES_MAX_CHARS])
    return "".join(p if p in "\n\t" else clean(p, NOTES_MAX_CHARS) for p in parts)[:NOTES_MAX_CHARS]


def _entity(text: str) -> str:
    return text if _ENTITY.fullmatch(text) else ""


def _tags(tags: Sequence[Any]) -> list[str]:
    texts = (clean(str(tag).strip(), 8 * TAG_MAX_CHARS)[:TAG_MAX_CHARS] for tag in tags)
    return list(dict.fromkeys(text for text in texts if text))[:TAGS_MAX]


_NAME_RULE: Final = (
    f"such a name has at most {NAME_MAX_CHARS} characters, and no control characters"
)
_RULES: Final[dict[str, tuple[Callable[[str], str], str]]] = {
    "project": (
        _project,
        "a project has none of / \\ # ? % :, no control characters, "
        f"and at most {PROJECT_MAX_CHARS} characters",
    ),
    "name": (_name, _NAME_RULE),
    "group": (_name, _NAME_RULE),
    "job_type": (_name, _NAME_RULE),
    "notes": (_notes, f"notes have at most {NOTES_MAX_CHARS} characters"),
    "entity": (_entity, "there can't be such an entity"),
}
