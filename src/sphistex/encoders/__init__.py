"""Image encoders: RGB tiles in, one token per 8 µm superpixel out. Knows PyTorch, nothing of SpatialData."""

from sphistex.encoders.base import Encoder
from sphistex.encoders.registry import EncoderInfo, get, list_encoders, register

__all__ = ["Encoder", "EncoderInfo", "get", "list_encoders", "register"]
