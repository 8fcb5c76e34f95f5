"""What `helm test` runs in the cluster: the CRD is served, the operator is healthy, and one replica of it works."""

import socket
import ssl
import sys
import time
import urllib.error
import urllib.request

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
DEFINITIONS = "https://kubernetes.default.svc/apis/serving.quire.dev/v1alpha1"


def get(url: str, token: str = "", authority: str = "") -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    context = ssl.create_default_context(cafile=authority) if authority else None
    with urllib.request.urlopen(request, timeout=5, context=context) as response:
        return str(response.read().decode())


def problem(service: str, port: int) -> str | None:
    """What is wrong, and what to do about it."""
    with open(f"{ACCOUNT}/token") as token:
        try:
            served = get(DEFINITIONS, token.read(), f"{ACCOUNT}/ca.crt")
        except urllib.error.HTTPError as error:
            served = str(error)
    if '"llmservices"' not in served:
        return f"LLMServices are not served ({served[:200]}): install the CRD, by crds.install=true or by hand"
    try:
        addresses = sorted({entry[4][0] for entry in socket.getaddrinfo(service, port, socket.AF_UNSPEC)})
    except socket.gaierror:
        return f"{service} has no address: no replica is ready, see kubectl get pods, or the cluster's DNS is not"
    hosts = [f"[{address}]" if ":" in address else address for address in addresses]
    for host in hosts:
        get(f"http://{host}:{port}/healthz")
    if not any("quire_operator_leading 1.0" in get(f"http://{host}:{port}/metrics") for host in hosts):
        return f"none of {len(hosts)} replicas holds the Lease: see the operator's log"
    return None


def main() -> None:
    service, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = problem(service, port)
        except OSError as error:
            found = f"{type(error).__name__}: {error}"
        if found is None:
            return
        if time.monotonic() > deadline:
            sys.exit(found)
        time.sleep(1)


if __name__ == "__main__":
    main()
