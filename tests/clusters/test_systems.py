from __future__ import annotations

import subprocess
import sys

import pytest

from hepdask import MissingDependencyError, OptionError
from hepdask.clusters.systems import lifetime_of, load_class


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"walltime": 28_800}, (28_200, 300)),
        ({"walltime": 3_600}, (3_240, 180)),
        ({"walltime": 600}, (540, 30)),
        ({"walltime": 60}, None),
        ({"lifetime": 1_000, "walltime": 5_000}, (1_000, 50)),
        ({"lifetime": 40}, (40, 10)),
    ],
)
def test_workers_end_before_their_job(
    options: dict[str, int], expected: tuple[int, int] | None
) -> None:
    assert lifetime_of(options) == expected
    if expected and "lifetime" not in options:
        assert sum(expected) < options["walltime"]


def test_classes_of_facilities() -> None:
    assert load_class("collections:Counter")([1, 1])[1] == 2
    with pytest.raises(MissingDependencyError, match="pip install dask-lxplus"):
        load_class("dask_lxplus:CernCluster")
    with pytest.raises(OptionError, match="collections has no class 'Conter'; did you mean"):
        load_class("collections:Conter")


def test_importing_a_library_leaves_ctrl_c_alone() -> None:
    pytest.importorskip("dask_jobqueue", reason="pip install 'hepdask[jobqueue]'")
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)\n"
        "from hepdask.clusters import choose_cluster; choose_cluster('slurm').render()\n"
        "assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))\n"
        "from hepdask.executors import interruptible\n"
        "import dask_jobqueue.runner, importlib; importlib.reload(dask_jobqueue.runner)\n"
        "with interruptible() as interrupts:\n    signal.raise_signal(signal.SIGINT)\n"
        "assert interrupts.count == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
