"""The registry that every module of rows adds to. A new row: one function with `@row(...)` in one of them."""

from __future__ import annotations

from tests.lab.matrix.table import Registry

REGISTRY = Registry()
row = REGISTRY.row
