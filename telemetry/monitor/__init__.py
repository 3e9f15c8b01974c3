"""Monitor: the machine and its runs on a live terminal screen, read from journals.

watch        follows the runs of a data directory, and takes a snapshot of them
snapshot     runs and machines as they stand at one moment
figures      numbers and names in the form that people read
charts       lines of text that draw values: sparklines, bars, curves
pieces       parts of a line with a style, and the room that lines have
processes    all processes of this machine, as they are now
process_panels  the lines of those processes
host_panels  the lines of a machine
run_panels   the lines of runs, alerts and messages
pages        panels put together for a screen
text         a snapshot as plain text, or as JSON
screen       a snapshot as a terminal application
command      the command: starts or finds the sidecar, chooses the form
"""
