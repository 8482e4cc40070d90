"""Proxies and tokens that are good for tests, until a given time."""

from __future__ import annotations

import base64
import datetime as dt
import json
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["make_proxy", "make_token"]


def make_proxy(seconds: float) -> bytes:
    """Make a proxy that ends in so many seconds: certificate, key, and the longer-lived certificate that signed it."""
    key, user_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = dt.datetime.now(dt.UTC)
    user = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A Physicist")])
    proxy = x509.Name([*user, x509.NameAttribute(NameOID.COMMON_NAME, "12345")])

    def sign(name: x509.Name, public: ec.EllipticCurvePublicKey, end: dt.datetime) -> bytes:
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(user)
        builder = builder.public_key(public).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(days=9)).not_valid_after(end)
        return builder.sign(user_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    end = now + dt.timedelta(seconds=seconds)
    chain = sign(user, user_key.public_key(), now + dt.timedelta(days=300))
    return sign(proxy, key.public_key(), end) + private + chain


def make_token(seconds: float) -> bytes:
    """Make a JSON web token that ends in so many seconds."""
    head = {"alg": "none", "typ": "JWT"}
    claims = {"sub": "physicist", "exp": int(time.time() + seconds), "scope": "storage.read:/"}
    parts = [
        base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in (head, claims)
    ]
    return b".".join([*parts, base64.urlsafe_b64encode(b"signature" * 5).rstrip(b"=")])
