"""Publishing in a box: small files in order, the outer manifest last; statements about what is alive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from pve_zfsbackup.app.archive_upload import Stamina, Uploads
from pve_zfsbackup.app.box import Vault, fresh
from pve_zfsbackup.app.catalog import Shelf
from pve_zfsbackup.archive.chain import Head, Signed, seen_of, series_name
from pve_zfsbackup.archive.names import OUTER, OUTER_SIGNATURE, opaque
from pve_zfsbackup.archive.outer import REMOVAL, Alive, Outer, digest
from pve_zfsbackup.host.notebook import read_json, write_json
from pve_zfsbackup.host.store import Upload

GIVEN_UP = "given-up.json"  # in the state directory


def series_state(vault: Vault, series: str, shelf: Shelf | None) -> tuple[Head, tuple[Alive, ...]]:
    """What the next manifest follows. After an older state was put in place it follows the newest that was seen."""
    seen = seen_of(vault.heads(), series_name(vault.writer, series))
    head = shelf.series.head if shelf else None
    if seen is not None and (head is None or seen.sequence > head.sequence):
        head = seen
    alive = tuple(content.signed.alive for content in shelf.contents) if shelf else ()
    return head or Head(sequence=0, sha256=""), alive


def publish_removal(vault: Vault, stamina: Stamina, shelf: Shelf, going: Sequence[str], made: str) -> Signed:
    """State that these points are no longer alive, before they are taken away; it is remembered that we did."""
    give_up(vault, given_up(vault).union(going))
    head, alive = series_state(vault, shelf.series.id, shelf)
    outer = Outer(
        what=REMOVAL,
        writer=vault.writer,
        series=shelf.series.id,
        generation=shelf.contents[-1].signed.outer.generation,
        point=opaque(),
        sequence=head.sequence + 1,
        previous=head.sha256,
        parent="",
        parent_point="",
        made=made,
        alive=tuple(entry for entry in alive if entry.point not in going),
    )
    publish_manifests(vault, stamina, outer, {})
    signed = Signed(outer=outer, sha256=digest(outer.encode()))
    vault.remember(series_name(outer.writer, outer.series), Head(sequence=outer.sequence, sha256=signed.sha256))
    return signed


def given_up(vault: Vault) -> frozenset[str]:
    """Points that are being removed, by name. What else is not alive was taken away by somebody, and put back."""
    return frozenset(map(str, (read_json(vault.state / GIVEN_UP) or {}).get("points", ())))


def give_up(vault: Vault, points: Set[str]) -> None:
    write_json(vault.state / GIVEN_UP, {"points": sorted(points)})


def publish_manifests(vault: Vault, stamina: Stamina, outer: Outer, others: Mapping[str, bytes]) -> None:
    """The outer one last: with it, the point exists."""
    text = outer.encode()
    signature = vault.seal.sign(text, vault.box.signing_key_file)
    vault.seal.verify(text, signature, vault.box.signers_file, vault.writer)  # or nobody could read it
    put_texts(vault, stamina, f"{outer.writer}/{outer.path}", {**others, OUTER_SIGNATURE: signature, OUTER: text})


def put_texts(vault: Vault, stamina: Stamina, directory: str, texts: Mapping[str, bytes]) -> None:
    """Small files, in this order."""
    uploads = Uploads(vault.store, stamina, 1, vault.programs.cancel)
    with vault.scratch() as spool, uploads.running():
        files = []
        for name, data in texts.items():
            file = fresh(spool)
            file.write_bytes(data)
            files.append(Upload(file=file, path=f"{directory}/{name}", sha256=digest(data)))
        uploads.put(files)


def recipients(vault: Vault) -> tuple[str, ...]:
    """Those the segments are encrypted to."""
    lines = vault.box.recipients_file.read_text("utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
