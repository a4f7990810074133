"""How a command ends: the exit codes, and the errors that stand for them."""

import errno

FINISHED = 0
BUG = 1  # a traceback was printed
USER_ERROR = 2  # one line was printed, nothing was left behind
NO_SPACE = 74  # the disk filled up during the run; earlier files are whole
INTERRUPTED = 75  # the run, or another process of it, died; the same command resumes
PREEMPTED = 85  # SIGTERM while training: saved first; the same command resumes
CTRL_C = 130
TERMINATED = 143  # SIGTERM at another moment, or a second one: nothing was saved for it


class ConfigError(ValueError):
    """A mistake of the user, shown as one line; best before anything is computed."""


class SharedMistake(ConfigError):
    """A mistake that all processes of the job know of: none waits for another."""


class NoSpaceError(OSError):
    """The disk or a quota is full; what was written before is whole."""


def one_line(error: BaseException | str) -> str:
    """The message with its line breaks and runs of spaces turned into single spaces."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def is_no_space(error: BaseException) -> bool:
    """Whether `error` says that a disk, a quota or a file-size limit is full.

    Orbax reports a full disk as a `ValueError` or a runtime error of its storage
    library, so the message is read where there is no errno.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    text = str(error)
    signs = ("No space left", "File too large", "Disk quota exceeded")
    return any(sign in text for sign in signs)
