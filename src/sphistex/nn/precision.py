"""Half precision where the device multiplies it faster; weights, sums and losses stay float32."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def fastest_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device has instructions for it, otherwise float32."""
    device = torch.device(device)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        has = (getattr(torch.cpu, f"_is_{name}_supported", lambda: False) for name in ("avx512_bf16", "amx_tile"))
        fast = any(supported() for supported in has)
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def computing_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Matrix products in ``dtype``."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
