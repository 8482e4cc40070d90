"""The spectrum of dimuon masses, from the η to the Z: the first plot of every muon detector.

The same selection as ROOT's tutorial df102 (https://root.cern/doc/master/df102__NanoAODDimuonAnalysis_8py.html),
but with all opposite-charge pairs of an event, not just events of exactly two muons.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar, cast

import awkward as ak
import numba
import numpy as np
from coffea.processor import ProcessorABC
from hist import Hist, axis

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DimuonSpectrum", "plot"]

Array = np.ndarray[Any, Any]
Muons = tuple[Array, Array, Array, Array, Array, Array]  # see `_take_muons`
Function = TypeVar("Function", bound="Callable[..., Any]")

# (label, mass in GeV): PDG, S. Navas et al., Phys. Rev. D 110 (2024) 030001
PEAKS = (
    (r"$\eta$", 0.548),
    (r"$\rho,\omega$", 0.780),
    (r"$\phi$", 1.019),
    (r"$J/\psi$", 3.097),
    (r"$\psi'$", 3.686),
    (r"$\Upsilon(1,2,3S)$", 9.460),
    (r"$Z$", 91.188),
)


class DimuonSpectrum(ProcessorABC):  # type: ignore[misc]  # coffea ships no types
    """Fill the masses of all opposite-charge muon pairs.

    Reads ``nMuon, Muon_pt`` (GeV), ``Muon_eta``, ``Muon_phi`` (rad), ``Muon_mass`` (GeV), ``Muon_charge``.

    Parameters
    ----------
    min_pt_gev : float
        Muons below are left out, GeV. The files begin at 3 GeV, so 0 takes all.
    num_bins : int
        Bins of the mass axis, equal in log(mass) between 0.25 and 300 GeV. The default of 700 makes
        them 1 % of the mass wide, the resolution of the detector.
    """

    def __init__(self, min_pt_gev: float = 0.0, num_bins: int = 700) -> None:
        self.min_pt_gev = min_pt_gev
        self.num_bins = num_bins

    def process(self, events: Any) -> dict[str, Any]:
        """Fill the spectrum of one range of events.

        Returns
        -------
        dict
            ``mass``: histogram with the axes ``dataset`` (growing) and ``mass`` (GeV); ``num_events``,
            ``num_pairs``: counts for each dataset, pairs outside of the axis included.
        """
        dataset = events.metadata["dataset"]
        mass = _find_pair_masses(_take_muons(events), float(self.min_pt_gev))
        spectrum = (
            Hist.new.StrCat([], growth=True, name="dataset", label="Dataset")
            .Reg(
                self.num_bins,
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

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Return the accumulator as it is: there is nothing to normalise in a spectrum of counts."""
        return accumulator


def _take_muons(events: Any) -> Muons:
    """Take offsets, then pt, eta, phi, mass, charge, flat: event i has the muons from offsets[i] up to offsets[i + 1]."""
    columns = []
    for name in ("pt", "eta", "phi", "mass", "charge"):
        lists = events.layout["Muon"][name]
        if not (isinstance(lists, ak.contents.ListOffsetArray) and lists.content.is_numpy):
            # events that were selected before
            lists = ak.to_packed(lists, highlevel=False).to_ListOffsetArray64(True)
        offsets = np.asarray(lists.offsets.data)
        columns.append(_view(np.asarray(lists.content.data)[offsets[0] : offsets[-1]]))
    pt, eta, phi, mass, charge = columns
    return _view(offsets - offsets[0]), pt, eta, phi, mass, charge


def _view(array: Array) -> Array:
    """Make a view of one type: numba would compile anew for arrays that can be written to."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


# compiled when first called; another process finds the machine code on disk
def _compile(function: Function) -> Function:
    return cast("Function", numba.njit(cache=True, nogil=True, error_model="numpy")(function))


@_compile
def _find_pair_masses(muons: Muons, min_pt_gev: float) -> Array:
    """Calculate the masses of all opposite-charge pairs, GeV, shape ``(num_pairs,)``."""
    offsets, pt, charge = muons[0], muons[1], muons[5]
    num_events, num_pairs, num = offsets.size - 1, 0, 0
    for event in range(num_events):
        num_muons = offsets[event + 1] - offsets[event]
        num_pairs += num_muons * (num_muons - 1) // 2
    masses = np.empty(num_pairs)
    for event in range(num_events):
        for i in range(offsets[event], offsets[event + 1]):
            for j in range(i + 1, offsets[event + 1]):
                if charge[i] != charge[j] and min(pt[i], pt[j]) >= min_pt_gev:
                    masses[num] = _pair_mass(muons, i, j)
                    num += 1
    return masses[:num]


@_compile
def _pair_mass(muons: Muons, i: int, j: int) -> float:
    """Calculate in double precision.

    At 0.5 GeV of mass and 50 GeV of energy, m**2 is 1e-4 of E**2: float32 would smear the peaks.
    """
    _, pt, eta, phi, mass, _ = muons
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


def plot(output: dict[str, Any]) -> Figure:
    """Draw the spectrum, log over log, with the names of the resonances at their peaks.

    Parameters
    ----------
    output : dict
        What `DimuonSpectrum` gives back.

    Returns
    -------
    matplotlib.figure.Figure
        One line for each dataset, in pairs per GeV. It belongs to no window: call ``savefig``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    axes = figure.add_subplot()
    spectrum = output["mass"]
    edges = spectrum.axes["mass"].edges
    centers = np.sqrt(edges[:-1] * edges[1:])
    total = spectrum[{"dataset": sum}].values() / np.diff(edges)
    for index, dataset in enumerate(spectrum.axes["dataset"]):
        density = spectrum[{"dataset": dataset}].values() / np.diff(edges)
        label = f"{dataset}: {output['num_pairs'][dataset]:,} pairs"
        axes.stairs(density, edges, label=label, color=f"C{index}", linewidth=1.0, zorder=3)
        axes.stairs(density, edges, fill=True, color=f"C{index}", alpha=0.15)
    _label_peaks(axes, centers, total)
    _decorate(axes, edges, total)
    return figure


def _label_peaks(axes: Axes, centers: Any, density: Any) -> None:
    for label, mass in PEAKS:
        height = density[np.abs(centers / mass - 1.0) < 0.03].max(initial=0.0)
        if height > 0.0:
            axes.annotate(
                label,
                (mass, height),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=12,
            )


def _decorate(axes: Axes, edges: Any, density: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(edges[0], edges[-1])
    filled = density[density > 0.0]
    if filled.size:
        # from the level of one pair in the widest bin to a label above the highest peak
        axes.set_ylim(0.5 * filled.min(), 6.0 * filled.max())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(which="both", direction="in", top=True, right=True)
    axes.set_xlabel(r"$m_{\mu\mu}$ [GeV]", loc="right", fontsize=13)
    axes.set_ylabel("Opposite-charge pairs / GeV", loc="top", fontsize=13)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper right", fontsize=11)
