"""TLS context of the HTTP server, from a certificate and its key."""

from __future__ import annotations

import ssl

from insta_runtime.errors import UserError
from telepresence.streaming.http.settings import AccessSettings


def tls_context(settings: AccessSettings) -> ssl.SSLContext | None:
    """TLS context for https (TLS 1.2 or newer); None without a certificate, UserError if it cannot be used."""
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_refuse_passphrase)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        what = f"{settings.tls_cert} and {settings.tls_key}"
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise UserError(f"TLS cannot use {what}: the key does not belong to the certificate") from error
        if isinstance(error, PermissionError):
            raise UserError(f"TLS cannot use {what}: no permission to read them") from error
        raise UserError(f"TLS cannot use {what}: they must be PEM files without a passphrase") from error
    return context


def _refuse_passphrase() -> str:
    raise ValueError("a passphrase is not supported")
