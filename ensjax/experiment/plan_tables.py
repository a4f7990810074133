"""What `ensjax plan` prints: tables that can be read at 80 columns."""

from collections.abc import Mapping
from typing import Any

import rich.console
import rich.table

from ensjax.planning import Plan


def print_report(report: Mapping[str, Any]) -> None:
    """Prints what was found; `report` is as JSON holds it."""
    console = rich.console.Console(highlight=False)
    console.print(f"[bold]{report['config']}:{report['preset']}[/bold]", end="")
    console.print(f"  {report['title']}" if report["title"] else "", markup=False)
    if report["plan"] is None:
        console.print(report["does_not_fit"], markup=False)
    else:
        _print_plan(console, report)
    if report["forecasts"] is not None:
        _print_forecasts(console, report["forecasts"])
    if report["choices"] is not None:
        _print_choices(console, report)
    if report["tuning"] is not None:
        _print_tuning(console, report["tuning"])
    if report["fixed"]:
        text = report["fixed"]
        console.print(f"{text[0].upper()}{text[1:]}: that stays as it is.")


def show_bytes(count: float | None) -> str:
    """Such as "1.50 GiB"."""
    if count is None:
        return "?"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def show_seconds(seconds: float) -> str:
    """Such as "3.2 ms", "41 s", "2 h 05 min"."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def _count(number: float) -> str:
    """Such as "1.35 M", with the prefixes of 1000."""
    for prefix in ("", " k", " M", " G", " T", " P"):
        if abs(number) < 1000:
            return f"{number:.0f}" if not prefix else f"{number:.3g}{prefix}"
        number /= 1000
    return f"{number:.3g} E"


def _print_plan(console, report):
    plan = Plan.from_json(report["plan"])
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    where = report["topology"] or plan.device_kind
    batch = "" if plan.batch_size is None else f" batch {plan.batch_size},"
    console.print(
        f"{plan.num_members} members on {plan.num_devices} x {where} ({mesh}),{batch}"
        f" jax {report['versions']['jax']}"
    )
    if report["structure_only"]:
        console.print(
            "[bold]structure only[/bold]: CPU stand-ins for the devices. Collectives"
            " and the share of each device hold; memory, operations and convolution"
            " forms are the CPU's."
        )
    if report.get("only_some"):
        console.print(f"[bold]planned:[/bold] {report['only_some']}.")
    if plan.padding:
        console.print(
            f"padding: {plan.num_members} members fill {plan.num_rows} rows;"
            f" {plan.padding:.0%} of the work is for nothing"
        )
    console.print()
    _print_member(console, plan)
    _print_memory(console, plan)
    if plan.step is not None:
        _print_step(console, plan)
    _print_run(console, plan)


def _table(title, *columns) -> rich.table.Table:
    table = rich.table.Table(title=title, title_justify="left", title_style="bold")
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _print_member(console, plan):
    member, together = plan.member, plan.num_rows
    label = "all members"
    if plan.batch_size is None and plan.step is not None:  # others do not exist yet
        together, label = plan.step.block, "at once on a device"
    title = "One member"
    if plan.stacks:
        title, together = "One member of each stack", None
    table = _table(title, "what", "bytes", *(() if plan.stacks else (label,)))
    rows = {
        f"{_count(member.parameters)} parameters": member.params_bytes,
        "statistics, random keys": member.rest_bytes,
        "optimizer state": member.optimizer_bytes,
        "best weights so far": member.best_bytes,
        "all that a checkpoint holds": member.state_bytes,
    }
    for name, size in rows.items():
        if size:
            of_all = () if plan.stacks else (show_bytes(size * together),)
            table.add_row(name, show_bytes(size), *of_all)
    console.print(table)
    if plan.stacks:
        _print_stacks(console, plan)


def _print_stacks(console, plan):
    table = _table(
        "Stacks, in one program",
        "stack",
        "members",
        "parameters of one",
        "state of all",
        "operations",
        "bytes moved",
        "at once",
    )
    devices = plan.mesh["member"]
    for number, stack in enumerate(plan.stacks, start=1):
        cost, rows = stack.step, stack.num_rows
        table.add_row(
            str(number),
            str(stack.num_members),
            _count(stack.member.parameters),
            show_bytes(stack.member.state_bytes * rows),
            *(
                ("-", "-", "-")
                if cost is None
                else (
                    _count(cost.flops),
                    show_bytes(cost.bytes_moved),
                    f"{cost.block} of {rows // devices}",
                )
            ),
        )
    console.print(table)
    console.print("Operations and bytes moved are of one step on each device.")


_MEMORY_ROWS = {
    "arguments": "argument_bytes",
    "outputs": "output_bytes",
    "of these in place of arguments": "aliased_bytes",
    "temporaries": "temporary_bytes",
    "what else is there": "beside_bytes",
    "peak": "peak_bytes",
}


def _print_memory(console, plan):
    names = [program.name for program in plan.programs]
    table = _table("Memory of each device", "", *names)
    for label, field in _MEMORY_ROWS.items():
        sizes = [show_bytes(getattr(program, field)) for program in plan.programs]
        table.add_row(label, *sizes)
    seconds = [p.lower_seconds + p.compile_seconds for p in plan.programs]
    table.add_row("time to compile here", *map(show_seconds, seconds))
    console.print(table)
    held = [
        f"{name} {show_bytes(size)}" for name, size in plan.arrays.items() if size > 1e4
    ]
    console.print(f"On each device: {', '.join(held) or 'less than 10 kB'}.")
    console.print(f"[bold]Peak of the run: {show_bytes(plan.peak_bytes)}[/bold]\n")


def _print_step(console, plan):
    step, local = plan.step, plan.num_rows / plan.mesh["member"]
    # Members of several stacks are not alike.
    member = "a member, mean" if plan.stacks else "each member"
    table = _table("One step", "what", "each device", member)
    shards = plan.mesh["data"]  # a member's step is spread over them
    table.add_row(
        "operations",
        _count(step.flops),
        _count(step.flops / local * shards),
    )
    table.add_row(
        "bytes moved",
        show_bytes(step.bytes_moved),
        show_bytes(step.bytes_moved / local * shards),
    )
    if not plan.stacks:
        table.add_row("local members at once", f"{step.block} of {local:.0f}", "")
    if plan.beside is not None:
        rest = plan.beside
        table.add_row(
            "the rest of the call: operations",
            _count(rest.flops),
            _count(rest.flops / local * shards),
        )
        whole = rest.flops + plan.steps * step.flops
        table.add_row(
            f"the call, {plan.steps:,} steps: operations",
            _count(whole),
            _count(whole / local * shards),
        )
    console.print(table)
    if step.has_loop:
        console.print(
            "The step holds a loop of matrix products, whose body the compiler counts"
            " once: operations and bytes are too small."
        )
    if not step.collectives:
        console.print("Collectives: none.\n")
        return
    table = _table("Collectives of one step", "operation", "along", "number", "bytes")
    for found in step.collectives:
        table.add_row(
            found.operation,
            ", ".join(found.axes),
            str(found.count),
            show_bytes(found.result_bytes),
        )
    console.print(table)


def _print_run(console, plan):
    table = _table("The run", "what", "")
    calls = f"{plan.num_calls:,} calls of {plan.steps_per_call}"
    if plan.batch_size is None:
        calls = "one call"
    table.add_row("steps", f"{plan.steps:,} in {calls}")
    table.add_row("evaluations", f"{plan.num_evaluations:,}")
    table.add_row("compilation here", show_seconds(plan.compile_seconds))
    if plan.num_checkpoints:
        kept = show_bytes(plan.checkpoint_directory_bytes)
        table.add_row(
            "checkpoints",
            f"{plan.num_checkpoints} of {show_bytes(plan.checkpoint_bytes)}; two kept:"
            f" {kept}",
        )
    if plan.trial is None:
        table.add_row("time", f"not measured: {plan.why_no_trial}")
        console.print(table)
        return
    trial = plan.trial
    table.add_row("a step", show_seconds(trial.seconds_per_step))
    table.add_row("a call, beside its steps", show_seconds(trial.seconds_per_call))
    if plan.num_evaluations:
        table.add_row("an evaluation", show_seconds(trial.seconds_per_evaluation))
    table.add_row("estimate of the run", show_seconds(plan.wall_seconds))
    console.print(table)
    console.print(
        f"Measured on {plan.num_devices} x {plan.device_kind} for"
        f" {show_seconds(trial.seconds)}: calls of 1 and of {trial.steps_in_long_call}"
        f" steps in turns, {trial.rounds + 1} of each, on {trial.data}"
        f"{' data' if trial.data != 'zeros' else ' in place of data'}; the fastest"
        " counts. The estimate is compilation, steps, calls and evaluations; not"
        " loading, saving, or what comes after training."
    )


def _print_forecasts(console, plan):
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    title = f"Forecasts of {plan['num_members']:,} members ({mesh})"
    table = _table(title, "what", "each device")
    memory, step = plan["memory"], plan["step"]
    steps = plan["num_steps"] + plan["num_breeding_steps"]
    rows = {
        "members, one after the other" if plan["block"] == 1 else "members": (
            f"{plan['num_rows']:,}, {plan['block']} at once"
        ),
        "steps of each": f"{plan['num_steps']:,} + {plan['num_breeding_steps']} to"
        " make its perturbation",
        **{name: show_bytes(size) for name, size in plan["arrays"].items()},
        "temporaries": show_bytes(memory["temporary_bytes"]),
        "peak": show_bytes(plan["peak_bytes"]),
        f"one step of {plan['block']}: operations": _count(step["flops"]),
        f"all {plan['num_rows'] * steps:,} steps: operations": _count(plan["flops"]),
        "time to compile here": show_seconds(memory["compile_seconds"]),
    }
    for row in rows.items():
        table.add_row(*row)
    console.print(table)
    if step["has_loop"]:
        console.print("A step holds a loop, whose body is counted once.")


def _print_choices(console, report):
    choices = report["choices"]
    memory = show_bytes(choices["memory_bytes"])
    table = _table(f"What fits {memory}", "block", "batch", "remat", "peak", "fits")
    for choice in choices["tried"]:
        settings = choice["settings"]
        block = "all" if settings["block"] is None else settings["block"]
        remat = {None: "-", True: "yes", False: "no"}[settings["remat"]]
        table.add_row(
            str(block),
            str(settings["batch_size"]),
            remat,
            show_bytes(choice["peak_bytes"]),
            "yes" if choice["fits"] else "no",
        )
    console.print(table)
    if choices["best"] is None:
        return
    if not report["fields"]:
        console.print("It fits as it is.")
        return
    console.print("What fits and changes least:")
    console.print("  " + " ".join(report["fields"]), markup=False, soft_wrap=True)
    first = choices["tried"][0]["settings"]["batch_size"]
    if choices["best"]["settings"]["batch_size"] != first:
        console.print(
            "Another batch is another training; the learning rate may need it."
        )


def _compilation(seconds):
    return show_seconds(seconds) if seconds > 1e-3 else "done above"


def _print_tuning(console, tuning):
    own = [t for t in tuning["timings"] if t["form"] is None]
    auto = next(t for t in own if t["block"] == "auto")
    table = _table(
        "Local members at once",
        "block",
        "convolutions",
        "a step",
        "time / auto",
        "to compile",
    )
    for timing in tuning["timings"]:
        name = "unrolled" if timing["unroll"] else str(timing["block"])
        if timing["block"] == "auto":
            name = "auto"
            if timing["form"] is None:
                name = f"auto (here {tuning['auto_block']})"
        table.add_row(
            name,
            timing["form"] or "as configured",
            show_seconds(timing["seconds_per_step"]),
            f"{timing['seconds_per_step'] / auto['seconds_per_step']:.2f}",
            _compilation(timing["compile_seconds"]),
        )
    console.print(table)
    console.print(
        f"Calls of {tuning['steps_per_call']} steps in turns, {tuning['rounds']} of"
        f" each, on {tuning['data']}{' data' if tuning['data'] != 'zeros' else ''};"
        " the fastest counts. auto is the same program as one of the others: what"
        " they differ by is noise."
    )
    ratio = auto["seconds_per_step"] / tuning["timings"][0]["seconds_per_step"]
    if not tuning["field"]:
        console.print("The fastest is what the config has.")
        return
    console.print(f"The fastest, {ratio:.2f} times as fast as auto:")
    console.print("  " + " ".join(tuning["field"]), markup=False, soft_wrap=True)
