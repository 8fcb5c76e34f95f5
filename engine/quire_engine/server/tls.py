"""HTTPS: a certificate and its key, looked at before anything else begins."""

from __future__ import annotations

import ssl

from quire_engine.server.settings import ServerSettings
from quire_engine.startup_error import StartupError


def check_certificate(settings: ServerSettings) -> None:
    """Raise `StartupError` for files that no HTTPS server can begin with."""
    if settings.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key = settings.ssl_keyfile
    try:
        # An encrypted key would be asked for on a terminal that a server does not have.
        context.load_cert_chain(settings.ssl_certfile, key, password=lambda: "")
    except OSError as error:  # ssl.SSLError is one
        files = f"--ssl-certfile {settings.ssl_certfile}" + (f" with --ssl-keyfile {key}" if key else "")
        raise StartupError("InvalidFlag", f"{files} cannot be used: {_reason(error)}") from error
    if settings.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(settings.ssl_ca_certs)
        except OSError as error:
            raise StartupError(
                "InvalidFlag", f"--ssl-ca-certs {settings.ssl_ca_certs} cannot be used: {_reason(error)}"
            ) from error


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        known = {"KEY_VALUES_MISMATCH": "the key is not the certificate's", "BAD_DECRYPT": "the key is encrypted"}
        return known.get(error.reason or "", "it is no certificate and key in PEM")
    return error.strerror or str(error)
