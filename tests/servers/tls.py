"""A private certificate authority for servers of tests."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """A private certificate authority and the certificate that it signed. `key_file` holds the key and certificate of `names`."""

    ca_file: Path
    key_file: Path

    def context(self) -> ssl.SSLContext:
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        found.load_cert_chain(self.key_file)
        return found


def authority(directory: Path, *names: str) -> Authority:
    """For host names and addresses, for an hour."""
    now = datetime.datetime.now(datetime.UTC)

    def build(
        subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, alternatives: list[x509.GeneralName]
    ) -> x509.CertificateBuilder:
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=not alternatives, path_length=None), critical=True)
        )
        return made.add_extension(x509.SubjectAlternativeName(alternatives), critical=False) if alternatives else made

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    ca = build("tests", ca_key, "tests", []).sign(ca_key, hashes.SHA256())
    certificate = build(names[0], key, "tests", found).sign(ca_key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "ca.pem").write_bytes(ca.public_bytes(pem))
    (directory / "key.pem").write_bytes(key.private_bytes(pem, *plain) + certificate.public_bytes(pem))
    return Authority(directory / "ca.pem", directory / "key.pem")
