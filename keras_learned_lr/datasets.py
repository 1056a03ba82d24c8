"""Real images that are on the machine already: nothing is downloaded."""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Where Debian's package `dataset-fashion-mnist` and Keras's own cache put the files.
FASHION_MNIST_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path.home() / ".keras" / "datasets" / "fashion-mnist",
)


class Images(NamedTuple):
    """Labelled images in three parts.

    Attributes:
        name: What they are, for tables and pictures.
        train: `(x, y)`; x float32 `[n, height, width, 1]` in [0, 1], y int64 `[n]`.
        validation: What controllers look at.
        test: What results are reported on.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.train[1].max()) + 1


def digits(labels: tuple[int, ...] = tuple(range(10)), seed: int = 0) -> Images:
    """Returns scikit-learn's 8×8 handwritten digits, split 60:20:20.

    Args:
        labels: The digits to take; they are numbered anew from 0.
        seed: Seeds the split.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    x, y = digit_images(labels)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    first, second = int(0.6 * len(x)), int(0.8 * len(x))
    name = f"digits {min(labels)}-{max(labels)}"
    return Images(
        name,
        (x[:first], y[:first]),
        (x[first:second], y[first:second]),
        (x[second:], y[second:]),
    )


def digit_images(labels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns all of scikit-learn's images of some digits.

    Args:
        labels: The digits to take; they are numbered anew from 0.

    Returns:
        float32 `[n, 8, 8, 1]` in [0, 1], and int64 `[n]`.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The digits come with scikit-learn. Install it with "
            '`pip install "keras_learned_lr[demo]"`.'
        ) from error
    bunch = load_digits()
    chosen = np.isin(bunch.target, labels)
    x = (bunch.images[chosen] / 16.0).astype("float32")[..., np.newaxis]
    return x, np.searchsorted(np.sort(labels), bunch.target[chosen]).astype("int64")


def fashion_mnist(train: int = 10_000, validation: int = 2_000) -> Images | None:
    """Returns Fashion-MNIST, or None where it is not installed.

    Args:
        train: Examples to train on, of the 60 000.
        validation: Examples for validation, from behind these.
    """
    for folder in FASHION_MNIST_FOLDERS:
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            x, y = _idx(folder, "train")
            both = train + validation
            return Images(
                "Fashion-MNIST",
                (x[:train], y[:train]),
                (x[train:both], y[train:both]),
                _idx(folder, "t10k"),
            )
    return None


def _idx(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the IDX files of Fashion-MNIST: a header, then bytes."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    y = np.frombuffer(labels, np.uint8, offset=8)
    return (x / 255.0).astype("float32"), y.astype("int64")
