"""`setup box`: the keys an archive needs, the server's host key, and a file put there, read back and removed.

Made only where missing, so that it can be repeated: a key that is replaced would leave what it signed or opens
without it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.app.box import Vault, fresh, own_writer, public_key
from pve_zfsbackup.app.setup_account import Action
from pve_zfsbackup.app.target_hostkey import FINGERPRINT, KnownHosts
from pve_zfsbackup.archive.names import NAMESPACE
from pve_zfsbackup.archive.outer import digest
from pve_zfsbackup.config import Box
from pve_zfsbackup.errors import BackupError, ConfigError, StoreForbiddenError, VerificationError
from pve_zfsbackup.host.private import write_private
from pve_zfsbackup.host.seal import Seal
from pve_zfsbackup.host.store import Upload


@dataclass(slots=True, kw_only=True)
class BoxSetup:
    """One pass. `secret` is the new age identity, when one was made: to be shown once and kept nowhere."""

    box: Box
    seal: Seal
    accepted: str = ""  # fingerprint of the server's host key
    secret: str = ""
    actions: list[Action] = field(default_factory=list)

    def keys(self) -> None:
        """Everything that is a file of this node."""
        box = self.box
        box.recipients_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._recipients()
        if box.catalog_key_file.exists():
            self._done(box.catalog_key_file, "right", "opens manifests, no content")
        else:
            self.seal.new_identity(box.catalog_key_file)
            self._done(box.catalog_key_file, "created", "opens manifests, no content")
        if not box.signing_key_file.exists():
            self.seal.new_signing_key(box.signing_key_file, "pve-zfsbackup archive")
            self._done(box.signing_key_file, "created", "signs manifests")
        else:
            self._done(box.signing_key_file, "right", "signs manifests")
        self._signers()
        if box.directory is None and not box.remote and not box.identity_file.exists():
            self.seal.new_signing_key(box.identity_file, "pve-zfsbackup")
            self._done(box.identity_file, "created", f"add {box.identity_file}.pub to the account's keys on the box")

    def _recipients(self) -> None:
        box = self.box
        if box.recipients_file.exists():
            self._done(box.recipients_file, "right", "archives are encrypted to these")
            return
        text = self.seal.runner.run(("age-keygen",)).stdout
        public = [line.removeprefix("# public key: ") for line in text.splitlines() if line.startswith("# public key")]
        private = [line for line in text.splitlines() if line.startswith("AGE-SECRET-KEY-")]
        if len(public) != 1 or len(private) != 1:
            raise BackupError("age-keygen answered what is not understood", hint="is age installed?")
        write_private(box.recipients_file, f"{public[0]}\n")
        self.secret = private[0]
        self._done(box.recipients_file, "created", "archives are encrypted to its identity, which is shown once")

    def _signers(self) -> None:
        box = self.box
        key = " ".join(public_key(box).read_text("ascii").split()[:2])
        line = f'{own_writer(box)} namespaces="{NAMESPACE}" {key}'
        text = box.signers_file.read_text("utf-8") if box.signers_file.exists() else ""
        if line in text.splitlines():
            self._done(box.signers_file, "right", "whose signatures are believed")
            return
        write_private(box.signers_file, f"{text}{line}\n")
        self._done(box.signers_file, "changed" if text else "created", "this node's signatures are believed")

    def host_key(self) -> None:
        """Pin the server's key: the one whose fingerprint was given, nothing else. Raises `ConfigError` without."""
        box = self.box
        if box.directory is not None or box.remote:
            return
        hosts = KnownHosts(runner=self.seal.runner, file=box.known_hosts_file, host=box.host, port=box.port)
        if self.accepted and not FINGERPRINT.match(self.accepted):
            raise ConfigError([f"{self.accepted!r} is no fingerprint (SHA256:…)"])
        pinned = hosts.pinned()
        if pinned and (not self.accepted or self.accepted.rstrip("=") in [key.fingerprint for key in pinned]):
            self._done(box.known_hosts_file, "right", f"{hosts.name} {pinned[0].fingerprint}")
            return
        shown = hosts.scan()
        for key in shown:
            if key.fingerprint == self.accepted.rstrip("="):
                hosts.pin(key)
                self._done(box.known_hosts_file, "changed" if pinned else "created", f"{hosts.name} {key.fingerprint}")
                return
        told = ", ".join(f"{key.kind} {key.fingerprint}" for key in shown)
        raise ConfigError(
            [f"{hosts.name} shows {told}, and none of these is known to be right"],
            hint="compare with what the provider says, then give it by --accept-hostkey SHA256:…",
        )

    def _done(self, path: Path, state: str, detail: str = "") -> None:
        self.actions.append(Action(object=str(path), state=state, detail=detail))  # type: ignore[arg-type]


def try_out(vault: Vault) -> Action:
    """Put a file into the box, read it back and remove it. Raises what goes wrong; that nothing may be removed there is
    no fault, and remembered."""
    kept = ""
    data = secrets.token_bytes(1000)
    path = f"try-{secrets.token_hex(8)}/file"
    with vault.store.kept(), vault.scratch() as scratch:
        sent, back = fresh(scratch), fresh(scratch)
        sent.write_bytes(data)
        vault.store.put([Upload(file=sent, path=path, sha256=digest(data))])
        try:
            vault.store.get(path, back, len(data))
            if back.read_bytes() != data:
                raise VerificationError(f"box {vault.box.name}: gave back other bytes than it took")
        finally:
            try:
                vault.store.remove([path])
                vault.store.remove_directory(path.partition("/")[0])
            except StoreForbiddenError as error:
                kept = error.message
    vault.note_only_adds(kept)
    free = vault.store.free()
    room = f"{free >> 20} MiB free" if free is not None else "it does not say how much is free"
    takes = "takes files and gives them back" + (f", lets nothing be removed ({path} stays)" if kept else "")
    here = "; it lies on this node's own system disk: is it mounted?" if _on_system_disk(vault.box.directory) else ""
    return Action(object=f"box {vault.box.name}", state="right", detail=f"{takes}; {room}{here}")


def _on_system_disk(directory: Path | None) -> bool:
    """Whether a box that is a directory would fill this node's root: most likely a share that is not mounted."""
    return directory is not None and directory.stat().st_dev == Path("/").stat().st_dev


def escrow(vault: Vault) -> Iterator[str]:
    """What belongs into the safe besides the age identity, as lines to print: nothing secret."""
    box = vault.box
    yield f"Box {box.name} of pve-zfsbackup: what a restore needs when this node is gone"
    yield ""
    place = f"sftp://{box.user}@{box.host}:{box.port}/{box.path}"
    if box.directory or box.remote:
        place = str(box.directory / box.path) if box.directory else f"rclone {box.remote}"
    yield f"Where it is:            {place}"
    yield "How to get in:          the provider's account, or this node's ssh key"
    yield f"The age identities of:  {', '.join(_lines(box.recipients_file))}"
    yield "  (AGE-SECRET-KEY-1…, shown once by `setup box`; print it and put it here)"
    yield "Whose signatures count (archive.signers):"
    yield from (f"  {line}" for line in _lines(box.signers_file))
    yield "Newest states seen (series, number, sha256): an older one is not to be believed"
    yield from (f"  {series} {head.sequence} {head.sha256}" for series, head in sorted(vault.heads().items()))
    yield ""
    yield "With these and the box alone: `pve-zfsbackup restore`; or README.txt and restore.sh in every generation."
    yield "Nobody signed that restore.sh, and it is given the identity: put a copy of your own here as well,"
    yield "/usr/share/pve-zfsbackup/restore.sh, and use that one (its first lines tell how)."


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"], hint="`pve-zfsbackup setup box` makes it") from None
