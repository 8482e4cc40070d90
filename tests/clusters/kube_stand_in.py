"""A Kubernetes for dask's operator: ``python -m tests.clusters.kube_stand_in PORT HOSTS DIRECTORY``.

The interface is HTTP as Kubernetes speaks it, for the kinds of objects that the operator uses; deployments get their pods, and
pods are run for real, as processes. Names of services are written to a file, which is ``/etc/hosts`` for all in the same network.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.clusters.containers import Containers
from tests.clusters.kube_objects import (
    DASK,
    KINDS,
    Key,
    Kind,
    Objects,
    merge_patch,
    owns,
    patch_json,
    selects,
)

__all__ = ["LOOK_SECONDS"]

LOOK_SECONDS = 0.1
VERBS = ("create", "delete", "get", "list", "patch", "watch")
OBJECTS = web.AppKey("objects", Objects)


def _problem(code: int, reason: str, message: str) -> web.Response:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    said = {**status, "code": code, "reason": reason, "message": message}
    return web.json_response(said, status=code)


def describe(path: list[str]) -> Any:
    """Answer what the interface has; None for other questions."""
    versions = sorted({one.version for one in KINDS})
    if path == ["version"]:
        return {"major": "1", "minor": "30", "gitVersion": "v1.30.0"}
    if path == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == ["apis"]:
        groups = []
        for one in versions:
            group, _, number = one.partition("/")
            if number:
                known = {"groupVersion": one, "version": number}
                groups.append({"name": group, "versions": [known], "preferredVersion": known})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    version = "/".join(path[1:])
    if path[0] in ("api", "apis") and version in versions:
        resources = [
            {
                "name": one.plural,
                "singularName": one.name.lower(),
                "namespaced": one.has_namespace,
                "kind": one.name,
                "verbs": VERBS,
                "shortNames": [],
            }
            for one in KINDS
            if one.version == version
        ]
        said = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version}
        return {**said, "resources": resources}
    return None


def find(path: list[str]) -> tuple[Kind, str | None, str | None] | None:
    """Return the kind, namespace and name that a path leads to; None if it leads nowhere."""
    version, rest = (path[1], path[2:]) if path[0] == "api" else ("/".join(path[1:3]), path[3:])
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    for one in KINDS:
        if (one.version, one.plural) == (version, rest[0]):
            return one, namespace, rest[1] if len(rest) > 1 else None
    return None


async def answer(request: web.Request) -> web.StreamResponse:
    """Answer a question of the operator, or of a client."""
    path = request.path.strip("/").split("/")
    description = describe(path)
    if description is not None:
        return web.json_response(description)
    place = find(path) if path[0] in ("api", "apis") and len(path) > 2 else None
    if place is None:
        return _problem(404, "NotFound", request.path)
    kind, namespace, name = place
    if name is None:
        return await _answer_of_many(request, kind, namespace)
    key = Key(kind, (namespace or "default") if kind.has_namespace else None, name)
    return await _answer_of_one(request, key)


async def _answer_of_many(request: web.Request, kind: Kind, namespace: str | None) -> Any:
    objects = request.app[OBJECTS]
    if request.method == "POST":
        made = await objects.add(kind, namespace, await request.json())
        if made is None:
            return _problem(409, "AlreadyExists", request.path)
        return web.json_response(made, status=201)
    if request.query.get("watch") in ("true", "1"):
        return await _watch(request, kind, namespace)
    items = [
        one
        for key, one in objects.of(kind.plural)
        if namespace in (None, key.namespace) and selects(request.query, one)
    ]
    head = {"kind": f"{kind.name}List", "apiVersion": kind.version}
    version = {"resourceVersion": str(objects.version)}
    return web.json_response({**head, "metadata": version, "items": items})


async def _watch(request: web.Request, kind: Kind, namespace: str | None) -> web.StreamResponse:
    objects = request.app[OBJECTS]
    stream = web.StreamResponse(headers={"Content-Type": "application/json"})
    await stream.prepare(request)
    seen = int(request.query.get("resourceVersion") or 0)
    loop = asyncio.get_running_loop()
    end = loop.time() + float(request.query.get("timeoutSeconds", 3600))
    while loop.time() < end:
        for one in objects.changes[seen:]:
            seen = one.version
            is_asked = one.key.kind == kind and namespace in (None, one.key.namespace)
            if is_asked and selects(request.query, one.value):
                line = json.dumps({"type": one.event, "object": one.value})
                await stream.write(f"{line}\n".encode())
        await objects.wait_for_change(seen, min(1.0, end - loop.time()))
    return stream


async def _answer_of_one(request: web.Request, key: Key) -> web.Response:
    objects = request.app[OBJECTS]
    value = objects.get(key)
    if value is None:
        return _problem(404, "NotFound", request.path)
    if request.method == "DELETE":
        await objects.remove(key)
    elif request.method == "PATCH":
        before = copy.deepcopy(value)
        patch = await request.json()
        if "json-patch" in request.content_type:
            if not patch_json(value, patch):
                return _problem(422, "Invalid", "a test of the patch fails")
        else:
            merge_patch(value, patch)
        if value != before:
            await objects.changed(key)
    return web.json_response(value)


class Node:
    """The machine that runs pods, and those who see to it that there are as many as asked for."""

    def __init__(self, objects: Objects, hosts: Path, directory: Path) -> None:
        self._objects = objects
        self._hosts = hosts
        self._containers = Containers(directory)
        self._addresses = (f"10.244.{a}.{b}" for a in itertools.count() for b in range(1, 255))
        self._pods: dict[str, str] = {}  # names of pods that run, by uid

    async def work(self) -> None:
        """Look at all objects again and again."""
        try:
            while True:
                for key, one in self._objects.of("deployments"):
                    await self._see_to_deployment(key, one)
                for key, one in self._objects.of("services"):
                    await self._see_to_service(key, one)
                await self._see_to_pods()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._containers.stop_all()

    async def _see_to_deployment(self, key: Key, value: Any) -> None:
        if any(owns(value, pod) for _, pod in self._objects.of("pods")):
            return
        template = copy.deepcopy(value["spec"]["template"])
        owner = {"apiVersion": value["apiVersion"], "kind": value["kind"], "name": key.name}
        wanted = template["metadata"]
        template["metadata"] = {
            "generateName": f"{key.name}-",
            "labels": wanted.get("labels", {}),
            "annotations": wanted.get("annotations", {}),
            "ownerReferences": [{**owner, "uid": value["metadata"]["uid"], "controller": True}],
        }
        await self._objects.add(_kind("Pod"), key.namespace, template)

    async def _see_to_service(self, key: Key, value: Any) -> None:
        if "status" in value:
            return
        address = next(self._addresses)
        value["spec"]["clusterIP"] = address
        value["status"] = {"loadBalancer": {}}
        name = f"{key.name}.{key.namespace}"
        # whatever listens on all addresses is found at this one, too
        with self._hosts.open("a") as hosts:
            hosts.write(f"{address} {name} {name}.svc {name}.svc.cluster.local\n")
        await self._objects.changed(key)

    async def _see_to_pods(self) -> None:
        pods = {one["metadata"]["uid"]: (key, one) for key, one in self._objects.of("pods")}
        gone = [self._pods.pop(uid) for uid in self._pods.keys() - pods.keys()]
        await asyncio.gather(*(asyncio.to_thread(self._containers.stop, one) for one in gone))
        for uid in pods.keys() - self._pods.keys():
            key, value = pods[uid]
            self._pods[uid] = key.name
            await self._start_pod(key, value)
        ended = self._containers.reap()
        for key, value in pods.values():
            if key.name in ended:
                value["status"]["phase"] = "Failed" if ended[key.name] else "Succeeded"
                await self._objects.changed(key)

    async def _start_pod(self, key: Key, value: Any) -> None:
        (container,) = value["spec"]["containers"]
        environment = {one["name"]: str(one.get("value", "")) for one in container["env"]}
        command = [
            re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), one)
            for one in (*container.get("command", ()), *container.get("args", ()))
        ]
        self._containers.start(key.name, container["image"], command, environment)
        conditions = ("Initialized", "PodScheduled", "ContainersReady", "Ready")
        value["status"] = {
            "phase": "Running",
            "podIP": next(self._addresses),
            "conditions": [{"type": one, "status": "True"} for one in conditions],
            "containerStatuses": [{"name": container["name"], "ready": True, "state": {}}],
        }
        await self._objects.changed(key)


def _kind(name: str) -> Kind:
    return next(one for one in KINDS if one.name == name)


async def _fill(objects: Objects) -> None:
    """Make what is there before anybody comes: a namespace, and the operator's own kinds."""
    await objects.add(_kind("Namespace"), None, {"metadata": {"name": "default"}})
    for one in KINDS:
        if one.version == DASK:
            group, _, version = one.version.partition("/")
            spec = {
                "group": group,
                "names": {"kind": one.name, "plural": one.plural, "singular": one.name.lower()},
                "scope": "Namespaced",
                "versions": [{"name": version, "served": True, "storage": True}],
            }
            definition = {"metadata": {"name": f"{one.plural}.{group}"}, "spec": spec}
            await objects.add(_kind("CustomResourceDefinition"), None, definition)


async def main() -> None:
    """Serve, until SIGTERM."""
    port, hosts, directory = sys.argv[1:]
    objects = Objects()
    await _fill(objects)
    application = web.Application(client_max_size=2**24)
    application[OBJECTS] = objects
    application.router.add_route("*", "/{path:.*}", answer)
    # a stream that somebody watches does not end by itself
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(port)).start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    node = asyncio.create_task(Node(objects, Path(hosts), Path(directory)).work())
    asked = asyncio.create_task(ended.wait())
    print("ready", flush=True)
    await asyncio.wait([node, asked], return_when=asyncio.FIRST_COMPLETED)
    node.cancel()
    with suppress(asyncio.CancelledError):
        await node  # where it has failed, this process does, too
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
