"""Published checkpoints as a stacked ensemble of our modules, and members back."""

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ensjax.ensemble import Ensemble
from ensjax.graphs import NnxGraph
from ensjax.interop.architectures import kind_of, read_architecture
from ensjax.interop.name_maps import (
    Link,
    NameMap,
    check_names,
    link_leaves,
    read_link,
    write_tensors,
)
from ensjax.interop.small_files import read_config
from ensjax.interop.tensor_sources import Source, open_source
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.mesh import default_mesh, place
from ensjax.weight_space.leaves import leaf_name


def from_checkpoints(
    checkpoints: Sequence[Source],
    *,
    kind: str = "auto",
    config: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    member_ids: Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> Ensemble:
    """An ensemble with one member for each checkpoint, of one of our modules.

    Names and shapes are checked in all checkpoints before anything is read; then the
    stack is made leaf by leaf, so that the host holds one leaf of all members at once,
    and no model is built. Types are kept: bfloat16 stays so.

    Args:
        checkpoints: for each member a folder or a file, as for `open_weights`, or a
            mapping from names to arrays, such as a state dict of PyTorch.
        kind: one of `KINDS`; "auto" takes the `model_type` of the configuration, or
            knows the checkpoint by its names.
        config: what `config.json` says, as a mapping, instead of those in the folders
            (or beside the files); `model.config.to_dict()` of `transformers`.
        options: arguments of the module beside those that the configuration gives, such
            as `dtype`, `remat` or `dropout`: rates in configurations are not taken.
        member_ids: ids instead of 0, 1, ...
        mesh: from `make_mesh`; by default all devices on the member axis.

    Returns:
        The ensemble; its members compute what the checkpoints' models compute in
        evaluation mode, of images `[batch, height, width, channel]` or of tokens
        `[batch, token]` (a tuple with their mask, where there is padding).

    Raises:
        ValueError: if there is no checkpoint, a field of a configuration is not
            supported, members differ in architecture, or names, shapes or types do not
            fit; names the member and the field or tensor.

    Example::

        ensemble = from_checkpoints(["seed0/", "seed1/", "seed2/"])
        logits = ensemble(images)  # [member, batch, class]
    """
    if isinstance(checkpoints, (str, os.PathLike, Mapping)) or not checkpoints:
        raise ValueError(
            "checkpoints must be a list with a folder or a state dict for each member,"
            f" at least one; got a {type(checkpoints).__name__}. One model becomes an"
            " ensemble of one with [folder]."
        )
    labels = [_label(f"checkpoint {i}", c) for i, c in enumerate(checkpoints)]
    mesh = default_mesh() if mesh is None else mesh
    spec = jax.P("member" if len(checkpoints) % mesh.shape["member"] == 0 else None)
    with contextlib.ExitStack() as stack:
        tensors = [stack.enter_context(open_source(c)) for c in checkpoints]
        of_kind, arguments = read_architecture(
            [_config(c, config) for c in checkpoints],
            [each.shapes for each in tensors],
            labels,
            kind=kind,
        )
        arguments |= options or {}
        make_model = functools.partial(of_kind.module, **arguments)
        abstract = nnx.eval_shape(lambda: make_model(rngs=_rngs(0, 0)))
        shapes = {name: leaf.shape for name, leaf in _mapped(abstract).items()}
        maps = of_kind.maps(abstract)
        links = [
            _links(maps, shapes, each, label) for each, label in zip(tensors, labels)
        ]
        leaves = {}
        for parts in zip(*links, strict=True):
            assert len({link.ours for link in parts}) == 1, parts
            rows = [_row(*one) for one in zip(parts, tensors, labels)]
            for name in rows[0]:
                stacked = _stacked(name, [row[name] for row in rows], labels)
                leaves[name] = place(stacked, mesh, spec)
    ids = range(len(labels)) if member_ids is None else member_ids
    return _assemble(make_model, abstract, leaves, list(ids), mesh)


def to_checkpoint(
    model: nnx.Module | Ensemble,
    *,
    kind: str = "auto",
    naming: str | None = None,
    like: Source | None = None,
) -> dict[str, np.ndarray]:
    """One of our modules under the names of its published checkpoints, bit for bit.

    Args:
        model: a member (`ensemble[3]`), or an ensemble of one (the model of a soup).
        kind: one of `KINDS`; "auto" is that of the folder `like`, else the first whose
            module has the model's class.
        naming: one of the namings of the kind; by default that of `like`, else the
            first.
        like: the checkpoint that it comes from, a folder or a mapping: constants
            (position ids, counters) are copied from it, and tied tensors are written
            under the names that it has.

    Returns:
        Arrays by name, in the types of the leaves, for `write_weights`.

    Raises:
        TypeError: if `model` is neither.
        ValueError: if there are several members, or the model or `like` is of no known
            kind or naming.

    Example::

        tensors = to_checkpoint(soup.model, like="seed0/")
        write_weights("soup/", tensors, like="seed0/")  # for from_pretrained
    """
    if isinstance(model, Ensemble):
        if len(model) != 1:
            raise ValueError(
                f"to_checkpoint takes one model, but the ensemble has {len(model)}"
                " members; choose one with ensemble[i], or mix them first."
            )
        model = model[0]
    if not isinstance(model, nnx.Module):
        raise TypeError(
            "to_checkpoint takes an nnx module or an ensemble of one; got"
            f" {type(model).__name__}."
        )
    stored = None if like is None else _config(like, None)
    maps = kind_of(model, kind, stored).maps(model)
    leaves = _mapped(model)
    if naming is not None and naming not in maps:
        raise ValueError(f"naming is one of {', '.join(maps)}; got {naming!r}.")
    if like is None:
        return write_tensors(maps[naming or next(iter(maps))], leaves)
    shapes = {name: np.shape(leaf) for name, leaf in leaves.items()}
    with open_source(like) as original:
        chosen = maps if naming is None else {naming: maps[naming]}
        label = _label("like", like)
        name_map, _ = _naming(chosen, shapes, original, label)
        found = write_tensors(name_map, leaves, like=original)
        # A file notes its second names beside the tensors, and so does what is written.
        return {k: v for k, v in found.items() if k not in original.ties}


def _label(name, source):
    is_path = isinstance(source, (str, os.PathLike))
    what = os.fspath(source) if is_path else "a mapping"
    return f"{name} ({what})"


def _config(source, given):
    """What is given, else `config.json` in a folder or beside a file."""
    if given is not None or not isinstance(source, (str, os.PathLike)):
        return given
    place = Path(source)
    return read_config(place if place.is_dir() else place.parent)


def _mapped(model):
    """Leaves with a name in checkpoints (not random keys), by dotted name."""
    state = nnx.state(model, nnx.Not(nnx.RngState))
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}


def _links(maps, shapes, tensors, label):
    """What becomes each leaf, in an order that is the same in every naming."""
    _, links = _naming(maps, shapes, tensors, label)
    for link in links:
        _check_shapes(link, tensors.shapes, label)
    return sorted(links, key=lambda link: link.ours)


def _naming(maps: dict[str, NameMap], shapes, tensors, label):
    """The naming of a checkpoint: the first that fits, else the one that nearly does.

    Raises:
        ValueError: if none fits; says what is missing in the nearest.
    """
    names = list(tensors)
    nearest = None
    for naming, name_map in maps.items():
        links = link_leaves(name_map, shapes)
        try:
            check_names(name_map, links, names)
            return name_map, links
        except ValueError as error:
            known = {name for link in links for name in (*link.theirs, *link.tied)}
            found = len(known.intersection(names))
            if nearest is None or found > nearest[0]:
                nearest = found, naming, error
    raise ValueError(
        f"{label}: {nearest[2]} (By the names of {nearest[1]}.)"
    ) from nearest[2]


def _check_shapes(link: Link, shapes, label):
    for name, expected in zip(link.theirs, link.their_shapes):
        for present in (name, *link.tied):
            if present in shapes and shapes[present] != expected:
                raise ValueError(
                    f"{label}: {present} has shape {shapes[present]}; expected"
                    f" {expected} for {', '.join(link.ours)}."
                )


def _row(link, tensors, label):
    try:
        return read_link(link, tensors)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error


def _stacked(name, rows, labels):
    """One leaf of all members, of one type that JAX can hold."""
    for row, label in zip(rows, labels):
        if row.dtype != rows[0].dtype:
            raise ValueError(
                f"{label}: {name} is {row.dtype}, but {rows[0].dtype} in {labels[0]};"
                " convert one of them, since a leaf of a stack has one type."
            )
        if not jnp.issubdtype(row.dtype, jnp.floating):
            raise ValueError(f"{label}: {name} is {row.dtype}; expected real numbers.")
        if jax.dtypes.canonicalize_dtype(row.dtype) != row.dtype:
            raise ValueError(
                f"{label}: {name} is {row.dtype}, which JAX holds only with"
                " jax_enable_x64; convert it to float32."
            )
    return np.stack(rows)


def _rngs(seed, member_id):
    key = member_key(seed, "init", member_id)
    return nnx.Rngs(
        params=jax.random.fold_in(key, 0), dropout=jax.random.fold_in(key, 1)
    )


class _RandomState:
    """The random keys of a member: what is left of a fresh one without its weights."""

    def __init__(self, make_model):
        self.make_model = make_model

    def __call__(self, member_id, seed):
        return nnx.state(self.make_model(rngs=_rngs(seed, member_id)), nnx.RngState)


def _assemble(make_model, abstract, leaves, member_ids, mesh):
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)
    if jax.tree.leaves(nnx.state(abstract, nnx.RngState)):
        draw = map_members(
            _RandomState(make_model), kinds=("member", "shared"), mesh=mesh
        )
        keys = draw(jnp.asarray(member_ids, jnp.int32), jnp.int32(0))
        leaves |= {leaf_name(p): x for p, x in jax.tree.leaves_with_path(keys)}

    def fill(path, leaf):
        del leaf
        return leaves[leaf_name(path)]

    state = {
        "params": jax.tree.map_with_path(fill, params),
        "rest": jax.tree.map_with_path(fill, rest),
    }
    numbers = jnp.arange(len(member_ids), dtype=jnp.int32)
    return Ensemble(state, numbers, NnxGraph(graphdef), mesh).with_ids(member_ids)
