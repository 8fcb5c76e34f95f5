"""Other engines: the same LLMService becomes their flags, variables and probes, or is refused by name."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import yaml

from docs.write_engines import ENGINES, FIELDS, outcome, service
from quire_operator.api import custom_resource_definition
from quire_operator.api.llmservice import LLMService
from quire_operator.api.model import Model
from quire_operator.builders.circumstances import EVERYTHING, Circumstances
from quire_operator.builders.desired import desired_objects
from quire_operator.builders.engines import Metrics, engine_of
from quire_operator.builders.pod import build_pod_template
from quire_operator.kubeapi.resources import DEPLOYMENTS
from quire_operator.plan.acceptance import refusal_of
from quire_operator.plan.service_plan import cannot_be_planned
from quire_operator.reconcile.faults import pod_fault
from quire_operator.settings import Settings
from tests.operator.api_client import Namespace, eventually
from tests.operator.conftest import REPOSITORY
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import CIRCUMSTANCES, SETTINGS, manifest

OTHERS = [engine for engine in ENGINES if engine != "quire"]
ON_CPU: dict[str, Any] = {"resources": {"gpu": {"count": 0}}}


def container(built: LLMService, settings: Settings = SETTINGS) -> dict[str, Any]:
    (found,) = build_pod_template(built, Circumstances(settings))["spec"]["containers"]
    return dict(found)


def env(built: LLMService, settings: Settings = SETTINGS) -> dict[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container(built, settings)["env"]}


def args(engine: str, /, **spec: Any) -> list[str]:
    built = service(engine, **spec)
    assert refusal_of(built.spec) is None
    return list(engine_of(built).args)


def test_vllm_gets_its_model_first_and_everything_else_by_flags() -> None:
    found = args(
        "vllm",
        model={
            "revision": "v1",
            "name": "llama",
            "aliases": ["other"],
            "dtype": "bfloat16",
            "quantization": "fp8",
            "kvCacheDtype": "fp8",
            "maxModelLen": 4096,
            "trustRemoteCode": True,
        },
        engine={
            "gpuMemoryUtilization": 0.8,
            "maxNumSeqs": 8,
            "maxNumBatchedTokens": 1024,
            "blockSize": 32,
            "prefixCaching": False,
            "chunkedPrefill": False,
            "enforceEager": True,
            "args": ["--max-num-seqs=9"],
        },
        parallelism={"tensor": 4, "pipeline": 2},
        rollout={"drainSeconds": 60},
    )
    assert found == [
        "org/model",
        "--revision=v1",
        "--served-model-name",
        "llama",
        "other",
        "--dtype=bfloat16",
        "--quantization=fp8",
        "--kv-cache-dtype=fp8",
        "--max-model-len=4096",
        "--trust-remote-code",
        "--host=0.0.0.0",
        "--port=8000",
        "--shutdown-timeout=60",
        "--gpu-memory-utilization=0.8",
        "--max-num-seqs=8",
        "--max-num-batched-tokens=1024",
        "--block-size=32",
        "--no-enable-prefix-caching",
        "--no-enable-chunked-prefill",
        "--enforce-eager",
        "--tensor-parallel-size=4",
        "--pipeline-parallel-size=2",
        "--max-num-seqs=9",
    ]


def test_vllm_gets_no_flag_for_what_is_its_default() -> None:
    expected = ["org/model", "--served-model-name", "name", "--host=0.0.0.0", "--port=8000", "--shutdown-timeout=180"]
    assert args("vllm") == expected
    assert args("vllm", **ON_CPU) == expected


@pytest.mark.parametrize("engine", ["quire", "vllm"])
def test_adapters_are_found_wherever_they_are(engine: str) -> None:
    adapters = [
        {"name": "a=b", "source": "hf://org/lora"},
        {"name": "sql", "source": "pvc://adapters/sql"},
        {"name": "own", "source": "pvc://models/own"},
        {"name": "here", "source": "image:///lora"},
    ]
    built = service(engine, model={"source": "pvc://models/llama", "adapters": adapters})
    assert refusal_of(built.spec) is None
    flags = list(engine_of(built).args)
    modules = [json.loads(text) for text in flags[flags.index("--lora-modules") + 1 :][:4]]
    assert flags[flags.index("--lora-modules") - 1] == "--enable-lora"
    assert {module["name"]: module["path"] for module in modules} == {
        "a=b": "org/lora",
        "sql": "/models/claims/adapters/sql",
        "own": "/models/claim/own",
        "here": "/lora",
    }
    spec = build_pod_template(built, CIRCUMSTANCES)["spec"]
    claims = {v["name"]: v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
    mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    found = {claims[name]["claimName"]: mounts[name]["mountPath"] for name in claims}
    assert found == {"models": "/models/claim", "adapters": "/models/claims/adapters"}
    assert all(claims[name]["readOnly"] and mounts[name]["readOnly"] for name in claims)
    assert "HF_HUB_OFFLINE" not in env(built)  # one adapter is on the hub


@pytest.mark.parametrize(
    ("wish", "config"),
    [
        ({"method": "ngram", "numTokens": 3}, {"method": "ngram", "num_speculative_tokens": 3}),
        (
            {"method": "draft", "model": "pvc://drafts/small"},
            {"method": "draft_model", "model": "/models/claims/drafts/small", "num_speculative_tokens": 5},
        ),
    ],
)
def test_vllm_speculates_as_the_spec_says(wish: dict[str, Any], config: dict[str, Any]) -> None:
    (flag,) = [flag for flag in args("vllm", engine={"speculative": wish}) if flag.startswith("--speculative")]
    assert json.loads(flag.removeprefix("--speculative-config=")) == config


def test_tgi_gets_everything_by_flags_and_the_apis_defaults_where_its_own_differ() -> None:
    assert args("tgi") == [
        "--model-id=org/model",
        "--hostname=0.0.0.0",
        "--port=8080",
        "--max-concurrent-requests=256",
        "--max-best-of=20",
        "--num-shard=1",
        "--cuda-memory-fraction=0.9",
    ]
    found = args(
        "tgi",
        model={
            "revision": "v1",
            "quantization": "awq",
            "kvCacheDtype": "fp8",
            "maxModelLen": 4096,
            "trustRemoteCode": True,
            "adapters": [
                {"name": "org/lora", "source": "hf://org/lora"},
                {"name": "sql", "source": "image:///lora"},
            ],
        },
        engine={
            "gpuMemoryUtilization": 0.8,
            "maxNumSeqs": 8,
            "maxNumBatchedTokens": 1024,
            "enforceEager": True,
            "speculative": {"method": "ngram", "numTokens": 3},
            "args": ["--max-stop-sequences=8"],
        },
        parallelism={"tensor": 2},
    )
    assert found == [
        "--model-id=org/model",
        "--revision=v1",
        "--quantize=awq",
        "--kv-cache-dtype=fp8_e4m3fn",
        "--max-input-tokens=4095",
        "--max-total-tokens=4096",
        "--trust-remote-code",
        "--lora-adapters=org/lora,sql=/lora",
        "--hostname=0.0.0.0",
        "--port=8080",
        "--max-concurrent-requests=8",
        "--max-best-of=20",
        "--max-batch-prefill-tokens=1024",
        "--cuda-graphs=0",
        "--speculate=3",
        "--num-shard=2",
        "--cuda-memory-fraction=0.8",
        "--max-stop-sequences=8",
    ]
    assert "--dtype=float16" in args("tgi", model={"dtype": "float16"})
    assert "--cuda-memory-fraction=0.9" not in args("tgi", **ON_CPU)
    assert env(service("tgi", engine={"prefixCaching": False}))["PREFIX_CACHING"] == "0"


@pytest.mark.parametrize("own", [["--max-best-of=4"], ["--max-best-of", "4"]])
def test_tgi_gets_no_flag_twice_since_it_would_not_start(own: list[str]) -> None:
    found = args("tgi", engine={"args": own})
    assert found[-len(own) :] == own
    assert [flag for flag in found if flag.startswith("--max-best-of")] == own[:1]


def test_tgi_keeps_models_where_every_other_engine_does() -> None:
    cached = env(service("tgi", cache={"claimName": "models"}))
    assert (cached["HF_HOME"], cached["HUGGINGFACE_HUB_CACHE"]) == ("/models/cache", "/models/cache/hub")
    own = env(service("tgi"))
    assert own["HUGGINGFACE_HUB_CACHE"] == f"{own['HF_HOME']}/hub"
    assert "HUGGINGFACE_HUB_CACHE" not in env(service("tgi", model={"source": "image:///models/tiny"}))


def test_trtllm_is_started_by_its_command() -> None:
    built = service(
        "trtllm",
        model={"revision": "v1", "name": "llama", "kvCacheDtype": "fp8", "maxModelLen": 4096, "trustRemoteCode": True},
        engine={
            "gpuMemoryUtilization": 0.8,
            "maxNumSeqs": 8,
            "maxNumBatchedTokens": 1024,
            "args": ["--config=/etc/trtllm.yaml"],
        },
        parallelism={"tensor": 2, "pipeline": 2},
    )
    assert refusal_of(built.spec) is None
    assert container(built)["command"] == ["trtllm-serve"]
    assert container(built)["args"] == [
        "org/model",
        "--served_model_name=llama",
        "--revision=v1",
        "--kv_cache_dtype=fp8",
        "--max_seq_len=4096",
        "--trust_remote_code",
        "--host=0.0.0.0",
        "--port=8000",
        "--backend=pytorch",
        "--tp_size=2",
        "--pp_size=2",
        "--max_batch_size=8",
        "--kv_cache_free_gpu_memory_fraction=0.8",
        "--max_num_tokens=1024",
        "--enable_chunked_prefill",
        "--config=/etc/trtllm.yaml",
    ]
    assert "--max_batch_size=256" in args("trtllm")
    assert "--enable_chunked_prefill" not in args("trtllm", engine={"chunkedPrefill": False})


def test_a_custom_engine_is_started_as_the_spec_says_and_told_what_to_serve() -> None:
    metrics = {"path": "/prom", "waiting": "app:waiting", "timeToFirstToken": "app_ttft_seconds"}
    built = service(
        "custom",
        model={"source": "hf://org/model", "name": "llama", "revision": "v1"},
        engine={
            "command": ["serve", "$(MODEL)"],
            "args": ["--port=$(PORT)"],
            "port": 9000,
            "healthPath": "/ready",
            "metrics": metrics,
        },
        security={"apiKeySecretRef": {"name": "keys", "key": "llama"}},
    )
    assert refusal_of(built.spec) is None
    found = container(built)
    assert (found["command"], found["args"]) == (["serve", "$(MODEL)"], ["--port=$(PORT)"])
    assert found["ports"][0]["containerPort"] == 9000
    assert {found[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        "/ready"
    }
    told = env(built)
    expected = {"MODEL": "org/model", "SERVED_MODEL_NAME": "llama", "PORT": "9000", "REVISION": "v1"}
    assert expected.items() <= told.items()
    assert told["API_KEY"] == {"secretKeyRef": {"name": "keys", "key": "llama"}}
    engine = engine_of(built)
    assert engine.metrics == Metrics(waiting="app:waiting", time_to_first_token="app_ttft_seconds")
    annotations = build_pod_template(built, CIRCUMSTANCES)["metadata"]["annotations"]
    assert (annotations["prometheus.io/port"], annotations["prometheus.io/path"]) == ("9000", "/prom")


def test_a_custom_engine_of_few_words_gets_the_usual_port_and_path() -> None:
    built = service("custom", model={"source": "pvc://models/llama"})
    assert env(built)["PORT"] == "8000"
    assert env(built)["MODEL"] == "/models/claim/llama"
    assert container(built)["readinessProbe"]["httpGet"]["path"] == "/health"
    assert "REVISION" not in env(built)


@pytest.mark.parametrize(
    ("engine", "port", "key"),
    [("vllm", 8000, "VLLM_API_KEY"), ("tgi", 8080, "API_KEY"), ("quire", 8000, "QUIRE_API_KEY")],
)
def test_each_engine_listens_and_reads_its_key_where_it_is_used_to(engine: str, port: int, key: str) -> None:
    built = service(engine, security={"apiKeySecretRef": {"name": "keys", "key": "llama"}})
    assert container(built)["ports"][0]["containerPort"] == port
    assert env(built)[key] == {"secretKeyRef": {"name": "keys", "key": "llama"}}
    headless = next(o for o in desired_objects(built, Circumstances(SETTINGS)) if o["metadata"]["name"] == "name-pods")
    assert headless["spec"]["ports"][0]["port"] == port


@pytest.mark.parametrize("engine", OTHERS)
def test_an_engine_that_cannot_drain_is_waited_for_by_the_kubelet(engine: str) -> None:
    built = service(engine, rollout={"drainSeconds": 60})
    assert container(built)["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert build_pod_template(built, CIRCUMSTANCES)["spec"]["terminationGracePeriodSeconds"] == 5 + 60 + 15


@pytest.mark.parametrize("engine", OTHERS)
def test_an_image_made_for_root_runs_hardened_with_every_cache_in_its_home(engine: str) -> None:
    built = service(engine)
    assert container(built)["securityContext"]["readOnlyRootFilesystem"] is True
    assert build_pod_template(built, CIRCUMSTANCES)["spec"]["securityContext"]["runAsUser"] == 10001
    told = env(built)
    assert told["USER"]  # torch asks for a name, and the image has none for our uid
    assert told["DO_NOT_TRACK"] == "1"
    caches = {name: value for name, value in told.items() if name.endswith(("_CACHE_DIR", "_CACHE_ROOT", "_HOME"))}
    assert {"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME", "HF_HOME"} <= caches.keys()
    assert all(value.startswith("/home/quire/") for value in caches.values())


def test_metrics_carry_the_names_of_their_engine() -> None:
    for metrics in (engine_of(service("vllm")).metrics, engine_of(service("quire")).metrics):
        assert (metrics.waiting, metrics.running) == ("vllm:num_requests_waiting", "vllm:num_requests_running")
        assert metrics.time_to_first_token == "vllm:time_to_first_token_seconds"
        assert metrics.time_per_output_token == "vllm:request_time_per_output_token_seconds"
    tgi = engine_of(service("tgi")).metrics
    assert (tgi.waiting, tgi.running, tgi.time_to_first_token) == ("tgi_queue_size", "tgi_batch_current_size", None)
    assert tgi.time_per_output_token == "tgi_request_mean_time_per_token_duration"


def monitored(engine: str, /, **spec: Any) -> bool:
    children = desired_objects(service(engine, **spec), Circumstances(SETTINGS, EVERYTHING))
    return "ServiceMonitor" in {child["kind"] for child in children}


@pytest.mark.parametrize("engine", ["trtllm", "custom"])
def test_what_tells_prometheus_nothing_is_not_scraped(engine: str) -> None:
    built = service(engine)
    assert engine_of(built).metrics == Metrics()
    assert not any("prometheus" in name for name in build_pod_template(built, CIRCUMSTANCES)["metadata"]["annotations"])
    assert not monitored(engine)
    assert monitored(engine, monitoring={"serviceMonitor": "enabled"})  # whoever made it tell something
    assert monitored("tgi")


IGNORED = {("model.name", "tgi"), ("model.aliases", "tgi")}
"""TGI answers whatever name a request asks for."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("field", FIELDS)
def test_no_field_is_ignored(field: str, engine: str) -> None:
    assert bool(outcome(engine, FIELDS[field])) is ((field, engine) not in IGNORED)


def test_every_field_that_an_engine_may_have_a_flag_for_is_in_the_table() -> None:
    (version,) = custom_resource_definition()["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    fields = {f"{group}.{name}" for group in ("model", "engine", "parallelism") for name in spec[group]["properties"]}
    own = {"type", "image", "command", "port", "healthPath", "metrics", "args", "env"}
    fields -= {f"engine.{name}" for name in own} | {"parallelism.nodes", "parallelism.exclusiveTopology"}
    assert fields <= {field.split(":")[0] for field in FIELDS}


def test_a_refusal_names_the_engine_and_every_field_with_what_to_write() -> None:
    built = service(
        "tgi",
        model={"dtype": "float32", "quantization": "awq"},
        engine={"blockSize": 32, "speculative": {"method": "draft", "model": "hf://a/b"}},
        parallelism={"pipeline": 2},
    )
    refusal = refusal_of(built.spec)
    assert refusal is not None
    assert refusal.reason == "NotSupportedByEngine"
    assert refusal.message == (
        "spec.engine.type tgi does not support "
        "spec.model.dtype (write auto, or without quantization bfloat16 or float16), "
        "spec.engine.blockSize (leave it out), "
        "spec.engine.speculative (write method ngram), "
        "spec.parallelism.pipeline (write 1, and raise tensor)"
    )


@pytest.mark.parametrize(
    ("engine", "spec", "field"),
    [
        ("trtllm", {"model": {"quantization": "awq"}}, "spec.model.quantization"),
        ("vllm", {"engine": {"swapSpaceGiB": 8}}, "spec.engine.swapSpaceGiB"),
        ("tgi", {"model": {"dtype": "float16", "quantization": "awq"}}, "spec.model.dtype"),
        ("vllm", {"model": {"quantization": "int8"}}, "spec.model.quantization"),
        ("tgi", {"model": {"quantization": "int8"}}, "spec.model.quantization"),
        ("tgi", {"model": {"adapters": [{"name": "sql", "source": "hf://org/lora"}]}}, "spec.model.adapters"),
        ("tgi", {"model": {"adapters": [{"name": "a,b", "source": "image:///lora"}]}}, "spec.model.adapters"),
        ("trtllm", ON_CPU, "spec.resources.gpu.count"),
        ("trtllm", {"security": {"apiKeySecretRef": {"name": "a", "key": "b"}}}, "spec.security.apiKeySecretRef"),
        ("custom", {"engine": {"maxNumSeqs": 8}}, "spec.engine.maxNumSeqs"),
    ],
)
def test_what_an_engine_lacks_is_refused(engine: str, spec: dict[str, Any], field: str) -> None:
    refusal = refusal_of(service(engine, **spec).spec)
    assert refusal is not None
    assert refusal.message.startswith(f"spec.engine.type {engine} does not support {field} (")


def test_what_is_not_built_in_quire_is_told_apart_from_what_others_lack() -> None:
    spec = {"model": {"kvCacheDtype": "fp8"}}
    refusal = refusal_of(service("quire", **spec).spec)
    assert refusal is not None
    assert refusal.reason == "NotSupportedYet"
    assert refusal_of(service("vllm", **spec).spec) is None


@pytest.mark.parametrize("engine", ["tgi", "trtllm", "custom"])
def test_memory_that_is_divided_otherwise_is_not_planned(engine: str) -> None:
    why = cannot_be_planned(service(engine).spec)
    assert why is not None
    assert why.reason == "OtherEngine"
    assert engine in why.message


def test_vllm_is_planned_on_a_gpu_and_as_far_as_its_fields_are_counted() -> None:
    assert cannot_be_planned(service("vllm").spec) is None
    on_cpu = cannot_be_planned(service("vllm", **ON_CPU).spec)
    assert on_cpu is not None
    assert on_cpu.reason == "OtherEngine"
    for spec in ({"model": {"kvCacheDtype": "fp8"}}, {"engine": {"speculative": {"method": "ngram"}}}):
        why = cannot_be_planned(service("vllm", **spec).spec)
        assert why is not None
        assert why.reason == "NotPlanned"
    short = cannot_be_planned(service("vllm", engine={"args": ["-tp", "2"]}).spec)
    assert short is not None
    assert short.reason == "OwnArguments"


@pytest.mark.parametrize(("engine", "reason"), [("quire", "ModelNotFound"), ("vllm", "EngineFailed")])
def test_only_quires_own_last_words_name_a_reason(engine: str, reason: str) -> None:
    ended = {"exitCode": 1, "message": "ModelNotFound: no such model"}
    pod = {
        "metadata": {"name": "p"},
        "status": {"containerStatuses": [{"name": "engine", "lastState": {"terminated": ended}}]},
    }
    fault = pod_fault(service(engine), [pod], None)
    assert fault is not None
    assert fault.reason == reason
    assert "no such model" in fault.message


@pytest.mark.control_plane
@pytest.mark.parametrize("engine", ENGINES)
def test_the_api_server_takes_what_every_field_becomes(namespace: Namespace, engine: str) -> None:
    for change in FIELDS.values():
        built = service(engine, **change)
        if refusal_of(built.spec) is not None:
            continue
        for child in desired_objects(built, Circumstances(SETTINGS)):
            if child["kind"] == "Deployment":
                body = {**child, "metadata": {"name": "name", "namespace": namespace.name}}
                path = f"{DEPLOYMENTS.path(namespace.name)}?fieldValidation=Strict&dryRun=All"
                namespace.api.request("POST", path, body)


@pytest.mark.control_plane
def test_another_engine_becomes_a_deployment_and_what_it_lacks_a_condition(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(manifest(engine={"type": "vllm", "image": "vllm/vllm-openai:v0.32.0"}))
    found = eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    (engine,) = found["spec"]["template"]["spec"]["containers"]
    assert engine["image"] == "vllm/vllm-openai:v0.32.0"
    assert engine["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}
    namespace.change("llama", {"engine": {"swapSpaceGiB": 8}})
    condition = eventually(lambda: (c := namespace.condition("llama", "Accepted")) and c["status"] == "False" and c)
    assert condition["reason"] == "NotSupportedByEngine"
    assert "vllm does not support spec.engine.swapSpaceGiB (leave it out)" in condition["message"]
    assert namespace.find(DEPLOYMENTS, "llama")


def test_there_is_a_sample_of_each_engine() -> None:
    bodies = [yaml.safe_load(file.read_text()) for file in (REPOSITORY / "manifests/samples").glob("*.yaml")]
    assert {body["spec"].get("engine", {}).get("type", "quire") for body in bodies} == set(ENGINES)


@pytest.mark.parametrize("quantization", get_args(Model.model_fields["quantization"].annotation))
def test_each_scheme_that_the_schema_has_is_one_that_some_engine_takes(quantization: str) -> None:
    """It would be refused for all of them otherwise, and after it was admitted."""
    refusals = [refusal_of(service(engine, model={"quantization": quantization}).spec) for engine in ("quire", "vllm")]
    assert None in refusals
