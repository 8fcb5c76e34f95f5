"""HTTPS: a certificate and its key, looked at before anything else begins, and again when they change."""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path

from quire_engine.server.settings import ServerSettings
from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0

Version = tuple[tuple[int, int], ...]  # of each file: when it was written, and its inode


class Certificates:
    """What connections are opened with: always the last files that go together.

    The files are looked at when a client connects, at most once a second. A connection keeps what it was opened with.
    """

    def __init__(self, settings: ServerSettings) -> None:
        """Raises `StartupError` for files that no HTTPS server can begin with."""
        assert settings.ssl_certfile is not None
        self._settings = settings
        self._files = [Path(f) for f in (settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_ca_certs) if f]
        self._version, self._looked = self._found(), time.monotonic()
        self._newest = self.context = load_certificate(settings)
        if settings.enable_ssl_refresh:
            # A context that is in use cannot be changed in one step: each handshake is moved to the newest instead.
            self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        self._look()
        connection.context = self._newest

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked, version = now, self._found()
        if version == self._version:
            return
        self._version = version
        try:
            self._newest = load_certificate(self._settings)
        except StartupError as error:
            log.warning("the certificate of before stays: %s", error)
        else:
            log.info("--ssl-certfile %s has changed: new connections get it", self._settings.ssl_certfile)

    def _found(self) -> Version:
        return tuple(_version(file) for file in self._files)


def _version(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:  # it is named when it is read
        return 0, 0
    return found.st_mtime_ns, found.st_ino


def load_certificate(settings: ServerSettings) -> ssl.SSLContext:
    """What the files of `settings` make. Raises `StartupError` where they cannot be used."""
    assert settings.ssl_certfile is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key = settings.ssl_keyfile
    try:
        # An encrypted key would be asked for on a terminal that a server does not have.
        context.load_cert_chain(settings.ssl_certfile, key, password=lambda: "")
    except OSError as error:  # ssl.SSLError is one
        files = f"--ssl-certfile {settings.ssl_certfile}" + (f" with --ssl-keyfile {key}" if key else "")
        raise StartupError("InvalidFlag", f"{files} cannot be used: {_reason(error)}") from error
    context.verify_mode = ssl.VerifyMode(settings.ssl_cert_reqs)
    if settings.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(settings.ssl_ca_certs)
        except OSError as error:
            raise StartupError(
                "InvalidFlag", f"--ssl-ca-certs {settings.ssl_ca_certs} cannot be used: {_reason(error)}"
            ) from error
    return context


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        known = {"KEY_VALUES_MISMATCH": "the key is not the certificate's", "BAD_DECRYPT": "the key is encrypted"}
        return known.get(error.reason or "", "it is no certificate and key in PEM")
    return error.strerror or str(error)
