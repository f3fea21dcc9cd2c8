"""Pictures: expression beside tissue and spots, how certain it is, regions, subtypes, gene sets, the training."""

from sphistex.pl.confidence import confidence
from sphistex.pl.copy_number import copy_number
from sphistex.pl.enrichment import enrichment
from sphistex.pl.expression import expression
from sphistex.pl.features import features
from sphistex.pl.histology import histology
from sphistex.pl.regions import regions
from sphistex.pl.training import training

__all__ = ["confidence", "copy_number", "enrichment", "expression", "features", "histology", "regions", "training"]
