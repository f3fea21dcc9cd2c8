"""Pictures: expression beside tissue and spots, how certain it is, the feature map, the training."""

from sphistex.pl.confidence import confidence
from sphistex.pl.expression import expression
from sphistex.pl.features import features
from sphistex.pl.training import training

__all__ = ["confidence", "expression", "features", "training"]
