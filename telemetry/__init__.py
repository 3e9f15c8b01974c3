"""The sidecar: records the events of training runs, and shows them in TensorBoard and W&B.

Theory of operation. `python -m telemetry serve` is a small tree of processes:

    parent of serve         guard.py: handles signals, and waits for its child; holds no lock
    `- serve                service.py: the threads below
       |- sampler           sampler.py: reads the hardware; an emitter like any other
       `- sink, 1 per       sinks/runner.py: reads the journal of its run and writes into
          run and sink      TensorBoard files or W&B; may be killed at any moment

The threads of `serve`, and what each of them alone may touch:

    reading     reading.py      the ZeroMQ socket, and how far each stream was received;
                                never waits for a disk
    journal     journal_loop.py (the main thread) runs, journal files, run.json, the sampler's
                                process; never touches the socket
    supervisor  supervisor.py   the sink processes and when each may start; reads no journal
    carrier     orphan_spools.py spools of emitters that are gone; a client of this sidecar
    retention   retention.py    the removal of old runs that every sink has
    watcher     watcher.py      the latest values, and the rules of alerts; touches no journal
    connections connections.py  the socket's monitor; closes connections above a bound
    http        http.py         nothing: it shows numbers that other threads published

One event goes this way, and the acknowledgement back:

    emitter -> reading -> inbox (bounded) -> journal -> append, then sync
    emitter <- reading <- answers         <- journal <- after the sync

Three rules hold it together:

    1. An event is acknowledged when it is on disk, and not before. The emitter keeps it
       until then, so a crash of the sidecar loses no event: the emitter sends it again.
    2. Each stream numbers its events without holes. A repeated event is known by its
       number; a missing one is asked for, or recorded as a Gap.
    3. Sinks read journals, and nothing else: one that hangs, crashes or is away for days
       delays no event. Each commits its own cursor after its output is safe.

docs/ARCHITECTURE.md has the picture, docs/FORMATS.md every byte.
"""

import sys

# Under `-m`, `shared` may be a folder of the user's own until __main__ has put ours first.
if sys.argv[:1] != ["-m"]:
    from shared import moved

    moved.install()
