"""Points that are received into a scratch: which of them one scratch can take."""

from __future__ import annotations

import pytest

from pve_zfsbackup.app.archive_received import _runs
from tests.archive.bench import Bench, noise

pytestmark = pytest.mark.processes


def runs(bench: Bench) -> list[list[int]]:
    """The sequence numbers of the points of each scratch."""
    (shelf,) = bench.catalog(identity=bench.identity).shelves
    return [[content.signed.outer.sequence for content in run] for run in _runs(shelf.contents)]


def test_a_chain_goes_into_one_scratch_and_a_disk_that_was_added_as_well(bench: Bench) -> None:
    bench.write(1, {"scsi0": noise(1, 300)})
    bench.write(2, {"scsi0": noise(2, 300), "scsi1": noise(3, 300)})
    bench.write(3, {"scsi0": noise(4, 300), "scsi1": noise(5, 300)})
    assert runs(bench) == [[1, 2, 3]]


def test_a_disk_that_comes_in_full_once_more_cannot_be_received_over_what_it_was(bench: Bench) -> None:
    """Removed and made anew: Proxmox gives the name again."""
    bench.write(1, {"scsi0": noise(1, 300), "scsi1": noise(2, 300)})
    bench.write(2, {"scsi0": noise(3, 300)})
    bench.write(3, {"scsi0": noise(4, 300), "scsi1": noise(5, 300)})
    bench.write(4, {"scsi0": noise(6, 300), "scsi1": noise(7, 300)})
    assert runs(bench) == [[1, 2], [3, 4]]
