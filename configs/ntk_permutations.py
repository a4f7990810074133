"""Permutations from k basis vectors: how many networks make every answer right?

    ensjax run configs/ntk_permutations.py
    ensjax run configs/ntk_permutations.py:claims
    ensjax plan configs/ntk_permutations.py:paper --devices 8

The problem makes its own data: the k basis vectors to train on, the 2^k - 1 nonzero
binary inputs (or draws from them) to be right on. Two laws are followed side by side:
"ntk", where all weights learn, and "readout", where the last layer does, which is what
the published code follows.

On 2 CPU cores (AMD EPYC) beside other work small took 5 min 16 s and claims 7 min 8 s.
Over 160 draws all inputs are right in half of them from N
= 161 (k = 4) to 914 (k = 16) networks on with the NTK, where k predicts best, and from
20 to 181 with the readout, where k log k does; the exponent of k is 1.16 (1.10 to 1.23)
and 1.51 (1.46 to 1.57): k^2 is a bound and no rate. For one input N90 is 88, 299, 448,
550, 692, 826 (NTK) and 15, 55, 84, 120, 148, 186 (readout; published 43, 69, 103, 117,
157, 175) at k = 5, 10, ..., 30.

Check B (means of networks within 4 standard errors of the law) fails in claims: 4.9,
and that is the width. With each network's first outputs as a control variate, 2,000
networks have f1 at two ones too large by .0065, .0047 and .0034 (+- .0001) at widths
2,048, 4,096 and 8,192 with the NTK: 3.0 standard errors of 200 networks at 4,096, so
that the largest of ten seeds may well be 4.9; 1 standard error needs a width of about
37,000. With the readout it is below .0002 at all of them. The bias falls like 1 /
sqrt(width), not 1 / width: a hidden unit that is off at a basis vector has no gradient
there, so that training switches units off and none on. With erf, which has no such
edge, it is .00049, .00024, .00012 and .00006 at widths 512 to 4,096: 1 / width.

1,000 networks of width 1,024 that learn to add have every sum right. Their variance is
6.1 % above the law with the readout, just beyond the bound of 6 %, and that is the
width again: 5.4 % and 6.0 % with other seeds, 1.7 % at 4,096.

paper has not been run. It trains 5,000 networks of each of five permutations, for every
k and law; the 25,000 of k = 30 take 2.3 GiB on each of 8 devices, five at a time, and
96 T operations a device (`ensjax plan`, structure of CPU devices).
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset not in ("smoke", "small", "claims", "paper"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    smoke, claims, paper = (preset == p for p in ("smoke", "claims", "paper"))
    config = ml_collections.ConfigDict(dict(experiment="ntk_permutations"))
    config.title = "Permutations learned exactly from basis vectors by NTK ensembles"
    config.scale = "full" if paper else "reduced"  # of the trained networks
    config.seed = 0
    # A seed draws a permutation for each k, initial weights and deviations.
    config.num_seeds = 2 if smoke else 10 if claims else 5
    config.kinds = ("ntk", "readout")
    config.delta = 0.1  # chance of an error that is allowed
    # A: closed forms against the algebra of kernels; the sign of f0 and f1 up to max.
    config.forms = ml_collections.ConfigDict(
        dict(
            num_bits=(5,) if smoke else (5, 10, 30),
            max_bits=100 if smoke else 1_000,
        )
    )
    # B: networks of finite width, trained on the basis vectors until every mode's error
    # is below the residual. Above cube_bits inputs are draws with two ones.
    config.networks = ml_collections.ConfigDict(
        dict(
            num_bits=tuple(range(2, 31)) if paper else (6,) if smoke else (8,),
            width=50_000 if paper else 256 if smoke else 4_096,
            num_members=5_000 if paper else 40 if smoke else 200,  # of a seed
            cube_bits=10,
            num_inputs=1_000,
            rate_fraction=0.9,  # of the critical learning rate
            residual=1e-6 if paper else 1e-5,
            ones=(2, 3, 4) if smoke or paper else (2, 3, 4, 7),
            # Members of a device that are trained at once: a number, "auto" or "all".
            block="5" if paper else "1",
        )
    )
    # What the width does: f0 of trained networks, and how far the kernel moves.
    config.widths = ml_collections.ConfigDict(
        dict(
            num_bits=6 if smoke else 8,
            sizes=(32, 128) if smoke else (64, 256, 1_024, 4_096),
            num_members=40 if smoke else 400,
            num_drift_members=4 if smoke else 8,
            parameterisations=("ntk",) if smoke else ("ntk", "standard", "mup"),
            # Of "mup", whose kernel moves: slower, and longer than the kernel says.
            mup_fraction=0.45,
            matrix_bits=4 if smoke else 5,
            matrix_width=256 if smoke else 1_024,
            matrix_members=8 if smoke else 64,
        )
    )
    # C: infinite networks added one by one, on all inputs with two ones.
    config.curve = ml_collections.ConfigDict(
        dict(
            num_bits=(6,) if smoke else (5, 10, 15, 20, 25, 30),
            num_repetitions=3 if smoke else 20,
            targets=(0.9, 0.999),
            # Networks: so many times what one input needs at the second target.
            stretch=2.0,
            block=64,
        )
    )
    # D, E: growth. For one input exactly; for the cube from draws of N*.
    config.growth = ml_collections.ConfigDict(
        dict(
            num_bits=tuple(range(4, 17)),
            large_bits=(10, 20, 30, 50, 100, 200, 300, 500, 1_000),
            deltas=(0.1, 0.05, 0.01, 0.005, 0.001),
        )
    )
    config.cube = ml_collections.ConfigDict(
        dict(
            num_bits=(4, 6, 8) if smoke else tuple(range(4, 17)),
            num_draws=20 if smoke else 64 if claims else 32,  # of a seed
            fitted_up_to=6 if smoke else 10,  # laws are tried on larger k
        )
    )
    # A stream of infinite networks, scored on the whole cube for every N.
    config.stream = ml_collections.ConfigDict(
        dict(
            num_bits=6 if smoke else 10,
            num_members=2_000 if smoke else 100_000,
            block=64,
        )
    )
    # Other tasks, with the exact mean of the infinite ensemble in place of networks;
    # and networks that are trained to add (none if 0).
    config.tasks = ml_collections.ConfigDict(
        dict(
            copy_bits=6,
            addition_bits=3,
            multiplication_bits=2,
            num_padding=4,
            num_networks=0 if smoke else 1_000,
            width=50_000 if paper else 1_024,
        )
    )
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
