"""The overlay for GPUs fits together: the run file, the RayCluster that it names, the farm, the trainer."""

from __future__ import annotations

from envfarm.farm import KEEPER_PORT, TOKEN_VARIABLE
from envfarm.registry import default_registry
from rollout.run import read_run
from rollout.run_check import resolve
from tests.k8s.places import K8S, Object, objects
from trainer.run import RunFile


def by_name() -> dict[tuple[str, str], Object]:
    return {(one["kind"], one["metadata"]["name"]): one for one in objects("overlays/gpu")}


def gpus(template: Object) -> int:
    (container,) = template["spec"]["containers"]
    return container["resources"]["limits"].get("nvidia.com/gpu", 0)


def test_the_run_file_names_what_is_there() -> None:
    run, source = read_run(K8S / "overlays/gpu/run.yaml", RunFile)
    found = by_name()
    assert resolve(run, source, default_registry())
    assert ("Service", "keeper") in found and run.farm == f"http://keeper.envfarm.svc:{KEEPER_PORT}"
    (group,) = found["RayCluster", "rollout"]["spec"]["workerGroupSpecs"]
    assert run.ray is not None and run.ray.address == "ray://rollout-head-svc.envfarm.svc:10001"  # as KubeRay calls it
    assert (run.ray.workers, run.ray.gpus) == (group["replicas"], gpus(group["template"])) == (2, 1)
    assert run.engine.kind == "vllm"


def test_the_trainer_has_a_gpu_its_run_file_and_both_tokens() -> None:
    found = by_name()
    template = found["Job", "trainer"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert gpus(template) == 1
    configs = {v["configMap"]["name"] for v in template["spec"]["volumes"] if "configMap" in v}
    assert all(found["ConfigMap", name]["data"].keys() == {"run.yaml"} for name in configs) and len(configs) == 1
    assert container["command"] == ["envfarm", "train", "/etc/run/run.yaml"]
    secrets = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in container["env"] if "valueFrom" in e}
    assert secrets[TOKEN_VARIABLE] == {"name": "farm-token", "key": "token"}
    assert secrets["RAY_AUTH_TOKEN"] == {"name": found["RayCluster", "rollout"]["metadata"]["name"], "key": "auth_token"}
    claims = {v["persistentVolumeClaim"]["claimName"] for v in template["spec"]["volumes"] if "persistentVolumeClaim" in v}
    assert {("PersistentVolumeClaim", name) for name in claims} <= found.keys()


def test_whoever_rolls_out_has_the_label_that_opens_the_farm_and_its_token() -> None:
    cluster = by_name()["RayCluster", "rollout"]["spec"]
    (group,) = cluster["workerGroupSpecs"]
    for template in (cluster["headGroupSpec"]["template"], group["template"], by_name()["Job", "trainer"]["spec"]["template"]):
        assert template["metadata"]["labels"]["envfarm.role"] == "rollout"
    (container,) = group["template"]["spec"]["containers"]
    assert [one["name"] for one in container["env"]] == [TOKEN_VARIABLE]
