"""How well a risk orders patients by how long they lived."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def concordance(risk: ArrayLike, time: ArrayLike, event: ArrayLike) -> float:
    """Harrell's concordance index: the share of comparable pairs in which the higher risk has the earlier event.

    A pair is comparable where the earlier of the two times is that of an event; of two equal times the one with an
    event counts as the earlier. Equal risks count half.

    Parameters
    ----------
    risk
        The higher, the earlier (n_patients,).
    time
        Until the event, or until the patient was last seen (n_patients,).
    event
        Whether there was an event (n_patients,).

    Returns
    -------
    0.5 is chance, 1 perfect order; NaN where no pair can be compared.

    References
    ----------
    Harrell et al., Evaluating the yield of medical tests, JAMA 1982.

    Examples
    --------
    >>> concordance([3, 2, 1], [1, 5, 9], [1, 1, 0])
    1.0
    """
    risk, time, event = np.asarray(risk, dtype=float), np.asarray(time, dtype=float), np.asarray(event, dtype=bool)
    later = (time[None] > time[:, None]) | ((time[None] == time[:, None]) & ~event[None])
    earlier, other = np.nonzero(event[:, None] & later)
    if not len(earlier):
        return float("nan")
    gap = risk[earlier] - risk[other]
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))
