"""A report stands alone, says what the result holds, and warns of what should be known."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from anndata import AnnData
from click.testing import CliRunner
from PIL import Image
from spatialdata import SpatialData, read_zarr

from sphistex import pl
from sphistex.cli import main
from sphistex.tl._lazy import Counts

LINKS = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction"}


class Page(HTMLParser):
    """The parts of a page that matter here."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in LINKS]

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def pictures(self) -> Iterator[bytes]:
        for link in self.links:
            _, _, content = link.partition(";base64,")
            yield base64.b64decode(content, validate=True)


def check_picture(content: bytes) -> None:
    """Refuse what is neither an SVG nor a PNG with something in it."""
    if content.startswith(b"\x89PNG"):
        assert np.asarray(Image.open(BytesIO(content)).convert("RGB")).std() > 1
    else:
        assert ElementTree.fromstring(content).tag.endswith("svg")


@pytest.fixture(scope="module")
def of_lazy(lazy_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """What the command makes of a lazy result, and of how many genes at once it was read."""
    asked: list[int] = []
    take = Counts.take

    def noted(self: Counts, genes: np.ndarray) -> Counts:
        asked.append(len(genes))
        return take(self, genes)

    out = tmp_path_factory.mktemp("report") / "new" / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counts, "take", noted)
        done = CliRunner().invoke(main, ["report", str(lazy_store), "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    return out, asked


def test_the_page_of_a_lazy_store_stands_alone_and_needs_few_genes_at_once(of_lazy: tuple[Path, list[int]]):
    out, asked = of_lazy
    assert asked and max(asked) <= 16
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]
    html = out.read_text(encoding="utf-8")
    page = Page(html)
    assert page.links and all(link.startswith("data:image/") for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert "url(" not in html and "@import" not in html
    assert "not drawn" not in page.text
    pictures = list(page.pictures)
    assert len(pictures) == 4
    for content in pictures:
        check_picture(content)


def test_it_says_what_the_result_holds_and_warns_of_its_limits(of_lazy: tuple[Path, list[int]], lazy_store: Path):
    text = Page(of_lazy[0].read_text(encoding="utf-8")).text
    sdata = read_zarr(lazy_store)
    table, spots = sdata.tables["superres"], sdata.shapes["spots"]
    for said in (
        "1,200 × 1,200 px",
        f"{len(spots)} spots, about 55 µm wide and 100 µm apart",
        "0.5 µm per pixel",
        f"{table.n_obs:,}",
        "efficientnet_lite0",
        "learning_rate",
    ):
        assert said in text
    assert "trained on photographs" in text
    assert f"only {len(spots)} spots" in text
    assert "spots were left out while fitting, and 50 are needed" in text


@pytest.fixture
def judged(sdata: SpatialData) -> SpatialData:
    """The known result as if it had been fitted and judged."""
    table = sdata.tables["superres"]
    table.uns["superres"] |= {
        "encoder": {"encoder": "uni"},
        "params": {"epochs": 4},
        "features_key": "gone",
        "calibration": {"side_um": 49.0, "pitch_um": 8.0, "coverage": np.linspace(0, 1, 201), "n_spots": 100},
    }
    for prefix in ("held_out_", "blocks_"):
        table.var[f"{prefix}pearson"] = [0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
        table.var[f"{prefix}interpolation"], table.var[f"{prefix}ceiling"] = 0.4, 1.0
    table.var["explained_share"] = table.var["blocks_explained_share"] = table.var["held_out_pearson"]
    table.var["verdict"] = table.var["blocks_verdict"] = ["better"] * 4 + ["as interpolation", "as chance"]
    table.var["mean_count"], table.var["error_variance"] = np.asarray(table.X).mean(0), 0.2
    return sdata


def test_what_is_known_of_the_genes_is_told(judged: SpatialData, tmp_path: Path):
    table = judged.tables["superres"]
    pl.report(judged, tmp_path / "report.html", genes=table.var_names[0])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "photographs" not in page.text
    assert f"no better than by chance where the model had not looked: {table.var_names[5]}." in page.text
    assert f"interpolation of the spots where the model had not looked: {table.var_names[4]}." in page.text
    assert "Squares of the section left out" in page.text
    assert "calibrated on 100 spots" in page.text
    assert "not drawn: key='gone' is not in sdata.images" in page.text, "what is gone is named, and the rest is there"
    assert len(list(page.pictures)) == 4


@pytest.mark.parametrize(
    ("params", "losses", "warned"),
    [({"schedule": False}, 1.0, True), ({"schedule": True}, 1.0, False), ({"schedule": False}, np.nan, False)],
)
def test_more_epochs_are_advised_only_where_the_loss_can_still_fall(
    judged: SpatialData, tmp_path: Path, params: dict[str, bool], losses: float, warned: bool
):
    made = judged.tables["superres"].uns["superres"]
    made["params"] |= params
    made["training"] |= {"best_epoch": np.array([3, 3, 1]), "validation_loss": np.full(4, losses)}
    pl.report(judged, tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert ("2 of the models were best in their last epoch, 4: more epochs may fit better" in text) == warned


def test_genes_are_drawn_by_how_they_were_judged(judged: SpatialData):
    figure = pl.validation(judged, return_fig=True)
    assert figure is not None
    (panel,) = figure.axes
    assert "squares" in panel.get_title(), "the strictest judgement"
    drawn = np.concatenate([np.asarray(points.get_offsets()) for points in panel.collections])
    np.testing.assert_allclose(np.sort(drawn[:, 1]), [0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    labels = panel.get_legend_handles_labels()[1]
    assert labels == ["better (4)", "as interpolation (1)", "as chance (1)"]
    with pytest.raises(KeyError, match="judged by .'held_out', 'blocks'."):
        pl.validation(judged, by="halves")


def test_mistakes_leave_the_page_that_was_there(judged: SpatialData, tmp_path: Path):
    out = tmp_path / "report.html"
    out.write_text("before")
    with pytest.raises(KeyError, match="nonsense"):
        pl.report(judged, out, genes="nonsense")
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        pl.report(judged, tmp_path)
    with pytest.raises(OSError, match=r"report.html.* cannot be written: .*choose another folder"):
        pl.report(judged, out / "report.html")
    with pytest.raises(KeyError, match="key='counts' is a table, but not a result"):
        pl.report(judged, out, key="counts")
    del judged.tables["superres"]
    with pytest.raises(KeyError, match="there is none; sphistex run STORE.zarr makes one"):
        pl.report(judged, out)
    assert out.read_text() == "before"
    assert isinstance(judged.tables["counts"], AnnData)


def test_a_store_without_a_result_is_one_line(judged: SpatialData, tmp_path: Path):
    del judged.tables["superres"]
    judged.write(tmp_path / "section.zarr")
    for command in (["report", "--out", str(tmp_path / "report.html")], ["view", "--no-browser"]):
        done = CliRunner().invoke(main, [*command, str(tmp_path / "section.zarr")])
        assert done.exit_code == 1
        assert "Error: key='superres' is not in sdata.tables" in done.output and "sphistex run" in done.output
