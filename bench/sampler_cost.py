"""Cost of the sampler: CPU time of the real process over eight pretend GPUs.

In: gcc, which compiles a libnvidia-ml.so.1 that answers at once.
Out: percent of a core, in all and by thread; exit code 1 above the limit of 1 %.
Never: the cost of NVIDIA's own library, which only a machine with GPUs can tell.

    python -m bench.sampler_cost --seconds 60 --hz 1 --gpus 8
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from telemetry.hardware.watched import Watched, order_of
from tests.fakes import FakeSidecar
from tests.telemetry.hardware.fake_nvml import Machine, compiled

LIMIT_PERCENT = 1.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--hz", type=float, default=1.0)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--warm-up", type=float, default=10.0)
    parser.add_argument("--limit", type=float, default=LIMIT_PERCENT, help="percent of a core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cost-", dir="/tmp") as name:
        place = Path(name)
        machine = Machine(compiled(place / "lib"), place)
        machine.play(gpus=options.gpus, gpm=1, processes="12:1024")
        environ = machine.environ()
        # Noting each call would cost more than the call.
        del environ["FAKE_NVML_CALLS"]
        with FakeSidecar(f"ipc://{place}/s.sock"):
            command = [
                *(sys.executable, "-m", "telemetry.hardware.sampler", "--close-timeout-s", "0"),
                *("--endpoint", f"ipc://{place}/s.sock", "--hz", str(options.hz)),
            ]
            with subprocess.Popen(command, stdin=subprocess.PIPE, env=environ) as process:
                assert process.stdin is not None
                # This process, with the sampler below it, stands for a rank and its workers.
                process.stdin.write(order_of([own_process()]))
                process.stdin.flush()
                time.sleep(options.warm_up)
                before = cpu_s_by_thread(process.pid)
                time.sleep(options.seconds)
                after = cpu_s_by_thread(process.pid)
                process.kill()
    spent = {key: after[key] - before.get(key, 0.0) for key in after}
    for (_, thread), seconds in sorted(spent.items(), key=lambda item: -item[1]):
        if seconds:
            print(f"{100 * seconds / options.seconds:6.2f} %  {thread}")
    percent = 100 * sum(spent.values()) / options.seconds
    print(f"{percent:6.2f} % of a core: {options.gpus} GPUs at {options.hz:g} Hz")
    return 1 if percent > options.limit else 0


def own_process() -> Watched:
    start_ns = int(psutil.Process().create_time() * 1e9)
    return Watched("r1", "rank0", os.getpid(), start_ns)


def cpu_s_by_thread(pid: int) -> dict[tuple[str, str], float]:
    """Return CPU time in s of each thread, by its id and name, from the scheduler's own count."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent_ns = int((task / "schedstat").read_text().split()[0])
        found[task.name, (task / "comm").read_text().strip()] = spent_ns / 1e9
    return found


if __name__ == "__main__":
    sys.exit(main())
