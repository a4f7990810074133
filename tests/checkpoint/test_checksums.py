"""Checksums are those of the formula, on any mesh, and see what a plain sum misses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.checkpoint import checksums
from ensjax.checkpoint.checksums import row_checksums
from ensjax.mesh import make_mesh, place


def by_hand(row):
    """The formula, a word at a time in Python's integers."""

    def mix(x):
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    size = row.dtype.itemsize
    unsigned = {1: np.uint8, 2: np.uint16}.get(size, np.uint32)
    words = np.ascontiguousarray(row).reshape(-1).view(unsigned).tolist()
    return (
        sum(mix(word ^ 0x9E3779B9 * i % 2**32) for i, word in enumerate(words)) % 2**32
    )


def table():
    rng = np.random.default_rng(0)
    half = jnp.asarray(rng.normal(size=(8, 6)), jnp.bfloat16)
    return {
        "float": rng.normal(size=(8, 4, 3)).astype(np.float32),
        "double": rng.normal(size=(8, 5)),
        "half": np.asarray(half),
        "flag": rng.random((8, 7)) < 0.5,
        "small": rng.integers(-9, 9, (8, 3)).astype(np.int8),
        "count": np.arange(8, dtype=np.int32),
        "key": np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 8))),
        "complex": (rng.normal(size=(8, 2)) + 1j).astype(np.complex64),
        "empty": np.zeros((8, 0), np.float32),
    }


def test_every_dtype_has_the_checksum_of_the_formula():
    for name, sums in row_checksums(table()).items():
        assert sums.dtype == np.uint32 and sums.shape == (8,)
        expected = [by_hand(row) for row in np.asarray(table()[name])]
        np.testing.assert_array_equal(sums, expected, err_msg=name)


@pytest.mark.parametrize("member, data", [(1, 1), (8, 1), (2, 4)])
def test_the_checksum_is_the_same_on_every_mesh(member, data):
    mesh = make_mesh(member=member, data=data)
    arrays = {name: x for name, x in table().items() if name != "double"}
    placed = place(arrays, mesh, jax.P("member"))
    placed["float"] = place(arrays["float"], mesh, jax.P("member", "data"))
    for name, sums in row_checksums(placed).items():
        np.testing.assert_array_equal(sums, row_checksums(arrays)[name], err_msg=name)


def test_nothing_is_gathered():
    mesh = make_mesh(member=2, data=4)
    leaf = jax.ShapeDtypeStruct(
        (4, 8, 6),
        jnp.float32,
        sharding=jax.NamedSharding(mesh, jax.P("member", "data")),
    )
    text = checksums._sums.lower({"x": leaf}).compile().as_text()
    found = set(re.findall(r"(all-\w+|collective-\w+|reduce-scatter)\(", text))
    assert found == {"all-reduce"}


def test_64_bits_on_devices_have_the_checksum_of_those_on_the_host():
    host = table()["double"]
    with jax.enable_x64(True):
        sums = row_checksums({"x": jnp.asarray(host)})["x"]
    np.testing.assert_array_equal(sums, row_checksums({"x": host})["x"])


def test_small_changes_are_seen():
    row = np.random.default_rng(1).normal(size=64).astype(np.float32)
    bits = row.view(np.uint32)
    changed = [bits]
    for word in range(64):  # one bit anywhere
        for bit in range(32):
            other = bits.copy()
            other[word] ^= np.uint32(1 << bit)
            changed.append(other)
    signs, swapped = -row, row.copy()  # what a weighted sum may miss
    signs[2:] = row[2:]
    swapped[[3, 9]] = row[[9, 3]]
    changed += [signs.view(np.uint32), swapped.view(np.uint32), np.roll(bits, 1)]
    sums = row_checksums({"x": np.stack(changed)})["x"]
    assert (sums[1:] != sums[0]).all()


def test_rows_are_told_apart():
    x = np.random.default_rng(2).normal(size=(5, 9)).astype(np.float32)
    sums = row_checksums({"x": x})["x"]
    assert len(set(sums.tolist())) == 5
    np.testing.assert_array_equal(row_checksums({"x": x[::-1]})["x"], sums[::-1])
    assert row_checksums({}) == {}
