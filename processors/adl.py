"""The eight queries of the IRIS-HEP ADL benchmarks, for CMS Open Data NanoAOD of 2012.

Definitions: https://github.com/iris-hep/adl-benchmarks-index; measured on many systems by Graur et al.,
arXiv:2104.12615. The binning is the one of coffea's own solutions (100 bins; 0 to 200 GeV for momenta).
Each query gives a dict of histograms; what lies outside of an axis is in its flow bins, so that sums with
``flow=True`` count everything that was filled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
from coffea.nanoevents.methods import vector
from coffea.processor import ProcessorABC
from hist import Hist

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

__all__ = ["Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q7", "Q8", "QUERIES", "plot"]

TOP_MASS_GEV = 172.5  # as the benchmark has it
Z_MASS_GEV = 91.2  # as the benchmark has it

MET_LABEL = r"$E_{T}^{miss}$ [GeV]"


class _Query(ProcessorABC):  # type: ignore[misc]  # coffea ships no types
    """A query has nothing to finish."""

    def postprocess(self, accumulator: dict[str, Hist[Any]]) -> dict[str, Hist[Any]]:
        """Return the accumulator as it is: the benchmark asks for plain counts."""
        return accumulator


class Q1(_Query):
    """Missing transverse momentum of all events.

    Reads ``MET_pt`` (GeV). Gives ``met``.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        return {"met": _histogram("met", MET_LABEL, events.MET.pt)}


class Q2(_Query):
    """Transverse momentum of all jets.

    Reads ``nJet, Jet_pt`` (GeV). Gives ``jet_pt``.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        return {"jet_pt": _histogram("jet_pt", r"Jet $p_{T}$ [GeV]", ak.flatten(events.Jet.pt))}


class Q3(_Query):
    """Transverse momentum of the jets with ``|eta| < 1``.

    Reads ``nJet, Jet_pt`` (GeV), ``Jet_eta``. Gives ``jet_pt``.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        jet_pt = events.Jet.pt[abs(events.Jet.eta) < 1.0]
        return {"jet_pt": _histogram("jet_pt", r"Jet $p_{T}$ [GeV]", ak.flatten(jet_pt))}


class Q4(_Query):
    """Missing transverse momentum of events that have at least two jets above 40 GeV.

    Reads ``MET_pt`` (GeV), ``nJet, Jet_pt`` (GeV). Gives ``met``.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        has_two = ak.sum(events.Jet.pt > 40.0, axis=1) >= 2
        return {"met": _histogram("met", MET_LABEL, events.MET.pt[has_two])}


class Q5(_Query):
    """Missing transverse momentum of events with an opposite-charge muon pair of 60 to 120 GeV.

    Reads ``MET_pt`` (GeV), ``nMuon, Muon_pt`` (GeV), ``Muon_eta``, ``Muon_phi`` (rad), ``Muon_mass`` (GeV),
    ``Muon_charge``. Gives ``met``. The mass window is open at both ends.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        pairs = ak.combinations(_build_leptons(events.Muon, 13), 2, fields=["first", "second"])
        pairs = pairs[pairs.first.charge != pairs.second.charge]
        mass = (pairs.first + pairs.second).mass
        has_pair = ak.any((mass > 60.0) & (mass < 120.0), axis=1)
        return {"met": _histogram("met", MET_LABEL, events.MET.pt[has_pair])}


class Q6(_Query):
    """The trijet nearest to the top quark's mass: its transverse momentum and its highest b-tag.

    Reads ``nJet, Jet_pt`` (GeV), ``Jet_eta``, ``Jet_phi`` (rad), ``Jet_mass`` (GeV), ``Jet_btag``. Gives
    ``trijet_pt`` and ``max_btag``, for events of at least three jets. Jets without tracks have negative b-tags,
    so a trijet of such jets is in the underflow.
    """

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
            "trijet_pt": _histogram("trijet_pt", r"Trijet $p_{T}$ [GeV]", pt),
            "max_btag": _histogram("max_btag", "Highest b-tag in the trijet", btag, stop=1.0),
        }


class Q7(_Query):
    """Summed transverse momentum of the jets above 30 GeV that are away from leptons.

    Away: no muon and no electron above 10 GeV within ΔR < 0.4. Reads ``nJet, Jet_pt`` (GeV), ``Jet_eta``,
    ``Jet_phi`` (rad), and the same of ``Muon`` and ``Electron``. Gives ``sum_jet_pt`` of every event, 0 where
    there is no such jet (as coffea's solution; others leave those events out).
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        jets = events.Jet[events.Jet.pt > 30.0]
        is_away = _is_away(jets, events.Muon) & _is_away(jets, events.Electron)
        sum_pt = ak.sum(jets.pt[is_away], axis=1)
        return {"sum_jet_pt": _histogram("sum_jet_pt", r"Jet $\sum p_{T}$ [GeV]", sum_pt)}


class Q8(_Query):
    """Transverse mass of the missing momentum and the leading lepton that is not from the Z.

    For events of at least three electrons and muons with a same-flavour opposite-charge pair: the pair nearest
    to 91.2 GeV is the Z. Reads ``MET_pt`` (GeV), ``MET_phi`` (rad), and ``pt, eta, phi, mass, charge`` of
    ``Muon`` and ``Electron``. Gives ``transverse_mass``,
    ``sqrt(2 pt MET (1 - cos(phi_lepton - phi_MET)))`` in GeV.
    """

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
        return {"transverse_mass": _histogram("transverse_mass", label, mass)}


QUERIES: Mapping[str, type[_Query]] = {
    query.__name__: query for query in (Q1, Q2, Q3, Q4, Q5, Q6, Q7, Q8)
}
"""The queries by name, ``Q1`` to ``Q8``."""


def _histogram(name: str, label: str, values: Any, stop: float = 200.0) -> Hist[Any]:
    histogram: Hist[Any] = Hist.new.Reg(100, 0.0, stop, name=name, label=label).Double()
    histogram.fill(values)
    return histogram


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


def plot(output: dict[str, Hist[Any]]) -> Figure:
    """Draw the histograms of a query side by side.

    Parameters
    ----------
    output : dict
        What a query gives back.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for each histogram. It belongs to no window: call ``savefig``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0 * len(output), 4.5), layout="constrained")
    for panel, histogram in zip(
        figure.subplots(1, len(output), squeeze=False)[0], output.values(), strict=True
    ):
        axis = histogram.axes[0]
        panel.stairs(histogram.values(), axis.edges, fill=True, alpha=0.2, color="C0")
        panel.stairs(histogram.values(), axis.edges, color="C0", linewidth=1.2)
        panel.set_xlim(axis.edges[0], axis.edges[-1])
        panel.tick_params(which="both", direction="in", top=True, right=True)
        panel.set_xlabel(axis.label, loc="right")
        panel.set_ylabel("Entries", loc="top")
    return figure
