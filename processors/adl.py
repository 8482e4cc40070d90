"""The eight queries of the IRIS-HEP ADL benchmarks, for CMS Open Data NanoAOD of 2012.

Definitions: https://github.com/iris-hep/adl-benchmarks-index; measured on many systems by Graur et al.,
arXiv:2104.12615. The binning is the one of coffea's own solutions (100 bins; 0 to 200 GeV for momenta).
Each query gives a dict of histograms; what lies outside of an axis is in its flow bins, so that sums with
``flow=True`` count everything that was filled.

Written for speed: columns are flat arrays, with an array of offsets that says which elements belong to which event, and
what needs loops over particles is compiled by numba. ``notebooks/fast_processors.ipynb`` shows the way from objects to
this, and what each step brings.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar, cast

import awkward as ak
import numba
import numpy as np
from coffea.processor import ProcessorABC
from hist import Hist

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.figure import Figure

__all__ = ["Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q7", "Q8", "QUERIES", "plot"]

TOP_MASS_GEV = 172.5  # as the benchmark has it
Z_MASS_GEV = 91.2  # as the benchmark has it

MET_LABEL = r"$E_{T}^{miss}$ [GeV]"
JET_PT_LABEL = r"Jet $p_{T}$ [GeV]"

Array = np.ndarray[Any, Any]
Particles = tuple[Array, ...]  # offsets, then columns: see `_take_particles`
Function = TypeVar("Function", bound="Callable[..., Any]")

KINEMATICS = ("pt", "eta", "phi", "mass")  # of `_build_momenta`, which takes them first
BLOCK = 256  # events whose momenta are made at once, and stay in the cache of the CPU


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
        return {"met": _histogram("met", MET_LABEL, _take(events, "MET", "pt"))}


class Q2(_Query):
    """Transverse momentum of all jets.

    Reads ``nJet, Jet_pt`` (GeV). Gives ``jet_pt``.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        _, pt = _take_particles(events, "Jet", "pt")
        return {"jet_pt": _histogram("jet_pt", JET_PT_LABEL, pt)}


class Q3(_Query):
    """Transverse momentum of the jets with ``|eta| < 1``.

    Reads ``nJet, Jet_pt`` (GeV), ``Jet_eta``. Gives ``jet_pt``.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        _, pt, eta = _take_particles(events, "Jet", "pt", "eta")
        return {"jet_pt": _histogram("jet_pt", JET_PT_LABEL, pt.compress(np.abs(eta) < 1.0))}


class Q4(_Query):
    """Missing transverse momentum of events that have at least two jets above 40 GeV.

    Reads ``MET_pt`` (GeV), ``nJet, Jet_pt`` (GeV). Gives ``met``.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        offsets, pt = _take_particles(events, "Jet", "pt")
        num_hard = np.cumsum((pt > 40.0).astype(np.int8), dtype=np.int32)  # up to each jet
        num_before = np.concatenate((np.zeros(1, dtype=np.int32), num_hard)).take(offsets)
        met = _take(events, "MET", "pt").compress(np.diff(num_before) >= 2)
        return {"met": _histogram("met", MET_LABEL, met)}


class Q5(_Query):
    """Missing transverse momentum of events with an opposite-charge muon pair of 60 to 120 GeV.

    Reads ``MET_pt`` (GeV), ``nMuon, Muon_pt`` (GeV), ``Muon_eta``, ``Muon_phi`` (rad), ``Muon_mass`` (GeV),
    ``Muon_charge``. Gives ``met``. The mass window is open at both ends.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        muons = _take_particles(events, "Muon", *KINEMATICS, "charge")
        met = _select_dimuons(_take(events, "MET", "pt"), muons)
        return {"met": _histogram("met", MET_LABEL, met)}


class Q6(_Query):
    """The trijet nearest to the top quark's mass: its transverse momentum and its highest b-tag.

    Reads ``nJet, Jet_pt`` (GeV), ``Jet_eta``, ``Jet_phi`` (rad), ``Jet_mass`` (GeV), ``Jet_btag``. Gives
    ``trijet_pt`` and ``max_btag``, for events of at least three jets. Jets without tracks have negative b-tags,
    so a trijet of such jets is in the underflow.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        jets = _take_particles(events, "Jet", *KINEMATICS, "btag")
        pt, btag = _find_trijets(jets)
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
        jets, muons, electrons = (
            _take_particles(events, name, "pt", "eta", "phi")
            for name in ("Jet", "Muon", "Electron")
        )
        sum_pt = _sum_jets_away(jets, muons, electrons)
        return {"sum_jet_pt": _histogram("sum_jet_pt", r"Jet $\sum p_{T}$ [GeV]", sum_pt)}


class Q8(_Query):
    """Transverse mass of the missing momentum and the leading lepton that is not from the Z.

    For events of at least three electrons and muons with a same-flavour opposite-charge pair: the pair nearest
    to 91.2 GeV is the Z. Reads ``MET_pt`` (GeV), ``MET_phi`` (rad), and ``pt, eta, phi, mass, charge`` of
    ``Muon`` and ``Electron``. Gives ``transverse_mass``,
    ``sqrt(2 pt MET (1 - cos(phi_lepton - phi_MET)))`` in GeV.
    """

    def process(self, events: Any) -> dict[str, Hist[Any]]:
        electrons, muons = (
            _take_particles(events, name, *KINEMATICS, "charge") for name in ("Electron", "Muon")
        )
        met_pt, met_phi = _take(events, "MET", "pt"), _take(events, "MET", "phi")
        mass = _find_transverse_masses(met_pt, met_phi, electrons, muons)
        label = r"$\ell$-MET transverse mass [GeV]"
        return {"transverse_mass": _histogram("transverse_mass", label, mass)}


QUERIES: Mapping[str, type[_Query]] = {
    query.__name__: query for query in (Q1, Q2, Q3, Q4, Q5, Q6, Q7, Q8)
}
"""The queries by name, ``Q1`` to ``Q8``."""


def _histogram(name: str, label: str, values: Array, stop: float = 200.0) -> Hist[Any]:
    histogram: Hist[Any] = Hist.new.Reg(100, 0.0, stop, name=name, label=label).Double()
    histogram.fill(values)
    return histogram


def _take(events: Any, collection: str, name: str) -> Array:
    """Take a column that has one value for each event."""
    return _view(ak.to_numpy(events.layout[collection][name]))


def _take_particles(events: Any, collection: str, *names: str) -> Particles:
    """Take offsets, then columns: event i has the elements from offsets[i] up to offsets[i + 1].

    From the layouts, since ``events.Jet.pt`` takes 0.3 ms to make an array that knows its behavior, and they 6 us.
    """
    columns = []
    for name in names:
        lists = events.layout[collection][name]
        if not (isinstance(lists, ak.contents.ListOffsetArray) and lists.content.is_numpy):
            # events that were selected before
            lists = ak.to_packed(lists, highlevel=False).to_ListOffsetArray64(True)
        offsets = np.asarray(lists.offsets.data)
        first, last = offsets[0], offsets[-1]
        columns.append(_view(np.asarray(lists.content.data)[first:last]))
    return _view(offsets - first if first else offsets), *columns


def _view(array: Array) -> Array:
    """Make a view of one type: numba would compile anew for arrays that can be written to."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


# ---- compiled when first called; another process finds the machine code on disk -------------------------------


def _compile(function: Function) -> Function:
    return cast("Function", numba.njit(cache=True, nogil=True, error_model="numpy")(function))


@_compile
def _pair_mass(particles: Particles, i: int, j: int) -> float:
    """Calculate in double precision: a mass is a small difference."""
    _, pt, eta, phi, mass = particles[:5]
    pt_i, pt_j = np.float64(pt[i]), np.float64(pt[j])
    mass_i, mass_j = np.float64(mass[i]), np.float64(mass[j])
    # sinh is slower than exp by a factor of three
    exp_i, exp_j = math.exp(np.float64(eta[i])), math.exp(np.float64(eta[j]))
    pz_i, pz_j = 0.5 * pt_i * (exp_i - 1.0 / exp_i), 0.5 * pt_j * (exp_j - 1.0 / exp_j)
    energy_i = math.sqrt(pt_i**2 + pz_i**2 + mass_i**2)
    energy_j = math.sqrt(pt_j**2 + pz_j**2 + mass_j**2)
    cos = math.cos(np.float64(phi[i]) - np.float64(phi[j]))
    product = energy_i * energy_j - pz_i * pz_j - pt_i * pt_j * cos
    return math.sqrt(max(mass_i**2 + mass_j**2 + 2.0 * product, 0.0))


@_compile
def _select_dimuons(met: Array, muons: Particles) -> Array:
    selected, num = np.empty_like(met), 0
    for event in range(met.size):
        selected[num] = met[event]
        num += _has_dimuon(muons, event)
    return selected[:num]


@_compile
def _has_dimuon(muons: Particles, event: int) -> bool:
    offsets, charge = muons[0], muons[5]
    for i in range(offsets[event], offsets[event + 1]):
        for j in range(i + 1, offsets[event + 1]):
            if charge[i] != charge[j] and 60.0 < _pair_mass(muons, i, j) < 120.0:
                return True
    return False


@_compile
def _sin_cos(x: float) -> tuple[float, float]:
    """Calculate sine and cosine for ``|x| < 1e5``, to 3e-16.

    Without branches, so that LLVM makes eight at a time: 2 ns a pair, where libm takes 20. Coefficients: fdlibm,
    https://www.netlib.org/fdlibm/k_sin.c and k_cos.c.
    """
    n = math.floor(x * (2.0 / math.pi) + 0.5)
    x = (x - n * 1.57079632673412561417) - n * 6.07710050650619224932e-11
    z = x * x
    sin = 1.58969099521155010221e-10
    sin = -2.50507602534068634195e-08 + z * sin
    sin = 2.75573137070700676789e-06 + z * sin
    sin = -1.98412698298579493134e-04 + z * sin
    sin = 8.33333333332248946124e-03 + z * sin
    sin = -1.66666666666666324348e-01 + z * sin
    sin = x + x * (z * sin)
    cos = -1.13596475577881948265e-11
    cos = 2.08757232129817482790e-09 + z * cos
    cos = -2.75573143513906633035e-07 + z * cos
    cos = 2.48015872894767294178e-05 + z * cos
    cos = -1.38888888888741095749e-03 + z * cos
    cos = 4.16666666666666019037e-02 + z * cos
    cos = 1.0 - 0.5 * z + z * (z * cos)
    quadrant = n - 4.0 * math.floor(0.25 * n)
    is_odd = (quadrant == 1.0) | (quadrant == 3.0)
    sin, cos = cos if is_odd else sin, sin if is_odd else cos
    is_negative = (quadrant == 1.0) | (quadrant == 2.0)
    return -sin if quadrant >= 2.0 else sin, -cos if is_negative else cos


@_compile
def _exp(x: float) -> float:
    """Calculate the exponential function for ``|x| < 700`` (beyond: that of 700), to 4e-16; without branches, too."""
    x = min(max(x, -700.0), 700.0)
    n = math.floor(x * 1.44269504088896340736 + 0.5)
    x = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    y = 1.0
    for k in range(13, 0, -1):  # Taylor's series: x is below 0.35
        y = 1.0 + x * y * (1.0 / k)
    return y * np.int64((np.int64(n) + 1023) << 52).view(np.float64)


@_compile
def _build_momenta(particles: Particles, first: int, last: int) -> Array:
    """Make px, py, pz and energy of particles first to last, shape ``(4, last - first)``: once a jet, not once a trijet."""
    momenta = np.empty((4, last - first))
    _, pt, eta, phi, mass = particles[:5]
    pt, eta, phi, mass = pt[first:last], eta[first:last], phi[first:last], mass[first:last]
    # three loops: with more arrays in one, LLVM gives up checking that they don't overlap
    for i in range(pt.size):
        sin, cos = _sin_cos(np.float64(phi[i]))
        momenta[0, i] = pt[i] * cos
        momenta[1, i] = pt[i] * sin
    for i in range(pt.size):
        exp = _exp(np.float64(eta[i]))
        momenta[2, i] = np.float64(pt[i]) * 0.5 * (exp - 1.0 / exp)
    for i in range(pt.size):
        squared = np.float64(pt[i]) ** 2 + np.float64(mass[i]) ** 2
        momenta[3, i] = math.sqrt(squared + momenta[2, i] ** 2)
    return momenta


@_compile
def _find_trijets(jets: Particles) -> tuple[Array, Array]:
    offsets, btag = jets[0], jets[5]
    num_events, num = offsets.size - 1, 0
    trijet_pt, max_btag = np.empty(num_events), np.empty(num_events, dtype=btag.dtype)
    for start in range(0, num_events, BLOCK):
        stop = min(start + BLOCK, num_events)
        first = offsets[start]
        p = _build_momenta(jets, first, offsets[stop])
        for event in range(start, stop):
            if offsets[event + 1] - offsets[event] >= 3:
                i, j, k = _find_trijet(p, offsets[event] - first, offsets[event + 1] - first)
                px, py = p[0, i] + p[0, j] + p[0, k], p[1, i] + p[1, j] + p[1, k]
                trijet_pt[num] = math.sqrt(px**2 + py**2)
                max_btag[num] = max(btag[first + i], btag[first + j], btag[first + k])
                num += 1
    return trijet_pt[:num], max_btag[:num]


@_compile
def _find_trijet(p: Array, begin: int, end: int) -> tuple[int, int, int]:
    """Find the trijet nearest to the top quark's mass; without a branch in the loop, which nobody could predict."""
    best, smallest = 0, np.inf
    for i in range(begin, end):
        for j in range(i + 1, end):
            px, py = p[0, i] + p[0, j], p[1, i] + p[1, j]
            pz, energy = p[2, i] + p[2, j], p[3, i] + p[3, j]
            for k in range(j + 1, end):
                squared = (energy + p[3, k]) ** 2 - (px + p[0, k]) ** 2
                squared = squared - (py + p[1, k]) ** 2 - (pz + p[2, k]) ** 2
                distance = abs(math.sqrt(max(squared, 0.0)) - TOP_MASS_GEV)
                is_better = distance < smallest
                smallest = distance if is_better else smallest
                best = i << 42 | j << 21 | k if is_better else best
    return best >> 42, best >> 21 & 0x1FFFFF, best & 0x1FFFFF


@_compile
def _sum_jets_away(jets: Particles, muons: Particles, electrons: Particles) -> Array:
    offsets, pt, eta, phi = jets
    sums = np.empty(offsets.size - 1, dtype=pt.dtype)
    for event in range(sums.size):
        total = sums.dtype.type(0)
        for i in range(offsets[event], offsets[event + 1]):
            if (
                pt[i] > 30.0
                and not _is_near(eta[i], phi[i], event, muons)
                and not _is_near(eta[i], phi[i], event, electrons)
            ):
                total += pt[i]
        sums[event] = total
    return sums


@_compile
def _is_near(eta: float, phi: float, event: int, leptons: Particles) -> bool:
    """Tell whether one of the event's leptons above 10 GeV is within ΔR < 0.4."""
    offsets, pts, etas, phis = leptons
    for i in range(offsets[event], offsets[event + 1]):
        if pts[i] > 10.0:
            delta_eta = np.float64(eta) - np.float64(etas[i])
            delta_phi = abs(np.float64(phi) - np.float64(phis[i]))
            delta_phi = min(delta_phi, 2.0 * math.pi - delta_phi)
            if delta_eta**2 + delta_phi**2 < 0.4**2:
                return True
    return False


@_compile
def _find_transverse_masses(
    met_pt: Array, met_phi: Array, electrons: Particles, muons: Particles
) -> Array:
    masses, num = np.empty(met_pt.size), 0
    for event in range(met_pt.size):
        num_electrons = electrons[0][event + 1] - electrons[0][event]
        if num_electrons + muons[0][event + 1] - muons[0][event] < 3:
            continue
        i, j, distance = _find_z(electrons, event)
        k, m, muon_distance = _find_z(muons, event)
        if min(distance, muon_distance) == np.inf:
            continue
        if distance <= muon_distance:
            k = m = -1
        else:
            i = j = -1
        pt, phi = _find_leading(electrons, event, i, j)
        muon_pt, muon_phi = _find_leading(muons, event, k, m)
        if muon_pt > pt:
            pt, phi = muon_pt, muon_phi
        cos = math.cos(phi - np.float64(met_phi[event]))
        masses[num] = math.sqrt(2.0 * pt * np.float64(met_pt[event]) * (1.0 - cos))
        num += 1
    return masses[:num]


@_compile
def _find_z(leptons: Particles, event: int) -> tuple[int, int, float]:
    """Find the opposite-charge pair nearest to the Z, and how far in mass it is; inf if there is none."""
    offsets, charge = leptons[0], leptons[5]
    first, second, smallest = -1, -1, np.inf
    for i in range(offsets[event], offsets[event + 1]):
        for j in range(i + 1, offsets[event + 1]):
            if charge[i] != charge[j]:
                distance = abs(_pair_mass(leptons, i, j) - Z_MASS_GEV)
                if distance < smallest:
                    first, second, smallest = i, j, distance
    return first, second, smallest


@_compile
def _find_leading(leptons: Particles, event: int, i: int, j: int) -> tuple[float, float]:
    """Find pt and phi of the lepton of highest pt that is neither i nor j; -1 and 0 if there is none."""
    offsets, pt, phi = leptons[0], leptons[1], leptons[3]
    best_pt, best_phi = -1.0, 0.0
    for k in range(offsets[event], offsets[event + 1]):
        if k not in (i, j) and pt[k] > best_pt:
            best_pt, best_phi = np.float64(pt[k]), np.float64(phi[k])
    return best_pt, best_phi


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
