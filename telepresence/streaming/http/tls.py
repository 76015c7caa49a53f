"""The certificate for https."""

from __future__ import annotations

import ssl

from insta_runtime.errors import UserError
from telepresence.streaming.access_settings import AccessSettings


def tls_context(settings: AccessSettings) -> ssl.SSLContext | None:
    """What https is spoken with, TLS 1.2 or newer; None without a certificate.  UserError for one that is no use."""
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_refuse)
    except (OSError, ValueError) as error:  # of which an SSLError is one
        what = f"{settings.tls_cert} and {settings.tls_key}"
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise UserError(f"TLS cannot use {what}: the key is not that of the certificate") from error
        if isinstance(error, PermissionError):
            raise UserError(f"TLS cannot use {what}: they may not be read") from error
        raise UserError(f"TLS cannot use {what}: it takes PEM files without a passphrase") from error
    return context


def _refuse() -> str:
    raise ValueError("nobody is asked for a passphrase")
