"""A sink process that behaves as `mode` in its run's directory says. Run as a script.

It appends a line to `starts` each time; what it starts itself, to `children`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


def main(sink: str, run_dir: Path, report_fd: int) -> int:
    (run_dir / f"{sink}.pid").write_text(str(os.getpid()))
    with (run_dir / "starts").open("a") as file:
        file.write(f"{sink}\n")
    mode = (run_dir / "mode").read_text()
    if mode == "crash":
        return 1
    if mode == "reject":
        report(report_fd, "rejected", 0, "no")
        return 4
    if mode == "unavailable":
        report(report_fd, "unavailable", 0, "later")
        return 3
    if mode == "done":
        (run_dir / "cursors").mkdir(exist_ok=True)
        info = json.loads((run_dir / "run.json").read_text())
        cursor = {"row": 5, "done": True, "ending": info.get("endings", 0)}
        (run_dir / "cursors" / f"{sink}.json").write_text(json.dumps(cursor))
        return 0
    if mode in ("hang", "die with a child"):
        # As wandb-core does: in a session of its own.
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        (run_dir / "children").write_text(str(child.pid))
        report(report_fd, "running", 3)
        if mode == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Event().wait(600)
    assert mode == "follow"
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while not stop.wait(0.02):
        report(report_fd, "running", 7)
    (run_dir / "stopped").touch()
    return 0


def report(fd: int, state: str, row: int, detail: str = "") -> None:
    line = json.dumps({"state": state, "row": row, "detail": detail}) + "\n"
    os.write(fd, line.encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[-1])))
