"""`python3 -m tests.conformance.record`: writes openzfs.json anew, on pve1 (PZB_LAB_ATTACH: of a lab that is up)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conformance.cases import CASES, KEY
from tests.conformance.fake import ROOT
from tests.conformance.transcript import comparable
from tests.lab.host import Host
from tests.lab.lab import borrowed

HERE = Path(__file__).parent


def play(host: Host) -> dict[str, list[dict[str, Any]]]:
    """All cases on a lab host, in one remote command."""
    host.write("/root/conformance.py", (HERE / "remote.py").read_text())
    asked = json.dumps({"cases": CASES, "root": ROOT, "key": KEY})
    told = json.loads(host.run(("python3", "/root/conformance.py"), input=asked, timeout=900).stdout)
    return {name: comparable(CASES[name], told[name], f"{ROOT}/{name}") for name in CASES}


def write(version: str, cases: dict[str, list[dict[str, Any]]]) -> None:
    text = json.dumps({"version": version, "cases": cases}, indent=1, ensure_ascii=False)
    (HERE / "openzfs.json").write_text(text + "\n")


def main() -> None:
    with borrowed() as lab:
        write(lab.pve1.run(("zfs", "version")).lines[0], play(lab.pve1))


if __name__ == "__main__":
    main()
