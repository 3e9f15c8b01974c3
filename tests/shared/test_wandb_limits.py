"""What W&B does not take is made such as it does, and each change is told in a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wandb_limits import TAGS_MAX, cleaned


@pytest.mark.parametrize(
    ("said", "becomes"),
    [
        ("t5_large/ckpt-60000", "t5_large-ckpt-60000"),
        ("a\\b#c?d%e:f", "a-b-c-d-e-f"),
        ("p" * 200, "p" * 128),
        ("a\x1b\n\u202eb", "a---b"),
        (" spaced ", "spaced"),
        ("mit leer", "mit leer"),
        ("é中🙂", "é中🙂"),
        ("", ""),
        ("   ", ""),
        ("\x00", "-"),
    ],
)
def test_a_project_is_one_that_wandb_takes(said, becomes):
    """The characters that it refuses become a dash."""
    fields, changes = cleaned({"project": said})

    assert fields["project"] == becomes
    assert [change.said for change in changes] == ([said] if said != becomes else [])


def test_tags_are_short_whole_and_each_there_once():
    """Too many are cut off; all stay in what is told."""
    said = ["a", "a", "", " ", "t" * 80, "x\ny", *[f"n{i}" for i in range(200)]]

    fields, (change,) = cleaned({"tags": said})

    assert fields["tags"][:3] == ["a", "t" * 64, "x\\x0ay"]
    assert len(fields["tags"]) == TAGS_MAX and change.said == said


def test_an_entity_that_can_not_be_is_left_out_and_not_made_another():
    """Rows must not go to somebody else."""
    fields, (change,) = cleaned({"entity": "team/project"})

    assert fields["entity"] == "" and "left out" in str(change)


def test_notes_keep_their_lines():
    """They are Markdown."""
    fields, _ = cleaned({"notes": "# a\r\n\tb\x1b[2J\n" + "x" * 100_000})

    assert fields["notes"].startswith("# a\n\tb\\x1b[2J\nxxx") and len(fields["notes"]) == 64_000


def test_what_is_said_of_a_change_is_one_short_line():
    """In which nothing can be forged."""
    said = {"project": "a/\x1b\n" + "b" * 10_000, "name": "n\r" * 500, "group": "g" * 200}

    lines = [str(change) for change in cleaned(said).changes]

    assert len(lines) == 3
    assert all(line.isprintable() and len(line) < 400 for line in lines)


@given(
    st.dictionaries(
        st.sampled_from(["project", "name", "group", "job_type", "notes", "entity"]),
        st.none() | st.text(max_size=300) | st.integers(),
    ),
    st.lists(st.text(max_size=100) | st.integers() | st.none(), max_size=150),
)
def test_cleaned_once_is_clean(said, tags):
    """Whatever a run.json holds; nothing is told of what fits."""
    fields, _ = cleaned({**said, "tags": tags})

    again, changes = cleaned(fields)

    assert again == fields and changes == []
    assert not set(fields["project"]) & set("/\\#?%:") and len(fields["project"]) <= 128
    assert all(1 <= len(tag) <= 64 for tag in fields["tags"])
