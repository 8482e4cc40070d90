"""What a scheduler does by itself when workers die: it marks what they ran, and lets what they had wait."""

from __future__ import annotations

from typing import Any

from distributed import SchedulerPlugin

from hepdask.executors.dask_marks import MARKS, SEEN

__all__ = ["DONE_AGAIN", "make_death_plugin"]

#: Annotation of tasks that wait if they are to be done again: by how much less their priority is then.
DONE_AGAIN = "hepdask-done-again"


def make_death_plugin() -> Any:
    """Make the plugin of schedulers.

    A task that is killed is begun again when some worker has time for it, and till then others, which kill as well, would be
    begun as if nothing had happened: so it is marked at once.

    Results that are lost with their worker are made again after all that was never made. dask would make them first, together
    with all that they were merged of, and where workers die often, lose them again and again.

    Returns
    -------
    distributed.SchedulerPlugin
        Of a class that is pickled by value: a scheduler need not have hepdask.
    """

    class DeathPlugin(SchedulerPlugin):  # type: ignore[misc]  # dask has no types
        name = "hepdask-deaths"
        idempotent = True

        scheduler: Any = None

        async def start(self, scheduler: Any) -> None:
            self.scheduler = scheduler

        def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
            for run in scheduler.task_metadata.get(MARKS, {}).values():
                for _, address, place in run.get("begun", {}).values():
                    if address == worker:
                        run.setdefault("died", {}).setdefault(place, SEEN)

        def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
            if start == "released" and finish == "waiting":
                task = self.scheduler.tasks[key]
                less = (task.annotations or {}).get(DONE_AGAIN)
                # its bytes are known from the first time
                if less and task.nbytes >= 0:
                    task.annotations = {**task.annotations, DONE_AGAIN: 0}
                    first, *others = task.priority
                    task.priority = (first + less, *others)

    return DeathPlugin()
