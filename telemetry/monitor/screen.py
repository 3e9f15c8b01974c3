"""Screen: a snapshot as a terminal application, drawn anew once a second.

In: a `Watch`, polled on a thread of the screen's own.
Out: the overview, runs, hardware, processes and messages, each on a key that is shown.
Never: waits for a disk on the thread that draws, or takes colours from what is shown.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.coordinate import Coordinate
from textual.events import Resize
from textual.widgets import ContentSwitcher, DataTable, Footer, Input, Static

from telemetry.monitor.host_panels import process_lines
from telemetry.monitor.pages import host_page, joined, overview
from telemetry.monitor.pieces import BAD, DIM, GOOD, STRONG, WARN, Line, Piece, Room
from telemetry.monitor.process_panels import ORDERS as PROCESS_ORDERS
from telemetry.monitor.process_panels import machine_lines
from telemetry.monitor.processes import Processes
from telemetry.monitor.run_panels import (
    COLUMNS,
    alert_lines,
    header_line,
    message_lines,
    run_cells,
    run_lines,
)
from telemetry.monitor.snapshot import RunLine, Snapshot
from telemetry.monitor.watch import Watch

STYLES: Final = {DIM: "dim", STRONG: "bold", GOOD: "green", WARN: "yellow", BAD: "bold red"}
REFRESH_S: Final = 1.0
WIDTH_MIN: Final = 40
HEIGHT_MIN: Final = 10
SECONDS_MIN: Final = 30.0
SECONDS_MAX: Final = 3600.0
ORDERS: Final = ("newest", "name", "loss", "step")


class MonitorApp(App[None]):
    """The screen of `telemetry monitor`."""

    CSS = """
    #head { height: 1; background: $boost; }
    #filter { display: none; height: 3; }
    #filter.is-open { display: block; }
    ContentSwitcher { height: 1fr; }
    #table { height: 1fr; }
    #detail { height: 1fr; min-height: 8; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "view('overview')", "Overview"),
        Binding("2", "view('runs')", "Runs"),
        Binding("3", "view('hosts')", "Hosts"),
        Binding("4", "view('processes')", "Processes"),
        Binding("5", "view('events')", "Events"),
        Binding("slash", "filter", "Filter"),
        Binding("s", "sort", "Sort"),
        Binding("plus,equals_sign", "zoom(0.5)", "Zoom", key_display="+/-"),
        Binding("minus", "zoom(2.0)", show=False),
        Binding("q", "quit", "Quit"),
        Binding("escape", "close_filter", show=False),
    ]
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None

    def __init__(
        self,
        watch: Watch,
        *,
        is_ascii: bool = False,
        keep: Callable[[], None] = lambda: None,
        processes: Processes | None = None,
    ) -> None:
        """Prepare the screen. keep: called once a second, as to restart a sidecar that died.

        processes: those of this machine.
        """
        super().__init__()
        self._keep = keep
        self._watch = watch
        self._is_ascii = is_ascii
        self._stop = threading.Event()
        self._wake = threading.Event()
        """Set where the next look at the journals should not be waited for."""
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)
        self._snapshot: Snapshot | None = None
        self._seconds = 300.0
        self._words = ""
        self._order = ORDERS[0]
        self._chosen = ""
        self._processes = Processes() if processes is None else processes
        self._process_order = next(iter(PROCESS_ORDERS))
        self._view = "overview"

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Input(placeholder="part of a name; Enter keeps it, Escape clears it", id="filter")
        with ContentSwitcher(initial="overview"):
            yield VerticalScroll(Static(id="overview-text"), id="overview")
            with Vertical(id="runs"):
                yield DataTable(id="table", cursor_type="row", zebra_stripes=True)
                yield Static(id="detail")
            yield VerticalScroll(Static(id="hosts-text"), id="hosts")
            yield VerticalScroll(Static(id="processes-text"), id="processes")
            yield VerticalScroll(Static(id="events-text"), id="events")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.query_one(DataTable).add_columns(*COLUMNS)
        self.set_interval(REFRESH_S, self._keep)
        self._thread.start()

    async def action_quit(self) -> None:
        self._stop.set()
        self._wake.set()
        self.exit()

    def on_unmount(self) -> None:
        self._stop.set()
        self._wake.set()

    def on_resize(self, _: Resize) -> None:
        self._draw()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        if event.row_key and event.row_key.value:
            self._chosen = event.row_key.value
            self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._words = event.value.strip().lower()
        self._draw()

    def on_input_submitted(self, _: Input.Submitted) -> None:
        self.query_one(Input).remove_class("is-open")
        self.set_focus(None)

    def action_view(self, name: str) -> None:
        self._view = name
        self._wake.set()
        self.query_one(ContentSwitcher).current = name
        target = "#table" if name == "runs" else f"#{name}"
        self.query_one(target).focus()
        self._draw()

    def action_filter(self) -> None:
        field = self.query_one(Input)
        field.add_class("is-open")
        field.focus()

    def action_close_filter(self) -> None:
        field = self.query_one(Input)
        field.value = ""
        field.remove_class("is-open")
        self.set_focus(None)

    def action_sort(self) -> None:
        if self._view == "processes":
            orders = list(PROCESS_ORDERS)
            following = orders.index(self._process_order) + 1
            self._process_order = orders[following % len(orders)]
            self._draw()
            return
        self._order = ORDERS[(ORDERS.index(self._order) + 1) % len(ORDERS)]
        self._draw()

    def action_zoom(self, factor: float) -> None:
        self._seconds = min(SECONDS_MAX, max(SECONDS_MIN, self._seconds * factor))
        self._draw()

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        self._snapshot = snapshot
        if not self._stop.is_set():
            self._draw()

    def _follow(self) -> None:
        """Poll the journals, on the thread that owns the watch."""
        while not self._stop.is_set():
            is_end = self._watch.poll()
            snapshot = self._watch.snapshot()
            # Of another machine, or of what was recorded long ago, there are none here.
            if self._view == "processes" and snapshot.sidecar:
                lines = self._processes.read(snapshot.trainers)
                snapshot = replace(snapshot, processes=lines)
            if self._stop.is_set():
                return
            # Not waited for: the screen may be closing, and waits for this thread then.
            with contextlib.suppress(RuntimeError):  # its loop has ended
                self.call_later(self.show, snapshot)
            self._wake.wait(REFRESH_S if is_end else 0.05)
            self._wake.clear()

    def _draw(self) -> None:
        snapshot = self._snapshot
        if snapshot is None:
            return
        width, height = self.size
        if width < WIDTH_MIN or height < HEIGHT_MIN:
            text = f"{width}x{height}: needs {WIDTH_MIN}x{HEIGHT_MIN}"
            self._put("#head", [[Piece(text, WARN)]])
            for page in ("overview", "hosts", "processes", "events"):
                self._put(f"#{page}-text", [])
            return
        room = Room(width - 2, self._seconds, self._is_ascii)
        shown = self._sorted(self._filtered(snapshot))
        notes = f"  last {self._seconds:.0f} s"
        if self._words:
            notes += f"  filter: {self._words}"
        if self._order != ORDERS[0]:
            notes += f"  by {self._order}"
        self._put("#head", [[*header_line(shown, replace(room, width=width - len(notes))),
                             Piece(notes, WARN)]])  # fmt: skip
        draw: dict[str, Callable[[], None]] = {
            "overview": lambda: self._put("#overview-text", overview(shown, room, height - 2)),
            "runs": lambda: self._draw_runs(shown, room),
            "hosts": lambda: self._put(
                "#hosts-text", joined(host_page(host, room, height) for host in shown.hosts)
            ),
            "processes": lambda: self._put("#processes-text", self._process_page(shown, room)),
            "events": lambda: self._put(
                "#events-text",
                [
                    *alert_lines(shown, room, 100),
                    [],
                    *message_lines(shown.runs, room, 200)[::-1],
                ],
            ),
        }
        draw[self.query_one(ContentSwitcher).current or "overview"]()

    def _put(self, target: str, lines: list[Line]) -> None:
        self.query_one(target, Static).update(Text("\n").join(map(_coloured, lines)))

    def _process_page(self, snapshot: Snapshot, room: Room) -> list[Line]:
        panels = [process_lines(host, room) for host in snapshot.hosts]
        if snapshot.processes:
            order, words = self._process_order, self._words
            panels.append(machine_lines(snapshot.processes, room, order, words))
        return joined(panels)

    def _draw_runs(self, snapshot: Snapshot, room: Room) -> None:
        table = self.query_one(DataTable)
        runs = {run.run_id: run for run in snapshot.runs}
        if list(runs) != [key.value for key in table.rows]:
            chosen = self._chosen
            table.clear()
            for run in runs.values():
                table.add_row(*map(Text, run_cells(run)), key=run.run_id)
            if chosen in runs:
                table.move_cursor(row=list(runs).index(chosen))
        else:
            for row, run in enumerate(runs.values()):
                for column, cell in enumerate(run_cells(run)):
                    table.update_cell_at(Coordinate(row, column), Text(cell), update_width=True)
        chosen_run = runs.get(self._chosen) or next(iter(runs.values()), None)
        detail = self.query_one("#detail")
        lines = run_lines(chosen_run, room, max(4, detail.size.height - 4)) if chosen_run else []
        self._put("#detail", lines)

    def _filtered(self, snapshot: Snapshot) -> Snapshot:
        if not self._words:
            return snapshot
        runs = [run for run in snapshot.runs if self._words in _searched(run)]
        hosts = [host for host in snapshot.hosts if self._words in host.name.lower()]
        return replace(snapshot, runs=tuple(runs), hosts=tuple(hosts or snapshot.hosts))

    def _sorted(self, snapshot: Snapshot) -> Snapshot:
        if self._order == "newest":
            return snapshot
        keys: dict[str, Callable[[RunLine], object]] = {
            "name": lambda run: run.name,
            "loss": lambda run: (run.loss is None or run.loss != run.loss, run.loss or 0.0),
            "step": lambda run: -(run.step or 0),
        }
        return replace(snapshot, runs=tuple(sorted(snapshot.runs, key=keys[self._order])))  # type: ignore[arg-type]


def _coloured(line: Line) -> Text:
    text = Text(no_wrap=True, overflow="crop")
    for piece in line:
        text.append(piece.text, STYLES.get(piece.style, ""))
    return text


def _searched(run: RunLine) -> str:
    return f"{run.run_id} {run.name} {run.project} {run.state}".lower()
