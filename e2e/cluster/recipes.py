"""How each program is built from Go modules, and what else is taken from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from e2e.cluster import versions
from e2e.cluster.errors import ClusterError


@dataclass(frozen=True)
class Recipe:
    """One program, or a few that only come together; or a folder of a module, such as its CRDs.

    With `module`, the packages are built inside a main module of ours that requires `module` and repeats its `replace`
    lines, which Go honours in a main module only. Without it, `go install package@version`.
    """

    name: str
    version: str
    packages: dict[str, str]  # file in the bin folder -> Go package
    module: str = ""
    ldflags: str = ""
    tags: str = ""
    source: str = ""  # a folder beside this file that is built in the main module as ./NAME
    folder: str = ""  # a folder of the module that is linked into the cache under the recipe's name

    @property
    def workspace(self) -> str:
        """The main module's folder. Recipes of one module and version share it, and so one `go build`."""
        return self.module.replace("/", "-")


def _kubernetes_flags() -> str:
    facts = {
        "gitVersion": versions.KUBERNETES,
        "gitMajor": "1",
        "gitMinor": versions.minor(versions.KUBERNETES),
        "gitTreeState": "clean",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {package}.{key}={value}" for package in packages for key, value in facts.items())


def _helm_flags() -> str:
    """Helm takes the Kubernetes version for `helm template` from its own build, and is wrong without these."""
    root = "helm.sh/helm/v3"
    flags = f"-X {root}/internal/version.version={versions.HELM}"
    for package in ("pkg/chartutil", "pkg/lint/rules"):
        flags += f" -X {root}/{package}.k8sVersionMajor=1"
        flags += f" -X {root}/{package}.k8sVersionMinor={versions.minor(versions.KUBERNETES)}"
    return flags


_KUBERNETES = "k8s.io/kubernetes"
_FLUX = "github.com/fluxcd"
_FLUX_CONTROLLERS = {
    "source": versions.FLUX_SOURCES,
    "kustomize": versions.FLUX_KUSTOMIZE,
    "helm": versions.FLUX_HELM,
}
_KEDA = "github.com/kedacore/keda/v2"
_KUBE_ROUTER = "github.com/cloudnativelabs/kube-router/v2"
_KSERVE = "github.com/kserve/kserve"
_LWS = "sigs.k8s.io/lws"
_PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator"
_PROMETHEUS = "github.com/prometheus/prometheus"


def _kubernetes(name: str) -> Recipe:
    return Recipe(
        name,
        versions.KUBERNETES,
        {name: f"{_KUBERNETES}/cmd/{name}"},
        module=_KUBERNETES,
        ldflags=_kubernetes_flags(),
        tags="selinux,notest,grpcnotrace",
    )


def _prometheus(name: str) -> Recipe:
    return Recipe(name, versions.PROMETHEUS, {name: f"{_PROMETHEUS}/cmd/{name}"}, module=_PROMETHEUS)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *map(
            _kubernetes,
            ("kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"),
        ),
        Recipe("etcd", versions.KUBERNETES, {"etcd": "go.etcd.io/etcd/server/v3"}, module=_KUBERNETES),
        Recipe("podrm", versions.KUBERNETES, {"podrm": "./podrm"}, module=_KUBERNETES, source="podrm"),
        Recipe("coredns", versions.COREDNS, {"coredns": "github.com/coredns/coredns"}),
        Recipe("helm", versions.HELM, {"helm": "helm.sh/helm/v3/cmd/helm"}, ldflags=_helm_flags()),
        Recipe("kwok", versions.KWOK, {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
        Recipe(
            "kserve",
            versions.KSERVE,
            {"kserve-manager": f"{_KSERVE}/cmd/manager"},
            module=_KSERVE,
        ),
        Recipe("kserve-config", versions.KSERVE, {}, module=_KSERVE, folder="config"),
        Recipe("lws", versions.LWS, {"lws": f"{_LWS}/cmd"}, module=_LWS),
        Recipe("lws-crds", versions.LWS, {}, module=_LWS, folder="config/crd/bases"),
        Recipe("lws-chart", versions.LWS, {}, module=_LWS, folder="charts/lws"),
        Recipe(
            "keda",
            versions.KEDA,
            {f"keda-{part}": f"{_KEDA}/cmd/{part}" for part in ("operator", "adapter", "webhooks")},
            module=_KEDA,
            ldflags=f"-X {_KEDA}/version.Version={versions.KEDA.removeprefix('v')}",
        ),
        Recipe("keda-crds", versions.KEDA, {}, module=_KEDA, folder="config/crd/bases"),
        Recipe(
            "argocd-crds",
            versions.ARGO_CD,
            {},
            module="github.com/argoproj/argo-cd/v3",
            folder="manifests/crds",
        ),
        *(
            Recipe(f"flux-{part}-crds", version, {}, module=f"{_FLUX}/{part}-controller", folder="config/crd/bases")
            for part, version in _FLUX_CONTROLLERS.items()
        ),
        *map(_prometheus, ("prometheus", "promtool")),
        Recipe(
            "prometheus-adapter",
            versions.PROMETHEUS_ADAPTER,
            {"prometheus-adapter": "sigs.k8s.io/prometheus-adapter/cmd/adapter"},
            module="sigs.k8s.io/prometheus-adapter",
        ),
        Recipe(
            "kube-router",
            versions.KUBE_ROUTER,
            {"kube-router": f"{_KUBE_ROUTER}/cmd/kube-router"},
            module=_KUBE_ROUTER,
        ),
        Recipe(
            "monitoring-crds",
            versions.PROMETHEUS_OPERATOR,
            {},
            module=_PROMETHEUS_OPERATOR,
            folder="example/prometheus-operator-crd",
        ),
        Recipe(
            "promconfig",
            versions.PROMETHEUS_OPERATOR,
            {"promconfig": "./promconfig"},
            module=_PROMETHEUS_OPERATOR,
            source="promconfig",
        ),
    )
}

_RIVALS = ("kserve", "kserve-config")  # what benchmarks alone need

# In the order in which `make lint`, `make test` and `make e2e` come to need them.
OF_THE_SUITES = tuple(dict.fromkeys(["helm", "promtool", *(name for name in RECIPES if name not in _RIVALS)]))


def recipes(names: Sequence[str]) -> list[Recipe]:
    """The recipes of these names, each once. Raises ClusterError for a name that has none."""
    for name in names:
        if name not in RECIPES:
            raise ClusterError(f"nothing here builds {name!r}; write one of: {', '.join(RECIPES)}")
    return [RECIPES[name] for name in dict.fromkeys(names)]


def wrapper(name: str, module: str, version: str, upstream: str) -> str:
    """The go.mod of a main module that requires `module`, given the text of the module's own go.mod.

    Kubernetes replaces its staging modules by folders of its repository; each becomes the module as published. Another
    module's folder is published in the version that it requires, so there the replace line is left out.
    """
    lines = [f"module quire/{name}", "go 1.26"]
    if module == _KUBERNETES:
        lines.append("godebug default=go1.24")
    lines.append(f"require {module} {version}")
    for old, new in replaces(upstream):
        if new.startswith("./staging/"):
            new = f"{old} v0{version.removeprefix('v1')}"
        elif new.startswith("./"):
            continue
        lines.append(f"replace {old} => {new}")
    return "\n".join(lines) + "\n"


def replaces(go_mod: str) -> list[tuple[str, str]]:
    """The replace lines of a go.mod, written singly or in a block, as (old, new)."""
    found: list[tuple[str, str]] = []
    in_block = False
    for line in go_mod.splitlines():
        text = line.split("//")[0].strip()
        if text.startswith("replace ("):
            in_block = True
        elif in_block and text == ")":
            in_block = False
        elif "=>" in text and (in_block or text.startswith("replace ")):
            old, new = text.removeprefix("replace ").split("=>")
            found.append((old.strip(), new.strip()))
    return found
