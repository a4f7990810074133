"""CIFAR and IDX files: the published format, on small files, from disk and by URL."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest

from ensjax.data import cifar10, cifar100, extract_files, fetch, mnist_idx, read_idx

RNG = np.random.default_rng(0)


def _cifar_bytes(num_records, num_label_bytes, num_classes):
    """Records written out one value at a time, and the images and labels in them."""
    images = RNG.integers(0, 256, (num_records, 32, 32, 3), np.uint8)
    labels = RNG.integers(0, num_classes, num_records, np.uint8)
    content = bytearray()
    for image, label in zip(images, labels, strict=True):
        content += bytes([19] * (num_label_bytes - 1) + [label])
        for channel in range(3):
            content += image[:, :, channel].tobytes()  # row-major, as published
    return bytes(content), images, labels


@pytest.fixture(scope="module")
def cifar10_files():
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return {name: _cifar_bytes(3, 1, 10) for name in names}


@pytest.fixture(scope="module")
def cifar10_tar(tmp_path_factory, cifar10_files):
    path = tmp_path_factory.mktemp("server") / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, (content, _, _) in cifar10_files.items():
            _add(tar, f"cifar-10-batches-bin/{name}", content)
        _add(tar, "cifar-10-batches-bin/readme.html", b"not asked for")
        _add(tar, "../escaped.bin", b"never written")
    return path


def _add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def _write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (content, _, _) in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-bin"])
def test_cifar10_records_become_channel_last_images(tmp_path, cifar10_files, subfolder):
    _write(tmp_path / subfolder, cifar10_files)
    dataset = cifar10(tmp_path, num_train=15, num_test=3)
    train = [cifar10_files[f"data_batch_{i}.bin"] for i in range(1, 6)]
    images = np.concatenate([images for _, images, _ in train])
    np.testing.assert_array_equal(np.round(dataset.x_train * 255), images)
    labels = np.concatenate([labels for _, _, labels in train])
    np.testing.assert_array_equal(dataset.y_train, labels)
    np.testing.assert_array_equal(dataset.y_test, cifar10_files["test_batch.bin"][2])
    assert dataset.x_test.shape == (3, 32, 32, 3) and dataset.x_test.dtype == np.float32
    np.testing.assert_array_equal(dataset.train_ids, np.arange(15))
    np.testing.assert_array_equal(dataset.test_ids, [15, 16, 17])
    assert dataset.class_names[3] == "cat" and dataset.num_classes == 10


def test_standardised_images_have_the_training_sets_mean_and_deviation(
    tmp_path, cifar10_files
):
    _write(tmp_path, cifar10_files)
    plain = cifar10(tmp_path, num_train=15, num_test=3)
    scaled = cifar10(tmp_path, num_train=15, num_test=3, standardise=True)
    train = plain.x_train.astype(np.float64)
    mean, sd = train.mean(axis=(0, 1, 2)), train.std(axis=(0, 1, 2))
    # float32 values up to about 2, standard deviation 0.3: 1e-5 is 20 roundings.
    np.testing.assert_allclose(scaled.x_train, (train - mean) / sd, atol=1e-5)
    np.testing.assert_allclose(scaled.x_test, (plain.x_test - mean) / sd, atol=1e-5)


def test_cifar100_takes_the_fine_label(tmp_path):
    train, test = _cifar_bytes(4, 2, 100), _cifar_bytes(2, 2, 100)
    _write(tmp_path / "cifar-100-binary", {"train.bin": train, "test.bin": test})
    names = [f"name_{i}" for i in range(100)]
    names_file = tmp_path / "cifar-100-binary" / "fine_label_names.txt"
    names_file.write_text("\n".join(names) + "\n\n")
    dataset = cifar100(tmp_path, num_train=4, num_test=2)
    np.testing.assert_array_equal(dataset.y_train, train[2])
    np.testing.assert_array_equal(np.round(dataset.x_test * 255), test[1])
    assert dataset.class_names == tuple(names)
    names_file.write_text("only\ntwo\n")
    with pytest.raises(ValueError, match="must hold 100 names; got 2"):
        cifar100(tmp_path, num_train=4, num_test=2)


def test_a_cut_file_is_refused(tmp_path, cifar10_files):
    _write(tmp_path, cifar10_files)
    path = tmp_path / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_4.bin must have 9219.*has 9218"):
        cifar10(tmp_path, num_train=15, num_test=3)


def test_missing_files_say_how_to_get_them(tmp_path):
    for load in (cifar10, cifar100, mnist_idx):
        with pytest.raises(FileNotFoundError, match="download=True"):
            load(tmp_path)


def test_download_checks_unpacks_and_is_not_repeated(
    tmp_path, cifar10_tar, cifar10_files
):
    settings = dict(
        download=True,
        url=cifar10_tar.as_uri(),
        md5=_md5(cifar10_tar),
        num_train=15,
        num_test=3,
    )
    root = tmp_path / "root"
    dataset = cifar10(root, **settings)
    np.testing.assert_array_equal(dataset.y_test, cifar10_files["test_batch.bin"][2])
    written = {path.name for path in (root / "cifar-10-batches-bin").iterdir()}
    assert written == set(cifar10_files)
    assert {path.name for path in tmp_path.rglob("*escaped*")} == set()
    settings["url"] = "file:///nowhere/cifar-10-binary.tar.gz"
    again = cifar10(root, **settings)
    np.testing.assert_array_equal(again.x_train, dataset.x_train)


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path, cifar10_tar):
    with pytest.raises(ValueError, match="expected 00; nothing was kept"):
        cifar10(tmp_path, download=True, url=cifar10_tar.as_uri(), md5="00")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_fetched_again(tmp_path, cifar10_tar):
    name = cifar10_tar.name
    (tmp_path / name).write_bytes(b"half of it")
    path = fetch(cifar10_tar.as_uri(), tmp_path, md5=_md5(cifar10_tar))
    assert path == tmp_path / name and path.read_bytes() == cifar10_tar.read_bytes()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_download_that_breaks_off_leaves_nothing_behind(tmp_path, monkeypatch):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise ConnectionResetError("peer went away")
            return super().read(4)

    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: Broken(b"12345678"))
    with pytest.raises(ConnectionResetError):
        fetch("https://example.org/x.bin", tmp_path, md5="00")
    assert list(tmp_path.iterdir()) == []


def test_links_and_missing_members_are_never_unpacked(tmp_path):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        link = tarfile.TarInfo("d/test.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"regular files \['d/test.bin'\]"):
        extract_files(archive, ("d/test.bin",), out)
    assert list(out.iterdir()) == []


def test_a_cut_archive_leaves_no_partial_file(tmp_path, cifar10_tar):
    archive = tmp_path / "cut.tar.gz"
    content = cifar10_tar.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    members = tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))
    with pytest.raises(ValueError, match="not a whole tar archive"):
        extract_files(archive, members, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert path.stat().st_size == 3 * 3073  # whole, or not there


IDX_NAMES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def _idx(array):
    header = (
        b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    )
    return header + array.tobytes()


@pytest.fixture
def idx_arrays():
    images = (
        RNG.integers(0, 256, (5, 4, 3), np.uint8),
        RNG.integers(0, 256, (2, 4, 3), np.uint8),
    )
    labels = np.array([0, 2, 1, 2, 0], np.uint8), np.array([1, 2], np.uint8)
    return images[0], labels[0], images[1], labels[1]


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files_are_read_compressed_or_not(tmp_path, idx_arrays, compressed):
    for name, array in zip(IDX_NAMES, idx_arrays, strict=True):
        if compressed:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(_idx(array)))
        else:
            (tmp_path / name).write_bytes(_idx(array))
    dataset = mnist_idx(tmp_path)
    assert dataset.x_train.shape == (5, 4, 3, 1) and dataset.num_classes == 3
    np.testing.assert_array_equal(np.round(dataset.x_test[..., 0] * 255), idx_arrays[2])
    np.testing.assert_array_equal(dataset.y_train, idx_arrays[1])


def test_idx_files_are_downloaded_with_their_checksums(tmp_path, idx_arrays):
    server, md5 = tmp_path / "server", {}
    server.mkdir()
    for name, array in zip(IDX_NAMES, idx_arrays, strict=True):
        path = server / f"{name}.gz"
        path.write_bytes(gzip.compress(_idx(array)))
        md5[path.name] = _md5(path)
    root = tmp_path / "root"
    dataset = mnist_idx(root, download=True, url=server.as_uri(), md5=md5)
    np.testing.assert_array_equal(dataset.y_test, idx_arrays[3])
    assert {path.name for path in root.iterdir()} == set(md5)


def test_damaged_idx_files_are_refused(tmp_path, idx_arrays):
    content = _idx(idx_arrays[0])
    for damaged, message in (
        (content[:-1], r"shape \(5, 4, 3\), which takes 76 bytes; it has 75"),
        (b"\0\0\x0d" + content[3:], "must begin with an IDX header"),
        (content[:7], "must begin with an IDX header"),
        (b"", "got nothing"),
    ):
        path = tmp_path / "images"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            read_idx(path)
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_idx(path)
