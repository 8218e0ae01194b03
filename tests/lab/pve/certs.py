"""The cluster's CA and the node's certificate, as `pvecm updatecerts` makes them (pve-facts §f "TLS")."""

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .node import Node

_USAGE = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
          "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*on: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in on for name in _USAGE})


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, ca: bool) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer))
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=730))  # as Proxmox's
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False))


def _write(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as out:
        out.write(data)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                             serialization.NoEncryption())


def ensure(node: Node) -> tuple[Path, Path]:
    """The files (certificate, key) to serve; made with their CA when they are not there yet."""
    here = node.etc.root / "nodes" / node.name
    custom = here / "pveproxy-ssl.pem"
    if custom.exists():
        return custom, here / "pveproxy-ssl.key"
    cert_file, key_file, ca_file = here / "pve-ssl.pem", here / "pve-ssl.key", node.etc.root / "pve-root-ca.pem"
    if cert_file.exists() and key_file.exists() and ca_file.exists():
        return cert_file, key_file
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = (_builder("Proxmox Virtual Environment", "Proxmox Virtual Environment", ca_key, True)
          .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True).sign(ca_key, hashes.SHA256()))
    key = ec.generate_private_key(ec.SECP256R1())
    addresses = dict.fromkeys(("127.0.0.1", "::1", node.address))
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(text)) for text in addresses]
    names += [x509.DNSName(text) for text in ("localhost", node.name, f"{node.name}.lab")]
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    cert = (_builder(f"{node.name}.lab", "Proxmox Virtual Environment", key, False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(authority, critical=False)
            .add_extension(_usage("digital_signature", "key_agreement"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(ca_key, hashes.SHA256()))
    _write(ca_file, ca.public_bytes(serialization.Encoding.PEM), 0o640)
    _write(node.etc.root / "priv" / "pve-root-ca.key", _pem(ca_key), 0o600)
    _write(cert_file, cert.public_bytes(serialization.Encoding.PEM), 0o640)
    _write(key_file, _pem(key), 0o640)
    return cert_file, key_file
