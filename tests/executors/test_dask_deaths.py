"""What a scheduler does when a worker dies: in this process, so that tasks can be held, and workers removed."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import distributed
import pytest
from dask.delayed import delayed

from hepdask.executors.dask_deaths import DONE_AGAIN, make_death_plugin
from hepdask.executors.dask_marks import MARKS, SEEN, RunInfo, marked
from tests.local import local_client, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_begun, _may_end = threading.Event(), threading.Event()
_calls: list[str] = []


@pytest.fixture
def client() -> Iterator[distributed.Client]:
    _begun.clear()
    _may_end.clear()
    _calls.clear()
    with local_client(2, processes=False) as client:
        client.register_plugin(make_death_plugin())
        yield client


def end(place: str) -> None:
    with marked(RunInfo("run", f"task-{place}", place)):
        pass


def begin(place: str) -> None:
    with marked(RunInfo("run", f"task-{place}", place)):
        _begun.set()
        _may_end.wait(20)


def note(name: str) -> None:
    _calls.append(name)


def send(
    client: distributed.Client, function: Any, name: str, *, worker: str, priority: float = 0
) -> Any:
    """Persist a task that had better run on this worker."""
    where = {"workers": [worker], "allow_other_workers": True}
    with dask.annotate(priority=priority, **where, **{DONE_AGAIN: 2.0}):
        task = delayed(function, pure=False)(name, dask_key_name=name)
    return distributed.futures_of(client.persist(task, optimize_graph=False))[0]


def remove(client: distributed.Client, address: str) -> None:
    async def remove_worker(dask_scheduler: Any) -> None:
        await dask_scheduler.remove_worker(address, stimulus_id="test")

    client.run_on_scheduler(remove_worker)


def test_a_scheduler_need_not_have_hepdask(tmp_path: Path) -> None:
    (tmp_path / "plugin").write_bytes(cloudpickle.dumps(make_death_plugin()))
    program = """
import pickle, sys
sys.modules["hepdask"] = None
plugin = pickle.loads(open(sys.argv[1], "rb").read())
class Scheduler:
    task_metadata = {"hepdask-tasks": {"run": {"begun": {"task": (0, "tcp://192.0.2.1:1", "0-4")}}}}
plugin.remove_worker(Scheduler, "tcp://192.0.2.1:1")
print(Scheduler.task_metadata["hepdask-tasks"]["run"]["died"])
"""
    command = [sys.executable, "-c", program, str(tmp_path / "plugin")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == "{'0-4': 'seen'}\n"


def test_a_death_is_known_before_the_task_is_begun_again(client: distributed.Client) -> None:
    address, _ = client.scheduler_info()["workers"]
    send(client, end, "0-4", worker=address).result()
    held = send(client, begin, "4-8", worker=address)
    assert _begun.wait(20)
    remove(client, address)
    died = client.get_metadata([MARKS, "run", "died"])
    _may_end.set()
    held.result()
    assert died == {"4-8": SEEN}


def test_what_is_lost_is_made_again_after_what_was_never_made(client: distributed.Client) -> None:
    address, other = client.scheduler_info()["workers"]
    lost = send(client, note, "lost", worker=address, priority=1)
    lost.result()
    held = send(client, begin, "held", worker=other)
    assert _begun.wait(20)
    remove(client, address)
    new = send(client, note, "new", worker=other)
    waiting = next(one for one in client.cluster.workers.values() if one.address == other)
    wait_until(lambda: {"lost", "new"} <= set(waiting.state.tasks), "both wait")
    _may_end.set()
    client.gather([held, lost, new])
    assert _calls == ["lost", "new", "lost"]
