"""What was published of permutation learning: members needed, by k, as data.

One trial for each k with networks of width 50,000 that were trained on the basis
vectors, and 1,000 test inputs with two ones; the number of networks at which their
rounded mean was first right on a share of these inputs. A first passage of a noisy
curve: it is not monotone in k.

Source: code and results of Giapitzakis, Back de Luca and Fountoulakis 2025,
arXiv:2502.16763v1 (github.com/opallab/permlearn).
"""

import numpy as np

# k: networks for 90 % of the test inputs.
MEMBERS_FOR_90_PERCENT = {
    2: 1,
    3: 2,
    4: 10,
    5: 43,
    6: 34,
    7: 29,
    8: 40,
    9: 37,
    10: 69,
    12: 62,
    13: 72,
    14: 56,
    15: 103,
    20: 117,
    24: 150,
    25: 157,
    30: 175,
}
# k: networks for 99.9 %.
MEMBERS_FOR_99_9_PERCENT = {5: 43, 10: 129, 15: 163, 20: 254, 25: 308, 30: 318}
# Stored outputs, two ones, width 50,000; k: (networks, f1, f0, variance).
STORED_OUTPUTS = {
    5: (43, 0.845, -0.062, 0.0263),
    10: (69, 0.873, -0.0317, 0.0127),
    14: (56, 0.8825, -0.0259, 0.0089),
}
# Ends of the theoretical curve in the paper's figure; its formula was not read.
BOUND_ENDS = {5: 5.7e3, 30: 1.25e4}
# Here the runs' learning rate of 1e-3 was above the critical one.
ABOVE_CRITICAL_RATE = (2, 3)


def bound(num_bits: np.ndarray) -> np.ndarray:
    """The published bound between the ends that were read off the figure, alike.

    A power of k through both ends: a stand-in for the curve, good to the width of its
    line there and unknown in between.

    Args:
        num_bits: k, from 5 to 30; NaN elsewhere.
    """
    (k0, n0), (k1, n1) = BOUND_ENDS.items()
    k = np.asarray(num_bits, np.float64)
    slope = np.log(n1 / n0) / np.log(k1 / k0)
    return np.where((k >= k0) & (k <= k1), n0 * (k / k0) ** slope, np.nan)
