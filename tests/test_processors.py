from __future__ import annotations

import itertools
import math
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
import uproot
import yaml

from datasets.sample import write_sample
from processors import adl, dimuon, selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

REPOSITORY = Path(__file__).parents[1]

# what NanoAODSchema says about every file of the 2012 layout
pytestmark = [
    pytest.mark.filterwarnings("ignore:Missing cross-reference index:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Branch Photon_:RuntimeWarning"),
]

Event = dict[str, Any]


def open_events(
    path: str | Path,
    *,
    access_log: list[Any] | None = None,
    entry_stop: int | None = None,
    **metadata: Any,
) -> Any:
    from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

    factory = NanoEventsFactory.from_root(
        {str(path): "Events"},
        schemaclass=NanoAODSchema,
        mode="virtual",
        access_log=access_log,
        entry_stop=entry_stop,
        metadata={"dataset": "SingleMu", **metadata},
    )
    return factory.events()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("sample")
    fileset = write_sample(
        directory, num_events=800, num_files=1, num_events_per_cluster=300, seed=5
    )
    return str(fileset["SingleMu"]["files"][0])


@pytest.fixture(scope="module")
def rows(path: str) -> list[Event]:
    with uproot.open(path) as file:
        return list(file["Events"].arrays().to_list())


# ---- the same, slowly: one event after the other, nothing but the math module ------------------------------


def objects(event: Event, name: str) -> list[Event]:
    fields = [key.removeprefix(f"{name}_") for key in event if key.startswith(f"{name}_")]
    return [
        {field: event[f"{name}_{field}"][index] for field in fields} | {"name": name}
        for index in range(event[f"n{name}"])
    ]


def add(*parts: Event) -> tuple[float, float]:
    """Mass and transverse momentum of a sum."""
    px = sum(p["pt"] * math.cos(p["phi"]) for p in parts)
    py = sum(p["pt"] * math.sin(p["phi"]) for p in parts)
    pz = sum(p["pt"] * math.sinh(p["eta"]) for p in parts)
    energy = sum(math.hypot(p["pt"] * math.cosh(p["eta"]), p["mass"]) for p in parts)
    return math.sqrt(max(energy**2 - px**2 - py**2 - pz**2, 0.0)), math.hypot(px, py)


def delta_r(a: Event, b: Event) -> float:
    delta_phi = abs(a["phi"] - b["phi"])
    return math.hypot(a["eta"] - b["eta"], min(delta_phi, 2 * math.pi - delta_phi))


def transverse_mass(lepton: Event, met_pt: float, met_phi: float) -> float:
    return math.sqrt(2 * lepton["pt"] * met_pt * (1 - math.cos(lepton["phi"] - met_phi)))


def opposite_pairs(leptons: list[Event]) -> list[tuple[Event, Event]]:
    return [
        (a, b)
        for a, b in itertools.combinations(leptons, 2)
        if a["charge"] == -b["charge"] and a["name"] == b["name"]
    ]


def slow_q1(event: Event) -> Iterator[float]:
    yield event["MET_pt"]


def slow_q2(event: Event) -> Iterator[float]:
    yield from event["Jet_pt"]


def slow_q3(event: Event) -> Iterator[float]:
    for jet in objects(event, "Jet"):
        if abs(jet["eta"]) < 1:
            yield jet["pt"]


def slow_q4(event: Event) -> Iterator[float]:
    if len([pt for pt in event["Jet_pt"] if pt > 40]) >= 2:
        yield event["MET_pt"]


def slow_q5(event: Event) -> Iterator[float]:
    if any(60 < add(*pair)[0] < 120 for pair in opposite_pairs(objects(event, "Muon"))):
        yield event["MET_pt"]


def best_trio(event: Event) -> tuple[Event, ...]:
    trios = itertools.combinations(objects(event, "Jet"), 3)
    return min(trios, key=lambda trio: abs(add(*trio)[0] - 172.5), default=())


def slow_q6_pt(event: Event) -> Iterator[float]:
    if trio := best_trio(event):
        yield add(*trio)[1]


def slow_q6_btag(event: Event) -> Iterator[float]:
    if trio := best_trio(event):
        yield max(jet["btag"] for jet in trio)


def slow_q7(event: Event) -> Iterator[float]:
    leptons = [
        lepton
        for name in ("Muon", "Electron")
        for lepton in objects(event, name)
        if lepton["pt"] > 10
    ]
    yield sum(
        jet["pt"]
        for jet in objects(event, "Jet")
        if jet["pt"] > 30 and all(delta_r(jet, lepton) >= 0.4 for lepton in leptons)
    )


def slow_q8(event: Event) -> Iterator[float]:
    leptons = objects(event, "Electron") + objects(event, "Muon")
    pairs = opposite_pairs(leptons)
    if len(leptons) >= 3 and pairs:
        z_pair = min(pairs, key=lambda pair: abs(add(*pair)[0] - 91.2))
        others = [lepton for lepton in leptons if not any(lepton is used for used in z_pair)]
        leading = max(others, key=lambda lepton: lepton["pt"])
        yield transverse_mass(leading, event["MET_pt"], event["MET_phi"])


@pytest.mark.parametrize(
    ("query", "key", "slow"),
    [
        ("Q1", "met", slow_q1),
        ("Q2", "jet_pt", slow_q2),
        ("Q3", "jet_pt", slow_q3),
        ("Q4", "met", slow_q4),
        ("Q5", "met", slow_q5),
        ("Q6", "trijet_pt", slow_q6_pt),
        ("Q6", "max_btag", slow_q6_btag),
        ("Q7", "sum_jet_pt", slow_q7),
        ("Q8", "transverse_mass", slow_q8),
    ],
)
def test_queries_agree_with_a_slow_loop(
    path: str, rows: list[Event], query: str, key: str, slow: Callable[[Event], Iterator[float]]
) -> None:
    filled = adl.QUERIES[query]().process(open_events(path))[key]
    values = [value for event in rows for value in slow(event)]
    assert len(values) > 20
    expected = filled.copy().reset()
    expected.fill(np.array(values))
    np.testing.assert_array_equal(filled.values(flow=True), expected.values(flow=True))


# ---- the queries on events made by hand --------------------------------------------------------------------

LEPTON_TYPE = {
    "pt": "f4",
    "eta": "f4",
    "phi": "f4",
    "mass": "f4",
    "charge": "i4",
}


def write_events(path: Path, events: list[dict[str, Any]]) -> Path:
    """Write events of ``{"met": (pt, phi), "Muon": [(pt, eta, phi, mass, charge), ...], "Electron": ...}``."""
    import awkward as ak

    columns: dict[str, Any] = {
        name: np.arange(len(events), dtype=kind)
        for name, kind in (("run", "i4"), ("luminosityBlock", "u4"), ("event", "u8"))
    }
    for index, field in enumerate(("pt", "phi")):
        columns[f"MET_{field}"] = np.array([e["met"][index] for e in events], dtype="f4")
    for collection in ("Muon", "Electron", "Jet"):
        rows = [event.get(collection, []) for event in events]
        flat = np.array([row for some in rows for row in some], dtype="f8").reshape(-1, 5)
        fields = {
            name: flat[:, index].astype(kind)
            for index, (name, kind) in enumerate(LEPTON_TYPE.items())
            if (collection, name) != ("Jet", "charge")
        }
        columns[collection] = ak.unflatten(ak.zip(fields), [len(some) for some in rows])
    types = {
        name: c.dtype if isinstance(c, np.ndarray) else c.type.content
        for name, c in columns.items()
    }
    with uproot.recreate(path) as file:
        file.mktree("Events", types).extend(columns)
    return path


def z_pair(phi: float, pt: float = 45.6) -> list[tuple[float, ...]]:
    """Two leptons back to back at eta 0, of 2 pt mass."""
    return [(pt, 0.0, phi, 0.1, 1), (pt, 0.0, phi - math.pi, 0.1, -1)]


def test_q5_selects_opposite_charges_in_the_open_window(tmp_path: Path) -> None:
    same_charge = [(*muon[:4], 1) for muon in z_pair(1.0)]
    events = [
        {"met": (1.0, 0.0), "Muon": z_pair(1.0)},
        {"met": (3.0, 0.0), "Muon": same_charge},
        {"met": (5.0, 0.0), "Muon": z_pair(1.0, pt=29.0)},
        {"met": (7.0, 0.0), "Muon": z_pair(1.0, pt=61.0)},
        {"met": (9.0, 0.0), "Electron": z_pair(1.0)},
        {"met": (11.0, 0.0), "Muon": [*z_pair(1.0, pt=20.0), *z_pair(2.0, pt=35.0)]},
        {"met": (13.0, 0.0)},
    ]
    met = adl.Q5().process(open_events(write_events(tmp_path / "f.root", events)))["met"]
    assert met.axes[0].centers[met.values() > 0].tolist() == [1.0, 11.0]


def test_q8_takes_the_leading_lepton_outside_the_best_pair(tmp_path: Path) -> None:
    third = (30.0, 0.5, 0.0, 0.1, 1)
    events = [
        # a Z of muons and an electron, back to back with the missing momentum: mT = 2 sqrt(30 * 40)
        {"met": (40.0, math.pi), "Muon": z_pair(1.0), "Electron": [third]},
        # the leading lepton is in the Z: the third one counts; along with the missing momentum mT = 0
        {"met": (40.0, 0.0), "Muon": [*z_pair(1.0), third]},
        # the softer of two leptons outside does not count
        {
            "met": (30.0, math.pi),
            "Electron": z_pair(1.0),
            "Muon": [third, (10.0, 0.0, 1.0, 0.1, 1)],
        },
        # three leptons, but no pair of the same flavour and opposite charge
        {
            "met": (50.0, 2.0),
            "Muon": z_pair(1.0)[:1],
            "Electron": [z_pair(1.0)[1], (9.0, 0, 0, 0.1, -1)],
        },
        # a pair, but only two leptons
        {"met": (50.0, 2.0), "Muon": z_pair(1.0)},
    ]
    found = adl.Q8().process(open_events(write_events(tmp_path / "f.root", events)))
    histogram = found["transverse_mass"]
    assert histogram.sum(flow=True) == 3
    for mass in (2 * math.sqrt(30 * 40), 0.0, 60.0 - 1e-3):
        assert histogram[{0: histogram.axes[0].index(mass + 1e-4)}] == 1


def test_queries_take_ranges_without_anything_to_select(tmp_path: Path) -> None:
    path = write_events(tmp_path / "f.root", [{"met": (1.0, 0.0)}])
    for query in (adl.Q2, adl.Q4, adl.Q5, adl.Q8):
        (histogram,) = query().process(open_events(path)).values()
        assert histogram.sum(flow=True) == 0


LEPTONS = {
    f"{name}_{field}" for name in ("Muon", "Electron") for field in ("pt", "eta", "phi", "mass")
}
READ = {
    adl.Q1: {"MET_pt"},
    adl.Q2: {"nJet", "Jet_pt"},
    adl.Q3: {"nJet", "Jet_pt", "Jet_eta"},
    adl.Q4: {"MET_pt", "nJet", "Jet_pt"},
    adl.Q5: {"MET_pt", "nMuon", "Muon_charge", *(one for one in LEPTONS if one[0] == "M")},
    adl.Q6: {"nJet", *(f"Jet_{field}" for field in ("pt", "eta", "phi", "mass", "btag"))},
    adl.Q7: {"nJet", "Jet_pt", "Jet_eta", "Jet_phi", "nMuon", "nElectron"}
    | {one for one in LEPTONS if not one.endswith("mass")},
    adl.Q8: {"MET_pt", "MET_phi", "nMuon", "nElectron", "Muon_charge", "Electron_charge"} | LEPTONS,
    dimuon.DimuonSpectrum: {"nMuon", "Muon_charge", *(one for one in LEPTONS if one[0] == "M")},
}


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("num_events", [800, 0])
def test_queries_read_what_they_need_and_nothing_else(
    path: str, kind: type[Any], num_events: int
) -> None:
    accesses: list[Any] = []
    events = open_events(path, access_log=accesses, entry_stop=num_events)
    output = kind().process(events)
    assert {one.branch for one in accesses} == READ[kind]
    if num_events == 0:
        assert all(one.sum(flow=True) == 0 for one in output.values() if hasattr(one, "sum"))


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.__name__)
def test_queries_take_events_that_were_selected_before(path: str, kind: type[Any]) -> None:
    events = open_events(path)
    chosen = np.random.default_rng(1).random(len(events)) < 0.5
    parts = [kind().process(part) for part in (events[chosen], events[~chosen], events[:0])]
    for key, value in kind().process(events).items():
        if hasattr(value, "axes"):
            assert parts[0][key] + parts[1][key] + parts[2][key] == value


def test_arrays_that_cannot_be_written_to_are_compiled_for_but_once(path: str) -> None:
    import awkward as ak

    events = open_events(path)
    offsets = np.asarray(events.Muon.pt.layout.offsets.data)
    fields = {}
    for name in events.Muon.fields:
        content = np.array(ak.flatten(events.Muon[name]))
        content.flags.writeable = False
        fields[name] = ak.contents.NumpyArray(content)
    muons = ak.contents.ListOffsetArray(
        ak.index.Index64(offsets.copy()), ak.contents.RecordArray([*fields.values()], [*fields])
    )
    frozen = ak.Array({"Muon": muons, "MET": ak.Array({"pt": events.MET.pt.to_numpy()})})
    assert adl.Q5().process(frozen) == adl.Q5().process(events)
    assert len(adl._select_dimuons.signatures) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("x", [0.0, 1e-9, 0.5, 0.785398, 1.0, 2.0, 3.14159265, 6.2, 100.0, 12345.6])
def test_home_made_functions_agree_with_the_math_module(x: float) -> None:
    for one in (x, -x):
        sin, cos = adl._sin_cos(one)
        assert abs(sin - math.sin(one)) < 4e-16
        assert abs(cos - math.cos(one)) < 4e-16
        if x < 700:
            assert adl._exp(one) == pytest.approx(math.exp(one), rel=1e-15)
    assert math.isnan(adl._exp(math.nan))
    assert math.isnan(adl._sin_cos(math.nan)[0])


# ---- all processors ----------------------------------------------------------------------------------------

ALL = [*adl.QUERIES.values(), dimuon.DimuonSpectrum, selection.WSelection]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_processors_survive_pickling_and_leave_the_accumulator_alone(
    path: str, kind: type[Any]
) -> None:
    processor = pickle.loads(pickle.dumps(kind()))
    output = processor.process(open_events(path))
    before = pickle.dumps(output)
    assert processor.postprocess(output).keys() >= output.keys()
    assert pickle.dumps(output) == before


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_two_halves_add_up_to_the_whole(path: str, kind: type[Any]) -> None:
    events = open_events(path)
    whole, left, right = (kind().process(part) for part in (events, events[:300], events[300:]))
    for key, value in whole.items():
        if hasattr(value, "values") and hasattr(value, "axes"):
            assert left[key] + right[key] == value
    for key in ("num_events", "num_pairs", "sum_weights"):
        if key in whole:
            assert left[key]["SingleMu"] + right[key]["SingleMu"] == whole[key]["SingleMu"]


@pytest.mark.parametrize("kind", [adl.Q6, dimuon.DimuonSpectrum], ids=lambda kind: kind.__name__)
def test_compiled_processors_have_one_fingerprint(path: str, kind: type[Any]) -> None:
    from hepdask.fingerprint import fingerprint

    code = (
        f"from {kind.__module__} import {kind.__name__}\n"
        "from hepdask.fingerprint import fingerprint\n"
        f"print(fingerprint({kind.__name__}()))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY
    )
    processor = kind()
    processor.process(open_events(path))  # now there is machine code
    assert fingerprint(processor) == elsewhere.stdout.strip()
    assert fingerprint(cloudpickle.loads(cloudpickle.dumps(processor))) == fingerprint(processor)


@pytest.mark.parametrize("kind", [adl.Q6, dimuon.DimuonSpectrum], ids=lambda kind: kind.__name__)
def test_compiled_processors_run_on_a_cluster_with_a_store(
    path: str, tmp_path: Path, client: Client, kind: type[Any]
) -> None:
    from hepdask import DaskExecutor, Runner

    runner = Runner(DaskExecutor(client), store=tmp_path / "store", chunksize=300, progress=False)
    fileset = {"SingleMu": {"files": [path], "treename": "Events"}}
    first, again = (runner.run(fileset, kind()) for _ in range(2))
    assert first.metrics.total.num_stored_entries == 0
    assert again.metrics.total.num_stored_entries == 800
    assert first.output == again.output == kind().process(open_events(path))


# ---- dimuon ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_pt_gev", [0.0, 10.0])
def test_dimuon_spectrum_agrees_with_a_slow_loop(
    path: str, rows: list[Event], min_pt_gev: float
) -> None:
    output = dimuon.DimuonSpectrum(min_pt_gev=min_pt_gev).process(open_events(path))
    masses = [
        add(*pair)[0]
        for event in rows
        for pair in opposite_pairs([m for m in objects(event, "Muon") if m["pt"] >= min_pt_gev])
    ]
    expected = output["mass"].copy().reset()
    expected.fill(dataset="SingleMu", mass=np.array(masses))
    assert output["num_events"] == {"SingleMu": len(rows)}
    assert output["num_pairs"] == {"SingleMu": len(masses)}
    assert output["mass"] == expected


def test_dimuon_plot_names_the_peaks_and_the_datasets(path: str, tmp_path: Path) -> None:
    output = dimuon.DimuonSpectrum().process(open_events(path))
    figure = dimuon.plot(output)
    figure.savefig(tmp_path / "spectrum.png")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert r"$J/\psi$" in texts
    assert "$Z$" in texts
    (entry,) = figure.axes[0].get_legend().get_texts()
    assert entry.get_text() == f"SingleMu: {output['num_pairs']['SingleMu']:,} pairs"


def test_dimuon_plot_of_nothing_is_empty(path: str, tmp_path: Path) -> None:
    output = dimuon.DimuonSpectrum(min_pt_gev=1e6).process(open_events(path))
    figure = dimuon.plot(output)
    figure.savefig(tmp_path / "spectrum.png")
    assert not figure.axes[0].texts


def test_adl_plot_has_a_panel_for_each_histogram(path: str, tmp_path: Path) -> None:
    figure = adl.plot(adl.Q6().process(open_events(path)))
    figure.savefig(tmp_path / "q6.png")
    assert len(figure.axes) == 2


# ---- selection ---------------------------------------------------------------------------------------------


def slow_selection(rows: list[Event], scale: float) -> tuple[dict[str, int], list[float]]:
    cutflow = dict.fromkeys(("all", "trigger", "one_muon", "met"), 0)
    masses = []
    for event in rows:
        met_x = event["MET_pt"] * math.cos(event["MET_phi"])
        met_y = event["MET_pt"] * math.sin(event["MET_phi"])
        good = []
        for muon in objects(event, "Muon"):
            met_x -= (scale - 1) * muon["pt"] * math.cos(muon["phi"])
            met_y -= (scale - 1) * muon["pt"] * math.sin(muon["phi"])
            if (
                muon["tightId"]
                and muon["pfRelIso04_all"] < 0.15
                and scale * muon["pt"] > 25
                and abs(muon["eta"]) < 2.1
            ):
                good.append(muon | {"pt": scale * muon["pt"]})
        met_pt = math.hypot(met_x, met_y)
        steps = {
            "all": True,
            "trigger": event["HLT_IsoMu24"],
            "one_muon": len(good) == 1,
            "met": met_pt > 20,
        }
        for step, passed in steps.items():
            if not passed:
                break
            cutflow[step] += 1
        else:
            masses.append(transverse_mass(good[0], met_pt, math.atan2(met_y, met_x)))
    return cutflow, masses


@pytest.mark.parametrize(
    ("variation", "scale", "weight"),
    [
        ("nominal", 1.0, 1.0),
        ("muon_scale_up", 1.01, 1.0),
        ("muon_scale_down", 0.99, 1.0),
        ("muon_efficiency_up", 1.0, 1.02),
        ("muon_efficiency_down", 1.0, 0.98),
    ],
)
def test_selection_agrees_with_a_slow_loop(
    path: str, rows: list[Event], variation: str, scale: float, weight: float
) -> None:
    events = open_events(path, cross_section_pb=10.0, luminosity_per_pb=5.0)
    output = selection.WSelection().process(events)
    cutflow, masses = slow_selection(rows, scale)
    filled = output["transverse_mass"][{"dataset": "SingleMu", "variation": variation}]
    counts = np.histogram(masses, bins=filled.axes[0].edges)[0]
    assert len(masses) > 50
    np.testing.assert_allclose(filled.values(), weight * counts, rtol=1e-12)
    np.testing.assert_allclose(filled.variances(), weight**2 * counts, rtol=1e-12)
    if variation == "nominal":
        assert output["cutflow"] == {"SingleMu": cutflow}


def test_simulation_is_scaled_to_its_cross_section(path: str) -> None:
    processor = selection.WSelection()
    events = open_events(path, cross_section_pb=10.0, luminosity_per_pb=5.0)
    output = processor.process(events)
    final = processor.postprocess(output)
    assert output["expected_events"] == {"SingleMu": {50.0}}
    assert final["scale"] == {"SingleMu": 50.0 / 800}
    np.testing.assert_allclose(
        final["transverse_mass"].values(), output["transverse_mass"].values() * 50 / 800
    )
    np.testing.assert_allclose(
        final["transverse_mass"].variances(),
        output["transverse_mass"].variances() * (50 / 800) ** 2,
    )
    # half of the simulation stands for as many events as all of it
    half = processor.postprocess(processor.process(events[:400]))
    assert half["scale"] == {"SingleMu": 50.0 / 400}


def test_data_are_scaled_by_what_is_missing(path: str) -> None:
    processor = selection.WSelection()
    output = processor.process(open_events(path))
    assert list(output["transverse_mass"].axes["variation"]) == ["nominal"]
    assert processor.postprocess(output)["scale"] == {"SingleMu": 1.0}
    counts = SimpleNamespace(num_entries_processed=800, num_entries_requested=1000)
    final = processor.postprocess(output, {"SingleMu": counts})
    assert final["scale"] == {"SingleMu": 1.25}
    assert final["transverse_mass"].sum().value == 1.25 * output["transverse_mass"].sum().value


def test_a_cross_section_needs_a_luminosity(path: str) -> None:
    with pytest.raises(
        ValueError, match=r"'SingleMu' has cross_section_pb .* no luminosity_per_pb"
    ):
        selection.WSelection().process(open_events(path, cross_section_pb=10.0))


def test_files_of_a_dataset_must_agree_on_the_normalisation(path: str) -> None:
    output = selection.WSelection().process(open_events(path))
    output["expected_events"] = {"SingleMu": {50.0, 60.0}}
    with pytest.raises(ValueError, match=r"'SingleMu' ask for different numbers of events, \[50"):
        selection.WSelection().postprocess(output)


# ---- the fileset of the open data --------------------------------------------------------------------------


def test_open_data_fileset_names_trees_and_xrootd_files() -> None:
    fileset = yaml.safe_load((REPOSITORY / "datasets" / "cms_open_data.yaml").read_text("utf-8"))
    assert set(fileset) == {"SingleMu", "DoubleMuParked", "DoubleMuParked_Muons"}
    for dataset in fileset.values():
        assert dataset["metadata"]["is_data"] is True
        for url, facts in dataset["files"].items():
            assert url.startswith("root://eospublic.cern.ch//eos/")
            assert facts["object_path"] == "Events"
