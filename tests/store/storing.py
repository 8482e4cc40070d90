"""Values, keys and ways to look at the files of a store."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hist
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepdask.store import Section

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CODE, OTHER_CODE = "c0de" * 8, "0123456789abcdef" * 2
KEY, OTHER_KEY = "0a" * 16, "0b" * 16
NOBODY = 65534  # Debian's user without rights


def make_histograms(num_bins: int = 3_000, *, random: bool = False) -> dict[str, Any]:
    """Make two histograms, half of them empty unless they are random."""
    generator = np.random.default_rng(1)
    made = {}
    for name in ("pt", "mass"):
        histogram = hist.Hist.new.StrCat(["dy", "tt"], name="dataset").Reg(num_bins, 0, 1).Weight()
        view = histogram.view(flow=True)
        for field in ("value", "variance"):
            if random:
                view[field] = generator.random(view.shape)
            else:
                view[field][0] = generator.poisson(5, view.shape[1])
        made[name] = histogram
    return made


def object_path(section: Section, key: str = KEY) -> Path:
    """Return the file of an object in a local store."""
    return Path(section.url.removeprefix("file://")) / section.name / f"{key}.hepdask"


def all_files(directory: Path) -> set[str]:
    """List all files below a directory, relative to it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


def set_age(path: Path, seconds: float) -> None:
    """Make a file look as if it wasn't used for so long."""
    used = path.stat().st_mtime - seconds
    os.utime(path, (used, used))


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the repository on its path."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
        check=False,
    )


@contextmanager
def not_as_root() -> Iterator[None]:
    """Give up root's rights for a while; nothing changes for any other user."""
    user = os.geteuid()
    os.seteuid(NOBODY if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the process's umask for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
