"""Goodput lines: the goodput of a run in words, for a person at a terminal.

In: a `Goodput`.
Out: a few lines.
Never: a cause or a part that took no time.
"""

from __future__ import annotations

from telemetry.views.goodput import TRAINING, Goodput
from telemetry.views.step_times import Straggler


def goodput_lines(found: Goodput) -> list[str]:
    """Return the lines that tell where the time of a run went; none for a run without steps."""
    if not found.steps or not found.ratios:
        return []
    sessions = f" in {found.sessions} sessions" if found.sessions > 1 else ""
    badput = {c: r for c, r in found.ratios.items() if c != TRAINING and r >= 0.0005}
    causes = [f"{c.replace('_', ' ')} {r:.1%}" for c, r in _largest_first(badput)]
    shares = ", ".join([f"goodput {found.ratios[TRAINING]:.1%}", *causes])
    lines = [f"time: {_duration(found.total_s)}{sessions}: {shares}"]
    if found.lost_steps:
        lost_s = found.seconds["lost_work"]
        lines.append(f"lost work: {found.lost_steps:,} logged steps, {_duration(lost_s)}")
    return [*lines, *_step_lines(found)]


def _step_lines(found: Goodput) -> list[str]:
    times = found.step_times
    lines = []
    if times.step_s and times.parts:
        shares = {part: seconds / times.step_s for part, seconds in times.parts.items()}
        words = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        lines.append(f"a step: {times.step_s:.3g} s: {words}")
    if times.straggler is not None:
        lines.append(_straggler_line(times.straggler))
    return lines


def _straggler_line(found: Straggler) -> str:
    if found.rank is None:
        return f"ranks: they take turns at being slow, and wait {found.excess_s:.3g} s a step"
    return (
        f"ranks: rank {found.rank} is slow by {found.cause}: its work takes "
        f"{found.ratio:.2f} times the median, {found.excess_s:.3g} s more a step"
    )


def _largest_first(ratios: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(ratios.items(), key=lambda item: -item[1])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.1f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min"
