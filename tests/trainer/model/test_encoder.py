"""The encoder as a whole: its interface, its stages, its state and what it never does."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.activation import ActivationQuantizer
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.model.linear import QuantizedLinear

VOCABULARY = 40


def make_model(**overrides) -> BitNetQDyT:
    torch.manual_seed(0)
    settings = {"d_model": 32, "heads": 2, "d_ffn": 64, "max_length": 16, "qdrop_prob_initial": 0.0}
    return BitNetQDyT(ModelConfig.for_size("tiny", VOCABULARY, **{**settings, **overrides}))


def make_batch(rows: int = 3, length: int = 16, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (rows, length), generator=generator)
    is_predicted = torch.rand(rows, length, generator=generator) < 0.3
    labels = torch.where(is_predicted, ids, -100)
    return ids, torch.ones(rows, length, dtype=torch.bool), labels


def test_loss_is_the_mean_cross_entropy_of_the_predicted_positions():
    """Logits come for those positions alone, in the order of the batch."""
    model = make_model().eval()
    ids, mask, labels = make_batch()

    out = model(ids, mask, labels)

    targets = labels[labels != -100]
    assert out.logits.shape == (len(targets), VOCABULARY)
    expected = torch.nn.functional.cross_entropy(out.logits, targets)
    torch.testing.assert_close(out.loss, expected)
    assert out.correct == (out.logits.argmax(1) == targets).sum()


def test_positions_that_are_handed_in_give_the_same_as_those_that_are_found():
    """Only the host's wait for their number is saved."""
    model = make_model().eval()
    ids, mask, labels = make_batch()
    predicted = (labels.flatten() != -100).nonzero().squeeze(1)

    assert torch.equal(model(ids, mask, labels, predicted).loss, model(ids, mask, labels).loss)


def test_nothing_to_predict_is_a_loss_of_zero_with_gradients_of_zero():
    """Not NaN, which would reach every parameter."""
    model = make_model()
    ids, mask, labels = make_batch()

    out = model(ids, mask, torch.full_like(labels, -100))
    out.loss.backward()

    assert out.loss == 0
    assert out.logits.shape == (0, VOCABULARY)
    assert all((p.grad == 0).all() for p in model.parameters())


def test_rows_longer_than_the_model_are_refused():
    """The message has both lengths."""
    with pytest.raises(ValueError, match="17 tokens are longer than max_length 16"):
        make_model()(*make_batch(length=17))


def test_what_is_padding_does_not_reach_what_is_not():
    """Other tokens behind the mask leave the logits as they are."""
    model = make_model().eval()
    ids, mask, labels = make_batch()
    mask[:, 10:] = False
    labels[:, 10:] = -100
    other = ids.clone()
    other[:, 10:] = (other[:, 10:] + 1) % VOCABULARY

    torch.testing.assert_close(model(ids, mask, labels).logits, model(other, mask, labels).logits)


def test_a_row_of_nothing_but_padding_does_not_poison_the_batch():
    """A softmax over no keys would be NaN."""
    model = make_model()
    ids, mask, labels = make_batch()
    mask[1] = False
    labels[1] = -100

    model(ids, mask, labels).loss.backward()

    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_encoder_looks_both_ways():
    """The last token changes the logits of the first."""
    model = make_model().eval()
    ids, mask, _ = make_batch(rows=1)
    labels = torch.full_like(ids, -100)
    labels[0, 0] = 1
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % VOCABULARY

    assert not torch.equal(model(ids, mask, labels).logits, model(other, mask, labels).logits)


@pytest.mark.parametrize("step", [0, 20, 60])
@pytest.mark.parametrize("mode", ["symmetric", "paper", "absmean"])
@pytest.mark.parametrize("outer", ["layernorm", "qdyt"])
def test_every_parameter_gets_a_finite_gradient_in_every_stage(step, mode, outer):
    """In all three forms of weights, and with both kinds of norm at embedding and head."""
    model = make_model(weight_mode=mode, embed_norm=outer, final_norm=outer, qdrop_prob_initial=0.3)
    model.apply_schedule(step, 100)

    model(*make_batch()).loss.backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def weight_levels(model: BitNetQDyT) -> dict[str, int]:
    """The most levels that a row of each weight really has, seen through its forward."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            weight = module(torch.eye(module.weight.shape[1])).T
            found[name] = max(len(row.unique()) for row in weight)
    return found


def test_each_stage_really_has_the_weights_that_it_says():
    """Int8 everywhere; the top half ternary; all ternary but V and O of the last block."""
    model = make_model().eval()
    late = {"blocks.3.attention.v", "blocks.3.attention.o"}
    ternary = {}
    for step in (0, 20, 60):
        model.apply_schedule(step, 100)
        ternary[step] = {name for name, levels in weight_levels(model).items() if levels <= 3}
    everything = set(weight_levels(model))

    assert ternary[0] == set()
    assert ternary[20] == {n for n in everything if n.startswith(("blocks.2", "blocks.3"))} - late
    assert ternary[60] == everything - late


def test_each_stage_really_has_the_activations_that_it_says():
    """Int8 everywhere, then int4 but for the mixed sites."""
    model = make_model(qk_bits=6, gate_bits=7, vo_bits=5, head_bits=6).eval()
    bits = {}
    for step in (0, 20):
        model.apply_schedule(step, 100)
        bits[step] = {
            name: module.bits
            for name, module in model.named_modules()
            if isinstance(module, ActivationQuantizer)
        }

    assert set(bits[0].values()) == {8}
    for name, found in bits[20].items():
        is_late = name in ("blocks.3.attention.v_input", "blocks.3.attention.o_input")
        mixed = {"qk_input": 6, "gate_input": 7, "input": 6}
        assert found == (5 if is_late else mixed.get(name.rpartition(".")[2], 4)), name


def test_stages_change_what_the_model_computes():
    """The bits in force are seen in the output, not only said."""
    model = make_model().eval()
    batch = make_batch()
    logits = []
    for step in (0, 20, 60):
        model.apply_schedule(step, 100)
        logits.append(model(*batch).logits.detach())

    assert not torch.allclose(logits[0], logits[1])
    assert not torch.allclose(logits[1], logits[2])


def test_qdrop_changes_the_outputs_of_training_and_is_counted():
    """With the same random numbers elsewhere, some quantizers are really bypassed."""
    model = make_model(qdrop_prob_initial=0.5, qdrop_anneal_steps=1.0)
    model.apply_schedule(50, 100)
    torch.manual_seed(3)

    model(*make_batch())

    p = 0.25
    assert 0.1 < Diagnostics(model).collect()["quant/bypassed_ratio"].item() < p + 0.15
    model.apply_schedule(100, 100)
    assert Diagnostics(model).collect()["quant/bypassed_ratio"] == 0


def test_alpha_is_the_same_in_training_and_evaluation_at_any_step():
    """The ramp comes from the step alone."""
    model = make_model()
    model.apply_schedule(5, 100)

    ramps = [
        {block.attention_norm.alpha_ramp for block in mode.blocks}
        for mode in (model.train(), model.eval())
    ]

    assert ramps[0] == ramps[1]
    assert ramps[0].pop() == pytest.approx(0.55)


def test_a_loaded_state_evaluates_exactly_like_the_model_it_came_from():
    """Ranges, mixers and columns are all in the state dict, whatever the seed."""
    model = make_model()
    for step in (0, 20, 60):
        model.apply_schedule(step, 100)
        model(*make_batch(seed=step))
    other = BitNetQDyT(model.config, seed=7)

    other.load_state_dict(model.state_dict())
    other.apply_schedule(60, 100)

    batch = make_batch(seed=1)
    assert torch.equal(other.eval()(*batch).logits, model.eval()(*batch).logits)


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    """Scales, thresholds, dead zones, norms, biases and zeta never decay."""
    model = make_model()

    groups = {group["name"]: group for group in model.parameter_groups(0.01)}

    listed = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert [groups[n]["weight_decay"] for n in ("matrices", "vectors", "quantizers")] == [
        0.01,
        0,
        0,
    ]
    assert groups["quantizers"]["lr_scale"] == model.config.quantizer_lr_scale
    decaying = {id(p) for p in groups["matrices"]["params"]}
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and not name.endswith(
            ("raw_scale", "threshold", "dead_zone")
        )
        assert (id(parameter) in decaying) == is_matrix, name


def test_adamw_takes_the_groups_as_they_are():
    """Name and lr_scale ride along in the optimizer's own groups."""
    optimizer = torch.optim.AdamW(make_model().parameter_groups(0.01), lr=1e-3)

    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 1.0, 0.1]


@pytest.mark.parametrize("as_scale", [float, torch.tensor])
def test_a_scaled_loss_gives_scaled_gradients_of_scale_threshold_and_dead_zone(as_scale):
    """Their clip knows the loss scale, so that unscaling gives back what they were."""
    gradients = []
    for scale in (1.0, 1024.0):
        model = make_model(lsq_grad_clip=0.001)
        model.apply_schedule(60, 100)
        model.set_loss_scale(as_scale(scale))
        torch.manual_seed(1)
        (model(*make_batch()).loss * scale).backward()
        gradients.append(model.blocks[0].ffn.down.threshold.grad / scale)

    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-9)
    assert gradients[0].abs().max().item() == pytest.approx(0.001)


@pytest.mark.parametrize("step", [0, 60])
def test_half_precision_autocast_trains_and_leaves_the_state_in_float32(step):
    """Weights, ranges and gradients stay in full precision."""
    model = make_model(qdrop_prob_initial=0.3)
    model.apply_schedule(step, 100)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(*make_batch())
    out.loss.backward()

    assert out.loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


class HostReads(TorchDispatchMode):
    """Records every operation by which the host would wait for a device's value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
        ):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("step", [0, 20, 60])
def test_a_training_step_never_reads_a_value_from_the_device(step):
    """Schedule, forward, backward and diagnostics, with the positions handed in."""
    model = make_model(qdrop_prob_initial=0.5)
    ids, mask, labels = make_batch()
    predicted = (labels.flatten() != -100).nonzero().squeeze(1)

    with HostReads() as reads:
        model.apply_schedule(step, 100)
        model(ids, mask, labels, predicted).loss.backward()
        Diagnostics(model).collect()

    assert reads.seen == []


def test_each_weight_is_quantized_once_in_a_forward(monkeypatch):
    """Quantizing is a tenth of a step; doing it twice would double that."""
    model = make_model()
    model.apply_schedule(60, 100)
    calls: list[int] = []
    inner = QuantizedLinear.quantized_weight

    def counted(self):
        calls.append(id(self))
        return inner(self)

    monkeypatch.setattr(QuantizedLinear, "quantized_weight", counted)
    model(*make_batch())

    assert len(calls) == len(set(calls)) == 7 * model.config.layers


def test_without_padding_no_mask_gives_what_a_mask_of_ones_gives():
    """Loss, logits, gradients and random numbers; attention then takes the kernels without mask."""
    found = []
    for has_mask in (True, False):
        model = make_model(qdrop_prob_initial=0.3)
        ids, mask, labels = make_batch()
        torch.manual_seed(5)
        out = model(ids, mask if has_mask else None, labels)
        out.loss.backward()
        found.append((out.logits, model.blocks[0].attention.q.weight.grad, torch.rand(1)))

    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_clip_of_the_columns_is_a_guard_and_acts_on_no_ordinary_gradient():
    """Their largest are far below it; what a step that explodes would bring is cut off."""
    model = make_model()
    model.apply_schedule(60, 100)

    model(*make_batch()).loss.backward()
    columns = ("raw_scale", "threshold", "dead_zone")
    found = [p.grad.abs().max() for n, p in model.named_parameters() if n.endswith(columns)]
    model.zero_grad()
    (1e6 * model(*make_batch()).loss).backward()
    exploded = [p.grad.abs().max() for n, p in model.named_parameters() if n.endswith(columns)]

    assert max(found) < 0.1 * model.config.lsq_grad_clip
    assert max(exploded) <= model.config.lsq_grad_clip


def test_attention_is_given_no_mask_where_nothing_is_padded(monkeypatch):
    """A mask of booleans, all true, would keep it from its fused kernels."""
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(*args, attn_mask=None):
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model = make_model()
    ids, mask, labels = make_batch()
    Diagnostics(model).observe(True)

    model(ids, None, labels)
    model(ids, mask, labels)

    assert masks[:4] == [None] * 4
    assert all(mask is not None for mask in masks[4:])
    assert Diagnostics(model).collect()["quant/attention_entropy_nats"].isfinite()
