"""Gene sets from files."""

from __future__ import annotations

import gzip
from pathlib import Path


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    r"""Read gene sets from a GMT file, such as those of MSigDB: a set per line, its name, a description, and its genes.

    Fields are separated by tabs, so that names and descriptions may hold blanks. Repeated genes count once. Nothing is
    downloaded.

    Parameters
    ----------
    path
        The file; it may be compressed (``.gmt.gz``).

    Returns
    -------
    Genes of each set.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line has no genes, a name appears twice, or there are no sets.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "hallmarks.gmt"
    ...     _ = file.write_text("HYPOXIA\ta description\tCA9\tVEGFA\nEMT\t\tVIM\tFN1\n")
    ...     read_gmt(file)
    {'HYPOXIA': ['CA9', 'VEGFA'], 'EMT': ['VIM', 'FN1']}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"gene_sets={str(path)!r}: there is no such file")
    try:
        sets = _read(path)
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read as the text it should be: {error}") from error
    if not sets:
        raise ValueError(f"{path} holds no gene sets")
    return sets


def _read(path: Path) -> dict[str, list[str]]:
    sets: dict[str, list[str]] = {}
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as lines:  # programs of Windows begin their files with a mark
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            name, *rest = (field.strip() for field in line.rstrip("\r\n").split("\t"))
            genes = list(dict.fromkeys(gene for gene in rest[1:] if gene))
            if not name or not genes:
                raise ValueError(
                    f"{path}, line {number}, is not a gene set: {line[:60].rstrip()!r}; a name, a description (which "
                    "may be empty) and genes are expected, separated by tabs"
                )
            if name in sets:
                raise ValueError(f"{path}, line {number}: there was a gene set {name!r} before")
            sets[name] = genes
    return sets
