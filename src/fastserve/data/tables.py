"""Formats that another library reads: parquet (pyarrow), and data sets of the Hugging Face hub (datasets)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastserve.data.blocks import RawBlock
from fastserve.data.sources import Source, open_file
from fastserve.errors import DataError, MissingExtraError

_ROWS = 8192


@dataclass(frozen=True)
class ParquetReader:
    """Rows are numbered from 1; a parquet file has no lines."""

    source: Source
    names: list[str]
    has_header: bool = True

    def blocks(self, wanted: Sequence[str]) -> Iterator[RawBlock]:
        import pyarrow
        import pyarrow.parquet

        row = 1
        with open_file(self.source) as file:
            try:
                for batch in pyarrow.parquet.ParquetFile(file).iter_batches(_ROWS, columns=list(wanted)):
                    columns = {name: batch.column(name).to_pylist() for name in wanted}
                    yield RawBlock(np.arange(row, row + batch.num_rows, dtype=np.int64), columns)
                    row += batch.num_rows
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{self.source.address} is damaged near row {row}: {error}") from None


def open_parquet(source: Source) -> ParquetReader:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(f"reading {source.address}", "parquet") from None
    with open_file(source) as file:
        try:
            schema = pyarrow.parquet.ParquetFile(file).schema_arrow
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{source.address} is not a whole parquet file: {error}") from None
    return ParquetReader(source, list(schema.names))


@dataclass(frozen=True)
class HubReader:
    """A data set of the hub. Rows are numbered from 1; class numbers become their names."""

    source: Source
    names: list[str]
    dataset: Any = field(repr=False)
    has_header: bool = True

    def blocks(self, wanted: Sequence[str]) -> Iterator[RawBlock]:
        for start in range(0, len(self.dataset), _ROWS):
            rows = self.dataset.select_columns(list(wanted))[start : start + _ROWS]
            columns = {name: self._named(name, rows[name]) for name in wanted}
            count = min(_ROWS, len(self.dataset) - start)
            yield RawBlock(np.arange(start + 1, start + 1 + count, dtype=np.int64), columns)

    def _named(self, column: str, cells: list[Any]) -> list[Any]:
        names = getattr(self.dataset.features[column], "names", None)
        if not names:
            return cells
        return [names[cell] if isinstance(cell, int) and cell >= 0 else None for cell in cells]


def open_hub(source: Source) -> HubReader:
    """`name` or `owner/name`, its "train" part unless `:part` follows."""
    name, _, split = source.address.partition(":")
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"there is no file {source.address}; to read it as the name of a Hugging Face data set install the extra "
            f"'remote': pip install 'fastserve-lm[remote]'"
        ) from None
    try:
        dataset = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # the library raises dozens of kinds, those of its HTTP client included
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"there is no file {source.address}, and the Hugging Face data set of that name could not be loaded "
            f"(no network, not in the local cache, or no such name): {reason}"
        ) from None
    return HubReader(source, list(dataset.column_names), dataset)
