"""Keys of encrypted datasets: made, tried, changed, brought into the safe; and what happens when it is cut anywhere."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pve_zfsbackup.app.keys import Keyring, failed
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.setup_account import Action
from pve_zfsbackup.errors import BackupError, CommandError, ConfigError, ExitCode, KeyRefusedError, VerificationError
from pve_zfsbackup.host.key_files import write_key
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE, Dataset
from tests.fakes.pools import Ds, Keys
from tests.fakes.runner import HERE, Fault, Killed
from tests.fakes.world import REPLICAS, World

NAME = Dataset("rpool/secret")
CRYPT = Dataset("rpool/crypt")
DISK = "rpool/crypt/vm-101-disk-0"
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
RAW = bytes(range(100, 132))


def nobody(name: Dataset) -> str:
    return ""


@pytest.fixture
def keyring(world: World) -> Keyring:
    """Each look at the clock is a minute later."""
    times: Iterator[datetime] = (NOW + timedelta(minutes=number) for number in range(10_000))
    return Keyring(host=Host(name=SOURCE, runner=world.runner), directory=world.place / "keys", now=lambda: next(times))


def crypt(world: World) -> Path:
    """The world's encrypted dataset with a key file, made by hand as the guide has it."""
    file = world.place / "zfs/crypt.key"
    write_key(file, RAW)
    root = world.source.datasets[CRYPT]
    root.keys, root.keylocation = Keys(keyformat="raw", secret=RAW), f"file://{file}"
    return file


def made(world: World, name: str = NAME) -> Ds:
    return world.source.datasets[name]


def change(keyring: Keyring, name: Dataset = CRYPT, key: Path | str | None = None) -> list[Action]:
    return keyring.change(name, key, nobody, ["backup1"], [])[0]


def states(actions: list[Action]) -> dict[str, str]:
    return {action.object: action.state for action in actions}


def files(world: World) -> list[Path]:
    return sorted(path for path in (world.place / "keys").rglob("*") if path.is_file())


# -- create


def test_a_key_is_thirty_two_random_bytes_of_roots_alone(world: World, keyring: Keyring) -> None:
    actions = list(keyring.create(NAME, None))
    (file,) = files(world)
    assert file == world.place / "keys/rpool/secret/20261126T120000Z.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o400
    assert all(
        stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (world.place / "keys").rglob("*") if path.is_dir()
    )
    assert len(file.read_bytes()) == 32
    assert (made(world).crypt, made(world).keylocation) == ("aes-256-gcm", f"file://{file}")
    assert made(world).keys == Keys(keyformat="raw", secret=file.read_bytes())
    assert states(actions) == {str(file): "created", NAME: "created"}


def test_made_again_it_is_right(world: World, keyring: Keyring) -> None:
    list(keyring.create(NAME, None))
    (again,) = keyring.create(NAME, None)
    assert again.state == "right"
    assert len(files(world)) == 1


def test_no_key_and_no_passphrase_is_in_an_argument_a_report_or_an_error(world: World, keyring: Keyring) -> None:
    told = [*keyring.create(NAME, "correct horse"), *keyring.create(Dataset("rpool/other"), None)]
    with pytest.raises(KeyRefusedError) as caught:
        list(keyring.create(NAME, "wrong battery"))
    (file,) = files(world)
    words = " ".join([*map(str, told), str(caught.value), *(" ".join(ran.argv) for ran in world.runner.ran)])
    assert "correct horse" not in words
    assert "wrong battery" not in words
    assert file.read_bytes().hex() not in words
    assert made(world).keys == Keys(keyformat="passphrase", secret=b"correct horse")
    assert made(world).keylocation == "prompt"


def test_the_file_of_the_guide_is_refused_with_the_reason(world: World, keyring: Keyring) -> None:
    file = world.place / "guide.key"
    file.write_bytes(b"QUJD" * 16 + b"\n" + b"QUJD" * 6 + b"\n")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"base64 text of 66 bytes .*Raw key too long") as caught:
        list(keyring.create(NAME, file))
    assert "dd if=/dev/urandom" in caught.value.hint
    assert NAME not in world.source.datasets
    assert not world.runner.changes


def test_a_good_key_somebody_brings_is_used_and_one_others_may_read_is_not(world: World, keyring: Keyring) -> None:
    file = world.place / "own.key"
    file.write_bytes(RAW)
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644"):
        list(keyring.create(NAME, file))
    file.chmod(0o600)
    list(keyring.create(NAME, file))
    assert made(world).keylocation == f"file://{file}"
    assert files(world) == []


def test_what_exists_is_not_encrypted_by_magic(world: World, keyring: Keyring) -> None:
    with pytest.raises(ConfigError, match="exists, and is not encrypted") as caught:
        list(keyring.create(Dataset("rpool/data"), None))
    assert "qm disk move" in caught.value.hint
    with pytest.raises(ConfigError, match="opens with the key of rpool/crypt"):
        list(keyring.create(Dataset(DISK), None))
    assert not world.runner.changes
    assert files(world) == []


def test_a_key_that_encrypted_nothing_goes_and_one_that_may_have_stays(world: World, keyring: Keyring) -> None:
    with pytest.raises(CommandError):
        list(keyring.create(Dataset("rpool/no/such"), None))
    assert files(world) == []
    world.runner.faults = [Fault(words=("create",), error=CommandError("no end after 300 s")),
                           Fault(words=("list",), nth=2, error=CommandError("no end after 300 s"))]  # fmt: skip
    with pytest.raises(CommandError):
        list(keyring.create(NAME, None))
    assert len(files(world)) == 1, "nobody knows whether the dataset is there"


@pytest.mark.parametrize("lie", ["create", "load-key"])
def test_success_is_what_was_read_back(world: World, keyring: Keyring, lie: str) -> None:
    answer = None if lie == "create" else (255, "Key load error: Incorrect key provided for 'x'.")
    world.runner.faults = [Fault(words=(lie,), lie=answer is None, answer=answer)]
    with pytest.raises(VerificationError):
        list(keyring.create(NAME, None))


# -- test


def test_all_encryption_roots_are_tried_and_none_is_loaded(world: World, keyring: Keyring) -> None:
    file = crypt(world)
    list(keyring.create(NAME, None))
    world.source.datasets[NAME].key = False  # not loaded: it can be tried all the same
    world.runner.ran.clear()
    assert states(list(keyring.test((), None, nobody))) == {CRYPT: "right", NAME: "right"}
    assert not world.runner.changes
    file.chmod(0o640)
    (found,) = keyring.test((CRYPT,), None, nobody)
    assert (found.state, "0640" in found.detail) == ("warning", True)


def test_a_missing_and_a_wrong_and_a_mistaken_key_fail_with_the_reason(world: World, keyring: Keyring) -> None:
    file = crypt(world)
    for data, reason in ((RAW[::-1], "the key of something else"), (RAW + b"\n", "33 bytes"), (None, "No such file")):
        file.unlink()
        if data:
            write_key(file, data)
        (found,) = keyring.test((CRYPT,), None, nobody)
        assert (found.state, reason in found.detail) == ("failed", True), found.detail
        if data is None:
            break


def test_a_passphrase_is_asked_for_and_what_cannot_be_tried_says_so(world: World, keyring: Keyring) -> None:
    list(keyring.create(NAME, "correct horse"))
    world.source.datasets[CRYPT].keys = Keys(keyformat="raw", secret=RAW)
    (right,) = keyring.test((NAME,), None, lambda name: "correct horse")
    (wrong,) = keyring.test((NAME,), None, lambda name: "wrong horse")
    (untried,) = keyring.test((NAME,), None, nobody)
    assert (right.state, wrong.state, untried.state) == ("right", "failed", "warning")
    (raw,) = keyring.test((CRYPT,), None, nobody)
    assert (raw.state, "--key-file" in raw.detail) == ("warning", True)
    assert failed([right, wrong], ()) == (True, False)
    assert failed([wrong], ()) == (True, True)
    assert failed([right, untried], ()) == (False, False)
    assert failed([right, untried], (NAME,)) == (True, False)


def test_the_copy_from_the_safe_is_tried_on_a_replica(world: World, keyring: Keyring) -> None:
    file = crypt(world)
    world.run()
    there = Keyring(host=Host(name=SOURCE, runner=world.runner), directory=world.place / "keys")
    world.runner.pools[HERE] = world.target  # on the other host
    replica = Dataset(REPLICAS[DISK])
    (right,) = there.test((replica,), file, nobody)
    assert right.state == "right"
    other = world.place / "other.key"
    write_key(other, RAW[::-1])
    (wrong,) = there.test((replica,), other, nobody)
    assert wrong.state == "failed"


@pytest.mark.parametrize("name", ["rpool/data", DISK, "rpool/none"])
def test_what_has_no_key_of_its_own_is_told(keyring: Keyring, name: str) -> None:
    with pytest.raises(ConfigError):
        list(keyring.test((Dataset(name),), None, nobody))


# -- change


def test_the_old_key_is_proven_and_kept_and_the_new_one_opens(world: World, keyring: Keyring) -> None:
    old = crypt(world)
    actions = change(keyring)
    contents = {path.name: path.read_bytes() for path in files(world)}
    assert sorted(contents) == ["20261126T120100Z.key", "before-20261126T120000Z.key"]
    assert contents["before-20261126T120000Z.key"] == RAW == old.read_bytes()
    assert made(world, CRYPT).keys == Keys(keyformat="raw", secret=contents["20261126T120100Z.key"])
    assert actions[-1].state == "changed"
    change(keyring)  # now the old one lies there already
    assert len(files(world)) == 3
    assert contents.items() <= {path.name: path.read_bytes() for path in files(world)}.items()


def test_replicas_take_the_new_key_with_the_next_increment_and_keep_the_old_until_then(
    world: World, keyring: Keyring
) -> None:
    """OpenZFS: a raw stream carries the wrapped key of its moment, and the replica takes it over."""
    old = crypt(world)
    world.run()
    change(keyring)
    new = Path(made(world, CRYPT).keylocation.removeprefix("file://"))
    there = Keyring(host=Host(name=SOURCE, runner=world.runner), directory=world.place / "keys")
    replica = Dataset(REPLICAS[DISK])

    def opening(file: Path) -> str:
        world.runner.pools[HERE] = world.target
        (found,) = there.test((replica,), file, nobody)
        world.runner.pools[HERE] = world.source
        return found.state

    assert (opening(old), opening(new)) == ("right", "failed")
    world.write()
    assert world.run(Stage.SNAPSHOT, Stage.REPLICATE).exit_code is ExitCode.OK
    sent = [argv for argv in world.runner.zfs(HERE, "send") if DISK in argv[-1] and "-nvP" not in argv]
    assert "-w" in sent[-1]
    assert {"-i", "-I"} & set(sent[-1]), "the change costs no full stream"
    assert (opening(old), opening(new)) == ("failed", "right")


def test_a_key_that_does_not_open_is_not_changed_over(world: World, keyring: Keyring) -> None:
    file = crypt(world)
    file.unlink()
    write_key(file, RAW[::-1])
    with pytest.raises(KeyRefusedError):
        change(keyring)
    assert made(world, CRYPT).keys == Keys(keyformat="raw", secret=RAW)
    assert files(world) == []


@pytest.mark.parametrize(
    ("wreck", "reason"),
    [
        (lambda ds: setattr(ds, "key", False), "not loaded"),
        (lambda ds: setattr(ds, "origin", "rpool/x@y"), "is a clone"),
    ],
)
def test_what_zfs_would_refuse_is_told_before_anything_is_made(
    world: World, keyring: Keyring, wreck: object, reason: str
) -> None:
    crypt(world)
    assert callable(wreck)
    wreck(made(world, CRYPT))
    with pytest.raises(ConfigError, match=reason):
        change(keyring)
    assert files(world) == []


def test_from_a_passphrase_to_a_key_and_back(world: World, keyring: Keyring) -> None:
    list(keyring.create(NAME, "correct horse"))
    with pytest.raises(ConfigError, match="nobody can be asked"):
        change(keyring, NAME)
    _, notes = keyring.change(NAME, None, lambda name: "correct horse", [], [])
    assert "old passphrase" in " ".join(notes)
    change(keyring, NAME, "battery staple")
    assert made(world).keys == Keys(keyformat="passphrase", secret=b"battery staple")
    assert len(files(world)) == 1, "the raw key between is kept"


def test_the_same_file_and_a_bad_one_are_refused(world: World, keyring: Keyring) -> None:
    file = crypt(world)
    with pytest.raises(ConfigError, match="has already"):
        change(keyring, CRYPT, file)
    bad = world.place / "bad.key"
    bad.write_bytes(RAW + b"\n")
    with pytest.raises(ConfigError, match="33 bytes"):
        change(keyring, CRYPT, bad)
    assert made(world, CRYPT).keys == Keys(keyformat="raw", secret=RAW)


def test_a_change_that_failed_leaves_no_key_behind_but_one_of_unknown_end_does(world: World, keyring: Keyring) -> None:
    crypt(world)
    world.runner.faults = [Fault(words=("change-key",), answer=(255, "Key change error: dataset is busy"))]
    with pytest.raises(CommandError):
        change(keyring)
    assert [path.name.startswith("before-") for path in files(world)] == [True]
    world.runner.faults = [Fault(words=("change-key",), error=CommandError("no end after 300 s")),
                           Fault(words=("list",), nth=2, error=CommandError("no end after 300 s"))]  # fmt: skip
    with pytest.raises(CommandError):
        change(keyring)
    assert len(files(world)) == 3


@pytest.mark.parametrize("work", ["create", "change"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, 7))
def test_killed_anywhere_no_dataset_is_without_its_key_and_once_more_heals(
    world: World, keyring: Keyring, work: str, when: str, at: int
) -> None:
    crypt(world)
    name = NAME if work == "create" else CRYPT

    def once() -> None:
        if work == "create":
            list(keyring.create(NAME, None))
        else:
            change(keyring)

    world.runner.ran.clear()
    world.runner.kill_at, world.runner.kill_when = at, when
    try:
        once()
    except Killed:
        if name in world.source.datasets:
            keys = made(world, name).keys
            assert keys
            assert Path(made(world, name).keylocation.removeprefix("file://")).read_bytes() == keys.secret
    world.runner.revive()
    once()
    (found,) = keyring.test((name,), None, nobody)
    assert found.state == "right"
    assert RAW in [path.read_bytes() for path in (world.place / "zfs").iterdir()]


# -- the safe


def test_what_is_printed_for_the_safe_makes_the_key_again(world: World, keyring: Keyring) -> None:
    crypt(world)
    change(keyring)
    lines = list(keyring.escrow(CRYPT))
    digits = ["".join(line.split()) for line in lines if re.fullmatch(r"  ([0-9A-F]{4} ?){8}", line)]
    printed = [bytes.fromhex(a + b) for a, b in zip(digits[::2], digits[1::2], strict=True)]
    keys = made(world, CRYPT).keys
    assert keys
    assert printed == [keys.secret, RAW], "the present key first, then the old one that archives need"


def test_a_key_that_does_not_open_is_not_for_the_safe(world: World, keyring: Keyring) -> None:
    file = crypt(world)
    file.unlink()
    write_key(file, RAW[::-1])
    with pytest.raises(KeyRefusedError):
        list(keyring.escrow(CRYPT))


def test_a_passphrase_is_not_to_be_printed_by_anybody(world: World, keyring: Keyring) -> None:
    list(keyring.create(NAME, "correct horse"))
    told = "\n".join(keyring.escrow(NAME))
    assert "write it down" in told
    assert "correct" not in told


# -- files


def test_no_key_is_written_over_not_through_a_link_either(tmp_path: Path) -> None:
    file, other = tmp_path / "k", tmp_path / "other"
    write_key(file, RAW)
    with pytest.raises(ConfigError, match="File exists"):
        write_key(file, RAW[::-1])
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(ConfigError):
        write_key(tmp_path / "link", RAW)
    assert file.read_bytes() == RAW
    assert not other.exists()
    assert sorted(os.listdir(tmp_path)) == ["k", "link"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackupError, match="No space left"):
        write_key(tmp_path / "k", RAW)
    assert list(tmp_path.iterdir()) == []
