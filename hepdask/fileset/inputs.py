"""What a fileset is once it is loaded: datasets of input files, all checked."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hepdask.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Dataset", "Fileset", "InputFile"]


@dataclass(frozen=True, slots=True)
class InputFile:
    """One logical file of one dataset, as the user describes it."""

    dataset: str
    """Name of the dataset."""
    file_path: str
    """Path, URL or pattern of the first replica: the name in metadata, failures and reports."""
    treename: str
    """Path of the TTree or RNTuple inside the file."""
    replicas: tuple[str, ...]
    """All URLs of the file in the order of preference; ``replicas[0] == file_path``."""
    metadata: Mapping[str, Any] = field(hash=False)
    """The dataset's metadata as the user wrote it; one plain dict for all its files."""
    preload: tuple[str, ...] = ()
    """Branches that the user says are in use; empty: nothing was said."""
    num_entries: int | None = None
    """Number of entries in the tree; None: not known yet."""
    uuid: str | None = None
    """The file's UUID, lower case, with hyphens; None: not known yet."""
    steps: tuple[tuple[int, int], ...] | None = None
    """Half-open entry ranges to process, ordered, none empty; None: all entries, ``()``: none."""


@dataclass(frozen=True, slots=True, repr=False)
class Dataset:
    """The files of one dataset, in the order in which they were written."""

    name: str
    """Name of the dataset: the key in the outputs."""
    files: tuple[InputFile, ...]
    """The files; never empty when loaded."""
    metadata: Mapping[str, Any] = field(hash=False)
    """What the user wrote under ``metadata``."""

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"<Dataset {self.name!r}: {len(self.files)} files>"

    def to_dict(self) -> dict[str, Any]:
        """Write the dataset in coffea's preprocessed dialect.

        Returns
        -------
        dict
            ``{"files": {file_path: {"object_path", ...}}, "metadata"}``, and ``preload`` if any.
        """
        written: dict[str, Any] = {
            "files": {file.file_path: _write_file(file) for file in self.files},
            "metadata": dict(self.metadata),
        }
        if self.files and self.files[0].preload:
            written["preload"] = list(self.files[0].preload)
        return written


@dataclass(frozen=True, slots=True, repr=False)
class Fileset:
    """Datasets in the order in which they were written; iterating gives the datasets."""

    datasets: tuple[Dataset, ...]
    """The datasets; never empty when loaded."""

    def __len__(self) -> int:
        return len(self.datasets)

    def __iter__(self) -> Iterator[Dataset]:
        return iter(self.datasets)

    def __repr__(self) -> str:
        num_files = sum(map(len, self.datasets))
        return f"<Fileset: {len(self.datasets)} datasets, {num_files} files>"

    @property
    def files(self) -> tuple[InputFile, ...]:
        """All files, dataset after dataset."""
        return tuple(file for dataset in self.datasets for file in dataset.files)

    def limit(self, max_files: int | None = None) -> Fileset:
        """Keep the first files of each dataset.

        Parameters
        ----------
        max_files : int or None
            Number of files to keep in each dataset, at least 1; None keeps all.

        Returns
        -------
        Fileset
            A new fileset. A pattern counts as one file: expand patterns first.

        Raises
        ------
        OptionError
            If `max_files` is no positive integer.
        """
        if max_files is None:
            return self
        try:
            positive = operator.index(max_files) > 0 and not isinstance(max_files, bool)
        except TypeError:
            positive = False
        if not positive:
            raise OptionError(f"max_files is {max_files!r}; it must be a positive integer or None")
        return Fileset(
            tuple(
                Dataset(dataset.name, dataset.files[:max_files], dataset.metadata)
                for dataset in self.datasets
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Write the fileset in coffea's preprocessed dialect.

        Returns
        -------
        dict
            What `load_fileset` reads back to an equal fileset, and what coffea reads, too. What is
            not known is left out. It can be written as JSON if the user's metadata can.
        """
        return {dataset.name: dataset.to_dict() for dataset in self.datasets}


def _write_file(file: InputFile) -> dict[str, Any]:
    written: dict[str, Any] = {"object_path": file.treename}
    if file.steps is not None:
        written["steps"] = [list(step) for step in file.steps]
    if file.num_entries is not None:
        written["num_entries"] = file.num_entries
    if file.uuid is not None:
        written["uuid"] = file.uuid
    if len(file.replicas) > 1:
        written["replicas"] = list(file.replicas)
    return written
