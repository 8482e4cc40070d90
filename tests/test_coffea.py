"""coffea's own Runner and hepdask's give the same outputs for the same processors and files.

The outputs are compared with ``==``, floats included: the weights are whole numbers, so that their sums are exact and
don't depend on where either side cuts the files.
"""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
import uproot
from coffea import processor as coffea
from coffea.nanoevents import BaseSchema, NanoAODSchema, PHYSLITESchema
from coffea.processor import ProcessorABC
from hist import Hist

import hepdask

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import NanoFiles

REPOSITORY = Path(__file__).resolve().parent.parent
COFFEA_KEYS = {"bytesread", "columns", "entries", "processtime", "chunks"}


class Spectra(ProcessorABC):
    """Fills everything that an accumulator may hold, for any collection with a pt."""

    def __init__(self, collection: str, unit: float = 1.0) -> None:
        self.collection = collection
        self.unit = unit

    def process(self, events: Any) -> dict[str, Any]:
        """Fill histograms with growing categories and weights, counts, sets, lists, nested dicts."""
        dataset = events.metadata["dataset"]
        pt = ak.to_numpy(ak.flatten(events[self.collection].pt)) / self.unit
        weight = np.round(pt)
        region = np.where(pt > 20.0, "hard", "soft")
        weighted = (
            Hist.new.StrCat([], growth=True, name="dataset")
            .StrCat([], growth=True, name="region")
            .Reg(20, 0.0, 200.0, name="pt")
            .Weight()
        )
        weighted.fill(dataset=dataset, region=region, pt=pt, weight=weight)
        multiplicity = Hist.new.IntCat([], growth=True, name="count").Int64()
        multiplicity.fill(ak.num(events[self.collection]))
        return {
            dataset: {"num_events": len(events), "sum_of_weights": float(weight.sum())},
            "weighted": weighted,
            "nested": {"multiplicity": multiplicity, "files": {events.metadata["filename"]}},
            "counts": ak.to_list(ak.num(events[self.collection])),
            "trees": {events.metadata["treename"]},
            "uuids": {events.metadata["fileuuid"]},
            "year": {dataset: {events.metadata.get("year", 0)}},
        }

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Add a figure, so that it shows whether this was called once."""
        total = accumulator["weighted"].sum(flow=True)
        return {**accumulator, "total": (total.value, total.variance)}


def count_events(events: Any) -> dict[str, int]:
    """Count: a processor that is a plain function."""
    return {events.metadata["dataset"]: len(events)}


def run_coffea(fileset: Any, processor: Any, **options: Any) -> Any:
    """Run coffea's Runner with its simplest executor."""
    treename = options.pop("treename", None)
    run = coffea.Runner(
        executor=coffea.IterativeExecutor(status=False),
        metadata_cache={},  # by default it lives as long as the process, whatever becomes of the files
        **{"schema": NanoAODSchema, **options},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hepdask's Runner none is let pass
        return run(fileset, processor, treename=treename)


def run_hepdask(fileset: Any, processor: Any, executor: Any = None, **options: Any) -> Any:
    """Run hepdask's Runner, by default in this process."""
    treename = options.pop("treename", None)
    run = hepdask.Runner(
        executor=executor or hepdask.LocalExecutor(status=False),
        **{"schema": NanoAODSchema, **options},
    )
    return run(fileset, processor, treename=treename)


def check_same(actual: Any, expected: Any, where: str = "output") -> None:
    """Check that two outputs are equal, and name the first place where they aren't."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected), where
        for key, value in expected.items():
            check_same(actual[key], value, f"{where}[{key!r}]")
        return
    assert type(actual) is type(expected), where
    assert actual == expected, where
    if isinstance(expected, Hist):  # == may look at the storage alone
        assert [list(axis) for axis in actual.axes] == [list(axis) for axis in expected.axes], where
        np.testing.assert_array_equal(actual.view(flow=True), expected.view(flow=True), where)


@pytest.fixture(params=["local", "dask"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run hepdask, on each executor."""
    if request.param == "local":
        return run_hepdask
    client = request.getfixturevalue("client")
    return partial(run_hepdask, executor=hepdask.DaskExecutor(client=client, status=False))


# ---- files that the tests write --------------------------------------------------------------------------


def two_datasets(nano_files: NanoFiles) -> dict[str, Any]:
    first, second, third = map(str, nano_files.paths)
    empty = str(nano_files.empty_path)
    return {
        "dy": {"files": [first, empty, second], "treename": "Events", "metadata": {"year": 2018}},
        "tt": {"files": {third: "Events"}, "metadata": {"year": 2017}},
    }


@pytest.mark.parametrize("chunksize", [37, 100, 1_000])
def test_outputs_are_equal(nano_files: NanoFiles, run: Any, chunksize: int) -> None:
    fileset = two_datasets(nano_files)
    expected = run_coffea(fileset, Spectra("Muon"), chunksize=chunksize)
    assert expected["dy"]["num_events"] == 249
    check_same(run(fileset, Spectra("Muon"), chunksize=chunksize), expected)


def test_outputs_are_equal_with_the_default_chunks(nano_files: NanoFiles, run: Any) -> None:
    fileset = two_datasets(nano_files)
    check_same(run(fileset, Spectra("Jet")), run_coffea(fileset, Spectra("Jet")))


@pytest.mark.parametrize("align_clusters", [True, False])
def test_outputs_are_equal_with_clusters(nano_files: NanoFiles, align_clusters: bool) -> None:
    fileset = two_datasets(nano_files)
    options = {"align_clusters": align_clusters, "chunksize": 60}
    check_same(
        run_hepdask(fileset, Spectra("Muon"), **options),
        run_coffea(fileset, Spectra("Muon"), **options),
    )


def test_a_function_is_a_processor(nano_files: NanoFiles, run: Any) -> None:
    expected = run_coffea(two_datasets(nano_files), count_events)
    assert expected == {"dy": 249, "tt": 40}
    check_same(run(two_datasets(nano_files), count_events), expected)


def test_a_schema_without_collections(nano_files: NanoFiles) -> None:
    def sum_of_met(events: Any) -> dict[str, float]:
        return {"met": float(ak.sum(np.round(events.MET_pt)))}

    fileset = two_datasets(nano_files)
    check_same(
        run_hepdask(fileset, sum_of_met, schema=BaseSchema),
        run_coffea(fileset, sum_of_met, schema=BaseSchema),
    )


def test_maxchunks_means_the_same_number_of_chunks(nano_files: NanoFiles) -> None:
    options = {"chunksize": 50, "maxchunks": 2, "savemetrics": True}
    fileset = two_datasets(nano_files)
    _, expected = run_coffea(fileset, count_events, **options)
    _, actual = run_hepdask(fileset, count_events, **options)
    assert actual["chunks"] == expected["chunks"] == 3


def test_missing_files_are_left_out_alike(nano_files: NanoFiles, tmp_path: Path) -> None:
    fileset = {"dy": [str(nano_files.paths[0]), str(tmp_path / "gone.root")]}
    options = {"treename": "Events", "skipbadfiles": True}
    check_same(
        run_hepdask(fileset, Spectra("Muon"), **options),
        run_coffea(fileset, Spectra("Muon"), **options),
    )


def test_only_an_empty_file(nano_files: NanoFiles) -> None:
    fileset = {"empty": [str(nano_files.empty_path)], "dy": [str(nano_files.paths[2])]}
    check_same(
        run_hepdask(fileset, Spectra("Muon"), treename="Events"),
        run_coffea(fileset, Spectra("Muon"), treename="Events"),
    )


# ---- the call --------------------------------------------------------------------------------------------


def test_every_spelling_of_the_call(nano_files: NanoFiles) -> None:
    processor = Spectra("Muon")
    bare = {"dy": [str(path) for path in nano_files.paths]}
    named = {"dy": {"files": bare["dy"], "treename": "Events"}}
    expected = run_coffea(bare, processor, treename="Events")
    call = hepdask.Runner(executor=hepdask.LocalExecutor(), schema=NanoAODSchema)
    for output in (
        call(bare, "Events", processor_instance=processor),
        call(bare, "Events", processor),
        call(bare, processor, "Events"),
        call(bare, processor, treename="Events"),
        call(bare, processor_instance=processor, treename="Events"),
        call(fileset=bare, processor_instance=processor, treename="Events"),
        call(named, processor),
        call(named, None, processor),
        call(named, processor_instance=processor),
    ):
        check_same(output, expected)


def test_the_fileset_wins_over_the_argument(nano_files: NanoFiles) -> None:
    fileset = {"dy": {"files": [str(nano_files.paths[0])], "treename": "Events"}}
    check_same(
        run_hepdask(fileset, count_events, treename="Other"),
        run_coffea(fileset, count_events, treename="Other"),
    )


def test_metrics_have_coffeas_keys_and_figures(nano_files: NanoFiles, run: Any) -> None:
    fileset, options = two_datasets(nano_files), {"chunksize": 100, "savemetrics": True}
    expected_output, expected = run_coffea(fileset, Spectra("Muon"), **options)
    output, metrics = run(fileset, Spectra("Muon"), **options)
    check_same(output, expected_output)
    assert expected.keys() >= COFFEA_KEYS
    assert metrics.keys() >= COFFEA_KEYS
    assert metrics["entries"] == expected["entries"] == 289
    assert set(metrics["columns"]) == {"Muon_pt", "nMuon"}
    assert metrics["bytesread"] > 0
    assert metrics["processtime"] > 0


# ---- RNTuple ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rntuple(nano_files: NanoFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the smallest of the files as an RNTuple."""
    with uproot.open(nano_files.paths[2]) as file:
        events = file["Events"].arrays()
    path = tmp_path_factory.mktemp("rntuple") / "nano.root"
    columns = {name: events[name] for name in events.fields}
    with uproot.recreate(path) as file:
        types = {name: column.type.content for name, column in columns.items()}
        file.mkrntuple("Events", types).extend(columns)
    return path


def test_an_rntuple_gives_what_the_tree_gives(
    nano_files: NanoFiles, rntuple: Path, run: Any
) -> None:
    from_tree = run({"dy": [str(nano_files.paths[2])]}, Spectra("Muon"), treename="Events")
    from_rntuple = run({"dy": [str(rntuple)]}, Spectra("Muon"), treename="Events", chunksize=15)
    for key in ("dy", "weighted", "counts", "total", "trees"):
        check_same(from_rntuple[key], from_tree[key], key)


def test_an_rntuple_gives_what_coffea_gives(rntuple: Path) -> None:
    fileset = {"dy": {"files": {str(rntuple): "Events"}}}
    check_same(run_hepdask(fileset, Spectra("Muon")), run_coffea(fileset, Spectra("Muon")))


# ---- files of the experiments ----------------------------------------------------------------------------


def data_file(name: str) -> str:
    """Find one of the sample files of the coffea project, or skip the test."""
    directory = Path(os.environ.get("HEPDASK_DATA", REPOSITORY.parent / "shared" / "data"))
    path = directory / name
    if not path.is_file():
        pytest.skip(f"{path} isn't there: set HEPDASK_DATA to a folder with coffea's sample files")
    return str(path)


CMS_OPTIONS = {"treename": "Events", "chunksize": 20}


def cms_fileset() -> dict[str, Any]:
    return {
        "dy": {
            "files": [data_file("nano_dy.root"), data_file("nano_dy_empty.root")],
            "metadata": {"year": 2017},
        },
        "data": [data_file("nano_dimuon.root")],
    }


@pytest.fixture(scope="module")
def cms_output() -> Any:
    """Run coffea once for all executors: it needs a second for each chunk."""
    return run_coffea(cms_fileset(), Spectra("Muon"), **CMS_OPTIONS)


def test_nanoaod_of_cms(run: Any, cms_output: Any) -> None:
    assert (cms_output["dy"]["num_events"], cms_output["data"]["num_events"]) == (40, 40)
    check_same(run(cms_fileset(), Spectra("Muon"), **CMS_OPTIONS), cms_output)


def test_cross_references_of_nanoaod() -> None:
    def match(events: Any) -> dict[str, Any]:
        matched = events.Muon.matched_gen
        return {"id": ak.to_list(ak.flatten(ak.fill_none(matched.pdgId, 0)))}

    fileset = {"dy": {"files": {data_file("nano_dy.root"): "Events"}}}
    expected = run_coffea(fileset, match)
    assert any(abs(one) == 13 for one in expected["id"])
    check_same(run_hepdask(fileset, match, chunksize=15), expected)


def test_another_tree_of_a_file() -> None:
    fileset = {"dy": [data_file("nano_dy_SpecialTree.root")]}
    expected = run_coffea(fileset, Spectra("Muon"), treename="NotEvents")
    assert expected["trees"] == {"NotEvents"}
    check_same(run_hepdask(fileset, Spectra("Muon"), treename="NotEvents"), expected)


@pytest.mark.filterwarnings("ignore:Skipping .* as it is:UserWarning")
@pytest.mark.parametrize("collection", ["Electrons", "Jets"])
def test_physlite_of_atlas(collection: str) -> None:
    fileset = {"atlas": [data_file("PHYSLITE_example.root")]}
    options = {"treename": "CollectionTree", "schema": PHYSLITESchema, "chunksize": 50}
    processor = Spectra(collection, unit=1_000.0)  # the files are in MeV
    expected = run_coffea(fileset, processor, **options)
    assert expected["atlas"]["num_events"] == 100
    check_same(run_hepdask(fileset, processor, **options), expected)


def test_rntuple_of_cms() -> None:
    # in one chunk: coffea needs 6 s for each
    fileset = {"dy": {"files": {data_file("nano_dy_rntuple.root"): "Events"}}}
    check_same(run_hepdask(fileset, Spectra("Muon")), run_coffea(fileset, Spectra("Muon")))
