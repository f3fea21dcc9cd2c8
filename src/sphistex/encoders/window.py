"""Rectangles of an image at another resolution, read without more of the image than they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Window:
    """A rectangle at another resolution than the image's, and which of the image's pixels it takes.

    Bicubic, with antialiasing where the image is shrunk (Pillow). Beyond its border the image is mirrored.

    Parameters
    ----------
    shape
        Height and width.
    inside
        Rows and columns of the image to read.
    margins
        Pixels missing beyond the image: (above, below), (left, right).
    box
        Where the rectangle lies in what was read, margins included (left, top, right, bottom); None: it is all of it.
    """

    shape: tuple[int, int]
    inside: tuple[slice, slice]
    margins: tuple[tuple[int, int], tuple[int, int]]
    box: tuple[float, float, float, float] | None

    @classmethod
    def of(
        cls, image_shape: tuple[int, ...], scale: float, corner: tuple[float, float], shape: tuple[int, int]
    ) -> Window:
        """Window of an image (c, y, x).

        Parameters
        ----------
        image_shape
            Shape of the image.
        scale
            Image pixels per pixel of the result.
        corner
            Upper left corner (y, x) of the rectangle, in pixels of the result; may be negative.
        shape
            Height and width of the result in pixels.

        Examples
        --------
        >>> image = np.arange(0, 160, 10, dtype=np.uint8).repeat(16).reshape(1, 16, 16).repeat(3, axis=0)
        >>> window = Window.of(image.shape, 2.0, (2, 0), (3, 2))
        >>> window.resampled(window.of_image(image))[:, 0, 0]
        array([45, 65, 85], dtype=uint8)
        """
        starts = [first * scale for first in corner]
        stops = [(first + size) * scale for first, size in zip(corner, shape, strict=True)]
        exact = scale == 1 and all(float(value).is_integer() for value in starts)
        kernel = 0 if exact else int(np.ceil(2 * max(scale, 1.0))) + 1  # bicubic reaches two pixels of the coarser one
        lows = [int(np.floor(value)) - kernel for value in starts]
        highs = [int(np.ceil(value)) + kernel for value in stops]
        rows, columns = (
            slice(min(max(low, 0), size - 1), max(min(high, size), 1))
            for low, high, size in zip(lows, highs, image_shape[1:], strict=True)
        )
        vertical, horizontal = (
            (part.start - low, high - part.stop) for part, low, high in zip((rows, columns), lows, highs, strict=True)
        )
        box = (starts[1] - lows[1], starts[0] - lows[0], stops[1] - lows[1], stops[0] - lows[0])
        return cls(shape, (rows, columns), (vertical, horizontal), None if exact else box)

    def of_image(self, image: Any) -> Any:
        """The pixels to read of an image (c, y, x), which may be lazy."""
        return image[:, self.inside[0], self.inside[1]]

    def resampled(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The rectangle (height, width, 3) from what was read (3, rows, columns)."""
        picture = np.pad(pixels.transpose(1, 2, 0), [*self.margins, (0, 0)], mode="symmetric")
        if self.box is None:
            return picture
        resized = Image.fromarray(picture).resize(self.shape[::-1], Image.Resampling.BICUBIC, box=self.box)
        return np.asarray(resized)


def read_pixels(part: Any) -> NDArray[np.uint8]:
    """A part of an image, read in this thread if it is lazy."""
    return part.compute(scheduler="synchronous") if hasattr(part, "compute") else np.asarray(part)
