"""Data sets, splits, plans of what members see, augmentation, shifts and streams."""

from ensjax.data.augmentation import (
    AugmentImages,
    Compose,
    Transform,
    augment_images,
    compose,
    random_crop,
    random_flip,
    random_noise,
    random_rotation,
    rotate_image,
)
from ensjax.data.bagging import (
    balanced_weights,
    bootstrap_weights,
    random_subspaces,
)
from ensjax.data.class_weights import (
    class_weights,
)
from ensjax.data.datasets import (
    DATASETS,
    digits,
    digits_enlarged,
    find_dataset,
    mnist5k,
)
from ensjax.data.domain import (
    TrainingDomain,
)
from ensjax.data.downloads import (
    extract_files,
    fetch,
)
from ensjax.data.image_files import (
    cifar10,
    cifar100,
    mnist_idx,
    read_idx,
)
from ensjax.data.masked_stages import (
    FittedStages,
    ImputeMean,
    PrincipalComponents,
    SelectByF,
    Standardize,
    f_scores,
    fit_masked_stages,
)
from ensjax.data.multicolor import (
    class_colors,
    mnist_centers,
    multicolor,
    multicolor_digits,
    multicolor_mnist,
    paint_border,
    patch_colors,
    stage_agreement,
    subsampled,
)
from ensjax.data.partition import (
    Folds,
    Split,
    leave_one_group_out,
    make_folds,
    split_rows,
)
from ensjax.data.pipeline import (
    FittedPipeline,
    fit_in_splits,
    predict_held_out,
)
from ensjax.data.prefetch import (
    PrefetchedChunks,
    prefetch_chunks,
    stack_steps,
)
from ensjax.data.provenance import (
    Dataset,
    check_dataset,
)
from ensjax.data.sampling import (
    accumulate_weights,
    batch_positions,
    bayesian_bootstrap_weights,
    bootstrap_counts,
    bootstrap_rows,
    epoch_orders,
    example_keys,
    out_of_bag,
    poisson_bootstrap_counts,
    weighted_rows,
)
from ensjax.data.shifted_splits import (
    split_by_cluster,
    split_by_feature,
    thin_target,
)
from ensjax.data.shifts import (
    SHIFTS,
    Shift,
    apply_shift,
    gaussian_blur,
    gaussian_noise,
    lower_contrast,
    rotate,
)
from ensjax.data.splits import (
    check_disjoint,
    k_folds,
    train_test_split,
)
from ensjax.data.streams import (
    Batches,
    as_batches,
    stream,
)

__all__ = [
    "AugmentImages",
    "Batches",
    "Compose",
    "DATASETS",
    "Dataset",
    "FittedPipeline",
    "FittedStages",
    "Folds",
    "ImputeMean",
    "PrefetchedChunks",
    "PrincipalComponents",
    "SHIFTS",
    "SelectByF",
    "Shift",
    "Split",
    "Standardize",
    "TrainingDomain",
    "Transform",
    "accumulate_weights",
    "apply_shift",
    "as_batches",
    "augment_images",
    "balanced_weights",
    "batch_positions",
    "bayesian_bootstrap_weights",
    "bootstrap_counts",
    "bootstrap_rows",
    "bootstrap_weights",
    "check_dataset",
    "check_disjoint",
    "cifar10",
    "cifar100",
    "class_colors",
    "class_weights",
    "compose",
    "digits",
    "digits_enlarged",
    "epoch_orders",
    "example_keys",
    "extract_files",
    "f_scores",
    "fetch",
    "find_dataset",
    "fit_in_splits",
    "fit_masked_stages",
    "gaussian_blur",
    "gaussian_noise",
    "k_folds",
    "leave_one_group_out",
    "lower_contrast",
    "make_folds",
    "mnist5k",
    "mnist_centers",
    "mnist_idx",
    "multicolor",
    "multicolor_digits",
    "multicolor_mnist",
    "out_of_bag",
    "paint_border",
    "patch_colors",
    "poisson_bootstrap_counts",
    "predict_held_out",
    "prefetch_chunks",
    "random_crop",
    "random_flip",
    "random_noise",
    "random_rotation",
    "random_subspaces",
    "read_idx",
    "rotate",
    "rotate_image",
    "split_by_cluster",
    "split_by_feature",
    "split_rows",
    "stack_steps",
    "stage_agreement",
    "stream",
    "subsampled",
    "thin_target",
    "train_test_split",
    "weighted_rows",
]
