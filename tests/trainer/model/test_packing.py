"""Two-bit codes: a round trip of any size, and the layout byte by byte."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.model.packing import pack_ternary, unpack_ternary


@given(rows=st.integers(1, 5), columns=st.integers(1, 19), seed=st.integers(0, 2**32))
def test_any_matrix_of_ternary_codes_comes_back_exactly(rows, columns, seed):
    """Also where the columns do not fill the last byte."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)

    packed = pack_ternary(codes.float())

    assert packed.shape == (rows, -(-columns // 4))
    assert torch.equal(unpack_ternary(packed, columns), codes)


def test_the_first_code_is_in_the_lowest_bits():
    """-1 is 0, 0 is 1 and +1 is 2; what is left of a byte is filled with the code 0."""
    codes = torch.tensor([[-1, 0, 1, 1, 1]], dtype=torch.int8)

    packed = pack_ternary(codes)

    assert packed.dtype == torch.uint8
    assert packed.tolist() == [[0b10_10_01_00, 0b01_01_01_10]]


def test_a_three_is_no_code():
    """A flipped bit is found where it makes one."""
    with pytest.raises(ValueError, match="code is 3"):
        unpack_ternary(torch.tensor([[0b11]], dtype=torch.uint8), 4)


def test_rows_of_another_length_are_refused():
    """Both lengths are named."""
    with pytest.raises(ValueError, match="2 bytes do not hold 9"):
        unpack_ternary(torch.zeros(1, 2, dtype=torch.uint8), 9)
