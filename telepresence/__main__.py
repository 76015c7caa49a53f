"""``python3 -m telepresence``."""

from telepresence.cli import main

if __name__ == "__main__":
    main()
