"""A result on one page: what went in, how it was made, how far to trust it, and what it looks like."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pandas as pd
from anndata import AnnData
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from spatialdata import SpatialData
from tqdm.auto import tqdm

from sphistex.pl import _facts
from sphistex.pl._canvas import write
from sphistex.pl._genes import most_patterned
from sphistex.pl._sources import check_genes, find_section, open_result
from sphistex.pl.confidence import confidence
from sphistex.pl.expression import expression
from sphistex.pl.features import features
from sphistex.pl.rgb import rgb
from sphistex.pl.training import training
from sphistex.pl.validation import validation
from sphistex.settings import settings

# Genes that are listed and drawn, and of which intervals are drawn, where none are named.
_LISTED, _DRAWN, _CERTAIN = 12, 4, 2
_SCALE_UM = 32.0
_PICTURE_DPI = 110
_TYPES = {"png": "image/png", "svg": "image/svg+xml"}


@dataclass
class Part:
    """A part of the report.

    Parameters
    ----------
    title
        Its heading.
    facts
        What there is to say, by name.
    table
        A table with a row for each of something.
    pictures
        Caption, and the picture as a data URI or, where it could not be drawn, why.
    folded
        Facts that are shown when they are asked for.
    """

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    pictures: list[tuple[str, str]] = field(default_factory=list)
    folded: dict[str, str] = field(default_factory=dict)


def report(
    sdata: SpatialData, path: str | Path, *, key: str = "superres", genes: str | Sequence[str] | None = None
) -> None:
    """Write a result to one HTML page: input, scale, tissue, features, fit, validation, genes, and warnings.

    The page is a single file that holds its pictures, needs no network and runs no scripts, so that it can be mailed
    and archived. The same from a shell: ``sphistex report section.zarr --out report.html``.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`sphistex.tl.super_resolve`. A lazy one that was read from disk is opened;
        genes are read a few at a time.
    path
        The file, which is replaced if it exists.
    key
        Name of the result.
    genes
        Genes to draw; by default the four whose maps vary most, of those that are counted often.

    Raises
    ------
    KeyError
        If there is no such result, image or gene.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=600, n_genes=20)
    >>> model = sx.tl.super_resolve(sdata, encoder="efficientnet_lite0", epochs=2, n_models=1)
    >>> with TemporaryDirectory() as folder:
    ...     sx.pl.report(sdata, Path(folder) / "report.html")
    """
    path = _checked_path(path)
    table, made = open_result(sdata, key)
    section = find_section(sdata, made)
    listed = check_genes(table, key, genes) if genes is not None else None
    listed = listed or most_patterned(sdata, table, made)[:_LISTED]
    drawn = listed if genes is not None else listed[:_DRAWN]

    def parts() -> Iterator[Part]:
        yield Part("Input", _facts.of_input(table, made, section))
        described = _facts.of_tissue(table, made, section) | _facts.of_features(sdata, made)
        seen = _drawn("The image, and what the encoder tells apart", partial(features, sdata, key=made["features_key"]))
        yield Part("Tissue and features", described, pictures=[seen])
        curves = _drawn("Losses while fitting", partial(training, sdata, key=key), "svg")
        yield Part("Fit", _facts.of_fit(made), pictures=[curves], folded=_facts.of_parameters(made))
        yield _validation(sdata, key, table, made, drawn)
        yield _of_genes(sdata, key, table, listed, drawn)

    with tqdm(parts(), total=5, desc="report", unit="part", disable=not settings.progress) as made_parts:
        html = _TEMPLATES.get_template("report.html").render(
            key=key,
            store=str(sdata.path) if sdata.is_backed() else "",
            warnings=list(_facts.warnings_of(sdata, key, table, made, section)),
            parts=list(made_parts),
            version=version("sphistex"),
        )
    _write(path, html)


def _validation(sdata: SpatialData, key: str, table: AnnData, made: dict[str, Any], genes: list[str]) -> Part:
    scores = _facts.of_validation(table)
    if scores.empty:
        return Part("Validation", {"Genes": "not judged; sphistex.tl.validate judges them"})
    pictures = [_drawn("Each gene, beside interpolation of the spots", partial(validation, sdata, key=key), "svg")]
    facts = {}
    if "missing" not in made["calibration"]:
        facts["Intervals"] = f"calibrated on {made['calibration']['n_spots']:,} spots that were left out"
        how = partial(confidence, sdata, genes[:_CERTAIN], key=key, scale_um=_SCALE_UM)
        pictures.append(_drawn("Expected counts, their 90 % intervals, and where a gene is above its mean", how))
    return Part("Validation", facts, scores, pictures)


def _of_genes(sdata: SpatialData, key: str, table: AnnData, listed: list[str], drawn: list[str]) -> Part:
    pictures = [_drawn("As measured and as resolved", partial(expression, sdata, drawn, key=key))]
    if len(drawn) > 1:
        pictures.append(_drawn("Together", partial(rgb, sdata, drawn[:3], key=key)))
    return Part("Genes", table=_facts.of_genes(table, listed), pictures=pictures)


def _drawn(caption: str, draw: Callable[..., Figure | None], kind: str = "png") -> tuple[str, str]:
    """A picture inside of a page; of one that cannot be drawn, as its parts are no longer there, the reason."""
    try:
        figure = draw(return_fig=True)
    except (KeyError, ValueError) as error:
        return caption, f"not drawn: {error.args[0]}"
    assert figure is not None
    buffer = BytesIO()
    write(figure, buffer, dpi=_PICTURE_DPI, format=kind)
    return caption, f"data:{_TYPES[kind]};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _checked_path(path: str | Path) -> Path:
    """The path of a file that can be written: found out before the page is made."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder: name a file in it, such as report.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"path={str(path)!r} cannot be written: {reason}; choose another folder") from error
    return path


def _write(path: Path, html: str) -> None:
    """Write a file as a whole or not at all."""
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        unfinished.write_text(html, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


_TEMPLATES = Environment(loader=PackageLoader("sphistex.pl"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
