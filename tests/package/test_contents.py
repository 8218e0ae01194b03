"""What is in the package, without installing it."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

import pve_zfsbackup
from pve_zfsbackup.cli import cli
from pve_zfsbackup.config.example import example_config
from tests.package.conftest import PROJECT, depends

DEBIAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def command_names(command: click.Command, name: str) -> set[str]:
    found = {name}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            child = command.get_command(context, word)
            found |= set() if child is None or child.hidden else command_names(child, f"{name}-{word}")
    return found


def test_one_version_everywhere(deb: Path) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    version = subprocess.check_output(["dpkg-deb", "-f", deb, "Version"], text=True).strip()
    assert version == project["version"] == pve_zfsbackup.__version__


def test_depends_on_nothing_but_what_both_releases_have(deb: Path) -> None:
    assert depends(deb) == [
        "openssh-client",
        "python3",
        "python3-click",
        "python3-proxmoxer",
        "python3-requests",
        "python3-rich",
        "python3-yaml",
        "tzdata",
        "zfsutils-linux",
    ]


def test_only_the_cron_and_logrotate_files_are_conffiles(unpacked: Path) -> None:
    conffiles = (unpacked / "DEBIAN" / "conffiles").read_text().split()
    assert sorted(conffiles) == ["/etc/cron.d/pve-zfsbackup", "/etc/logrotate.d/pve-zfsbackup"]


@pytest.mark.parametrize(
    ("directory", "mode"),
    [("etc/pve-zfsbackup", 0o700), ("var/lib/pve-zfsbackup", 0o700), ("var/log/pve-zfsbackup", 0o750)],
)
def test_directories_are_closed_to_others(unpacked: Path, directory: str, mode: int) -> None:
    assert (unpacked / directory).stat().st_mode & 0o7777 == mode


def test_no_test_or_tool_is_shipped(unpacked: Path) -> None:
    modules = unpacked / "usr/lib/python3/dist-packages"
    assert sorted(path.name.split("-")[0] for path in modules.iterdir()) == ["pve_zfsbackup", "pve_zfsbackup"]


def test_example_is_the_one_of_the_definitions(unpacked: Path) -> None:
    example = unpacked / "usr/share/doc/pve-zfsbackup/examples/config.yaml"
    assert example.read_text() == example_config()


def test_every_command_has_its_man_page_and_none_has_a_fault(unpacked: Path) -> None:
    pages = sorted((unpacked / "usr/share/man").glob("man[58]/*.gz"))
    names = {path.name.removesuffix(".gz") for path in pages}
    assert names == {f"{name}.8" for name in command_names(cli, "pve-zfsbackup")} | {"pve-zfsbackup.yaml.5"}
    for page in pages:
        argv = ["man", "--warnings", "-Tutf8", "-Z", "-l", page]
        shown = subprocess.run(argv, check=False, env=DEBIAN, capture_output=True)
        assert shown.returncode == 0
        assert shown.stderr == b"", page.name


def test_cron_file_is_one_cron_accepts(unpacked: Path) -> None:
    text = (unpacked / "etc/cron.d/pve-zfsbackup").read_text()
    assert text.endswith("\n")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if "=" in line.split()[0]] == [
        "SHELL=/bin/sh",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]
    jobs = [re.fullmatch(r"(\d+) +(\*|\d+) \* \* (\*|\d) root (.*)", line) for line in lines[2:]]
    stages = [re.findall(r"(?:--stage|pve-zfsbackup verify) (\w+)", job[4]) for job in jobs if job]
    assert [(job[2], job[3]) for job in jobs if job] == [("*", "*"), ("3", "*"), ("4", "0")]
    assert stages == [["snapshot", "replicate", "archive"], ["prune"], ["pools", "points", "drill"]]
    assert all(job and "%" not in job[4] for job in jobs)  # cron makes a new line of it


def test_packages_are_the_same_when_built_again_elsewhere(deb: Path, tmp_path: Path) -> None:
    """From the source package, in another directory, in another time zone and language, with another umask."""
    (dsc,) = deb.parent.glob("*.dsc")
    source = tmp_path / "elsewhere" / "src"
    source.parent.mkdir()
    subprocess.run(["dpkg-source", "--no-check", "-x", dsc, source], check=True, stdout=subprocess.DEVNULL)
    environment = {
        **DEBIAN,
        "DEB_BUILD_OPTIONS": "nocheck",
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "C",
        "HOME": str(tmp_path),
        "COLUMNS": "60",
    }
    done = subprocess.run(
        ["nice", "dpkg-buildpackage", "-us", "-uc", "-b"],
        check=False,
        cwd=source,
        env=environment,
        umask=0o027,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    places = (deb.parent, source.parent)
    first, second = ({path.name: path.read_bytes() for path in place.glob("*.deb")} for place in places)
    assert sorted(name.partition("_")[0] for name in first) == ["pve-zfsbackup", "pve-zfsbackup-receiver"]
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_lintian_has_nothing_to_say(deb: Path) -> None:
    (changes,) = deb.parent.glob("*.changes")
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", "--display-info", "--pedantic", changes],
        check=False,
        env={**DEBIAN, "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")
