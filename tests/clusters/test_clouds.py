"""Kubernetes, ECS, YARN: what would be sent, checked against the libraries' own schemas."""

from __future__ import annotations

import inspect
from importlib.resources import files
from typing import Any

import pytest
import yaml

from hepdask import OptionError
from hepdask.clusters import choose_cluster

OPTIONS = {"workers": 3, "memory": "3 GB", "environment": {"A": "x y"}}


def rendered(word: str, **options: Any) -> Any:
    return yaml.safe_load(choose_cluster(word, options).render())


def local_schema(node: Any, definitions: dict[str, Any]) -> Any:
    """Put the operator's own definitions where they are referred to; those of Kubernetes are checked apart."""
    if isinstance(node, dict):
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            return local_schema(definitions[name], definitions) if name in definitions else {}
        return {key: local_schema(value, definitions) for key, value in node.items()}
    return node


def test_the_operator_and_kubernetes_accept_the_manifest() -> None:
    pytest.importorskip("dask_kubernetes", reason="pip install 'hepdask[kubernetes]'")
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")
    manifest = rendered("kubernetes", **OPTIONS, image="my/image", name="mine")
    resources = files("dask_kubernetes").joinpath("operator", "customresources")
    definitions = yaml.safe_load(resources.joinpath("templates.yaml").read_text())["definitions"]
    schema = local_schema(definitions["dask.k8s.api.v1.DaskCluster"], definitions)
    jsonschema.validate(manifest, schema)
    version = validate.latest_version().rpartition(".")[0]
    for part in ("worker", "scheduler"):
        spec = manifest["spec"][part]["spec"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        validate.validate(pod, version, strict=True)
    assert manifest["metadata"]["name"] == "mine"
    worker = manifest["spec"]["worker"]
    assert worker["replicas"] == 3
    (container,) = worker["spec"]["containers"]
    assert container["image"] == "my/image"
    assert container["args"][:4] == ["dask", "worker", "--nthreads", "1"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "3000000000"}
    assert {"name": "A", "value": "x y"} in container["env"]
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in container["env"]
    (scheduler,) = manifest["spec"]["scheduler"]["spec"]["containers"]
    assert scheduler["args"][:2] == ["dask", "scheduler"]


def test_names_that_nobody_has() -> None:
    pytest.importorskip("dask_kubernetes", reason="pip install 'hepdask[kubernetes]'")
    first, second = (rendered("kubernetes")["metadata"]["name"] for _ in range(2))
    assert first != second
    assert first.startswith("hepdask-")


def test_fargate_accepts_the_arguments() -> None:
    aws = pytest.importorskip("dask_cloudprovider.aws", reason="pip install 'hepdask[ecs]'")
    choice = choose_cluster("ecs", {**OPTIONS, "subnets": ["a"], "region": "eu-south-1"})
    code = choice.render().replace("dask_cloudprovider.aws.FargateCluster(", "dict(")
    arguments = eval(code)  # our own text
    known = inspect.signature(aws.ECSCluster.__init__).parameters
    assert set(arguments) <= set(known)
    assert (arguments["worker_cpu"], arguments["worker_mem"]) == (1024, 3 * 1024)
    assert arguments["worker_nthreads"] == 1
    assert arguments["subnets"] == ["a"]
    assert arguments["environment"]["A"] == "x y"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"threads": 3}, "threads is 3: Fargate has 1, 2, 4, 8, 16"),
        ({"memory": "9 GiB"}, "Fargate has 8 GiB at most with 1 vCPU"),
    ],
)
def test_sizes_that_fargate_does_not_have(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        choose_cluster("ecs", options).render()


def test_yarn_accepts_the_application() -> None:
    skein = pytest.importorskip("skein", reason="pip install 'hepdask[yarn]'")
    text = choose_cluster("yarn", {**OPTIONS, "queue": "q", "python": "python:///x"}).render()
    application = skein.ApplicationSpec.from_yaml(text)
    worker = application.services["dask.worker"]
    assert application.queue == "q"
    assert worker.instances == 3
    assert worker.resources.vcores == 1
    assert worker.resources.memory == 2862  # MiB, rounded up
    assert worker.env["A"] == "x y"
