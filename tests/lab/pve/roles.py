"""The built-in roles of Proxmox VE 8 and 9 (source: pve-facts §m, PVE::AccessControl's privilege groups)."""

_GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "VM": {
        "admin": ("VM.Allocate", "VM.Clone", "VM.Config.CPU", "VM.Config.Disk", "VM.Config.HWType",
                  "VM.Config.Memory", "VM.Config.Network", "VM.Config.Options", "VM.Migrate", "VM.Replicate",
                  "VM.Snapshot", "VM.Snapshot.Rollback"),
        "user": ("VM.Backup", "VM.Config.CDROM", "VM.Config.Cloudinit", "VM.Console", "VM.PowerMgmt"),
        "audit": ("VM.Audit",),
    },
    "Sys": {"root": ("Sys.PowerMgmt", "Sys.Modify", "Sys.Incoming", "Sys.AccessNetwork"),
            "admin": ("Sys.Console", "Sys.Syslog"), "audit": ("Sys.Audit",)},
    "Datastore": {"admin": ("Datastore.Allocate", "Datastore.AllocateTemplate"),
                  "user": ("Datastore.AllocateSpace",), "audit": ("Datastore.Audit",)},
    "SDN": {"admin": ("SDN.Allocate",), "user": ("SDN.Use",), "audit": ("SDN.Audit",)},
    "User": {"root": ("Realm.Allocate",), "admin": ("User.Modify", "Group.Allocate", "Realm.AllocateUser")},
    "Pool": {"admin": ("Pool.Allocate",), "audit": ("Pool.Audit",)},
    "Mapping": {"admin": ("Mapping.Modify",), "user": ("Mapping.Use",), "audit": ("Mapping.Audit",)},
}
_AGENT_USER = ("VM.GuestAgent.FileRead", "VM.GuestAgent.FileSystemMgmt", "VM.GuestAgent.FileWrite",
               "VM.GuestAgent.Unrestricted")


def _pick(*pairs: tuple[str, str]) -> frozenset[str]:
    return frozenset(priv for group, level in pairs for priv in _GROUPS[group].get(level, ()))


def _all(*levels: str) -> frozenset[str]:
    return _pick(*((group, level) for group in _GROUPS for level in levels))


def builtin(major: int) -> dict[str, frozenset[str]]:
    """Role name to privileges; PVE 8 has VM.Monitor where 9 has VM.GuestAgent.* (pve-facts §m)."""
    agent_user = frozenset(_AGENT_USER) if major >= 9 else frozenset()
    agent_audit = frozenset(("VM.GuestAgent.Audit",)) if major >= 9 else frozenset()
    monitor = frozenset() if major >= 9 else frozenset(("VM.Monitor",))
    vm_user = _pick(("VM", "user"), ("VM", "audit")) | agent_user | agent_audit
    vm_admin = vm_user | _pick(("VM", "admin")) | monitor
    every = _all("root", "admin", "user", "audit") | vm_admin | {"Permissions.Modify"}
    storage = [("Datastore", level) for level in ("audit", "user", "admin")]
    return {
        "Administrator": every,
        "NoAccess": frozenset(),
        "PVEAdmin": _all("admin", "user", "audit") | vm_admin,
        "PVEAuditor": _all("audit") | agent_audit,
        "PVEDatastoreAdmin": _pick(*storage),
        "PVEDatastoreUser": _pick(*storage[:2]),
        "PVEPoolAdmin": _pick(("Pool", "admin"), ("Pool", "audit")),
        "PVEPoolUser": _pick(("Pool", "audit")),
        "PVESysAdmin": _pick(("Sys", "admin"), ("Sys", "audit")),
        "PVETemplateUser": frozenset(("VM.Audit", "VM.Clone")),
        "PVEUserAdmin": _pick(("User", "admin")),
        "PVEVMAdmin": vm_admin,
        "PVEVMUser": vm_user,
    }
