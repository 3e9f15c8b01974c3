"""Configuration of the sidecar: flags over environment over one TOML file over defaults.

In: parsed flags, the environment, a file.
Out: one frozen object, checked.
Never: read again after the start.
"""

# ruff: noqa: RUF009 - _setting is a dataclass field with what the command line says of it

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shared.socket_path import socket_path
from shared.wandb_variables import wandb_mode
from telemetry.errors import CommandError
from telemetry.setting_values import parsed_setting

PREFIX: Final = "TELEMETRY_"


def _setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def _secret(default: Any, help: str) -> Any:
    metadata = {"help": help, "low": None, "high": None, "is_secret": True}
    return dataclasses.field(default=default, repr=False, metadata=metadata)


@dataclass(frozen=True)
class ServeConfig:
    """The settings of `serve`, checked."""

    data_dir: Path = _setting(Path("telemetry-data"), "where runs are kept, in DIR/runs")
    bind: str = _setting("", "address to listen on: ipc://PATH or tcp://HOST:PORT (default: "
                         "ipc://DATA_DIR/telemetry.sock, or a shorter path where that is too "
                         "long for a socket)")  # fmt: skip
    http: str = _setting("127.0.0.1:9464", "address of /livez, /readyz and /metrics, or 'off'")
    page: str = _setting("127.0.0.1:9465", "address of the page of the runs, or 'off'; where its "
                         "default port is taken, the page has a free one")  # fmt: skip
    page_host: tuple[str, ...] = _setting((), "names besides localhost by which browsers reach "
                                          "the page, with commas")  # fmt: skip
    page_token: str = _secret("", "token of the page's link, 16 characters or more (default: a "
                              "new one at each start)")  # fmt: skip
    sinks: tuple[str, ...] = _setting(("tensorboard", "wandb"), "sinks to run, with commas")
    spool_dir: tuple[str, ...] = _setting((), "where trainers spool, with commas: what is left "
                                          "there by those that are gone is taken in")  # fmt: skip
    sample_hz: float = _setting(1.0, "hardware samples a second, 0 for none", 0, 20)
    host: str = _setting("", "name of this host in the metrics (default: its own)")
    per_core: bool = _setting(False, "chart every processor core in TensorBoard; else only the "
                              "whole processor")  # fmt: skip
    host_run: bool = _setting(True, "record the hardware as a run of its own while nothing trains")
    wandb_mode: str = _setting("disabled", "of the host's own run: disabled, offline or online; "
                               "WANDB_MODE where nothing else says it")  # fmt: skip
    insecure_network: bool = _setting(False, "allow an address that other machines can reach")
    command_form: str = _setting("", "how to run the commands that are printed at the end, with "
                                 "{program} and {arguments}, where that is not here")  # fmt: skip
    tensorboard_url: str = _setting("", "address of a TensorBoard that shows the runs, to be "
                                    "printed at the end")  # fmt: skip
    exit_with_stdin: bool = _setting(False, "drain and end when standard input closes")
    commit_interval_ms: float = _setting(50.0, "longest wait before a sync", 1, 10_000)
    commit_bytes: int = _setting(1024 * 1024, "most bytes before a sync", 1, 64 * 1024 * 1024)
    min_free_bytes: int = _setting(256 * 1024 * 1024, "stop acknowledging below this", 0, 2**62)
    retain_bytes: int = _setting(
        0,
        "remove the oldest ended runs, once they are in every sink, above this; 0: none",
        0,
        2**62,
    )
    lost_after_s: float = _setting(300.0, "a run without a trainer is lost after this", 1, 10**7)
    max_sink_processes: int = _setting(16, "sink processes at a time", 1, 1024)
    sink_timeout_s: float = _setting(60.0, "a call of a sink hangs after this", 1, 86_400)
    alerts: str = _setting("", "rules of alerts, as JSON; in a file the table [alerts], see "
                               "docs/ALERTS.md")  # fmt: skip
    alert_webhook: str = _secret("", "address to which alerts are posted as JSON (Slack, Discord "
                                 "and others); a secret: better in the variable than in a "
                                 "flag")  # fmt: skip
    alert_apprise: tuple[str, ...] = _secret((), "addresses of the library apprise for alerts, "
                                             "with commas; secrets as well")  # fmt: skip
    drain_grace_s: float = _setting(20.0, "time to drain on SIGTERM", 0, 86_400)

    @property
    def address(self) -> str:
        """Address to listen on; by default a socket in or for the data directory."""
        return self.bind or f"ipc://{socket_path(self.data_dir, os.environ)}"


def load(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    file: Path | None,
    defaults: Mapping[str, Any] | None = None,
) -> ServeConfig:
    """Return the configuration from flags, environment and file; `defaults` yield to all three.

    Raises:
        CommandError: an unknown or bad value, with its name, value and range.
    """
    values: dict[str, Any] = dict(defaults or {})
    if mode := wandb_mode(environ):
        values["wandb_mode"] = mode
    from_file = _read_file(file) if file else {}
    for field in dataclasses.fields(ServeConfig):
        variable = PREFIX + field.name.upper()
        if flags.get(field.name) is not None:
            values[field.name] = parsed_setting(field, flags[field.name], "--" + _flag(field.name))
        elif environ.get(variable):
            values[field.name] = parsed_setting(field, environ[variable], variable)
        elif field.name in from_file:
            said = from_file[field.name]
            if field.name == "alerts" and isinstance(said, dict):
                # A table goes on as one text: flags carry it to the service.
                said = json.dumps(said, default=str)
            values[field.name] = parsed_setting(field, said, f"{file}: {field.name}")
    return _with_absolute_paths(ServeConfig(**values))


def _with_absolute_paths(config: ServeConfig) -> ServeConfig:
    """Resolve relative paths now: later the working directory may be another one.

    Raises:
        CommandError: there is no working directory any more.
    """
    transport, _, path = config.bind.partition("://")
    is_relative_socket = transport == "ipc" and path and not path.startswith("@")
    try:
        return dataclasses.replace(
            config,
            data_dir=config.data_dir.absolute(),
            bind=f"ipc://{Path(path).expanduser().absolute()}"
            if is_relative_socket
            else config.bind,
            spool_dir=tuple(str(Path(name).expanduser().absolute()) for name in config.spool_dir),
        )
    except FileNotFoundError as exc:
        raise CommandError("the working directory is gone; change to one that exists") from exc
    except RuntimeError as exc:  # ~USER where there is no such user
        raise CommandError(f"--bind, --spool-dir: {exc}") from exc


def as_flags(config: ServeConfig) -> list[str]:
    """Return the flags of `serve` that give this configuration, without its secrets.

    Any user of the machine sees the flags of a process: secrets go by `secret_environ`.
    """
    flags = []
    for field in dataclasses.fields(config):
        if field.metadata.get("is_secret"):
            continue
        flag, value = "--" + _flag(field.name), getattr(config, field.name)
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            flags.append(f"{flag}={','.join(value) if isinstance(value, tuple) else value}")
    return flags


def secret_environ(config: ServeConfig) -> dict[str, str]:
    """Return the variables that give `serve` the secrets of this configuration."""
    values = {
        PREFIX + field.name.upper(): getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata.get("is_secret")
    }
    return {
        name: ",".join(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value
    }


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _read_file(file: Path) -> dict[str, Any]:
    try:
        # utf-8-sig: some editors begin a file with a byte order mark.
        values = tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as exc:
        raise CommandError(f"configuration file {file}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise CommandError(f"configuration file {file} is not TOML: {exc}") from exc
    known = {field.name for field in dataclasses.fields(ServeConfig)}
    for name in values:
        if name not in known:
            raise CommandError(f"{file}: unknown setting {name!r}; known: {', '.join(known)}")
    return values
