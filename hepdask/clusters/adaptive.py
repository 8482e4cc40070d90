"""Adaptive scaling that leaves workers alone that are in the middle of something."""

from __future__ import annotations

from typing import Any

from distributed.deploy.adaptive import Adaptive

__all__ = ["PatientAdaptive"]


class PatientAdaptive(Adaptive):  # type: ignore[misc]  # dask has no types
    """Retires idle workers only, and never one of a job whose other workers are busy: the job ends with all of them."""

    async def workers_to_close(self, target: int) -> list[Any]:
        """Name those of dask's choice whose job is idle at this moment."""
        chosen = await super().workers_to_close(target)
        return await self._idle_among(chosen)

    async def scale_down(self, workers: Any) -> None:
        """Retire workers, but for those that have begun something since they were chosen."""
        await super().scale_down(await self._idle_among(list(workers)))

    async def _idle_among(self, names: list[Any]) -> list[Any]:
        if not names:
            return []
        identity = await self.scheduler.identity(n_workers=-1)
        processing = await self.scheduler.processing(workers=None)
        busy = {
            self._job_of(one["name"])
            for address, one in identity["workers"].items()
            if processing.get(address)
        }
        return [name for name in names if self._job_of(name) not in busy]

    def _job_of(self, name: Any) -> Any:
        """Return the job that a worker belongs to: its own name, unless jobs have several workers."""
        for job, spec in getattr(self.cluster, "worker_spec", {}).items():
            for suffix in spec.get("group", ()):
                if f"{job}{suffix}" == str(name):
                    return job
        return name
