"""Write an output in the format that the suffix says.

========================  =================================================================================
``.coffea``               what `coffea.util.load` reads: a pickle, compressed by lz4
``.pkl``, ``.pickle``     a pickle
``.json``, ``.json.gz``   histograms in UHI's JSON (https://uhi.readthedocs.io/en/latest/serialization.html),
                          everything else as JSON has it
``.root``                 the histograms alone, as TH1, TH2, TH3 (and TProfile)
========================  =================================================================================
"""

from __future__ import annotations

import gzip
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepdask.errors import OptionError
from hepdask.outputs.files import check_output_path, replacing
from hepdask.outputs.plain import dump_json
from hepdask.outputs.root import write_root

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

__all__ = ["write_output"]


def write_output(output: Any, path: str | os.PathLike[str]) -> None:
    """Write an output in the format that the suffix says.

    Parameters
    ----------
    output : object
        What a run gave back. JSON takes nested mappings, lists, tuples, sets (sorted), numbers, texts, arrays and
        histograms; NaN and infinities become ``NaN`` and ``Infinity``, which Python reads. ROOT takes the histograms
        alone, each under its path in the output, ``dataset/mass``; one with category axes becomes a directory
        with a histogram for each combination of categories, ``mass/SingleMu``. Whatever isn't a letter, a digit or
        one of ``_+.-`` in these names becomes ``_``.
    path : path-like
        A file of this name is replaced. It gets the permissions that new files have.

    Raises
    ------
    OptionError
        If the file can't be written, the suffix is not known, or something in the output does not fit the format.
    """
    writers: dict[str, Callable[[Any, Path], None]] = {
        ".coffea": _write_coffea,
        ".pkl": _write_pickle,
        ".pickle": _write_pickle,
        ".json": _write_json,
        ".json.gz": _write_json_gz,
        ".root": write_root,
    }
    suffix = check_output_path(path)
    with replacing(Path(path)) as new_path:
        writers[suffix](output, new_path)


def _write_coffea(output: Any, path: Path) -> None:
    from coffea.util import save

    with _explained_pickling():
        save(output, str(path))


def _write_pickle(output: Any, path: Path) -> None:
    import cloudpickle

    with _explained_pickling(), path.open("wb") as file:
        cloudpickle.dump(output, file)


@contextmanager
def _explained_pickling() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OptionError(
            f"the output can't be pickled: {type(error).__name__}: {error}; return histograms, arrays, numbers"
        ) from error


def _write_json(output: Any, path: Path) -> None:
    path.write_text(dump_json(output), encoding="utf-8")


def _write_json_gz(output: Any, path: Path) -> None:
    # without a time, so that the same output gives the same bytes
    path.write_bytes(gzip.compress(dump_json(output).encode(), mtime=0))
