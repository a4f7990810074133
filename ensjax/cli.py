"""The command `ensjax`: run, plan, replay, export, soup, sample, verify, report, ...

Exit codes of `ensjax run`; after all but 0 and 2 the same command goes on from the last
committed step:

    0    finished
    1    a bug; a traceback was printed
    2    a mistake of the user, or no checkpoint is whole; one line, nothing was changed
    74   no space left; what was saved before is whole
    75   this process or another of the job died, or lost the run to another process
    85   SIGTERM or SIGHUP while training; the step that was reached is saved
    130  Ctrl-C
    143  SIGTERM or SIGHUP at another moment, or a second one; nothing was saved for it
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence

import ensjax
from ensjax.experiment import exit_codes
from ensjax.experiment.compilation_cache import check_choice
from ensjax.experiment.configs import (
    PRESETS,
    load_module,
    names_in,
    packaged_folder,
)
from ensjax.experiment.exit_codes import ConfigError, one_line
from ensjax.experiment.overrides import join_names, name_nearest, split_overrides
from ensjax.experiment.parser import OneLineParser
from ensjax.experiment.processes import ProcessFlags, check_flags, detect_cluster
from ensjax.experiment.sample_options import add_sample_arguments
from ensjax.experiment.soup_options import add_soup_arguments, join_numbers
from ensjax.experiment.supervisor import is_child, prepare_child, run_in_child
from ensjax.experiment.verify_options import add_verify_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _main(arguments)
    except ConfigError as error:
        print(f"ensjax: {one_line(error)}", file=sys.stderr)
        return exit_codes.USER_ERROR
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        return exit_codes.FINISHED
    except OSError as error:
        if arguments[0] not in ("report", "copy", "export"):
            raise
        print(f"ensjax: cannot write: {one_line(error)}", file=sys.stderr)
        return exit_codes.USER_ERROR


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["bench"] and arguments[1:2] not in (["-h"], ["--help"]):
        return _bench(arguments[1:])  # the suite reads its own options
    rest, overrides = split_overrides(arguments)
    rest = join_numbers(rest) if rest[:1] == ["soup"] else rest
    options = _parser().parse_args(rest)
    if overrides and options.command not in ("run", "plan"):
        raise ConfigError("--config.key=value belongs to ensjax run or plan.")
    if options.command == "run":
        return _run(options, arguments, overrides)
    if options.command == "plan":
        return _plan(options, arguments, overrides)
    commands = {
        "replay": _replay,
        "export": _export,
        "soup": _soup,
        "sample": _sample,
        "verify": _verify,
        "report": _report,
        "list": _list,
        "copy": _copy,
        "doctor": _doctor,
    }
    return commands[options.command](options)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="ensjax",
        description="Ensembles as one program: run experiments, read their reports.",
        allow_abbrev=False,
    )
    version = f"ensjax {ensjax.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run a config, or resume it",
        description="Runs a config given by path or by name; the same command resumes.",
        epilog="Fields are set with --config.key=value, such as --config.num_members=8."
        f" Presets: {join_names(PRESETS)} (without one: small).",
        allow_abbrev=False,
    )
    run.add_argument("config", help="configs/x.py, or a name; :preset may follow")
    run.add_argument("--workdir", help="default: runs/<config>-<preset>")
    run.add_argument(
        "--devices", type=int, help="CPU devices (default: accelerators, or the cores)"
    )
    run.add_argument(
        "--log", default="", help="tensorboard, wandb, or both with a comma"
    )
    run.add_argument(
        "--members",
        metavar="N,N",
        help="these members only, by number; the same as"
        " --config.members and --config.num_members",
    )
    run.add_argument(
        "--members_from",
        default="",
        metavar="RUN,RUN",
        help="other runs of the same config whose members are taken over",
    )
    run.add_argument(
        "--compilation_cache",
        metavar="on|off|DIR",
        help="compiled programs for the next run (default: on for GPU and TPU)",
    )
    run.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    run.add_argument(
        "--num_processes", type=int, help="how many hosts run this command"
    )
    run.add_argument("--process_id", type=int, help="which of them this is, from 0")

    plan = commands.add_parser(
        "plan",
        help="what a config needs: memory, operations, collectives; no training",
        description="Compiles what a config would train, and says what it needs.",
        epilog="Fields are set with --config.key=value.",
        allow_abbrev=False,
    )
    plan.add_argument("config", help="configs/x.py, or a name; :preset may follow")
    plan.add_argument("--memory", help="of a device, such as 16GiB: finds what fits")
    plan.add_argument("--devices", type=int, help="CPU stand-ins if there are fewer")
    plan.add_argument("--mesh", help="such as member=32,data=2 (default: the config's)")
    plan.add_argument(
        "--topology",
        help="a TPU slice, such as v5e:8x8 (needs ensjax[tpu-plan]); or gpu:2x8, hosts"
        " and GPUs of each, of the kind that is here",
    )
    plan.add_argument("--tune", action="store_true", help="time blocks and forms here")
    plan.add_argument(
        "--trial",
        action=argparse.BooleanOptionalAction,
        help="time a few steps here (default: where that is short)",
    )
    plan.add_argument("--json", metavar="FILE", help="also write what was found")

    report = commands.add_parser(
        "report",
        help="build report.html again; several runs: compare them",
        description="Builds report.html of a finished run again; for several runs, a"
        " page that compares them.",
        allow_abbrev=False,
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    report.add_argument(
        "--out", default="comparison.html", help="of a comparison (%(default)s)"
    )
    report.add_argument(
        "--publish",
        action="store_true",
        help="also keep the results in experiments/results and update RESULTS.md",
    )

    replay = commands.add_parser(
        "replay",
        help="make one member of a run again alone, and compare it",
        description="Trains one member of a run alone, from config, seed and id, and"
        " compares it with the checkpoint.",
        allow_abbrev=False,
    )
    replay.add_argument("run", metavar="RUN", help="a run directory")
    replay.add_argument("--member", type=int, required=True, help="its id")
    replay.add_argument("--step", type=int, help="of a checkpoint; default: the last")
    replay.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="where other bits are expected (%(default)s)",
    )

    export = commands.add_parser(
        "export",
        help="write members of a run on their own",
        description="Writes members of a run, reading nothing but their own bytes.",
        allow_abbrev=False,
    )
    export.add_argument("run", metavar="RUN", help="a run directory")
    export.add_argument(
        "--member", type=int, required=True, action="append", help="its id; repeatable"
    )
    export.add_argument("--step", type=int, help="of a checkpoint; default: the last")
    export.add_argument(
        "--format", default="nnx", help="nnx, safetensors or ensemble (%(default)s)"
    )
    export.add_argument("--out", help="default: in the run's folder exports")

    soup = commands.add_parser(
        "soup",
        help="merge checkpoints of other frameworks, without their models' code",
        description="Merges folders of safetensors (or PyTorch files) into a folder,"
        " with at most three tensors in memory, and writes where it comes from.",
        epilog="Flags may be written with - or _. Every method's knobs and defaults are"
        " those of its function in ensjax.weight_space.",
        allow_abbrev=False,
    )
    add_soup_arguments(soup)

    sample = commands.add_parser(
        "sample",
        help="members of an ensemble by a run's trained emulator, to zarr or netCDF",
        allow_abbrev=False,
    )
    add_sample_arguments(sample)

    verify = commands.add_parser(
        "verify",
        help="scores of a forecast in zarr or netCDF against the truth",
        allow_abbrev=False,
    )
    add_verify_arguments(verify)

    commands.add_parser("list", help="experiments, papers, presets, last results")
    copy = commands.add_parser(
        "copy", help="write a config and its experiment here, to be changed"
    )
    copy.add_argument("name", help="of a config")
    commands.add_parser("doctor", help="devices, versions, and whether numbers agree")
    commands.add_parser(
        "bench",
        help="bench [name] [--compare old.json]: speed, and against an older file",
    )
    return parser


def _run(
    options: argparse.Namespace,
    arguments: list[str],
    overrides: list[tuple[str, str]],
) -> int:
    from ensjax.experiment.runner import RunOptions, default_workdir, run_and_report

    if options.members is not None:
        if {"members", "num_members"} & {key for key, _ in overrides}:
            raise ConfigError(
                "--members says which members there are; leave --config.members and"
                " --config.num_members out."
            )
        overrides = overrides + _members(options.members)
    flags = ProcessFlags(options.coordinator, options.num_processes, options.process_id)
    if is_child():
        prepare_child()
        run = RunOptions(
            spec=options.config,
            workdir=options.workdir,
            overrides=overrides,
            flags=flags,
            devices=options.devices,
            loggers=[name for name in options.log.split(",") if name],
            members_from=[run for run in options.members_from.split(",") if run],
            compilation_cache=options.compilation_cache,
        )
        return run_and_report(run)
    check_flags(flags)
    check_choice(options.compilation_cache)
    workdir = options.workdir or default_workdir(options.config)
    return run_in_child(
        arguments,
        workdir=workdir,
        process=_process_name(flags),
        is_one_of_several=flags.coordinator is not None or detect_cluster() is not None,
    )


def _members(text: str) -> list[tuple[str, str]]:
    """The overrides of `--members 0,3,5`."""
    names = [name.strip() for name in text.split(",")]
    if not all(name.isdecimal() for name in names) or len(set(names)) < len(names):
        raise ConfigError(
            f"--members takes different numbers with commas, as 0,3,5; got {text!r}."
        )
    chosen = "".join(f"{int(name)}," for name in names)
    return [("members", f"({chosen})"), ("num_members", str(len(names)))]


def _plan(
    options: argparse.Namespace,
    arguments: list[str],
    overrides: list[tuple[str, str]],
) -> int:
    from ensjax.experiment.plan_options import PlanOptions
    from ensjax.experiment.planner import plan_config

    given = {name: getattr(options, name) for name in PlanOptions._fields[2:]}
    return plan_config(PlanOptions(options.config, overrides, **given), arguments)


def _process_name(flags: ProcessFlags) -> str:
    if flags.process_id is not None:
        return f"this process ({flags.process_id} of {flags.num_processes})"
    for rank, size in (
        ("SLURM_PROCID", "SLURM_NTASKS"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ):
        if os.environ.get(size, "1") != "1" and rank in os.environ:
            return f"this process ({os.environ[rank]} of {os.environ[size]})"
    if "TPU_WORKER_ID" in os.environ:
        return f"this process (worker {os.environ['TPU_WORKER_ID']})"
    if detect_cluster() is not None:
        return f"this process (on {platform.node()})"
    return "the run"


def _report(options: argparse.Namespace) -> int:
    from etils import epath

    from ensjax.experiment.json_files import write_bytes
    from ensjax.experiment.report import build_comparison, write_report
    from ensjax.experiment.results import publish_results

    if len(options.runs) == 1:
        print(write_report(options.runs[0]))
    else:
        folder = epath.Path(options.out).parent
        if not folder.is_dir():
            raise ConfigError(f"--out {options.out}: there is no folder {folder}.")
        page = build_comparison(options.runs)
        write_bytes(epath.Path(options.out), page.encode())
        print(options.out)
    if options.publish:
        for run in options.runs:
            print(publish_results(run))
    return exit_codes.FINISHED


def _replay(options: argparse.Namespace) -> int:
    from ensjax.experiment.replay import replay

    return replay(
        options.run,
        member_id=options.member,
        step=options.step,
        tolerance=options.tolerance,
    )


def _export(options: argparse.Namespace) -> int:
    from ensjax.experiment.export import export_members

    written = export_members(
        options.run,
        options.member,
        step=options.step,
        form=options.format,
        out=options.out,
    )
    print("\n".join(written))
    return exit_codes.FINISHED


def _soup(options: argparse.Namespace) -> int:
    from ensjax.experiment.soup import soup

    return soup(options)


def _sample(options: argparse.Namespace) -> int:
    from ensjax.experiment.sample import sample

    return sample(options)


def _verify(options: argparse.Namespace) -> int:
    from ensjax.experiment.verify import verify

    return verify(options)


def _list(options: argparse.Namespace) -> int:
    del options
    from ensjax.experiment.packaged import show_all

    show_all()
    return exit_codes.FINISHED


def _copy(options: argparse.Namespace) -> int:
    from ensjax.experiment.packaged import copy

    copy(options.name)
    return exit_codes.FINISHED


def _doctor(options: argparse.Namespace) -> int:
    del options
    from ensjax.experiment.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{finding.level:8s} {finding.text}")
    is_sick = any(finding.level == "error" for finding in findings)
    return exit_codes.BUG if is_sick else exit_codes.FINISHED


def _bench(arguments: list[str]) -> int:
    known = [name[6:] for name in names_in("experiments") if name.startswith("bench_")]
    if not arguments:
        print(f"Benchmarks: {join_names(known) or 'none'}. Run one: ensjax bench NAME")
        return exit_codes.FINISHED
    if arguments[0].startswith("--compare="):
        arguments = ["--compare", arguments[0].partition("=")[2], *arguments[1:]]
    name, *rest = arguments
    if name == "--compare" and rest:  # the file says which suite it is of
        name, rest = _suite_of(rest[0]), arguments
    if name not in known:
        nearest = name_nearest(name, known)
        raise ConfigError(
            f"there is no benchmark {name!r}{nearest}; there are:"
            f" {join_names(known) or 'none'}."
        )
    path = packaged_folder("experiments") / f"bench_{name}.py"
    return load_module(path, "bench").main(rest) or exit_codes.FINISHED


def _suite_of(report: str) -> str:
    """The suite of a file that `ensjax bench NAME --json` wrote."""
    from etils import epath

    from ensjax.experiment.json_files import read_json

    try:
        found = read_json(epath.Path(report))
        return str(found.get("suite") or found["command"][1])
    except OSError as error:
        raise ConfigError(f"cannot read {report}: {one_line(error)}.") from error
    except (AttributeError, KeyError, TypeError, IndexError, UnicodeError) as error:
        raise ConfigError(f"{report} is no report of ensjax bench.") from error


if __name__ == "__main__":
    sys.exit(main())
