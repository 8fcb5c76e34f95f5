"""The Helm chart and the Kustomize base: valid, equal, and with no right that is not used."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from quire_operator.api import KIND
from quire_operator.cli import _parser, _settings
from quire_operator.kubeapi.resources import LLMSERVICES
from quire_operator.settings import Settings
from tests.docs.pages import Block, blocks
from tests.operator.api_client import ApiClient, Namespace
from tests.operator.conftest import REPOSITORY, program

CHART = REPOSITORY / "charts/quire-operator"
EXAMPLES = [block for block in blocks("yaml") if f"kind: {KIND}\n" in block.text]
SAMPLES = sorted((REPOSITORY / "manifests/samples").glob("*.yaml"))

pytestmark = pytest.mark.control_plane


@pytest.fixture(scope="module")
def helm() -> Path:
    return program("helm") / "helm"


@pytest.fixture(scope="module")
def kubectl() -> Path:
    return program("kubectl") / "kubectl"


def template(helm: Path, *settings: str, **values: Any) -> list[dict[str, Any]]:
    """What the chart installs, its test left out. `settings` are Helm's --set, `values` have a type."""
    flags = [*(f"--set={s}" for s in settings), *(f"--set-json={k}={json.dumps(v)}" for k, v in values.items())]
    return [d for d in rendered(helm, *flags) if "helm.sh/hook" not in d["metadata"].get("annotations", {})]


def rendered(helm: Path, *flags: str) -> list[dict[str, Any]]:
    command = [helm, "template", "quire", CHART, "--namespace=quire-system", *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def test_the_chart_passes_helms_own_strict_check(helm: Path) -> None:
    result = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def kustomize(kubectl: Path, folder: str) -> list[dict[str, Any]]:
    command = [kubectl, "kustomize", REPOSITORY / "manifests" / folder]
    return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def comparable(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Each object by kind and name, as text, without what only one of the two ways of installing has."""
    found = {}
    for document in documents:
        if document["kind"] in ("Namespace", "CustomResourceDefinition"):
            continue
        text = json.dumps(document, sort_keys=True)
        text = text.replace('"app.kubernetes.io/managed-by": "Helm", ', "")
        found[f"{document['kind']}/{document['metadata']['name']}"] = text
    return found


AS_BY_HELM: dict[str, list[str]] = {
    "base": [],
    "overlays/ha": ["replicas=2"],
    "overlays/namespaced": ["watchNamespaces={inference}", "crds.install=false"],
    "overlays/monitoring": [
        "monitoring.serviceMonitor=enabled",
        "monitoring.alerts=enabled",
        "monitoring.dashboards=enabled",
        "monitoring.labels.release=kube-prometheus",
        "prometheusAddress=http://prometheus-operated.monitoring.svc:9090",
        "monitoringNamespaces={monitoring}",
    ],
    "overlays/dev": ["image.tag=dev", "image.pullPolicy=Never", "logLevel=debug", "engineImage=quire/engine:dev"],
}
"""The values with which the chart installs the same."""


def settings_of(documents: list[dict[str, Any]]) -> Settings:
    """Take the operator's arguments out of its Deployment, whose order may differ, and read them as it would."""
    (deployment,) = [d for d in documents if d["kind"] == "Deployment"]
    arguments = deployment["spec"]["template"]["spec"]["containers"][0].pop("args")
    return _settings(_parser().parse_args(arguments))


@pytest.mark.parametrize(("folder", "values"), AS_BY_HELM.items(), ids=AS_BY_HELM.keys())
def test_kustomize_installs_what_helm_does(helm: Path, kubectl: Path, folder: str, values: list[str]) -> None:
    built, by_helm = kustomize(kubectl, folder), template(helm, *values)
    crds = [[d["spec"] for d in documents if "CustomResource" in d["kind"]] for documents in (built, by_helm)]
    assert crds[0] == crds[1]
    assert settings_of(built) == settings_of(by_helm)
    assert comparable(built) == comparable(by_helm)


def test_every_overlay_is_compared() -> None:
    folders = {f"overlays/{path.name}" for path in (REPOSITORY / "manifests/overlays").iterdir()}
    assert folders == set(AS_BY_HELM) - {"base"}


def test_an_uninstall_leaves_the_crd(helm: Path) -> None:
    (crd,) = [d for d in template(helm) if d["kind"] == "CustomResourceDefinition"]
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "CustomResourceDefinition" not in [d["kind"] for d in template(helm, "crds.install=false")]


def test_a_namespaced_installation_needs_no_cluster_role(helm: Path) -> None:
    documents = template(helm, "watchNamespaces={a,b}")
    assert not [d for d in documents if d["kind"].startswith("Cluster")]
    roles = {
        d["metadata"]["namespace"] for d in documents if d["kind"] == "Role" and "lease" not in d["metadata"]["name"]
    }
    assert roles == {"a", "b"}
    (deployment,) = [d for d in documents if d["kind"] == "Deployment"]
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [argument for argument in arguments if "--namespace" in argument] == ["--namespace=a", "--namespace=b"]


def test_the_namespaced_overlay_has_nothing_that_is_the_clusters(kubectl: Path) -> None:
    documents = kustomize(kubectl, "overlays/namespaced")
    assert [d["kind"] for d in documents if "namespace" not in d["metadata"]] == []


def test_values_reach_the_operator(helm: Path) -> None:
    images = ("image.repository=r/op", "image.tag=t", "engineImage=r/engine:x")
    documents = template(helm, *images, "replicas=2", "prometheusAddress=http://prometheus:9090")
    (deployment,) = [d for d in documents if d["kind"] == "Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert deployment["spec"]["replicas"] == 2
    assert container["image"] == "r/op:t"
    assert {"--engine-image=r/engine:x", "--prometheus-address=http://prometheus:9090"} <= set(container["args"])


def test_rights_for_plans_are_those_that_the_values_ask_for(helm: Path) -> None:
    def rights(*settings: str) -> set[tuple[str, str]]:
        roles = [d for d in template(helm, *settings) if d["kind"] in ("Role", "ClusterRole")]
        return {
            (resource, verb) for d in roles for r in d["rules"] for resource in r["resources"] for verb in r["verbs"]
        }

    only_in_plans = {("nodes", "list"), ("secrets", "get")}
    assert rights() & only_in_plans == {("nodes", "list")}
    assert rights("planReadsTokens=true") & only_in_plans == only_in_plans
    assert rights("watchNamespaces={a}", "planReadsTokens=true") & only_in_plans == {("secrets", "get")}


def test_gpus_of_the_values_reach_the_operator(helm: Path) -> None:
    documents = template(helm, "gpuProducts.My-GPU=24576", "planReadsTokens=true", "planReadsAnyHub=true")
    (deployment,) = [d for d in documents if d["kind"] == "Deployment"]
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--gpu-product=My-GPU=24576", "--plan-reads-tokens", "--plan-reads-any-hub"} <= set(arguments)
    parsed = vars(_parser().parse_args(arguments))
    assert (parsed["gpu_products"], parsed["plan_reads_tokens"]) == (["My-GPU=24576"], True)


WATCHED = ("monitoring.serviceMonitor=enabled", "monitoring.alerts=enabled", "monitoring.dashboards=enabled")


def watching(helm: Path, *settings: str) -> dict[str, dict[str, Any]]:
    """What the chart makes for watching the operator, by kind and name."""
    kinds = ("ServiceMonitor", "PrometheusRule", "ConfigMap")
    documents = [d for d in template(helm, *settings) if d["kind"] in kinds]
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in documents}


def test_the_operator_is_watched_where_the_prometheus_operator_is_or_where_the_values_say_so(helm: Path) -> None:
    assert watching(helm) == {}
    assert set(watching(helm, *WATCHED)) == {
        "ServiceMonitor/quire-operator",
        "PrometheusRule/quire-operator",
        "ConfigMap/quire-operator-fleet",
        "ConfigMap/quire-operator-service",
    }
    command = [helm, "template", "quire", CHART, "--api-versions=monitoring.coreos.com/v1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    kinds = [document["kind"] for document in yaml.safe_load_all(result.stdout) if document]
    assert {"ServiceMonitor", "PrometheusRule", "ConfigMap"} <= set(kinds)


def test_the_monitor_of_the_operator_reaches_its_pods(helm: Path) -> None:
    documents = template(helm, *WATCHED, "monitoring.labels.release=stack")
    found = {document["kind"]: document for document in documents}
    monitor, deployment = found["ServiceMonitor"], found["Deployment"]
    service = found["Service"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["honorLabels"], "the namespace of a series about an LLMService would be the operator's"
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert found[kind]["metadata"]["labels"]["release"] == "stack"


def test_alerts_of_the_chart_are_about_the_release_and_lead_to_the_runbook(helm: Path) -> None:
    def rules(*settings: str) -> list[dict[str, Any]]:
        rule = watching(helm, "monitoring.alerts=enabled", *settings)["PrometheusRule/quire-operator"]
        return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]

    for alert in rules():
        assert 'namespace="quire-system"' in alert["expr"]
        assert alert["annotations"]["runbook_url"] == f"{Settings().runbook_url}#{alert['alert'].lower()}"
    elsewhere = rules("runbookUrl=https://wiki.example/quire")
    assert {alert["annotations"]["runbook_url"].partition("#")[0] for alert in elsewhere} == {
        "https://wiki.example/quire"
    }


def test_dashboards_of_the_chart_are_json_that_the_sidecar_of_grafana_finds(helm: Path) -> None:
    for name in ("fleet", "service"):
        configmap = watching(helm, *WATCHED)[f"ConfigMap/quire-operator-{name}"]
        assert configmap["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(configmap["data"][f"quire-{name}.json"])["uid"] == f"quire-{name}"


def test_prices_and_the_runbook_of_the_values_reach_the_operator(helm: Path) -> None:
    documents = template(helm, "gpuHourlyPrice.default=1", "gpuHourlyPrice.NVIDIA-L4=0.5", "runbookUrl=https://w/q")
    (deployment,) = [d for d in documents if d["kind"] == "Deployment"]
    parsed = vars(_parser().parse_args(deployment["spec"]["template"]["spec"]["containers"][0]["args"]))
    assert Settings(gpu_hourly_prices=tuple(parsed["gpu_hourly_prices"])).prices() == {"default": 1.0, "NVIDIA-L4": 0.5}
    assert parsed["runbook_url"] == "https://w/q"


@pytest.mark.parametrize(
    "setting",
    [
        "monitoring.alerts=true",
        "monitoring.interval=often",
        "gpuHourlyPrice.default=cheap",
        "engineImage=quire/engine:latest:x y",
        "engineImage=quire/engine:latest",
        "replicas=-1",
        "logLevel=loud",
        "imgae.tag=x",
        "image.tag=latest",
        "gpuProducts.X=80GiB",
    ],
)
def test_a_value_that_cannot_be_right_is_refused(helm: Path, setting: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        template(helm, setting)


VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
ONLY_IN_THE_SCHEMA = {"global"}
"""Helm puts it into every chart's values."""


def schema_of(name: str) -> dict[str, Any]:
    """The schema of a value such as image.tag, references followed. Raises KeyError where it has none."""
    schema = SCHEMA
    for part in name.split("."):
        schema = schema.get("properties", {}).get(part) or schema["additionalProperties"]
        while "$ref" in schema:
            schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    return schema


def names(values: dict[str, Any], below: str = "") -> list[str]:
    """The values and the groups of values, by name."""
    inner = [
        name for key, value in values.items() if isinstance(value, dict) for name in names(value, f"{below}{key}.")
    ]
    return [*(f"{below}{key}" for key in values), *inner]


def test_the_schema_knows_the_values_that_there_are_and_no_others() -> None:
    for name in names(VALUES):
        schema_of(name)
    assert set(SCHEMA["properties"]) - ONLY_IN_THE_SCHEMA == set(VALUES)
    for group in (name for name in VALUES if isinstance(VALUES[name], dict) and VALUES[name]):
        assert set(schema_of(group).get("properties", VALUES[group])) == set(VALUES[group])


@pytest.mark.parametrize("name", names(VALUES))
def test_a_value_of_another_type_is_refused_by_name(helm: Path, name: str) -> None:
    schema = schema_of(name)
    assert schema.get("type") != "object" or "additionalProperties" in schema, "nothing is said of what is in it"
    may_be_text = schema.get("type") == "string" and "pattern" not in schema
    may_be_a_number = "number" in schema.get("type", "")
    for wrong in ([3.5], {"wrong": [3.5]}, *(() if may_be_text else ("not so",)), *(() if may_be_a_number else (3.5,))):
        with pytest.raises(subprocess.CalledProcessError) as refusal:
            template(helm, **{name: wrong})
        assert name.rpartition(".")[2] in refusal.value.stderr


def test_several_replicas_are_spread_and_taken_away_one_by_one(helm: Path) -> None:
    def parts(replicas: int) -> tuple[list[Any], list[Any]]:
        documents = template(helm, f"replicas={replicas}")
        (deployment,) = [d for d in documents if d["kind"] == "Deployment"]
        pod = deployment["spec"]["template"]["spec"]
        budgets = [d for d in documents if d["kind"] == "PodDisruptionBudget"]
        assert all(d["spec"]["selector"] == deployment["spec"]["selector"] for d in budgets)
        return [d["spec"]["maxUnavailable"] for d in budgets], pod.get("topologySpreadConstraints", [])

    assert parts(1) == ([], [])
    budgets, (spread,) = parts(2)
    assert budgets == [1]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")


def test_the_charts_own_test_runs_the_installed_image_and_is_no_replica(helm: Path) -> None:
    documents = rendered(helm, "--set=image.repository=r/op", "--set=image.tag=t")
    (pod,) = [d for d in documents if d["kind"] == "Pod"]
    (deployment,) = [d for d in documents if d["kind"] == "Deployment"]
    (service,) = [d for d in documents if d["kind"] == "Service"]
    container = pod["spec"]["containers"][0]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert container["image"] == deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "r/op:t"
    assert container["args"][0].strip() == (CHART / "tests/check.py").read_text().strip()
    assert container["args"][1] == f"{service['metadata']['name']}.quire-system.svc"
    assert not service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_the_api_server_accepts_every_object_of_the_chart(helm: Path, api: ApiClient) -> None:
    accept_all(api, rendered(helm, "--set=replicas=2"))


@pytest.mark.parametrize("folder", AS_BY_HELM)
def test_the_api_server_accepts_every_object_of_an_overlay(
    kubectl: Path, api: ApiClient, prometheus_operator: None, folder: str
) -> None:
    accept_all(api, kustomize(kubectl, folder))


def accept_all(api: ApiClient, documents: list[dict[str, Any]]) -> None:
    """Have the API server look at each object. Raises httpx.HTTPStatusError for a field that it does not know."""
    for name in ("quire-system", "inference"):
        api.make_namespace(name)
    for document in documents:
        group = document["apiVersion"]
        root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
        metadata = document["metadata"]
        below = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        plural = f"{document['kind'].lower()}s"
        path = f"{root}{below}/{plural}/{metadata['name']}"
        query = "?fieldManager=helm&force=true&dryRun=All&fieldValidation=Strict"
        api.request("PATCH", f"{path}{query}", document, "application/apply-patch+yaml")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_accepted_strictly(namespace: Namespace, sample: Path) -> None:
    body = yaml.safe_load(sample.read_text())
    body["metadata"]["namespace"] = namespace.name
    path = f"{LLMSERVICES.path(namespace.name)}?fieldValidation=Strict&dryRun=All"
    namespace.api.request("POST", path, body)
    body["spec"]["modle"] = {}
    with pytest.raises(httpx.HTTPStatusError):
        namespace.api.request("POST", path, body)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_every_example_of_the_pages_is_accepted_strictly(namespace: Namespace, example: Block) -> None:
    body = yaml.safe_load(example.text)
    body["metadata"]["namespace"] = namespace.name
    namespace.api.request("POST", f"{LLMSERVICES.path(namespace.name)}?fieldValidation=Strict&dryRun=All", body)
