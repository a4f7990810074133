"""Nearest neighbours, a forest and a tree vote: benign or malignant?

    ensjax run configs/hybrid_voting.py                 # small: ten splits
    ensjax run configs/hybrid_voting.py:claims          # thirty and sixty splits
    ensjax run configs/hybrid_voting.py:paper           # a folder of MR images: unrun

On 2 busy CPU cores (AMD EPYC; seconds of CPU): smoke 20, small 51, claims 213. Over the
30 splits of claims the hard vote is right on 95.8 % of the breast-cancer rows, KNN
alone on 96.4 % and a tree on 92.0 %: the vote beats the tree, and not KNN. On 60 sets
of phantoms it is right on 81.7 %: more than KNN and the tree, less than the forest.
Five networks on as few as 25 rows do no worse. All votes equal scikit-learn's. Verdicts
are in experiments/RESULTS.md. paper has not run.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    config = ml_collections.ConfigDict(dict(experiment="hybrid_voting", scale="toy"))
    config.title = "Hybrid voting: nearest neighbours, forest and tree"
    config.seed = 0
    config.num_neighbors = 5
    config.num_trees = 100
    config.test_share = 0.15

    # scikit-learn's breast-cancer rows, split anew for each seed.
    config.num_table_splits = dict(smoke=2, small=10, claims=30, paper=30)[preset]
    # Sets of phantoms with a tumour, each drawn anew and split once, and the images of
    # each; of a folder of slices, splits of all (so many in the paper).
    config.num_image_sets = dict(smoke=2, small=10, claims=60, paper=20)[preset]
    config.num_images = dict(smoke=80, small=400, claims=400, paper=2_556)[preset]
    config.blob_level = (0.74, 0.86)  # grey of the tumour; the brain is 0.42
    # Segmentation against contrast: lower and upper grey of each group of images.
    config.contrast_levels = (0.54, 0.62, 0.70, 0.78, 0.86)
    config.num_contrast_sets = dict(smoke=2, small=5, claims=10, paper=10)[preset]
    contrast_images = dict(smoke=8, small=100, claims=400, paper=400)
    config.num_contrast_images = contrast_images[preset]
    config.num_components = 3  # of the wavelet features, beside ten texture features

    # Votes against networks on few rows.
    config.row_counts = (25, 50, 100, 340)
    config.num_members = 5
    config.hidden = (32, 32)
    config.learning_rate = 3e-3
    config.batch_size = 16
    config.total_steps = 500
    config.steps_per_call = 50
    config.num_looped = 10  # images whose features are also computed as loops
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))

    # preset paper: <path>/<class>/<patient>_<slice>.png (or .jpg), two classes.
    config.images = ml_collections.ConfigDict(dict(path="", size=128, is_real=False))
    if preset == "smoke":
        config.row_counts, config.num_trees = (25, 60), 20
        config.total_steps, config.num_looped = 50, 2
    if preset == "paper":
        config.scale, config.images.is_real = "full", True
    return config
