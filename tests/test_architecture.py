"""The import rules and bans of the design, read from the syntax trees of every module that exists.

A new module of a known layer is covered by being there. A new top-level module may import the core alone until
`MAY_IMPORT` says more.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

PACKAGE = "pve_zfsbackup"
ROOT = Path(__file__).parent.parent / PACKAGE
MAX_LINES = 300
LONGER = {  # and why it is not cut
    "receiver.py": 1429,  # one file that an administrator reads and copies to hosts without us
}

CORE = frozenset({"model", "errors"})
ALL = frozenset({"app", "archive", "config", "events", "execute", "host", "plan", *CORE})
MAY_IMPORT = {
    "errors": frozenset[str](),
    "model": frozenset({"errors"}),
    "events": CORE,
    "plan": CORE,
    "config": CORE,
    "host": CORE | {"events"},
    "archive": CORE | {"events", "host"},
    "execute": CORE | {"events", "host", "archive"},
    "app": ALL,
    "report": CORE | {"events", "app", "config"},
    "terminal": CORE | {"events", "report", "drawn"},
    "drawn": CORE | {"events", "report"},
    "cli": ALL | {"report", "terminal"},
    "__main__": frozenset({"cli"}),
    "__init__": frozenset[str](),
    "receiver": frozenset[str](),  # one file, standard library only: it is copied to hosts without us
}
PURE = frozenset(
    [
        "__future__",
        "bisect",
        "collections",
        "collections.abc",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "fnmatch",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "math",
        "operator",
        "re",
        "shlex",
        "statistics",
        "string",
        "textwrap",
        "types",
        "typing",
        "zlib",
    ]
)
LIBRARIES = {  # not of the standard library, and who may know them
    "proxmoxer": {"host/pve.py"},
    "prometheus_client": {"report/metrics.py"},  # a recommendation: only `metrics` needs it
    "requests": {"host/pve.py", "host/notify.py"},
    "urllib3": {"host/pve.py", "host/notify.py"},
    "yaml": {"config/"},
    "click": {"cli.py", "cli/"},
    "rich": {"drawn.py"},  # which is imported only on a terminal: it takes time
}
SPAWNER = "host/runner.py"
SPAWNING_MODULES = frozenset({"subprocess", "pty", "multiprocessing", "concurrent.futures.process", "pexpect", "sh"})
SPAWNING_CALLS = re.compile(
    r"os\.(system|popen|fork|forkpty|exec\w+|spawn\w+|posix_spawnp?)|pty\.\w+|"
    r"asyncio\.(subprocess|create_subprocess_\w+)|\w+\.subprocess_(exec|shell)|\w*\.?ProcessPoolExecutor"
)
IMPURE_CALLS = re.compile(
    r"open|print|input|exec|eval|__import__|breakpoint|(\w+\.)*(now|utcnow|today)|(\w+\.)*(read|write)_(text|bytes)"
)
NETWORK = frozenset({"socket", "ssl", "http", "ftplib", "smtplib", "socketserver", "asyncio", "urllib.request"})
BANNED_NAMES = frozenset(["utils", "util", "helpers", "helper", "common", "misc", "tools", "stuff", "shared"])
BROAD = frozenset({"Exception", "BaseException"})
BROAD_ALLOWED = {  # "file.py:function" -> why nothing narrower will do and nothing is hidden
    "cli/__init__.py:main": "the outermost frame: a fault nobody foresaw is told with its traceback and an exit code",
    "host/notify.py:work": "raised again by Future.result, in the thread that waits for it",
    "app/archive.py:archive": "a bug of ours is told with its place, and is one box's trouble",
    "app/archive.py:_one": "the same, for one guest",
    "app/archive_expire.py:_expired": "the same, for one series",
    "app/snapshot.py:_one": "a bug of ours is told with its place, and is one guest's trouble",
    "app/prune.py:_each": "the same, for the guests whose snapshots go together, and then for each",
    "app/prune.py:decide": "the same, for one guest",
    "app/replicate.py:_one": "the same, for one target",
    "app/works.py:_plan": "the same, for one disk",
    "app/lanes.py:_collect": "the same, for the disks of one session",
    "app/finishing.py:finish": "the same, for the guests of one batch",
    "app/finishing.py:_settle": "the same, for each guest of a batch",
    "app/drill.py:_turn": "the same, for one guest's drill",
    "app/planting.py:_planted": "the same, for one guest's canary",
    "receiver.py:root": "a bug of ours, and what a source can make of its own root, is that root's trouble",
    "receiver.py:check": "the same; what is told is critical",
}


# What cron calls most loads only what it needs: modules, and how many of ours there may be. Room for one or two.
LOADS = {
    "snapshot": (("cli.work", "app.snapshot"), 85),
    "replicate": (("cli.work", "app.replicate"), 105),
    "prune": (("cli.work", "app.prune"), 93),
    "run": (("cli.work", "app.alerts", "app.snapshot", "app.replicate", "app.prune"), 120),
}
NEVER = re.compile(  # by any of them, whatever leads there
    r"(proxmoxer|prometheus_client|rich)(\..*)?|pve_zfsbackup\.(drawn|receiver|archive\..*|report\.page.*|config\.example|"
    r"model\.(archive|restore|drill|canary|health|aside|runs)|(app|plan)\.(archive|restore|drill|boot|failover|health|"
    r"history|box|setup|simulate|why)(_\w+|es)?|host\.(store|seal|sftp|drill|visit|restoring|pve)(_\w+)?)"
)
ONLY_TOLD = re.compile(r"(requests|urllib3)(\..*)?|pve_zfsbackup\.((app|plan|model)\.(alert\w*|messages)|host\.notify)")


@dataclass(frozen=True)
class Module:
    """A parsed file; `path` is relative to the package, with slashes."""

    path: str
    text: str

    @property
    def layer(self) -> str:
        return self.path.split("/")[0].removesuffix(".py")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def calls(self) -> list[tuple[str, ast.Call]]:
        """Every call with the name of what is called."""
        return [(dotted(node.func), node) for node in ast.walk(self.tree) if isinstance(node, ast.Call)]


@cache
def modules() -> list[Module]:
    found = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)
    return [Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in found]


def imports(module: Module) -> Iterator[str]:
    """Absolute names of all imported modules, wherever in the file; `from a import b` gives both a and a.b."""
    package = [PACKAGE, *module.path.split("/")[:-1]]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def layers_imported(module: Module) -> set[str]:
    names = (name.split(".") for name in imports(module) if name.startswith(f"{PACKAGE}."))
    return {parts[1] for parts in names if parts[1] not in ("__version__",)}


def dotted(node: ast.expr) -> str:
    try:
        return ast.unparse(node)
    except RecursionError:
        return ""


def within(path: str, places: set[str]) -> bool:
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)


# Rules: each yields what is wrong with one module.


def wrong_direction(module: Module) -> Iterator[str]:
    allowed = MAY_IMPORT.get(module.layer, CORE) | {module.layer}
    for layer in sorted(layers_imported(module) - allowed):
        yield f"{module.layer} must not import {layer}"


def impure_plan(module: Module) -> Iterator[str]:
    if module.layer != "plan":
        return
    for name in imports(module):
        top = name.split(".")[0]
        if top != PACKAGE and top not in PURE and name not in PURE:
            yield f"{name} is not on the list of what planners may import"
    for name, call in module.calls:
        if IMPURE_CALLS.fullmatch(name):
            yield f"line {call.lineno}: {name}() reaches outside"
        local = name.endswith("fromtimestamp") and len(call.args) + len(call.keywords) < 2
        if local or (name.endswith("astimezone") and not call.args):
            yield f"line {call.lineno}: {name}() without a zone takes the machine's"


def core_imports(module: Module) -> Iterator[str]:
    """model, errors, events and the receiver know the standard library alone."""
    if module.layer in ("model", "errors", "events", "receiver"):
        for name in imports(module):
            if name.split(".")[0] in LIBRARIES:
                yield f"imports {name}"


def receiver_alone(module: Module) -> Iterator[str]:
    """The receiver runs where nothing of ours and nothing but Python is installed."""
    if module.layer == "receiver":
        for name in sorted({name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names):
            yield f"{name} is not of the standard library"


def foreign_library(module: Module) -> Iterator[str]:
    for name in imports(module):
        top = name.split(".")[0]
        if top in LIBRARIES and not within(module.path, LIBRARIES[top]):
            yield f"only {', '.join(sorted(LIBRARIES[top]))} may import {top}"


def spawning(module: Module) -> Iterator[str]:
    if module.path == SPAWNER or module.layer == "receiver":
        return
    for name in imports(module):
        if name in SPAWNING_MODULES or SPAWNING_CALLS.fullmatch(name):
            yield f"imports {name}: only {SPAWNER} starts processes"
    for name, call in module.calls:
        if SPAWNING_CALLS.fullmatch(name):
            yield f"line {call.lineno}: {name}: only {SPAWNER} starts processes"


def shell(module: Module) -> Iterator[str]:
    for name, call in module.calls:
        for keyword in call.keywords:
            off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "shell" and not off:
                yield f"line {call.lineno}: {name}(shell=…)"


def network(module: Module) -> Iterator[str]:
    if module.layer not in ("host", "archive"):
        yield from (f"imports {name}: only host/ talks to the net" for name in imports(module) if name in NETWORK)


def unverified_tls(module: Module) -> Iterator[str]:
    for name, call in module.calls:
        for keyword in call.keywords:
            off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in ("verify", "verify_ssl", "check_hostname") and off:
                yield f"line {call.lineno}: {name}({keyword.arg}=False)"


def too_long(module: Module) -> Iterator[str]:
    lines, limit = len(module.text.splitlines()), LONGER.get(module.path, MAX_LINES)
    if lines > limit:
        yield f"{lines} lines, more than {limit}: cut it by what it is about"


def vague_name(module: Module) -> Iterator[str]:
    for part in module.path.removesuffix(".py").split("/"):
        if part in BANNED_NAMES:
            yield f"{part} says nothing about what belongs there"


def broad_except(module: Module) -> Iterator[str]:
    """Bare or broad handlers that do not raise again, and handlers that do nothing at all."""
    for function, node in handlers(module.tree):
        silent = all(isinstance(part, ast.Pass) or is_ellipsis(part) for part in node.body)
        if silent:
            yield f"line {node.lineno}: swallows {dotted(node.type) if node.type else 'everything'}"
        raises = isinstance(node.body[-1], ast.Raise)
        if caught_broadly(node.type) and not raises and f"{module.path}:{function}" not in BROAD_ALLOWED:
            yield f"line {node.lineno}: catches everything in {function} and goes on"
    for name, call in module.calls:
        if name.split(".")[-1] == "suppress" and any(caught_broadly(argument) for argument in call.args):
            yield f"line {call.lineno}: suppresses everything"


def handlers(node: ast.AST, function: str = "<module>") -> Iterator[tuple[str, ast.ExceptHandler]]:
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(child, ast.ExceptHandler):
            yield inner, child
        yield from handlers(child, inner)


def caught_broadly(kind: ast.expr | None) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(part is None or dotted(part).split(".")[-1] in BROAD for part in kinds)


def is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...


RULES = (
    wrong_direction,
    impure_plan,
    core_imports,
    receiver_alone,
    foreign_library,
    spawning,
    shell,
    network,
    unverified_tls,
    too_long,
    vague_name,
    broad_except,
)


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.path)
def test_module_keeps_the_rules(module: Module) -> None:
    assert [problem for rule in RULES for problem in rule(module)] == []


def test_all_modules_are_found() -> None:
    found = {module.path for module in modules()}
    assert {"model/steps.py", "errors.py", "plan/replication.py", "host/runner.py", "host/pve.py"} <= found


def test_every_package_is_one() -> None:
    """A folder without `__init__.py` is left out by tools that do not look for namespace packages."""
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_layers_have_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module in modules():
        graph.setdefault(module.layer, set()).update(layers_imported(module) - {module.layer})
    while graph:
        leaves = {layer for layer, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {layer: needs for layer, needs in graph.items() if layer not in leaves}


@pytest.mark.processes
@pytest.mark.parametrize("command", LOADS)
def test_a_command_loads_only_what_it_needs(command: str) -> None:
    """Each module costs milliseconds, and each frozen dataclass one; seconds of an emulated node. What a token needs to
    ask (requests and all below it) is loaded when there is one, and what tells alerts by `run` alone."""
    roots, most = LOADS[command]
    code = "".join(f"import {PACKAGE}.{root}\n" for root in roots) + "import sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert {f"{PACKAGE}.{root}" for root in roots} <= set(loaded)
    assert [name for name in loaded if NEVER.fullmatch(name)] == []
    assert command == "run" or [name for name in loaded if ONLY_TOLD.fullmatch(name)] == []
    assert sum(name.split(".")[0] == PACKAGE for name in loaded) <= most


def test_allowed_exceptions_still_exist() -> None:
    found = {f"{module.path}:{function}" for module in modules() for function, _ in handlers(module.tree)}
    assert BROAD_ALLOWED.keys() <= found


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("plan/x.py", "from pve_zfsbackup.host import zfs", "must not import host"),
        ("plan/x.py", "from ..host.zfs import run", "must not import host"),
        ("plan/x.py", "from .. import host", "must not import host"),
        ("plan/x.py", "def f():\n    import pve_zfsbackup.app.run", "must not import app"),
        ("plan/x.py", "from pve_zfsbackup import config", "must not import config"),
        ("plan/x.py", "import os", "os is not on the list"),
        ("plan/x.py", "from os import environ", "os is not on the list"),
        ("plan/x.py", "import logging", "logging is not on the list"),
        ("plan/x.py", "import random", "random is not on the list"),
        ("plan/x.py", "from time import time", "time is not on the list"),
        ("plan/x.py", "datetime.datetime.now(UTC)", "reaches outside"),
        ("plan/x.py", "date.today()", "reaches outside"),
        ("plan/x.py", "open('x')", "reaches outside"),
        ("plan/x.py", "datetime.fromtimestamp(1)", "takes the machine's"),
        ("plan/x.py", "when.astimezone()", "takes the machine's"),
        ("host/x.py", "from pve_zfsbackup.plan.points import points", "must not import plan"),
        ("host/x.py", "import pve_zfsbackup.cli", "must not import cli"),
        ("host/x.py", "from pve_zfsbackup.execute import Executor", "must not import execute"),
        ("execute.py", "from pve_zfsbackup.plan import points", "must not import plan"),
        ("execute.py", "from pve_zfsbackup import app", "must not import app"),
        ("app/x.py", "from pve_zfsbackup import cli", "must not import cli"),
        ("model.py", "from pve_zfsbackup.host import zfs", "must not import host"),
        ("model.py", "import yaml", "imports yaml"),
        ("errors.py", "from pve_zfsbackup.model import Guid", "must not import model"),
        ("brandnew.py", "from pve_zfsbackup.host import zfs", "must not import host"),
        ("receiver.py", "from pve_zfsbackup.errors import BackupError", "must not import errors"),
        ("receiver.py", "from pve_zfsbackup import __version__", "not of the standard library"),
        ("receiver.py", "def f():\n    import click", "click is not of the standard library"),
        ("receiver.py", "x = 1\n" * 1430, "1430 lines"),
        ("host/x.py", "import subprocess", "starts processes"),
        ("app/x.py", "from subprocess import run", "starts processes"),
        ("app/x.py", "import os\nos.system('true')", "starts processes"),
        ("app/x.py", "from os import execv", "starts processes"),
        ("app/x.py", "os.posix_spawn('/bin/true', [], {})", "starts processes"),
        ("app/x.py", "from multiprocessing import Pool", "starts processes"),
        ("app/x.py", "futures.ProcessPoolExecutor()", "starts processes"),
        ("host/runner.py", "subprocess.run('x', shell=True)", "shell="),
        ("host/runner.py", "subprocess.run('x', shell=flag)", "shell="),
        ("host/api.py", "import proxmoxer", "may import proxmoxer"),
        ("host/x.py", "import requests.adapters", "may import requests"),
        ("app/x.py", "from yaml import safe_load", "may import yaml"),
        ("report/x.py", "import click", "may import click"),
        ("app/x.py", "import socket", "talks to the net"),
        ("host/pve.py", "requests.get(url, verify=False)", "verify=False"),
        ("app/utils.py", "", "says nothing"),
        ("helpers/zfs.py", "", "says nothing"),
        ("app/x.py", "x = 1\n" * 301, "301 lines"),
        ("app/x.py", "try:\n    f()\nexcept:\n    g()", "catches everything"),
        ("app/x.py", "try:\n    f()\nexcept Exception as e:\n    g(e)", "catches everything"),
        ("app/x.py", "try:\n    f()\nexcept (OSError, BaseException):\n    g()", "catches everything"),
        ("app/x.py", "try:\n    f()\nexcept OSError:\n    pass", "swallows OSError"),
        ("app/x.py", "try:\n    f()\nexcept OSError:\n    ...", "swallows OSError"),
        ("app/x.py", "with suppress(Exception):\n    f()", "suppresses everything"),
    ],
)
def test_the_rules_see_what_breaks_them(path: str, text: str, problem: str) -> None:
    module = Module(path, text)
    found = [told for rule in RULES for told in rule(module)]
    assert any(problem in told for told in found), found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("plan/x.py", "from pve_zfsbackup.plan.points import points\nfrom ..model import Plan\nimport re"),
        ("plan/x.py", "from collections.abc import Iterable\ndatetime.fromtimestamp(1, tz)\nx.astimezone(UTC)"),
        ("host/runner.py", "import subprocess\nsubprocess.Popen(argv, shell=False)"),
        ("host/pve.py", "import requests\nfrom proxmoxer import ProxmoxAPI"),
        ("app/x.py", "try:\n    f()\nexcept BaseException:\n    undo()\n    raise"),
        ("app/x.py", "from concurrent.futures import ThreadPoolExecutor\nimport os\nos.path.exists('x')"),
        ("app/x.py", "with suppress(FileNotFoundError):\n    f()"),
        ("app/x.py", "x = 1\n" * 300),
    ],
)
def test_the_rules_leave_the_rest_alone(path: str, text: str) -> None:
    module = Module(path, text)
    assert [told for rule in RULES for told in rule(module)] == []
