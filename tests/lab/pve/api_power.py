"""Start and stop: VMs are pve-guest@VMID.service, containers a marker file."""

import time
from typing import Any

from fakepve.model import PveError

from .api_guests import check_lock
from .node import Node, Values, api
from .tasks import Task

_PATIENCE = 60.0  # seconds until a started guest must have its process


def _switch(node: Node, v: Values, who: str, on: bool) -> Any:
    vmid = int(v["vmid"])
    node.etc.conf("qemu", vmid)

    def body(task: Task) -> None:
        conf = node.etc.conf("qemu", vmid)
        check_lock(conf)
        if on and conf.main.get("template") == "1":
            raise PveError(500, "you can't start a vm if it's a template")
        if on and node.running("qemu", vmid):
            raise PveError(500, f"VM {vmid} already running")
        if on and conf.pending:
            conf.main, conf.pending = conf.merged(), {}
            node.etc.save(vmid, conf)
        node.runner("systemctl", "start" if on else "stop", f"pve-guest@{vmid}")
        deadline = time.monotonic() + _PATIENCE
        while node.running("qemu", vmid) != on:
            if time.monotonic() > deadline:
                raise PveError(500, f"start failed: VM {vmid} did not come up" if on else "VM quit/powerdown failed")
            time.sleep(0.2)
    return node.tasks.start("qmstart" if on else "qmstop", str(vmid), who, body)


@api("POST", "/nodes/{node}/qemu/{vmid}/status/start")
def vm_start(node: Node, v: Values, who: str) -> Any:
    """Start a VM; its pending changes apply."""
    return _switch(node, v, who, True)


@api("POST", "/nodes/{node}/qemu/{vmid}/status/stop")
def vm_stop(node: Node, v: Values, who: str) -> Any:
    """Stop a VM."""
    return _switch(node, v, who, False)


@api("POST", "/nodes/{node}/qemu/{vmid}/status/shutdown")
def vm_shutdown(node: Node, v: Values, who: str) -> Any:
    """Shut a VM down; the lab's guests always obey."""
    if not node.running("qemu", int(v["vmid"])):
        raise PveError(500, f"VM {v['vmid']} not running")
    return _switch(node, v, who, False)


def _switch_ct(node: Node, v: Values, who: str, on: bool) -> Any:
    vmid = int(v["vmid"])
    check_lock(node.etc.conf("lxc", vmid))
    marker = node.run_root / "lxc" / f"{vmid}.running"

    def body(task: Task) -> None:
        if marker.exists() == on:
            raise PveError(500, f"CT {vmid} {'already' if on else 'not'} running")
        if on:
            marker.touch()
        else:
            marker.unlink()
    return node.tasks.start("vzstart" if on else "vzstop", str(vmid), who, body)


@api("POST", "/nodes/{node}/lxc/{vmid}/status/start")
def ct_start(node: Node, v: Values, who: str) -> Any:
    """Start a container."""
    return _switch_ct(node, v, who, True)


@api("POST", "/nodes/{node}/lxc/{vmid}/status/stop")
def ct_stop(node: Node, v: Values, who: str) -> Any:
    """Stop a container."""
    return _switch_ct(node, v, who, False)


@api("POST", "/nodes/{node}/lxc/{vmid}/status/shutdown")
def ct_shutdown(node: Node, v: Values, who: str) -> Any:
    """Shut a container down; the lab's always obey."""
    return _switch_ct(node, v, who, False)
