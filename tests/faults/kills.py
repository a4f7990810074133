"""Kills a small run again and again, resumes it, and compares it with one left alone.

    python tests/faults/kills.py --kills 100

prints a summary as JSON; exit code 1 if anything was not as it must be. A round is one
run that is killed up to 25 times by SIGKILL, at random moments (start-up and
compilation are among them) or once files of a save are seen, and then left to finish.
Rounds take turns: in one every start has four devices, in the next four, two, one, ...
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

KILLS_OF_A_ROUND = 25
TOTAL_STEPS = 600
TOLERANCE = 1e-6  # on another number of devices, where sums come in another order
SECONDS_OF_A_SAVE = 0.1
TIMES = ("steps_per_second", "compile_seconds", "goodput", "chip_hours")
BY_CALL = ("member_ids",)  # the first line of every start says whose its columns are
BY_MESH = ("live_fraction",)  # rows are padded to the devices
_ROOT = Path(__file__).parents[2]
_TIMEOUT_SECONDS = 300


def child(folder, num_devices):
    """The run, as a process of its own."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)

    import orbax.checkpoint as ocp

    from ensjax.experiment.configs import load_module
    from ensjax.experiment.loggers import JsonlLogger

    here = Path(__file__)
    small = load_module(here.with_name("small.py"), "config")
    experiment = load_module(here.with_name("small_experiment.py"), "experiment")
    config = small.get_config()
    config.total_steps, config.save_every_steps = TOTAL_STEPS, 10

    finalize = ocp.PyTreeCheckpointHandler.finalize

    def slowly(self, directory):
        """A save that takes its time, between its files and its becoming visible."""
        time.sleep(SECONDS_OF_A_SAVE)
        return finalize(self, directory)

    ocp.PyTreeCheckpointHandler.finalize = slowly

    class Noting:
        """Also notes every step that is written, in a file that is never cut."""

        def __init__(self):
            self._logger = JsonlLogger(folder / "metrics.jsonl")

        def write(self, step, metrics):
            with open(folder / "written.txt", "a") as file:
                file.write(f"{os.getpid()} {step}\n")
            self._logger.write(step, metrics)

    ensemble, _ = experiment.train(
        config,
        checkpoint_dir=folder / "checkpoints",
        logger=experiment.Slowly(Noting()),
    )
    leaves = jax.device_get(jax.tree.leaves(ensemble.params))
    np.savez(folder / "weights.npz", *leaves)


class Run:
    """A folder with a run in it, and what is known of it from outside."""

    def __init__(self, folder, *, devices, seconds_per_line):
        folder.mkdir()
        self.folder, self._devices = folder, devices
        self._environ = os.environ | {
            "PYTHONPATH": str(_ROOT),
            "SECONDS_PER_LINE": str(seconds_per_line),
        }
        self.num_starts = 0

    def start(self):
        """The process, and the step from which it has to go on."""
        devices = self._devices[self.num_starts % len(self._devices)]
        self.output = self.folder / f"output-{self.num_starts}.txt"
        self.num_starts += 1
        expected = max(self.committed(), default=0)
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(self.folder), str(devices)],
            env=self._environ,
            stdout=open(self.output, "w"),  # noqa: SIM115
            stderr=subprocess.STDOUT,
        )
        return process, expected

    def committed(self):
        names = [path.name for path in (self.folder / "checkpoints").glob("*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def unfinished(self):
        """Folders of saves that are going on, or were torn by a kill."""
        return {path.name for path in (self.folder / "checkpoints").glob("*tmp*")}

    def mistakes(self, process, expected):
        """What went wrong in a start that has ended, as a list of lines."""
        found, text = [], self.output.read_text()
        resumed = re.search(r"resuming from step (\d+) of", text)
        notes = self.folder / "written.txt"
        written = notes.read_text().split("\n")[:-1] if notes.exists() else []
        pairs = [line.split() for line in written]
        steps = [int(step) for pid, step in pairs if pid == str(process.pid)]
        if resumed and int(resumed[1]) != expected:
            found.append(f"resumed from {resumed[1]} instead of {expected}")
        # Lines come every 4 steps, and never before the checkpoint.
        first = expected + 4 - expected % 4
        if steps and steps != list(range(first, steps[-1] + 1, 4)):
            found.append(f"wrote {steps} after a checkpoint of step {expected}")
        for words in ("damaged", "Error", "Traceback"):
            if words in text:
                found.append(f"said {words!r}: {text[-2000:]}")
        return found

    def lines(self):
        """What was logged, without what is never the same; every line must be JSON."""
        text = (self.folder / "metrics.jsonl").read_text()
        lines = map(json.loads, text.splitlines())
        return [
            {k: v for k, v in line.items() if k not in (*TIMES, *BY_CALL, *BY_MESH)}
            for line in lines
        ]

    def weights(self):
        file = np.load(self.folder / "weights.npz")
        return [file[name] for name in file.files]


def kill_once(run, draws, *, in_save, startup_seconds):
    """One start and its end: "torn", "killed" or "finished"; and mistakes."""
    process, expected = run.start()
    begin, before = time.monotonic(), run.unfinished()
    if in_save:
        # A save later than the first, so that the run gets somewhere.
        def is_time():
            has_saved = max(run.committed(), default=0) > expected
            return has_saved and run.unfinished() - before

        delay = draws.uniform(0.0, SECONDS_OF_A_SAVE)
    else:
        moment = begin + draws.uniform(0.0, 1.2 * startup_seconds + 1.0)

        def is_time():
            return time.monotonic() > moment

        delay = 0.0
    while process.poll() is None and not is_time():
        time.sleep(0.001)
        if time.monotonic() - begin > _TIMEOUT_SECONDS:
            process.kill()
            raise TimeoutError(run.output.read_text()[-2000:])
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    mistakes = run.mistakes(process, expected)
    if code not in (0, -signal.SIGKILL):
        mistakes.append(f"ended with code {code}")
    if code == 0:
        return "finished", mistakes
    return ("torn" if run.unfinished() - before else "killed"), mistakes


def run_suite(folder, *, kills, seed, minutes=float("inf"), say=print):
    """The summary of `kills` kills, a fifth of them or more during a save.

    After `minutes` the round is finished and no other begun.
    """
    draws = random.Random(seed)
    begin = time.monotonic()
    whole = Run(folder / "whole", devices=[4], seconds_per_line=0.0)
    process, expected = whole.start()
    while not whole.committed() and process.poll() is None:
        time.sleep(0.01)
    startup_seconds = time.monotonic() - begin
    assert process.wait(_TIMEOUT_SECONDS) == 0, whole.output.read_text()
    mistakes = whole.mistakes(process, expected)
    counts = {"killed": 0, "torn": 0}
    rounds = []

    def is_enough():
        is_late = time.monotonic() - begin > 60 * minutes
        return is_late or sum(counts.values()) >= kills

    while not is_enough():
        is_same = len(rounds) % 2 == 0
        run = Run(
            folder / f"round-{len(rounds)}",
            devices=[4] if is_same else [4, 2, 1],
            seconds_per_line=0.03,
        )
        end = None
        per_round = min(KILLS_OF_A_ROUND, -(-kills // 2))
        while end != "finished" and run.num_starts < per_round and not is_enough():
            done = sum(counts.values())
            in_save = 4 * counts["torn"] <= done or draws.random() < 0.3
            end, found = kill_once(
                run, draws, in_save=in_save, startup_seconds=startup_seconds
            )
            mistakes += found
            if end in counts:
                counts[end] += 1
        if end != "finished":
            process, expected = run.start()
            if process.wait(_TIMEOUT_SECONDS) != 0:
                mistakes.append(f"did not finish: {run.output.read_text()[-2000:]}")
                break
            mistakes += run.mistakes(process, expected)
        rounds.append(compare(run, whole, is_same=is_same))
        say(f"round {len(rounds)}: {rounds[-1]}; {counts}", file=sys.stderr)
    return {
        "kills": sum(counts.values()),
        "kills_that_tore_a_save": counts["torn"],
        "rounds": rounds,
        "mistakes": mistakes,
        "seconds": round(time.monotonic() - begin),
    }


def compare(run, whole, *, is_same):
    """How far the run is from the one that was left alone."""
    ours, theirs = run.lines(), whole.lines()
    pairs = list(zip(run.weights(), whole.weights(), strict=True))
    return {
        "devices": "4" if is_same else "4, 2, 1 in turn",
        "starts": run.num_starts,
        "largest_difference_of_weights": float(
            max(np.abs(a - b).max() for a, b in pairs)
        ),
        "same_bits": all(np.array_equal(a, b) for a, b in pairs),
        "steps_are_the_same": [x["step"] for x in ours] == [x["step"] for x in theirs],
        "lines_are_the_same": ours == theirs,
    }


def is_right(summary):
    """Whether everything is as it must be."""
    if summary["mistakes"] or 5 * summary["kills_that_tore_a_save"] < summary["kills"]:
        return False
    return all(
        entry["steps_are_the_same"]
        and entry["largest_difference_of_weights"] <= TOLERANCE
        and (
            entry["devices"] != "4"
            or (entry["same_bits"] and entry["lines_are_the_same"])
        )
        for entry in summary["rounds"]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "DEVICES"))
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), int(options.child[1]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        summary = run_suite(
            Path(folder),
            kills=options.kills,
            seed=options.seed,
            minutes=options.minutes,
        )
    print(json.dumps(summary, indent=2))
    return 0 if is_right(summary) else 1


if __name__ == "__main__":
    sys.exit(main())
