"""Where genes lie on the chromosomes, from a file."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pandas as pd

_COLUMNS = ("gene", "chromosome", "start", "end")
_SEPARATORS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
_ATTRIBUTE = re.compile(r'(gene_id|gene_name) "([^"]+)"')


def read_gene_positions(path: str | Path) -> pd.DataFrame:
    """Chromosome, start and end of genes (index), from a GTF file or a table; compressed by gzip or not.

    Of a GTF file, lines of genes are read, and each gene is known by its symbol as well as by its id, with and without
    version. Names that stand for several places are left out. Chromosomes are named as in ``chr1``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is neither a GTF file nor a table with these columns, or holds no genes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"gene_positions={str(path)!r}: there is no such file")
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind.lower() in (".gtf", ".gff2"):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            found = pd.DataFrame(_genes_of_gtf(lines, path), columns=list(_COLUMNS))
    elif kind.lower() in _SEPARATORS:
        found = _table(path, _SEPARATORS[kind.lower()])
    else:
        raise ValueError(
            f"gene_positions={str(path)!r}: give a GTF file (.gtf), or a table (.tsv, .txt, .csv) with the columns "
            f"{list(_COLUMNS)}"
        )
    found = found.drop_duplicates()
    found = found[~found["gene"].duplicated(keep=False)].set_index("gene")
    if found.empty:
        raise ValueError(f"gene_positions={str(path)!r} holds no genes")
    found["chromosome"] = ["chr" + name.removeprefix("chr") for name in found["chromosome"].astype(str)]
    return found


def _genes_of_gtf(lines: TextIO, path: Path) -> Iterator[tuple[str, str, int, int]]:
    for number, line in enumerate(lines, start=1):
        if line.startswith("#") or not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) < 9 or not (fields[3].isdigit() and fields[4].isdigit()):
            raise ValueError(f"gene_positions={str(path)!r}, line {number}, is no line of a GTF file: {line[:60]!r}")
        if fields[2] != "gene":
            continue
        names = {value for _, value in _ATTRIBUTE.findall(fields[8])}
        for name in names | {name.split(".")[0] for name in names if name.startswith("ENS")}:
            yield name, fields[0], int(fields[3]), int(fields[4])


def _table(path: Path, separator: str) -> pd.DataFrame:
    table = pd.read_csv(path, sep=separator, dtype={"gene": str, "chromosome": str})
    table.columns = [str(column).strip().lower() for column in table.columns]
    if missing := [column for column in _COLUMNS if column not in table]:
        raise ValueError(
            f"gene_positions={str(path)!r} has no columns {missing}: its first line must name {list(_COLUMNS)}, and "
            f"names {list(table.columns)[:8]}"
        )
    for column in ("start", "end"):
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise ValueError(f"gene_positions={str(path)!r}: {column!r} must hold positions in base pairs")
    return table[list(_COLUMNS)].dropna()
