"""The page of the viewer, of Bokeh's parts: what it shows, and what happens there."""

from __future__ import annotations

from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.events import RangesUpdate, Tap
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, LinearColorMapper, Range1d
from bokeh.models.annotations import ColorBar, ScaleBar
from bokeh.models.annotations.dimensional import MetricLength
from bokeh.models.widgets import AutocompleteInput, Div, Slider
from bokeh.plotting import figure
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray

from sphistex.pl._background import Background
from sphistex.pl._canvas import Window
from sphistex.pl._readings import GeneMap, Readings

# The plot fits into this many pixels of a screen.
_WIDE, _HIGH = 900, 760
# Milliseconds without a movement after which the image is read again.
_STILL = 150
# Genes that are listed of a superpixel, and the percentile at which the colours end.
_LISTED, _BRIGHTEST = 15, 99.5
# A picture where there is none.
_NOTHING = np.zeros((1, 1, 3), dtype=np.uint8), Window(0, 0, 0, 0)
# How strongly a gene covers the image at first, and widths at the side.
_OPACITY, _SIDE = 0.7, 340

_TEMPLATES = Environment(loader=PackageLoader("sphistex.pl"), autoescape=True)


class Page:
    """What one window of a browser shows.

    Parameters
    ----------
    readings
        The result.
    background
        The image.
    gene
        The gene that is shown first.
    """

    def __init__(self, readings: Readings, background: Background, gene: str) -> None:
        self._readings, self._background = readings, background
        self._map: GeneMap
        self._chosen: int | None = None
        self._waiting: Any = None
        window = readings.lattice.window.padded(0.02)
        self._plot = _empty_plot(window)
        self._add_picture(*_rgba(background.small, background.window))
        self._sharp = self._add_picture(*_rgba(*_NOTHING), name="sharp")
        self._colours = LinearColorMapper(palette="Viridis256", low=0, high=1, nan_color="rgba(0, 0, 0, 0)")
        where = readings.lattice.window
        self._shown = ColumnDataSource({"image": [np.zeros((1, 1), np.float32)]}, name="map")
        self._overlay = self._plot.image(
            "image",
            x=where.left,
            y=where.top,
            dw=where.width,
            dh=where.height,
            source=self._shown,
            color_mapper=self._colours,
            global_alpha=_OPACITY,
            name="gene",
        )
        pitch_um = readings.lattice.pitch_px * readings.lattice.mpp
        self._mark = ColumnDataSource({"x": [], "y": []}, name="mark")
        self._plot.rect("x", "y", pitch_um, pitch_um, source=self._mark, fill_alpha=0, line_color="red", line_width=2)
        self._plot.add_layout(ColorBar(color_mapper=self._colours, title=f"counts per {pitch_um:g} µm square"), "right")

        self._gene = AutocompleteInput(
            title="Gene",
            value=gene,
            completions=readings.genes,
            case_sensitive=False,
            min_characters=1,
            max_completions=20,
            search_strategy="includes",
            width=_SIDE,
        )
        self._opacity = Slider(
            title="Opacity", start=0, end=1, step=0.05, value=_OPACITY, width=_SIDE, css_classes=["opacity"]
        )
        self._certain = Slider(
            title="Hide what is less certain than",
            start=0.5,
            end=1,
            step=0.01,
            value=0.5,
            disabled=readings.calibration is None,
            width=_SIDE,
            css_classes=["certainty"],
        )
        self._side = Div(width=_SIDE, name="superpixel")
        self._show_gene()

    def add_to(self, document: Document) -> None:
        """Put it into a browser's document, and answer to what is done there."""
        self._plot.on_event(Tap, lambda event: self._choose(event.x, event.y))
        self._plot.on_event(RangesUpdate, lambda event: self._moved(document, event))
        self._gene.on_change("value", lambda attr, old, new: self._show_gene())
        self._opacity.on_change("value", lambda attr, old, new: self._set_opacity())
        self._certain.on_change("value_throttled", lambda attr, old, new: self._mask())
        how = Div(text=_render("how.html", unjudged=self._readings.unjudged), width=_SIDE)
        controls = column(self._gene, self._opacity, self._certain, how, self._side)
        document.add_root(row(self._plot, controls))
        document.title = "sphistex"
        document.template = _POLICY  # type: ignore[assignment]  # may be text as well

    def _add_picture(self, pixels: NDArray[np.uint32], placed: dict[str, float], name: str = "") -> ColumnDataSource:
        source = ColumnDataSource({"image": [pixels]} | {side: [value] for side, value in placed.items()}, name=name)
        self._plot.image_rgba("image", "x", "y", "dw", "dh", source=source)
        return source

    def _show_gene(self) -> None:
        self._map = self._readings.gene(self._gene.value)
        self._colours.high = max(float(np.nanpercentile(self._map.counts, _BRIGHTEST)), 1e-3)
        self._plot.title.text = self._gene.value
        self._mask()
        self._describe()

    def _mask(self) -> None:
        counts, certainty = self._map.counts, self._map.certainty
        if certainty is not None and self._certain.value > self._certain.start:
            counts = np.where(certainty >= self._certain.value, counts, np.float32(np.nan))
        self._shown.data = {"image": [counts]}

    def _set_opacity(self) -> None:
        self._overlay.glyph.global_alpha = self._opacity.value

    def _choose(self, x_um: float, y_um: float) -> None:
        self._chosen = self._readings.row_at(x_um, y_um)
        centre = [] if self._chosen is None else [self._readings.centre_um(self._chosen)]
        self._mark.data = {"x": [x for x, _ in centre], "y": [y for _, y in centre]}
        self._describe()

    def _describe(self) -> None:
        """Say at the side what is known of the chosen superpixel."""
        if self._chosen is None:
            self._side.text = ""
            return
        gene, readings = self._gene.value, self._readings
        profile = readings.profile(self._chosen)
        counts = float(profile.at[gene, "counts"])
        row, column = np.argwhere(readings.place == self._chosen)[0]
        certainty = None if self._map.certainty is None else float(self._map.certainty[row, column])
        self._side.text = _render(
            "superpixel.html",
            centre=readings.centre_um(self._chosen),
            gene=gene,
            counts=counts,
            interval=readings.interval(gene, counts),
            certainty=certainty,
            annotations=readings.annotations(self._chosen),
            genes=list(profile.head(_LISTED).itertuples()),
        )

    def _moved(self, document: Document, event: RangesUpdate) -> None:
        """Read the image again once the movement has come to rest."""
        if self._waiting is not None:
            document.remove_timeout_callback(self._waiting)
        sides = event.x0, event.y1, event.x1, event.y0
        window = Window(*(float(side) for side in sides if side is not None))
        self._waiting = document.add_timeout_callback(lambda: self._look_at(window), _STILL)

    def _look_at(self, window: Window) -> None:
        self._waiting = None
        pixels, placed = _rgba(*(self._background.sharp(window) or _NOTHING))
        self._sharp.data = {"image": [pixels]} | {name: [value] for name, value in placed.items()}


# The browser itself refuses whatever would come from another host.
_POLICY = """
{% block preamble %}
<meta http-equiv="Content-Security-Policy" content="default-src 'self'; script-src 'self' 'unsafe-inline';
 style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:;
 connect-src 'self' ws://127.0.0.1:* ws://localhost:*">
{% endblock %}
"""


def _empty_plot(window: Window) -> Any:
    """A plot in µm, y downwards, of the shape of the window."""
    scale = min(_WIDE / window.width, _HIGH / window.height)
    plot = figure(
        x_range=Range1d(start=window.left, end=window.right),
        y_range=Range1d(start=window.bottom, end=window.top),
        frame_width=round(window.width * scale),
        frame_height=round(window.height * scale),
        tools="pan,wheel_zoom,box_zoom,reset,save",
        active_scroll="wheel_zoom",
        title="",
    )
    plot.axis.visible = False
    plot.grid.visible = False
    plot.toolbar.logo = None
    plot.add_layout(ScaleBar(range=plot.x_range, unit="µm", dimensional=MetricLength(), location="bottom_left"))
    return plot


def _rgba(picture: NDArray[np.uint8], window: Window) -> tuple[NDArray[np.uint32], dict[str, float]]:
    """A picture (y, x, 3) as Bokeh takes it, and where it goes."""
    opaque = np.dstack([picture, np.full(picture.shape[:2], 255, dtype=np.uint8)])
    placed = {"x": window.left, "y": window.top, "dw": window.width, "dh": window.height}
    return np.ascontiguousarray(opaque).view(np.uint32)[..., 0], placed


def _render(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(**values)
