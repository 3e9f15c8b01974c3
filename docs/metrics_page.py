"""The page of metrics: docs/METRICS.md, made from the lists beside the code that records them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from docs.prometheus_page import prometheus_page
from shared.metric import MetricList
from telemetry import own_metric_list as own
from telemetry.hardware import metric_list as hardware
from trainer.reporting import metric_list as trainer

Table = Callable[[Iterable[tuple[str, ...]], tuple[str, ...]], str]

HEAD = """\
# Metrics

Made from the code by `python -m docs.generate`; tests compare the lists with what is recorded.
Names end in their unit. A value that can't be read is left out; it is never recorded as 0 or -1.
"""
TRAINING = """\
All of these are from rank 0, except `rank/<n>/…`. A step without a token to predict has no
`train/loss`. A run's summary has `steps`, `final_val_loss`, `best_val_loss`, and if the last step
was reached `test_loss` and `test_accuracy`. Its config has, besides the arguments, the model's
settings and hashes of the data, `tokenizer` (the one in use), `tf32` (true if training may round
to TF32) and `evaluation_precision`.
"""
QUANTIZATION = """\
Recorded every `--quant_interval` as `quant/<name>` for the whole model; with `--quant_detail`
also as `quant/layers.<n>.<site>/<name>`, where the second table has names of its own. "Ternary"
means that the metric exists only while a layer is ternary.
"""
WARNINGS = """\
When the quantizers leave the range in which they work, the run says so once, and once more when
they are back: few or most weights 0, +1 and -1 uneven, SQNR of weights below 5 dB, codes that
never flip or flip often, more than 5 % of the weights oscillating, many activations overloaded,
parameters without gradient.
"""
HARDWARE = """\
The sampler records these names; in a run they are `hw/<host>/<name>`, but `cpu_percent` and
`memory_percent` of rank 0's host, which keep their names. GPUs are numbered as NVML does and known
by `uuid`: those of the run are in `gpu_uuids` of its `RunStarted`, all others are the host's.
`<run>/<source>` is a training process, such as `r1/rank0`.

TensorBoard shows every sample, wandb means of 15 s. In TensorBoard the step of hardware is the
second of the run, and names and units are made for reading:

| recorded | in TensorBoard |
|---|---|
| `hw/<host>/memory/used_bytes` | `~hw/<host>/memory/used_gib` |
| `…_bytes_per_second`, `…_hertz`, `…_joules` | `…_mib_per_second`, `…_ghz`, `…_kwh` |
| `hw/<host>/cpu/<n>/percent` | only with `--per-core` |
| `hw/<host>/sampler/…` | `telemetry/<host>/sampler/…` |

`~` sorts these charts behind those of training.
"""
CONDITIONS = """\
Conditions of the hardware are no metrics but events with an onset and an end (`AlertChanged`):

| name | begins | ends |
|---|---|---|
| `gpu_lost` | a GPU does not answer any more | it answers again |
| `gpu_xid` | the driver reports an XID | 5 minutes without another |
| `gpu_ecc_uncorrected` | an uncorrectable ECC error is added | 5 minutes without another |
| `gpu_rows_pending` | rows of memory wait for a reset to be replaced | they wait no longer |
| `gpu_throttled` | 2 s of slowdown by heat or power supply, not by the power cap | 15 s without |
| `oom_kill` | the kernel kills a process for memory | 5 minutes without another |
| `probe_hangs` | a probe has not answered for 10 s | it answers |
"""
COLUMNS = ("name", "unit", "source")


def metrics_page(table: Table) -> str:
    """Return the page; table makes a Markdown table of rows and a head."""

    def listed(metrics: MetricList, columns: tuple[str, ...] = COLUMNS) -> str:
        rows = ((f"`{m.name}`", m.unit, m.source) for m in metrics.metrics)
        return table(rows, columns)

    return "\n".join(
        (
            HEAD,
            "## Training\n",
            listed(trainer.TRAINING, ("name", "unit", "recorded")),
            TRAINING,
            "## Quantization\n",
            QUANTIZATION,
            listed(trainer.QUANTIZATION, ("name", "unit", "meaning")),
            listed(trainer.QUANTIZATION_DETAIL, ("name of a layer", "unit", "meaning")),
            WARNINGS,
            "## Hardware\n",
            HARDWARE,
            "### Host\n",
            listed(hardware.HOST),
            "### GPUs\n",
            listed(hardware.GPUS),
            "### Training processes\n",
            listed(hardware.PROCESSES),
            "### Conditions\n",
            CONDITIONS,
            "## Derived, the same in every sink\n",
            listed(own.DERIVED),
            "## Telemetry about itself\n",
            listed(own.OWN),
            listed(hardware.SAMPLER),
            prometheus_page(table),
        )
    )
