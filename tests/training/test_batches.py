"""Mini-batches."""

from itertools import chain, islice

import pytest
import torch

from ocp import Batches


def epochs(batches, samples, count):
    """The sample numbers of some epochs in the order in which they are drawn."""
    drawn = [batch.tolist() for batch in islice(batches.stream(samples), count * batches.per_epoch(samples))]
    per = batches.per_epoch(samples)
    return [list(chain(*drawn[e * per : (e + 1) * per])) for e in range(count)]


@pytest.mark.parametrize(("size", "samples"), [(1, 7), (3, 7), (7, 7), (4, 12), (50, 7)])
def test_every_epoch_has_every_sample_once(size, samples):
    assert [sorted(epoch) for epoch in epochs(Batches(size), samples, 3)] == [list(range(samples))] * 3


@pytest.mark.parametrize(("size", "samples", "sizes"), [(3, 7, [3, 3, 1]), (4, 8, [4, 4]), (50, 7, [7])])
def test_batches_have_their_size_but_for_the_last_of_an_epoch(size, samples, sizes):
    batches = Batches(size)
    assert batches.per_epoch(samples) == len(sizes)
    assert [len(batch) for batch in islice(batches.stream(samples), 2 * len(sizes))] == 2 * sizes


def test_every_epoch_is_shuffled_anew():
    one, two, three = epochs(Batches(5), 40, 3)
    assert one != two != three != one
    assert one != sorted(one)


def test_the_order_is_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    one = epochs(Batches(5, seed=3), 40, 2)
    torch.manual_seed(2)
    assert epochs(Batches(5, seed=3), 40, 2) == one
    assert epochs(Batches(5, seed=4), 40, 2) != one


def test_drawing_leaves_the_global_random_numbers_alone():
    before = torch.random.get_rng_state()
    epochs(Batches(5), 40, 2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_two_streams_do_not_disturb_each_other():
    batches = Batches(5)
    one, two = batches.stream(40), batches.stream(40)
    mixed = [(next(one).tolist(), next(two).tolist()) for _ in range(9)]
    assert [a for a, _ in mixed] == [b for _, b in mixed]


@pytest.mark.parametrize("size", [0, -3, 2.5, "8"])
def test_a_size_that_is_no_positive_integer_is_refused(size):
    with pytest.raises(ValueError, match="size: expected an integer >= 1"):
        Batches(size)
