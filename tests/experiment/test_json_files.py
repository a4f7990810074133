"""JSON files are valid, and whole at any moment."""

import json
import math
import resource
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from ensjax.experiment.exit_codes import is_no_space
from ensjax.experiment.json_files import (
    is_local,
    read_json,
    to_json_value,
    write_bytes,
    write_json,
)


@contextmanager
def file_size_limit(num_bytes):
    """The kernel refuses larger files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_values_become_json_and_non_finite_numbers_null(tmp_path):
    value = {
        "tuple": (1, 2.5, True, None, "x"),
        "numpy": np.array([1.0, np.nan, np.inf]),
        "jax": jnp.array([1, 2]),
        "bfloat16": jnp.array(0.5, jnp.bfloat16),
        "scalar": np.float32(0.25),
        "flag": np.bool_(True),
        "nan": math.nan,
        7: 1,
    }
    path = epath.Path(tmp_path / "x.json")
    write_json(path, value)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "tuple": [1, 2.5, True, None, "x"],
        "numpy": [1.0, None, None],
        "jax": [1, 2],
        "bfloat16": 0.5,
        "scalar": 0.25,
        "flag": True,
        "nan": None,
        "7": 1,
    }


def test_an_object_is_refused_by_type():
    with pytest.raises(TypeError, match="got object"):
        to_json_value({"a": [object()]})


def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path):
    path = epath.Path(tmp_path / "x.json")
    write_json(path, {"a": 1})
    with file_size_limit(100), pytest.raises(OSError) as error:
        write_bytes(path, b"x" * 1000)
    assert is_no_space(error.value)
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_invalid_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="x.json holds no valid JSON"):
        read_json(epath.Path(tmp_path / "x.json"))


def test_object_stores_are_not_local():
    assert is_local(epath.Path("/a/b")) and is_local(epath.Path("runs/x"))
    assert not is_local(epath.Path("gs://bucket/x"))


def test_a_full_disk_is_known_by_its_errno_or_by_the_words_of_a_storage_library():
    assert is_no_space(OSError(28, "No space left on device"))
    assert is_no_space(ValueError("OUT_OF_RANGE: write: File too large"))
    assert not is_no_space(ValueError("OUT_OF_RANGE: index 3"))
    assert not is_no_space(FileNotFoundError(2, "No such file"))
