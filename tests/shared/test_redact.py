"""What of a configuration is a secret, and what only looks like one."""

import pytest

from shared.clock import SystemClock
from shared.events import ConfigUpdated, RunStarted, decode_envelope
from shared.packing import pack_event
from shared.redact import SECRET, redacted


@pytest.mark.parametrize("name", ["api_key", "WANDB_API_KEY", "db.password", "hf_token", "secret"])
def test_what_stands_under_the_name_of_a_secret_is_not_told(name):
    """At any depth, and in lists."""
    found = redacted({"deep": [{name: "s3cr3t"}], name: ["s3cr3t", "t0k3n"]})

    assert found == {"deep": [{name: SECRET}], name: [SECRET, SECRET]}


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer": "bert", "mask_token": "[MASK]", "key_bits": "8", "max_tokens": 5},
        {"git": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", "monkey": "george"},
        {"url": "https://example.org/a@b?tokens=5", "mail": "a@example.org"},
        {"api_key": None, "password": ""},
    ],
)
def test_what_only_looks_like_a_secret_stays(config):
    """A configuration is there to be read."""
    assert redacted(config) == config


def test_a_key_in_a_url_is_not_told_and_the_url_is():
    """Also within a longer text, such as a command line."""
    found = redacted({"command": "get https://me:s3cr3t@host/x?a=1&token=t0k3n&b=2 now"})

    assert found == {"command": f"get https://{SECRET}@host/x?a=1&token={SECRET}&b=2 now"}


@pytest.mark.parametrize("kind", [RunStarted, ConfigUpdated])
def test_no_secret_of_a_configuration_leaves_the_process(kind):
    """Row 31: the journal keeps what was said, so it must not be said."""
    fields = {"project": "p", "name": "n"} if kind is RunStarted else {}
    event = kind(config={"lr": 0.1, "service": {"api_key": "s3cr3t"}}, **fields)

    packed = pack_event(event, SystemClock().wall_ns(), 0)

    assert b"s3cr3t" not in packed
    assert decode_envelope(packed).event().config == {"lr": 0.1, "service": {"api_key": SECRET}}
