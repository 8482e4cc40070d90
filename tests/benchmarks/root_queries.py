"""The eight ADL queries for ROOT's RDataFrame, as its experts write them: loops in compiled functions, columns by name.

The histograms are those of `processors.adl`. Momenta are in double precision, as there.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np

from tests.benchmarks.systems import as_nannies_start_them

__all__ = ["CODE", "QUERIES", "RootDaskRun", "RootThreadsRun", "import_root"]

TREENAME = "Events"

CODE = """
#ifndef HEPDASK_BENCHMARKS
#define HEPDASK_BENCHMARKS
#include <cmath>
#include <utility>
#include "ROOT/RVec.hxx"

namespace hepdask_benchmarks {
using Reals = ROOT::RVec<float>;
using Integers = ROOT::RVec<int>;

struct Momentum {
  double px, py, pz, energy;
  Momentum operator+(const Momentum &o) const {
    return {px + o.px, py + o.py, pz + o.pz, energy + o.energy};
  }
  double mass() const {
    const double square = energy * energy - px * px - py * py - pz * pz;
    return square > 0. ? std::sqrt(square) : 0.;
  }
};

inline Momentum momentum(double pt, double eta, double phi, double mass) {
  return {pt * std::cos(phi), pt * std::sin(phi), pt * std::sinh(eta), std::hypot(pt * std::cosh(eta), mass)};
}

inline ROOT::RVec<Momentum> momenta(const Reals &pt, const Reals &eta, const Reals &phi, const Reals &mass) {
  ROOT::RVec<Momentum> all;
  all.reserve(pt.size());
  for (size_t i = 0; i < pt.size(); ++i) all.push_back(momentum(pt[i], eta[i], phi[i], mass[i]));
  return all;
}

inline bool has_dimuon(const Reals &pt, const Reals &eta, const Reals &phi, const Reals &mass, const Integers &charge) {
  const auto p = momenta(pt, eta, phi, mass);
  for (size_t i = 0; i < p.size(); ++i)
    for (size_t j = i + 1; j < p.size(); ++j) {
      if (charge[i] == charge[j]) continue;
      const double m = (p[i] + p[j]).mass();
      if (m > 60. && m < 120.) return true;
    }
  return false;
}

inline std::pair<double, double> best_trijet(const Reals &pt, const Reals &eta, const Reals &phi, const Reals &mass,
                                             const Reals &btag) {
  const auto p = momenta(pt, eta, phi, mass);
  double nearest = 1e300;
  std::pair<double, double> best{0., 0.};
  for (size_t i = 0; i < p.size(); ++i)
    for (size_t j = i + 1; j < p.size(); ++j)
      for (size_t k = j + 1; k < p.size(); ++k) {
        const auto sum = p[i] + p[j] + p[k];
        const double distance = std::abs(sum.mass() - 172.5);
        if (distance < nearest) {
          nearest = distance;
          best = {std::hypot(sum.px, sum.py), std::max(btag[i], std::max(btag[j], btag[k]))};
        }
      }
  return best;
}

inline bool is_near(float jet_eta, float jet_phi, const Reals &pt, const Reals &eta, const Reals &phi) {
  for (size_t i = 0; i < pt.size(); ++i)
    if (pt[i] > 10.f && ROOT::VecOps::DeltaR(jet_eta, eta[i], jet_phi, phi[i]) < 0.4f) return true;
  return false;
}

inline float sum_away(const Reals &pt, const Reals &eta, const Reals &phi, const Reals &muon_pt, const Reals &muon_eta,
                      const Reals &muon_phi, const Reals &electron_pt, const Reals &electron_eta,
                      const Reals &electron_phi) {
  float sum = 0.f;
  for (size_t i = 0; i < pt.size(); ++i)
    if (pt[i] > 30.f && !is_near(eta[i], phi[i], muon_pt, muon_eta, muon_phi) &&
        !is_near(eta[i], phi[i], electron_pt, electron_eta, electron_phi))
      sum += pt[i];
  return sum;
}

// -1 for events that are not selected
inline double transverse_mass(const Reals &electron_pt, const Reals &electron_eta, const Reals &electron_phi,
                              const Reals &electron_mass, const Integers &electron_charge, const Reals &muon_pt,
                              const Reals &muon_eta, const Reals &muon_phi, const Reals &muon_mass,
                              const Integers &muon_charge, float met_pt, float met_phi) {
  const size_t num_electrons = electron_pt.size(), num = num_electrons + muon_pt.size();
  if (num < 3) return -1.;
  const auto pt = Concatenate(electron_pt, muon_pt);
  const auto phi = Concatenate(electron_phi, muon_phi);
  const auto charge = Concatenate(electron_charge, muon_charge);
  const auto p = momenta(pt, Concatenate(electron_eta, muon_eta), phi, Concatenate(electron_mass, muon_mass));
  double nearest = 1e300;
  size_t first = num, second = num;
  for (size_t i = 0; i < num; ++i)
    for (size_t j = i + 1; j < num; ++j) {
      if (charge[i] == charge[j] || (i < num_electrons) != (j < num_electrons)) continue;
      const double distance = std::abs((p[i] + p[j]).mass() - 91.2);
      if (distance < nearest) {
        nearest = distance;
        first = i;
        second = j;
      }
    }
  if (first == num) return -1.;
  size_t leading = num;
  for (size_t i = 0; i < num; ++i)
    if (i != first && i != second && (leading == num || pt[i] > pt[leading])) leading = i;
  return std::sqrt(2. * pt[leading] * met_pt * (1. - std::cos(double(phi[leading]) - double(met_phi))));
}
}  // namespace hepdask_benchmarks
#endif
"""

_JET = "Jet_pt, Jet_eta, Jet_phi, Jet_mass"
_MUON = "Muon_pt, Muon_eta, Muon_phi, Muon_mass, Muon_charge"
_ELECTRON = "Electron_pt, Electron_eta, Electron_phi, Electron_mass, Electron_charge"


def _fill(frame: Any, column: str, stop: float = 200.0) -> Any:
    return frame.Histo1D(("h", "", 100, 0.0, stop), column)


def _q1(frame: Any) -> dict[str, Any]:
    return {"met": _fill(frame, "MET_pt")}


def _q2(frame: Any) -> dict[str, Any]:
    return {"jet_pt": _fill(frame, "Jet_pt")}


def _q3(frame: Any) -> dict[str, Any]:
    return {"jet_pt": _fill(frame.Define("central_pt", "Jet_pt[abs(Jet_eta) < 1.0]"), "central_pt")}


def _q4(frame: Any) -> dict[str, Any]:
    return {"met": _fill(frame.Filter("Sum(Jet_pt > 40) >= 2"), "MET_pt")}


def _q5(frame: Any) -> dict[str, Any]:
    chosen = frame.Filter("nMuon >= 2").Filter(f"hepdask_benchmarks::has_dimuon({_MUON})")
    return {"met": _fill(chosen, "MET_pt")}


def _q6(frame: Any) -> dict[str, Any]:
    frame = frame.Filter("nJet >= 3").Define(
        "best", f"hepdask_benchmarks::best_trijet({_JET}, Jet_btag)"
    )
    frame = frame.Define("trijet_pt", "best.first").Define("max_btag", "best.second")
    return {"trijet_pt": _fill(frame, "trijet_pt"), "max_btag": _fill(frame, "max_btag", 1.0)}


def _q7(frame: Any) -> dict[str, Any]:
    leptons = "Muon_pt, Muon_eta, Muon_phi, Electron_pt, Electron_eta, Electron_phi"
    call = f"hepdask_benchmarks::sum_away(Jet_pt, Jet_eta, Jet_phi, {leptons})"
    return {"sum_jet_pt": _fill(frame.Define("sum_jet_pt", call), "sum_jet_pt")}


def _q8(frame: Any) -> dict[str, Any]:
    call = f"hepdask_benchmarks::transverse_mass({_ELECTRON}, {_MUON}, MET_pt, MET_phi)"
    frame = frame.Filter("nElectron + nMuon >= 3").Define("transverse_mass", call)
    return {"transverse_mass": _fill(frame.Filter("transverse_mass >= 0"), "transverse_mass")}


QUERIES = {
    function.__name__[1:].upper(): function for function in (_q1, _q2, _q3, _q4, _q5, _q6, _q7, _q8)
}
"""For each query a function of a data frame, which books histograms and returns them by name."""


def import_root() -> Any:
    """Import ROOT, with the functions of the queries compiled.

    Raises
    ------
    hepdask.MissingDependencyError
        With the command that installs it.
    """
    from hepdask import MissingDependencyError

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "\\s*This distribution of ROOT is in alpha", UserWarning
            )
            import ROOT
    except ImportError:
        raise MissingDependencyError(
            "the comparison with ROOT needs ROOT: pip install 'hepdask[benchmark]', or pip install root==0.1a12"
        ) from None
    ROOT.gROOT.SetBatch(True)
    ROOT.gInterpreter.Declare(CODE)
    return ROOT


class RootDaskRun:
    """A query of RDataFrame over Dask workers.

    Parameters
    ----------
    client : Client
        The workers.
    files : list of str
        What is read.
    query : str
        ``Q1`` to ``Q8``.
    num_partitions : int or None
        None: ROOT's default, one for each core of the workers.
    """

    def __init__(
        self, client: Any, files: list[str], query: str, *, num_partitions: int | None = None
    ) -> None:
        self._client, self._files, self._query = client, files, query
        self._num_partitions = num_partitions

    def __call__(self) -> dict[str, Any]:
        """Run, and return the bins of each histogram."""
        root = import_root()
        self._client.run(as_nannies_start_them)
        # ROOT computes on dask's current client, and prints a progress bar
        with (
            self._client.as_current(),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            # that the module was called Experimental once
            warnings.filterwarnings("ignore", "\\s*In ROOT 6.36", FutureWarning)
            root.RDF.Distributed.DistributeCppCode(CODE)
            frame = root.RDataFrame(
                TREENAME, self._files, executor=self._client, npartitions=self._num_partitions
            )
            return _take(QUERIES[self._query](frame))


class RootThreadsRun:
    """A query of RDataFrame in this process, with implicit multithreading.

    Parameters
    ----------
    files, query
        As for `RootDaskRun`.
    num_threads : int
        Threads that compute.
    """

    def __init__(self, files: list[str], query: str, *, num_threads: int = 2) -> None:
        self._files, self._query, self._num_threads = files, query, num_threads

    def __call__(self) -> dict[str, Any]:
        """Run, and return the bins of each histogram."""
        root = import_root()
        root.EnableImplicitMT(self._num_threads)
        try:
            return _take(QUERIES[self._query](root.RDataFrame(TREENAME, self._files)))
        finally:
            root.DisableImplicitMT()


def _take(histograms: dict[str, Any]) -> dict[str, Any]:
    """Return contents with flow bins, as ``Hist.values(flow=True)`` has them."""
    values = {name: histogram.GetValue() for name, histogram in histograms.items()}
    return {
        name: np.array([one.GetBinContent(number) for number in range(one.GetNbinsX() + 2)])
        for name, one in values.items()
    }
