"""A few rows of the fault matrix, those that are quick; `make matrix` runs them all."""

from __future__ import annotations

import pytest

from tests.lab.matrix import inject
from tests.lab.matrix.__main__ import perform
from tests.lab.matrix.rows import REGISTRY
from tests.lab.matrix.table import Row, table
from tests.lab.product import Product

FAST = REGISTRY.chosen(fast=True)


@pytest.fixture(scope="module")
def prepared(product: Product) -> Product:
    for host in (product.pve1, product.backup1):
        inject.prepare(host)
    return product


@pytest.mark.parametrize("row", FAST, ids=lambda row: f"row-{row.number}")
def test_nothing_is_lost(prepared: Product, row: Row) -> None:
    outcome = perform(prepared, row)
    assert outcome.result == "passed", "\n" + table([outcome])
