"""Collectives as they stand in the text of a compiled program."""

import jax
import jax.numpy as jnp
import pytest

from ensjax import make_mesh
from ensjax.planning import Collective, read_collectives

SIZES = (4, 2, 1)
BOTH = ("data", "member")


def read(groups, call="f32[8,3]{1,0} all-reduce"):
    return read_collectives(f"  %x = {call}(%y), {groups}, to_apply=%add", SIZES)


@pytest.mark.parametrize(
    "groups, axes",
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("data",)),
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", ("member",)),
        ("replica_groups={}", BOTH),
        ("replica_groups=[4,2]<=[8]", ("data",)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ("member",)),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2] {'a'}, use_global", ("member",)),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2] {'b','c'}, use_global", ("data",)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}, dimensions={0}", BOTH),
        ("source_target_pairs={{0,1},{1,0}}", ("data",)),
        ("replica_groups={{0},{1}}", None),
        ("replica_groups=[8,1]<=[8]", None),
    ],
)
def test_groups_of_devices_are_mesh_axes_in_every_notation(groups, axes):
    found = read(groups)
    assert found == (() if axes is None else (Collective("all-reduce", axes, 1, 96),))


@pytest.mark.parametrize(
    "call, operation, size",
    [
        ("(f32[8,3]{1,0}, bf16[], pred[5]{0}) all-reduce", "all-reduce", 96 + 2 + 5),
        ("f32[8,128]{1,0:T(8,128)S(1)} all-reduce-start", "all-reduce", 4096),
        ("(f32[1,4]{1,0}, f32[8,4]{1,0}) all-gather-start", "all-gather", 128),
        (
            "(s32[6]{0}, s32[6]{0}, u32[], u32[]) collective-permute-start",
            "collective-permute",
            24,
        ),
        ("f8e4m3fn[16]{0} reduce-scatter", "reduce-scatter", 16),
    ],
)
def test_bytes_are_those_of_the_results(call, operation, size):
    found = read("replica_groups=[4,2]<=[8]", call)
    assert found == (Collective(operation, ("data",), 1, size),)


def test_ends_and_other_operations_are_not_counted():
    text = "  %d = f32[8] all-reduce-done(%s)\n  %m = f32[8] multiply(%a, %b)\n"
    assert read_collectives(text, SIZES) == ()


def test_equal_collectives_are_added_up_and_multiplied():
    line = "  %x = f32[2] all-reduce(%y), replica_groups=[4,2]<=[8]\n"
    (found,) = read_collectives(3 * line, SIZES)
    assert found == Collective("all-reduce", ("data",), 3, 24)
    assert found.times(5) == Collective("all-reduce", ("data",), 15, 120)


def test_groups_in_an_unknown_notation_raise_with_the_line():
    with pytest.raises(ValueError, match="cannot be read.*replica_groups=@other"):
        read("replica_groups=@other")
    with pytest.raises(ValueError, match="cannot be read"):  # a part of an axis
        read("replica_groups=mesh['a'=8] {'a':(1)2}")


def test_a_compiled_mean_over_members_is_found():
    mesh = make_mesh(member=4, data=2)
    x = jax.ShapeDtypeStruct(
        (8, 16), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P("member"))
    )
    text = jax.jit(lambda x: x.mean(axis=0)).lower(x).compile().as_text()
    assert read_collectives(text, SIZES) == (
        Collective("all-reduce", ("member",), 1, 64),
    )
