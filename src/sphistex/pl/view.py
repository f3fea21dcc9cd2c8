"""A page to look around in a result, served by this machine to this machine only."""

from __future__ import annotations

import errno
import socket
import webbrowser
from typing import TYPE_CHECKING

import numpy as np
from spatialdata import SpatialData

from sphistex.pl._background import Background
from sphistex.pl._genes import most_patterned
from sphistex.pl._readings import Readings
from sphistex.tl._extras import check_extra

if TYPE_CHECKING:
    from bokeh.server.server import Server

_HOST = "127.0.0.1"
_PORT = 5006
# Genes that are looked at to find one to begin with.
_FEW = 16


def view(sdata: SpatialData, *, key: str = "superres", port: int = _PORT, browser: bool = True) -> None:
    """Show a result in the browser: move and zoom over the image, choose genes, click on superpixels.

    The page comes from a small server (Bokeh's) inside this process, which ends with Ctrl+C. It is bound to 127.0.0.1:
    other machines cannot reach it, and the page asks no other host for anything. Of the image only what is looked at
    is read, of a lazy result only the genes that are chosen; a slide on disk should have a pyramid.

    Parameters
    ----------
    sdata
        SpatialData with a result of :func:`sphistex.tl.super_resolve`. A lazy one that was read from disk is opened.
    key
        Name of the result.
    port
        Port of the server; 0 for any that is free.
    browser
        Whether to open the page in the default browser; its address is printed anyway.

    Raises
    ------
    ImportError
        If Bokeh is not installed: it comes with the extra ``view``.
    KeyError
        If there is no such result, or its image is gone.
    OSError
        If the port is in use.
    """
    server = serve(sdata, key=key, port=port)
    address = f"http://{_HOST}:{server.port}/"
    print(f"{key!r} is shown at {address} until you press Ctrl+C", flush=True)
    if browser:
        webbrowser.open(address)
    server.start()
    try:
        server.io_loop.start()
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


def serve(sdata: SpatialData, *, key: str, port: int) -> Server:
    """Make the server of :func:`view`; it answers once its loop runs."""
    check_extra("bokeh", "sphistex view", extra="view")
    readings = Readings.of(sdata, key)
    lattice, image_key = readings.lattice, str(readings.made["section"]["image_key"])
    if image_key not in sdata.images:
        raise KeyError(f"the image {image_key!r} of {key!r} is not in sdata.images: {list(sdata.images)}")
    cut = bool(lattice.moved_px.any())
    background = Background.of(sdata, readings.table, key, image_key, lattice.mpp, lattice.window, cut=cut)
    port = _free_port(port)
    gene = most_patterned(sdata, readings.table, readings.made, looked_at=_FEW)[0]

    from bokeh.server.server import Server
    from bokeh.settings import settings

    from sphistex.pl._page import Page

    settings.resources = "server"  # whatever the environment says: nothing comes from a content delivery network
    return Server(
        {"/": lambda document: Page(readings, background, gene).add_to(document)},
        port=port,
        address=_HOST,
        allow_websocket_origin=[f"{_HOST}:{port}", f"localhost:{port}"],
    )


def _free_port(port: int) -> int:
    """The port, if nothing listens there; any free one for 0.

    Raises
    ------
    OSError
        If it is in use, or this user may not use it.
    ValueError
        If there is no port of that number.
    """
    if isinstance(port, bool) or not isinstance(port, int | np.integer) or not 0 <= port <= 65535:
        raise ValueError(f"port={port!r} must be a whole number between 0 and 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
            return int(probe.getsockname()[1])
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise OSError(f"port {port} {why}: pass another one (port=, --port), or 0 for any that is free") from None
