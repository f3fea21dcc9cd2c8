"""Random numbers that depend on what they are for, and on nothing that was drawn before.

So an interrupted training goes on with the numbers that it would have had, and a model that is trained alone draws
those that it would have drawn beside others.
"""

from __future__ import annotations

import numpy as np
import torch


def seeded(seed: int, *purpose: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one purpose, told by numbers; all calls that share ``seed`` give as many of them."""
    # torch seeds its generator on the CPU with 32 bits: what is similar must be mixed before
    number = np.random.SeedSequence((seed, *purpose)).generate_state(1)[0]
    return torch.Generator(device).manual_seed(int(number))
