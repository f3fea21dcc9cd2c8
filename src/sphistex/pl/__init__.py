"""Pictures: expression beside tissue and spots, how certain it is, the feature map, the training, outcomes."""

from sphistex.pl.attribution import attribution
from sphistex.pl.confidence import confidence
from sphistex.pl.expression import expression
from sphistex.pl.features import features
from sphistex.pl.outcomes import kaplan_meier, roc
from sphistex.pl.training import training

__all__ = ["attribution", "confidence", "expression", "features", "kaplan_meier", "roc", "training"]
