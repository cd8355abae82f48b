"""Parser of the commands without a run folder: one line for wrong arguments, as for all other wrong input."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's, without the usage in front of an error."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")
