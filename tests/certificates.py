"""Certificates for a Dask cluster with TLS, made anew for each test session."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Security

__all__ = ["Certificates", "make_certificates", "tls_flags", "tls_security"]

VALID_FOR = dt.timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where the PEM files of one certificate authority and of one host lie."""

    ca_file: Path  # the authority's certificate
    cert_file: Path  # the certificate for localhost and 127.0.0.1, for servers and clients
    key_file: Path  # its private key, readable to the owner alone


def make_certificates(directory: Path) -> Certificates:
    """Write an authority, and a key and a certificate for localhost, into a directory.

    Parameters
    ----------
    directory : Path
        An existing directory; it gets ``ca.pem``, ``cert.pem`` and ``key.pem``.

    Returns
    -------
    Certificates
        The three paths.
    """
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = _sign_authority(ca_key)
    files = _certificates_in(directory)
    files.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    cert = _sign_host(key.public_key(), ca, ca_key)
    files.cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    files.key_file.touch(mode=0o600)
    files.key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def tls_security(directory: Path) -> Security:
    """Build the `distributed.Security` for the files that `make_certificates` wrote.

    Parameters
    ----------
    directory : Path
        The directory that was given to `make_certificates`.

    Returns
    -------
    distributed.Security
        For clients, schedulers and workers; plain TCP is refused.
    """
    from distributed import Security

    files = _certificates_in(directory)
    cert, key = str(files.cert_file), str(files.key_file)
    return Security(
        require_encryption=True,
        tls_ca_file=str(files.ca_file),
        tls_client_cert=cert,
        tls_client_key=key,
        tls_scheduler_cert=cert,
        tls_scheduler_key=key,
        tls_worker_cert=cert,
        tls_worker_key=key,
    )


def tls_flags(directory: Path) -> list[str]:
    """Build the flags of ``dask scheduler`` and ``dask worker`` for the same files."""
    files = _certificates_in(directory)
    flags = {
        "--tls-ca-file": files.ca_file,
        "--tls-cert": files.cert_file,
        "--tls-key": files.key_file,
    }
    return [word for flag, path in flags.items() for word in (flag, str(path))]


def _certificates_in(directory: Path) -> Certificates:
    return Certificates(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")


def _builder(
    common_name: str, issuer: x509.Name | None, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # an hour back: a clock that is set while the tests run doesn't invalidate it
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + VALID_FOR)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _sign_authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    public = key.public_key()
    return (
        _builder("hepdask test authority", None, public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _sign_host(
    key: ec.EllipticCurvePublicKey, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder("localhost", ca.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        # Python 3.13 verifies with VERIFY_X509_STRICT, which asks for both key identifiers
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
