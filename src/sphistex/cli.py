"""The commands ``sphistex demo``, ``run``, ``report``, ``view``, ``predict-histology`` and ``bench``."""

from __future__ import annotations

import logging
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from spatialdata import SpatialData

# Everything else is imported inside the commands, so that --help is there at once.

_PICTURED = 4
_DEVICE_HELP = "Where to compute: cpu, cuda (an NVIDIA card) or mps (a Mac's).  [default: the fastest there is]"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sphistex")
def main() -> None:
    """Gene expression at 8 µm from an H&E image and Visium spots.

    Visium measures gene expression in spots of 55 µm, 100 µm apart. sphistex learns how expression goes with what the
    tissue looks like under the microscope, and predicts it for every square of 8 µm, in the spots and between them.

    Start with "sphistex demo --out demo": it needs no data. Then use "sphistex run" on your own section.
    """


@main.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for what is made.")
@click.option(
    "--size-um", default=2000.0, show_default=True, help="Side of the simulated section in µm (Visium's is 6500)."
)
@click.option("--genes", default=200, show_default=True, help="Number of simulated genes.")
@click.option("--epochs", type=int, help="Rounds of training; fewer are quicker and less accurate.")
@click.option("--n-models", type=int, help="Models whose predictions are averaged; fewer are quicker, less accurate.")
@click.option("--seed", default=0, show_default=True, help="Another seed, another tissue; the same seed, the same.")
@click.option("--device", help=_DEVICE_HELP)
@click.option("--quiet", is_flag=True, help="Print the summary only, no progress.")
def demo(out: Path, size_um: float, genes: int, seed: int, device: str | None, quiet: bool, **fit: int | None) -> None:
    """See it work on simulated tissue whose true expression is known; takes minutes.

    Writes into the folder OUT: pictures (expression.png shows genes as measured, as predicted and as they truly are),
    summary.txt with the accuracy beside that of simple interpolation, and demo.zarr with all data, to be read with
    spatialdata.read_zarr. What an earlier demo left there is replaced.
    """
    with _reporting(quiet):
        from sphistex import _demo

        summary = _demo.run_demo(out, size_um=size_um, n_genes=genes, seed=seed, device=device, **_given(fit))
        click.echo(summary)
        click.echo(f"Everything is in {out}: look at {out / 'expression.png'}")


@main.command()
@click.argument(
    "stores", nargs=-1, required=True, metavar="STORE...", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--genes",
    help="Which genes: how many of the most variable ones, or names separated by commas, or a text file with one "
    "name per line, or all (those seen in enough spots).  [default: the 1000 most variable]",
)
@click.option(
    "--lazy/--dense",
    default=None,
    help="Store what counts are read from, for sphistex.tl.open_genes, or all counts.  [default: whichever fits]",
)
@click.option(
    "--encoder",
    default="auto",
    show_default=True,
    help="The network that looks at the image: uni (the best; needs access), efficientnet_lite0 (comes with sphistex), "
    "or any ViT of timm. auto takes uni where it is there.",
)
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="File with the encoder's weights.")
@click.option(
    "--preset",
    default="default",
    show_default=True,
    help="How the model is trained: default (measured best), or paper (as published; slow).",
)
@click.option("--image", "image_key", help="Name of the H&E image, where STORE holds several.")
@click.option("--shapes", "shapes_key", help="Name of the spots, where STORE holds several kinds of shapes.")
@click.option("--table", "table_key", help="Name of the table of raw counts, where STORE holds several.")
@click.option("--coordinate-system", help="Coordinate system in which image and spots lie on each other.")
@click.option("--mpp", type=float, help="Microns per image pixel.  [default: from the distance between spots]")
@click.option(
    "--spot-pitch-um", type=float, help="Distance between neighbouring spots in µm, if it is not Visium's 100."
)
@click.option("--key-added", default="superres", show_default=True, help="Name of the result.")
@click.option(
    "--conserve-counts", is_flag=True, help="Make each spot add up to exactly what was measured, noise included."
)
@click.option(
    "--drop-genes",
    type=click.Choice(["chance", "interpolation"]),
    help="Leave out genes that are predicted no better than by chance, or than by interpolation, at spots that the "
    "model had not seen.",
)
@click.option("--strict", is_flag=True, help="Refuse counts that look normalised, instead of warning.")
@click.option("--overwrite", is_flag=True, help="Replace a result of that name.")
@click.option("--epochs", type=int, help="Rounds of training.  [default: the preset's]")
@click.option("--n-models", type=int, help="Models whose predictions are averaged.  [default: the preset's]")
@click.option("--seed", default=0, show_default=True, help="Same seed, same result.")
@click.option("--device", help=_DEVICE_HELP)
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Folder to draw pictures into.")
@click.option("--save-model", type=click.Path(file_okay=False, path_type=Path), help="Folder to save the model in.")
@click.option("--quiet", is_flag=True, help="No progress.")
def run(
    stores: tuple[Path, ...],
    genes: str | None,
    pictures: Path | None,
    save_model: Path | None,
    quiet: bool,
    epochs: int | None,
    n_models: int | None,
    **arguments: Any,
) -> None:
    """Super-resolve the section in STORE, a SpatialData folder (.zarr) with an H&E image and Visium spots.

    Several STOREs are sections of the same tissue: one model is fitted to all of them, and each gets its result.

    The result is written into STORE: the table "superres" has one row per square of 8 µm and one column per gene,
    in counts, ready for scanpy. What is there already is kept; what takes long (describing the image) is kept too and
    used again by the next run, also after an interruption.

    \b
    A store is made from the output of Space Ranger with
      import spatialdata_io
      spatialdata_io.visium("outs", fullres_image_file="image.tif").write("section.zarr")

    \b
    Examples
      sphistex run section.zarr --pictures pictures
      sphistex run section.zarr --genes EPCAM,CD3E,COL1A1 --encoder efficientnet_lite0
      sphistex run first.zarr second.zarr
    """  # noqa: D301
    with _reporting(quiet):
        sections = [_read(store) for store in stores]
        from sphistex import tl

        chosen = genes if genes == "all" else _genes(genes)
        model = tl.super_resolve(
            sections, genes=chosen, **arguments, **_given({"epochs": epochs, "n_models": n_models})
        )
        key = arguments["key_added"]
        for store, sdata in zip(stores, sections, strict=True):
            table = sdata.tables[key]
            click.echo(f"{store}: table {key!r} has {table.n_obs:,} superpixels × {table.n_vars} genes")
        if save_model is not None:
            model.save(save_model)
            click.echo(f"{save_model}: the fitted model, for sphistex.nn.SuperResolver.load")
        if pictures is not None:
            from sphistex.pl._genes import most_patterned

            for number, sdata in enumerate(sections, start=1):
                folder = pictures if len(stores) == 1 else pictures / f"{number}_{stores[number - 1].stem}"
                table = sdata.tables[key]
                named = list(table.var_names) if isinstance(chosen, list) else None
                shown = named or most_patterned(sdata, table, table.uns[key])
                click.echo(f"{folder}: {', '.join(_draw(sdata, key, shown[:_PICTURED], folder))}")


@main.command()
@click.argument("store", metavar="STORE", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    default="report.html",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page; replaced if it exists.",
)
@click.option("--genes", help="Genes to draw, separated by commas, or a text file with one name per line.")
@click.option("--key", default="superres", show_default=True, help="Name of the result.")
@click.option("--quiet", is_flag=True, help="No progress.")
def report(store: Path, out: Path, genes: str | None, key: str, quiet: bool) -> None:
    """Write the result in STORE to one HTML page, to look at, mail or archive.

    It says what went in, how the result was made, how far to trust it, and what to be warned of, and shows genes. It
    is a single file with its pictures in it; it needs no network.
    """
    with _reporting(quiet):
        sdata = _read(store)
        from sphistex import pl

        pl.report(sdata, out, key=key, genes=_names(genes))
        click.echo(f"{out}: the report of {key!r} in {store}")


@main.command()
@click.argument("store", metavar="STORE", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", default=5006, show_default=True, help="Port of the page; 0 for any that is free.")
@click.option("--no-browser", is_flag=True, help="Print the address of the page, and do not open it.")
@click.option("--key", default="superres", show_default=True, help="Name of the result.")
def view(store: Path, port: int, no_browser: bool, key: str) -> None:
    """Look around in the result in STORE with a browser: zoom, choose genes, click on superpixels.

    The page is served by this command, to this machine only, until you press Ctrl+C. It needs the extra "view", and no
    network.
    """
    with _reporting(quiet=True):
        sdata = _read(store)
        from sphistex import pl

        pl.view(sdata, key=key, port=port, browser=not no_browser)


@main.command("predict-histology")
@click.argument("image", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--model",
    "model_path",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a model, as HistologyModel.save writes it.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="New SpatialData folder (.zarr), where IMAGE is a picture."
)
@click.option("--image", "image_key", help="Name of the H&E image, where a SpatialData folder holds several.")
@click.option("--shapes", "shapes_key", help="Name of the spots, where it holds several kinds of shapes.")
@click.option("--table", "table_key", help="Name of the table of raw counts, where it holds several.")
@click.option("--mpp", type=float, help="Microns per pixel of the image.  [default: what the file says]")
@click.option("--encoder", help="The model's encoder, where it is none of sphistex's.  [default: as the model says]")
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="File with the encoder's weights.")
@click.option("--key-added", default="histology", show_default=True, help="Name of the result.")
@click.option("--overwrite", is_flag=True, help="Replace a result of that name.")
@click.option("--device", help=_DEVICE_HELP)
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Folder to draw pictures into.")
@click.option("--quiet", is_flag=True, help="No progress.")
def predict_histology(
    image: Path, model_path: Path, out: Path | None, mpp: float | None, pictures: Path | None, quiet: bool, **how: Any
) -> None:
    """Predict expression and regions of a section of which there is only an H&E image.

    IMAGE is a picture (TIFF, SVS, OME-Zarr, JPEG, PNG), which becomes the SpatialData folder --out; or such a folder
    that has an image, into which the result is written. The model comes from sphistex.tl.fit_histology, fitted to
    measured sections of the same tissue.

    \b
    Examples
      sphistex predict-histology slide.svs --model breast-model --out slide.zarr --pictures pictures
    """  # noqa: D301
    with _reporting(quiet):
        from sphistex import pl, tl
        from sphistex.tl.histology import check_key, encoder_of

        # what can be wrong is found out before the picture is written, which takes longer
        model = tl.HistologyModel.load(model_path)
        if not _is_section(image):
            if named := [f"--{what}" for what in ("image", "shapes", "table") if how[f"{what}_key"] is not None]:
                raise ValueError(f"{', '.join(named)}: {image} is a picture, in which nothing is named; leave it out")
            how["encoder"] = encoder_of(model, how["encoder"], how.pop("weights"), how["device"])
        sdata, store = _section_of(image, out, mpp, lambda section: check_key(section, how["key_added"]))
        tl.predict_histology(sdata, model, mpp=mpp, **how)
        key = how["key_added"]
        table = sdata.tables[key]
        click.echo(f"{store}: table {key!r} has {table.n_obs:,} positions × {table.n_vars} genes")
        if pictures is not None:
            import numpy as np

            shown = list(table.var_names[np.argsort(-np.asarray(table.X).var(0))[:_PICTURED]])
            pl.histology(sdata, shown, table_key=key, save=pictures / "histology.png")
            names = ["histology.png"]
            if model.classes:
                pl.regions(sdata, table_key=key, save=pictures / "regions.png")
                names.append("regions.png")
            click.echo(f"{pictures}: {', '.join(names)}")


@main.command()
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@click.option("--methods", help="Which methods, separated by commas.  [default: all but the published ablations]")
@click.option("--protocols", default="abc", show_default=True, help="Which protocols, such as a or ac.")
@click.option(
    "--genes",
    help="Which genes: how many (one half the most variable, one half the most abundant), or names separated by "
    'commas, or a text file with one name per line, or "variable:1000" (as many of the most variable), or "all".  '
    "[default: what suits the section]",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the files of named sections.  [default: environment variable SPHISTEX_DATA]",
)
@click.option(
    "--encoder", default="efficientnet_lite0", show_default=True, help="The network that looks at the image, as in run."
)
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="File with the encoder's weights.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for what is made.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same result.")
@click.option("--device", help=_DEVICE_HELP)
@click.option("--quiet", is_flag=True, help="No progress.")
def bench(
    datasets: tuple[str, ...], methods: str | None, genes: str | None, out: Path, quiet: bool, **how: Any
) -> None:
    """Compare methods on sections whose true expression is known.

    DATASET is simulated, simulated:SEED, kidney, pancreas, her2st:C3, mouse-brain-hd, breast-hd, breast-xenium-1 (2, 3)
    or the path of a SpatialData folder (.zarr) made by sphistex.pp.pseudo_visium. All but the first and the last
    read files from the folder --data. Every method gets the same spots, image features and genes.

    Protocols: (a) spots are made from the counts that are scored against, as published; (b) the same maps scored
    outside every spot; (c) spots from one half of the counts, scored against the other.

    Writes into the folder OUT: scores.csv and costs.csv, which grow with every method that is done, report.md, and
    pictures. What an earlier benchmark left there is replaced.

    \b
    Examples
      sphistex bench simulated --methods nearest,linear,sphistex --out benchmark
      sphistex bench kidney pancreas --protocols c --data data --out benchmark
    """  # noqa: D301
    with _reporting(quiet):
        from sphistex import bench
        from sphistex.bench.genes import is_choice

        names = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
        wanted = genes if genes is not None and is_choice(genes) else _genes(genes)
        bench.run(datasets, methods=names, genes=wanted, out=out, **how)
        click.echo(f"Everything is in {out}: look at {out / 'report.md'}")


@contextmanager
def _reporting(quiet: bool) -> Iterator[None]:
    """Progress, notes and warnings as plain lines; mistakes of the user as one line instead of a traceback."""
    import matplotlib

    from sphistex.settings import settings

    matplotlib.use("Agg")  # pictures go to files, also where there is no screen
    progress, settings.progress = settings.progress, not quiet
    notes = logging.getLogger("sphistex")
    notes.setLevel(logging.WARNING if quiet else logging.INFO)
    notes.addHandler(handler := _Lines())
    logging.getLogger("ome_zarr").setLevel(logging.ERROR)  # reading a store, it says what its maintainers need to know
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", message="zarr v3 autosharding")
            warnings.showwarning = lambda message, *_args, **_kwargs: handler.say(f"Warning: {message}")
            yield
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        if not _is_ours(error):
            raise
        raise click.ClickException(str(error.args[0] if isinstance(error, KeyError) else error)) from error
    finally:
        settings.progress = progress
        notes.removeHandler(handler)


class _Lines(logging.Handler):
    """Prints what there is to say, each line once."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log record."""
        self.say(record.getMessage())

    def say(self, line: str) -> None:
        """Print a line that has not been printed yet."""
        if line not in self.said:
            self.said.add(line)
            click.echo(line, err=True)


def _is_ours(error: BaseException) -> bool:
    """Whether our code raised it, knowing what is wrong; anything else is a fault whose traceback is needed."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(__file__).parent in Path(last).parents


def _read(store: Path) -> SpatialData:
    if not _is_zarr(store):
        raise ValueError(
            f"{store} is not a SpatialData folder (.zarr): make one with spatialdata_io.visium or "
            "sphistex.io.from_spots, and save it with .write()"
        )
    from spatialdata import read_zarr

    return read_zarr(store)


def _is_zarr(store: Path) -> bool:
    return any((store / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs"))


def _is_section(path: Path) -> bool:
    """Whether a path is a SpatialData folder, going by its elements but not its labels: an OME-Zarr may have some."""
    return _is_zarr(path) and any((path / kind).is_dir() for kind in ("images", "points", "shapes", "tables"))


def _section_of(
    image: Path, out: Path | None, mpp: float | None, check: Callable[[SpatialData], None]
) -> tuple[SpatialData, Path]:
    """A section on disk: a SpatialData folder as it is, or a picture, once checked, in a new one; and where it is."""
    if _is_section(image):
        if out is not None:
            raise ValueError(f"--out {out}: {image} is a SpatialData folder, into which the result goes; leave it out")
        return _read(image), image
    if out is None:
        raise ValueError(
            f"{image} is a picture: say with --out, such as --out {image.stem}.zarr, where the result goes"
        )
    if out.exists():
        raise ValueError(
            f"--out {out} exists: choose another name, or pass it in the place of {image} to go on with it"
        )
    from sphistex._section import check_mpp, recorded_mpp
    from sphistex._store import staging_path
    from sphistex.io import read_image

    section = read_image(image, mpp=mpp)
    if (scale := recorded_mpp(section)) is None:
        raise ValueError(f"{image} does not say its scale: give --mpp, its microns per pixel, such as 0.25 or 0.5")
    check_mpp(scale)
    check(section)
    staged = staging_path(out, "new")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        section.write(staged)
        staged.rename(out)
    except Exception as error:  # every decoder has errors of its own
        raise ValueError(
            f"{image} could not be written to {out}, of which nothing is left: {error}. Is the file complete, and is "
            "there room on the disk?"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return _read(out), out


def _genes(text: str | None) -> int | list[str] | None:
    """A number, the lines of a file, or names separated by commas."""
    return int(text) if text is not None and text.isdigit() else _names(text)


def _names(text: str | None) -> list[str] | None:
    """The lines of a file, or names separated by commas."""
    if text is None:
        return None
    names = Path(text).read_text().splitlines() if Path(text).is_file() else text.split(",")
    return [name.strip() for name in names if name.strip()]


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _draw(sdata: SpatialData, key: str, genes: list[str], folder: Path) -> list[str]:
    """Draw all pictures of a result; their file names."""
    from sphistex import pl

    made = sdata.tables[key].uns[key]
    pl.features(sdata, key=made["features_key"], save=folder / "features.png")
    pl.expression(sdata, genes, key=key, save=folder / "expression.png")
    pl.training(sdata, key=key, save=folder / "training.png")
    if "missing" in made["calibration"]:
        return ["features.png", "expression.png", "training.png"]
    pl.confidence(sdata, genes, key=key, save=folder / "confidence.png")
    return ["features.png", "expression.png", "training.png", "confidence.png"]
