"""Machine: versions of programs, the GPUs and their visibility, and the clock.

In: the environment and the installed packages.
Out: findings.
Never: imports wandb, TensorBoard or torch.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from telemetry.checks.check import ABSENT, DOUBTFUL, FAILS, WORKS, Finding
from telemetry.hardware.nvml import load_nvml

NEEDED: Final = ("msgpack", "msgspec", "prometheus-client", "psutil", "pyzmq", "rich")
OPTIONAL: Final = ("google-crc32c", "nvidia-ml-py", "tensorboard", "wandb")
STA_UNSYNC: Final = 0x40
TIME_ERROR: Final = 5
STEP_MAX_S: Final = 0.05


def look_at_versions() -> Iterator[Finding]:
    """Yield the versions that a report of a problem should name."""
    text = f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    yield Finding("versions", WORKS, f"{text}, {platform.machine()}")
    known = {name: _version(name) for name in (*NEEDED, *OPTIONAL)}
    found = ", ".join(f"{name} {version}" for name, version in known.items() if version)
    yield Finding("versions", WORKS, found)
    missing = [name for name in NEEDED if not known[name]]
    if missing:
        advice = "pip install 'training-telemetry[telemetry]'"
        yield Finding("versions", FAILS, f"not installed: {', '.join(missing)}", advice)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def look_at_sinks(sinks: tuple[str, ...], *, is_asked: bool) -> Iterator[Finding]:
    """Yield a finding for each sink whose library is missing.

    is_asked: the sinks were named by the user, and are not only the default.
    """
    for sink, library in (("tensorboard", "tensorboard"), ("wandb", "wandb")):
        if sink in sinks and importlib.util.find_spec(library) is None:
            extra = "wandb" if sink == "wandb" else "telemetry"
            advice = f"pip install 'training-telemetry[{extra}]'"
            state = FAILS if is_asked or sink == "tensorboard" else ABSENT
            yield Finding(f"sink {sink}", state, f"{library} is not installed", advice)


def look_at_gpus(environ: Mapping[str, str], nvml: Any | None = None) -> Iterator[Finding]:
    """Yield findings on the GPUs, and on those that CUDA programs would see."""
    nvml = nvml or load_nvml()
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if nvml is None:
        advice = "pip install nvidia-ml-py" if wanted else ""
        yield Finding("GPU", FAILS if wanted else ABSENT, "nvidia-ml-py is not installed", advice)
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as exc:
        text = f"no NVIDIA driver answers: {exc}"
        is_wanted = wanted not in (None, "", "-1")
        advice = "CUDA_VISIBLE_DEVICES names a GPU: install or load the driver"
        state = FAILS if is_wanted else ABSENT
        yield Finding("GPU", state, text, advice if is_wanted else "")
        return
    try:
        uuids = list(_gpu_uuids(nvml))
        yield _driver(nvml, len(uuids))
    finally:
        nvml.nvmlShutdown()
    yield from look_at_visibility(wanted, uuids)


def _driver(nvml: Any, count: int) -> Finding:
    text = f"driver {_text(nvml.nvmlSystemGetDriverVersion())}, {count} GPUs"
    names = [_text(nvml.nvmlDeviceGetName(_handle(nvml, index))) for index in range(count)]
    kinds = {name: names.count(name) for name in names}
    listed = ", ".join(f"{count} x {name}" for name, count in kinds.items())
    return Finding("GPU", WORKS, f"{text}: {listed}" if listed else text)


def _gpu_uuids(nvml: Any) -> Iterator[str]:
    for index in range(nvml.nvmlDeviceGetCount()):
        yield _text(nvml.nvmlDeviceGetUUID(_handle(nvml, index)))


def _handle(nvml: Any, index: int) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def look_at_visibility(wanted: str | None, uuids: list[str]) -> Iterator[Finding]:
    """Yield findings on CUDA_VISIBLE_DEVICES: CUDA ignores all behind the first bad entry."""
    if wanted is None:
        return
    entries = [entry.strip() for entry in wanted.split(",") if entry.strip()]
    for at, entry in enumerate(entries):
        if not _names_gpu(entry, uuids):
            text = f"CUDA_VISIBLE_DEVICES={wanted}: {entry!r} is none of {len(uuids)} GPUs"
            advice = f"programs see only {at} GPUs: correct the variable"
            # -1 is the customary way to say "none".
            state = DOUBTFUL if entry == "-1" else FAILS
            yield Finding("GPU", state, text, advice)
            return
    if not entries and uuids:
        advice = "unset CUDA_VISIBLE_DEVICES to use GPUs"
        yield Finding("GPU", DOUBTFUL, "CUDA_VISIBLE_DEVICES is empty: programs see none", advice)
    else:
        text = f"CUDA_VISIBLE_DEVICES={wanted}: programs see {len(entries)} of {len(uuids)} GPUs"
        yield Finding("GPU", WORKS, text)


def _names_gpu(entry: str, uuids: list[str]) -> bool:
    if entry.isascii() and entry.isdigit():
        return int(entry) < len(uuids)
    # MIG instances are CUDA's to find; a prefix of a UUID is enough for it.
    return entry.startswith("MIG-") or any(
        uuid.startswith(entry) for uuid in uuids if len(entry) > len("GPU-")
    )


def look_at_clock() -> Iterator[Finding]:
    """Yield findings on the wall clock: its synchronization, and that it runs evenly."""
    began_wall_ns, began_ns = time.time_ns(), time.monotonic_ns()
    is_synced = clock_is_synced()
    text = f"wall time is {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC"
    if time.gmtime().tm_year < 2024:
        yield Finding("clock", FAILS, text, "set the clock: charts by time would be wrong")
        return
    if is_synced is None:
        yield Finding("clock", WORKS, f"{text}; the kernel does not say if it is synchronized")
    elif is_synced:
        yield Finding("clock", WORKS, f"{text}, synchronized")
    else:
        advice = "with several machines, run a time service such as chrony"
        yield Finding("clock", DOUBTFUL, f"{text}, not synchronized as far as we see", advice)
    time.sleep(0.2)
    moved_ns = (time.time_ns() - began_wall_ns) - (time.monotonic_ns() - began_ns)
    if abs(moved_ns) > STEP_MAX_S * 1e9:
        text = f"the wall clock was set by {moved_ns / 1e9:+.1f} s while we looked"
        yield Finding("clock", DOUBTFUL, text, "two time services may be fighting over it")


def clock_is_synced() -> bool | None:
    """Return True if the kernel's clock is kept by a time service; None if it does not say."""
    # struct timex: unsigned int modes (padded to a long), four longs, then int status.
    buffer = ctypes.create_string_buffer(512)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    status = ctypes.c_int.from_buffer(buffer, 5 * ctypes.sizeof(ctypes.c_long)).value
    return state != TIME_ERROR and not status & STA_UNSYNC
