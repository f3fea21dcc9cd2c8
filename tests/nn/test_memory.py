"""Memory that is freed in training is used again, and given back after it."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap

import pytest

from sphistex.nn.memory import freed_memory_kept

# Pages that the system clears while 64 MB are taken, filled and freed, several times; in a process of its own, as other
# tests leave memory that is in use.
FAULTS = textwrap.dedent("""
    import resource
    import torch
    from sphistex.nn.memory import freed_memory_kept

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    before = faults()
    with freed_memory_kept():
        torch.ones(2**24)
        inside = faults()
    print(before, inside, faults())
""")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, stdout=subprocess.PIPE, text=True)
    before, inside, after = map(int, done.stdout.split())
    assert inside < before / 10
    assert after > before / 2, "afterwards it goes back to the system"


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
