"""The simulated node, rebuilt from the recordings and served on loopback; needs `fakepve[crypto]`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [path for path in (str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent))
                if path not in sys.path]

from served import ScriptedAgent, Served  # noqa: E402 - the paths above come first


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Served]:
    """A served node as the recordings found it; all guests off."""
    served = Served.rebuilt(tmp_path)
    yield served
    served.stop()


@pytest.fixture
def agent(node: Served) -> Iterator[ScriptedAgent]:
    """VM 100 running (this process stands for it) with a scripted guest agent."""
    run = node.node.run_root / "qemu-server"
    (run / "100.pid").write_text(f"{os.getpid()}\n")
    scripted = ScriptedAgent()
    node.node.open_agent = scripted.connect
    yield scripted
    scripted.stop()
