"""The queries of `processors.adl` and the dimuon spectrum with arrays of objects: what ours are compared with.

Written as most analyses are: vectors that behave as such, ``ak.combinations``, ``.mass``, ``metric_table``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
from coffea.nanoevents.methods import vector
from hist import Hist, axis

if TYPE_CHECKING:
    from collections.abc import Mapping

TOP_MASS_GEV = 172.5
Z_MASS_GEV = 91.2


def histogram(name: str, label: str, values: Any, stop: float = 200.0) -> Hist[Any]:
    """Fill one axis of 100 bins."""
    filled: Hist[Any] = Hist.new.Reg(100, 0.0, stop, name=name, label=label).Double()
    filled.fill(values)
    return filled


class Q1:
    def process(self, events: Any) -> dict[str, Hist[Any]]:
        return {"met": histogram("met", r"$E_{T}^{miss}$ [GeV]", events.MET.pt)}


class Q2:
    def process(self, events: Any) -> dict[str, Hist[Any]]:
        return {"jet_pt": histogram("jet_pt", r"Jet $p_{T}$ [GeV]", ak.flatten(events.Jet.pt))}


class Q3:
    def process(self, events: Any) -> dict[str, Hist[Any]]:
        jet_pt = events.Jet.pt[abs(events.Jet.eta) < 1.0]
        return {"jet_pt": histogram("jet_pt", r"Jet $p_{T}$ [GeV]", ak.flatten(jet_pt))}


class Q4:
    def process(self, events: Any) -> dict[str, Hist[Any]]:
        has_two = ak.sum(events.Jet.pt > 40.0, axis=1) >= 2
        return {"met": histogram("met", r"$E_{T}^{miss}$ [GeV]", events.MET.pt[has_two])}


class Q5:
    def process(self, events: Any) -> dict[str, Hist[Any]]:
        pairs = ak.combinations(_build_leptons(events.Muon, 13), 2, fields=["first", "second"])
        pairs = pairs[pairs.first.charge != pairs.second.charge]
        mass = (pairs.first + pairs.second).mass
        has_pair = ak.any((mass > 60.0) & (mass < 120.0), axis=1)
        return {"met": histogram("met", r"$E_{T}^{miss}$ [GeV]", events.MET.pt[has_pair])}


class Q6:
    def process(self, events: Any) -> dict[str, Hist[Any]]:
        jets = _build_cartesian(events.Jet)
        trios = ak.combinations(jets[ak.num(jets) >= 3], 3, fields=["a", "b", "c"])
        px, py, pz, energy = (
            trios.a[name] + trios.b[name] + trios.c[name] for name in ("px", "py", "pz", "energy")
        )
        mass = np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0.0))
        best = ak.argmin(abs(mass - TOP_MASS_GEV), axis=1, keepdims=True)
        trio = ak.flatten(trios[best])
        pt = np.hypot(ak.flatten(px[best]), ak.flatten(py[best]))
        btag = np.maximum(trio.a.btag, np.maximum(trio.b.btag, trio.c.btag))
        return {
            "trijet_pt": histogram("trijet_pt", r"Trijet $p_{T}$ [GeV]", pt),
            "max_btag": histogram("max_btag", "Highest b-tag in the trijet", btag, stop=1.0),
        }


class Q7:
    def process(self, events: Any) -> dict[str, Hist[Any]]:
        jets = events.Jet[events.Jet.pt > 30.0]
        is_away = _is_away(jets, events.Muon) & _is_away(jets, events.Electron)
        sum_pt = ak.sum(jets.pt[is_away], axis=1)
        return {"sum_jet_pt": histogram("sum_jet_pt", r"Jet $\sum p_{T}$ [GeV]", sum_pt)}


class Q8:
    def process(self, events: Any) -> dict[str, Hist[Any]]:
        flavours = [_build_leptons(events.Electron, 11), _build_leptons(events.Muon, 13)]
        leptons = ak.concatenate(flavours, axis=1)
        pairs = ak.argcombinations(leptons, 2, fields=["first", "second"])
        first, second = leptons[pairs.first], leptons[pairs.second]
        pairs = pairs[(first.flavour == second.flavour) & (first.charge != second.charge)]
        selected = (ak.num(leptons) >= 3) & (ak.num(pairs) > 0)
        lepton = _leading_outside_z(leptons[selected], pairs[selected])
        met_pt, met_phi = events.MET.pt[selected], events.MET.phi[selected]
        mass = np.sqrt(2.0 * lepton.pt * met_pt * (1.0 - np.cos(lepton.phi - met_phi)))
        label = r"$\ell$-MET transverse mass [GeV]"
        return {"transverse_mass": histogram("transverse_mass", label, mass)}


class DimuonSpectrum:
    def process(self, events: Any) -> dict[str, Any]:
        dataset = events.metadata["dataset"]
        muons = _build_leptons(events.Muon, 13)
        pairs = ak.combinations(muons, 2, fields=["first", "second"])
        pairs = ak.flatten(pairs[pairs.first.charge != pairs.second.charge])
        mass = (pairs.first + pairs.second).mass
        spectrum = (
            Hist.new.StrCat([], growth=True, name="dataset", label="Dataset")
            .Reg(
                700,
                0.25,
                300.0,
                transform=axis.transform.log,
                name="mass",
                label=r"$m_{\mu\mu}$ [GeV]",
            )
            .Double()
        )
        spectrum.fill(dataset=dataset, mass=mass)
        return {
            "mass": spectrum,
            "num_events": {dataset: len(events)},
            "num_pairs": {dataset: len(mass)},
        }


OBJECT_PROCESSORS: Mapping[str, Any] = {
    kind.__name__: kind for kind in (Q1, Q2, Q3, Q4, Q5, Q6, Q7, Q8, DimuonSpectrum)
}
"""By the name of the class."""


def _widen(collection: Any, *names: str) -> dict[str, Any]:
    """Take columns in double precision: small masses are differences of large numbers."""
    return {name: ak.values_astype(collection[name], np.float64) for name in names}


def _build_leptons(collection: Any, flavour: int) -> Any:
    columns = _widen(collection, "pt", "eta", "phi", "mass")
    flavours = ak.full_like(collection.charge, flavour)
    return ak.zip(
        {**columns, "charge": collection.charge, "flavour": flavours},
        with_name="PtEtaPhiMLorentzVector",
        behavior=vector.behavior,
    )


def _build_cartesian(jet: Any) -> Any:
    """Make Cartesian momenta once per jet, rather than once per trijet."""
    columns = _widen(jet, "pt", "eta", "phi", "mass")
    pt, eta = columns["pt"], columns["eta"]
    return ak.zip(
        {
            "px": pt * np.cos(columns["phi"]),
            "py": pt * np.sin(columns["phi"]),
            "pz": pt * np.sinh(eta),
            "energy": np.hypot(pt * np.cosh(eta), columns["mass"]),
            "btag": jet.btag,
        }
    )


def _is_away(jets: Any, leptons: Any) -> Any:
    near = jets.metric_table(leptons[leptons.pt > 10.0]) < 0.4
    return ~ak.any(near, axis=2)


def _leading_outside_z(leptons: Any, pairs: Any) -> Any:
    """Pick the lepton of highest pt outside of the pair nearest to the Z; each event has a pair and three leptons."""
    mass = (leptons[pairs.first] + leptons[pairs.second]).mass
    z_pair = pairs[ak.argmin(abs(mass - Z_MASS_GEV), axis=1, keepdims=True)][:, 0]
    index = ak.local_index(leptons)
    others = leptons[(index != z_pair.first) & (index != z_pair.second)]
    return others[ak.argmax(others.pt, axis=1, keepdims=True)][:, 0]
