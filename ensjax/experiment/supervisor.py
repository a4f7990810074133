"""The thin parent of a run: it starts the work, and says in one line how it ended.

A process whose peer dies is aborted inside C++, where Python cannot print, and a killed
process prints nothing at all. So `ensjax run` does its work in a child and watches it.
The parent imports neither JAX nor NumPy of its own accord.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ensjax.experiment import exit_codes

_PIPE = "ENSJAX_PARENT_PIPE"
# A signal to a group of processes reaches the child twice: itself, and passed on.
_SECOND_SIGNAL_SECONDS = 1.0
_HELD_SECONDS = 5.0
# In a job of several processes `jax.distributed` takes SIGTERM over, and Python hears
# nothing of it: the parent says it with this one as well.
_TOLD_TO_END = signal.SIGUSR1


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came while nothing was training that could be saved."""


def is_child() -> bool:
    """Whether this process was started by `run_in_child`."""
    return _PIPE in os.environ


def run_in_child(
    arguments: Sequence[str], *, workdir: str, process: str, is_one_of_several: bool
) -> int:
    """Runs `ensjax <arguments>` in a child and returns the exit code.

    Signals are passed on (a second one kills), output goes straight through, and the
    child ends if this process dies. An abnormal end gets one line on stderr.

    Args:
        arguments: of the command line.
        workdir: where the last committed step is read from.
        process: how the line names this process, such as "this process (1 of 2)".
        is_one_of_several: then the page of C++ text with which JAX aborts when a peer
            dies is left out, since the line says it.
    """
    read_end, write_end = os.pipe()
    # Without -P the current folder could shadow modules, unless that is wanted already.
    is_safe = "" not in sys.path and os.getcwd() not in sys.path
    child = subprocess.Popen(
        [sys.executable, *(["-P"] if is_safe else []), "-m", "ensjax.cli", *arguments],
        env=os.environ | {_PIPE: str(read_end)},
        pass_fds=(read_end,),
        stderr=subprocess.PIPE if is_one_of_several else None,
    )
    os.close(read_end)
    first = {}  # kind of signal -> when it came

    def forward(number, _):
        now = time.monotonic()
        kind = number if number == signal.SIGINT else signal.SIGTERM
        if now - first.setdefault(kind, now) > _SECOND_SIGNAL_SECONDS:
            child.send_signal(signal.SIGKILL)
            return
        child.send_signal(kind)
        if kind == signal.SIGTERM and is_one_of_several:
            child.send_signal(_TOLD_TO_END)

    for number in _heeded(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    last_words = _pass_on(child.stderr) if is_one_of_several else ""
    code = child.wait()
    os.close(write_end)
    # JAX aborts a process when its peer dies, and says so in these words.
    has_lost_peer = code == -signal.SIGABRT and "oordination" in last_words
    has_lost_peer |= is_one_of_several and code == exit_codes.INTERRUPTED
    if not has_lost_peer:
        sys.stderr.write(last_words)
    if first and code < 0:
        last = max(first, key=first.get)
        code = exit_codes.CTRL_C if last == signal.SIGINT else exit_codes.TERMINATED
    code, reason = describe_end(code, has_lost_peer=has_lost_peer)
    if code == exit_codes.BUG and committed_steps(workdir):
        reason = "ended with the error above"
    if reason is not None:
        command = shlex.join(["ensjax", *arguments])
        print(
            f"ensjax: {process} {reason} (exit code {code}); {last_step(workdir)} in"
            f" {workdir}; to resume: {command}",
            file=sys.stderr,
        )
    return code


def prepare_child() -> None:
    """In the child: ends with the parent, and turns signals into exceptions.

    SIGTERM and SIGHUP make training save and end at its next look, if it can; at other
    times they end the process.
    """
    sys.stdout, sys.stderr = _Lasting(sys.stdout), _Lasting(sys.stderr)
    pipe = int(os.environ.pop(_PIPE))  # popped: a grandchild is not ours
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    last = -_SECOND_SIGNAL_SECONDS

    def interrupt(number, _):
        nonlocal last
        # What comes a second time because the parent passes it on changes nothing; if
        # somebody means it, the parent kills.
        if number != signal.SIGINT and _training_ends():
            return
        if time.monotonic() - last < _SECOND_SIGNAL_SECONDS:
            return
        last = time.monotonic()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    for number in _heeded(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    signal.signal(_TOLD_TO_END, interrupt)


def _heeded(*numbers):
    """Those that whoever started us does not want to be ignored, as nohup does."""
    return [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]


class _Lasting:
    """A stream that goes silent when its reader, such as `head`, has gone.

    What is printed is in the run's files as well; a run does not end for it.
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            return self._close(len(text))

    def flush(self):
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._close(0)

    def _close(self, count):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        return count

    def __getattr__(self, name):
        return getattr(self._stream, name)


def _training_ends() -> bool:
    """Asks what is training to save and end; False if nothing is that can."""
    preemption = sys.modules.get("ensjax.train.preemption")  # else nothing trains
    return preemption is not None and preemption.request()


def describe_end(code: int, *, has_lost_peer: bool = False) -> tuple[int, str | None]:
    """The exit code of the command and why it ended, or None if nothing is to be said.

    Args:
        code: of the child; negative for a signal.
        has_lost_peer: whether the child ended since it lost a process of its job. It
            does not know which one, nor why.
    """
    if has_lost_peer:
        return exit_codes.INTERRUPTED, (
            "ended because it lost a peer: another process of the job died or hung"
        )
    if code in (exit_codes.CTRL_C, -signal.SIGINT):
        return exit_codes.CTRL_C, "was interrupted (Ctrl-C)"
    if code == exit_codes.PREEMPTED:
        return code, "was told to end (SIGTERM) and saved first"
    if code in (exit_codes.TERMINATED, -signal.SIGTERM, -signal.SIGHUP):
        return exit_codes.TERMINATED, "was told to end (SIGTERM)"
    if code == exit_codes.NO_SPACE:
        return code, "found no space left (earlier files are whole)"
    if code == exit_codes.INTERRUPTED:
        return code, "was interrupted"
    if code in (-signal.SIGABRT, 128 + signal.SIGABRT):
        return exit_codes.INTERRUPTED, "was aborted (SIGABRT)"
    if code == -signal.SIGKILL:
        return exit_codes.INTERRUPTED, "was killed (SIGKILL; out of memory?)"
    if code < 0:
        name = signal.Signals(-code).name
        return exit_codes.INTERRUPTED, f"crashed ({name})"
    return code, None


def committed_steps(workdir: str) -> list[Path]:
    """The folders of all committed checkpoints of a run on this machine."""
    path = Path(workdir)
    levels = ("checkpoints/*", "checkpoints/*/*", "checkpoints/*/*/*")
    folders = [folder for level in levels for folder in path.glob(level)]
    return [folder for folder in folders if folder.name.isdecimal() and folder.is_dir()]


def last_step(workdir: str) -> str:
    """Such as "last committed step 300", from the checkpoints or the metrics."""
    path = Path(workdir)
    if "://" in workdir or not path.is_dir():
        return (
            "nothing committed yet" if "://" not in workdir else "see the checkpoints"
        )
    steps = committed_steps(workdir)
    if steps:
        # Of several fits in one run, the newest is the one that was going on.
        newest = max(steps, key=lambda folder: folder.stat().st_mtime).parent
        committed = [int(step.name) for step in steps if step.parent == newest]
        return f"last committed step {max(committed)}"
    metrics = path / "metrics.jsonl"
    if metrics.is_file():
        logged = re.findall(r'^\{"step": (\d+)', metrics.read_text(), re.MULTILINE)
        if logged:
            return f"no checkpoint, last logged step {logged[-1]}"
    return "nothing committed yet"


def _pass_on(stream: IO[bytes]) -> str:
    """Copies lines to stderr until the end; returns the last C++ messages, not printed.

    A C++ message and what follows it wait until the next line that comes later than
    `_HELD_SECONDS`: if none does, they are the last words of the process.
    """
    held, since = [], 0.0
    for line in stream:
        text = line.decode(errors="replace")
        if held and time.monotonic() - since > _HELD_SECONDS:
            sys.stderr.write("".join(held))
            held = []
        if not held and re.match(r"[WEF]\d{4} \d\d:\d\d:", text):
            since = time.monotonic()
        elif not held:
            sys.stderr.write(text)
            sys.stderr.flush()
            continue
        held.append(text)
    return "".join(held)


def _end_with_parent(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    # The parent is gone: nobody would hear of this run, and its lock must be free.
    os._exit(exit_codes.INTERRUPTED)
