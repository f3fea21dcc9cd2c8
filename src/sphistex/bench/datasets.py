"""The sections that methods are tried on: by name, or any store with spots and their truth."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData, read_zarr
from spatialdata.transformations import Affine, set_transformation

from sphistex import io
from sphistex.bench.genes import Genes
from sphistex.datasets import simulate
from sphistex.io.spots import image_element
from sphistex.pp import pseudo_visium

DATA_VARIABLE = "SPHISTEX_DATA"
_N_GENES = 200
_PAPERS_GENES = "variable:1000"
_PAGE = "https://www.10xgenomics.com/datasets"
# Folder, picture and pixels per bin of the crops, and which genes are scored.
_CROPS: dict[str, tuple[str, str, int, Genes]] = {
    "kidney": ("visium_hd_kidney", "he.png", 4, _N_GENES),
    "pancreas": ("xenium_pancreas", "pseudo_he.jpg", 16, "all"),
}
# Sections of the HISTEX paper, as 10x Genomics publishes them, and which genes are scored.
_VISIUM_HD = {"mouse-brain-hd": "Visium HD, mouse brain (FFPE)", "breast-hd": "Visium HD, human breast cancer (FFPE)"}
_XENIUM = {f"breast-xenium-{i}": f"Xenium, human breast cancer, {n} genes" for i, n in enumerate((313, 288, 377), 1)}
_VISIUM_HD_FILES = ("binned_outputs/square_008um", "*feature_slice.h5", "*tissue_image.*")
_XENIUM_FILES = (
    "experiment.xenium",
    "cells.zarr.zip",
    "cells.parquet",
    "cell_boundaries.parquet",
    "cell_feature_matrix.h5",
    "*he_image.ome.tif*",
    "*he_imagealignment.csv",
)
NAMES = ("simulated", "simulated:SEED", *_CROPS, "her2st:SECTION", *_VISIUM_HD, *_XENIUM, "PATH.zarr")


@dataclass(frozen=True)
class Source:
    """A section that can be read.

    Parameters
    ----------
    name
        What it is called in tables and pictures.
    genes
        Which genes are scored if nobody says.
    read
        Reads or makes it: spots, and where there is one the table ``"truth"``.
    """

    name: str
    genes: Genes
    read: Callable[[], SpatialData]


def find(name: str | Path, data: Path | None) -> Source:
    """The section of a name, whose files are all there.

    Parameters
    ----------
    name
        One of ``NAMES``.
    data
        Folder with the files of named sections; None takes the environment variable SPHISTEX_DATA.

    Raises
    ------
    FileNotFoundError
        If files are missing.
    ValueError
        If there is no such section, or the folder is not known.
    """
    name = str(Path(name))  # without a slash at its end
    kind, _, part = name.partition(":")
    if kind == "simulated" and (not part or part.isdecimal()):
        return Source(name, "all", partial(simulate, seed=int(part or 0)))
    if name in _CROPS:
        folder, picture, bin_px, genes = _CROPS[name]
        bins, image = _files(data, folder, ("bins_8um.h5ad", picture), f"the section {name!r}")
        return Source(name, genes, partial(_crop, bins, image, bin_px))
    if kind == "her2st" and part:
        wanted = (f"{part}.tsv.gz", f"{part}.jpg", f"{part}_selection.tsv")
        files = _files(data, kind, wanted, f"the section {part!r} of github.com/almaan/her2st")
        return Source(name, _N_GENES, partial(io.read_st, *files))
    if name in _VISIUM_HD:
        files = _files(data, name, _VISIUM_HD_FILES, f"Space Ranger's output of {_VISIUM_HD[name]!r} from {_PAGE}")
        return Source(name, _PAPERS_GENES, partial(_visium_hd, files[0].parents[1], files[2]))
    if name in _XENIUM:
        files = _files(data, name, _XENIUM_FILES, f"the Xenium output of {_XENIUM[name]!r} and its H&E from {_PAGE}")
        return Source(name, "all", partial(_xenium, files[0].parent, files[-2], files[-1]))
    if name.endswith(".zarr"):
        if not (Path(name) / "tables" / "truth").is_dir():
            raise FileNotFoundError(
                f"{name} is not a SpatialData folder with a table 'truth': make one with sphistex.pp.pseudo_visium, "
                "and save it with .write()"
            )
        return Source(Path(name).stem, _N_GENES, partial(read_zarr, name))
    raise ValueError(f"datasets: there is no {name!r}; there are {', '.join(NAMES)}")


def _files(data: Path | None, folder: str, patterns: tuple[str, ...], what: str) -> list[Path]:
    """The first file of each pattern in a folder of the data."""
    if data is None and not os.environ.get(DATA_VARIABLE):
        raise ValueError(f"data=None: pass the folder that holds {folder}/ ({what}), or set {DATA_VARIABLE}")
    home = Path(data or os.environ[DATA_VARIABLE]) / folder
    found = [next(iter(sorted(home.glob(pattern))), None) for pattern in patterns]
    if missing := [pattern for pattern, file in zip(patterns, found, strict=True) if file is None]:
        raise FileNotFoundError(f"{home} lacks {', '.join(missing)}: it must hold {what}, with {', '.join(patterns)}")
    return [file for file in found if file is not None]


def _crop(bins: Path, picture: Path, bin_px: int) -> SpatialData:
    table = ad.read_h5ad(bins)
    return pseudo_visium(io.from_bins(picture, table, table.obsm["spatial"], bin_px=bin_px, bin_um=8))


def _visium_hd(folder: Path, image: Path) -> SpatialData:
    from spatialdata_io import visium_hd

    return pseudo_visium(visium_hd(folder, bin_size=8, fullres_image_file=image, load_segmentations_only=False))


def _xenium(folder: Path, image: Path, alignment: Path) -> SpatialData:
    """Cells under their H&E image, which was taken afterwards and is laid onto them by a matrix."""
    from spatialdata_io import xenium

    unused = ("nucleus_boundaries", "cells_labels", "nucleus_labels", "transcripts", "morphology_mip")
    sdata = xenium(folder, **dict.fromkeys((*unused, "morphology_focus", "aligned_images"), False))
    sdata.tables["table"].obs["region"] = pd.Categorical(["cell_boundaries"] * sdata.tables["table"].n_obs)
    sdata.set_table_annotates_spatialelement("table", region="cell_boundaries")
    to_cells = pd.read_csv(alignment, header=None).to_numpy(float)
    pixel_um = float(json.loads((folder / "experiment.xenium").read_text())["pixel_size"])
    sdata.images["image"] = image_element(image)
    set_transformation(sdata.images["image"], Affine(to_cells, ("x", "y"), ("x", "y")), "global")
    mpp = pixel_um * float(np.sqrt(abs(np.linalg.det(to_cells[:2, :2]))))
    return pseudo_visium(sdata, mpp=mpp)
