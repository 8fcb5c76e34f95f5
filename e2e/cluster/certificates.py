"""One certificate authority and the leaf certificates under it, by openssl."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.errors import ClusterError

_DAYS = "30"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class KeyPair:
    """A PEM certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority that lives in a folder; making it again keeps the one that is there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pair = KeyPair(directory / "ca.crt", directory / "ca.key")
        directory.mkdir(parents=True, exist_ok=True)
        if not self.pair.certificate.exists():
            subject = ("-x509", "-days", _DAYS, "-subj", "/CN=quire-cluster")
            _openssl("req", *subject, *_NEW_KEY, "-keyout", self.pair.key, "-out", self.pair.certificate)

    def issue(self, name: str, common_name: str, extensions: Sequence[str]) -> KeyPair:
        """A leaf certificate with these X.509 extensions, such as `subjectAltName=DNS:localhost`."""
        pair = KeyPair(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        request, config = self.directory / f"{name}.csr", self.directory / f"{name}.extensions"
        config.write_text("\n".join(extensions) + "\n")
        _openssl("req", "-new", "-subj", f"/CN={common_name}", *_NEW_KEY, "-keyout", pair.key, "-out", request)
        signer = ("-CA", self.pair.certificate, "-CAkey", self.pair.key, "-CAcreateserial")
        files = ("-in", request, "-extfile", config, "-out", pair.certificate)
        _openssl("x509", "-req", "-days", _DAYS, *signer, *files)
        return pair

    def signing_key(self, name: str) -> Path:
        """A private key without a certificate, for ServiceAccount tokens."""
        key = self.directory / f"{name}.key"
        _openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key)
        return key


def alternative_names(dns: Sequence[str], addresses: Sequence[str]) -> str:
    """The extension that lists what a server certificate is valid for."""
    return "subjectAltName=" + ",".join([f"DNS:{name}" for name in dns] + [f"IP:{address}" for address in addresses])


def _openssl(*arguments: str | Path) -> None:
    if not shutil.which("openssl"):
        raise ClusterError("the cluster's certificates need openssl and it is not on PATH: apt-get install openssl")
    result = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ClusterError(f"openssl {arguments[0]} failed: {result.stderr.strip()}")
