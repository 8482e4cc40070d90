"""hepdask: run a physicist's processor over ROOT datasets, on a laptop or on a Dask cluster.

>>> from hepdask import Runner, DaskExecutor
>>> run = Runner(executor=DaskExecutor(client=client), schema=NanoAODSchema)
>>> output = run(fileset, "Events", processor_instance=Processor())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hepdask.accumulator import add
    from hepdask.completeness import Completeness, DatasetCompleteness
    from hepdask.doctor import Checkup
    from hepdask.errors import (
        AccountingError,
        AccumulatorError,
        DamagedObjectError,
        ExecutorError,
        FileChangedError,
        FileReadError,
        FilesetError,
        HepdaskError,
        MissingDependencyError,
        MissingTreeError,
        OptionError,
        ProcessDiedError,
        ProcessorError,
        RangeTimeoutError,
        RunError,
        StoreError,
    )
    from hepdask.executors.dask import DaskExecutor
    from hepdask.executors.local import LocalExecutor
    from hepdask.failures import Failure, Failures
    from hepdask.fileset import Fileset, load_fileset
    from hepdask.luminosity import LumiSections
    from hepdask.messages import Message, Messages
    from hepdask.metadata import FileMetadata
    from hepdask.plan import Plan
    from hepdask.ranges import EntryRange
    from hepdask.recovery import RecoveryPolicy
    from hepdask.result import RunResult
    from hepdask.runner import Runner
    from hepdask.shipping import Resource, Shipping, resource
    from hepdask.store import Store

#: where each public name lives; imported when it is first asked for, so that ``import hepdask`` is fast
_HOMES = {
    "AccountingError": "errors",
    "AccumulatorError": "errors",
    "Checkup": "doctor",
    "Completeness": "completeness",
    "DamagedObjectError": "errors",
    "DaskExecutor": "executors.dask",
    "DatasetCompleteness": "completeness",
    "EntryRange": "ranges",
    "ExecutorError": "errors",
    "Failure": "failures",
    "Failures": "failures",
    "FileChangedError": "errors",
    "FileMetadata": "metadata",
    "FileReadError": "errors",
    "Fileset": "fileset",
    "FilesetError": "errors",
    "HepdaskError": "errors",
    "LocalExecutor": "executors.local",
    "LumiSections": "luminosity",
    "Message": "messages",
    "Messages": "messages",
    "MissingDependencyError": "errors",
    "MissingTreeError": "errors",
    "OptionError": "errors",
    "Plan": "plan",
    "ProcessDiedError": "errors",
    "ProcessorError": "errors",
    "RangeTimeoutError": "errors",
    "RecoveryPolicy": "recovery",
    "Resource": "shipping",
    "RunError": "errors",
    "RunResult": "result",
    "Runner": "runner",
    "Shipping": "shipping",
    "Store": "store",
    "StoreError": "errors",
    "add": "accumulator",
    "load_fileset": "fileset",
    "resource": "shipping",
}

__version__ = "0.1.0"

__all__ = [
    "AccountingError",
    "AccumulatorError",
    "Checkup",
    "Completeness",
    "DamagedObjectError",
    "DaskExecutor",
    "DatasetCompleteness",
    "EntryRange",
    "ExecutorError",
    "Failure",
    "Failures",
    "FileChangedError",
    "FileMetadata",
    "FileReadError",
    "Fileset",
    "FilesetError",
    "HepdaskError",
    "LocalExecutor",
    "LumiSections",
    "Message",
    "Messages",
    "MissingDependencyError",
    "MissingTreeError",
    "OptionError",
    "Plan",
    "ProcessDiedError",
    "ProcessorError",
    "RangeTimeoutError",
    "RecoveryPolicy",
    "Resource",
    "RunError",
    "RunResult",
    "Runner",
    "Shipping",
    "Store",
    "StoreError",
    "__version__",
    "add",
    "load_fileset",
    "resource",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
