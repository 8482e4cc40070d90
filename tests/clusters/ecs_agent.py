"""What runs the tasks of a simulated ECS, whose own tasks are entries in a table: ``python -m tests.clusters.ecs_agent URL DIRECTORY``."""

from __future__ import annotations

import json
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import boto3

from tests.clusters.containers import Containers

__all__ = ["LOOK_SECONDS"]

LOOK_SECONDS = 0.2


def prepare(ecs: Any, url: str) -> None:
    """Make the simulation like a real account, and leave it to this agent how long tasks run."""
    # every account has it by now; the simulation says nothing of it until it is set
    ecs.put_account_setting(name="taskLongArnFormat", value="enabled")
    # else a task goes from RUNNING to STOPPED as often as someone looks at it
    transition = {"progression": "manual", "times": 10**9}
    question = urllib.request.Request(
        f"{url}/moto-api/state-manager/set-transition",
        json.dumps({"model_name": "ecs::task", "transition": transition}).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(question, timeout=10).close()


def find_tasks(ecs: Any) -> dict[str, str]:
    """Return the tasks that are to run, with the clusters that they are in."""
    found = {}
    for cluster in ecs.list_clusters()["clusterArns"]:
        tasks = ecs.list_tasks(cluster=cluster, desiredStatus="RUNNING")["taskArns"]
        found.update(dict.fromkeys(tasks, cluster))
    return found


def start(ecs: Any, containers: Containers, cluster: str, arn: str) -> None:
    """Run the container of a task: its definition, and what was overridden."""
    (task,) = ecs.describe_tasks(cluster=cluster, tasks=[arn])["tasks"]
    definition = ecs.describe_task_definition(taskDefinition=task["taskDefinitionArn"])
    (container,) = definition["taskDefinition"]["containerDefinitions"]
    (override,) = task["overrides"]["containerOverrides"]
    if override["name"] != container["name"]:
        raise ValueError(f"{override['name']} is no container of {task['taskDefinitionArn']}")
    pairs = [*container.get("environment", []), *override.get("environment", [])]
    environment = {one["name"]: one["value"] for one in pairs}
    command = override.get("command") or container["command"]
    containers.start(name_of(arn), container["image"], command, environment)


def name_of(arn: str) -> str:
    """Return the last part of a task's name."""
    return arn.rpartition("/")[2]


def main() -> None:
    """Look at the tasks again and again, until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    url, directory = sys.argv[1], Path(sys.argv[2])
    ecs = boto3.client("ecs", endpoint_url=url)
    containers = Containers(directory)
    running: dict[str, str] = {}
    prepare(ecs, url)
    print("ready", flush=True)
    try:
        while True:
            tasks = find_tasks(ecs)
            for arn in tasks.keys() - running.keys():
                start(ecs, containers, tasks[arn], arn)
                running[arn] = tasks[arn]
            for arn in running.keys() - tasks.keys():
                containers.stop(name_of(arn))
                del running[arn]
            ended = containers.reap()
            for arn in [one for one in running if name_of(one) in ended]:
                ecs.stop_task(cluster=running.pop(arn), task=arn)
            time.sleep(LOOK_SECONDS)
    finally:
        containers.stop_all()


if __name__ == "__main__":
    main()
