"""Export: the same logits from a sixteenth of the bits, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.errors import BadInput
from trainer.evaluation.export import ExportedEncoder, export_encoder, load_exported
from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.calibration import freeze_group_means, group_means
from trainer.model.linear import QuantizedLinear


def make_trained(step: int = 60, **overrides) -> BitNetQDyT:
    """Ranges, columns and norms are not where they started."""
    model = make_model(**overrides)
    for at in (0, 20, step):
        model.apply_schedule(at, 100)
        model(*make_batch(seed=at))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("mode", ["symmetric", "paper", "absmean", "float"])
@pytest.mark.parametrize("step", [5, 20, 60])
def test_a_loaded_export_gives_exactly_the_logits_of_the_model(tmp_path, mode, step):
    """Bit for bit: in every stage, within the ramp of alpha, in every form of weights."""
    model = make_trained(weight_mode=mode)
    model.apply_schedule(step, 100)
    export_encoder(model, tmp_path)

    loaded = load_exported(tmp_path)

    batch = make_batch(seed=1)
    assert torch.equal(loaded(*batch).logits, model(*batch).logits)


@pytest.mark.parametrize(
    "overrides",
    [
        {"mixers": "none"},
        {"embed_norm": "qdyt", "final_norm": "qdyt"},
        {"block_norm": "layernorm"},
        {"activation_mode": "float"},
        {"qk_bits": 6, "gate_bits": 7, "embedding_bits": 5, "head_bits": 3, "vo_bits": 6},
        {"d_model": 40, "heads": 4, "d_ffn": 56, "group_size": 8},
    ],
)
def test_other_configurations_come_back_too(tmp_path, overrides):
    """Other norms, bits and dimensions that no byte divides."""
    model = make_trained(**overrides)
    export_encoder(model, tmp_path)

    loaded = ExportedEncoder.from_pretrained(str(tmp_path))

    batch = make_batch(seed=1)
    assert torch.equal(loaded(*batch).logits, model(*batch).logits)


def test_a_calibrated_encoder_comes_back_calibrated(tmp_path):
    """With the frozen means of its groups."""
    model = make_trained()
    freeze_group_means(model, {"blocks.1.ffn_norm": torch.tensor([0.3, -0.2])})
    export_encoder(model, tmp_path)

    loaded = load_exported(tmp_path)

    assert group_means(loaded)["blocks.1.ffn_norm"].tolist() == pytest.approx([0.3, -0.2])
    batch = make_batch(seed=1)
    assert torch.equal(loaded(*batch).logits, model(*batch).logits)


def test_ternary_weights_take_two_bits_on_disk(tmp_path):
    """Four codes a byte, one scale a row; the report counts what the file holds."""
    model = make_trained()
    ternary = [m for m in model.modules() if isinstance(m, QuantizedLinear) and m.is_ternary]

    report = export_encoder(model, tmp_path)

    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["blocks.0.ffn.up.codes"].shape == (64, 8)
    assert report.ternary_bytes == sum(m.weight.numel() for m in ternary) // 4
    assert report.total_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert not any(name.endswith(("raw_scale", "threshold", "start_rho")) for name in tensors)
    assert "in float32" in str(report)


def test_the_small_size_takes_an_eighth_of_its_float32_bytes(tmp_path):
    """Of the blocks; its vocabulary of 100 weighs nothing."""
    model = BitNetQDyT(ModelConfig.for_size("small", 100, layers=2))

    report = export_encoder(model, tmp_path)

    assert report.total_bytes < report.float32_bytes / 8


def test_a_loaded_encoder_stays_as_it_is(tmp_path):
    """Neither train() nor apply_schedule() nor a forward changes what it computes."""
    export_encoder(make_trained(), tmp_path)
    loaded = load_exported(tmp_path)
    batch = make_batch(seed=1)
    before = loaded(*batch).logits

    loaded.train()
    loaded.apply_schedule(0, 100)

    assert torch.equal(loaded(*batch).logits, before)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_logits_of_all_positions_are_those_of_the_predicted_ones(tmp_path):
    """(B, S, V), for filling masks without labels."""
    model = make_trained()
    export_encoder(model, tmp_path)
    ids, mask, labels = make_batch(seed=1)

    every = load_exported(tmp_path).logits(ids, mask)
    as_tokenizers_have_it = load_exported(tmp_path).logits(ids, mask.long())

    assert torch.equal(as_tokenizers_have_it, every)
    assert torch.equal(load_exported(tmp_path).logits(ids), every)
    assert every.shape == (*ids.shape, model.config.vocab_size)
    torch.testing.assert_close(every[labels != -100], model(ids, mask, labels).logits)


def test_loading_draws_no_random_numbers(tmp_path):
    """Whoever evaluates in mid-training goes on as before."""
    export_encoder(make_trained(), tmp_path)
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)

    load_exported(tmp_path)

    assert torch.equal(torch.rand(1), expected)


def test_a_directory_that_is_no_export_is_refused(tmp_path):
    """One sentence that names it."""
    with pytest.raises(BadInput, match="cannot be read as an exported encoder"):
        load_exported(tmp_path / "nothing")


def spoil_format(path):
    config = json.loads((path / "config.json").read_text()) | {"format": 2}
    (path / "config.json").write_text(json.dumps(config))


def spoil_field(path):
    config = json.loads((path / "config.json").read_text())
    config["model"]["depth"] = 3
    (path / "config.json").write_text(json.dumps(config))


def cut_weights(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def leave_out_a_tensor(path):
    tensors = load_file(path / "model.safetensors")
    del tensors["blocks.0.ffn_norm.gamma"]
    save_file(tensors, path / "model.safetensors")


def bend_a_shape(path):
    tensors = load_file(path / "model.safetensors")
    tensors["head.bias"] = tensors["head.bias"][:1].clone()
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_format, "not an export of format 1"),
        (spoil_field, "does not hold a whole exported encoder.*depth"),
        (cut_weights, "cannot be read as an exported encoder"),
        (leave_out_a_tensor, "no tensor blocks.0.ffn_norm.gamma"),
        (bend_a_shape, r"head.bias has shape \[1\], not \[40\]"),
    ],
)
def test_a_damaged_export_is_refused_with_what_is_wrong(tmp_path, spoil, message):
    """Never a half-loaded encoder."""
    export_encoder(make_trained(), tmp_path)
    spoil(tmp_path)

    with pytest.raises(BadInput, match=message):
        load_exported(tmp_path)
