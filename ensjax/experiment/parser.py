"""The parser of every command line of ensjax: a mistake is one line."""

import argparse

from ensjax.experiment.exit_codes import USER_ERROR, one_line


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the rest of the command does."""

    def error(self, message: str):
        self.exit(USER_ERROR, f"{self.prog}: {one_line(message)}\n")
