"""Pictures: expression beside tissue and spots, the feature map, the training."""

from sphistex.pl.expression import expression
from sphistex.pl.features import features
from sphistex.pl.training import training

__all__ = ["expression", "features", "training"]
