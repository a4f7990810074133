"""Which axes must be permuted alike: unification of axis terms.

Inferring permutations is type inference. Every axis begins as a variable; where axes
meet in an operation their terms are unified; a variable that nothing binds in the end
is a group of interchangeable units. Where two terms cannot be made one, both are fixed:
that loses a symmetry and never invents one.
"""

from collections.abc import Sequence

from ensjax.weight_space.axes import Concat, Fixed, Product, Term, concat, product


class Variable:
    """An axis of which nothing is known yet but its size; compared by identity."""

    def __init__(self, size: int):
        self.size = size
        self.bound: Term | None = None


def variable(size: int) -> Term:
    """A new variable; positions that are alone are fixed anyway."""
    return Variable(size) if size > 1 else Fixed(size)


def resolve(term: Term) -> Term:
    """The term with all that is known put in, in its simplest form."""
    if isinstance(term, Variable):
        if term.bound is None:
            return term
        term.bound = resolve(term.bound)
        return term.bound
    if isinstance(term, Product):
        return product([resolve(part) for part in term.parts])
    if isinstance(term, Concat):
        return concat([resolve(part) for part in term.parts])
    return term


def fix(term: Term) -> None:
    """No permutation moves anything on this axis."""
    term = resolve(term)
    if isinstance(term, Variable):
        term.bound = Fixed(term.size)
    elif not isinstance(term, Fixed):
        for part in term.parts:
            fix(part)


def unify(a: Term, b: Term) -> None:
    """The two axes, of one size, are permuted alike from now on."""
    a, b = resolve(a), resolve(b)
    if a == b:
        return
    assert a.size == b.size, (str(a), str(b))
    if isinstance(a, Variable):
        a.bound = b
    elif isinstance(b, Variable):
        b.bound = a
    elif isinstance(a, Fixed) or isinstance(b, Fixed):
        fix(a)
        fix(b)
    elif isinstance(a, Product) and isinstance(b, Product):
        _unify_products(list(a.parts), list(b.parts))
    else:
        _unify_concats([a], [b])


def split(term: Term, sizes: Sequence[int]) -> list[Term]:
    """The axis as one of several flattened into it, the last varying fastest."""
    parts = [variable(size) for size in sizes]
    unify(product(parts), term)
    return parts


def cut(term: Term, sizes: Sequence[int]) -> list[Term]:
    """The axis as one of several behind each other."""
    parts = [variable(size) for size in sizes]
    unify(concat(parts), term)
    return parts


def _unify_products(xs: list[Term], ys: list[Term]) -> None:
    while xs and ys:
        x, y = resolve(xs.pop(0)), resolve(ys.pop(0))
        if isinstance(x, Product) or isinstance(y, Product):
            xs = [*(x.parts if isinstance(x, Product) else [x]), *xs]
            ys = [*(y.parts if isinstance(y, Product) else [y]), *ys]
            continue
        if x.size > y.size:
            x, y, xs, ys = y, x, ys, xs
        if x.size == y.size:
            unify(x, y)
            continue
        if y.size % x.size or isinstance(y, Concat):
            for term in (x, y, *xs, *ys):
                fix(term)
            return
        first, second = variable(x.size), variable(y.size // x.size)
        unify(y, product([first, second]))
        unify(x, first)
        ys.insert(0, second)


def _unify_concats(xs: list[Term], ys: list[Term]) -> None:
    """Both axes from left to right; what is a product is cut into its copies."""
    while xs and ys:
        x, y = resolve(xs.pop(0)), resolve(ys.pop(0))
        if isinstance(x, Concat) or isinstance(y, Concat):
            xs = [*(x.parts if isinstance(x, Concat) else [x]), *xs]
            ys = [*(y.parts if isinstance(y, Concat) else [y]), *ys]
            continue
        if x.size > y.size:
            x, y, xs, ys = y, x, ys, xs
        if x.size == y.size:
            unify(x, y)
            continue
        if isinstance(y, Product):
            fix(y.parts[0])
            outer = resolve(y).parts[0] if isinstance(resolve(y), Product) else None
            if outer is None:  # all of it is fixed
                ys.insert(0, resolve(y))
            else:
                copies = [product(resolve(y).parts[1:])] * outer.size
                ys = [*copies, *ys]
            xs.insert(0, x)
            continue
        first, second = variable(x.size), variable(y.size - x.size)
        unify(y, concat([first, second]))
        unify(x, first)
        ys.insert(0, second)
