"""Which elements a section is made of, how they lie on each other, and what bad input gets."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from numpy.typing import NDArray
from scipy import sparse
from shapely.geometry import box
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, BaseTransformation, Identity, Scale, set_transformation

from sphistex._checks import check_genes, check_tissue_spots
from sphistex._section import resolve_image, resolve_section

MPP = 0.5
SIZE_PX = 1400


def hexagonal(n: int = 6, pitch_px: float = 200.0, start_px: float = 100.0) -> NDArray[np.float64]:
    rows, columns = np.indices((n, n)).reshape(2, -1)
    return start_px + pitch_px * np.column_stack([columns + 0.5 * (rows % 2), rows * np.sqrt(3) / 2])


def picture(channels: int = 3, size: int = SIZE_PX, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 255, (channels, size, size)).astype(dtype)


def counts_of(n: int, region: str = "spots", ids: Any = None) -> ad.AnnData:
    rng = np.random.default_rng(1)
    obs = pd.DataFrame({"region": pd.Categorical([region] * n), "spot_id": np.arange(n) if ids is None else ids})
    obs.index = obs.index.astype(str)
    table = ad.AnnData(sparse.csr_matrix(rng.poisson(2.0, (n, 5)).astype(np.float32)), obs=obs)
    table.var_names = [f"g{i}" for i in range(5)]
    return TableModel.parse(table, region=region, region_key="region", instance_key="spot_id")


def circles(xy: NDArray[np.float64], radius: float = 55.0, **systems: BaseTransformation) -> Any:
    return ShapesModel.parse(xy, geometry=0, radius=radius, transformations=dict(systems) or {"global": Identity()})


def image(pixels: NDArray[Any] | None = None, **systems: BaseTransformation) -> Any:
    pixels = picture() if pixels is None else pixels
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=dict(systems) or {"global": Identity()})


def section(**parts: Any) -> sd.SpatialData:
    xy = hexagonal()
    return sd.SpatialData(
        images=parts.get("images", {"he": image()}),
        shapes=parts.get("shapes", {"spots": circles(xy)}),
        tables=parts.get("tables", {"counts": counts_of(len(xy))}),
    )


def test_plain_section_is_found_with_its_scale() -> None:
    found = resolve_section(section())
    assert (found.image_key, found.shapes_key, found.table_key) == ("he", "spots", "counts")
    assert found.mpp == pytest.approx(MPP)
    assert found.pitch_um == pytest.approx(100)
    assert found.grid.shape == (88, 88)
    np.testing.assert_allclose(found.xy_px, hexagonal())
    np.testing.assert_allclose(found.radius_px, 55)


@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0])
def test_spots_land_where_they_are_whatever_the_transformations(angle: float, mirror: int) -> None:
    def affine(angle: float, mirror: int, scale: float, shift: float) -> NDArray[np.float64]:
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1, mirror])
        return np.block([[scale * turn, np.full((2, 1), shift)], [np.zeros((1, 2)), np.ones((1, 1))]])

    image_to_world, world_to_native = affine(angle, mirror, 3.0, 50.0), affine(-1.0, 1, 0.2, -7.0)
    to_native = world_to_native @ image_to_world
    native = hexagonal() @ to_native[:2, :2].T + to_native[:2, 2]
    axes = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
    sdata = section(
        images={"he": image(slide=Affine(image_to_world, **axes))},
        shapes={"spots": circles(native, radius=55 * 0.6, slide=Affine(np.linalg.inv(world_to_native), **axes))},
    )
    found = resolve_section(sdata)
    np.testing.assert_allclose(found.xy_px, hexagonal(), atol=1e-6)
    np.testing.assert_allclose(found.radius_px, 55)
    assert found.mpp == pytest.approx(MPP)
    assert found.coordinate_system == "slide"


def test_counts_stay_with_their_spots() -> None:
    xy = hexagonal()
    rng = np.random.default_rng(3)
    ids = rng.permutation(len(xy))
    mine, other = counts_of(len(xy), ids=ids), counts_of(len(xy), region="elsewhere")
    table = ad.concat([other[:10], mine[:25], other[10:]], index_unique="-")
    table = TableModel.parse(table, region=["spots", "elsewhere"], region_key="region", instance_key="spot_id")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "elsewhere" is not in the object
        sdata = section(tables={"counts": table})
    found = resolve_section(sdata)
    assert found.table.n_obs == 25
    np.testing.assert_allclose(found.xy_px, xy[found.table.obs["spot_id"]])
    np.testing.assert_array_equal(found.table.X.toarray(), mine[:25].X.toarray())


def test_rows_without_a_shape_are_left_out_with_a_warning() -> None:
    ids = np.append(np.arange(34), [900, 901])
    with pytest.warns(UserWarning, match="2 rows"):
        found = resolve_section(section(tables={"counts": counts_of(36, ids=ids)}))
    assert found.table.n_obs == len(found.xy_px) == 34


def space_ranger(*sizes: str) -> dict[str, Any]:
    """Images as spatialdata-io names and places them; hires is five times coarser than full."""
    full = Image2DModel.parse(picture(), dims=("c", "y", "x"), scale_factors=[2, 2], transformations={"A": Identity()})
    hires, lowres = (
        image(picture(size=SIZE_PX // k), **{f"A_{name}": Identity(), "A": Scale([k, k], axes=("x", "y"))})
        for k, name in ((5, "hires"), (20, "lowres"))
    )
    every = {"A_lowres_image": lowres, "A_hires_image": hires, "A_full_image": full}
    return {name: every[name] for name in every if any(size in name for size in sizes)}


def visium(*sizes: str, radius: float = 55.0) -> sd.SpatialData:
    xy = hexagonal()
    systems = {
        "A": Identity(),
        "A_hires": Scale([0.2, 0.2], axes=("x", "y")),
        "A_lowres": Scale([0.05] * 2, ("x", "y")),
    }
    return sd.SpatialData(
        images=space_ranger(*sizes), shapes={"A": circles(xy, radius, **systems)}, tables={"table": counts_of(36, "A")}
    )


def test_space_ranger_objects_are_taken_as_they_are() -> None:
    found = resolve_section(visium("full", "hires", "lowres"))
    assert found.image_key == "A_full_image"
    assert found.coordinate_system == "A"
    assert found.image.sizes["x"] == SIZE_PX
    assert found.mpp == pytest.approx(MPP)


def test_hires_picture_is_used_with_a_warning_that_names_the_full_one() -> None:
    with pytest.warns(UserWarning, match="2.5 µm per pixel.*'A_full_image'"):
        found = resolve_section(visium("full", "hires", "lowres"), image_key="A_hires_image")
    np.testing.assert_allclose(found.xy_px, hexagonal() / 5)
    with pytest.warns(UserWarning, match="full-resolution scan"):
        assert resolve_section(visium("hires", "lowres")).image_key == "A_hires_image"


def test_space_rangers_theoretical_diameter_is_replaced_by_that_of_the_spots() -> None:
    found = resolve_section(visium("full", radius=65.0))
    np.testing.assert_allclose(2 * found.radius_px * found.mpp, 55)
    np.testing.assert_allclose(resolve_section(visium("full", radius=50.0)).radius_px, 50)
    again = resolve_section(visium("full", radius=65.0), mpp=found.mpp, spot_pitch_um=found.pitch_um)
    np.testing.assert_allclose(again.radius_px, found.radius_px, err_msg="as a result looks its spots up")


def test_elements_made_by_sphistex_are_not_mistaken_for_input() -> None:
    sdata = section()
    sdata.images["features"] = Image2DModel.parse(np.zeros((7, 10, 10), np.float32), dims=("c", "y", "x"))
    sdata.attrs["sphistex"] = {"features": {"dim": 7}}
    assert resolve_image(sdata)[0] == "he"


def test_alpha_is_dropped() -> None:
    rgba = picture(4)
    _, pixels, _ = resolve_image(section(images={"he": image(rgba)}))
    assert pixels.chunks is not None
    np.testing.assert_array_equal(pixels, rgba[:3])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (picture(1), "single channel"),
        (picture(2), "2 channels"),
        (picture(3, dtype=np.uint16), "uint16.*8-bit"),
        (picture(3, dtype=np.float32), "float32.*8-bit"),
    ],
)
def test_other_images_are_refused(pixels: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_section(section(images={"he": image(pixels)}))


def test_four_stains_are_not_rgba() -> None:
    stains = Image2DModel.parse(picture(4), dims=("c", "y", "x"), c_coords=["DAPI", "CD3", "CD8", "CK"])
    with pytest.raises(ValueError, match="DAPI"):
        resolve_image(section(images={"he": stains}))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"images": {}}, "no image"),
        ({"shapes": {}}, "no shapes"),
        ({"tables": {}}, "no table"),
        ({"images": {"one": image(), "two": image()}}, r"several images: \['one', 'two'\].*image_key="),
        ({"shapes": {"a": circles(hexagonal()), "b": circles(hexagonal())}, "tables": {}}, r"'a', 'b'.*shapes_key="),
        ({"tables": {"a": counts_of(36), "b": counts_of(36)}}, r"'a', 'b'.*table_key="),
        ({"tables": {"counts": counts_of(36, ids=np.arange(36) + 500)}}, "no row.*'spot_id' holds .500"),
        ({"images": {"he": image(elsewhere=Identity())}}, "'elsewhere'.*'global'.*no coordinate system in common"),
        ({"images": {"he": image(picture(size=600))}}, r"outside the image 'he' \(600 × 600 px\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*annotat.*:UserWarning")
def test_missing_ambiguous_or_unrelated_elements(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_section(section(**parts))


@pytest.mark.filterwarnings("ignore:.*annotat.*:UserWarning")
def test_table_of_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="no table annotates the shapes 'spots': {'counts': .'cells'.}"):
        resolve_section(section(tables={"counts": counts_of(36, region="cells")}))


@pytest.mark.parametrize("argument", ["image_key", "shapes_key", "table_key"])
def test_names_that_do_not_exist(argument: str) -> None:
    with pytest.raises(KeyError, match=f"{argument}='absent'"):
        resolve_section(section(), **{argument: "absent"})  # type: ignore[arg-type]


def test_coordinate_system_must_hold_both() -> None:
    with pytest.raises(ValueError, match="coordinate_system='absent'"):
        resolve_section(section(), coordinate_system="absent")


def test_sheared_spots_are_refused() -> None:
    sdata = section()
    sheared = Affine(np.array([[1, 0.3, 0], [0, 1, 0], [0, 0, 1.0]]), ("x", "y"), ("x", "y"))
    set_transformation(sdata.shapes["spots"], sheared, "global")
    with pytest.raises(ValueError, match="sheared"):
        resolve_section(sdata)


def test_coordinate_systems_that_disagree_must_be_chosen_from() -> None:
    sdata = section()
    for element, scale in ((sdata.images["he"], 1.0), (sdata.shapes["spots"], 1.1)):
        set_transformation(element, Scale([scale, scale], axes=("x", "y")), "other")
    with pytest.raises(ValueError, match="'global' and 'other'.*coordinate_system="):
        resolve_section(sdata)
    assert resolve_section(sdata, coordinate_system="other").mpp == pytest.approx(MPP / 1.1)


def test_polygons_are_bags_of_their_own_shape() -> None:
    bins = [box(x, y, x + 60, y + 40) for x, y in hexagonal()]
    found = resolve_section(section(shapes={"spots": ShapesModel.parse(gpd.GeoDataFrame(geometry=bins))}))
    np.testing.assert_allclose(found.xy_px, hexagonal() + [30, 20])
    np.testing.assert_allclose(np.pi * found.radius_px**2, 60 * 40)
    np.testing.assert_allclose(found.bags.weights.sum(1) * found.grid.pitch_px**2, 60 * 40)


@pytest.mark.parametrize(("value", "message"), [(-1.0, "negative"), (np.nan, "NaN"), (np.inf, "infinite")])
@pytest.mark.parametrize("dense", [True, False])
def test_values_that_are_no_counts(value: float, message: str, dense: bool) -> None:
    table = counts_of(36)
    values = table.X.toarray()
    values[3, 2] = value
    table.X = values if dense else sparse.csr_matrix(values)
    with pytest.raises(ValueError, match=message):
        resolve_section(section(tables={"counts": table}))


def test_normalised_counts_warn_and_are_refused_when_strict() -> None:
    table = counts_of(36)
    table.layers["counts"] = table.X.copy()
    table.X = table.X.log1p()
    sdata = section(tables={"counts": table})
    with pytest.warns(UserWarning, match=r"looks normalised: 100%.*such as 1.09861.*layers\['counts'\]"):
        resolve_section(sdata)
    with pytest.raises(ValueError, match="looks normalised"):
        resolve_section(sdata, strict=True)


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_duplicated_genes_are_named() -> None:
    table = counts_of(36)
    table.var_names = ["g0", "g1", "g1", "g2", "g2"]
    with pytest.raises(ValueError, match="2 duplicated gene names .'g1', 'g2'"):
        resolve_section(section(tables={"counts": table}))


def test_genes_must_be_in_the_table() -> None:
    table = counts_of(36)
    assert check_genes(table, ["g3", "g0"]) == ["g3", "g0"]
    with pytest.raises(KeyError, match="2 of 3 genes.*'NPHS2', 'UMOD'"):
        check_genes(table, ["g1", "NPHS2", "UMOD"])
    with pytest.raises(TypeError, match="'g1'"):
        check_genes(table, "g1")
    with pytest.raises(ValueError, match="'g1'"):
        check_genes(table, ["g1", "g1"])
    with pytest.raises(ValueError, match="empty"):
        check_genes(table, [])


def test_too_few_spots_on_tissue() -> None:
    check_tissue_spots(np.arange(36) < 20)
    with pytest.raises(ValueError, match="only 19 of 36 spots lie on tissue"):
        check_tissue_spots(np.arange(36) < 19)
