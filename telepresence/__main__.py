"""``python3 -m telepresence``: run the command line from a checkout, in the environment of ``make setup`` if needed."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line; if packages are missing, run it again with the interpreter of the checkout's ``.venv``."""
    try:
        from telepresence.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        own = Path(__file__).resolve().parent.parent / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        if own.exists() and Path(sys.prefix) != own.parent.parent:
            os.execv(own, [str(own), "-m", "telepresence", *sys.argv[1:]])  # noqa: S606 - without a shell
        sys.exit(f"telepresence: {error.name} is not installed: run 'make setup', or see docs/install.md")
    command()


if __name__ == "__main__":
    main()
