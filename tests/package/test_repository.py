"""The recipe of docs/packaging.md for a signed apt repository, word for word: made here, installed from in a root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.package.conftest import PROJECT
from tests.package.roots import Root

pytestmark = pytest.mark.long
TEXT = (PROJECT / "docs/packaging.md").read_text().partition("## An apt repository")[2]
HERE, THERE = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
SITE = "repo.example.org"
GPG = "batch\npinentry-mode loopback\npassphrase-file {place}/passphrase\n"  # in the place of a person who types it
# The web server, with a certificate the root trusts; a root has no curl, and apt's own downloader does as well.
SERVED = f"""
echo "127.0.0.1 {SITE}" >> /etc/hosts
: > /etc/apt/sources.list
echo 'APT::Get::Assume-Yes "true"; APT::Install-Recommends "false";' > /etc/apt/apt.conf.d/unattended
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={SITE} \\
    -addext subjectAltName=DNS:{SITE} -keyout /tmp/key.pem -out /usr/local/share/ca-certificates/site.crt 2>&1
update-ca-certificates 2>&1
printf '#!/bin/sh\\nexec /usr/lib/apt/apt-helper download-file "$3" "$2"\\n' > /usr/local/bin/curl
chmod 755 /usr/local/bin/curl
python3 -c '
import functools, http.server, ssl
http.server.SimpleHTTPRequestHandler.protocol_version = "HTTP/1.1"  # apt 3 takes no end without a word for one of TLS
served = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/srv/repo")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), served)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/usr/local/share/ca-certificates/site.crt", "/tmp/key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
open("/tmp/serving", "w").close()
server.serve_forever()' &
until [ -e /tmp/serving ]; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def repository(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first half of the recipe makes of build/deb, with a key of its own."""
    place = tmp_path_factory.mktemp("builder")
    shutil.copytree(deb.parent, place / "build/deb")
    with tempfile.TemporaryDirectory(prefix="pzb-gpg-") as home:  # short: its agent's socket lies there
        Path(home, "passphrase").write_text("correct horse\n")
        Path(home, "gpg.conf").write_text(GPG.format(place=home))
        environment = {**os.environ, "GNUPGHOME": home, "LC_ALL": "C.UTF-8"}
        try:
            done = subprocess.run(
                ["bash", "-ec", HERE], check=False, cwd=place, env=environment, capture_output=True, text=True
            )
        finally:
            subprocess.run(["gpgconf", "--kill", "gpg-agent"], check=True, env=environment)
    assert done.returncode == 0, done.stderr
    return place / "repo"


@pytest.fixture
def node(bare: Root, repository: Path) -> Root:
    shutil.copytree(repository, bare.place / "upper/srv/repo")
    return bare


def test_a_node_installs_from_it(node: Root, deb: Path) -> None:
    said = node.shell(f"{SERVED}\n{THERE}\napt-cache policy pve-zfsbackup")
    version = deb.name.split("_")[1]
    assert f"Installed: {version}" in said, said
    assert re.search(rf"\*\*\* {re.escape(version)} \d+\n +\d+ https://{SITE} ", said), said
    assert node.run("pve-zfsbackup", "--version").split()[-1] == version


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("echo >> Packages; gzip -kf Packages", r"Hash Sum mismatch|unexpected size"),
        ("rm InRelease", r"is not signed|no longer signed"),
        ("sed -i 's/^Suite: .*/Suite: other/' InRelease", r"BADSIG|invalid|not signed|verification"),
    ],
    ids=["other packages", "no signature", "another text under it"],
)
def test_what_the_key_did_not_sign_is_refused(node: Root, damage: str, told: str) -> None:
    done = node.attempt("sh", "-ec", f"{SERVED}\n(cd /srv/repo; {damage})\n{THERE}")
    assert done.returncode != 0, done.stdout
    assert re.search(told, done.stdout), done.stdout
    assert node.attempt("dpkg-query", "-W", "pve-zfsbackup").returncode != 0
