"""Packing of four ternary codes into a byte.

In: codes -1, 0 and +1, any floating or integer type.
Out: bytes, and codes again.
Never: stores the number of columns; unpack_ternary takes it as an argument.

A code is stored as code + 1 in two bits, so that the value 3 does not occur. The first of
the four codes is in bits 0 and 1. A row begins with a new byte, and its last byte is filled
up with codes of 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CODES_PER_BYTE = 4


def pack_ternary(codes: Tensor) -> Tensor:
    """Pack codes. Shapes: codes (rows, columns) -> (rows, ceil(columns / 4)) uint8."""
    shifted = codes.to(torch.int16) + 1
    padded = F.pad(shifted, (0, -shifted.shape[1] % CODES_PER_BYTE), value=1)
    fours = torch.unflatten(padded, 1, (-1, CODES_PER_BYTE))
    return torch.bitwise_left_shift(fours, _shifts(codes.device)).sum(-1).to(torch.uint8)


def unpack_ternary(packed: Tensor, columns: int) -> Tensor:
    """Unpack codes. Shapes: packed (rows, ceil(columns / 4)) uint8 -> (rows, columns) int8.

    Raises:
        ValueError: the rows have another length, or a code is 3.
    """
    if packed.shape[1] != -(-columns // CODES_PER_BYTE):
        raise ValueError(f"rows of {packed.shape[1]} bytes do not hold {columns} ternary codes")
    shifted = (packed[..., None].to(torch.int16) >> _shifts(packed.device)) & 3
    if (shifted == 3).any():
        raise ValueError("a packed code is 3, which stands for no ternary value")
    return (shifted.flatten(1)[:, :columns] - 1).to(torch.int8)


def _shifts(device: torch.device) -> Tensor:
    return torch.tensor([0, 2, 4, 6], dtype=torch.int16, device=device)
