"""Memory of large tensors: used again when nobody holds them, and not before."""

import pytest
import torch

from ocp.adjoint.pages import RECYCLED_BYTES, Pages

SMALL = torch.empty(8)


@pytest.fixture
def like():
    return torch.empty(RECYCLED_BYTES // 8, 2)


@pytest.fixture
def pages():
    return Pages()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_large_tensor_has_shape_and_type_of_the_other_one_and_can_be_written_to(pages, like, dtype):
    found = pages.empty_like(like.to(dtype)).fill_(1.5)
    assert (found.shape, found.dtype, float(found[-1, -1])) == (like.shape, dtype, 1.5)


def test_what_nobody_holds_is_used_again(pages, like):
    address = pages.empty_like(like).data_ptr()
    assert pages.empty_like(like).data_ptr() == address


@pytest.mark.parametrize("part", [lambda x: x, lambda x: x[3:5], lambda x: x.view(-1), lambda x: x.numpy()])
def test_what_somebody_holds_a_part_of_is_left_alone(pages, like, part):
    held = part(pages.empty_like(like).fill_(2.0))
    pages.empty_like(like).fill_(3.0)
    assert float(held.max()) == 2.0


def test_no_more_memory_is_kept_than_is_used(pages, like):
    many = [pages.empty_like(like) for _ in range(3)]
    del many
    pages.empty_like(like)
    assert len(pages._free) == 1


def test_a_tensor_outlives_the_pages_it_is_from(like):
    assert float(Pages().empty_like(like).fill_(4.0).sum()) == 4.0 * like.numel()


def test_small_tensors_are_left_to_the_allocator(pages):
    pages.empty_like(SMALL)
    assert pages._free == []
