"""What an image that cannot be read means for the user, in the place of its decoder's error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Say what of an image could not be read, why, and what to do.

    Raises
    ------
    OSError
        If reading fails, for whatever reason but a lack of memory.

    Examples
    --------
    >>> with readable("image 'he'"):
    ...     raise RuntimeError("Zstd decompression error")
    Traceback (most recent call last):
    OSError: image 'he' cannot be read (RuntimeError: Zstd decompression error): ...
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # every decoder has errors of its own
        raise OSError(
            f"{what} cannot be read ({type(error).__name__}: {error}): its file is damaged or not complete any more; "
            "copy it again from where it came, and repeat the call"
        ) from error
