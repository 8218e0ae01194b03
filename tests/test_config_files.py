"""Who may have written the configuration, who may read a secret (reliability.md §3, S6)."""

from __future__ import annotations

import os
import pickle
import traceback
from pathlib import Path

import pytest

from pve_zfsbackup.config import Secret, checked_secrets, find_secret, load_config, read_secret
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model import secrets
from pve_zfsbackup.model.secrets import redacted

TOKEN = "backup@pve!zfs=aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
ROOT = os.geteuid() == 0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "etc/config.yaml"
    path.parent.mkdir(mode=0o755)
    path.write_text("jobs: {}\n")
    path.chmod(0o644)
    return path


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "api.token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o644, 0o755])
def test_config_others_cannot_write_is_read(config: Path, mode: int) -> None:
    config.chmod(mode)
    assert load_config(config).jobs == {}


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660])
def test_config_others_can_write_is_refused(config: Path, mode: int) -> None:
    config.chmod(mode)
    assert f"{config}: mode {mode:04o} lets others write it" in refused(config)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_config_in_a_directory_others_can_write_is_refused(config: Path, mode: int) -> None:
    config.parent.chmod(mode)
    told = refused(config)
    assert f"{config.parent}: mode {mode:04o} lets others write it" in told
    assert "chmod go-w" in told


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
@pytest.mark.parametrize("which", ["file", "directory"])
def test_config_of_somebody_else_is_refused(config: Path, which: str) -> None:
    path = config if which == "file" else config.parent
    os.chown(path, 65534, 65534)
    assert f"{path}: owned by uid 65534, must be root's" in refused(config)


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_config_as_pmxcfs_shows_it_is_read(config: Path) -> None:
    config.chmod(0o640)
    os.chown(config, 0, 33)  # root:www-data
    assert load_config(config).jobs == {}


def test_symbolic_link_is_not_followed(config: Path) -> None:
    link = config.parent / "link.yaml"
    link.symlink_to(config)
    assert refused(link) == f"{link}: a symbolic link, which is not followed"


def test_linked_directory_is_judged_by_what_it_leads_to(config: Path) -> None:
    link = config.parent.parent / "link"
    link.symlink_to(config.parent)
    assert load_config(link / "config.yaml").jobs == {}
    config.parent.chmod(0o777)
    assert "mode 0777 lets others write it" in refused(link / "config.yaml")


def test_missing_file_says_how_to_get_one(config: Path) -> None:
    path = config.parent / "other.yaml"
    assert refused(path) == f"{path}: No such file or directory (`pve-zfsbackup setup` writes a first one)"
    assert "No such file" in refused(config.parent / "no/such/config.yaml")


def test_fifo_does_not_block(config: Path) -> None:
    fifo = config.parent / "fifo"
    os.mkfifo(fifo, 0o600)
    assert refused(fifo) == f"{fifo}: not a regular file"


def test_directory_is_not_a_file(config: Path) -> None:
    assert refused(config.parent).endswith("not a regular file")


def test_too_big_a_file_is_not_read(config: Path) -> None:
    config.write_bytes(b"#" * (1024 * 1024 + 1))
    assert "larger than 1048576 bytes" in refused(config)


def test_largest_file_is_read(config: Path) -> None:
    config.write_bytes(b"#" * (1024 * 1024))
    assert load_config(config).jobs == {}


def test_other_encodings_are_told_with_their_place(config: Path) -> None:
    config.write_bytes("jobs: {}\n# caf\xe9\n".encode("latin-1"))
    assert refused(config) == f"{config}:2:6: not UTF-8 text"


def test_byte_order_mark_and_windows_line_ends_are_fine(config: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbfjobs:\r\n  a: {guests: all}\r\n")
    assert list(load_config(config).jobs) == ["a"]


def test_hostile_file_name_is_made_visible(config: Path) -> None:
    assert "\n" not in refused(config.parent / "a\nb.yaml").splitlines()[0]
    assert r"a\nb.yaml" in refused(config.parent / "a\nb.yaml")


def test_secret_is_read_without_its_line_end(token: Path) -> None:
    assert read_secret(token).reveal() == TOKEN


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610])
def test_secret_others_can_read_is_refused(token: Path, mode: int) -> None:
    token.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        read_secret(token)
    assert str(token) in str(caught.value)
    assert "aaaaaaaa" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", b"a\0b", b"\xff\xfe", b"x" * 5000])
def test_anything_but_one_line_is_no_secret(token: Path, content: bytes) -> None:
    token.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_secret(token)
    assert str(token) in str(caught.value)
    assert "xxx" not in str(caught.value)


def test_undecodable_secret_is_not_in_the_traceback(token: Path) -> None:
    token.write_bytes(TOKEN.encode() + b"\xff")
    with pytest.raises(ConfigError) as caught:
        read_secret(token)
    told = "".join(traceback.format_exception(caught.value))
    assert "aaaaaaaa" not in told


def test_absent_secret_is_none_and_only_then(token: Path) -> None:
    assert find_secret(token.parent / "no.token") is None
    assert find_secret(token) == Secret(TOKEN)
    link = token.parent / "link"
    link.symlink_to("nowhere")
    with pytest.raises(ConfigError):
        find_secret(link)


def test_secret_never_shows_itself() -> None:
    secret = Secret(TOKEN)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r}", f"{secret:>80}", repr([secret])]
    assert not any("aaaaaaaa" in text for text in shown)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret == Secret(TOKEN)
    assert secret != Secret("other")
    assert secret != TOKEN
    assert len({secret, Secret(TOKEN)}) == 1


APPRISE = """\
# whoever reads this writes there
urls:
  - mailto://ops:c0rrect-horse@mail.example:
     - tag: everybody
  - slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ
  - json://gateway.example/hook
  - schema: pushover
    token: ajugtgrqmpu4
tgram://123456789:abcdefg_hijklmnop/12315544/
oncall=msteams://T0k3nA/T0k3nB/
"""


@pytest.fixture
def apprise(token: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(secrets, "_known", set())
    token.write_text(APPRISE)
    return token


def test_secrets_that_another_program_reads_are_hidden_from_then_on(apprise: Path) -> None:
    assert checked_secrets(apprise) == apprise
    words = (
        "c0rrect-horse", "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", "ajugtgrqmpu4", "T1JJ3T3L2",
        "/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", "abcdefg_hijklmnop", "msteams://T0k3nA/T0k3nB/",
    )  # fmt: skip
    assert [word for word in words if redacted(f"no answer to {word}") != "no answer to ***"] == []
    plain = "everybody at gateway.example: urls, schema: pushover; mail.example"
    assert redacted(plain) == plain


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("https://ntfy.example/backups", "tank/backups/pve1: no space left"),
        ("https://up.example/push/Zk3mQp8vTr?status=up&msg=heartbeat", "no heartbeat since noon"),
    ],
)
def test_ordinary_words_of_an_address_spoil_no_message(
    token: Path, monkeypatch: pytest.MonkeyPatch, address: str, text: str
) -> None:
    """The journal is read by people, and by us."""
    monkeypatch.setattr(secrets, "_known", set())
    token.write_text(address)
    read_secret(token)
    assert redacted(text) == text
    assert redacted(f"no answer from {address}") == "no answer from ***"
    assert redacted("url: /push/Zk3mQp8vTr") == ("url: ***" if "push" in address else "url: /push/Zk3mQp8vTr")


def test_ordinary_words_beside_secrets_are_no_secrets(apprise: Path) -> None:
    apprise.write_text(
        "- mailto://administrator@mail.example\n- json://localhost:8080/backups\n- key: /etc/ssl/private/ops.key\n"
        "- token: /Zm9vYmFyLzEyMw==\n"
    )
    checked_secrets(apprise)
    plain = "administrator of localhost:8080, tank/backups, /etc/ssl/private/ops.key"
    assert redacted(plain) == plain
    assert redacted("mailto://administrator@mail.example /Zm9vYmFyLzEyMw==") == "*** ***"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o602])
def test_secrets_of_another_program_that_others_can_read_or_write_are_refused(apprise: Path, mode: int) -> None:
    apprise.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        checked_secrets(apprise)
    assert str(apprise) in str(caught.value)
    assert "horse" not in str(caught.value)


def test_links_and_binary_files_are_no_secrets_of_another_program(apprise: Path) -> None:
    (link := apprise.parent / "link").symlink_to(apprise)
    with pytest.raises(ConfigError, match="not followed"):
        checked_secrets(link)
    for content in (b"", b"\xff\xfe", b"x" * (64 * 1024 + 1)):
        apprise.write_bytes(content)
        with pytest.raises(ConfigError, match=str(apprise)):
            checked_secrets(apprise)
