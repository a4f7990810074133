"""A run that is killed again and again ends as the one that was left alone."""

import importlib.util
from pathlib import Path

import pytest


def load_kills():
    path = Path(__file__).with_name("kills.py")
    spec = importlib.util.spec_from_file_location("kills", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    """In one half always on four devices, in the other on four, two and one in turn."""
    kills = load_kills()
    summary = kills.run_suite(tmp_path, kills=10, seed=0)
    assert kills.is_right(summary), summary
    assert summary["kills"] == 10 and summary["kills_that_tore_a_save"] >= 2
    assert {entry["devices"] for entry in summary["rounds"]} == {"4", "4, 2, 1 in turn"}
