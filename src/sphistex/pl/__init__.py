"""Pictures: expression beside tissue and spots, regions, outcomes, how certain it is; the report and the viewer."""

from sphistex.pl.attribution import attribution
from sphistex.pl.confidence import confidence
from sphistex.pl.copy_number import copy_number
from sphistex.pl.enrichment import enrichment
from sphistex.pl.expression import expression
from sphistex.pl.features import features
from sphistex.pl.histology import histology
from sphistex.pl.outcomes import kaplan_meier, roc
from sphistex.pl.regions import regions
from sphistex.pl.report import report
from sphistex.pl.rgb import rgb
from sphistex.pl.training import training
from sphistex.pl.validation import validation
from sphistex.pl.view import view

__all__ = [
    "attribution",
    "confidence",
    "copy_number",
    "enrichment",
    "expression",
    "features",
    "histology",
    "kaplan_meier",
    "regions",
    "report",
    "rgb",
    "roc",
    "training",
    "validation",
    "view",
]
