"""Mistakes in a config of `feature_fusion.py`, found before anything is written."""

import ensjax
from ensjax.combine.learned.fusion import GATE_FORMS
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_numbers, choose, load_beside
from ensjax.train import arguments
from ensjax.train.schedule import Schedule

models = load_beside(__file__, "feature_fusion_models")
tasks = load_beside(__file__, "feature_fusion_tasks")

_NEEDED = ("concat", "static", "gated")


def validate(config, mesh=None):
    """Raises `ConfigError` for names, numbers and options that cannot work."""
    if not config.tasks or len(set(config.tasks)) < len(config.tasks):
        raise ConfigError(
            f"config.tasks names at least one task, each once; got {config.tasks}."
        )
    for name in config.tasks:
        choose("tasks", name, tasks.TASKS)
    for name in config.fusions:
        choose("fusions", name, dict.fromkeys(models.KINDS))
    for name in config.gate_forms:
        choose("gate_forms", name, dict.fromkeys(GATE_FORMS))
    if not config.gate_forms or len(set(config.gate_forms)) < len(config.gate_forms):
        raise ConfigError(
            "config.gate_forms names at least one form, each once; got"
            f" {config.gate_forms}."
        )
    missing = [name for name in _NEEDED if name not in config.fusions]
    if missing or len(set(config.fusions)) < len(config.fusions):
        raise ConfigError(
            f"config.fusions holds {', '.join(_NEEDED)} and others once each; got"
            f" {config.fusions}."
        )
    for name in config.schedules:
        choose("schedules", name, dict.fromkeys(models.SCHEDULES))
    if config.schedules and "alternating" not in config.schedules:
        raise ConfigError(
            f"config.schedules holds alternating, and may hold joint, or is empty; got"
            f" {config.schedules}."
        )
    whole = ("num_seeds", "num_member", "num_fusion", "num_test", "hidden", "features")
    whole += ("dim", "num_heads", "batch_size", "member_steps", "fusion_steps")
    whole += ("num_choice", "evaluate_every_steps")
    check_numbers(config, whole, at_least=1)
    if config.num_choice >= config.num_fusion:
        raise ConfigError(
            "config.num_choice must be below config.num_fusion, of whose rows they are;"
            f" got {config.num_choice} and {config.num_fusion}."
        )
    if len(set(config.search_l2)) < len(config.search_l2):
        raise ConfigError(
            f"config.search_l2 must be different numbers; got {config.search_l2}."
        )
    check_numbers(config, ("learning_rate", "member_learning_rate"), above=0)
    check_numbers(
        config, ("l2", "search_l2", "beta", "balance", "sharpness"), at_least=0
    )
    check_numbers(config, ("corruption",), at_least=0, below=1)
    check_numbers(config, ("bytes_per_row",), at_least=4, at_most=2000)
    if config.corruption and config.tasks[0] != "digit_views":
        raise ConfigError(
            "config.corruption is of digit_views, which is then the first of"
            f" config.tasks; got {config.corruption} and {config.tasks}."
        )
    if "attention" in config.fusions and config.dim % config.num_heads:
        raise ConfigError(
            f"config.num_heads={config.num_heads} must divide config.dim={config.dim}."
        )
    models.members_at_once(config)
    try:
        arguments.check_seed(config.seed)
        arguments.check_fit_mesh(mesh or ensjax.make_mesh(**config.mesh.to_dict()))
        together = config.member_steps + config.fusion_steps
        for steps, evaluates in (
            (config.member_steps, None),
            (config.fusion_steps, config.evaluate_every_steps),
            (together, config.evaluate_every_steps),
        ):
            Schedule.of(
                steps=steps,
                steps_per_call=config.steps_per_call,
                log_every_steps=config.log_every_steps,
                evaluate_every_steps=evaluates,
                save_every_steps=config.save_every_steps,
            )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config: {one_line(error)}") from error
    for name in config.tasks:  # are there enough rows?
        if name in ("digit_views", "features"):
            tasks.load_task(config, name)
