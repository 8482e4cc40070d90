"""Whether a cluster fits a run, before it is sent there: ``hepdask doctor``, `Runner.check`, and in short at a first run.

::

    Request -> facts: what each worker is and can (there)  -> findings: what will break, and what to do (here, pure) -> Checkup
"""

from __future__ import annotations

from hepdask.doctor.facts import ClusterFacts, Facts, Request, collect_facts
from hepdask.doctor.findings import Expectations, Finding, judge
from hepdask.doctor.report import Checkup

__all__ = [
    "Checkup",
    "ClusterFacts",
    "Expectations",
    "Facts",
    "Finding",
    "Request",
    "collect_facts",
    "judge",
]
