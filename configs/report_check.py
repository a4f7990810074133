"""Which simulated reports hold an error? Votes of five members, and of the reader.

    ensjax run configs/report_check.py                  # small: five seeds
    ensjax run configs/report_check.py:claims           # ten seeds
    ensjax run configs/report_check.py:paper            # answers of real models: unrun

On 2 busy CPU cores (AMD EPYC; seconds of CPU): smoke 43, small 90, claims about 130. In
the 10 seeds of claims tuned members are right on 84.8 and 89.5 % of the reports of two
domains, untuned ones on 69.8 and 74.0 %, the vote of five on 89.6 and 92.8 %. Where the
reader was wrong the vote is right on 78.1 and 79.0 %, and on 88.5 and 89.0 % of matched
cases: no special complementarity. Verdicts are in experiments/RESULTS.md. paper has
not run.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    config = ml_collections.ConfigDict(dict(experiment="report_check", scale="toy"))
    config.title = "Report error-checking: votes, and the cases that a reader missed"
    config.seed = 0
    config.num_seeds = dict(smoke=2, small=5, claims=10, paper=1)[preset]
    config.num_members = 5

    # Reports, images and what is wrong with them are drawn anew for every seed.
    config.reports = ml_collections.ConfigDict(
        dict(
            num_findings=12,
            num_features=24,
            image_noise_sd=0.3,
            general_prevalence=0.2,
            # Of the two domains A and B: how often a finding is present, and the angle
            # (radians) by which the image of each finding is turned away.
            prevalence=(0.25, 0.15),
            turn=(0.35, 0.5),
            altered_share=0.5,
            damaged_share=0.02,  # clauses of which the side cannot be read
            num_general=4_000,
            num_train=3_000,
            num_labelled=100,  # for thresholds, and to name the best member
            num_test=2_000,
        )
    )
    config.unread_share = 0.02  # answers of members that say neither yes nor no

    config.hidden = (96, 96)
    # Untuned models that are ranked beside a member: linear, one wide layer, two towers
    # (image and report are embedded apart, as in contrastive models).
    config.kinds = ("linear", "one wide layer", "two towers")
    config.learning_rate = 1e-3
    config.batch_size = 128
    config.untuned_steps, config.tuned_steps, config.reader_steps = 1_000, 1_000, 300
    config.steps_per_call = 100
    config.reader_noise_sd = 0.45  # of the reader's images
    config.reader_qualities = (0.7, 0.75, 0.8, 0.85, 0.9)
    config.subset_size, config.num_subsets = 21, 1_000
    config.num_bootstrap = 1_000
    config.block = "auto"
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))

    # Votes without networks: logistic models on breast-cancer rows.
    config.alone = ml_collections.ConfigDict(
        dict(
            num_seeds=dict(smoke=2, small=10, claims=10, paper=1)[preset],
            num_test=369,
            num_features=3,
            num_rows=60,
            flipped_share=0.3,
        )
    )

    # preset paper: a CSV file with one row per report and a column "error" (none,
    # insert, remove or substitute), a column "reader" (yes or no: is there an error?)
    # and one column for each model with its answer in its own words.
    config.answers = ml_collections.ConfigDict(dict(path=""))
    config.from_answers = preset == "paper"
    if preset == "smoke":
        config.kinds = ("two towers",)
        config.reports.num_general, config.reports.num_train = 600, 600
        config.reports.num_test = 400
        config.untuned_steps = config.tuned_steps = 100
        config.reader_steps, config.steps_per_call = 50, 50
        config.num_bootstrap, config.num_subsets = 50, 50
    if preset == "paper":
        config.scale = "full"
    return config
