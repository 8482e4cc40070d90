"""A sample of toy collisions in the layout of the CMS Open Data NanoAOD files of 2012.

The 86 branches have the names and types of ``Run2012B_SingleMu.root`` (as AOD2NanoAODOutreachTool writes
them, https://github.com/cms-opendata-analyses/AOD2NanoAODOutreachTool; the file of the IRIS-HEP ADL
benchmarks has photons besides). The one difference: uproot writes counters (``nMuon``) as int32, the
original has uint32.

What is inside is physics by hand, good enough to see peaks where they belong: dimuon resonances over a
falling continuum, W -> μν, top pairs with a hadronic and a leptonic side, b-jet pairs with muons inside, and
WZ -> three leptons. Decays are isotropic in the rest frame and boosted properly; the resolution of the
detector is put on muons, electrons, jets and missing momentum. Rates, spectra and efficiencies are invented.

Masses and widths: Particle Data Group, S. Navas et al., Phys. Rev. D 110 (2024) 030001, https://pdg.lbl.gov.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hepdask import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from numpy.random import Generator

__all__ = ["RESONANCES", "Resonance", "write_sample"]

Array = np.ndarray[Any, Any]

MUON_MASS_GEV = 0.1056584
ELECTRON_MASS_GEV = 0.000511
W_MASS_GEV, W_WIDTH_GEV = 80.369, 2.085
TOP_MASS_GEV, TOP_WIDTH_GEV = 172.57, 1.42

MUON, ELECTRON, NEUTRINO, PHOTON, LIGHT_JET, BOTTOM_JET = 13, 11, 14, 22, 1, 5

# of the events; invented so that each of the ADL queries selects enough of a small sample
PROCESS_FRACTIONS = {
    "resonance": 0.44,
    "continuum": 0.12,
    "w": 0.20,
    "top": 0.10,
    "multijet": 0.08,
    "diboson": 0.06,
}


@dataclass(frozen=True, slots=True)
class Resonance:
    """A neutral particle that decays to two muons."""

    name: str
    """As TeX, without dollar signs."""
    mass_gev: float
    """Pole mass, GeV."""
    width_gev: float
    """Natural full width, GeV."""
    fraction: float
    """Share of the resonance events of the sample."""
    pt_scale_gev: float
    """Where its transverse momentum spectrum begins to fall, GeV."""


RESONANCES = (
    Resonance(r"\eta", 0.547862, 1.31e-6, 0.02, 12.0),
    Resonance(r"\rho", 0.77526, 0.1474, 0.06, 12.0),
    Resonance(r"\omega", 0.78266, 0.00868, 0.06, 12.0),
    Resonance(r"\phi", 1.019461, 0.004249, 0.07, 12.0),
    Resonance(r"J/\psi", 3.0969, 9.26e-5, 0.25, 14.0),
    Resonance(r"\psi'", 3.6861, 2.93e-4, 0.03, 14.0),
    Resonance(r"\Upsilon(1S)", 9.4604, 5.40e-5, 0.12, 14.0),
    Resonance(r"\Upsilon(2S)", 10.0234, 3.20e-5, 0.045, 14.0),
    Resonance(r"\Upsilon(3S)", 10.3551, 2.03e-5, 0.03, 14.0),
    Resonance("Z", 91.188, 2.4955, 0.315, 25.0),
)
"""The dimuon resonances of the sample, by mass; the fractions add up to one."""

_Z = RESONANCES[-1]


@dataclass(frozen=True, slots=True)
class _Particles:
    """Particles of many events, flat: each array has shape ``(num_particles,)``."""

    event: Array  # index of the event in the cluster
    pt: Array  # GeV
    eta: Array
    phi: Array  # rad, in (-π, π]
    mass: Array  # GeV
    charge: Array
    kind: Array  # one of MUON, ELECTRON, ...
    is_prompt: Array  # from a W, a Z or a resonance: isolated

    def __getitem__(self, where: Array) -> _Particles:
        return _Particles(*(getattr(self, field.name)[where] for field in fields(self)))

    def sort(self) -> _Particles:
        """Order by event, then by falling transverse momentum, as NanoAOD does."""
        return self[np.lexsort((-self.pt, self.event))]


def write_sample(
    directory: str | PathLike[str],
    *,
    num_events: int = 200_000,
    num_files: int = 4,
    num_events_per_cluster: int = 10_000,
    seed: int = 2012,
    dataset: str = "SingleMu",
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ROOT files of toy collisions, and a fileset of them.

    Events are made cluster by cluster, so that memory doesn't grow with ``num_events``. The content of a
    cluster depends on the seed, on the number of its file, on its own number and on its size, on nothing else.

    Parameters
    ----------
    directory : path
        Where ``<dataset>_<i>.root`` and ``fileset.json`` go; made if it isn't there. Files of the same
        names are overwritten.
    num_events : int
        Events in all files together; they are shared out as evenly as possible.
    num_files : int
        Number of files, at least 1 and at most `num_events`.
    num_events_per_cluster : int
        Events in a cluster (one basket of each branch); the last cluster of a file may be smaller.
    seed : int
        Not negative. The same seed gives the same columns.
    dataset : str
        Name of the dataset.
    metadata : mapping, optional
        The dataset's metadata; by default ``{"year": 2012, "is_data": True}``.

    Returns
    -------
    dict
        A fileset, ``{dataset: {"files": [path, ...], "treename": "Events", "metadata": {...}}}`` with absolute
        paths; the same is in ``fileset.json``, which is written last.

    Raises
    ------
    OptionError
        If a number is out of its range.
    """
    _check_numbers(num_events, num_files, num_events_per_cluster, seed)
    root = Path(directory).resolve()
    root.mkdir(parents=True, exist_ok=True)
    paths = [root / f"{dataset}_{file_index}.root" for file_index in range(num_files)]
    for file_index, path in enumerate(paths):
        num_file_events = num_events // num_files + (file_index < num_events % num_files)
        _write_file(path, num_file_events, num_events_per_cluster, seed, file_index)
    fileset = {
        dataset: {
            "files": [str(path) for path in paths],
            "treename": "Events",
            "metadata": dict(metadata or {"year": 2012, "is_data": True}),
        }
    }
    (root / "fileset.json").write_text(json.dumps(fileset, indent=2) + "\n", encoding="utf-8")
    return fileset


def _check_numbers(num_events: int, num_files: int, num_events_per_cluster: int, seed: int) -> None:
    if not 1 <= num_files <= num_events:
        raise OptionError(
            f"num_files={num_files} must be between 1 and num_events={num_events}: each file gets an event"
        )
    if num_events_per_cluster < 1:
        raise OptionError(f"num_events_per_cluster={num_events_per_cluster} must be at least 1")
    if seed < 0:
        raise OptionError(f"seed={seed} must not be negative")


def _write_file(
    path: Path, num_events: int, num_per_cluster: int, seed: int, file_index: int
) -> None:
    import uproot

    with uproot.recreate(path) as file:
        tree = None
        for cluster_index, first_entry in enumerate(range(0, num_events, num_per_cluster)):
            num_entries = min(num_per_cluster, num_events - first_entry)
            rng = np.random.default_rng([seed, file_index, cluster_index])
            columns = {
                **_build_event_ids(file_index, first_entry, num_entries),
                **_build_cluster(rng, num_entries),
            }
            if tree is None:
                types = {name: _branch_type(column) for name, column in columns.items()}
                tree = file.mktree("Events", types, title="Events")
            tree.extend(columns)


def _branch_type(column: Any) -> Any:
    return column.dtype if isinstance(column, np.ndarray) else column.type.content


def _build_event_ids(file_index: int, first_entry: int, num_entries: int) -> dict[str, Array]:
    entry = np.arange(first_entry, first_entry + num_entries)
    # (run, event) is unique over the sample, as it is in real data; the runs are in the range of 2012 B
    return {
        "run": np.full(num_entries, 193_834 + file_index, dtype=np.int32),
        "luminosityBlock": (entry // 1_000 + 1).astype(np.uint32),
        "event": (entry + 1).astype(np.uint64),
    }


def _build_cluster(rng: Generator, num_events: int) -> dict[str, Any]:
    """Make all branches of a cluster but the event numbers."""
    truth = _build_truth(rng, num_events)
    num_vertices = 1 + rng.poisson(14.0, num_events)
    muons, muon_shift = _measure_muons(rng, truth)
    electrons, electron_shift = _measure_electrons(rng, truth)
    jets, jet_shift = _measure_jets(rng, truth, electrons)
    photons = truth[truth.kind == PHOTON].sort()
    shift = _sum_by_event(num_events, [muon_shift, electron_shift, jet_shift])
    columns: dict[str, Any] = {
        **_trigger_columns(rng, muons, jets, num_events),
        **_vertex_columns(rng, num_vertices),
        "Muon": _nest(num_events, muons.event, _muon_columns(rng, muons, jets)),
        "Electron": _nest(num_events, electrons.event, _electron_columns(rng, electrons, jets)),
        "Photon": _nest(num_events, photons.event, _photon_columns(rng, photons, jets)),
    }
    tau_event, tau_columns = _tau_columns(rng, jets)
    columns["Tau"] = _nest(num_events, tau_event, tau_columns)
    columns |= _met_columns(rng, truth, shift, jets, num_vertices)
    columns["Jet"] = _nest(num_events, jets.event, _jet_columns(rng, jets))
    return columns


# ---- what happened -------------------------------------------------------------------------------------------


def _build_truth(rng: Generator, num_events: int) -> _Particles:
    """Make the particles of the hard processes, what balances them, and the soft ones around them."""
    names = list(PROCESS_FRACTIONS)
    process = rng.choice(len(names), size=num_events, p=list(PROCESS_FRACTIONS.values()))
    builders = (_resonances, _continuum, _w_bosons, _top_pairs, _multijets, _dibosons)
    hard = [
        particles
        for index, build in enumerate(builders)
        for particles in build(rng, np.flatnonzero(process == index))
    ]
    everything = [*hard, _recoil(rng, _concatenate(hard), num_events), *_soft(rng, num_events)]
    return _concatenate(everything)


def _resonances(rng: Generator, event: Array) -> list[_Particles]:
    which = rng.choice(len(RESONANCES), size=len(event), p=[r.fraction for r in RESONANCES])
    mass = np.empty(len(event))
    pt_scale = np.array([resonance.pt_scale_gev for resonance in RESONANCES])[which]
    for index, resonance in enumerate(RESONANCES):
        chosen = which == index
        mass[chosen] = _breit_wigner(
            rng, int(chosen.sum()), resonance.mass_gev, resonance.width_gev
        )
    return _lepton_pair(rng, event, _boson(rng, mass, pt_scale), MUON)


def _continuum(rng: Generator, event: Array) -> list[_Particles]:
    # dN/dm ~ m^-1.5 between 0.25 and 300 GeV, by inversion
    low, high = 0.25**-0.5, 300.0**-0.5
    mass = (low + rng.random(len(event)) * (high - low)) ** -2.0
    return _lepton_pair(rng, event, _boson(rng, mass, 14.0), MUON)


def _w_bosons(rng: Generator, event: Array) -> list[_Particles]:
    mass = _breit_wigner(rng, len(event), W_MASS_GEV, W_WIDTH_GEV)
    charge = np.where(rng.random(len(event)) < 0.58, 1, -1)  # two u quarks, one d in the proton
    return _leptonic_w(rng, event, _boson(rng, mass, 22.0), charge, MUON)


def _top_pairs(rng: Generator, event: Array) -> list[_Particles]:
    num = len(event)
    pt, phi = _falling_pt(rng, num, 110.0), _random_phi(rng, num)
    charge = rng.choice([-1, 1], num)
    tops = [
        _from_rapidity(pt, rng.normal(0.0, 0.9, num), phi + turn, mass)
        for turn, mass in (
            (0.0, _breit_wigner(rng, num, TOP_MASS_GEV, TOP_WIDTH_GEV)),
            (np.pi, _breit_wigner(rng, num, TOP_MASS_GEV, TOP_WIDTH_GEV)),
        )
    ]
    particles = []
    bosons = []
    for top in tops:
        w_mass = _breit_wigner(rng, num, W_MASS_GEV, W_WIDTH_GEV)
        boson, bottom = _decay(rng, top, w_mass, rng.uniform(6.0, 12.0, num))
        bosons.append(boson)
        particles.append(_particles(event, bottom, BOTTOM_JET))
    for quark in _decay(rng, bosons[0], rng.uniform(4.0, 9.0, num), rng.uniform(4.0, 9.0, num)):
        particles.append(_particles(event, quark, LIGHT_JET))  # noqa: PERF401  (clearer beside the loop above)
    return particles + _leptonic_w(rng, event, bosons[1], charge, MUON)


def _multijets(rng: Generator, event: Array) -> list[_Particles]:
    """Make b-jet pairs with a muon inside one, and sometimes inside both."""
    num = len(event)
    pt, phi = 25.0 + _falling_pt(rng, num, 40.0), _random_phi(rng, num)
    particles = []
    for turn, probability in ((0.0, 1.0), (np.pi, 0.25)):
        eta = rng.normal(0.0, 1.2, num)
        bottom = _from_eta(pt, eta, phi + turn, pt * rng.uniform(0.08, 0.18, num))
        particles.append(_particles(event, bottom, BOTTOM_JET))
        muon = _from_eta(
            pt * rng.uniform(0.1, 0.5, num),
            eta + rng.normal(0.0, 0.12, num),
            phi + turn + rng.normal(0.0, 0.12, num),
            np.full(num, MUON_MASS_GEV),
        )
        inside = rng.random(num) < probability
        charge = rng.choice([-1, 1], num)
        # the muon's momentum is a part of the jet's, so it doesn't count in the balance: is_prompt=False
        particles.append(_particles(event, muon, MUON, charge, is_prompt=False)[inside])
    return particles


def _dibosons(rng: Generator, event: Array) -> list[_Particles]:
    num = len(event)
    pt, phi = _falling_pt(rng, num, 45.0), _random_phi(rng, num)
    z_mass = _breit_wigner(rng, num, _Z.mass_gev, _Z.width_gev)
    w_mass = _breit_wigner(rng, num, W_MASS_GEV, W_WIDTH_GEV)
    z_boson = _from_rapidity(pt, rng.normal(0.0, 0.9, num), phi, z_mass)
    w_boson = _from_rapidity(pt, rng.normal(0.0, 0.9, num), phi + np.pi, w_mass)
    charge = rng.choice([-1, 1], num)
    z_muons, w_muons = rng.random(num) < 0.5, rng.random(num) < 0.5
    particles = []
    for flavour, z_chosen, w_chosen in (
        (MUON, z_muons, w_muons),
        (ELECTRON, ~z_muons, ~w_muons),
    ):
        particles += _lepton_pair(rng, event[z_chosen], z_boson[:, z_chosen], flavour)
        particles += _leptonic_w(
            rng, event[w_chosen], w_boson[:, w_chosen], charge[w_chosen], flavour
        )
    return particles


def _recoil(rng: Generator, hard: _Particles, num_events: int) -> _Particles:
    """Make the jet that balances the hard process of each event in the transverse plane."""
    balanced = hard[hard.is_prompt]
    total = _sum_by_event(num_events, [(balanced.event, *_pxy(balanced.pt, balanced.phi))])
    pt = np.hypot(*total)
    event = np.flatnonzero(pt > 1.0)
    phi = np.arctan2(-total[1], -total[0])[event]
    momentum = _from_eta(pt[event], rng.normal(0.0, 1.8, len(event)), phi, 0.1 * pt[event])
    return _particles(event, momentum, LIGHT_JET)


def _soft(rng: Generator, num_events: int) -> list[_Particles]:
    """Make jet pairs, photons, electrons and muons that have nothing to do with the hard process."""
    event = np.repeat(np.arange(num_events), rng.poisson(0.6, num_events))
    num = len(event)
    pt, phi = 10.0 + _falling_pt(rng, num, 18.0), _random_phi(rng, num)
    particles = []
    for turn in (0.0, np.pi):
        mass = pt * rng.uniform(0.08, 0.18, num)
        kind = np.where(rng.random(num) < 0.06, BOTTOM_JET, LIGHT_JET)
        momentum = _from_eta(pt, rng.normal(0.0, 2.0, num), phi + turn, mass)
        particles.append(_particles(event, momentum, kind))
    for flavour, mean, lepton_mass, threshold_gev in (
        (PHOTON, 0.4, 0.0, 10.0),
        (ELECTRON, 0.15, ELECTRON_MASS_GEV, 5.0),
        (MUON, 0.2, MUON_MASS_GEV, 3.0),
    ):
        event = np.repeat(np.arange(num_events), rng.poisson(mean, num_events))
        num = len(event)
        pt = threshold_gev + _falling_pt(rng, num, 5.0)
        eta, charge = rng.normal(0.0, 1.5, num), rng.choice([-1, 1], num)
        momentum = _from_eta(pt, eta, _random_phi(rng, num), np.full(num, lepton_mass))
        charge = charge * (flavour != PHOTON)
        particles.append(_particles(event, momentum, flavour, charge, is_prompt=False))
    return particles


def _lepton_pair(rng: Generator, event: Array, boson: Array, flavour: int) -> list[_Particles]:
    mass = np.full(len(event), MUON_MASS_GEV if flavour == MUON else ELECTRON_MASS_GEV)
    plus, minus = _decay(rng, boson, mass, mass)
    return [_particles(event, plus, flavour, 1), _particles(event, minus, flavour, -1)]


def _leptonic_w(
    rng: Generator, event: Array, boson: Array, charge: Array, flavour: int
) -> list[_Particles]:
    mass = np.full(len(event), MUON_MASS_GEV if flavour == MUON else ELECTRON_MASS_GEV)
    lepton, neutrino = _decay(rng, boson, mass, np.zeros(len(event)))
    return [_particles(event, lepton, flavour, charge), _particles(event, neutrino, NEUTRINO)]


# ---- kinematics: momenta are arrays of shape (4, num_particles), rows px, py, pz, E in GeV -------------------


def _decay(rng: Generator, parent: Array, mass_1: Array, mass_2: Array) -> tuple[Array, Array]:
    """Decay particles to two, isotropically in the rest frame.

    Momentum in the rest frame: PDG review "Kinematics", section on two-body decays.
    """
    mass = np.sqrt(np.maximum(parent[3] ** 2 - (parent[:3] ** 2).sum(axis=0), 1e-12))
    # 1e-12 and the clip keep rounding away from the square roots; no parent is near a threshold
    product = (mass**2 - (mass_1 + mass_2) ** 2) * (mass**2 - (mass_1 - mass_2) ** 2)
    momentum = np.sqrt(np.clip(product, 0.0, None)) / (2.0 * mass)
    cos_theta, phi = rng.uniform(-1.0, 1.0, mass.shape), _random_phi(rng, len(mass))
    sin_theta = np.sqrt(1.0 - cos_theta**2)
    direction = np.stack([sin_theta * np.cos(phi), sin_theta * np.sin(phi), cos_theta])
    first, second = (
        _boost(sign * momentum * direction, np.hypot(momentum, daughter_mass), parent, mass)
        for sign, daughter_mass in ((1.0, mass_1), (-1.0, mass_2))
    )
    return first, second


def _boost(rest_momentum: Array, rest_energy: Array, parent: Array, parent_mass: Array) -> Array:
    """Boost from the rest frame of `parent`, in the form that is stable for slow and fast parents."""
    projection = (rest_momentum * parent[:3]).sum(axis=0) / parent_mass
    energy = (parent[3] * rest_energy) / parent_mass + projection
    factor = rest_energy / parent_mass + projection / (parent[3] + parent_mass)
    return np.concatenate([rest_momentum + factor * parent[:3], energy[np.newaxis]])


def _boson(rng: Generator, mass: Array, pt_scale: Array | float) -> Array:
    num = len(mass)
    pt = _falling_pt(rng, num, pt_scale)
    return _from_rapidity(pt, rng.normal(0.0, 1.0, num), _random_phi(rng, num), mass)


def _from_rapidity(pt: Array, rapidity: Array, phi: Array, mass: Array) -> Array:
    transverse_mass = np.hypot(pt, mass)
    px, py = _pxy(pt, phi)
    return np.stack(
        [px, py, transverse_mass * np.sinh(rapidity), transverse_mass * np.cosh(rapidity)]
    )


def _from_eta(pt: Array, eta: Array, phi: Array, mass: Array) -> Array:
    px, py = _pxy(pt, phi)
    return np.stack([px, py, pt * np.sinh(eta), np.hypot(pt * np.cosh(eta), mass)])


def _pxy(pt: Array, phi: Array) -> tuple[Array, Array]:
    return pt * np.cos(phi), pt * np.sin(phi)


def _particles(
    event: Array,
    momentum: Array,
    kind: Array | int,
    charge: Array | int = 0,
    *,
    is_prompt: bool = True,
) -> _Particles:
    pt = np.maximum(np.hypot(momentum[0], momentum[1]), 1e-3)
    mass_squared = momentum[3] ** 2 - (momentum[:3] ** 2).sum(axis=0)
    return _Particles(
        event=event,
        pt=pt,
        eta=np.arcsinh(momentum[2] / pt),
        phi=np.arctan2(momentum[1], momentum[0]),
        mass=np.sqrt(np.maximum(mass_squared, 0.0)),
        charge=np.broadcast_to(charge, pt.shape),
        kind=np.broadcast_to(kind, pt.shape),
        is_prompt=np.broadcast_to(is_prompt, pt.shape),
    )


def _concatenate(parts: Sequence[_Particles]) -> _Particles:
    return _Particles(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(_Particles)
        )
    )


def _breit_wigner(rng: Generator, num: int, mass: float, width: float) -> Array:
    """Draw masses from a Breit-Wigner, cut off at 0.4 and 1.6 times the pole; GeV."""
    # 0.22 GeV: two muons can't be lighter than 0.211 GeV
    edges = np.arctan(2.0 * (np.array([max(0.4 * mass, 0.22), 1.6 * mass]) - mass) / width)
    return mass + 0.5 * width * np.tan(rng.uniform(edges[0], edges[1], num))


def _falling_pt(rng: Generator, num: int, scale: Array | float) -> Array:
    """Draw from ``dN/dpt ~ pt / (1 + (pt / scale)**2)**3``, rising below the scale, then like pt^-5; GeV."""
    return scale * np.sqrt((1.0 - rng.random(num)) ** -0.5 - 1.0)


def _random_phi(rng: Generator, num: int) -> Array:
    return rng.uniform(-np.pi, np.pi, num)


# ---- what the detector saw -----------------------------------------------------------------------------------

# (event, change of px, change of py) of all measured particles: what mismeasurement adds to the missing momentum
_Shift = tuple[Array, Array, Array]


def _measure(particles: _Particles, factor: Array) -> tuple[_Particles, _Shift]:
    """Scale the four-momenta; particles that are light enough keep their mass."""
    pt = particles.pt * factor
    is_jet = (particles.kind == LIGHT_JET) | (particles.kind == BOTTOM_JET)
    measured = _Particles(
        particles.event,
        pt,
        particles.eta,
        particles.phi,
        np.where(is_jet, particles.mass * factor, particles.mass),
        particles.charge,
        particles.kind,
        particles.is_prompt,
    )
    return measured, (particles.event, *_pxy(pt - particles.pt, particles.phi))


def _measure_muons(rng: Generator, truth: _Particles) -> tuple[_Particles, _Shift]:
    muons = truth[(truth.kind == MUON) & (np.abs(truth.eta) < 2.4)]
    # 1 % in the barrel, 3 % at its end, growing with the momentum: about CMS, JINST 7 (2012) P10002
    resolution = np.hypot(0.01 + 0.0035 * muons.eta**2, 1e-4 * muons.pt)
    measured, shift = _measure(muons, 1.0 + resolution * rng.standard_normal(len(muons.pt)))
    return measured[measured.pt > 3.0].sort(), shift


def _measure_electrons(rng: Generator, truth: _Particles) -> tuple[_Particles, _Shift]:
    electrons = truth[(truth.kind == ELECTRON) & (np.abs(truth.eta) < 2.5)]
    measured, shift = _measure(electrons, 1.0 + 0.02 * rng.standard_normal(len(electrons.pt)))
    return measured[measured.pt > 5.0].sort(), shift


def _measure_jets(
    rng: Generator, truth: _Particles, electrons: _Particles
) -> tuple[_Particles, _Shift]:
    jets = truth[(truth.kind == LIGHT_JET) | (truth.kind == BOTTOM_JET)]
    resolution = np.hypot(0.7 / np.sqrt(jets.pt), 0.05)
    factor = np.clip(1.0 + resolution * rng.standard_normal(len(jets.pt)), 0.3, 2.0)
    measured, shift = _measure(jets, factor)
    # an electron is a cluster of energy, and so a jet as well; nobody has cleaned the jets of this layout
    both = _concatenate([measured, electrons])
    return both[(both.pt > 15.0) & (np.abs(both.eta) < 4.7)].sort(), shift


def _sum_by_event(num_events: int, shifts: Sequence[_Shift]) -> Array:
    """Add up (event, x, y) vectors to an array of shape ``(2, num_events)``."""
    event = np.concatenate([shift[0] for shift in shifts])
    return np.stack(
        [
            np.bincount(event, np.concatenate([shift[axis] for shift in shifts]), num_events)
            for axis in (1, 2)
        ]
    )


def _nearest_jet(particles: _Particles, jets: _Particles, max_delta_r: float = 0.4) -> Array:
    """Find the index in its event of the nearest jet within `max_delta_r`, -1 for none."""
    first_jet = np.searchsorted(jets.event, particles.event, side="left")
    num_jets = np.searchsorted(jets.event, particles.event, side="right") - first_jet
    particle = np.repeat(np.arange(len(particles.event)), num_jets)
    index = np.arange(len(particle)) - np.repeat(np.cumsum(num_jets) - num_jets, num_jets)
    jet = first_jet[particle] + index
    delta_phi = np.abs(particles.phi[particle] - jets.phi[jet])
    delta_phi = np.minimum(delta_phi, 2.0 * np.pi - delta_phi)
    delta_r = np.hypot(particles.eta[particle] - jets.eta[jet], delta_phi)
    farthest_first = np.argsort(-delta_r, kind="stable")
    farthest_first = farthest_first[delta_r[farthest_first] < max_delta_r]
    nearest = np.full(len(particles.event), -1, dtype=np.int32)
    nearest[particle[farthest_first]] = index[
        farthest_first
    ]  # the last to be written is the nearest
    return nearest


# ---- branches ------------------------------------------------------------------------------------------------


def _nest(num_events: int, event: Array, columns: dict[str, Array]) -> Any:
    import awkward as ak

    narrow = {
        name: column.astype(np.float32) if column.dtype == np.float64 else column
        for name, column in columns.items()
    }
    return ak.unflatten(ak.zip(narrow), np.bincount(event, minlength=num_events))


def _kinematic_columns(particles: _Particles) -> dict[str, Array]:
    return {
        "pt": particles.pt,
        "eta": particles.eta,
        "phi": particles.phi,
        "mass": particles.mass,
    }


def _link_columns(particles: _Particles, jets: _Particles) -> dict[str, Array]:
    # genPartIdx is there in data, too, and points nowhere
    missing = np.full(len(particles.pt), -1, dtype=np.int32)
    return {"jetIdx": _nearest_jet(particles, jets), "genPartIdx": missing}


def _impact_columns(rng: Generator, particles: _Particles) -> dict[str, Array]:
    """Make the distances from the primary vertex, cm; those of secondary leptons are larger."""
    num = len(particles.pt)
    spread = np.where(particles.is_prompt, 1.0, 6.0)
    error_xy, error_z = 0.002 + 0.02 / particles.pt, 0.004 + 0.04 / particles.pt
    return {
        "dxy": rng.standard_normal(num) * error_xy * spread,
        "dxyErr": error_xy,
        "dz": rng.standard_normal(num) * error_z * spread,
        "dzErr": error_z,
    }


def _isolation(rng: Generator, particles: _Particles) -> Array:
    """Make relative isolations: mostly below 0.1 for prompt leptons, near 1 inside jets."""
    mean = np.where(particles.is_prompt, 0.03 + 0.5 / (5.0 + particles.pt), 0.9)
    return rng.exponential(mean)


def _muon_columns(rng: Generator, muons: _Particles, jets: _Particles) -> dict[str, Array]:
    num = len(muons.pt)
    isolation = _isolation(rng, muons)
    # the original has -999 where particle flow didn't take the muon; such a muon is never tight
    is_particle_flow = rng.random(num) < 0.97
    is_tight = is_particle_flow & (rng.random(num) < np.where(muons.is_prompt, 0.95, 0.6))
    return {
        **_kinematic_columns(muons),
        "charge": muons.charge.astype(np.int32),
        "pfRelIso03_all": np.where(is_particle_flow, isolation, -999.0),
        "pfRelIso04_all": np.where(is_particle_flow, isolation * 1.2, -999.0),
        "tightId": is_tight,
        "softId": is_tight | (rng.random(num) < 0.8),
        **_impact_columns(rng, muons),
        **_link_columns(muons, jets),
    }


def _electron_columns(rng: Generator, electrons: _Particles, jets: _Particles) -> dict[str, Array]:
    num = len(electrons.pt)
    return {
        **_kinematic_columns(electrons),
        "charge": electrons.charge.astype(np.int32),
        "pfRelIso03_all": _isolation(rng, electrons),
        **_impact_columns(rng, electrons),
        "cutBasedId": rng.random(num) < np.where(electrons.is_prompt, 0.85, 0.2),
        "pfId": rng.random(num) < np.where(electrons.is_prompt, 0.9, 0.4),
        **_link_columns(electrons, jets),
    }


def _photon_columns(rng: Generator, photons: _Particles, jets: _Particles) -> dict[str, Array]:
    return {
        **_kinematic_columns(photons),
        "charge": photons.charge.astype(np.int32),
        "pfRelIso03_all": _isolation(rng, photons),
        **_link_columns(photons, jets),
    }


def _tau_columns(rng: Generator, jets: _Particles) -> tuple[Array, dict[str, Array]]:
    """Make hadronic tau candidates: narrow jets that look like one."""
    chosen = (jets.pt > 20.0) & (np.abs(jets.eta) < 2.3) & (rng.random(len(jets.pt)) < 0.15)
    seeds = jets[chosen]
    num = len(seeds.pt)
    mode = rng.choice(np.array([0, 1, 10], dtype=np.int32), size=num, p=[0.35, 0.45, 0.2])
    pt = seeds.pt * rng.uniform(0.6, 1.0, num)
    mass = np.where(mode == 0, 0.13957, np.where(mode == 1, 0.75, 1.1))
    taus = _Particles(
        seeds.event,
        pt,
        seeds.eta,
        seeds.phi,
        mass,
        rng.choice([-1, 1], num),
        seeds.kind,
        seeds.is_prompt,
    )
    order = np.lexsort((-taus.pt, taus.event))
    taus, mode = taus[order], mode[order]
    isolation_gev = rng.exponential(6.0, num)
    working_points = {"VLoose": 4.0, "Loose": 2.0, "Medium": 1.0, "Tight": 0.5}
    rejections = {
        f"idAnti{lepton}{point}": rng.random(num) < probability
        for lepton in ("Ele", "Mu")
        for point, probability in (("Loose", 0.95), ("Medium", 0.9), ("Tight", 0.8))
    }
    return taus.event, {
        **_kinematic_columns(taus),
        "charge": taus.charge.astype(np.int32),
        "decayMode": mode,
        "relIso_all": isolation_gev / taus.pt,
        **_link_columns(taus, jets),
        "idDecayMode": np.ones(num, dtype=np.bool_),
        "idIsoRaw": isolation_gev,
        **{f"idIso{name}": isolation_gev < cut for name, cut in working_points.items()},
        **rejections,
    }


def _jet_columns(rng: Generator, jets: _Particles) -> dict[str, Array]:
    num = len(jets.pt)
    is_bottom = jets.kind == BOTTOM_JET
    score = np.where(is_bottom, rng.beta(4.0, 1.2, num), rng.beta(1.1, 4.0, num))
    return {
        **_kinematic_columns(jets),
        "puId": rng.random(num) < 0.9,
        # no tracks, no b-tag: the original has -1 there
        "btag": np.where(np.abs(jets.eta) < 2.5, score, -1.0),
    }


def _trigger_columns(
    rng: Generator, muons: _Particles, jets: _Particles, num_events: int
) -> dict[str, Array]:
    fires = muons.is_prompt & (rng.random(len(muons.pt)) < 0.92)
    central = np.abs(muons.eta) < 2.1

    def any_muon(passed: Array) -> Array:
        return np.bincount(muons.event[passed], minlength=num_events) > 0

    has_tau = rng.random(num_events) < 0.1 * np.bincount(jets.event, minlength=num_events)
    return {
        "HLT_IsoMu24_eta2p1": any_muon(fires & central & (muons.pt > 24.0)),
        "HLT_IsoMu24": any_muon(fires & (muons.pt > 24.0)),
        "HLT_IsoMu17_eta2p1_LooseIsoPFTau20": any_muon(fires & central & (muons.pt > 17.0))
        & has_tau,
    }


def _vertex_columns(rng: Generator, num_vertices: Array) -> dict[str, Array]:
    num = len(num_vertices)
    # cm, about where the beams of 2012 crossed
    return {
        "PV_npvs": num_vertices.astype(np.int32),
        "PV_x": rng.normal(0.072, 0.002, num).astype(np.float32),
        "PV_y": rng.normal(0.062, 0.002, num).astype(np.float32),
        "PV_z": rng.normal(0.5, 5.5, num).astype(np.float32),
    }


def _met_columns(
    rng: Generator, truth: _Particles, shift: Array, jets: _Particles, num_vertices: Array
) -> dict[str, Array]:
    """Make the missing transverse momentum: what escaped, less what was measured too high, plus pile-up."""
    num_events = len(num_vertices)
    escapes = (truth.kind == NEUTRINO) | ((truth.kind == MUON) & (np.abs(truth.eta) >= 2.4))
    # a muon inside a jet is a part of the jet's momentum already
    unseen = truth[escapes & truth.is_prompt]
    missing = _sum_by_event(num_events, [(unseen.event, *_pxy(unseen.pt, unseen.phi))]) - shift
    variance = 25.0 + 4.0 * num_vertices
    missing = missing + rng.standard_normal((2, num_events)) * np.sqrt(variance)
    pt = np.hypot(missing[0], missing[1])
    sum_et = np.bincount(jets.event, jets.pt, num_events) + 20.0 * num_vertices
    columns = {
        "MET_pt": pt,
        "MET_phi": np.arctan2(missing[1], missing[0]),
        "MET_sumet": sum_et,
        "MET_significance": pt**2 / variance,
        "MET_CovXX": variance,
        "MET_CovXY": 0.05 * variance * rng.standard_normal(num_events),
        "MET_CovYY": variance,
    }
    return {name: column.astype(np.float32) for name, column in columns.items()}
