"""Pictures: docs/images/tensorboard.png and page.png, made by a run of the tiny model.

In: the embedded novels; Debian's `chromium`, and `pip install playwright`, which drives it.
Out: what TensorBoard and the page show of the run, each in at most 200 kB.

    python -m docs.picture            train for about three minutes, then take the pictures
    python -m docs.picture DATA_DIR   take them of a data directory that is there already
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, ViewportSize, sync_playwright

IMAGES = Path(__file__).parent / "images"
MAX_BYTES = 200_000
SIZE: ViewportSize = {"width": 1440, "height": 840}
PAGE_SIZE: ViewportSize = {"width": 1440, "height": 1130}
TAGS = (
    "train/loss",
    "val/loss",
    "train/tokens_per_second",
    "quant/zero_ratio",
    "quant/activation_sqnr_db",
    "cpu_percent",
)
# The charts are WebGL; without a GPU, Chromium draws them in software.
DRAWING = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
TRAINING = (
    *("--model_size", "tiny", "--dataset", "sample", "--max_length", "128"),
    *("--batch_size", "8", "--learning_rate", "3e-3", "--max_steps", "600"),
    *("--log_interval", "10", "--eval_interval", "100", "--quant_interval", "20"),
    *("--wandb_mode", "offline"),
)


def main() -> None:
    """Make the pictures, of the data directory that was named or of a new run."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(sys.argv[1] if sys.argv[1:] else folder)
        if not sys.argv[1:]:
            train(data_dir)
        take_page(data_dir, IMAGES / "page.png")
        take_tensorboard(data_dir, IMAGES / "tensorboard.png")
    for target in (IMAGES / "page.png", IMAGES / "tensorboard.png"):
        size = target.stat().st_size
        print(f"{target}: {size / 1000:.0f} kB")
        if size > MAX_BYTES:
            raise SystemExit(f"more than {MAX_BYTES / 1000:.0f} kB")


def train(data_dir: Path) -> None:
    """Train the tiny model under a sidecar, as `make run` does."""
    command = [sys.executable, "-m", "telemetry", "run", "--data-dir", str(data_dir), "--"]
    command += [sys.executable, "-m", "trainer", *TRAINING, "--output_dir", str(data_dir / "out")]
    subprocess.run(command, check=True)


def take_page(data_dir: Path, target: Path) -> None:
    """Show the newest run of a data directory on the page, and save that as a small PNG."""
    command = [sys.executable, "-m", "telemetry", "page", str(data_dir), "--page", "127.0.0.1:0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        link = server.stderr.readline().partition("page: ")[2].strip()
        with sync_playwright() as playwright:
            browser = started(playwright)
            page = browser.new_page(viewport=PAGE_SIZE)
            page.goto(link)
            page.goto(link.partition("?")[0] + "runs/" + newest_run(data_dir))
            _save(_still(page), target)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def newest_run(data_dir: Path) -> str:
    """Return the id of the newest run that a trainer made."""
    runs = (path.name for path in (data_dir / "runs").iterdir())
    return max(name for name in runs if not name.startswith("host-"))


def take_tensorboard(data_dir: Path, target: Path) -> None:
    """Show the runs of a data directory in TensorBoard, and save the page as a small PNG."""
    command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", "0"]
    command += ["--logdir", str(data_dir / "tensorboard")]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        _save(photograph(_address(server)), target)
    finally:
        server.terminate()
        server.wait()


def _save(png: bytes, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    # 128 colours are enough for lines and letters, and a third of the size.
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(target, optimize=True)


def _address(server: subprocess.Popen[str]) -> str:
    """Return the address that TensorBoard says it listens at; its further lines are read away."""
    assert server.stderr is not None
    for line in server.stderr:
        if " at http://" in line:
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return line.partition(" at ")[2].split()[0]
    raise SystemExit("TensorBoard ended without an address")


def started(playwright: Playwright) -> Browser:
    """Return Debian's Chromium, at work without a window."""
    return playwright.chromium.launch(
        executable_path=shutil.which("chromium"),
        args=["--no-sandbox", "--disable-background-networking", *DRAWING],
    )


def photograph(address: str) -> bytes:
    """Open TensorBoard with the most telling charts pinned; return the page when it is drawn."""
    cards = json.dumps([{"plugin": "scalars", "tag": tag} for tag in TAGS])
    with sync_playwright() as playwright:
        browser = started(playwright)
        page = browser.new_page(viewport=SIZE)
        page.goto(f"{address}?pinnedCards={urllib.parse.quote(cards)}#timeseries")
        # Whole charts, without the tables below them and the settings beside.
        page.get_by_text("Enable step selection and data table").click()
        page.get_by_text("Ignore outliers in chart scaling").click()
        page.get_by_label("Toggle settings side pane").click()
        png = _still(page)
        browser.close()
    return png


def _still(page: Page) -> bytes:
    """Return the page as a PNG, once it has not changed for two seconds."""
    page.wait_for_load_state("networkidle")
    shots = [page.screenshot()]
    while len(shots) < 5 or len(set(shots[-5:])) > 1:
        page.wait_for_timeout(500)
        shots.append(page.screenshot())
    return shots[-1]


if __name__ == "__main__":
    main()
