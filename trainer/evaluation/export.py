"""Export of a trained encoder as packed codes, and loading of such an export.

In: an encoder with the bits of some step in force; or a directory that was exported.
Out: DIR/config.json and DIR/model.safetensors; or an encoder that computes the same.
Never: writes state that only training needs, or pickles.

model.safetensors holds, for a linear layer NAME,

    NAME.codes   uint8 (out, ceil(in / 4)), four ternary codes a byte; or int8 (out, in)
    NAME.scale   float32, broadcastable to (out, in): weight = codes * scale

and for each table NAME of embedding and head

    NAME.codes   int8 (rows, d_model)
    NAME.scale   float32 (rows, groups): weight = codes * scale of their group of the row

All other tensors that an evaluation reads have their names in the model: norms, zeta, the
ranges of activations, and the mixers' permutations and signs. Mixers are not multiplied
into the weights, because a Hadamard product of ternary codes is not ternary. A calibrated
encoder also has NAME.group_means.

config.json holds format, architecture, model (fields of ModelConfig) and bits (those in
force, by module).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from shared.files import make_directory, write_atomically
from trainer.errors import BadInput
from trainer.model import BitNetQDyT, ModelConfig
from trainer.model.activation import ActivationQuantizer
from trainer.model.calibration import freeze_group_means, group_means
from trainer.model.embedding import Embedding, LanguageModelHead
from trainer.model.integer import integer_codes
from trainer.model.linear import COLUMN_NAMES, QuantizedLinear, linear_layers
from trainer.model.mixing import SignedPermutation
from trainer.model.packing import pack_ternary, unpack_ternary
from trainer.model.precision import UNQUANTIZED, StageBits
from trainer.model.qdyt import QDyT
from trainer.model.schedule import ScheduleState, schedule_state

FORMAT = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

_GROUP_MEANS = "group_means"

# Names of tensors that only training reads, or that can be computed from the others.
_LEFT_OUT = {
    *COLUMN_NAMES, "start_scale", "start_dead_zone", "ternary_started",
    "start_rho", "observed", "inverse",
}  # fmt: skip

# Types on disk of the mixers' buffers, which in memory are int64 and float32.
_MIXER_TYPES = {"order": torch.int32, "signs": torch.int8}


class SizeReport(NamedTuple):
    """Bytes on disk by kind, and the bytes of the same parameters in float32."""

    ternary_bytes: int
    integer_bytes: int
    scale_bytes: int
    other_bytes: int
    float32_bytes: int

    @property
    def total_bytes(self) -> int:
        """The bytes of all tensors, without the file's header of a few kilobytes."""
        return self.ternary_bytes + self.integer_bytes + self.scale_bytes + self.other_bytes

    def __str__(self) -> str:
        parts = zip(("ternary", "integer", "scales", "other"), self[:4], strict=True)
        listed = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in parts)
        share = self.total_bytes / self.float32_bytes
        return (
            f"{self.total_bytes / 1e6:.2f} MB ({listed}), "
            f"{100 * share:.1f} % of {self.float32_bytes / 1e6:.2f} MB in float32"
        )


class ExportedEncoder(BitNetQDyT):
    """An exported encoder, for evaluation only, with fixed weights and bits."""

    @classmethod
    def from_pretrained(cls, path: str | Path) -> ExportedEncoder:
        """Load a directory that export_encoder wrote, onto the CPU, in evaluation mode.

        Raises:
            BadInput: there is no export, it is damaged, or of another format.
        """
        config, tensors = _read(Path(path))
        try:
            # The initial weights are drawn and then replaced: keep the caller's random state.
            with torch.random.fork_rng(devices=[]):
                model = cls(ModelConfig(**config["model"]))
            _restore(model, config, tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as exc:
            raise BadInput(f"{path} does not hold a whole exported encoder: {exc!r}") from exc
        return model

    def apply_schedule(self, step: int, total_steps: int) -> ScheduleState:
        """Return the schedule's state; the fixed bits do not follow it."""
        return schedule_state(self.config, step, total_steps)

    def train(self, mode: bool = True) -> ExportedEncoder:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute logits at all positions: input_ids (B, S) int64 -> (B, S, V).

        attention_mask (B, S) is 1 or true where a token is not padding, as tokenizers return
        it; None means that there is no padding.
        """
        mask = None if attention_mask is None else attention_mask.bool()
        every = torch.arange(input_ids.numel(), device=input_ids.device)
        flat = self(input_ids, mask, input_ids, every).logits
        return torch.unflatten(flat, 0, input_ids.shape)


def load_exported(path: str | Path) -> ExportedEncoder:
    """Load an export; the same as ExportedEncoder.from_pretrained."""
    return ExportedEncoder.from_pretrained(path)


@torch.no_grad()
def export_encoder(model: BitNetQDyT, path: str | Path) -> SizeReport:
    """Write the encoder with its bits in force and its calibration, if any.

    Call model.apply_schedule with the step first. An existing export in path is replaced.

    Raises:
        OSError: the files cannot be written.
    """
    directory = Path(path)
    make_directory(directory)
    tensors = {name: value.cpu().contiguous() for name, value in _tensors(model)}
    config = {
        "format": FORMAT,
        "architecture": "BitNetQDyT",
        "model": dataclasses.asdict(model.config),
        "bits": {name: module.bits for name, module in _sites(model)},
    }
    text = json.dumps(config, indent=2) + "\n"
    # The configuration is written last: if it is there, the weights are complete.
    write_atomically(directory / WEIGHTS_NAME, save(tensors))
    write_atomically(directory / CONFIG_NAME, text.encode())
    return _measure(tensors, model)


def _sites(model: nn.Module) -> Iterator[tuple[str, Any]]:
    kinds = (QuantizedLinear, ActivationQuantizer, Embedding, LanguageModelHead)
    yield from ((name, m) for name, m in model.named_modules() if isinstance(m, kinds))


def _tables(model: BitNetQDyT) -> Iterator[tuple[str, nn.Parameter, Embedding | LanguageModelHead]]:
    """Yield name, weight and module of the tables of embedding and head."""
    yield "embedding.token", model.embedding.token, model.embedding
    yield "embedding.position", model.embedding.position, model.embedding
    yield "head.weight", model.head.weight, model.head


def _tensors(model: BitNetQDyT) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the export by their names on disk."""
    # Codes and scales of the linear layers.
    coded: set[str] = set()
    for name, linear in linear_layers(model).items():
        if linear.bits is not None:
            codes, scale = linear.codes()
            packed = pack_ternary(codes) if linear.is_ternary else codes.to(torch.int8)
            yield f"{name}.codes", packed
            yield f"{name}.scale", scale
            coded.add(f"{name}.weight")
    # Codes and scales of embedding and head.
    for name, table, module in _tables(model):
        if module.bits is not None:
            codes, step = integer_codes(table, module.bits, module.group)
            yield f"{name}.codes", codes.flatten(-2).to(torch.int8)
            yield f"{name}.scale", step.squeeze(-1)
            coded.add(name)
    # Everything else that is not for training only.
    for name, value in model.state_dict().items():
        last = name.rpartition(".")[2]
        if name not in coded and last not in _LEFT_OUT:
            yield name, value.to(_MIXER_TYPES.get(last, value.dtype))
    for name, module in model.named_modules():
        if isinstance(module, QDyT):  # an export has no step, so alpha includes its ramp
            yield f"{name}.alpha", module.alpha * module.alpha_ramp
    for name, means in group_means(model).items():
        yield f"{name}.{_GROUP_MEANS}", means


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((directory / CONFIG_NAME).read_text())
        tensors = load_file(directory / WEIGHTS_NAME)
    except (OSError, ValueError, SafetensorError) as exc:
        raise BadInput(f"{directory} cannot be read as an exported encoder: {exc}") from exc
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise BadInput(f"{directory} is not an export of format {FORMAT}, which this program reads")
    return config, tensors


@torch.no_grad()
def _restore(model: BitNetQDyT, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Fill a new model with the exported tensors, and fix its bits.

    Raises:
        KeyError, ValueError: a tensor is missing, or has another shape.
    """
    # Embedding and head.
    for name, table, module in _tables(model):
        if f"{name}.codes" in tensors:
            codes = torch.unflatten(tensors[f"{name}.codes"].float(), -1, (-1, module.group))
            _fill(table, codes.mul_(tensors[f"{name}.scale"][..., None]).flatten(-2), name)
            del tensors[f"{name}.codes"], tensors[f"{name}.scale"]
        else:
            _fill(table, tensors.pop(name), name)
    # Linear layers. The weights are filled with quantized values, so only inputs keep bits.
    for name, module in _sites(model):
        if isinstance(module, QuantizedLinear):
            _restore_linear(name, module, tensors)
        is_input = isinstance(module, ActivationQuantizer)
        bits = config["bits"][name]
        module.bits = bits if is_input else None
        module.stage_bits = StageBits(bits, bits, bits) if is_input else UNQUANTIZED
    # Everything else.
    _restore_rest(model, tensors)
    model.requires_grad_(False).eval()


def _restore_linear(name: str, linear: QuantizedLinear, tensors: dict[str, Tensor]) -> None:
    weight = linear.weight
    if f"{name}.codes" in tensors:
        codes, scale = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scale")
        if codes.dtype == torch.uint8:
            codes = unpack_ternary(codes, weight.shape[1])
        _fill(weight, codes.float().mul_(scale), name)
    else:
        _fill(weight, tensors.pop(f"{name}.weight"), name)
    linear.raw_scale = linear.threshold = linear.dead_zone = None


def _restore_rest(model: BitNetQDyT, tensors: dict[str, Tensor]) -> None:
    ending = f".{_GROUP_MEANS}"
    means = {name: tensors.pop(name) for name in list(tensors) if name.endswith(ending)}
    freeze_group_means(model, {n.removesuffix(ending): value for n, value in means.items()})
    own = model.state_dict()
    for name, value in tensors.items():
        _fill(own[name], value, name)
    done = {name for name, _, _ in _tables(model)} | set(tensors)
    for name, module in model.named_modules():
        if isinstance(module, SignedPermutation):
            module.inverse.copy_(module.order.argsort())
        if isinstance(module, QuantizedLinear):
            done.add(f"{name}.weight")
    missing = [n for n in own if n not in done and n.rpartition(".")[2] not in _LEFT_OUT]
    if missing:
        raise KeyError(f"no tensor {missing[0]}")


def _fill(target: Tensor, value: Tensor, name: str) -> None:
    if target.shape != value.shape:  # copy_ alone would broadcast
        raise ValueError(f"{name} has shape {list(value.shape)}, not {list(target.shape)}")
    target.copy_(value)


def _measure(tensors: dict[str, Tensor], model: nn.Module) -> SizeReport:
    def size(name_end: str, *types: torch.dtype) -> int:
        fitting = [t for n, t in tensors.items() if n.endswith(name_end) and t.dtype in types]
        return sum(t.numel() * t.element_size() for t in fitting)

    ternary, integer = size(".codes", torch.uint8), size(".codes", torch.int8)
    scale = size(".scale", torch.float32)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    weights = [p.numel() for n, p in model.named_parameters() if not n.endswith(COLUMN_NAMES)]
    other = total - ternary - integer - scale
    return SizeReport(ternary, integer, scale, other, 4 * sum(weights))
