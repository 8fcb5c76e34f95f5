"""How to reach the API server: the pod's service account, else a kubeconfig."""

from __future__ import annotations

import dataclasses
import datetime
import os

import kopf

_TOKEN_LIFETIME = datetime.timedelta(minutes=5)
"""How long a mounted token is used before the file is read again; the kubelet renews it long before it expires."""


class LoginError(RuntimeError):
    """There is no way to the API server; says what to set."""


def login() -> kopf.ConnectionInfo:
    """Server and credentials. KUBECONFIG, where set, wins over the pod's own account. Raises LoginError."""
    settings = kopf.OperatorSettings()
    try:
        info = kopf.login_with_kubeconfig(settings=settings) if os.environ.get("KUBECONFIG") else None
        info = info or kopf.login_with_service_account(settings=settings)
        info = info or kopf.login_with_kubeconfig(settings=settings)
    except (OSError, KeyError, kopf.LoginError) as error:
        raise LoginError(f"the kubeconfig cannot be used ({error!r}): check KUBECONFIG") from error
    if info is None:
        raise LoginError("there is neither a service account nor a kubeconfig: set KUBECONFIG")
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if host and info.server == "https://kubernetes.default.svc":
        # the address works before the cluster's DNS does
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        expiration = datetime.datetime.now(datetime.UTC) + _TOKEN_LIFETIME
        return dataclasses.replace(info, server=server, expiration=expiration)
    return info


def own_namespace(info: kopf.ConnectionInfo) -> str:
    """The namespace that the operator itself runs in."""
    return os.environ.get("POD_NAMESPACE") or info.default_namespace or "default"
