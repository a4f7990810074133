"""Transforms between tensors of theirs and leaves of ours, each with its exact inverse.

A transform takes a list of arrays and gives a list: `to_ours` one way, `to_theirs` the
other. It only moves values. Sizes that cannot be read off one side are its attributes.
"""

import dataclasses
from typing import Protocol

import numpy as np

Arrays = list[np.ndarray]


class Transform(Protocol):
    """What a rule of a name map holds."""

    def to_ours(self, tensors: Arrays) -> Arrays:
        """Leaves of ours from tensors of theirs."""

    def to_theirs(self, leaves: Arrays) -> Arrays:
        """Tensors of theirs from leaves of ours."""


@dataclasses.dataclass(frozen=True)
class Same:
    """As they are."""

    def to_ours(self, tensors: Arrays) -> Arrays:
        """See `Transform`."""
        return tensors

    def to_theirs(self, leaves: Arrays) -> Arrays:
        """See `Transform`."""
        return leaves


@dataclasses.dataclass(frozen=True)
class Transpose:
    """Axes in another order, of each array: axis `i` of ours is `axes[i]` of theirs."""

    axes: tuple[int, ...]

    def to_ours(self, tensors: Arrays) -> Arrays:
        """See `Transform`."""
        return [t.transpose(self.axes) for t in tensors]

    def to_theirs(self, leaves: Arrays) -> Arrays:
        """See `Transform`."""
        return [leaf.transpose(np.argsort(self.axes)) for leaf in leaves]


@dataclasses.dataclass(frozen=True)
class Reshape:
    """Another shape, of each array; one size of either side may be -1."""

    theirs: tuple[int, ...]
    ours: tuple[int, ...]

    def to_ours(self, tensors: Arrays) -> Arrays:
        """See `Transform`."""
        return [t.reshape(self.ours) for t in tensors]

    def to_theirs(self, leaves: Arrays) -> Arrays:
        """See `Transform`."""
        return [leaf.reshape(self.theirs) for leaf in leaves]


@dataclasses.dataclass(frozen=True)
class Join:
    """Several tensors of theirs one after the other in one leaf of ours.

    Attributes:
        axis: along which they are joined.
        sizes: of theirs along that axis; a number of tensors that are equally long.
    """

    axis: int
    sizes: int | tuple[int, ...]

    def to_ours(self, tensors: Arrays) -> Arrays:
        """See `Transform`."""
        return [np.concatenate(tensors, axis=self.axis)]

    def to_theirs(self, leaves: Arrays) -> Arrays:
        """See `Transform`."""
        (leaf,) = leaves
        if isinstance(self.sizes, int):
            return np.split(leaf, self.sizes, axis=self.axis)
        if sum(self.sizes) != leaf.shape[self.axis]:
            raise ValueError(
                f"axis {self.axis} of shape {leaf.shape} must have the sum of the parts"
                f" {self.sizes}."
            )
        return np.split(leaf, np.cumsum(self.sizes)[:-1], axis=self.axis)


@dataclasses.dataclass(frozen=True)
class Inverse:
    """A transform the other way: `Inverse(Join(...))` splits one tensor of theirs."""

    transform: Transform

    def to_ours(self, tensors: Arrays) -> Arrays:
        """See `Transform`."""
        return self.transform.to_theirs(tensors)

    def to_theirs(self, leaves: Arrays) -> Arrays:
        """See `Transform`."""
        return self.transform.to_ours(leaves)


@dataclasses.dataclass(frozen=True)
class Chain:
    """Transforms one after the other, from theirs to ours."""

    transforms: tuple[Transform, ...]

    def to_ours(self, tensors: Arrays) -> Arrays:
        """See `Transform`."""
        for transform in self.transforms:
            tensors = transform.to_ours(tensors)
        return tensors

    def to_theirs(self, leaves: Arrays) -> Arrays:
        """See `Transform`."""
        for transform in reversed(self.transforms):
            leaves = transform.to_theirs(leaves)
        return leaves


SAME = Same()
# A dense kernel is [output, input] in PyTorch and [input, output] here.
DENSE = Transpose((1, 0))
# A kernel of a convolution is [output, input, height, width] there and [height, width,
# input, output] here.
CONV = Transpose((2, 3, 1, 0))


def joined_dense(num: int) -> Chain:
    """Several dense kernels as one, beside each other in the output axis."""
    return Chain((DENSE, Join(axis=1, sizes=num)))


def joined_biases(num: int) -> Join:
    """The biases of `joined_dense`."""
    return Join(axis=0, sizes=num)
