"""Snapshots as bytes: nothing is lost, nothing is executed, and only what was written is read."""

import io
import math
import pickle
import random
import struct
import zipfile

import pytest
import torch

from ocp.multilevel.refinement import Progress
from ocp.optimize.method import Visit
from ocp.run.snapshots import VERSION, decode, encode, header

VALUES = {
    "none": None,
    "numbers": [True, False, 0, -3, 10**30, 0.1, 1e-320, -0.0],
    "texts": ["", "a\nb", "ü ∇"],
    "containers": ({"a": (1, [2, (3,)])}, {1: "one", (2, 3): None}, [], (), {}),
    "records": [Progress(3, (1.0,), looked=(1.0, 2.0)), Visit(4, 2, 0.0, 1.0, 0.5, 1.0, 0.5, 1.0)],
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_a_value_is_read_as_it_was_written(value):
    again = decode(encode(value))
    assert again == value
    assert repr(again) == repr(value)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite_are_read_as_they_were_written(number):
    assert struct.pack("d", decode(encode(number))) == struct.pack("d", number)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_a_tensor_is_read_to_the_last_bit(dtype, shape):
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    again = decode(encode({"t": tensor}))["t"]
    assert again.dtype == dtype
    assert again.shape == tensor.shape
    assert torch.equal(again, tensor)


def test_a_tensor_that_occurs_twice_is_one_again():
    one, other = torch.ones(3), torch.ones(3)
    first, (second, third) = decode(encode((one, [one, other])))
    assert first is second
    assert first is not third


@pytest.mark.parametrize("value", [object(), lambda: 0, pytest.raises, torch.nn.Linear(1, 1)])
def test_what_could_not_be_read_again_is_refused_when_it_is_written(value):
    with pytest.raises(TypeError, match="checkpoint: expected a method that remembers tensors, numbers, strings"):
        encode({"a": [0, value]})


class Bomb:
    """Executed where pickles are read."""

    def __reduce__(self):
        return (pytest.fail, ("executed",))


@pytest.mark.parametrize("data", [b"", b"\n", b"{}", b"[" * 10**5, pickle.dumps(Bomb()), b"ocp 3\n"])
def test_other_files_are_refused(data):
    with pytest.raises(ValueError, match="expected"):
        decode(data)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in files.items():
            file.writestr(f"archive/{name}", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "body",
    [saved({"state": Bomb()}), pickle.dumps(Bomb()), archive(data=b""), archive(nothing=b"1"), b"", b"numbers"],
    ids=["saved", "pickle", "no pickle", "empty archive", "empty", "text"],
)
def test_forged_files_are_refused_and_execute_nothing(body):
    with pytest.raises(ValueError, match="expected what was saved"):
        decode(header(body) + body)


@pytest.mark.parametrize(("version", "age"), [(VERSION + 1, "a newer"), (VERSION - 1, "an older")])
def test_other_versions_are_refused_by_name(version, age):
    data = encode(1).replace(b"ocp %d " % VERSION, b"ocp %d " % version)
    with pytest.raises(ValueError, match=f"expected version {VERSION}, got version {version}, written by {age} ocp"):
        decode(data)


@pytest.mark.parametrize("seed", range(60))
def test_a_file_that_was_changed_anywhere_is_refused(seed):
    generator = random.Random(seed)
    data = bytearray(encode({"state": (torch.arange(9.0), Progress()), "random": torch.get_rng_state()}))
    kind, at = generator.randrange(3), generator.randrange(len(data))
    if kind == 0:
        data[at] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del data[at:]
    else:
        data[at:at] = bytes([generator.randrange(256)])
    with pytest.raises(ValueError, match="expected"):
        decode(bytes(data))
