"""A token's secret is shown once, to us alone: not in a message about an answer nobody understood."""

from __future__ import annotations

import pytest

from pve_zfsbackup.errors import PveError
from pve_zfsbackup.host.pvesh import PveshApi
from pve_zfsbackup.host.runner import Completed

SECRET = "01234567-89ab-cdef-0123-456789abcdef"


class Chatty:
    """A pvesh that says more than JSON when it makes a token."""

    def run(self, argv: tuple[str, ...], **_: object) -> Completed:
        answer = f'Wide character in print\n{{"full-tokenid":"u@pve!t","value":"{SECRET}"}}\n'
        return Completed(argv=argv, returncode=0, stdout=answer, stderr="")


def test_an_answer_that_is_not_understood_does_not_show_the_secret_in_it() -> None:
    with pytest.raises(PveError, match="Wide character") as caught:
        PveshApi(Chatty()).post("/access/users/u@pve/token/t")  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)
