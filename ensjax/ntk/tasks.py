"""What networks learn from basis vectors: rules on bits, and what is right for them.

A task is a list of rules: where some bits of a state have given values, some bits of
the next state are set. Rule `i` is basis vector `e_i` of the training inputs, with the
bits it sets as targets; an input is the sum of the basis vectors of the rules that
match, so that the training inputs are orthonormal whatever the rules overlap in. A
permutation is the case of one rule for each bit; additions and multiplications apply
the network several times.

Source: Back de Luca, Giapitzakis and Fountoulakis 2025, arXiv:2502.16763v2 (templates
of instructions as an orthonormal training set). The rules of our tasks are our own:
an adder of half adders whose carry is ready for the next step, and shift-and-add.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ensjax.ntk.permutations import check_bits, check_permutation


class Rule(NamedTuple):
    """Sets bits of the next state where this one has a pattern.

    Attributes:
        when: pairs (bit of the state, its value 0 or 1).
        then: bits of the next state that become 1.
    """

    when: tuple[tuple[int, int], ...]
    then: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned, from which rows, and what is right: NumPy, on the host.

    Attributes:
        name: such as "addition of 3 bits".
        fields: `(name, bits)` of each part of a state, in order; its first bit is the
            least.
        rules: as `Rule`.
        operands: fields that `start` fills with numbers.
        result: field that holds the answer after `num_steps`.
        solve: the answer of the operands, in integers.
        num_steps: times that the network is applied.
        set_at_start: bits that are 1 in every first state.
        num_padding: training rows of zero targets behind those of the rules. They make
            k larger and so what one rule does to another's bits smaller.

    Raises:
        ValueError: for a rule on bits that do not exist, or one that cannot match.
    """

    name: str
    fields: tuple[tuple[str, int], ...]
    rules: tuple[Rule, ...]
    operands: tuple[str, ...]
    result: str
    solve: Callable[..., np.ndarray]
    num_steps: int = 1
    set_at_start: tuple[int, ...] = ()
    num_padding: int = 0

    def __post_init__(self):
        for number, rule in enumerate(self.rules):
            bits = [bit for bit, _ in rule.when]
            if not bits or len(set(bits)) < len(bits):
                raise ValueError(
                    f"rule {number} of {self.name!r} must look at different bits, at"
                    f" least one; got {rule.when}."
                )
            outside = [b for b in (*bits, *rule.then) if not 0 <= b < self.num_bits]
            if outside:
                raise ValueError(
                    f"rule {number} of {self.name!r} has bit {outside[0]}, but a state"
                    f" has {self.num_bits}."
                )

    @property
    def num_bits(self) -> int:
        """Bits of a state, which are the outputs of the network."""
        return sum(count for _, count in self.fields)

    @property
    def num_features(self) -> int:
        """k: inputs of the network, and rows that it is trained on."""
        return len(self.rules) + self.num_padding

    @property
    def train_inputs(self) -> np.ndarray:
        """The k basis vectors, float32 `[row, feature]`."""
        return np.eye(self.num_features, dtype=np.float32)

    @property
    def train_targets(self) -> np.ndarray:
        """What each rule sets, float32 `[row, output]`; padding sets nothing."""
        targets = np.zeros((self.num_features, self.num_bits), np.float32)
        for row, rule in enumerate(self.rules):
            targets[row, list(rule.then)] = 1
        return targets

    def encode(self, states: np.ndarray) -> np.ndarray:
        """The rules that match each state as inputs of the network.

        Args:
            states: zeros and ones, `[batch, bit]`.

        Returns:
            float32 `[batch, feature]`, zeros and ones.

        Raises:
            ValueError: if states are not binary, or of another width.
        """
        states = np.asarray(states)
        check_bits(states, "states", self.num_bits)
        # Matches where nothing differs: the number of ones that should be zeros, and
        # of zeros that should be ones, is linear in the state.
        sign = np.zeros((self.num_bits, self.num_features), np.float32)
        missing = np.zeros(self.num_features, np.float32)
        missing[len(self.rules) :] = 1  # padding never matches
        for column, rule in enumerate(self.rules):
            for bit, value in rule.when:
                sign[bit, column] = 1 - 2 * value
                missing[column] += value
        return (states.astype(np.float32) @ sign + missing == 0).astype(np.float32)

    def targets(self, inputs: np.ndarray) -> np.ndarray:
        """What is right for inputs: the bits that any of their rules sets.

        Args:
            inputs: zeros and ones, `[batch, feature]`.

        Returns:
            booleans `[batch, output]`.

        Raises:
            ValueError: if inputs are not binary, or of another width.
        """
        inputs = np.asarray(inputs)
        check_bits(inputs, "inputs", self.num_features)
        return inputs.astype(np.float32) @ self.train_targets > 0

    def start(self, *values: np.ndarray) -> np.ndarray:
        """First states of some operands.

        Args:
            *values: integers `[batch]`, one array for each operand.

        Returns:
            int8 `[batch, bit]`.

        Raises:
            ValueError: if there are other operands than the task's, or a number has
                more bits than its field.
        """
        if len(values) != len(self.operands):
            raise ValueError(
                f"{self.name!r} takes {len(self.operands)} operands"
                f" ({', '.join(self.operands)}); got {len(values)}."
            )
        values = [np.atleast_1d(np.asarray(value)) for value in values]
        states = np.zeros((len(values[0]), self.num_bits), np.int8)
        for name, numbers in zip(self.operands, values):
            first, count = self._place(name)
            if numbers.min() < 0 or any(int(n) >> count for n in numbers):
                raise ValueError(
                    f"{name} holds numbers of {count} bits; got {numbers.min()} to"
                    f" {numbers.max()}."
                )
            for bit in range(count):
                states[:, first + bit] = (numbers >> bit) & 1
        states[:, list(self.set_at_start)] = 1
        return states

    def read(self, states: np.ndarray) -> np.ndarray:
        """The answers that states hold, int64 `[batch]`."""
        first, count = self._place(self.result)
        powers = np.left_shift(np.int64(1), np.arange(count))
        return np.asarray(states)[:, first : first + count].astype(np.int64) @ powers

    def execute(
        self, states: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """States after `num_steps` applications of a predictor.

        Args:
            states: zeros and ones, `[batch, bit]`.
            predict: from inputs `[batch, feature]` to rounded outputs
                `[batch, output]`; `Task.targets` is the one that is always right.

        Returns:
            int8 `[batch, bit]`.
        """
        for _ in range(self.num_steps):
            states = np.asarray(predict(self.encode(states))).astype(np.int8)
        return np.asarray(states, np.int8)

    def _place(self, name):
        first = 0
        for field, count in self.fields:
            if field == name:
                return first, count
            first += count
        raise ValueError(f"{self.name!r} has no field {name!r}.")


@dataclasses.dataclass(frozen=True)
class _Permute:
    places: tuple[int, ...]

    def __call__(self, values):
        moved = [((values >> i) & 1) << place for i, place in enumerate(self.places)]
        return np.sum(moved, axis=0)


def permutation_task(permutation: Sequence[int]) -> Task:
    """Bit `i` goes to place `permutation[i]`: one rule for each bit.

    Raises:
        TypeError, ValueError: if it is no permutation (see `check_permutation`).
    """
    places = tuple(check_permutation(permutation).tolist())
    rules = tuple(Rule(((i, 1),), (place,)) for i, place in enumerate(places))
    return Task(
        f"permutation of {len(places)} bits",
        (("bits", len(places)),),
        rules,
        ("bits",),
        "bits",
        _Permute(places),
    )


def copy_task(num_bits: int) -> Task:
    """Every bit stays in its place.

    Raises:
        ValueError: if there is no bit.
    """
    _check_width(num_bits)
    task = permutation_task(range(num_bits))
    return dataclasses.replace(task, name=f"copy of {num_bits} bits")


def addition_task(num_bits: int, *, num_padding: int = 0) -> Task:
    """The sum of two numbers of `num_bits` bits, in `num_bits + 1` steps.

    Fields p and q have a bit more than the operands. In each step the bits of p that
    differ from those of q stay in p, and where both are 1 the bit above is set in q: p
    + q is the same after each step, and the lowest t bits of q are 0 after t of them.

    Args:
        num_bits: of each operand.
        num_padding: see `Task`.

    Raises:
        ValueError: if there is no bit.
    """
    _check_width(num_bits)
    width = num_bits + 1
    return Task(
        f"addition of {num_bits} bits",
        (("p", width), ("q", width)),
        tuple(_adder_rules(0, width, width)),
        ("p", "q"),
        "p",
        operator.add,
        num_steps=width,
        num_padding=num_padding,
    )


def multiplication_task(num_bits: int, *, num_padding: int = 0) -> Task:
    """The product of two numbers of `num_bits` bits, by shifting and adding.

    A clock of 2 k + 1 ticks rules each of the k rounds. At its first tick q becomes the
    multiplicand if the multiplier is odd, the multiplier is halved and the multiplicand
    doubled; at the others, p and q are added as in `addition_task`.

    Args:
        num_bits: k, of each operand.
        num_padding: see `Task`.

    Raises:
        ValueError: if there is no bit.
    """
    _check_width(num_bits)
    width = 2 * num_bits
    ticks = width + 1
    fields = (
        ("multiplier", num_bits),
        ("multiplicand", width),
        ("p", width),
        ("q", width),
        ("clock", ticks),
    )
    places = np.cumsum([0, *(count for _, count in fields)]).tolist()
    multiplier, multiplicand, p, q, clock, _ = places
    rules = _adder_rules(p, q, width)
    loads, keeps = (clock, 1), (clock, 0)
    for i in range(num_bits):
        a = multiplier + i
        rules.append(Rule((keeps, (a, 1)), (a,)))
        if i:
            rules.append(Rule((loads, (a, 1)), (a - 1,)))
    for i in range(width):
        b = multiplicand + i
        rules.append(Rule((keeps, (b, 1)), (b,)))
        rules.append(Rule((loads, (multiplier, 1), (b, 1)), (q + i,)))
        if i < width - 1:
            rules.append(Rule((loads, (b, 1)), (b + 1,)))
    for tick in range(ticks):
        following = clock + (tick + 1) % ticks
        rules.append(Rule(((clock + tick, 1),), (following,)))
    return Task(
        f"multiplication of {num_bits} bits",
        fields,
        tuple(rules),
        ("multiplier", "multiplicand"),
        "p",
        operator.mul,
        num_steps=num_bits * ticks,
        set_at_start=(clock,),
        num_padding=num_padding,
    )


def _adder_rules(p: int, q: int, width: int) -> list[Rule]:
    """One step of p + q, of `width` bits that begin at `p` and `q`."""
    rules = []
    for i in range(width):
        rules.append(Rule(((p + i, 1), (q + i, 0)), (p + i,)))
        rules.append(Rule(((p + i, 0), (q + i, 1)), (p + i,)))
        if i < width - 1:  # the sum fits, so that the highest bits are never both 1
            rules.append(Rule(((p + i, 1), (q + i, 1)), (q + i + 1,)))
    return rules


def _check_width(num_bits):
    if num_bits < 1:
        raise ValueError(f"a number has at least one bit; got num_bits={num_bits}.")
