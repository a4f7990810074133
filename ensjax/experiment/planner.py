"""`ensjax plan`: what a config's job needs and does, without running it."""

import contextlib
import dataclasses
import inspect
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ensjax.experiment import exit_codes
from ensjax.experiment.configs import (
    find_experiment,
    load_config,
    load_module,
)
from ensjax.experiment.exit_codes import ConfigError, one_line
from ensjax.experiment.json_files import check_json_option, json_text
from ensjax.experiment.overrides import flatten_fields
from ensjax.experiment.plan_fields import (
    FORMS,
    PlanFields,
    batch_size_of,
    changed_config,
    find_fields,
)
from ensjax.experiment.plan_options import (
    PlanOptions,
    check_together,
    parse_memory,
    parse_mesh,
)
from ensjax.experiment.stand_ins import fewer_members, sizes_to_stand_in

# The child that plans for stand-in devices writes what it found into this file.
_CHILD = "ENSJAX_PLAN_FILE"
# What an experiment describes: a call of `fit`, or else one of `map_members`.
_JOBS = ("training_job", "mapped_job")


def plan_config(options: PlanOptions, arguments: Sequence[str]) -> int:
    """Plans a config, prints tables, and returns the exit code.

    Args:
        options: of the command line.
        arguments: the command line itself, for a child with stand-in devices.

    Raises:
        ConfigError: for a mistake of the user, and where nothing fits.
    """
    if options.json is not None:
        check_json_option(options.json)
    memory = None if options.memory is None else parse_memory(options.memory)
    sizes = {} if options.mesh is None else parse_mesh(options.mesh)
    check_together(options)
    source, config = load_config(options.spec, options.overrides)
    path = find_experiment(source, config)
    for axis, size in sizes.items():
        if axis in config.get("mesh", {}):
            config.mesh[axis] = size
    wanted = dict(config.get("mesh", {})) | sizes
    sizes = wanted if options.topology is not None else sizes_to_stand_in(wanted)
    needed = _devices_needed(options, sizes)
    devices = _find_devices(options, needed)
    if devices is None:
        code, report = _plan_in_child(arguments, needed)
        if code:
            return code
    else:
        mesh = _make_mesh(sizes, devices)
        report = _plan_here(
            options, source, config, path, mesh, memory, (wanted, sizes)
        )
    child_file = os.environ.get(_CHILD)
    if child_file:
        Path(child_file).write_text(json_text(report))
        return exit_codes.FINISHED
    from ensjax.experiment.plan_tables import print_report

    print_report(report)
    if options.json is not None:
        _write_json(options.json, report)
    if memory is not None and report["choices"]["best"] is None:
        fixed = f" ({report['fixed']})" if report["fixed"] else ""
        raise ConfigError(
            f"nothing that was tried fits {options.memory} on a device{fixed}; use more"
            " devices along data or member, or a smaller model."
        )
    return exit_codes.FINISHED


def _devices_needed(options, sizes) -> int:
    """How many devices are asked for; 0: those that there are."""
    product = 0 if -1 in sizes.values() else math.prod(sizes.values())
    return max(options.devices or 0, product if sizes else 0)


def _find_devices(options, needed) -> Sequence[Any] | None:
    """The devices to plan for; None if stand-ins are needed, in another process."""
    import jax

    if options.topology is not None:
        from ensjax.planning import NoTopology, topology_devices
        from ensjax.planning.topology import is_of_gpus

        if not is_of_gpus(options.topology):
            with contextlib.suppress(RuntimeError):  # JAX has started its devices
                jax.config.update("jax_platforms", "cpu")
        try:
            devices = topology_devices(options.topology)
        except NoTopology as error:
            raise ConfigError(one_line(error)) from error
        if needed > len(devices):
            raise ConfigError(
                f"{options.topology} has {len(devices)} devices, but {needed} are asked"
                " for."
            )
        return devices[: options.devices]
    from ensjax.mesh import use_cpu_cores

    with contextlib.suppress(RuntimeError):
        use_cpu_cores()
    devices = jax.devices()
    if needed > len(devices):
        if os.environ.get(_CHILD):
            raise ConfigError(f"there are only {len(devices)} stand-in devices.")
        if options.tune or options.trial:
            raise ConfigError(
                f"--tune and --trial run on real devices, of which there are"
                f" {len(devices)}; {needed} are asked for."
            )
        return None
    return devices[: options.devices]


def _plan_in_child(arguments, num_devices) -> tuple[int, dict[str, Any] | None]:
    """The exit code of a process with so many CPU devices, and what it finds.

    It has said itself what went wrong.
    """
    is_safe = "" not in sys.path and os.getcwd() not in sys.path
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        environment = os.environ | {
            _CHILD: str(file),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(num_devices),
        }
        environment.pop("XLA_FLAGS", None)  # may set another number
        command = [sys.executable, *(["-P"] if is_safe else []), "-m", "ensjax.cli"]
        code = subprocess.run([*command, *arguments], env=environment).returncode
        return code, None if code else json.loads(file.read_text())


def _make_mesh(sizes, devices):
    from ensjax.mesh import make_mesh

    try:
        return make_mesh(**sizes, devices=devices)
    except ValueError as error:
        raise ConfigError(one_line(error)) from error


def _plan_here(
    options, source, config, path, mesh, memory, wanted_and_planned
) -> dict[str, Any]:
    from ensjax import planning

    experiment = _load_experiment(config, path, mesh)
    is_stand_in = bool(os.environ.get(_CHILD))
    trial = {None: "auto", True: "always", False: "never"}[options.trial]
    if is_stand_in:
        trial = "never"
    say = _progress()
    job, only_some = fewer_members(_make_job(experiment, config), *wanted_and_planned)
    is_mapped = isinstance(job, planning.MappedJob)
    if is_mapped and (options.tune or options.trial):
        raise ConfigError(
            f"{path} describes a mapped_job(config), whose steps are inside one call:"
            " --tune and --trial need a training_job(config)."
        )
    fields = PlanFields()
    if not is_mapped and (memory is not None or options.tune):

        def make_job(changed):
            _validate(experiment, changed, mesh)
            made = _make_job(experiment, changed)
            return fewer_members(made, *wanted_and_planned)[0]

        with _one_line_errors():
            fields = find_fields(config, job, make_job)
    if options.tune and not any((fields.block, fields.unroll, fields.conv_form)):
        raise ConfigError(
            f"{source.name}:{source.preset} has no field that sets block, unroll or"
            " conv_form of what is planned, so that nothing which --tune times could be"
            " pinned."
        )
    save_every_steps = config.get("save_every_steps", 0)
    report = {
        "config": source.name,
        "preset": source.preset,
        "overrides": [list(pair) for pair in options.overrides],
        "title": config.get("title", ""),
        "topology": options.topology,
        "structure_only": is_stand_in,
        "only_some": only_some,
        "versions": _versions(),
        "fields": [],
        "fixed": _show_fixed(options, fields, is_mapped),
        "plan": None,
        "forecasts": None,
        "choices": None,
        "tuning": None,
    }
    with _one_line_errors():
        try:
            known = planning.plan(
                job,
                mesh=mesh,
                save_every_steps=save_every_steps,
                trial=trial,
                say=say,
            )
            report["plan"] = known.to_json()
            if is_stand_in:
                report["plan"]["why_no_trial"] = "the devices are stand-ins"
        except planning.DoesNotFit as error:
            known = error
            report["does_not_fit"] = _show_unfit(error)
            if memory is None:
                raise ConfigError(
                    f"{report['does_not_fit']}; --memory looks for settings that fit."
                ) from error
        if memory is not None:
            report |= _find_choices(
                experiment,
                config,
                job,
                fields,
                mesh,
                memory_bytes=memory,
                known=known,
                wanted_and_planned=wanted_and_planned,
                say=say,
            )
        if options.tune:
            tuning = planning.tune(
                job,
                forms=_jobs_of_forms(experiment, config, fields),
                mesh=mesh,
                in_blocks=fields.block is not None,
                unrolled=fields.unroll is not None,
                say=say,
            )
            report["tuning"] = dataclasses.asdict(tuning)
            rows = _local_members(job, mesh)
            pin = _pin_of_timing(fields, tuning, job.options, rows)
            report["tuning"]["field"] = pin
        report["forecasts"] = _plan_forecasts(experiment, config, mesh, say)
    return report


def _plan_forecasts(experiment, config, mesh, say) -> dict[str, Any] | None:
    """Of a config with `forecasts`, on the first devices of those that are planned for.

    Raises:
        ConfigError: if there are too few devices.
    """
    if "forecasts" not in config or not hasattr(experiment, "forecast_job"):
        return None
    from ensjax.emulate import plan_forecasts

    job = experiment.forecast_job(config)
    devices, number = list(mesh.devices.flat), math.prod(job.mesh_sizes.values())
    if number > len(devices):
        raise ConfigError(
            f"config.forecasts.mesh has {number} devices, of which {len(devices)} are"
            " planned for: set --config.forecasts.mesh.member to fewer."
        )
    own = job.mesh(devices[:number])
    return plan_forecasts(job, own, say=say).to_json()


@contextlib.contextmanager
def _one_line_errors():
    """What `fit` would say of a job that cannot work, as one line."""
    from ensjax.planning import DoesNotFit

    try:
        yield
    except ConfigError:
        raise
    except DoesNotFit as error:
        raise ConfigError(_show_unfit(error)) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(one_line(error)) from error


def _show_unfit(error) -> str:
    from ensjax.experiment.plan_tables import show_bytes

    if error.needed_bytes is None:
        return f"the compiler finds no room for the program: {one_line(error)[:200]}"
    return (
        "the compiler finds no room for the program: it needs"
        f" {show_bytes(error.needed_bytes)} of the"
        f" {show_bytes(error.limit_bytes)} on a device"
    )


def _load_experiment(config, path, mesh):
    try:
        experiment = load_module(path, "experiment")
    except ImportError as error:
        raise ConfigError(f"{path} needs a package: {one_line(error)}") from error
    if not any(hasattr(experiment, name) for name in _JOBS):
        raise ConfigError(
            f"{path} defines no {' and no '.join(f'{name}(config)' for name in _JOBS)},"
            " so there is nothing to plan."
        )
    _validate(experiment, config, mesh)
    return experiment


def _validate(experiment, config, mesh):
    validate = getattr(experiment, "validate", None)
    if validate is None:
        return
    takes_mesh = "mesh" in inspect.signature(validate).parameters
    try:
        validate(config, mesh=mesh) if takes_mesh else validate(config)
    except ValueError as error:
        raise ConfigError(one_line(error)) from error


def _make_job(experiment, config):
    """The job of a config; data that are not at hand stay shapes if it can do so."""
    name = next(name for name in _JOBS if hasattr(experiment, name))
    make = getattr(experiment, name)
    if "shapes_only" in inspect.signature(make).parameters:
        return make(config, shapes_only=True)
    return make(config)


# Settings


def _show_fixed(options, fields, is_mapped) -> str:
    """What no field of the config sets, in words; "" if that is nothing of use here."""
    names = ("block", "batch_size") if options.memory is not None else ()
    names += ("block", "unroll") if options.tune else ()
    missing = () if is_mapped else fields.missing(tuple(dict.fromkeys(names)))
    if not missing:
        return ""
    return (
        f"the config has no field that sets {' or '.join(missing)} of what is planned"
    )


def _local_members(job, mesh) -> int:
    """Of the largest stack, on each device."""
    stacks = getattr(job, "stacks", (job,))
    members = max(len(stack.member_ids) for stack in stacks)
    return math.ceil(members / mesh.shape["member"])


def _find_choices(
    experiment,
    config,
    job,
    fields,
    mesh,
    *,
    memory_bytes,
    known,
    wanted_and_planned,
    say,
) -> dict[str, Any]:
    from ensjax import planning

    if isinstance(job, planning.MappedJob):
        # Neither batches nor derivatives are known of it: its block is what can change.
        settings = planning.Settings(block=job.block, remat=None, batch_size=1)
        rows = math.ceil(job.num_members / mesh.shape["member"])
        fields = PlanFields(block=job.block_field, words=frozenset(("all",)))
        fixed = ("batch_size",)
    else:
        values = dict(flatten_fields(config))
        settings = planning.Settings(
            block=job.options.get("block", "auto"),
            remat=None if fields.remat is None else values[fields.remat],
            batch_size=batch_size_of(job),
        )
        rows, fixed = _local_members(job, mesh), fields.missing(("block", "batch_size"))

    def make_job(new):
        pinned = _pin_of_settings(fields, settings, new, rows)
        made = _make_job(experiment, changed_config(config, pinned))
        return fewer_members(made, *wanted_and_planned)[0]

    choices = planning.find_choices(
        make_job,
        settings,
        mesh=mesh,
        local_members=rows,
        memory_bytes=memory_bytes,
        fixed=fixed,
        known=known,
        say=say,
    )
    pinned = []
    if choices.best is not None:
        pinned = _pin_of_settings(fields, settings, choices.best.settings, rows)
    return {
        "choices": dataclasses.asdict(choices),
        "fields": [f"--config.{name}={text}" for name, text in pinned],
    }


def _pin_of_settings(fields, old, new, rows) -> list[tuple[str, str]]:
    """The fields of a config that turn one kind of settings into another."""
    pinned = []
    if new.block != old.block:
        pinned.append((fields.block, fields.block_text(new.block, rows)))
    if new.remat != old.remat:
        pinned.append((fields.remat, str(new.remat).lower()))
    if new.batch_size != old.batch_size:
        pinned.append((fields.batch_size, str(new.batch_size)))
    return pinned


def _jobs_of_forms(experiment, config, fields) -> dict[str, Any]:
    """The job with its convolutions in each form but the config's own, by name."""
    field = fields.conv_form
    if field is None:
        return {}
    own = dict(flatten_fields(config))[field]
    return {
        form: _make_job(experiment, changed_config(config, [(field, form)]))
        for form in FORMS
        if form != own
    }


def _pin_of_timing(fields, tuning, options, rows) -> list[str]:
    """What pins the best of all that was timed."""
    best, pinned = tuning.best, []
    if fields.block is not None:
        number = tuning.auto_block if best.block == "auto" else rows
        pinned.append((fields.block, fields.block_text(best.block, number)))
    if best.form is not None:
        pinned.append((fields.conv_form, best.form))
    if fields.unroll is not None and best.unroll != options.get("unroll", False):
        pinned.append((fields.unroll, str(best.unroll).lower()))
    return [f"--config.{name}={text}" for name, text in pinned]


# Output


def _versions() -> dict[str, str]:
    from ensjax.experiment.versions import package_version

    packages = ("ensjax", "jax", "jaxlib", "libtpu", "flax")
    found = {name: package_version(name) for name in packages}
    return {name: version for name, version in found.items() if version}


def _progress():
    """A function that shows what is being done, on stderr."""
    import rich.console

    console = rich.console.Console(stderr=True)

    def say(text):
        console.print(f"{text} ...", style="dim", highlight=False)

    return say


def _write_json(file: str, report: Mapping[str, Any]) -> None:
    from etils import epath

    from ensjax.experiment.json_files import write_json

    try:
        write_json(epath.Path(file), report)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {one_line(error)}") from error
