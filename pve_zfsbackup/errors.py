"""One tree of faults.

Expected obstacles (a diverged replica, a guest that is locked) are values, see `model.Conflict`; what is
raised is a fault. Each fault carries what to do next (`hint`) and whether trying again may help (`transient`);
it is classified once, in `host/`, and nobody else reads error texts.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line, a contract: cron jobs and monitoring read them."""

    OK = 0
    PARTIAL = 1
    FAILED = 2
    CONFIG = 3
    LOCKED = 4


class BackupError(Exception):
    """Anything that went wrong: what happened, on which object; `hint` says what to do next."""

    exit_code: ExitCode = ExitCode.FAILED
    transient: bool = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def add_hint(error: BaseException, text: str) -> None:
    """More of what to do next: in the hint of a fault; of a signal, which has none, as a note that is shown."""
    if isinstance(error, BackupError):
        error.hint = "; ".join(part for part in (error.hint, text) if part)
    else:
        error.add_note(text)


class ConfigError(BackupError):
    """The configuration, or a file it names, cannot be used. Carries every problem found, not the first."""

    exit_code = ExitCode.CONFIG

    def __init__(self, problems: list[str], *, hint: str = "") -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = problems


class LockedError(BackupError):
    """Another run of pve-zfsbackup holds the lock."""

    exit_code = ExitCode.LOCKED


class CommandError(BackupError):
    """A program failed. The message holds program, object and the last lines of its stderr."""

    def __init__(self, message: str, *, hint: str = "", stderr: str = "", returncode: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.stderr = stderr
        self.returncode = returncode


class CommandTimeoutError(CommandError):
    """A program did not end within its time; whether its work was done is unknown."""

    transient = True


class NotInstalledError(CommandError):
    """The program is not on this host."""


class InterruptedRunError(CommandError):
    """We are being ended: streams were cut or not begun, and nothing is tried again."""


class QueuedError(CommandError):
    """An append-only target noted what was asked (exit status 75); its own maintenance does it later."""


class HostUnreachableError(CommandError):
    """ssh could not reach the host, or the connection broke (ssh exit status 255)."""

    transient = True


class AccessDeniedError(HostUnreachableError):
    """The host's sshd does not take our key: that does not pass by itself."""

    transient = False


class HostKeyError(CommandError):
    """The host's key is unknown or changed: never connect, a person must look."""


class ZfsError(CommandError):
    """`zfs` or `zpool` failed for a reason that has no class of its own."""


class DatasetNotFoundError(ZfsError):
    """The dataset or snapshot does not exist: the only answer that means absence."""


class SnapshotHeldError(ZfsError):
    """A snapshot cannot be destroyed because somebody holds it."""


class SnapshotBusyError(ZfsError):
    """Dataset is busy or has dependent clones; may pass by itself."""

    transient = True


class StreamBrokenError(ZfsError):
    """A stream ended before its end; what arrived is saved, and the next attempt goes on from there."""

    transient = True


class GivenUpError(CommandError):
    """A stream was ended because its disk is being taken away; what arrived stays, nothing is tried again."""


class ResumeRefusedError(ZfsError):
    """An interrupted receive cannot go on: its snapshot or base is gone, or its token is of no use."""


class DestinationModifiedError(ZfsError):
    """The target was written, or has snapshots the source does not know. Never forced."""


class OutOfSpaceError(ZfsError):
    """No space or quota exceeded. Nothing is deleted to make room."""


class PoolSuspendedError(ZfsError):
    """A pool's devices do not answer: nothing is asked of it, because every command would hang."""


class PoolReadOnlyError(ZfsError):
    """A pool was imported read-only: nothing can be received, held or destroyed there."""


class ForeignRootError(BackupError):
    """A target's root belongs to another cluster or node: nothing is sent there, nothing is removed."""


class FeatureMissingError(ZfsError):
    """The target's ZFS or pool lacks a feature the stream needs."""


class KeyRefusedError(ZfsError):
    """A key or passphrase does not open the dataset, or has a form that ZFS does not take."""


class StoreError(CommandError):
    """A storage box refused or failed, for a reason that may pass."""

    transient = True


class StoreFullError(StoreError):
    """The box has no room for what is to be put there. Nothing is deleted to make room."""

    transient = False


class StoreConflictError(StoreError):
    """Another file lies under the name of one that was to be put there; it is left as it is."""

    transient = False


class StoreForbiddenError(StoreError):
    """The box lets nothing be removed: an account that may only add, or a lock on what lies there."""

    transient = False


class SealError(CommandError):
    """age, zstd or ssh-keygen refused what it was given: a wrong key, or damaged data."""


class PveError(BackupError):
    """The Proxmox API refused or failed. `status` is the HTTP status, 0 when there was none."""

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class PveUnreachableError(PveError):
    """No answer of the API (connection, TLS, time-out, 595-599, one that is cut). Whether the call took effect is
    unknown."""

    transient = True


class PveTrustError(PveUnreachableError):
    """The server's certificate is not the expected one: nothing was sent, a person must look."""

    transient = False


class GuestMissingError(PveError):
    """The guest has no configuration on that node: gone, moved, or of the other kind. PVE says 500, never 404."""


class GuestChangedError(PveError):
    """The guest's configuration is another one than what was planned with: read it again."""

    transient = True


class AgentError(PveError):
    """The guest agent answered with an error inside HTTP 200 (pve-facts §d), or is not there."""


class GuestBusyError(BackupError):
    """Proxmox is at work on the guest (its configuration or its migration is locked): wait, or come back later."""

    transient = True


class FreezeError(BackupError):
    """The guest could not be frozen and the policy requires it."""

    def __init__(self, vmid: int, reason: str) -> None:
        told = f"guest {vmid}: quiescing is required, but {reason}"
        super().__init__(told, hint="make the guest agent work, or set quiesce: prefer")


class RoleError(BackupError):
    """A guest's role may not change hands: it could be written to in two places."""


class VerificationError(BackupError):
    """What was read back is not what was done."""


class NotBootedError(VerificationError):
    """A guest was started from a point, and did not come up."""
