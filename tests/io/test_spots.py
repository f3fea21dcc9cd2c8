"""A section from plain parts is one that the rest of the package takes, also after a round trip through disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd

from sphistex._section import resolve_section
from sphistex.io import from_spots

XY_PX = np.array([[x, y] for y in range(60, 700, 100) for x in range(60, 900, 100)], dtype=float)


def counts() -> ad.AnnData:
    return ad.AnnData(np.random.default_rng(0).poisson(3.0, (len(XY_PX), 4)).astype(np.float32))


def picture(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (700, 900, channels), dtype=np.uint8)


def make(**changes: Any) -> sd.SpatialData:
    parts = {"image": picture(), "adata": counts(), "xy_px": XY_PX, "spot_diameter_um": 100, "spot_pitch_um": 200}
    parts |= changes
    return from_spots(parts.pop("image"), parts.pop("adata"), parts.pop("xy_px"), **parts)


@pytest.mark.filterwarnings("ignore:.*2 µm per pixel:UserWarning")
def test_scale_and_spots_survive_a_round_trip(tmp_path: Path) -> None:
    make().write(tmp_path / "section.zarr")
    for sdata in (make(), sd.read_zarr(tmp_path / "section.zarr")):
        found = resolve_section(sdata)
        assert (found.image_key, found.shapes_key, found.table_key) == ("image", "spots", "counts")
        assert found.mpp == pytest.approx(2.0)
        assert found.pitch_um == pytest.approx(200.0)
        np.testing.assert_allclose(found.xy_px, XY_PX)
        np.testing.assert_allclose(found.radius_px * found.mpp, 50)
        np.testing.assert_array_equal(found.image, picture().transpose(2, 0, 1))
        np.testing.assert_array_equal(found.table.X, counts().X)


@pytest.mark.filterwarnings("ignore:.*2 µm per pixel:UserWarning")
def test_a_part_cut_out_keeps_the_scale() -> None:
    cut = sd.bounding_box_query(
        make(),
        axes=("x", "y"),
        min_coordinate=[200, 100],
        max_coordinate=[800, 600],
        target_coordinate_system="global",
    )
    found = resolve_section(cut)
    assert found.mpp == pytest.approx(2.0)
    inside = ((XY_PX >= [200, 100]) & (XY_PX <= [800, 600])).all(axis=1)
    np.testing.assert_allclose(found.xy_px, XY_PX[inside] - [200, 100])


def test_large_images_get_smaller_levels_for_viewing() -> None:
    sdata = make(image=np.zeros((700, 5000, 3), np.uint8))
    assert [sdata.images["image"][scale]["image"].sizes["x"] for scale in sdata.images["image"]] == [5000, 2500, 1250]


def test_input_is_not_changed() -> None:
    adata = counts()
    make(adata=adata)
    assert list(adata.obs) == list(adata.uns) == list(adata.obsm) == []


def test_counts_of_another_spatialdata_can_be_used_again() -> None:
    table = make().tables["counts"]
    assert make(adata=table).tables["counts"].n_obs == table.n_obs


@pytest.mark.filterwarnings("ignore:.*2 µm per pixel:UserWarning")
def test_rgba_keeps_its_colours() -> None:
    found = resolve_section(make(image=picture(4)), mpp=2.0)
    np.testing.assert_array_equal(found.image, picture(4)[..., :3].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"xy_px": XY_PX[1:]}, r"shape \(62, 2\).*63 rows"),
        ({"xy_px": np.where(XY_PX == 60, np.nan, XY_PX)}, "NaN"),
        ({"xy_px": 900 * np.random.default_rng(0).random((63, 2))}, "no regular lattice"),
        ({"spot_pitch_um": 0}, "spot_pitch_um=0"),
        ({"spot_diameter_um": np.nan}, "spot_diameter_um=nan"),
        ({"spot_diameter_um": 300}, "overlap"),
        ({"adata": ad.AnnData(-np.ones((63, 4)))}, "negative"),
        ({"image": picture().astype(np.uint16)}, "uint16"),
        ({"image": picture(1)}, "single channel"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
