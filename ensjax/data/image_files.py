"""CIFAR-10, CIFAR-100 and MNIST from the files that their authors publish.

Sources: the "binary version" section of https://www.cs.toronto.edu/~kriz/cifar.html;
the IDX format as described with the MNIST database, http://yann.lecun.com/exdb/mnist.
"""

import gzip
import math
import os
import pathlib

import numpy as np

from ensjax.data.downloads import extract_files, fetch
from ensjax.data.provenance import Dataset

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR100_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
CIFAR100_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist"
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
_CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_PIXELS = 3 * 32 * 32


def cifar10(
    root: str | os.PathLike,
    *,
    standardise: bool = False,
    download: bool = False,
    url: str = CIFAR10_URL,
    md5: str = CIFAR10_MD5,
    num_train: int = 50_000,
    num_test: int = 10_000,
) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes, 32x32 colour.

    Args:
        root: folder that holds `cifar-10-batches-bin/`, or its files themselves.
        standardise: subtract the training mean and divide by the training standard
            deviation of each channel; otherwise pixels lie in [0, 1].
        download: fetch and unpack `url` into `root` if the files are not there
            (170 MB).
        url, md5: where from, and the published checksum.
        num_train, num_test: records expected in the files (five training files of equal
            length), so that a cut file is noticed.

    Returns:
        Images `[example, 32, 32, 3]`, float32. Row numbers count the training files in
        order, then the test file.

    Raises:
        FileNotFoundError: if the files are not there and `download` is off.
        ValueError: if a file's size is not that of its records, or a checksum is wrong.
    """
    folder_name = "cifar-10-batches-bin"
    train_files = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    files = (*train_files, "test_batch.bin")
    folder = _cifar_folder(root, folder_name, files, download, url, md5)
    per_file = [(name, num_train // 5) for name in train_files]
    train = [_cifar_records(folder / name, 1, count) for name, count in per_file]
    test = _cifar_records(folder / "test_batch.bin", 1, num_test)
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return _image_dataset(
        (images, labels, *test), _CIFAR10_CLASSES, "cifar10", url, standardise
    )


def cifar100(
    root: str | os.PathLike,
    *,
    standardise: bool = False,
    download: bool = False,
    url: str = CIFAR100_URL,
    md5: str = CIFAR100_MD5,
    num_train: int = 50_000,
    num_test: int = 10_000,
) -> Dataset:
    """CIFAR-100 with its 100 fine labels; arguments and errors are those of `cifar10`.

    Class names are read from `fine_label_names.txt` beside the records.

    Raises:
        FileNotFoundError, ValueError: as `cifar10`, or if there are not 100 names.
    """
    files = ("train.bin", "test.bin", "fine_label_names.txt")
    folder = _cifar_folder(root, "cifar-100-binary", files, download, url, md5)
    arrays = (
        *_cifar_records(folder / "train.bin", 2, num_train),
        *_cifar_records(folder / "test.bin", 2, num_test),
    )
    names = tuple((folder / "fine_label_names.txt").read_text().split())
    if len(names) != 100:
        raise ValueError(
            f"{folder / 'fine_label_names.txt'} must hold 100 names; got {len(names)}."
        )
    return _image_dataset(arrays, names, "cifar100", url, standardise)


def mnist_idx(
    root: str | os.PathLike,
    *,
    standardise: bool = False,
    download: bool = False,
    url: str = MNIST_URL,
    md5: dict[str, str] | None = None,
) -> Dataset:
    """MNIST, or any data set in its four IDX files (Fashion-MNIST, KMNIST, ...).

    Args:
        root: folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the
            two `t10k-` files, each with or without `.gz`.
        standardise: as in `cifar10`.
        download: fetch the four `.gz` files from the folder `url` if one is missing.
        url, md5: folder where from; checksum by file name (default: MNIST's).

    Returns:
        Images `[example, height, width, 1]`, float32 in [0, 1]; the number of classes
        is that of the labels that occur. Row numbers: training files, then test.

    Raises:
        FileNotFoundError: if a file is not there and `download` is off.
        ValueError: if a file is damaged, or images and labels differ in number.
    """
    root = pathlib.Path(root)
    names = tuple(name.removesuffix(".gz") for name in MNIST_MD5)
    if download and any(_idx_path(root, name) is None for name in names):
        for file_name, checksum in (md5 or MNIST_MD5).items():
            fetch(f"{url}/{file_name}", root, md5=checksum)
    arrays = []
    for name in names:
        path = _idx_path(root, name)
        if path is None:
            raise FileNotFoundError(
                f"{root / name} (or .gz) does not exist; pass download=True, or put the"
                " four IDX files there."
            )
        array = read_idx(path)
        arrays.append(array[..., None] if array.ndim == 3 else array)
    num_classes = int(max(arrays[1].max(), arrays[3].max())) + 1
    class_names = tuple(str(label) for label in range(num_classes))
    return _image_dataset(
        tuple(arrays), class_names, "mnist_idx", f"IDX files, {url}", standardise
    )


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """The array of unsigned bytes in one IDX file, compressed (`.gz`) or not.

    Raises:
        ValueError: if it is no IDX file of unsigned bytes, or its length is not what
            its header says.
    """
    path = pathlib.Path(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError) as error:
            raise ValueError(
                f"{path} is not a whole gzip file ({error}); download it again."
            ) from error
    # Header: two zero bytes, the type (8: unsigned byte), the number of axes, then each
    # axis as a big-endian 32-bit integer.
    if content[:3] != b"\x00\x00\x08" or len(content) < _idx_header_bytes(content):
        raise ValueError(
            f"{path} must begin with an IDX header (bytes 00 00 08, the number of axes,"
            f" their lengths); got {content[:16].hex(' ') or 'nothing'}."
        )
    header_bytes = _idx_header_bytes(content)
    shape = tuple(np.frombuffer(content[4:header_bytes], ">u4").tolist())
    expected_bytes = header_bytes + math.prod(shape)
    if len(content) != expected_bytes:
        raise ValueError(
            f"{path} says shape {shape}, which takes {expected_bytes} bytes; it has"
            f" {len(content)}. Download it again."
        )
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def _idx_header_bytes(content):
    return 4 + 4 * content[3] if len(content) > 3 else 4


def _cifar_folder(root, folder_name, files, download, url, md5):
    root = pathlib.Path(root)
    for folder in (root / folder_name, root):
        if all((folder / name).is_file() for name in files):
            return folder
    if not download:
        raise FileNotFoundError(
            f"{root / folder_name} must hold {', '.join(files)}; pass download=True, or"
            f" unpack {url} there."
        )
    archive = fetch(url, root, md5=md5)
    members = tuple(f"{folder_name}/{name}" for name in files)
    extract_files(archive, members, root / folder_name)
    return root / folder_name


def _cifar_records(path, num_label_bytes, num_records):
    record_bytes = num_label_bytes + _PIXELS
    expected_bytes = num_records * record_bytes
    if path.stat().st_size != expected_bytes:
        raise ValueError(
            f"{path} must have {expected_bytes} bytes ({num_records} records of"
            f" {record_bytes}); it has {path.stat().st_size}. Download it again."
        )
    records = np.fromfile(path, np.uint8).reshape(num_records, record_bytes)
    images = records[:, num_label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, records[:, num_label_bytes - 1]  # the fine label comes last


def _idx_path(root, name):
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _image_dataset(arrays, class_names, name, source, standardise):
    train_images, train_labels, test_images, test_labels = arrays
    num_train = len(train_images)
    mean, sd = _channel_mean_sd(train_images) if standardise else (None, None)
    return Dataset(
        x_train=_scaled(train_images, mean, sd),
        y_train=train_labels.astype(np.int32),
        x_test=_scaled(test_images, mean, sd),
        y_test=test_labels.astype(np.int32),
        num_classes=len(class_names),
        class_names=class_names,
        name=name,
        source=source,
        train_ids=np.arange(num_train),
        test_ids=num_train + np.arange(len(test_images)),
    )


def _scaled(images, mean, sd):
    # In place: CIFAR as float32 takes 600 MB, and one copy of it is enough.
    scaled = images.astype(np.float32)
    scaled /= 255.0
    if mean is not None:
        scaled -= mean
        scaled /= sd
    return scaled


def _channel_mean_sd(images):
    """Exact mean and standard deviation of each channel, of pixels in [0, 1].

    From counts of the 256 values: no float64 copy of the images, no rounding.
    """
    values = np.arange(256) / 255.0
    means, sds = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = np.average(values, weights=counts)
        sd = math.sqrt(np.average((values - mean) ** 2, weights=counts))
        if sd == 0.0:
            raise ValueError(
                f"channel {channel} of the training images is constant, so it cannot be"
                " standardised; pass standardise=False."
            )
        means.append(mean)
        sds.append(sd)
    return np.asarray(means, np.float32), np.asarray(sds, np.float32)
