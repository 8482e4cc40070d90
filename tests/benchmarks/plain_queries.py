"""The eight ADL queries as plain columns: no vector objects, no numba, nothing but awkward and numpy.

They run on coffea and on hepdask as they stand, so a comparison with them is one of the frameworks. The histograms are those of
`processors.adl`, and so are the definitions; see there.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
from hist import Hist

__all__ = ["QUERIES"]

TOP_MASS_GEV = 172.5
Z_MASS_GEV = 91.2


def q1(events: Any) -> Any:
    """Fill MET of all events."""
    return {"met": _fill(events.MET.pt)}


def q2(events: Any) -> Any:
    """Fill pT of all jets."""
    return {"jet_pt": _fill(ak.flatten(events.Jet.pt))}


def q3(events: Any) -> Any:
    """Fill pT of central jets."""
    jets = events.Jet
    return {"jet_pt": _fill(ak.flatten(jets.pt[abs(jets.eta) < 1.0]))}


def q4(events: Any) -> Any:
    """Fill MET of events with two jets above 40 GeV."""
    return {"met": _fill(events.MET.pt[ak.sum(events.Jet.pt > 40.0, axis=1) >= 2])}


def q5(events: Any) -> Any:
    """Fill MET of events with an opposite-charge dimuon of 60 to 120 GeV."""
    muons = events.Muon
    momenta = _cartesian(muons)
    charge = muons.charge
    first, second = ak.unzip(ak.argcombinations(charge, 2))
    mass = _mass([column[first] + column[second] for column in momenta])
    passes = (charge[first] != charge[second]) & (mass > 60.0) & (mass < 120.0)
    return {"met": _fill(events.MET.pt[ak.any(passes, axis=1)])}


def q6(events: Any) -> Any:
    """Fill pT and highest b-tag of the trijet nearest to the top quark."""
    jets = events.Jet
    jets_pt = jets.pt
    has_three = ak.num(jets_pt) >= 3
    momenta = [column[has_three] for column in _cartesian(jets)]
    btag = jets.btag[has_three]
    trios = ak.unzip(ak.argcombinations(btag, 3))
    sums = [column[trios[0]] + column[trios[1]] + column[trios[2]] for column in momenta]
    best = ak.argmin(abs(_mass(sums) - TOP_MASS_GEV), axis=1, keepdims=True)
    pt = np.hypot(ak.flatten(sums[0][best]), ak.flatten(sums[1][best]))
    tags = [ak.flatten(btag[index[best]]) for index in trios]
    highest = np.maximum(tags[0], np.maximum(tags[1], tags[2]))
    return {"trijet_pt": _fill(pt), "max_btag": _fill(highest, stop=1.0)}


def q7(events: Any) -> Any:
    """Fill the summed pT of the jets away from leptons."""
    jets = events.Jet
    pt = jets.pt
    hard = pt > 30.0
    pt, eta, phi = pt[hard], jets.eta[hard], jets.phi[hard]
    away = _is_away(eta, phi, events.Muon) & _is_away(eta, phi, events.Electron)
    return {"sum_jet_pt": _fill(ak.sum(pt[away], axis=1))}


def q8(events: Any) -> Any:
    """Fill the transverse mass of MET and the leading lepton outside the best Z."""
    electrons, muons = events.Electron, events.Muon
    enough = ak.num(electrons.charge) + ak.num(muons.charge) >= 3

    def join(left: Any, right: Any) -> Any:
        return ak.concatenate([left[enough], right[enough]], axis=1)

    pt, phi, charge = (join(electrons[name], muons[name]) for name in ("pt", "phi", "charge"))
    momenta = [join(*pair) for pair in zip(_cartesian(electrons), _cartesian(muons), strict=True)]
    flavour = join(ak.full_like(electrons.charge, 11), ak.full_like(muons.charge, 13))
    first, second = ak.unzip(ak.argcombinations(charge, 2))
    fits = (flavour[first] == flavour[second]) & (charge[first] != charge[second])
    first, second = first[fits], second[fits]
    distance = abs(_mass([column[first] + column[second] for column in momenta]) - Z_MASS_GEV)
    best = ak.argmin(distance, axis=1, keepdims=True)
    z_first, z_second = ak.firsts(first[best]), ak.firsts(second[best])
    index = ak.local_index(charge)
    outside = ak.fill_none((index != z_first) & (index != z_second), [], axis=0)
    has_pair = ak.num(first) > 0
    outside, pt, phi = outside[has_pair], pt[has_pair], phi[has_pair]
    pt, phi = pt[outside], phi[outside]
    leading = ak.argmax(pt, axis=1, keepdims=True)
    pt, phi = (ak.flatten(column[leading]) for column in (pt, phi))
    met_pt, met_phi = (column[enough][has_pair] for column in (events.MET.pt, events.MET.phi))
    pt, phi, met_pt, met_phi = (
        ak.values_astype(column, np.float64) for column in (pt, phi, met_pt, met_phi)
    )
    mass = np.sqrt(2.0 * pt * met_pt * (1.0 - np.cos(phi - met_phi)))
    return {"transverse_mass": _fill(mass)}


QUERIES = {
    name.upper(): globals()[name] for name in ("q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8")
}
"""The queries by name, ``Q1`` to ``Q8``: functions of events."""


def _fill(values: Any, stop: float = 200.0) -> Any:
    histogram: Any = Hist.new.Reg(100, 0.0, stop, name="x").Double()
    histogram.fill(values)
    return histogram


def _cartesian(particles: Any) -> list[Any]:
    """Return px, py, pz and energy in double precision."""
    pt, eta, phi, mass = (
        ak.values_astype(particles[name], np.float64) for name in ("pt", "eta", "phi", "mass")
    )
    return [
        pt * np.cos(phi),
        pt * np.sin(phi),
        pt * np.sinh(eta),
        np.hypot(pt * np.cosh(eta), mass),
    ]


def _mass(momentum: list[Any]) -> Any:
    px, py, pz, energy = momentum
    return np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0.0))


def _is_away(eta: Any, phi: Any, leptons: Any) -> Any:
    hard = leptons.pt > 10.0
    jet_eta, lepton_eta = ak.unzip(ak.cartesian([eta, leptons.eta[hard]], nested=True))
    jet_phi, lepton_phi = ak.unzip(ak.cartesian([phi, leptons.phi[hard]], nested=True))
    distance_phi = (jet_phi - lepton_phi + np.pi) % (2.0 * np.pi) - np.pi
    return ~ak.any((jet_eta - lepton_eta) ** 2 + distance_phi**2 < 0.16, axis=2)
