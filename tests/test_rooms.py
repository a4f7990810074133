"""The rooms of the house: who may import whom, and what is public."""

import re
import subprocess
import sys
from pathlib import Path

import ensjax

REPOSITORY = Path(__file__).parent.parent


def test_a_room_imports_only_the_rooms_above_it():
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [command, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_public_name_exists():
    for name in ensjax.__all__:
        assert getattr(ensjax, name) is not None


def test_configs_import_nothing_of_ours():
    for path in (REPOSITORY / "configs").glob("*.py"):
        lines = path.read_text().splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        assert not any("ensjax" in line for line in imports), path


def test_programs_over_the_member_axis_are_made_in_one_place():
    """`mapping` makes them all: what else runs on a mesh is a job of its program."""
    found = {
        path.relative_to(REPOSITORY / "ensjax").as_posix()
        for path in (REPOSITORY / "ensjax").rglob("*.py")
        if re.search(r"jax\.shard_map\(|import.*shard_map", path.read_text())
    }
    assert found == {"mapping.py"}
