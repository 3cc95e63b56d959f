"""Values as bytes: nothing is lost, nothing is executed, and nothing but what was written is read."""

import json
import math
import pickle
import random
import struct
from contextlib import suppress

import pytest
import torch

from ocp import Status
from ocp.multilevel.refinement import Progress
from ocp.run.checkpoints import KNOWN
from ocp.run.codec import VERSION, _checksum, decode, encode, tensors

VALUES = {
    "none": None,
    "numbers": [True, False, 0, -3, 10**30, 0.1, 1e-320, -0.0],
    "texts": ["", "a\nb", "ü ∇"],
    "containers": ({"a": (1, [2, (3,)])}, {1: "one", (2, 3): None}, [], (), {}),
    "records": [Progress(3, (1.0,), looked=(1.0, 2.0)), Status.RUNNING],
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_a_value_is_read_as_it_was_written(value):
    again = decode(encode(value, KNOWN), KNOWN)
    assert again == value
    assert repr(again) == repr(value)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite_are_read_as_they_were_written(number):
    assert struct.pack("d", decode(encode(number))) == struct.pack("d", number)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 0, 3)])
def test_a_tensor_is_read_to_the_last_bit(dtype, shape):
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    again = decode(encode({"t": tensor}))["t"]
    assert again.dtype == dtype
    assert again.shape == tensor.shape
    assert torch.equal(again, tensor)


def test_views_are_read_as_tensors_of_their_own():
    whole = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(decode(encode(whole[:, 1])), whole[:, 1])


def test_a_tensor_that_occurs_twice_is_one_again():
    one, other = torch.ones(3), torch.ones(3)
    first, (second, third) = decode(encode((one, [one, other])))
    assert first is second
    assert first is not third


def test_tensors_are_found_wherever_they_stand():
    a, b, c = torch.zeros(3).unbind()
    assert [id(t) for t in tensors({"x": [a, (b,)], "y": Progress(values=(c,)), "z": 1})] == [id(a), id(b), id(c)]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, Progress, print])
def test_what_is_unknown_is_refused_with_its_place(value):
    with pytest.raises(TypeError, match=r"value\['a'\]\[1\]: expected None, numbers"):
        encode({"a": [0, value]}, KNOWN)


def test_what_is_known_to_the_writer_alone_is_refused_by_the_reader():
    with pytest.raises(ValueError, match="expected what was saved"):
        decode(encode(Progress(), KNOWN))


class Bomb:
    """Executed where pickles are read."""

    def __reduce__(self):
        return (pytest.fail, ("executed",))


@pytest.mark.parametrize("data", [b"", b"\n", b"{}", b"[" * 10**5, pickle.dumps(Bomb()), b'{"format": "ocp"}\n'])
def test_other_files_are_refused(data):
    with pytest.raises(ValueError, match="expected"):
        decode(data)


def signed(tree, table=(), numbers=b""):
    """A file with a right checksum, whatever is in it."""
    body = json.dumps({"tree": tree, "tensors": list(table)}).encode() + b"\n" + numbers
    head = {"format": "ocp", "version": VERSION, "checksum": _checksum(VERSION, body)}
    return json.dumps(head).encode() + b"\n" + body


def nested(depth):
    tree = 0
    for _ in range(depth):
        tree = [tree]
    return tree


FORGED = {
    "unknown kind": signed({"code": "print()"}),
    "unknown record": signed({"record": ["os.system", [["command", "true"]]]}),
    "unknown field": signed({"record": ["Progress", [["a", 1]]]}),
    "no such tensor": signed({"tensor": 3}),
    "two kinds": signed({"float": "1", "tuple": []}),
    "not a number": signed({"float": "one"}),
    "list as a key": signed({"dict": [[[1], 2]]}),
    "too few numbers": signed({"tensor": 0}, [{"dtype": "float64", "shape": [10**12], "cpu": True}]),
    "negative shape": signed({"tensor": 0}, [{"dtype": "float64", "shape": [-1], "cpu": True}], bytes(80)),
    "unknown type of numbers": signed({"tensor": 0}, [{"dtype": "object", "shape": [1], "cpu": True}], bytes(8)),
    "private name": signed({"enum": ["Status", "__class__"]}),
    "deep": signed(nested(900)),
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED.keys())
def test_forged_files_are_refused_or_harmless(data):
    with suppress(ValueError):
        assert decode(data, KNOWN) is not None


@pytest.mark.parametrize("seed", range(200))
def test_a_file_that_was_changed_anywhere_is_refused(seed):
    generator = random.Random(seed)
    data = bytearray(encode({"state": (torch.arange(9.0), Progress()), "random": torch.get_rng_state()}, KNOWN))
    kind, at = generator.randrange(3), generator.randrange(len(data))
    if kind == 0:
        data[at] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del data[at:]
    else:
        data[at:at] = bytes([generator.randrange(256)])
    with pytest.raises(ValueError, match="expected"):
        decode(bytes(data), KNOWN)
