"""What an LLMService becomes: pure functions, compared with what is expected of each field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quire_engine.config import EngineConfig
from quire_engine.flags import FlagParser, from_namespace
from quire_engine.server.settings import ServerSettings
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.claim import build_claim
from quire_operator.builders.desired import desired_objects
from quire_operator.builders.engines import engine_of
from quire_operator.builders.identity import TEMPLATE_HASH
from quire_operator.builders.pod import build_pod_template
from quire_operator.settings import Settings
from tests.operator.services import CIRCUMSTANCES, service


def pod(**spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = build_pod_template(service(**spec), CIRCUMSTANCES)["spec"]
    return found


def container(**spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = pod(**spec)["containers"][0]
    return found


def env(**spec: Any) -> dict[str, Any]:
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container(**spec)["env"]}


CACHED = replace(CIRCUMSTANCES, cached_revision="c0ffee")
ON_CLAIM: dict[str, Any] = {"model": {"source": "hf://org/name", "revision": "v1"}, "cache": {"claimName": "models"}}


def test_a_model_on_the_claim_is_read_from_it_alone_and_at_one_commit() -> None:
    found = build_pod_template(service(**ON_CLAIM), CACHED)["spec"]["containers"][0]
    assert "--revision=c0ffee" in found["args"]
    variables = {variable["name"]: variable["value"] for variable in found["env"]}
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert not variables["HF_MODULES_CACHE"].startswith(variables["HF_HOME"])
    assert {"name": "cache", "mountPath": "/models/cache", "readOnly": True} in found["volumeMounts"]


def test_a_token_is_for_pods_that_download_alone() -> None:
    built = service(**ON_CLAIM | {"model": {"source": "hf://org/name", "tokenSecretRef": {"name": "t", "key": "k"}}})
    for circumstances, has_token in ((CIRCUMSTANCES, True), (CACHED, False)):
        variables = build_pod_template(built, circumstances)["spec"]["containers"][0]["env"]
        assert any(variable["name"] == "HF_TOKEN" for variable in variables) is has_token


@pytest.mark.parametrize(
    ("asked", "known", "size"),
    [("200Gi", None, "200Gi"), ("200Gi", "300Gi", "300Gi"), ("200Gi", "204800Mi", "200Gi"), ("1Ti", "300Gi", "1Ti")],
    ids=["a new claim", "a larger one", "the same in other words", "a smaller one"],
)
def test_a_claim_asks_for_no_less_than_it_does(asked: str, known: str | None, size: str) -> None:
    circumstances = replace(CIRCUMSTANCES, claim_size=known)
    claim = build_claim(service(cache={"volume": {"size": asked}}), circumstances)
    assert claim is not None
    assert claim["spec"]["resources"]["requests"]["storage"] == size


def test_children_bear_the_name_and_are_owned() -> None:
    children = desired_objects(service(cache={"volume": {"size": "1Gi"}}), CIRCUMSTANCES)
    names = [(child["kind"], child["metadata"]["name"]) for child in children]
    assert names == [
        ("ServiceAccount", "llama-engine"),
        ("PersistentVolumeClaim", "llama-cache"),
        ("Service", "llama"),
        ("Service", "llama-pods"),
        ("PodDisruptionBudget", "llama-pdb"),
        ("Deployment", "llama"),
    ]
    for child in children:
        assert child["metadata"]["ownerReferences"][0]["controller"] is True
        assert child["metadata"]["labels"]["serving.quire.dev/llmservice"] == "llama"
        assert child["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "quire-operator"


def test_selectors_are_the_service_and_the_component_and_nothing_else() -> None:
    selector = {"serving.quire.dev/llmservice": "llama", "app.kubernetes.io/component": "engine"}
    built = service(podTemplate={"metadata": {"labels": {**dict.fromkeys(selector, "stolen"), "team": "search"}}})
    for child in desired_objects(built, CIRCUMSTANCES):
        found = child.get("spec", {}).get("selector")
        if found is not None:
            assert found.get("matchLabels", found) == selector
    labels = build_pod_template(built, CIRCUMSTANCES)["metadata"]["labels"]
    assert selector.items() <= labels.items()
    assert labels["team"] == "search"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, {"model": "/models/tiny"}),
        ({"model": {"source": "pvc://weights/a/b"}}, {"model": "/models/claim/a/b"}),
        ({"model": {"source": "pvc://weights"}}, {"model": "/models/claim"}),
        ({"model": {"source": "hf://org/name", "revision": "v1"}}, {"model": "org/name", "revision": "v1"}),
        ({"model": {"dtype": "bfloat16", "maxModelLen": 77}}, {"dtype": "bfloat16", "max_model_len": 77}),
        ({"model": {"trustRemoteCode": True}}, {"trust_remote_code": True}),
        ({"resources": {"gpu": {"count": 0}}}, {"device": "cpu", "tensor_parallel_size": 1}),
        ({"resources": {"gpu": {"count": 1}}}, {"device": "cuda"}),
        (
            {"engine": {"gpuMemoryUtilization": 0.85, "maxNumSeqs": 8, "maxNumBatchedTokens": 99, "swapSpaceGiB": 0}},
            {"gpu_memory_utilization": 0.85, "max_num_seqs": 8, "max_num_batched_tokens": 99, "swap_space": 0.0},
        ),
        (
            {"engine": {"blockSize": 64, "prefixCaching": False, "chunkedPrefill": False, "enforceEager": True}},
            {
                "block_size": 64,
                "enable_prefix_caching": False,
                "enable_chunked_prefill": False,
                "enforce_eager": True,
            },
        ),
        ({"engine": {"maxNumSeqs": 8, "args": ["--max-num-seqs=9"]}}, {"max_num_seqs": 9}),
    ],
)
def test_the_engine_understands_every_flag_as_it_was_meant(spec: dict[str, Any], expected: dict[str, Any]) -> None:
    parser = FlagParser("engine")
    parser.add_settings(EngineConfig)
    parser.add_settings(ServerSettings)
    config = from_namespace(EngineConfig, parser.parse_args(engine_of(service(**spec)).args))
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_server_listens_drains_and_calls_the_model_as_the_spec_says() -> None:
    parser = FlagParser("engine")
    parser.add_settings(EngineConfig)
    parser.add_settings(ServerSettings)
    built = service(model={"name": "served", "aliases": ["a", "b"]}, rollout={"drainSeconds": 33})
    settings = from_namespace(ServerSettings, parser.parse_args(engine_of(built).args))
    assert (settings.host, settings.port, settings.shutdown_timeout) == ("0.0.0.0", 8000, 33)
    assert tuple(settings.served_model_name) == ("served", "a", "b")


def test_without_any_tuning_the_engine_gets_no_tuning_flag() -> None:
    assert list(engine_of(service()).args) == [
        "--model=/models/tiny",
        "--served-model-name",
        "llama",
        "--host=0.0.0.0",
        "--port=8000",
        "--shutdown-timeout=180",
        "--device=cpu",
    ]


def test_tensor_parallel_ranks_take_as_many_gpus() -> None:
    spec = {"parallelism": {"tensor": 4}, "resources": {"gpu": {"count": None}}}
    assert "--tensor-parallel-size=4" in engine_of(service(**spec)).args
    assert container(**spec)["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_ranks_on_the_cpu_are_processes_of_one_pod_or_of_several() -> None:
    spec = {"parallelism": {"tensor": 2, "pipeline": 2, "nodes": 2}, "resources": {"gpu": {"count": 0}}}
    args = engine_of(service(**spec)).args
    assert {"--tensor-parallel-size=2", "--pipeline-parallel-size=2", "--nnodes=2", "--device=cpu"} <= set(args)
    assert "--node-rank=$(LWS_WORKER_INDEX)" in args
    assert "--master-addr=$(LWS_LEADER_ADDRESS)" in args


def test_memory_is_requested_and_limited_and_cpu_only_requested() -> None:
    resources = container(resources={"cpu": "3", "memory": "6Gi"})["resources"]
    assert resources == {"requests": {"cpu": "3", "memory": "6Gi"}, "limits": {"memory": "6Gi"}}
    assert container(resources={"cpu": "3", "cpuLimit": "4"})["resources"]["limits"]["cpu"] == "4"


@pytest.mark.parametrize(
    ("resources", "threads"),
    [({"cpu": "500m"}, "1"), ({"cpu": "2500m"}, "2"), ({"cpu": "2", "cpuLimit": "6"}, "6")],
)
def test_threads_follow_the_limit_else_the_request(resources: dict[str, str], threads: str) -> None:
    assert env(resources=resources)["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize(
    ("resources", "size"),
    [
        ({"memory": "4Gi"}, "1024Mi"),
        ({"memory": "64Gi"}, "8192Mi"),
        ({"memory": "4Gi", "sharedMemory": "100Mi"}, "100Mi"),
    ],
)
def test_shared_memory_is_a_quarter_of_memory_unless_set(resources: dict[str, str], size: str) -> None:
    assert pod(resources=resources)["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": size}


def test_the_pod_passes_the_restricted_level_of_pod_security() -> None:
    spec = pod()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == "llama-engine"


def test_every_place_that_is_written_to_has_a_volume() -> None:
    paths = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    assert paths == {"/dev/shm": "shm", "/tmp": "tmp", "/home/quire": "home"}
    assert env()["HOME"] == "/home/quire"


def test_the_grace_period_leaves_room_for_the_drain_and_the_running_requests() -> None:
    spec = pod(rollout={"drainSeconds": 100})
    assert spec["terminationGracePeriodSeconds"] == 30 + 100 + 15
    assert spec["containers"][0]["lifecycle"] == {"preStop": {"exec": {"command": ["quire-engine", "drain"]}}}
    assert spec["containers"][0]["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_slow_start_is_waited_for_second_by_second() -> None:
    probe = container(probes={"startupSeconds": 900})["startupProbe"]
    assert (probe["periodSeconds"], probe["failureThreshold"]) == (1, 900)
    assert probe["httpGet"] == {"path": "/health", "port": "http", "scheme": "HTTP"}


def test_a_hub_model_is_kept_in_the_pod_without_a_cache_and_on_the_claim_with_one() -> None:
    hub = {"source": "hf://org/name", "tokenSecretRef": {"name": "hf", "key": "token"}}
    assert env(model=hub)["HF_HOME"] == "/home/quire/huggingface"
    assert env(model=hub)["HF_TOKEN"] == {"secretKeyRef": {"name": "hf", "key": "token"}}
    assert env(model=hub)["HUGGING_FACE_HUB_TOKEN"] == env(model=hub)["HF_TOKEN"]
    for cache, claim in (({"claimName": "weights"}, "weights"), ({"volume": {"size": "9Gi"}}, "llama-cache")):
        spec = pod(model=hub, cache=cache)
        assert spec["volumes"][-1] == {"name": "cache", "persistentVolumeClaim": {"claimName": claim}}
        assert spec["containers"][0]["volumeMounts"][-1] == {"name": "cache", "mountPath": "/models/cache"}
        assert env(model=hub, cache=cache)["HF_HOME"] == "/models/cache"
        assert "HF_HUB_OFFLINE" not in env(model=hub, cache=cache)


def test_a_mirror_of_the_operators_settings_reaches_the_pod_and_a_users_own_wins() -> None:
    settings = Settings(hub_endpoint="http://mirror")
    built = service(model={"source": "hf://org/name"})
    variables = build_pod_template(built, Circumstances(settings))["spec"]["containers"][0]["env"]
    assert {"name": "HF_ENDPOINT", "value": "http://mirror"} in variables
    own = service(model={"source": "hf://org/name"}, engine={"env": [{"name": "HF_ENDPOINT", "value": "http://own"}]})
    variables = build_pod_template(own, Circumstances(settings))["spec"]["containers"][0]["env"]
    assert [v for v in variables if v["name"] == "HF_ENDPOINT"] == [{"name": "HF_ENDPOINT", "value": "http://own"}]


def test_a_model_that_is_there_already_never_waits_for_a_hub() -> None:
    assert env()["HF_HUB_OFFLINE"] == "1"


def test_a_claim_is_mounted_read_only() -> None:
    spec = pod(model={"source": "pvc://weights/llama"})
    volume = {"name": "model", "persistentVolumeClaim": {"claimName": "weights", "readOnly": True}}
    assert spec["volumes"][-1] == volume
    mount = {"name": "model", "mountPath": "/models/claim", "readOnly": True}
    assert spec["containers"][0]["volumeMounts"][-1] == mount


def test_the_api_key_is_referenced_and_never_read() -> None:
    key = env(security={"apiKeySecretRef": {"name": "keys", "key": "llama"}})["QUIRE_API_KEY"]
    assert key == {"secretKeyRef": {"name": "keys", "key": "llama"}}


def test_gpus_choose_the_node_without_shutting_out_the_users_affinity() -> None:
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    zones = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in "ab"]
    affinity = {"nodeAffinity": {required: {"nodeSelectorTerms": zones}}, "podAffinity": {"kept": True}}
    spec = pod(
        parallelism={"tensor": 2},
        resources={"gpu": {"count": 2, "product": "H100"}},
        scheduling={"affinity": affinity},
    )
    product = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["H100"]}
    count = {"key": "nvidia.com/gpu.count", "operator": "Gt", "values": ["1"]}
    terms = spec["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"]
    assert [term["matchExpressions"][0]["values"] for term in terms] == [["a"], ["b"]]
    assert all(term["matchExpressions"][1:] == [product, count] for term in terms)
    assert spec["affinity"]["podAffinity"] == {"kept": True}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_without_a_product_any_node_with_the_resource_will_do() -> None:
    assert "affinity" not in pod(resources={"gpu": {"count": 1}})
    assert "tolerations" not in pod()


def test_replicas_spread_over_nodes_unless_told_otherwise() -> None:
    (spread,) = pod()["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    wish = {"topologyKey": "zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}
    (spread,) = pod(scheduling={"topologySpreadConstraints": [wish]})["topologySpreadConstraints"]
    assert wish.items() <= spread.items()
    assert spread["labelSelector"]["matchLabels"]["serving.quire.dev/llmservice"] == "llama"


def test_a_rollout_never_goes_below_the_wanted_number_by_default() -> None:
    deployment = desired_objects(service(probes={"startupSeconds": 100}), CIRCUMSTANCES)[-1]
    assert deployment["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    assert deployment["spec"]["progressDeadlineSeconds"] == 700
    recreate = desired_objects(service(rollout={"strategy": "Recreate"}), CIRCUMSTANCES)[-1]
    assert recreate["spec"]["strategy"] == {"type": "Recreate"}


def test_replicas_are_written_only_when_the_spec_has_them() -> None:
    assert "replicas" not in desired_objects(service(), CIRCUMSTANCES)[-1]["spec"]
    assert desired_objects(service(replicas=0), CIRCUMSTANCES)[-1]["spec"]["replicas"] == 0


def test_a_suspended_service_keeps_its_claim_alone() -> None:
    children = desired_objects(service(suspend=True, cache={"volume": {"size": "1Gi"}}), CIRCUMSTANCES)
    assert [child["kind"] for child in children] == ["PersistentVolumeClaim"]


def test_the_template_hash_changes_with_the_template_and_only_then() -> None:
    def hash_of(**spec: Any) -> str:
        found: str = build_pod_template(service(**spec), CIRCUMSTANCES)["metadata"]["annotations"][TEMPLATE_HASH]
        return found

    assert hash_of() == hash_of(replicas=3) == hash_of(service={"port": 80})
    assert hash_of() != hash_of(engine={"maxNumSeqs": 3})


def test_building_leaves_the_service_as_it_was() -> None:
    wish = {"topologyKey": "zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}
    built = service(
        scheduling={"topologySpreadConstraints": [wish], "affinity": {"nodeAffinity": {}}},
        podTemplate={"spec": {"containers": [{"name": "engine", "env": [{"name": "A"}]}]}},
        resources={"gpu": {"count": 1, "product": "H100"}},
    )
    before = built.model_dump_json()
    assert desired_objects(built, CIRCUMSTANCES) == desired_objects(built, CIRCUMSTANCES)
    assert built.model_dump_json() == before
