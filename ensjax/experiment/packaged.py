"""The experiments that the package brings: shown, and copied to be changed."""

import ast
import re
import shutil
from pathlib import Path

import rich.console
import rich.table

from ensjax.experiment.configs import (
    find_config,
    names_in,
    packaged_folder,
    presets_by_config,
)
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.overrides import join_names
from ensjax.experiment.results import read_published, verdict_counts


def show_all() -> None:
    """Prints every config with its question, presets, paper and last results."""
    published = read_published()
    table = rich.table.Table()
    for column in ("config", "what it asks", "presets", "paper", "last results"):
        table.add_column(column, overflow="fold")
    for name, presets in presets_by_config().items():
        what, experiment = _describe(packaged_folder("configs") / f"{name}.py")
        entries = [entry for entry in published if entry["config"] == name]
        runs = [f"{entry['preset']}: {verdict_counts(entry)}" for entry in entries]
        missing = set(presets) - {entry["preset"] for entry in entries} - {"smoke"}
        runs += [f"{preset}: not run" for preset in presets if preset in missing]
        path = packaged_folder("experiments") / f"{experiment or name}.py"
        row = (name, what, ", ".join(presets), _paper(path), "\n".join(runs))
        table.add_row(*row)
    rich.console.Console().print(table)
    print("Run one: ensjax run NAME:PRESET")


def _describe(config: Path) -> tuple[str, str | None]:
    """The first line of a config's docstring, and the experiment it names."""
    tree = ast.parse(config.read_text())
    what = (ast.get_docstring(tree) or "").partition("\n")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            target = node.targets[0]
            if isinstance(target, ast.Attribute) and target.attr == "experiment":
                return what, node.value.value
        if isinstance(node, ast.keyword) and node.arg == "experiment":
            return what, getattr(node.value, "value", None)
    return what, None


def _paper(experiment: Path) -> str:
    """The string `PAPER` of an experiment, read without importing it."""
    if experiment.is_file():
        for node in ast.parse(experiment.read_text()).body:
            is_constant = isinstance(node, ast.Assign) and isinstance(
                node.value, ast.Constant
            )
            if is_constant and getattr(node.targets[0], "id", None) == "PAPER":
                return str(node.value.value)
    return "-"


def copy(name: str) -> None:
    """Writes a config and its experiment into the working directory.

    Raises:
        ConfigError: if it is no name of the package's, or a file is there already.
    """
    source = find_config(name)
    packaged = packaged_folder("configs").resolve()
    if source.path.resolve().parent != packaged:
        raise ConfigError(
            f"ensjax copy takes a name ({join_names(names_in('configs'))});"
            f" got {name!r}."
        )
    _, experiment = _describe(source.path)
    experiment = packaged_folder("experiments") / f"{experiment or source.name}.py"
    targets = {
        path: Path(folder) / path.name
        for folder, first in (("configs", source.path), ("experiments", experiment))
        for path in _with_parts(first)
    }
    for target in targets.values():
        if target.exists():
            raise ConfigError(f"{target} is there already; nothing was copied.")
    for origin, target in targets.items():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(origin, target)
        print(f"wrote {target}")
    print(f"Change them, then: ensjax run {targets[source.path]}")


def _with_parts(path: Path) -> list[Path]:
    """A file and those that it loads with `load_beside`, and they with theirs."""
    found = [path]
    for file in found:
        names = re.findall(r'load_beside\(\s*__file__,\s*"(\w+)"', file.read_text())
        parts = [file.with_name(f"{name}.py") for name in names]
        found += [part for part in dict.fromkeys(parts) if part not in found]
    return found
