"""Configuration: who overrides whom, and what is said of a bad value."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis.strategies import booleans, builds, floats, integers, lists, sampled_from, text

from telemetry.cli import make_parser
from telemetry.config import ServeConfig, as_flags, load
from telemetry.errors import EXIT_USAGE, CommandError
from telemetry.sinks.registry import SINKS

# argparse takes `--host=--` for no value at all.
NAMES = text("abcXYZ019._-/ =,'\"~é", max_size=20).filter(lambda name: name != "--")


def toml(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "telemetry.toml"
    path.write_text(content)
    return path


def test_flags_go_over_environment_over_file_over_defaults(tmp_path):
    """Each source hides those below it, setting by setting."""
    file = toml(tmp_path, "commit_bytes = 1\nsink_timeout_s = 1\nmax_sink_processes = 1\n")
    environ = {"TELEMETRY_COMMIT_BYTES": "2", "TELEMETRY_SINK_TIMEOUT_S": "2"}
    flags = {"commit_bytes": "3"}

    config = load(flags, environ, file, {"max_sink_processes": 9, "http": "off"})

    assert config.commit_bytes == 3
    assert config.sink_timeout_s == 2
    assert config.max_sink_processes == 1
    assert config.http == "off"
    assert config.drain_grace_s == ServeConfig().drain_grace_s


def test_every_kind_of_setting_can_come_from_every_source(tmp_path):
    """A text, a number, a switch, a list and a path mean the same everywhere."""
    file = toml(
        tmp_path,
        'data_dir = "d"\nhost = "h"\ncommit_bytes = 5\nhost_run = false\nsinks = ["console"]\n',
    )
    texts = {"data_dir": "d", "host": "h", "commit_bytes": "5", "sinks": "console"}
    environ = {f"TELEMETRY_{k.upper()}": v for k, v in {**texts, "host_run": "no"}.items()}

    from_file = load({}, {}, file)
    from_environ = load({}, environ, None)
    from_flags = load({**texts, "host_run": False}, {}, None)

    assert from_file == from_environ == from_flags
    assert from_file.data_dir == Path("d").absolute() and from_file.sinks == ("console",)
    assert from_file.host_run is False


def test_an_empty_variable_is_as_good_as_none():
    """So that a shell can take a setting back."""
    assert load({}, {"TELEMETRY_HTTP": ""}, None) == load({}, {}, None)


BAD = [
    ("commit_bytes", "1e3", "1 to 67108864"),
    ("commit_bytes", "0", "1 to 67108864"),
    ("commit_interval_ms", "nan", "1 to 10000"),
    ("drain_grace_s", "-1", "0 to 86400"),
    ("drain_grace_s", "inf", "0 to 86400"),
    ("max_sink_processes", "many", "1 to 1024"),
    ("sample_hz", "21", "0 to 20"),
    ("sample_hz", "0.01", "0.05 to 20"),
    ("insecure_network", "maybe", "true or false"),
    ("sinks", "tensorboard,excel", "tensorboard, wandb"),
    ("wandb_mode", "sometimes", "online, offline or disabled"),
    ("http", "localhost", "HOST:PORT"),
    ("http", "localhost:99999", "65535"),
    ("http", "localhost:²", "HOST:PORT"),
    ("data_dir", "~nobody-of-this-name/x", "text"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_a_bad_value_is_named_with_what_is_allowed(name, value, allowed):
    """One sentence that says where it came from."""
    variable = f"TELEMETRY_{name.upper()}"

    with pytest.raises(CommandError) as caught:
        load({}, {variable: value}, None)

    message = str(caught.value)
    assert variable in message and allowed in message
    assert value in message or value.rpartition(",")[2] in message
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    "content",
    ["commit_bytes = 1.5", "commit_bytes = true", "host = 5", "sinks = 5", "sinks = [5]",
     "data_dir = 5", 'host = "a\\u0000b"', "unknown = 1", "not toml", "drain_grace_s = true"],
)  # fmt: skip
def test_a_file_with_a_bad_value_is_refused(tmp_path, content):
    """Types are not bent until they fit."""
    file = toml(tmp_path, content)

    with pytest.raises(CommandError) as caught:
        load({}, {}, file)

    assert str(file) in str(caught.value)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    """Editors of Windows write one."""
    file = tmp_path / "telemetry.toml"
    file.write_bytes(b"\xef\xbb\xbfcommit_bytes = 5\n")

    assert load({}, {}, file).commit_bytes == 5


def test_paths_are_those_of_the_start(tmp_path, monkeypatch):
    """The working directory may change afterwards."""
    monkeypatch.chdir(tmp_path)
    flags = {"data_dir": "d", "spool_dir": "s,/t", "bind": "ipc://b.sock"}

    config = load(flags, {}, None)

    assert config.data_dir == tmp_path / "d" and config.address == f"ipc://{tmp_path}/b.sock"
    assert config.spool_dir == (str(tmp_path / "s"), "/t")


def test_a_working_directory_that_is_gone_is_one_sentence(tmp_path, monkeypatch):
    """It was removed under a shell that is still in it."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    with pytest.raises(CommandError, match="working directory is gone"):
        load({}, {}, None)


def test_a_missing_file_is_named(tmp_path):
    """Somebody meant it to be there."""
    with pytest.raises(CommandError, match=r"gone\.toml: No such file"):
        load({}, {}, tmp_path / "gone.toml")


CONFIGS = builds(
    ServeConfig,
    data_dir=NAMES.filter(lambda t: t and not t.startswith("~")).map(
        lambda name: Path(name).absolute()
    ),
    bind=NAMES,
    http=sampled_from(["off", "127.0.0.1:0", "[::1]:9464"]),
    sinks=lists(sampled_from(sorted(SINKS)), max_size=3).map(tuple),
    sample_hz=floats(0.05, 20),
    host=NAMES,
    host_run=booleans(),
    wandb_mode=sampled_from(["online", "offline", "disabled"]),
    insecure_network=booleans(),
    exit_with_stdin=booleans(),
    commit_interval_ms=floats(1, 10_000),
    commit_bytes=integers(1, 64 * 1024 * 1024),
    min_free_bytes=integers(0, 2**62),
    lost_after_s=floats(1, 10**7),
    max_sink_processes=integers(1, 1024),
    sink_timeout_s=floats(1, 86_400),
    drain_grace_s=floats(0, 86_400),
)


@given(config=CONFIGS)
def test_a_configuration_survives_its_way_through_a_command_line(config):
    """`run` starts `serve` with exactly what it was told itself."""
    args = make_parser().parse_args(["serve", *as_flags(config)])

    assert load(vars(args), {}, None) == config


def test_every_setting_has_a_flag_and_a_help_text():
    """Nothing can be set in secret."""
    shown = subprocess.run(
        [sys.executable, "-m", "telemetry", "serve", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip

    for field in fields(ServeConfig):
        assert "--" + field.name.replace("_", "-") in shown


def test_a_bad_value_ends_the_command_with_one_line_and_exit_code_2():
    """No traceback for a typing error."""
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "serve", "--commit-bytes=x"],
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "telemetry: --commit-bytes='x' must be a whole number from 1 to 67108864"
    ]
