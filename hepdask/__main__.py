"""``python -m hepdask`` is the command ``hepdask``."""

from __future__ import annotations

from hepdask.cli import main

if __name__ == "__main__":
    main()
