"""Make or refresh the virtual environment of the tests: `venv.py DIRECTORY`.

It gets the run-time and development libraries pyproject.toml names, and the simulator's as the lab's hosts have them,
from PyPI, but not the product: tests import that from the work tree. It is remade when one of these files or the
Python version changes, and otherwise left alone.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PYPROJECT = PROJECT / "pyproject.toml"
SIMULATOR = PROJECT / "tests" / "lab" / "image" / "wheels.txt"


def requirements() -> list[str]:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    simulator = [line for line in SIMULATOR.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return [*project["dependencies"], *project["optional-dependencies"]["dev"], *simulator]


def make(directory: Path) -> None:
    mark = directory / ".made-for"
    wanted = hashlib.sha256("\n".join((sys.version, *requirements())).encode()).hexdigest()
    if mark.exists() and mark.read_text() == wanted and (directory / "bin" / "python").exists():
        return
    if directory.is_dir() and any(directory.iterdir()) and not mark.exists():
        sys.exit(f"{directory} is not empty and was not made by this: PZB_VENV names another, or remove it")
    print(f"making {directory} with {len(requirements())} libraries and what they need", flush=True)
    if sys.prefix == sys.base_prefix:
        subprocess.run([str(PROJECT / "tools" / "need"), *debian_packages()], check=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    mark.touch()  # ours, even if it is interrupted now
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements()], check=True)
    mark.write_text(wanted)


def debian_packages() -> list[str]:
    """Debian keeps what a virtual environment is made from in a package of its own."""
    return ["python3-venv"] if sys.executable.startswith("/usr/bin/") else []


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY")
    try:
        make(Path(sys.argv[1]))
    except subprocess.CalledProcessError as fault:
        sys.exit(f"set-up of the virtual environment failed: exit status {fault.returncode}")
