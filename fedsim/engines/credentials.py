"""Certificates and keys of a deployment: an authority of its own, the server's TLS, one key per node.

TLS: an authority made for one deployment signs one server certificate (X.509, RFC 5280; ECDSA on P-256).
Nodes: Flower's SuperNodes prove who they are by a key on P-384, whose public half the SuperLink knows. All
private keys are readable by their owner only.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

PRIVATE_FILE = 0o600
_CLOCK_SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True)
class ServerFiles:
    """Where a server's TLS stands: the authority's certificate, its own, and its private key."""

    authority: Path
    certificate: Path
    key: Path

    @property
    def options(self) -> list[str]:
        """As ``flower-superlink`` takes them."""
        return [
            *("--ssl-ca-certfile", str(self.authority)),
            *("--ssl-certfile", str(self.certificate)),
            *("--ssl-keyfile", str(self.key)),
        ]


def write_server(
    folder: Path, hosts: Sequence[str], days: float, now: datetime.datetime | None = None
) -> ServerFiles:
    """Make an authority and a server certificate it signed; the authority's own key is kept nowhere.

    hosts: names and addresses that the certificate is for
    days: how long both are valid, from ``now`` (default: the present)
    """
    now = now or datetime.datetime.now(datetime.UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsim deployment")])
    authority = (
        _certificate(name, name, authority_key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        _certificate(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])]), name, key.public_key(), now, days
        )
        .add_extension(x509.SubjectAlternativeName(list(_alternative_names(hosts))), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    files = ServerFiles(folder / "ca.crt", folder / "server.pem", folder / "server.key")
    files.authority.write_bytes(authority.public_bytes(Encoding.PEM))
    files.certificate.write_bytes(server.public_bytes(Encoding.PEM))
    write_private(files.key, _pem(key, PrivateFormat.PKCS8))
    return files


def write_node_key(path: Path) -> Path:
    """Make a node's key pair: ``path``, and beside it ``path.pub``, which is returned."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(path, _pem(key, PrivateFormat.OpenSSH))
    public = path.with_name(f"{path.name}.pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
    return public


def write_private(path: Path, content: bytes) -> None:
    """Write a file that never was readable by anyone but its owner.

    Raises:
        FileExistsError: there is such a file; no key is replaced.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "wb") as file:
        file.write(content)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(signs: bool) -> x509.KeyUsage:
    """Return what a key may be used for: an authority's signs certificates, a server's the handshake."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(hosts: Iterable[str]) -> Iterable[x509.GeneralName]:
    for host in hosts:
        try:
            yield x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            yield x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())
