"""A majority vote of nearest neighbours, a random forest and a decision tree.

Beside it, `hybrid_voting_phantoms.py` draws and segments, `hybrid_voting_features.py`
describes (`hybrid_voting_loops.py` checks that), `hybrid_voting_members.py` fits and
votes, `hybrid_voting_images.py` puts these together, `hybrid_voting_small_data.py`
compares with networks, `hybrid_voting_claims.py` and `hybrid_voting_checks.py` judge,
`hybrid_voting_figures.py` draws.
"""

import ensjax
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_multiples, check_numbers, load_beside
from ensjax.experiment.stages import run_stages

images = load_beside(__file__, "hybrid_voting_images")
members = load_beside(__file__, "hybrid_voting_members")
small_data = load_beside(__file__, "hybrid_voting_small_data")
verdicts = load_beside(__file__, "hybrid_voting_claims")
bounds = load_beside(__file__, "hybrid_voting_checks")
figures = load_beside(__file__, "hybrid_voting_figures")

COUNTS = (
    "num_neighbors",
    "num_trees",
    "num_table_splits",
    "num_image_sets",
    "num_contrast_sets",
    "num_components",
    "num_members",
    "hidden",
    "batch_size",
    "total_steps",
    "steps_per_call",
    "num_looped",
)


def validate(config, mesh=None):
    """Raises `ConfigError` for numbers that cannot work, or a folder without images.

    Args:
        config: of the run.
        mesh: of a plan, which needs no images; None: of a run.
    """
    check_numbers(config, COUNTS, at_least=1)
    check_numbers(config, ["row_counts"], at_least=20)
    check_numbers(config, ["num_contrast_images"], at_least=4)
    check_numbers(config, ["test_share"], above=0, below=0.5)
    check_numbers(config, ["learning_rate"], above=0)
    check_numbers(config, ["blob_level", "contrast_levels"], above=0.42, at_most=1)
    check_numbers(config, ["num_images"], at_least=60)
    check_numbers(config, ["images.size"], at_least=16)
    if len(config.blob_level) != 2 or config.blob_level[0] > config.blob_level[1]:
        raise ConfigError(
            "config.blob_level is (lowest, highest) grey of the tumour; got"
            f" {config.blob_level}."
        )
    if list(config.contrast_levels) != sorted(set(config.contrast_levels)) or (
        len(config.contrast_levels) < 2
    ):
        raise ConfigError(
            "config.contrast_levels are at least two rising greys, the edges of the"
            f" groups; got {config.contrast_levels}."
        )
    if config.num_neighbors > min(config.row_counts):
        raise ConfigError(
            "config.num_neighbors must be at most the smallest of config.row_counts,"
            f" {min(config.row_counts)}; got {config.num_neighbors}."
        )
    if config.num_components > 16:
        raise ConfigError(
            "config.num_components must be at most the 16 wavelet features; got"
            f" {config.num_components}."
        )
    check_multiples(config, ("total_steps",))
    if mesh is None:
        try:
            ensjax.make_mesh(**config.mesh.to_dict())
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.mesh: {one_line(error)}") from error
    if config.images.is_real and (config.images.path or mesh is None):
        images.list_files(config)


def run(config, run_dir):
    """Describes images, fits, votes and reports; the same command resumes."""
    results = run_stages(
        run_dir,
        config,
        {
            "table": lambda done: members.measure_table(config),
            "ties": lambda done: members.measure_ties(config),
            "segmentation": lambda done: images.measure_segmentation(config),
            "described": lambda done: images.describe(config),
            "images": lambda done: images.measure_images(config, done["described"]),
            "small_data": lambda done: small_data.measure(
                config, done["described"], run_dir
            ),
        },
        takes_members_from=True,
    )
    claims = verdicts.make_claims(config, results)
    checks = bounds.make_checks(config, results)
    figures.add_tables(run_dir, config, results)
    figures.add_figures(run_dir, config, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, results, claims, checks),
        scalars=verdicts.summarise(config, results),
        claims=claims,
        checks=checks,
    )


def training_job(config, *, shapes_only=False):
    """The networks of the comparison on few rows, as one stack.

    Args:
        config: of the run.
        shapes_only: leave slices that are not at hand as the shapes of `num_images`.
    """
    if shapes_only and config.images.is_real and not config.images.path:
        return small_data.training_job(config, small_data.task_shapes(config))
    tasks = small_data.draw_tasks(config, images.describe(config))
    return small_data.training_job(config, small_data.join_tasks(tasks))
