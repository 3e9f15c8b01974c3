"""What of a configuration is a secret, and what only looks like one."""

import pytest

from shared.clock import SystemClock
from shared.emitter.packing import pack_event
from shared.events import (
    ConfigUpdated,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
    decode_envelope,
)
from shared.redact import SECRET, redacted, redacted_text

SECRET_NAMES = (
    "api_key apikey API_KEY apiKey APIKey WANDB_API_KEY x-api-key api_keys db.password "
    "password password2 passwords Password user_password dbpassword passwd passphrase "
    "ssh_passphrase pwd db_pwd hf_token token token2 github_token githubToken GITHUB_TOKEN "
    "secret_token secret client_secret secrets aws_secret_access_key access_key private_key "
    "credentials Authorization proxy-authorization auth_token access_tokens refresh_token "
    "bearer db_pass pass secret_key "
)
SECRETS = SECRET_NAMES.split()
HARMLESS_NAMES = (
    "tokenizer max_tokens num_tokens tokens tokens_per_second token_count token_ids pad_token "
    "pad_token_id mask_token eos_token cls_token image_token key keys key_bits monkey "
    "keyboard num_key_value_heads query_key_dim author authors passes forward_pass bypass "
    "compass secretary max_password_length primary_key sort_key public_key "
)
HARMLESS = HARMLESS_NAMES.split()


@pytest.mark.parametrize("name", SECRETS)
def test_what_stands_under_the_name_of_a_secret_is_not_told(name):
    """At any depth, in lists, in dicts of them, and on a command line."""
    found = redacted({"deep": [{name: "s3cr3t"}], name: ["s3cr3t", {"inner": "t0k3n"}, 1234]})

    assert found == {"deep": [{name: SECRET}], name: [SECRET, {"inner": SECRET}, SECRET]}
    for command in (f"x --{name}=s3cr3t y", f"x --{name} s3cr3t y", f"x --{name} 's3 cr3t' y"):
        assert "cr3t" not in redacted_text(command) and redacted_text(command).endswith(" y")
    assert redacted(["x", f"--{name}", "s3cr3t", "y"]) == ["x", f"--{name}", SECRET, "y"]
    assert redacted([f"--{name}=s3cr3t"]) == [f"--{name}={SECRET}"]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_sounds_like_a_secret_stays(name):
    """A configuration is there to be read."""
    config = {name: "plain", "argv": [f"--{name}", "plain"], "command": f"--{name} plain"}

    assert redacted(config) == config and redacted_text(f"{name}=plain") == f"{name}=plain"


@pytest.mark.parametrize(
    "config",
    [
        {"git": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"},
        {"url": "https://example.org/a@b?tokens=5", "mail": "a@example.org"},
        {"api_key": None, "password": "", "use_token": True},
        {"argv": ["--password", "--verbose", "--lr", "0.1"]},
        {"time": "12:30:01", "ratio": "a:b = c"},
    ],
)
def test_what_only_looks_like_a_secret_stays(config):
    """Hashes, addresses, and flags without a value."""
    assert redacted(config) == config


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("get https://me:s3cr3t@host/x now", f"get https://{SECRET}@host/x now"),
        ("https://host/x?a=1&token=t0k3n&b=2", f"https://host/x?a=1&token={SECRET}&b=2"),
        ("https://host/x?key=t0k3n", f"https://host/x?key={SECRET}"),
        ("Authorization: Bearer t0k3n", f"Authorization: {SECRET}"),
        ('{"api_key": "s3cr3t", "lr": 1}', f'{{"api_key": {SECRET}, "lr": 1}}'),
        ("WANDB_API_KEY=s3cr3t python train.py", f"WANDB_API_KEY={SECRET} python train.py"),
        ("note: password: s3cr3t", f"note: password: {SECRET}"),
        ("env x=1,password=s3cr3t,y=2", f"env x=1,password={SECRET},y=2"),
    ],
)
def test_a_secret_named_in_a_text_is_not_told_and_the_rest_is(text, shown):
    """Also within a longer text, such as a command line; done twice it is the same."""
    assert redacted_text(text) == shown == redacted_text(shown)


def test_a_pair_of_a_name_and_its_value_hides_the_value():
    """As headers often are."""
    pairs = [["Authorization", "Bearer t0k3n"], ["Accept", "text"]]

    assert redacted(pairs) == [["Authorization", SECRET], ["Accept", "text"]]


@pytest.mark.parametrize(
    "event",
    [
        RunStarted(project="p", name="n", config={"service": {"api_key": "s3cr3t"}}),
        ConfigUpdated(config={"argv": ["--password", "s3cr3t"]}),
        RunFinished(status="finished", summary={"token": "s3cr3t"}),
        RunStarted(project="p", name="n", notes="see https://me:s3cr3t@host/"),
        MessageLogged(level="info", text="run with --api-key s3cr3t"),
        MetricsLogged(kind="custom", values={"lr": 0.1, "api_key": "s3cr3t"}),
        MetricsLogged(kind="custom", values={"command": "train --password=s3cr3t"}),
    ],
    ids=lambda event: event.TAG,
)
def test_no_secret_of_an_event_leaves_the_process(event):
    """Row 31: the journal keeps what was said, so it must not be said."""
    (packed,) = pack_event(event, SystemClock().wall_ns(), 0).pieces

    assert b"s3cr3t" not in packed and SECRET.encode() in packed
    assert decode_envelope(packed).event() is not None
