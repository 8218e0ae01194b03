"""`key create`, `test`, `change`, `escrow` of encrypted datasets.

A key is on disk, whole and synced, before anything is encrypted with it, and none is ever removed but one that was
made a moment ago and encrypted nothing. What stands is read back: a key counts when `zfs load-key -n` took it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pve_zfsbackup.app.setup_account import Action, State
from pve_zfsbackup.errors import BackupError, CommandError, ConfigError, KeyRefusedError, VerificationError
from pve_zfsbackup.host.key_files import KEYS, discard_key, exposed, kept_keys, new_key, read_key, write_key
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs_keys import change_key, create_encrypted, encryption, encryption_of, try_key
from pve_zfsbackup.model import Dataset
from pve_zfsbackup.model.keys import Encryption
from pve_zfsbackup.plan.keys import consequences, judge_dataset, judge_passphrase, judge_raw_key, key_name

Ask = Callable[[Dataset], str]  # for the passphrase of a dataset; empty: there is nobody to ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The keys of this host. A `key` in its methods is the path of a key file, which is made where there is none, or
    a passphrase, or None for a new key of its own."""

    host: Host
    directory: Path = KEYS
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def create(self, name: Dataset, key: Path | str | None) -> Iterator[Action]:
        """Make an encrypted dataset with its key. One that is there with a key that opens it is right as it is."""
        if fault := judge_dataset(name):
            raise ConfigError([fault])
        if there := encryption_of(self.host, name):
            yield self._existing(there, key)
            return
        key, made = self._prepared(name, key)
        if isinstance(key, Path):
            yield _done(str(key), "created" if made else "right", "raw key, 32 bytes: `key escrow` it")
        try:
            create_encrypted(self.host, name, key)
        except CommandError:
            if made and isinstance(key, Path) and encryption_of(self.host, name) is None:
                discard_key(key)
            raise
        found = self._read_back(name, key)
        yield _done(name, "created", f"encrypted, {found.keyformat} key; {opens(found)}")

    def _existing(self, there: Encryption, key: Path | str | None) -> Action:
        if there.root is None:
            raise ConfigError(
                [f"{there.name} exists, and is not encrypted"],
                hint="ZFS encrypts nothing that exists: make a new dataset, add it to Proxmox (pvesm add zfspool …) "
                "and move the disks there (qm disk move, pct move-volume)",
            )
        if there.root != there.name:
            raise ConfigError(
                [f"{there.name} exists, and opens with the key of {there.root}"], hint=f"test it: key test {there.root}"
            )
        if there.keylocation == "prompt" and not key:
            raise ConfigError([f"{there.name} exists, with a {there.keyformat} key"], hint="test it: key test")
        try_key(self.host, there.name, key)
        return _done(there.name, "right", f"is there, encrypted, and {opens(there)}")

    def change(
        self, name: Dataset, key: Path | str | None, old: Ask, targets: Sequence[str], boxes: Sequence[str]
    ) -> tuple[list[Action], tuple[str, ...]]:
        """Give an encryption root another key; what was done, and what it means for what was sent before.

        The old key is proven and put aside first. Raises `KeyRefusedError` when the dataset's own key does not open it:
        then nobody has the key that archives need, and changing it would hide that.
        """
        present = self._root(name)
        if present.origin:
            raise ConfigError(
                [f"{name} is a clone: it opens with the key of {present.origin}, which cannot be changed"]
            )
        if not present.loaded:
            raise ConfigError([f"{name}: its key is not loaded"], hint=f"zfs load-key {name}, then again")
        passphrase = old(name) if present.keylocation == "prompt" else None
        if passphrase == "":
            raise ConfigError([f"{name}: its present key must be proven before it is changed, and nobody can be asked"])
        try_key(self.host, name, passphrase)
        if isinstance(key, Path) and str(key) == present.key_file:
            raise ConfigError([f"{key} is the key {name} has already"])
        actions = [*self._put_aside(present)]
        kept = actions[-1].object if actions else present.key_file
        key, made = self._prepared(name, key)
        if isinstance(key, Path):
            actions.append(_done(str(key), "created" if made else "right", "the new key, 32 bytes"))
        try:
            change_key(self.host, name, key)
        except CommandError:
            # Only when the dataset says that it still has the old one; otherwise this may be the only key there is.
            if made and isinstance(key, Path) and self._still(present):
                discard_key(key)
            raise
        found = self._read_back(name, key)
        actions.append(_done(name, "changed", f"{found.keyformat} key; {opens(found)}"))
        return actions, consequences(name, kept, targets, boxes)

    def _put_aside(self, present: Encryption) -> Iterator[Action]:
        """A copy of the old key under a name with the date, where it does not lie with the others anyway."""
        if not present.key_file:
            return
        file = Path(present.key_file)
        if file.parent == self.directory / present.name:
            yield _done(str(file), "kept", "the old key: archives and replicas need it")
            return
        copy = self.directory / key_name(present.name, self.now(), prefix="before-")
        write_key(copy, read_key(file))
        yield _done(str(copy), "created", f"copy of the old key, {file}: archives and replicas need it")

    def _still(self, before: Encryption) -> bool:
        now = encryption_of(self.host, before.name)
        return now is not None and (now.keylocation, now.keyformat) == (before.keylocation, before.keyformat)

    def test(self, names: Sequence[Dataset], key: Path | None, ask: Ask) -> Iterator[Action]:
        """Whether keys open what they should: of these datasets, or of all encryption roots of this host; with `key`,
        whether that file does. A key that cannot be tried is a warning."""
        found = [self._root(name) for name in names] or [e for e in encryption(self.host) if e.root == e.name]
        for present in found:
            yield self._tested(present, key, ask)

    def _tested(self, present: Encryption, key: Path | None, ask: Ask) -> Action:
        tried: Path | str | None = key
        if key is None and present.keylocation == "prompt":
            tried = ask(present.name) if present.keyformat == "passphrase" else ""
            if not tried:
                hint = "name its key: --key-file FILE" if present.keyformat == "raw" else "run this on a terminal"
                return _done(present.name, "warning", f"not tried: it has a {present.keyformat} key by prompt; {hint}")
        file = key or (Path(present.key_file) if present.key_file else None)
        try:
            try_key(self.host, present.name, tried)
        except KeyRefusedError as error:
            return _done(
                present.name, "failed", f"does not open with {_told(tried, file)}: {self._why(present, file, error)}"
            )
        except CommandError as error:
            return _done(present.name, "failed", error.message)
        said = f"opens with {_told(tried, file)}"
        open_to = exposed(file) if file else ""
        return _done(present.name, "warning" if open_to else "right", f"{said}, but {open_to}" if open_to else said)

    def _why(self, present: Encryption, file: Path | None, error: KeyRefusedError) -> str:
        """What ZFS said, or the reason behind it where the file tells."""
        if file is None or present.keyformat != "raw":
            return error.message
        try:
            bad = judge_raw_key(read_key(file), str(file))
        except ConfigError as unreadable:
            return unreadable.message
        return f"{bad.reason}; {bad.remedy}" if bad else "it is the key of something else"

    def escrow(self, name: Dataset) -> Iterator[str]:
        """What belongs into the safe for an encrypted dataset, keys included, as lines to print. The present key is
        proven first; raises `KeyRefusedError` when it does not open the dataset."""
        present = self._root(name)
        yield f"Encrypted dataset {name}: what opens it, its replicas and its archives"
        yield ""
        if present.key_file:
            try_key(self.host, name)
        if present.keyformat != "raw":
            yield f"It has a {present.keyformat} key by {present.keylocation}: write it down here; nothing else has it."
        files = {present.key_file: "the present key"} if present.key_file and present.keyformat == "raw" else {}
        for path in reversed(kept_keys(self.directory / name)):
            files.setdefault(str(path), "an older key: what was sent while it was in use opens with it")
        for file, meaning in files.items():
            yield from _printed(Path(file), meaning)
        yield "To have such a file again, type the digits, then Ctrl-D:"
        yield "  umask 377; tr -d ' \\n' | basenc --base16 -d > FILE"
        yield f"To try it: pve-zfsbackup key test --key-file FILE {name}   (or a replica of it on the other host)"
        yield "To open:   zfs load-key -L file://FILE DATASET"

    def _root(self, name: Dataset) -> Encryption:
        present = encryption_of(self.host, name)
        if present is None:
            raise ConfigError([f"dataset {name} does not exist"])
        if present.root is None:
            raise ConfigError([f"{name} is not encrypted"], hint="`key create` makes an encrypted dataset")
        if present.root != name:
            raise ConfigError([f"{name} opens with the key of {present.root}"], hint=f"name {present.root} instead")
        return present

    def _prepared(self, name: Dataset, key: Path | str | None) -> tuple[Path | str, bool]:
        """The key to encrypt with, and whether it was made just now. Raises `ConfigError` for one ZFS would refuse."""
        if isinstance(key, str):
            if fault := judge_passphrase(key):
                raise ConfigError([fault])
            return key, False
        file = key or self.directory / key_name(name, self.now())
        if key is None or not key.exists():
            write_key(file, new_key())
            return file, True
        if bad := judge_raw_key(read_key(key), str(key)):
            raise ConfigError([f"{key} is no raw key: {bad.reason}"], hint=bad.remedy)
        if open_to := exposed(key):
            raise ConfigError([f"{key}: {open_to}"])
        return key, False

    def _read_back(self, name: Dataset, key: Path | str) -> Encryption:
        found = encryption_of(self.host, name)
        wanted = "" if isinstance(key, str) else str(key)
        if found is None or found.root != name or found.key_file != wanted:
            raise VerificationError(f"{name}: it is not encrypted as it was told to be", hint="look at it: zfs get all")
        try:
            try_key(self.host, name, key)
        except KeyRefusedError as error:
            raise VerificationError(
                f"{name}: does not open with the key it was given: {error.message}",
                hint="do not unload its key; move what is in it elsewhere",
            ) from None
        return found


def opens(found: Encryption) -> str:
    return f"opens with {found.key_file}" if found.key_file else "opens with its passphrase"


def failed(actions: Sequence[Action], names: Sequence[Dataset]) -> tuple[bool, bool]:
    """Whether some and whether all of the tests failed; a dataset that was named and not tried counts as one."""
    bad = [a for a in actions if a.state == "failed" or (names and a.detail.startswith("not tried"))]
    return bool(bad), bool(bad) and len(bad) == len(actions)


def _printed(file: Path, meaning: str) -> Iterator[str]:
    try:
        key = read_key(file)
    except BackupError as error:
        yield f"{file}: cannot be read: {error.message}"
        return
    if judge_raw_key(key):
        yield f"{file}: is no raw key, and not printed: put a copy of the file itself into the safe"
        return
    digits = key.hex().upper()
    groups = [digits[at : at + 4] for at in range(0, 64, 4)]
    yield f"{file}: {meaning}"
    yield f"  {' '.join(groups[:8])}"
    yield f"  {' '.join(groups[8:])}"
    yield f"  (32 bytes; their sha256 begins with {hashlib.sha256(key).hexdigest()[:8]})"
    yield ""


def _told(tried: Path | str | None, file: Path | None) -> str:
    return "the passphrase" if isinstance(tried, str) else str(file)


def _done(name: str, state: State, detail: str) -> Action:
    return Action(object=name, state=state, detail=detail)
