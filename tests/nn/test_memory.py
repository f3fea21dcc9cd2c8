"""Memory that is freed in training is used again, and given back after it."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap

import pytest

from sphistex.nn.memory import freed_memory_kept

# Pages that the system clears while 64 MB are taken, filled and freed, several times, and resident MB before and after;
# in a process of its own, as other tests leave memory that is in use. The allocator may take some rounds to settle.
MEASURED = textwrap.dedent("""
    import os
    import resource
    import torch
    from sphistex.nn.memory import freed_memory_kept

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

    before, resident_before = faults(), resident()
    with freed_memory_kept():
        faults()
        inside = faults()
    print(before, inside, resident_before, resident())
""")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_and_given_back_in_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED], check=True, stdout=subprocess.PIPE, text=True)
    before, inside, resident_before, resident_after = map(int, done.stdout.split())
    assert inside < before / 10
    assert resident_after < resident_before + 32


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
