"""The metrics of training and of quantization, by the names that the trainer gives them.

All are from rank 0, except `rank/<n>/…`. A test compares them with the names in the code.
"""

from __future__ import annotations

from typing import Final

from shared.metric import Metric, MetricList

TRAINING: Final = MetricList(
    (
        Metric("train/loss", "nats, mean since the last logged step", "every `--log_interval`"),
        Metric("train/grad_norm", "", "every `--log_interval`"),
        Metric("train/learning_rate", "", "every `--log_interval`"),
        Metric("train/qdrop_probability", "", "every `--log_interval`"),
        Metric(
            "train/training_stage",
            "text: `warmup`, `partial_ternary`, `full_ternary`; `float_weights` or `float` if "
            "weights, or weights and activations, are not quantized",
            "every `--log_interval`",
        ),
        Metric("train/epoch", "epochs", "every `--log_interval`"),
        Metric("train/global_step", "steps", "every `--log_interval`"),
        Metric("train/tokens_per_second", "tokens of all processes/s", "every `--log_interval`"),
        Metric("train/step_seconds", "s", "every `--log_interval`"),
        Metric("train/input_seconds", "s of a step, waiting for data", "every `--log_interval`"),
        Metric("train/forward_seconds", "s of a step, all micro batches", "every `--log_interval`"),
        Metric(
            "train/backward_seconds",
            "s of a step, with the wait for other ranks",
            "every `--log_interval`",
        ),
        Metric("train/optimizer_seconds", "s of a step", "every `--log_interval`"),
        Metric("torch_gpu_memory_allocated", "GB", "every `--log_interval`, on a GPU"),
        Metric("torch_gpu_memory_reserved", "GB", "every `--log_interval`, on a GPU"),
        Metric(
            "train/teacher_loss",
            "nats (KL times temperature squared)",
            "every `--log_interval`, with `--teacher`",
        ),
        Metric("train/teacher_weight", "", "every `--log_interval`, with `--teacher`"),
        Metric(
            "rank/<n>/step_seconds", "s", "every `--log_interval`, by every rank, under `torchrun`"
        ),
        Metric(
            "rank/<n>/work_seconds",
            "s, before a process waits for the others",
            "every `--log_interval`, by every rank, under `torchrun`",
        ),
        Metric(
            "rank/<n>/input_seconds",
            "s, of which waiting for data",
            "every `--log_interval`, by every rank, under `torchrun`",
        ),
        Metric(
            "train/straggler_ratio",
            "largest / median of `work_seconds`",
            "every `--log_interval`, under `torchrun`",
        ),
        Metric(
            "time/layers.<n>/forward_seconds",
            "s",
            "every `--log_interval`, with `--profile_blocks`",
        ),
        Metric(
            "time/layers.<n>/backward_seconds",
            "s",
            "every `--log_interval`, with `--profile_blocks`",
        ),
        Metric("time/evaluation_seconds", "s", "every evaluation, when it has ended"),
        Metric("time/checkpoint_seconds", "s", "every checkpoint, when it is written"),
        Metric("val/loss", "nats", "every `--eval_interval`"),
        Metric("val/perplexity", "exp(loss)", "every `--eval_interval`"),
        Metric(
            "val/accuracy",
            "share of masked tokens that are predicted right",
            "every `--eval_interval`",
        ),
    )
)

QUANTIZATION: Final = MetricList(
    (
        Metric("weight_bits_mean", "bits", "bits in force; a ternary weight counts as log2(3)"),
        Metric("activation_bits_mean", "bits", "bits in force"),
        Metric("bypassed_ratio", "", "share of quantizers that QDrop bypassed in this step"),
        Metric("weight_sqnr_db", "dB", "signal to quantization noise"),
        Metric("activation_sqnr_db", "dB", "signal to quantization noise"),
        Metric("zero_ratio", "", "share of ternary weights with code 0"),
        Metric("plus_ratio", "", "share of ternary weights with code +1"),
        Metric("minus_ratio", "", "share of ternary weights with code -1"),
        Metric("dead_rows_ratio", "", "share of rows whose codes are all 0 (ternary)"),
        Metric("scale_mean", "", "means of the learned columns (ternary)"),
        Metric("threshold_mean", "", "means of the learned columns (ternary)"),
        Metric("dead_zone_mean", "", "means of the learned columns (ternary)"),
        Metric("scale_drift_max", "", "largest abs(log(now / start)) of a row (ternary)"),
        Metric("dead_zone_drift_max", "", "largest abs(log(now / start)) of a row (ternary)"),
        Metric(
            "threshold_crowding_ratio",
            "",
            "share of weights within a tenth of the dead zone of its edge (ternary)",
        ),
        Metric(
            "flip_rate_per_step",
            "",
            "share of codes that change in a step, over the last eight steps (ternary)",
        ),
        Metric(
            "oscillation_rate_per_step",
            "",
            "how often a code goes back, by a moving average (ternary; Nagel et al. 2022)",
        ),
        Metric(
            "oscillating_ratio",
            "",
            "share of weights whose code goes back more than once in ten steps (ternary)",
        ),
        Metric("activation_overload_rate", "", "share of inputs beyond the largest level"),
        Metric("activation_range_drift_max", "", "largest abs(log(now / start)) of a range"),
        Metric(
            "codebook_utilization_ratio",
            "",
            "entropy of the levels / its largest value",
        ),
        Metric(
            "levels_used_ratio",
            "",
            "share of levels that occur",
        ),
        Metric(
            "dead_channels_ratio", "", "share of ranges below a thousandth of their site's mean"
        ),
        Metric(
            "tanh_saturation_ratio",
            "",
            "QDyT: share of outputs beyond 0.97",
        ),
        Metric(
            "pact_clip_ratio",
            "",
            "QDyT: share of inputs that are clipped",
        ),
        Metric("q_scale_mean", "", "root mean square of queries"),
        Metric("k_scale_mean", "", "root mean square of keys"),
        Metric("attention_entropy_nats", "nats", "mean entropy of attention"),
        Metric("attention_logit_max", "", "largest logit of attention"),
        Metric("alpha_drift_max", "", "largest abs(log(now / start)) of the learned scalars"),
        Metric("zeta_drift_max", "", "largest abs(log(now / start)) of the learned scalars"),
        Metric("gradient_share_<parameter>_ratio", "", "share of the squared gradient norm"),
        Metric(
            "gradient_missing_ratio", "", "share of parameters without a gradient, or with one of 0"
        ),
        Metric("latent_weights", "", "histograms"),
        Metric("scales", "", "histograms"),
    )
)
"""Names without `quant/`, and with `--quant_detail` without `quant/layers.<n>.<site>/`."""

QUANTIZATION_DETAIL: Final = MetricList(
    (
        Metric("bits", "bits", "bits in force; a ternary weight counts as log2(3)"),
        Metric("bypassed", "0 or 1", "1 where QDrop bypassed this quantizer in this step"),
        Metric("overload_ratio", "", "share of inputs beyond the largest level"),
        Metric("sqnr_db", "dB", "signal to quantization noise of activations"),
        Metric("range_drift", "", "largest abs(log(now / start)) of a range"),
        Metric("head_<n>_q_scale", "", "root mean square of the queries of a head"),
        Metric("head_<n>_k_scale", "", "root mean square of the keys of a head"),
        Metric("head_<n>_entropy_nats", "nats", "mean entropy of the attention of a head"),
        Metric("head_<n>_logit_max", "", "largest logit of the attention of a head"),
    )
)
"""Names that only layers have, with `--quant_detail`."""
