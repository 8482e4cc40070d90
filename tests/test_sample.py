from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from datasets import sample
from datasets.sample import RESONANCES, write_sample
from hepdask.errors import OptionError

PARTICLE = {"pt": "float[]", "eta": "float[]", "phi": "float[]", "mass": "float[]"}
CHARGED = PARTICLE | {"charge": "int32_t[]"}
LINKS = {"jetIdx": "int32_t[]", "genPartIdx": "int32_t[]"}
IMPACT = dict.fromkeys(("dxy", "dxyErr", "dz", "dzErr"), "float[]")
TAU_IDS = [
    "idDecayMode",
    *(f"idIso{point}" for point in ("VLoose", "Loose", "Medium", "Tight")),
    *(
        f"idAnti{lepton}{point}"
        for lepton in ("Ele", "Mu")
        for point in ("Loose", "Medium", "Tight")
    ),
]
COLLECTIONS: dict[str, dict[str, str]] = {
    "Muon": CHARGED
    | IMPACT
    | LINKS
    | {
        "pfRelIso03_all": "float[]",
        "pfRelIso04_all": "float[]",
        "tightId": "bool[]",
        "softId": "bool[]",
    },
    "Electron": CHARGED
    | IMPACT
    | LINKS
    | {"pfRelIso03_all": "float[]", "cutBasedId": "bool[]", "pfId": "bool[]"},
    "Tau": CHARGED
    | LINKS
    | {"decayMode": "int32_t[]", "relIso_all": "float[]", "idIsoRaw": "float[]"}
    | dict.fromkeys(TAU_IDS, "bool[]"),
    "Photon": CHARGED | LINKS | {"pfRelIso03_all": "float[]"},
    "Jet": PARTICLE | {"puId": "bool[]", "btag": "float[]"},
}
FLAT = {
    "run": "int32_t",
    "luminosityBlock": "uint32_t",
    "event": "uint64_t",
    "HLT_IsoMu24_eta2p1": "bool",
    "HLT_IsoMu24": "bool",
    "HLT_IsoMu17_eta2p1_LooseIsoPFTau20": "bool",
    "PV_npvs": "int32_t",
    **dict.fromkeys(("PV_x", "PV_y", "PV_z"), "float"),
    **{f"MET_{name}": "float" for name in ("pt", "phi", "sumet", "significance")},
    **{f"MET_Cov{name}": "float" for name in ("XX", "XY", "YY")},
    **{f"n{name}": "int32_t" for name in COLLECTIONS},
}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> ak.Array:
    fileset = write_sample(tmp_path_factory.mktemp("big"), num_events=40_000, num_files=1, seed=7)
    with uproot.open(fileset["SingleMu"]["files"][0]) as file:
        return file["Events"].arrays(filter_name=["/(n?Muon|n?Jet|MET|HLT).*/"])


def read(path: str | Path) -> dict[str, Any]:
    with uproot.open(path) as file:
        arrays = file["Events"].arrays()
    return {name: arrays[name].to_list() for name in arrays.fields}


def test_layout_is_that_of_the_open_data(tmp_path: Path) -> None:
    fileset = write_sample(tmp_path, num_events=50, num_files=1)
    with uproot.open(fileset["SingleMu"]["files"][0]) as file:
        found = {branch.name: branch.typename for branch in file["Events"].branches}
    nested = {
        f"{c}_{name}": kind for c, names in COLLECTIONS.items() for name, kind in names.items()
    }
    assert found == FLAT | nested
    assert len(found) == 86


def test_counters_count_and_objects_are_ordered(tmp_path: Path) -> None:
    fileset = write_sample(tmp_path, num_events=300, num_files=1)
    with uproot.open(fileset["SingleMu"]["files"][0]) as file:
        arrays = file["Events"].arrays()
    for name, columns in COLLECTIONS.items():
        assert ak.sum(arrays[f"n{name}"]) > 0
        for column in columns:
            assert ak.all(ak.num(arrays[f"{name}_{column}"]) == arrays[f"n{name}"])
        pt = arrays[f"{name}_pt"]
        assert ak.all(pt[:, :-1] >= pt[:, 1:])


def test_links_point_to_a_jet_within_0p4(tmp_path: Path) -> None:
    fileset = write_sample(tmp_path, num_events=500, num_files=1)
    events = read(fileset["SingleMu"]["files"][0])
    linked = 0
    for entry, links in enumerate(events["Muon_jetIdx"]):
        distances = [
            [
                np.hypot(eta - jet_eta, np.pi - abs(np.pi - abs(phi - jet_phi)))
                for jet_eta, jet_phi in zip(
                    events["Jet_eta"][entry], events["Jet_phi"][entry], strict=True
                )
            ]
            for eta, phi in zip(events["Muon_eta"][entry], events["Muon_phi"][entry], strict=True)
        ]
        for link, distance in zip(links, distances, strict=True):
            near = min(distance, default=9.0) < 0.4
            assert link == (int(np.argmin(distance)) if near else -1)
            linked += near
    assert linked > 20
    assert {index for indices in events["Muon_genPartIdx"] for index in indices} == {-1}


def test_files_share_the_events_and_clusters_have_the_size_asked_for(tmp_path: Path) -> None:
    fileset = write_sample(
        tmp_path / "new", num_events=1_000, num_files=3, num_events_per_cluster=150
    )
    assert json.loads((tmp_path / "new" / "fileset.json").read_text()) == fileset
    assert list(fileset) == ["SingleMu"]
    assert fileset["SingleMu"]["treename"] == "Events"
    numbers = []
    ids = set()
    for path in fileset["SingleMu"]["files"]:
        assert Path(path).is_absolute()
        with uproot.open(path) as file:
            tree = file["Events"]
            numbers.append(tree.num_entries)
            starts = [tree["Jet_pt"].basket_entry_start_stop(i) for i in range(3)]
            assert starts == [(0, 150), (150, 300), (300, tree.num_entries)]
            ids |= set(zip(*tree.arrays(["run", "event"], library="np").values(), strict=True))
    assert numbers == [334, 333, 333]
    assert len(ids) == 1_000


def test_metadata_and_dataset_are_the_users(tmp_path: Path) -> None:
    fileset = write_sample(
        tmp_path, num_events=2, num_files=2, dataset="wjets", metadata={"cross_section_pb": 3.0}
    )
    assert fileset["wjets"]["metadata"] == {"cross_section_pb": 3.0}
    assert (tmp_path / "wjets_1.root").exists()


def test_same_seed_same_content(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_events": 300, "num_files": 2, "num_events_per_cluster": 100}
    first, again, other = (
        write_sample(tmp_path / name, seed=seed, **options)["SingleMu"]["files"]
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert read(first[0]) == read(again[0])
    assert read(first[1]) == read(again[1])
    assert read(first[0])["Muon_pt"] != read(other[0])["Muon_pt"]
    assert read(first[0])["Muon_pt"] != read(first[1])["Muon_pt"]


def test_content_does_not_depend_on_what_comes_later(tmp_path: Path) -> None:
    short, long = (
        write_sample(tmp_path / str(n), num_events=n, num_files=1, num_events_per_cluster=100)
        for n in (200, 350)
    )
    few, many = (read(fileset["SingleMu"]["files"][0]) for fileset in (short, long))
    assert few == {name: values[:200] for name, values in many.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_files": 0}, "num_files=0 must be between 1 and num_events=10"),
        ({"num_files": 11}, "num_files=11 must be between 1 and num_events=10"),
        ({"num_events_per_cluster": 0}, "num_events_per_cluster=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must not be negative"),
    ],
)
def test_wrong_numbers_are_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        write_sample(tmp_path, num_events=10, **options)


def test_fractions_add_up() -> None:
    assert sum(resonance.fraction for resonance in RESONANCES) == pytest.approx(1.0)
    assert sum(sample.PROCESS_FRACTIONS.values()) == pytest.approx(1.0)
    assert [r.mass_gev for r in RESONANCES] == sorted(r.mass_gev for r in RESONANCES)


def test_a_decay_conserves_momentum() -> None:
    rng = np.random.default_rng(3)
    num = 1_000
    mass = rng.uniform(1.0, 200.0, num)
    parent = sample._from_rapidity(
        rng.exponential(30.0, num), rng.normal(0, 2, num), np.zeros(num), mass
    )
    first, second = sample._decay(rng, parent, 0.1 * mass, 0.3 * mass)
    np.testing.assert_allclose(first + second, parent, rtol=1e-9, atol=1e-9)
    for daughter, fraction in ((first, 0.1), (second, 0.3)):
        squared = daughter[3] ** 2 - (daughter[:3] ** 2).sum(axis=0)
        np.testing.assert_allclose(squared, (fraction * mass) ** 2, rtol=1e-5)


def test_a_decay_at_rest_is_isotropic() -> None:
    rng = np.random.default_rng(4)
    num = 20_000
    zero = np.zeros(num)
    parent = np.stack([zero, zero, zero, np.full(num, 91.2)])
    first, _ = sample._decay(rng, parent, zero, zero)
    np.testing.assert_allclose(first[3], 45.6)
    # each component of an isotropic unit vector has mean 0 and mean square 1/3
    direction = first[:3] / 45.6
    np.testing.assert_allclose(direction.mean(axis=1), 0.0, atol=0.02)
    np.testing.assert_allclose((direction**2).mean(axis=1), 1 / 3, atol=0.01)


def opposite_charge_masses(events: ak.Array) -> np.ndarray[Any, Any]:
    names = ("pt", "eta", "phi", "mass", "charge")
    muons = ak.zip({name: ak.values_astype(events[f"Muon_{name}"], "float64") for name in names})
    a, b = ak.unzip(ak.combinations(muons, 2))
    energy = np.hypot(a.pt * np.cosh(a.eta), a.mass) + np.hypot(b.pt * np.cosh(b.eta), b.mass)
    px = a.pt * np.cos(a.phi) + b.pt * np.cos(b.phi)
    py = a.pt * np.sin(a.phi) + b.pt * np.sin(b.phi)
    pz = a.pt * np.sinh(a.eta) + b.pt * np.sinh(b.eta)
    mass = np.sqrt(energy**2 - px**2 - py**2 - pz**2)
    return ak.to_numpy(ak.flatten(mass[a.charge != b.charge]))


@pytest.mark.parametrize(
    "resonance", [r for r in RESONANCES if "rho" not in r.name], ids=lambda r: r.name
)
def test_resonances_peak_at_their_masses(big: ak.Array, resonance: sample.Resonance) -> None:
    ratio = opposite_charge_masses(big) / resonance.mass_gev
    # 2.5 %: the 3S is 3.3 % from the 2S
    peak = ratio[abs(ratio - 1.0) < 0.0125]
    beside = np.count_nonzero(abs(ratio - 1.1) < 0.0125)
    assert len(peak) > 2 * beside
    assert np.median(peak) == pytest.approx(1.0, abs=0.004)


def test_w_bosons_have_a_jacobian_edge(big: ak.Array) -> None:
    events = big[(big.nMuon == 1) & big.HLT_IsoMu24]
    pt, phi = events.Muon_pt[:, 0], events.Muon_phi[:, 0]
    mass = np.sqrt(2 * pt * events.MET_pt * (1 - np.cos(phi - events.MET_phi)))
    counts = np.histogram(ak.to_numpy(mass), bins=[60, 80, 100, 120])[0]
    assert counts[0] > 1.5 * counts[1] > 4 * counts[2]


def test_hadronic_tops_peak_in_the_trijet_mass(big: ak.Array) -> None:
    names = ("pt", "eta", "phi", "mass", "btag")
    jets = ak.zip({name: ak.values_astype(big[f"Jet_{name}"], "float64") for name in names})
    jets = jets[(jets.pt > 30) & (abs(jets.eta) < 2.5)]
    jets = jets[ak.num(jets) >= 4]
    trios = ak.unzip(ak.combinations(jets, 3))
    px, py = (sum(j.pt * f(j.phi) for j in trios) for f in (np.cos, np.sin))
    pz = sum(j.pt * np.sinh(j.eta) for j in trios)
    energy = sum(np.hypot(j.pt * np.cosh(j.eta), j.mass) for j in trios)
    mass = np.sqrt(energy**2 - px**2 - py**2 - pz**2)
    tagged = sum(ak.values_astype(j.btag > 0.6, "int64") for j in trios) == 1
    # the three jets that have the highest momentum together
    best = ak.argmax(np.where(tagged, np.hypot(px, py), -1.0), axis=1, keepdims=True)
    counts = np.histogram(ak.to_numpy(ak.flatten(mass[best])), bins=[60, 105, 150, 195, 240, 285])[
        0
    ]
    assert np.argmax(counts) == 2
    assert counts[2] > 1.3 * max(counts[1], counts[3])


def test_leptons_in_jets_are_not_isolated(big: ak.Array) -> None:
    has_isolation = big.Muon_pfRelIso03_all >= 0
    inside = big.Muon_pfRelIso03_all[has_isolation & (big.Muon_jetIdx >= 0)]
    outside = big.Muon_pfRelIso03_all[has_isolation & (big.Muon_jetIdx < 0)]
    assert ak.mean(inside) > 2 * ak.mean(outside)
    assert not ak.any(big.Muon_tightId & ~has_isolation)


def test_nanoaod_schema_warns_of_what_the_layout_lacks_and_reads_it(tmp_path: Path) -> None:
    from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

    fileset = write_sample(tmp_path, num_events=100, num_files=1)
    source = {fileset["SingleMu"]["files"][0]: "Events"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        events = NanoEventsFactory.from_root(
            source, schemaclass=NanoAODSchema, mode="virtual"
        ).events()
    texts = {str(warning.message) for warning in caught}
    replaced = {text for text in texts if text.startswith("Branch Photon_")}
    assert len(replaced) <= 2
    assert all(text.startswith("Missing cross-reference index") for text in texts - replaced)
    assert {warning.category for warning in caught} <= {RuntimeWarning}
    linked = events.Muon.matched_jet
    assert ak.all(ak.is_none(linked, axis=1) == (events.Muon.jetIdx < 0))
