"""What the viewer says of a result, and that it can be used in a browser."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from PIL import Image
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel
from xarray import DataArray

import sphistex as sx
from sphistex.pl._background import Background
from sphistex.pl._canvas import Window
from sphistex.pl._readings import Readings

START = "from sphistex.cli import main; main()"
# Looks for an element through all shadow roots of the page.
FIND = """
const search = (root) => {
    for (const element of root.querySelectorAll("*")) {
        if (element.matches(arguments[0])) return element;
        const found = element.shadowRoot && search(element.shadowRoot);
        if (found) return found;
    }
};
return search(document);
"""


@pytest.fixture
def certain(sdata: SpatialData) -> SpatialData:
    """The known result with a calibration and an annotation."""
    table = sdata.tables["superres"]
    table.var["mean_count"], table.var["error_variance"] = np.asarray(table.X).mean(0), 0.2
    levels = np.linspace(0, 1, 201)
    table.uns["superres"]["calibration"] = {"side_um": 49.0, "pitch_um": 8.0, "coverage": levels, "n_spots": 100}
    table.obs["annotation"] = np.where(table.obs["array_row"] < 30, "<upper>", "<lower>")
    return sdata


# ------------------------------------------------------------------------------------------------ what it says


def test_the_map_of_a_gene_is_its_column_and_its_certainty_that_of_the_intervals(certain: SpatialData):
    table = certain.tables["superres"]
    readings, gene = Readings.of(certain, "superres"), table.var_names[1]
    found = readings.gene(gene)
    place = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    np.testing.assert_allclose(found.counts[place], table.X[:, 1])
    assert np.isfinite(found.counts).sum() == table.n_obs
    above = sx.tl.confidence(certain, gene).layers["probability"][:, 0]
    assert found.certainty is not None
    np.testing.assert_allclose(found.certainty[place], np.maximum(above, 1 - above), rtol=1e-5)


def test_a_superpixel_is_found_where_it_lies_and_says_what_the_table_says(certain: SpatialData):
    table = certain.tables["superres"]
    readings = Readings.of(certain, "superres")
    for row in (0, 1234, table.n_obs - 1):
        x, y = readings.centre_um(row)
        assert {readings.row_at(x + dx, y + dy) for dx in (-3.9, 3.9) for dy in (-3.9, 3.9)} == {row}
        profile = readings.profile(row)
        np.testing.assert_allclose(profile["counts"].loc[table.var_names], table.X[row], rtol=1e-6)
        assert readings.annotations(row) == {"annotation": table.obs["annotation"].iloc[row]}
        lower, upper = readings.interval(table.var_names[0], float(table.X[row, 0])) or (1.0, 0.0)
        assert 0 <= lower < upper
    assert readings.row_at(-1000.0, 0.0) is None


def test_superpixels_of_a_result_that_was_cut_out_are_found_on_what_is_left_of_the_image(certain: SpatialData):
    low, high = np.array([310, 205]), np.array([810, 705])
    cut = certain.query.bounding_box(
        axes=("x", "y"), min_coordinate=low, max_coordinate=high, target_coordinate_system="global"
    )
    readings, row = Readings.of(cut, "superres"), 100
    centre = (cut.tables["superres"].obsm["spatial"][row] - low) * 0.5
    assert readings.centre_um(row) == pytest.approx(centre)
    assert readings.row_at(*centre) == row
    background = Background.of(cut, readings.table, "superres", "image", 0.5, readings.lattice.window, cut=True)
    assert background.window.right <= 250 and background.window.bottom <= 250


def test_the_genes_of_a_superpixel_that_are_far_above_their_mean_come_first(certain: SpatialData):
    table = certain.tables["superres"]
    table.X[7] = table.var["mean_count"]
    table.X[7, 2] *= 9
    first, *_ = Readings.of(certain, "superres").profile(7).itertuples()
    assert first.Index == table.var_names[2] and first.times_mean == pytest.approx(9)


def test_one_superpixel_of_a_lazy_result_is_read_as_all_of_them_are(lazy_store: Path):
    readings = Readings.of(read_zarr(lazy_store), "superres")
    rows = [0, 2345, readings.table.n_obs - 1]
    at_once = np.asarray(readings.table.X[:, :])[rows]
    one_by_one = [readings.profile(row)["counts"].loc[readings.genes] for row in rows]
    np.testing.assert_allclose(one_by_one, at_once, rtol=1e-5, atol=1e-6)
    assert np.isfinite(readings.gene(readings.genes[0]).counts).sum() == readings.table.n_obs


def test_a_result_without_a_calibration_says_why_and_is_shown_all_the_same(sdata: SpatialData):
    readings = Readings.of(sdata, "superres")
    assert readings.gene(readings.genes[0]).certainty is None
    assert "without a calibration" in readings.unjudged
    assert readings.profile(0)["counts"].is_monotonic_decreasing


def test_of_the_image_only_what_is_looked_at_is_read():
    read: list[tuple[int, int]] = []

    def pixels(block_info: Any = None) -> np.ndarray:
        (_, _), *places = block_info[None]["array-location"]
        read.append((places[0][0], places[1][0]))
        return np.full((3, 512, 512), 100, dtype=np.uint8)

    chunks = (3,), (512,) * 12, (512,) * 12
    lazy = da.map_blocks(pixels, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    image = Image2DModel.parse(DataArray(lazy, dims=("c", "y", "x")))
    read.clear()
    small = np.zeros((1536, 1536, 3), dtype=np.uint8)
    whole = Window(0, 0, 3072, 3072)
    background = Background(SpatialData(images={"he": image}), "he", 0.5, small, whole)
    assert background.sharp(whole) is None, "the small picture will do"
    assert background.sharp(Window(-500, -500, -10, -10)) is None, "beside the image"
    assert not read
    picture, covered = background.sharp(Window(300, 600, 700, 900)) or (small, whole)
    assert picture.shape == (600, 800, 3)
    assert covered == Window(300, 600, 700, 900)
    assert {top // 512 for top, _ in read} == {2, 3} and {left // 512 for _, left in read} == {1, 2}


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_port_in_use_is_named(certain: SpatialData):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} is in use: pass another one"):
            sx.pl.view(certain, port=port, browser=False)
    with pytest.raises(ValueError, match="port=70000"):
        sx.pl.view(certain, port=70_000, browser=False)
    with pytest.raises(ValueError, match="port='80' must be a whole number"):
        sx.pl.view(certain, port="80", browser=False)  # type: ignore[arg-type]


def test_a_missing_extra_is_named(certain: SpatialData, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sphistex.tl._extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'needs bokeh: pip install "sphistex\[view\]"'):
        sx.pl.view(certain, browser=False)


def test_a_section_without_a_result_or_without_its_image_is_refused(certain: SpatialData):
    with pytest.raises(KeyError, match="key='nothing'.*results are .'superres'."):
        sx.pl.view(certain, key="nothing", browser=False)
    del certain.images["image"]
    with pytest.raises(KeyError, match="the image 'image' of 'superres' is not in sdata.images"):
        sx.pl.view(certain, browser=False)


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture
def address(certain: SpatialData, tmp_path: Path) -> Iterator[str]:
    """Where the command serves the known result."""
    certain.write(tmp_path / "section.zarr")
    command = [sys.executable, "-c", START, "view", str(tmp_path / "section.zarr"), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+/", said)
            assert found, said + server.stdout.read()
            yield found.group()
        finally:
            server.kill()


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Any]:
    """A browser without a window, and nothing of any other browser's in it."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if browser is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1400,950",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


class Reader:
    """The viewer as its reader uses it."""

    def __init__(self, browser: Any, address: str) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        self.browser = browser
        self._wait = WebDriverWait(browser, 10, poll_frequency=0.1)
        browser.get(address)
        self.until(lambda: self.run("return window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"))

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def until(self, condition: Any) -> Any:
        return self._wait.until(lambda _: condition())

    def find(self, selector: str) -> Any:
        return self.until(lambda: self.run(FIND, selector))

    def column(self, source: str, name: str) -> Any:
        """First value of a column of one of the page's sources."""
        return self.run("return Bokeh.documents[0].get_model_by_name(arguments[0]).data[arguments[1]][0]", source, name)

    def shown(self) -> int:
        """How many superpixels are not hidden."""
        script = "return Array.from(Bokeh.documents[0].get_model_by_name('map').data.image[0]).filter(isFinite).length"
        return int(self.run(script))

    def opacity(self) -> float:
        script = "return Bokeh.documents[0].get_model_by_name('gene').glyph.global_alpha.value"
        return float(self.run(script))

    def left(self) -> float:
        return float(self.run("return Bokeh.documents[0].roots()[0].children[0].x_range.start"))

    def picture(self, folder: Path, name: str) -> np.ndarray:
        self.browser.save_screenshot(folder / f"{name}.png")
        return np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))

    def says(self) -> str:
        return str(self.run("return Bokeh.documents[0].get_model_by_name('superpixel').text"))

    def at(self, x_um: float, y_um: float) -> Any:
        """A mouse that rests on a place of the image."""
        from selenium.webdriver import ActionChains

        mouse = ActionChains(self.browser, duration=50)
        mouse.w3c_actions.pointer_action.move_to_location(*self._on_screen(x_um, y_um))
        return mouse

    def scroll(self, x_um: float, y_um: float, by: int) -> None:
        from selenium.webdriver import ActionChains

        wheel = ActionChains(self.browser)
        wheel.w3c_actions.wheel_action.scroll(*self._on_screen(x_um, y_um), 0, by)
        wheel.perform()

    def _on_screen(self, x_um: float, y_um: float) -> tuple[int, int]:
        script = """
            const view = Bokeh.index.find_one(Bokeh.documents[0].roots()[0].children[0]);
            const corner = view.canvas_view.el.getBoundingClientRect();
            const {x_scale, y_scale} = view.frame;
            return [corner.x + x_scale.compute(arguments[0]), corner.y + y_scale.compute(arguments[1])];
        """
        x, y = self.run(script, x_um, y_um)
        return round(x), round(y)


def test_the_viewer_in_a_browser(certain: SpatialData, chromium: Any, address: str, tmp_path: Path):
    from selenium.webdriver import Keys

    table = certain.tables["superres"]
    readings, chosen = Readings.of(certain, "superres"), table.var_names[3]
    reader = Reader(chromium, address)
    assert reader.shown() == table.n_obs
    look = partial(reader.picture, tmp_path)
    first = look("first")

    # another gene
    field = reader.find("input[type=text]")
    field.send_keys(*[Keys.BACKSPACE] * 40)
    field.send_keys(chosen.upper()[:9])
    look("names")
    field.send_keys(Keys.ENTER)
    reader.until(lambda: reader.run("return Bokeh.documents[0].roots()[0].children[0].title.text") == chosen)
    wanted = readings.gene(chosen)
    drawn = reader.run("return Array.from(Bokeh.documents[0].get_model_by_name('map').data.image[0])")
    np.testing.assert_allclose(np.array(drawn, dtype=float), wanted.counts.ravel(), rtol=1e-6)
    assert (look("gene") != first).any()

    # a superpixel
    row = int(np.argmax(table.X[:, 3]))
    reader.at(*readings.centre_um(row)).click().perform()
    reader.until(lambda: "Superpixel at" in reader.says())
    x, y = readings.centre_um(row)
    assert f"{x:.0f}, {y:.0f} µm" in reader.says()
    assert f"<i>{chosen}</i>: {table.X[row, 3]:.3g} counts" in reader.says()
    assert "&lt;upper&gt;" in reader.says() or "&lt;lower&gt;" in reader.says()
    look("superpixel")

    # less of it
    opacity, certainty = (
        reader.find(f".{name}").shadow_root.find_element("css selector", ".noUi-handle")
        for name in ("opacity", "certainty")
    )
    opacity.send_keys(*[Keys.ARROW_LEFT] * 4)
    reader.until(lambda: reader.opacity() == pytest.approx(0.5))
    certainty.send_keys(*[Keys.ARROW_RIGHT] * 10)
    assert wanted.certainty is not None
    reader.until(lambda: reader.shown() == int((wanted.certainty >= 0.6).sum()) < table.n_obs)
    look("certain")

    # nearer, and to one side
    assert reader.column("sharp", "dw") == 0
    x_before = reader.left()
    reader.scroll(x, y, -600)
    reader.until(lambda: reader.column("sharp", "dw") > 0)
    look("near")
    reader.at(x, y).click_and_hold().move_by_offset(-80, 0).release().perform()
    reader.until(lambda: reader.left() > x_before)

    # and all of it from this machine
    asked = reader.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked and all(url.startswith(address) for url in asked)
    refused = """
        const done = arguments[arguments.length - 1];
        document.addEventListener("securitypolicyviolation", (event) => done(event.blockedURI));
        new Image().src = "https://example.org/picture.png";
    """
    assert "example.org" in chromium.execute_async_script(refused)
    errors = [line["message"] for line in chromium.get_log("browser") if line["level"] == "SEVERE"]
    assert all("example.org" in error for error in errors), errors
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", int(address.rsplit(":", 1)[1].strip("/"))))
