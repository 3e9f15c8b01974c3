"""The mode of a run: who has the say, and what is said where it is not as asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from telemetry.run_dir import RunFile
from telemetry.sinks.base import SinkContext
from telemetry.sinks.wandb.mode import NO_KEY, Account, choose

HERE = "https://wandb.here"
KEY, NONE = Account(HERE, True), Account(HERE, False)


def nobody() -> Account:
    raise AssertionError("wandb need not be asked")


def chosen(account: Account | None, options: dict[str, str], **run: object) -> tuple[str, str]:
    context = SinkContext("r", Path(), RunFile(run_id="r", **run), options)
    return tuple(choose(context, nobody if account is None else lambda: account))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("account", "options", "run", "mode"),
    [
        (KEY, {}, {}, "online"),
        (NONE, {}, {}, "offline"),
        (None, {}, {"wandb_mode": "online"}, "online"),
        (None, {}, {"wandb_mode": "offline"}, "offline"),
        (None, {}, {"wandb_mode": "disabled"}, "disabled"),
        (None, {"default_mode": "disabled"}, {}, "disabled"),
        (None, {"default_mode": "disabled"}, {"wandb_mode": "online"}, "online"),
        (None, {"mode": "offline"}, {"wandb_mode": "online"}, "offline"),
        (None, {"mode": "online"}, {"wandb_mode": "disabled"}, "online"),
        (KEY, {"mode": "auto"}, {"wandb_mode": "disabled"}, "online"),
        (NONE, {"mode": "auto"}, {"wandb_mode": "disabled"}, "offline"),
        (None, {}, {"wandb_mode": "online", "is_introduced": False}, "offline"),
        (KEY, {"mode": "auto"}, {"is_introduced": False}, "online"),
        (KEY, {}, {"wandb_base_url": f"{HERE}/"}, "online"),
        (KEY, {}, {"wandb_base_url": "https://me:pw@WANDB.here:443"}, "online"),
        (KEY, {}, {"wandb_mode": "online", "wandb_base_url": "https://there"}, "offline"),
        (NONE, {}, {"wandb_mode": "online", "wandb_base_url": HERE}, "online"),
        (NONE, {"mode": "online"}, {"wandb_base_url": HERE}, "online"),
        (NONE, {}, {"wandb_base_url": HERE}, "offline"),
        (KEY, {}, {"wandb_base_url": "http://wandb.here"}, "offline"),
        (None, {}, {"wandb_mode": "ofline"}, "offline"),
    ],
)
def test_who_has_the_say(account, options, run, mode):
    """A command, then the run, then the sidecar, then the key; another server never."""
    assert chosen(account, options, **run)[0] == mode


def test_what_is_not_as_asked_is_said_without_secrets():
    """In a line; what is as asked needs none."""
    assert chosen(NONE, {}) == ("offline", NO_KEY)
    assert chosen(None, {}, wandb_mode="offline") == ("offline", "")
    _, other = chosen(KEY, {}, wandb_base_url="https://me:secret@there/\x1b[2J")
    assert "there" in other and "secret@" not in other.replace("(secret)@", "")
    assert other.isprintable()
    _, unknown = chosen(None, {}, wandb_mode="\x1b" * 500)
    assert unknown.isprintable() and len(unknown) < 200


def test_a_server_that_wandb_knows_by_two_addresses_is_one():
    """As it would normalize them itself."""
    account = Account("https://api.forge", True, lambda url: url.replace("api.old", "api.forge"))

    assert chosen(account, {}, wandb_base_url="https://api.old/")[0] == "online"
