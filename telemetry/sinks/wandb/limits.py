"""Limits of waiting for wandb and its server. Tests on loopback shorten them."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """How long the W&B sink waits, in seconds.

    answer_s: for one answer of the server. ask_every_s: between two questions whether rows
    have arrived. start_s: for the start of a run. finish_s: wandb's own limit of a finish,
    which bounds only the upload of rows. finish_limit_s: after that, wandb-core is killed.
    written_s: for the end of a file that wandb-core has finished.
    """

    answer_s: float = 10.0
    ask_every_s: float = 30.0
    start_s: float = 10.0
    finish_s: float = 45.0
    finish_limit_s: float = 50.0
    written_s: float = 10.0


LIMITS = Limits()
