"""recipes/launch/jobset.yaml: of its kind's schema, and of one mind with itself."""

from typing import Any

import pytest
import torch.distributed.run as torchrun
import yaml

from clipfast.engine.cli import parse
from tests.engine.launching import REPOSITORY

FILE = REPOSITORY / "recipes" / "launch" / "jobset.yaml"


@pytest.fixture
def manifest() -> Any:
    return yaml.safe_load(FILE.read_text())


def dropped(given: Any, taken: Any, path: str = "") -> list[str]:
    """Where what the schema's types have taken differs from what was given. They add defaults."""
    if isinstance(given, dict) and isinstance(taken, dict):
        found = (dropped(value, taken.get(key), f"{path}/{key}") for key, value in given.items())
        return [each for part in found for each in part]
    if isinstance(given, list) and isinstance(taken, list) and len(given) == len(taken):
        pairs = enumerate(zip(given, taken, strict=True))
        return [each for n, (a, b) in pairs for each in dropped(a, b, f"{path}/{n}")]
    return [] if given == taken else [f"{path}: {given!r}, taken as {taken!r}"]


def taken(manifest: Any) -> Any:
    """The manifest as the types have it that are made from the kinds' OpenAPI schemas."""
    from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

    return JobsetV1alpha2JobSet.from_dict(manifest).to_dict()


def pod(manifest: Any) -> Any:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.needs("kubeflow_trainer_api")
def test_kubernetes_manifest_is_of_its_schema(manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert dropped(manifest, taken(manifest)) == []


@pytest.mark.needs("kubeflow_trainer_api")
def test_kubernetes_a_wrong_manifest_is_noticed(manifest):
    pod(manifest)["terminationGracePeriod"] = 900
    (found,) = dropped(manifest, taken(manifest))
    assert found.endswith("/terminationGracePeriod: 900, taken as None")
    del pod(manifest)["terminationGracePeriod"]
    pod(manifest)["terminationGracePeriodSeconds"] = "15 minutes"
    with pytest.raises(ValueError, match="terminationGracePeriodSeconds"):
        taken(manifest)


def test_kubernetes_manifest_starts_a_run_that_goes_on(manifest):
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (ranks,) = pod(manifest)["containers"]
    assert ranks["command"][:3] == ["python", "-m", "clipfast.torchrun"]
    variables = [each["name"] for each in ranks["env"]]
    words = [word.replace("$(NODE_RANK)", "7") for word in ranks["command"][3:]]
    assert "NODE_RANK" in variables
    given = torchrun.parse_args(words)
    assert int(given.nnodes) == job["parallelism"] == job["completions"]
    assert int(given.nproc_per_node) == ranks["resources"]["limits"]["nvidia.com/gpu"]
    assert given.node_rank == 7
    assert given.master_port == ranks["ports"][0]["containerPort"]
    name, replicated = manifest["metadata"]["name"], manifest["spec"]["replicatedJobs"][0]["name"]
    assert given.master_addr == f"{name}-{replicated}-0-0.{name}"
    namespace = {"__name__": "recipe"}
    exec((REPOSITORY / given.training_script).read_text(), namespace)
    config = parse(namespace["config"](), given.training_script_args)
    assert config.checkpoint.resume == "latest"
    mounts = [mount["mountPath"] for mount in ranks["volumeMounts"]]
    assert any(config.logging.dir.startswith(mount + "/") for mount in mounts)


def test_kubernetes_manifest_tries_everything_again_but_a_refusal(manifest):
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == pod(manifest)["containers"][0]["name"]
    (refused,) = manifest["spec"]["failurePolicy"]["rules"]
    assert refused["action"] == "FailJobSet"
    assert refused["onJobFailureReasons"] == ["PodFailurePolicy"]
    # What such a rule asks of its pods.
    assert pod(manifest)["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0


def test_kubernetes_manifest_mounts_what_it_declares(manifest):
    volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
    mounts = {mount["name"]: mount for mount in pod(manifest)["containers"][0]["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    assert mounts["shm"]["mountPath"] == "/dev/shm"
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
