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
    try:
        found = _read(path).drop_duplicates()
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"gene_positions={str(path)!r} cannot be read as the text it should be: {error}") from error
    found = found[~found["gene"].duplicated(keep=False)].set_index("gene")
    if found.empty:
        raise ValueError(f"gene_positions={str(path)!r} holds no genes")
    found["chromosome"] = "chr" + found["chromosome"].str.replace("^chr", "", case=False, regex=True)
    return found


def _read(path: Path) -> pd.DataFrame:
    """Genes as the file has them."""
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind.lower() in (".gtf", ".gff2"):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            return pd.DataFrame(_genes_of_gtf(lines, path), columns=list(_COLUMNS))
    if kind.lower() in _SEPARATORS:
        return _table(path, _SEPARATORS[kind.lower()])
    raise ValueError(
        f"gene_positions={str(path)!r}: give a GTF file (.gtf), or a table (.tsv, .txt, .csv) with the columns "
        f"{list(_COLUMNS)}"
    )


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
    table = pd.read_csv(path, sep=separator, dtype=str)  # chromosomes are no numbers, also where one is missing
    table.columns = [str(column).strip().lower() for column in table.columns]
    if missing := [column for column in _COLUMNS if column not in table]:
        raise ValueError(
            f"gene_positions={str(path)!r} has no columns {missing}: its first line must name {list(_COLUMNS)}, and "
            f"names {list(table.columns)[:8]}"
        )
    for column in ("start", "end"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        if wrong := table[column][numbers.isna() & table[column].notna()].tolist():
            raise ValueError(f"gene_positions={str(path)!r}: {column!r} must hold positions in base pairs: {wrong[:3]}")
        table[column] = numbers
    return table[list(_COLUMNS)].dropna()
