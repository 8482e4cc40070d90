"""A small W -> μν selection with all that an analysis has: cuts, weights, variations, normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
from coffea.processor import ProcessorABC
from hist import Hist

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["WSelection"]

# (scale of the muons' momenta, scale of the weights)
VARIATIONS = {
    "nominal": (0, 0),
    "muon_scale_up": (+1, 0),
    "muon_scale_down": (-1, 0),
    "muon_efficiency_up": (0, +1),
    "muon_efficiency_down": (0, -1),
}


class WSelection(ProcessorABC):  # type: ignore[misc]  # coffea ships no types
    """Select one tight, isolated muon and missing momentum; fill their transverse mass.

    Reads ``HLT_IsoMu24``, ``nMuon, Muon_pt`` (GeV), ``Muon_eta``, ``Muon_phi`` (rad),
    ``Muon_pfRelIso04_all``, ``Muon_tightId``, ``MET_pt`` (GeV), ``MET_phi`` (rad), and ``genWeight`` where
    there is one.

    A dataset is simulation if its metadata has ``cross_section_pb``; then ``luminosity_per_pb`` must be there,
    too, and `postprocess` scales it to ``cross_section_pb * luminosity_per_pb`` events before all cuts.
    Simulation alone is varied.

    Parameters
    ----------
    min_pt_gev : float
        Threshold of the muon, GeV.
    max_isolation : float
        Upper end of the relative isolation, not included.
    min_met_gev : float
        Threshold of the missing momentum, GeV.
    muon_scale_uncertainty : float
        Relative uncertainty of the muons' momenta; goes into the missing momentum, too.
    muon_efficiency_uncertainty : float
        Relative uncertainty of the weight.
    """

    def __init__(
        self,
        min_pt_gev: float = 25.0,
        max_isolation: float = 0.15,
        min_met_gev: float = 20.0,
        muon_scale_uncertainty: float = 0.01,
        muon_efficiency_uncertainty: float = 0.02,
    ) -> None:
        self.min_pt_gev = min_pt_gev
        self.max_isolation = max_isolation
        self.min_met_gev = min_met_gev
        self.muon_scale_uncertainty = muon_scale_uncertainty
        self.muon_efficiency_uncertainty = muon_efficiency_uncertainty

    def process(self, events: Any) -> dict[str, Any]:
        """Select and fill one range of events.

        Returns
        -------
        dict
            ``transverse_mass``: histogram with the axes ``dataset``, ``variation`` (both growing) and
            ``transverse_mass`` (GeV), with weights. ``cutflow``: events left after each cut, without weights, for
            each dataset. ``sum_weights``: before all cuts, for each dataset. ``expected_events``: for each
            dataset of simulation a set with the one number of events that its metadata ask for.

        Raises
        ------
        ValueError
            If a dataset has a cross section but no luminosity.
        """
        dataset = events.metadata["dataset"]
        expected = _expected_events(events.metadata)
        weight = _event_weights(events)
        histogram = _build_histogram()
        cutflow: dict[str, int] = {}
        for variation, (scale_sign, efficiency_sign) in VARIATIONS.items():
            if expected is None and variation != "nominal":
                continue
            scale = 1.0 + scale_sign * self.muon_scale_uncertainty
            cuts, mass = self._select(events, scale)
            passed = np.ones(len(events), dtype=np.bool_)
            for cut, mask in cuts.items():
                passed = passed & mask
                if variation == "nominal":
                    cutflow[cut] = int(ak.sum(passed))
            factor = 1.0 + efficiency_sign * self.muon_efficiency_uncertainty
            histogram.fill(
                dataset=dataset,
                variation=variation,
                transverse_mass=ak.fill_none(mass[passed], np.nan),
                weight=factor * weight[passed],
            )
        return {
            "transverse_mass": histogram,
            "cutflow": {dataset: {"all": len(events), **cutflow}},
            "sum_weights": {dataset: float(np.sum(weight))},
            "expected_events": {} if expected is None else {dataset: {expected}},
        }

    def _select(self, events: Any, scale: float) -> tuple[dict[str, Any], Any]:
        """Evaluate the cuts and the transverse mass with the muons' momenta scaled.

        Returns masks, each by itself, shape ``(num_events,)``; and the mass, GeV, None where there is no muon.
        """
        muon = events.Muon
        pt = scale * muon.pt
        # an isolation of -999 means that there is none; such muons are never tight
        good = muon.tightId & (muon.pfRelIso04_all < self.max_isolation)
        good = good & (pt > self.min_pt_gev) & (abs(muon.eta) < 2.1)
        leading_pt, leading_phi = ak.firsts(pt[good]), ak.firsts(muon.phi[good])
        met_pt, met_phi = _move_met(events.MET, pt - muon.pt, muon.phi)
        mass = np.sqrt(2.0 * leading_pt * met_pt * (1.0 - np.cos(leading_phi - met_phi)))
        cuts = {
            "trigger": events.HLT.IsoMu24,
            "one_muon": ak.sum(good, axis=1) == 1,
            "met": met_pt > self.min_met_gev,
        }
        return cuts, mass

    def postprocess(
        self, accumulator: dict[str, Any], completeness: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Normalise: simulation to its cross section, data to all that was requested.

        Simulation is scaled by ``expected_events / sum_weights``. The sum is over what was processed, so it is
        right for a part of a dataset as well. Data of which a part is missing are scaled by
        ``num_entries_requested / num_entries_processed``.

        Parameters
        ----------
        accumulator : dict
            The merged output; it is not changed.
        completeness : mapping, optional
            For each dataset something with ``num_entries_processed`` and ``num_entries_requested``. Without it
            data stay as they are.

        Returns
        -------
        dict
            The accumulator with the histogram scaled and ``scale``, the factor of each dataset.

        Raises
        ------
        ValueError
            If the files of a dataset ask for different numbers of events.
        """
        histogram = accumulator["transverse_mass"].copy()
        contents = histogram.view(flow=True)
        scales = {}
        for dataset in histogram.axes["dataset"]:
            scale = _scale(accumulator, completeness or {}, dataset)
            index = histogram.axes["dataset"].index(dataset)
            contents.value[index] *= scale
            contents.variance[index] *= scale**2
            scales[dataset] = scale
        return {**accumulator, "transverse_mass": histogram, "scale": scales}


def _build_histogram() -> Hist[Any]:
    histogram: Hist[Any] = (
        Hist.new.StrCat([], growth=True, name="dataset", label="Dataset")
        .StrCat([], growth=True, name="variation", label="Variation")
        .Reg(60, 0.0, 180.0, name="transverse_mass", label=r"$m_T$ [GeV]")
        .Weight()
    )
    return histogram


def _expected_events(metadata: Mapping[str, Any]) -> float | None:
    """Calculate the events that simulation is scaled to; None for data."""
    if "cross_section_pb" not in metadata:
        return None
    if "luminosity_per_pb" not in metadata:
        raise ValueError(
            f"dataset {metadata['dataset']!r} has cross_section_pb in its metadata, but no luminosity_per_pb: "
            "add it to the fileset, or remove the cross section if these are data"
        )
    return float(metadata["cross_section_pb"]) * float(metadata["luminosity_per_pb"])


def _event_weights(events: Any) -> Any:
    if "genWeight" in events.fields:
        return ak.to_numpy(events.genWeight).astype(np.float64)
    return np.ones(len(events))


def _move_met(met: Any, delta_pt: Any, phi: Any) -> tuple[Any, Any]:
    """Take from the missing momentum what the muons gained; gives its pt (GeV) and phi (rad)."""
    px = met.pt * np.cos(met.phi) - ak.sum(delta_pt * np.cos(phi), axis=1)
    py = met.pt * np.sin(met.phi) - ak.sum(delta_pt * np.sin(phi), axis=1)
    return np.hypot(px, py), np.arctan2(py, px)


def _scale(accumulator: Mapping[str, Any], completeness: Mapping[str, Any], dataset: str) -> float:
    expected = accumulator["expected_events"].get(dataset)
    if expected is not None:
        if len(expected) != 1:
            raise ValueError(
                f"the files of dataset {dataset!r} ask for different numbers of events, {sorted(expected)}: "
                "give all of them the same cross_section_pb and luminosity_per_pb"
            )
        (num_expected,) = expected
        sum_weights = accumulator["sum_weights"][dataset]
        return float(num_expected / sum_weights) if sum_weights else 1.0
    counts = completeness.get(dataset)
    if counts is None or counts.num_entries_processed == 0:
        return 1.0
    return float(counts.num_entries_requested / counts.num_entries_processed)
