"""Objects of spatialdata-io are taken as they are."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
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

    counts = sparse.csr_matrix(np.column_stack([np.arange(len(spots)) + 1, np.ones((len(spots), 3))]).astype(np.int32))
    genes = np.array([f"G{i}" for i in range(4)], dtype="S")
    with h5py.File(folder / "A_filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = spots.index.to_numpy(dtype="S")
        matrix["shape"] = counts.shape[::-1]
        matrix["data"], matrix["indices"], matrix["indptr"] = counts.data, counts.indices, counts.indptr
        features = {"id": genes, "name": genes, "feature_type": ["Gene Expression"] * 4, "genome": ["GRCh38"] * 4}
        for key, values in features.items():
            matrix[f"features/{key}"] = np.array(values, dtype="S")
        file.attrs["library_ids"] = np.array(["A"], dtype="S")
        file.attrs["chemistry_description"] = "Visium"
    return spots


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
