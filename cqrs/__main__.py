"""The program `cqrs`, also `python -m cqrs`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

MISSING = "The command line needs libraries that are not installed: pip install 'cqrs-toolkit[cli]'"


def main() -> None:
    """Run the command line, or say what brings it."""
    if find_spec("click") is None or find_spec("rich") is None:
        sys.exit(MISSING)
    from cqrs.cli.program import cqrs

    cqrs(prog_name="cqrs")


if __name__ == "__main__":
    main()
