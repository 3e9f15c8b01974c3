"""TensorBoard: a run's rows as event files that its fast loader shows in full.

policy      which rows become what, and under which tag and step
streams     what is known of each session, and its subdirectories
placement   which of them a value goes to, by the last step of its tag
names       names of strangers as tags
units       hardware in units that people read
entries     what the policy says and the files hold
said        what sources say of themselves and of the run, as entries
words       events that have no values, as lines for people
config      a run's configuration, flattened for reading and for the HPARAMS tab
summaries   an entry as the bytes of an event
scalars     the same for scalars alone, which are nearly all
files       event files: framing, commits, and what a crash leaves behind
lastsfile   the last step and value of each tag, on disk beside the cursor
starts      the number that each process of the sink puts into its files' names
disk        calls of the disk that follow no symbolic link
sink        all of it, behind the interface of every sink
"""

from telemetry.sinks.tensorboard.sink import TensorBoardSink

__all__ = ["TensorBoardSink"]
