"""Files for the benchmarks: written once at each size, then found again.

Everything has a seed, so that two machines compare the same numbers. The layouts are those of the experiments: counter branches
with arrays (``Muon_pt[nMuon]``), one basket of each branch in a cluster, zlib.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NUM_WIDE_BRANCHES", "Samples"]

NUM_WIDE_BRANCHES = 1_499
SEED = 2012

# name: (mean number, branches of float32, int32, bool, uint8): as many as a Drell-Yan NanoAOD of 2016 has
_COLLECTIONS = {
    "CorrT1METJet": (7.1, 5, 0, 0, 0),
    "Electron": (0.62, 36, 7, 16, 2),
    "FatJet": (0.02, 36, 4, 0, 2),
    "FsrPhoton": (0.01, 5, 1, 0, 0),
    "GenJetAK8": (0.03, 4, 1, 0, 1),
    "GenJet": (3.2, 4, 1, 0, 1),
    "GenPart": (26.7, 4, 4, 0, 0),
    "SubGenJetAK8": (0.05, 4, 0, 0, 0),
    "GenVisTau": (0.38, 4, 3, 0, 0),
    "LHEPdfWeight": (33.0, 1, 0, 0, 0),
    "LHEScaleWeight": (9.0, 1, 0, 0, 0),
    "PSWeight": (4.0, 1, 0, 0, 0),
    "IsoTrack": (0.1, 8, 3, 3, 0),
    "Jet": (4.7, 26, 9, 0, 1),
    "LHEPart": (2.55, 5, 5, 0, 0),
    "Muon": (0.45, 22, 7, 16, 6),
    "Photon": (0.7, 16, 6, 7, 1),
    "GenDressedLepton": (0.72, 4, 1, 1, 0),
    "SoftActivityJet": (5.8, 3, 0, 0, 0),
    "SubJet": (0.02, 13, 1, 0, 0),
    "Tau": (0.72, 22, 8, 2, 14),
    "TrigObj": (3.2, 5, 5, 0, 0),
    "OtherPV": (3.0, 1, 0, 0, 0),
    "SV": (0.23, 14, 0, 0, 0),
}
# what the schema makes cross references of, where a collection has that many columns of int32
_LINKS = {
    "Electron": ("genPartIdx", "jetIdx", "photonIdx"),
    "Muon": ("fsrPhotonIdx", "genPartIdx", "jetIdx"),
    "Jet": ("electronIdx1", "electronIdx2", "genJetIdx", "muonIdx1", "muonIdx2"),
    "FatJet": ("genJetAK8Idx", "subJetIdx1", "subJetIdx2"),
    "FsrPhoton": ("muonIdx",),
    "GenPart": ("genPartIdxMother",),
    "GenVisTau": ("genPartIdxMother",),
    "Photon": ("electronIdx", "genPartIdx", "jetIdx"),
    "Tau": ("genPartIdx", "jetIdx"),
}
# the schema puts a mass of zero there
_MASSLESS = ("CorrT1METJet", "FsrPhoton", "IsoTrack", "Photon", "TrigObj")
_MOMENTUM = ("pt", "eta", "phi", "mass")
_SINGLES = {
    "MET": 11, "PuppiMET": 3, "RawMET": 3, "TkMET": 3, "CaloMET": 3, "ChsMET": 3, "GenMET": 2,
    "PV": 8, "Generator": 9, "Pileup": 6, "HTXS": 11, "LHE": 10, "btagWeight": 2,
}  # fmt: skip
_NUM_FLAGS = 27


class Samples:
    """Files of any size, in a directory that is kept.

    Parameters
    ----------
    directory : path
        Where the files go; made if it isn't there. An XRootD server that is started as root must be able to read it: not below
        a directory of mode 700.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).resolve()

    def adl(self, num_events: int, num_files: int, num_events_per_cluster: int) -> list[str]:
        """Return files in the layout of the ADL benchmarks, 86 branches, with the toy physics of `datasets.sample`."""
        from datasets.sample import write_sample

        def write(directory: Path) -> None:
            write_sample(
                directory,
                num_events=num_events,
                num_files=num_files,
                num_events_per_cluster=num_events_per_cluster,
                seed=SEED,
            )
            (directory / "fileset.json").unlink()  # its paths are those before the move

        return self._once(f"adl-{num_events}-{num_files}-{num_events_per_cluster}", write)

    def wide(
        self,
        num_clusters: int,
        num_files: int,
        num_events_per_cluster: int,
        num_branches: int = NUM_WIDE_BRANCHES,
    ) -> list[str]:
        """Return files in the layout of NanoAOD, 1,499 branches; with fewer of them there are fewer trigger flags.

        Where ``HEPDASK_DATA`` names a folder with ``nano_wide.root`` (a real layout: 100,000 entries in clusters of 10,000),
        and that fits, copies of it; else copies of a generated one.
        """
        given = Path(os.environ.get("HEPDASK_DATA", ""), "nano_wide.root")
        fits = (num_clusters, num_events_per_cluster, num_branches) == (10, 10_000, 1_499)
        if "HEPDASK_DATA" in os.environ and given.is_file() and fits:

            def write(directory: Path) -> None:
                for number in range(num_files):
                    shutil.copyfile(given, directory / f"wide_{number}.root")

            return self._once(f"wide-real-{num_files}", write)

        def generate(directory: Path) -> None:
            first = directory / "wide_0.root"
            _write_wide(first, num_clusters, num_events_per_cluster, num_branches)
            for number in range(1, num_files):
                shutil.copyfile(first, directory / f"wide_{number}.root")

        return self._once(
            f"wide-{num_branches}-{num_clusters}-{num_files}-{num_events_per_cluster}", generate
        )

    def narrow(self, num_events: int, num_files: int) -> list[str]:
        """Return files of four branches in one cluster each: what is measured there is not reading."""
        num_per_file = num_events // num_files

        def write(directory: Path) -> None:
            for number in range(num_files):
                _write_narrow(directory / f"narrow_{number}.root", num_per_file, [SEED, number])

        return self._once(f"narrow-{num_events}-{num_files}", write)

    def linked(self, files: list[str], num_copies: int) -> list[str]:
        """Return each file under several names, hard links in a folder beside it: a sample that is read for longer."""
        source = Path(files[0]).parent

        def write(directory: Path) -> None:
            for number in range(num_copies):
                for file in files:
                    os.link(file, directory / f"{number:03d}_{Path(file).name}")

        return self._once(f"{source.name}-linked-{num_copies}", write)

    def _once(self, name: str, write: Callable[[Path], None]) -> list[str]:
        target = self.directory / name
        if not target.is_dir():
            self.directory.mkdir(parents=True, exist_ok=True)
            unfinished = self.directory / f"{name}.unfinished-{os.getpid()}"
            unfinished.mkdir()
            write(unfinished)
            unfinished.rename(target)
        return sorted(str(path) for path in target.glob("*.root"))


def _write_narrow(path: Path, num_events: int, seed: list[int]) -> None:
    import uproot

    rng = np.random.default_rng(seed)
    met = rng.exponential(30.0, num_events).astype(np.float32)
    columns = {**_event_ids(num_events), "MET_pt": met}
    with uproot.recreate(path) as file:
        file.mktree("Events", {name: column.dtype for name, column in columns.items()})
        file["Events"].extend(columns)


def _write_wide(path: Path, num_clusters: int, num_events: int, num_branches: int) -> None:
    import uproot

    rng = np.random.default_rng(SEED)
    columns = _wide_columns(rng, num_events, num_branches)
    types = {
        name: column.dtype if isinstance(column, np.ndarray) else column.type.content
        for name, column in columns.items()
    }
    with uproot.recreate(path) as file:
        # for 1,499 branches uproot takes 6 s: the square of their number
        tree = file.mktree("Events", types, counter_name=lambda counted: f"n{counted}")
        for number in range(num_clusters):
            # only these differ from cluster to cluster: making 1,499 new columns takes longer than writing them
            first = number * num_events + 1
            columns["event"] = np.arange(first, first + num_events, dtype=np.uint64)
            columns["MET_pt"] = rng.exponential(30.0, num_events).astype(np.float32)
            tree.extend(columns)


def _num_branches(column: Any) -> int:
    # a record of lists is a counter and its columns
    return 1 if isinstance(column, np.ndarray) else 1 + max(1, len(ak.fields(column)))


def _event_ids(num_events: int) -> dict[str, Any]:
    return {
        "run": np.ones(num_events, np.uint32),
        "luminosityBlock": np.ones(num_events, np.uint32),
        "event": np.arange(1, num_events + 1, dtype=np.uint64),
    }


def _wide_columns(rng: np.random.Generator, num_events: int, num_branches: int) -> dict[str, Any]:
    def reals(*names: str) -> dict[str, Any]:
        return {name: _rounded(rng.exponential(30.0, num_events)) for name in names}

    def flags(prefix: str, number: int, share: float) -> dict[str, Any]:
        return {f"{prefix}{index:03d}": rng.random(num_events) < share for index in range(number)}

    columns: dict[str, Any] = {
        **_event_ids(num_events),
        **reals("genWeight", "fixedGridRhoFastjetAll", "LHEWeight_originalXWGTUP"),
    }
    for name, number in _SINGLES.items():
        labels = ["pt", "phi", *(f"x{index:02d}" for index in range(number - 2))]
        columns |= reals(*(f"{name}_{label}" for label in labels))
    for name, (mean, *numbers) in _COLLECTIONS.items():
        columns[name] = _collection(rng, num_events, name, mean, *numbers)
    columns |= flags("Flag_x", _NUM_FLAGS, 0.98)
    missing = num_branches - sum(_num_branches(column) for column in columns.values())
    num_l1 = missing // 3
    return columns | flags("L1_x", num_l1, 0.02) | flags("HLT_x", missing - num_l1, 0.02)


def _collection(
    rng: np.random.Generator,
    num_events: int,
    name: str,
    mean: float,
    num_reals: int,
    num_integers: int,
    num_flags: int,
    num_bytes: int,
) -> Any:
    counts = rng.poisson(mean, num_events)
    total = int(counts.sum())
    if num_reals == 1:
        return ak.unflatten(_rounded(rng.normal(1.0, 0.1, total)), counts)
    momentum = _MOMENTUM[:3] if name in _MASSLESS else _MOMENTUM
    labels = [*momentum, *(f"x{index:02d}" for index in range(num_reals))][:num_reals]
    links = [*_LINKS.get(name, ()), *(f"i{index:02d}" for index in range(num_integers))]
    fields: dict[str, Any] = {
        **{label: _rounded(rng.exponential(30.0, total)) for label in labels},
        **{label: np.full(total, -1, np.int32) for label in links[:num_integers]},
        **{f"is{index:02d}": rng.random(total) < 0.5 for index in range(num_flags)},
        **{f"id{index:02d}": rng.integers(0, 8, total, np.uint8) for index in range(num_bytes)},
    }
    return ak.zip({label: ak.unflatten(column, counts) for label, column in fields.items()})


def _rounded(values: Any) -> Any:
    """Keep ten bits of the mantissa, as NanoAOD does; the rest would be noise that doesn't compress."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)
