"""Memory that is freed in training is used again, and given back after it."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from sphistex.nn.memory import freed_memory_kept


def faults_of_a_step() -> int:
    """Pages that the system clears while 64 MB are taken, filled and freed, several times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again() -> None:
    anew = faults_of_a_step()
    with freed_memory_kept():
        torch.ones(2**24)
        assert faults_of_a_step() < anew / 10
    assert faults_of_a_step() > anew / 2, "afterwards it goes back to the system"


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
