"""Objects of spatialdata-io are taken as they are."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse

from sphistex._section import resolve_section

spatialdata_io = pytest.importorskip("spatialdata_io")


def write_outs(folder: Path) -> pd.DataFrame:
    """Space Ranger's ``outs`` with a full-resolution image; the first gene counts the spots from 1."""
    (folder / "spatial").mkdir()
    rng = np.random.default_rng(0)
    array = [(row, column) for row in range(7) for column in range(row % 2, 14, 2)]
    spots = pd.DataFrame(array, columns=["array_row", "array_col"], index=[f"SPOT{i:03d}-1" for i in range(len(array))])
    spots.insert(0, "in_tissue", 1)
    spots["pxl_row_in_fullres"] = 120 + 200 * np.sqrt(3) / 2 * spots["array_row"]
    spots["pxl_col_in_fullres"] = 120 + 100 * spots["array_col"]
    spots.sample(frac=1, random_state=0).to_csv(folder / "spatial" / "tissue_positions.csv", index_label="barcode")
    factors = {"spot_diameter_fullres": 130.0, "tissue_hires_scalef": 0.2, "tissue_lowres_scalef": 0.05}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))

    full = rng.integers(0, 255, (1300, 1600, 3), dtype=np.uint8)
    tifffile.imwrite(folder / "slide.tif", full, photometric="rgb", tile=(256, 256))
    for name, step in (("hires", 5), ("lowres", 20)):
        Image.fromarray(full[::step, ::step]).save(folder / "spatial" / f"tissue_{name}_image.png")

    counts = np.column_stack([np.arange(len(spots)) + 1, np.ones((len(spots), 3))])
    write_matrix(folder / "A_filtered_feature_bc_matrix.h5", counts, spots.index)
    return spots


def write_matrix(path: Path, counts: NDArray, barcodes: pd.Index) -> None:
    """Counts (n_barcodes, n_genes) as Space Ranger stores them."""
    stored = sparse.csr_matrix(counts.astype(np.int32))
    genes = np.array([f"G{i}" for i in range(counts.shape[1])], dtype="S")
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = barcodes.to_numpy(dtype="S")
        matrix["shape"] = stored.shape[::-1]
        matrix["data"], matrix["indices"], matrix["indptr"] = stored.data, stored.indices, stored.indptr
        n = len(genes)
        features = {"id": genes, "name": genes, "feature_type": ["Gene Expression"] * n, "genome": ["GRCh38"] * n}
        for key, values in features.items():
            matrix[f"features/{key}"] = np.array(values, dtype="S")
        file.attrs["library_ids"] = np.array(["A"], dtype="S")
        file.attrs["chemistry_description"] = "Visium"


def write_hd_outs(folder: Path, *, turned: float) -> None:
    """Space Ranger's ``outs`` of Visium HD at 0.4 µm per pixel, bins of 2, 8 and 16 µm, lying ``turned`` (radians).

    The first gene counts the bins from 1.
    """
    turn = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
    for um, side in ((2, 30), (8, 20), (16, 10)):
        place = folder / "binned_outputs" / f"square_{um:03d}um"
        (place / "spatial").mkdir(parents=True)
        row, column = np.divmod(np.arange(side**2), side)
        xy = np.stack([column + 0.5, row + 0.5], -1) * um / 0.4 @ turn.T + 50
        bins = pd.DataFrame(
            {"barcode": [f"s_{um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)], "in_tissue": 1}
            | {"array_row": row, "array_col": column, "pxl_row_in_fullres": xy[:, 1], "pxl_col_in_fullres": xy[:, 0]}
        )
        bins.to_parquet(place / "spatial" / "tissue_positions.parquet", index=False)
        factors = {"spot_diameter_fullres": um / 0.4, "bin_size_um": um, "microns_per_pixel": 0.4}
        factors |= {"tissue_hires_scalef": 0.2, "tissue_lowres_scalef": 0.05}
        (place / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        counts = np.column_stack([np.arange(len(bins)) + 1, np.ones((len(bins), 3))])
        write_matrix(place / "filtered_feature_bc_matrix.h5", counts, pd.Index(bins["barcode"]))
    with h5py.File(folder / "feature_slice.h5", "w") as file:
        same = np.eye(3).ravel().tolist()
        names = [f"{a}_colrow_to_{b}_colrow" for a, b in (("cytassist", "spot"), ("microscope", "spot"))]
        names += [f"{b}_colrow_to_{a}_colrow" for a, b in (("cytassist", "spot"), ("microscope", "spot"))]
        layout = json.dumps({"file_format": "1.0", "transform": same})
        metadata = {"hd_layout_json": layout, "transform_matrices": dict.fromkeys(names, same)}
        file.attrs["metadata_json"] = json.dumps(metadata)
    full = np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8)
    tifffile.imwrite(folder / "slide.tif", full, photometric="rgb", tile=(256, 256))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("as_squares", [True, False])
def test_visium_hd_with_bins_of_several_sizes(tmp_path: Path, as_squares: bool) -> None:
    write_hd_outs(tmp_path, turned=0.01)
    sdata = spatialdata_io.visium_hd(
        tmp_path,
        dataset_id="A",
        fullres_image_file=tmp_path / "slide.tif",
        bins_as_squares=as_squares,
        load_segmentations_only=False,
    )
    assert "global" not in sdata.coordinate_systems
    found = resolve_section(sdata)
    assert (found.image_key, found.shapes_key, found.table_key) == ("A_full_image", "A_square_008um", "square_008um")
    assert found.mpp == pytest.approx(0.4, rel=1e-6)
    assert found.pitch_um == pytest.approx(8, rel=1e-6)
    # a bin covers the area of one superpixel, wherever it lies, and bins lie next to each other
    np.testing.assert_allclose(found.bags.weights.sum(1), 1, rtol=1e-6)
    number = found.table.X.toarray()[:, 0] - 1
    expected = np.stack([number % 20 + 0.5, number // 20 + 0.5], -1) * 20
    np.testing.assert_allclose(found.xy_px, expected + 50, atol=5)
    coarse = resolve_section(sdata, table_key="square_016um")
    np.testing.assert_allclose(coarse.bags.weights.sum(1), 4, rtol=1e-6)
    with pytest.raises(ValueError, match="'A_square_002um' are 2 µm wide.*8 or 16 µm"):
        resolve_section(sdata, shapes_key="A_square_002um")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_visium_with_its_full_resolution_image(tmp_path: Path) -> None:
    spots = write_outs(tmp_path)
    sdata = spatialdata_io.visium(tmp_path, fullres_image_file="slide.tif")
    assert "global" not in sdata.coordinate_systems
    found = resolve_section(sdata)
    assert (found.image_key, found.coordinate_system) == ("A_full_image", "A")
    assert found.mpp == pytest.approx(0.5, rel=1e-3)
    np.testing.assert_allclose(2 * found.radius_px * found.mpp, 55)
    written = spots.iloc[found.table.X.toarray()[:, 0].astype(int) - 1]
    np.testing.assert_allclose(found.xy_px, written[["pxl_col_in_fullres", "pxl_row_in_fullres"]])
    with pytest.warns(UserWarning, match="'A_full_image'"):
        coarse = resolve_section(sdata, image_key="A_hires_image")
    np.testing.assert_allclose(coarse.xy_px, found.xy_px / 5)


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore")
def test_space_ranger_folder(data_dir: Path) -> None:
    outs = data_dir / "fixtures" / "visium_outs"
    sdata = spatialdata_io.visium(outs, dataset_id="A", counts_file="raw_feature_bc_matrix.h5")
    # 50 of 4,992 spots do not show the lattice: that is said, and the scale is given instead.
    with pytest.raises(ValueError, match="no regular lattice.*mpp="):
        resolve_section(sdata)
    found = resolve_section(sdata, mpp=14.2)
    assert (found.image_key, found.shapes_key, found.table_key) == ("A_lowres_image", "A", "table")
    assert found.coordinate_system in {"A", "A_downscaled_lowres"}

    columns = ["barcode", "in_tissue", "array_row", "array_col", "y", "x"]
    positions = pd.read_csv(outs / "spatial" / "tissue_positions_list.csv", header=None, names=columns).set_index(
        "barcode"
    )
    np.testing.assert_allclose(found.xy_px, positions.loc[found.table.obs_names, ["x", "y"]] * 0.051033426, atol=1e-3)
