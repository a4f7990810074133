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

# Of an int64 that takes sums and shifts; wider numbers are Python's own.
_MOST_BITS = 62


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
        operand_bits: the most bits that each operand may have, where that is less than
            its field has; None: the bits of the fields.

    Raises:
        ValueError: for a rule on bits that do not exist, or one that cannot match, or
            operands of other widths than their fields can hold.
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
    operand_bits: tuple[int, ...] | None = None

    def __post_init__(self):
        places = [self._place(name) for name in self.operands]
        self._place(self.result)
        most = [count for _, count in places]
        bits = most if self.operand_bits is None else list(self.operand_bits)
        if len(bits) != len(most) or any(not 1 <= b <= m for b, m in zip(bits, most)):
            raise ValueError(
                f"operand_bits of {self.name!r} are from 1 to those of the fields,"
                f" {most}; got {bits}."
            )
        for number, rule in enumerate(self.rules):
            bits = [bit for bit, _ in rule.when]
            if not bits or len(set(bits)) < len(bits):
                raise ValueError(
                    f"rule {number} of {self.name!r} must look at different bits, at"
                    f" least one; got {rule.when}."
                )
            values = [value for _, value in rule.when if value not in (0, 1)]
            if values:
                raise ValueError(
                    f"rule {number} of {self.name!r} can never match: a bit is 0 or 1,"
                    f" and it asks for {values[0]!r}."
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

    @property
    def set_outputs(self) -> np.ndarray:
        """Which outputs any rule sets, booleans `[output]`.

        Another one is 0 in every next state, whatever the input: that is part of the
        task, known without training. The mean of networks there is exactly 0, with a
        variance that is not, so that no number of them would tell it from above 0;
        `execute` does not ask.
        """
        return self.train_targets.any(axis=0)

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
            *values: integers `[batch]`, one array for each operand; Python integers
                where they have more than 62 bits.

        Returns:
            int8 `[batch, bit]`.

        Raises:
            TypeError: if a value is not an integer.
            ValueError: if there are other operands than the task's, none or different
                numbers of values, or a number has more bits than the operand.
        """
        if len(values) != len(self.operands):
            raise ValueError(
                f"{self.name!r} takes {len(self.operands)} operands"
                f" ({', '.join(self.operands)}); got {len(values)}."
            )
        bits = self.operand_bits or [self._place(name)[1] for name in self.operands]
        values = [
            _integers(value, name, count)
            for value, name, count in zip(values, self.operands, bits)
        ]
        lengths = [len(numbers) for numbers in values]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise ValueError(
                f"operands of {self.name!r} are [batch], all of one length of at least"
                f" 1; got {', '.join(map(str, lengths))} values."
            )
        states = np.zeros((lengths[0], self.num_bits), np.int8)
        for name, numbers, count in zip(self.operands, values, bits):
            first, _ = self._place(name)
            if numbers.min() < 0 or any(int(n) >> count for n in numbers):
                raise ValueError(
                    f"{name} takes numbers of {count} bits; got {numbers.min()} to"
                    f" {numbers.max()}."
                )
            for bit in range(count):
                states[:, first + bit] = (numbers >> bit) & 1
        states[:, list(self.set_at_start)] = 1
        return states

    def read(self, states: np.ndarray) -> np.ndarray:
        """The answers that states hold, `[batch]`.

        int64, or Python integers where the result has more than 62 bits.
        """
        first, count = self._place(self.result)
        dtype = np.int64 if count <= _MOST_BITS else object
        powers = np.array([1 << bit for bit in range(count)], dtype)
        return np.asarray(states)[:, first : first + count].astype(dtype) @ powers

    def execute(
        self, states: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """States after `num_steps` applications of a predictor.

        Outputs that no rule sets (`set_outputs`) are 0, whatever is predicted.

        Args:
            states: zeros and ones, `[batch, bit]`.
            predict: from inputs `[batch, feature]` to rounded outputs
                `[batch, output]`; `Task.targets` is the one that is always right.

        Returns:
            int8 `[batch, bit]`.
        """
        is_set = self.set_outputs
        for _ in range(self.num_steps):
            rounded = np.asarray(predict(self.encode(states)))
            states = np.where(is_set, rounded, 0).astype(np.int8)
        return np.asarray(states, np.int8)

    def _place(self, name):
        first = 0
        for field, count in self.fields:
            if field == name:
                return first, count
            first += count
        raise ValueError(f"{self.name!r} has no field {name!r}.")


def _integers(values, name, num_bits) -> np.ndarray:
    """Integers `[batch]`: int64, or Python's where int64 has too few bits."""
    if not isinstance(values, np.ndarray):
        values = np.array(values, object)  # NumPy makes floats of [1, 2**63]
    values = np.atleast_1d(values)
    if values.ndim != 1:
        raise ValueError(f"{name} must be [batch]; got shape {values.shape}.")
    try:
        whole = [operator.index(value) for value in values.tolist()]
    except TypeError as error:
        raise TypeError(f"{name} must hold integers; got {values[:5]}.") from error
    fits = num_bits <= _MOST_BITS and all(abs(n) < 2**63 for n in whole)
    return np.array(whole, np.int64 if fits else object)


@dataclasses.dataclass(frozen=True)
class _Permute:
    places: tuple[int, ...]

    def __call__(self, values):
        values = _integers(values, "bits", len(self.places))
        moved = [((values >> i) & 1) << place for i, place in enumerate(self.places)]
        return np.sum(moved, axis=0)


@dataclasses.dataclass(frozen=True)
class _Arithmetic:
    """An operation on two operands, exact where the result outgrows int64."""

    function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    result_bits: int

    def __call__(self, first, second):
        values = [_integers(v, "operands", self.result_bits) for v in (first, second)]
        return self.function(*values)


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
        _Arithmetic(operator.add, width),
        num_steps=width,
        num_padding=num_padding,
        operand_bits=(num_bits, num_bits),
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
        _Arithmetic(operator.mul, width),
        num_steps=num_bits * ticks,
        set_at_start=(clock,),
        num_padding=num_padding,
        operand_bits=(num_bits, num_bits),
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
    if isinstance(num_bits, bool) or not isinstance(num_bits, (int, np.integer)):
        raise TypeError(f"num_bits must be an integer; got {num_bits!r}.")
    if num_bits < 1:
        raise ValueError(f"a number has at least one bit; got num_bits={num_bits}.")
