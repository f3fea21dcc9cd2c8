"""Maps come out the same from every layout, and tables of superpixels are put beside each other by their places."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sphistex.metrics import coarsen, correlation_by_scale, from_tables
from sphistex.metrics.lattice import coarsening, maps


@pytest.fixture
def mask():
    mask = np.ones((6, 8), bool)
    mask[:2, :3] = False
    return mask


@pytest.fixture
def values(mask):
    return np.random.default_rng(0).poisson(2.0, (*mask.shape, 5)) * mask[..., None]


@pytest.mark.parametrize("layout", ["map", "all rows", "rows inside", "sparse", "sparse inside"])
def test_every_layout_gives_the_same_maps(values, mask, layout):
    rows, inside = values.reshape(-1, 5), values[mask]
    given = {
        "map": values,
        "all rows": rows,
        "rows inside": inside,
        "sparse": sparse.csr_matrix(rows),
        "sparse inside": sparse.csr_array(inside),
    }[layout]
    np.testing.assert_array_equal(maps(given, mask, slice(1, 4)), values[..., 1:4])


def test_what_does_not_fit_is_refused(values, mask):
    with pytest.raises(ValueError, match=r"\(7, 5\) do not fit mask \(6, 8\).*48 superpixels or of the 42 inside"):
        maps(np.ones((7, 5)), mask, slice(0, 1))
    with pytest.raises(ValueError, match="values have 4 and 5 genes"):
        correlation_by_scale(values[..., :4], values, mask)


def table(values, mask, rows, genes, pitch_px=16.0):
    """The superpixels inside a mask as a table in a given order."""
    row, column = np.argwhere(mask)[rows].T
    made = ad.AnnData(values[row, column].astype(np.float32), var=pd.DataFrame(index=genes))
    made.obsm["spatial"] = (np.column_stack([column, row]) + 0.5) * pitch_px
    return made


def test_tables_are_matched_by_place_and_gene(values, mask):
    rng = np.random.default_rng(1)
    n = int(mask.sum())
    predicted = table(values, mask, rng.permutation(n)[:30], list("abcde"))
    predicted.uns["superres"] = {"pitch_um": 8.0, "mpp": 0.5}
    true = table(values, mask, rng.permutation(n)[:35], list("abcde"))[:, ["e", "b"]].copy()
    true.layers["twice"] = 2 * true.X
    first, second, found, genes = from_tables(predicted, true, layer="twice")
    assert genes == ["b", "e"]
    np.testing.assert_array_equal(second, 2 * np.asarray(first))
    both = {tuple(p) for p in predicted.obsm["spatial"]} & {tuple(p) for p in true.obsm["spatial"]}
    assert found.sum() == len(both) == len(first)
    np.testing.assert_array_equal(first, values[: found.shape[0], : found.shape[1]][found][:, [1, 4]])


def test_tables_without_anything_in_common_are_refused(values, mask):
    one = table(values, mask, slice(None), list("abcde"))
    with pytest.raises(KeyError, match="give pitch_px"):
        from_tables(one, one)
    with pytest.raises(ValueError, match="no gene in common"):
        from_tables(one, table(values, mask, slice(None), list("vwxyz")), pitch_px=16)
    far = one.copy()
    far.obsm["spatial"] = far.obsm["spatial"] + 1e4
    with pytest.raises(ValueError, match="no superpixel in common"):
        from_tables(one, far, pitch_px=16)


def test_a_finer_truth_is_summed(values, mask):
    one = table(values, mask, slice(None), list("abcde"))
    finer = ad.concat([one, one, one], index_unique="-")
    finer.obsm["spatial"] = finer.obsm["spatial"] + np.repeat([-5.0, 0.0, 5.0], len(one))[:, None]
    predicted, summed, found, _ = from_tables(one, finer, pitch_px=16)
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(summed, 3 * np.asarray(predicted))


def test_a_coarser_truth_is_refused(values, mask):
    one = table(values, mask, slice(None), list("abcde"))
    with pytest.raises(ValueError, match="every 16 px, which is coarser than the superpixels of 8 px"):
        from_tables(one, one, pitch_px=8)


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
@pytest.mark.parametrize("min_share", [0.5, 1.0])
def test_coarsening_is_coarsen_on_the_superpixels_of_the_mask(factor, min_share):
    rng = np.random.default_rng(0)
    mask = rng.random((29, 34)) < 0.7
    values = rng.poisson(3, (*mask.shape, 4))
    sums, _ = coarsen(values, mask, factor, min_share=min_share)
    np.testing.assert_allclose(coarsening(mask, factor, min_share=min_share) @ values[mask], sums)
