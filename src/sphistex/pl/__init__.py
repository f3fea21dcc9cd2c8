"""Pictures: expression beside tissue and spots, regions, outcomes, how certain it is; the report and the viewer."""

from sphistex.pl.activity import activity
from sphistex.pl.aggregates import aggregates
from sphistex.pl.annotation import annotation
from sphistex.pl.attribution import attribution
from sphistex.pl.confidence import confidence
from sphistex.pl.copy_number import copy_number
from sphistex.pl.enrichment import enrichment
from sphistex.pl.expression import expression
from sphistex.pl.features import features
from sphistex.pl.histology import histology
from sphistex.pl.interface import interface
from sphistex.pl.outcomes import kaplan_meier, roc
from sphistex.pl.patterns import patterns
from sphistex.pl.profiles import profiles
from sphistex.pl.regions import regions
from sphistex.pl.report import report
from sphistex.pl.rgb import rgb
from sphistex.pl.training import training
from sphistex.pl.validation import validation
from sphistex.pl.view import view

__all__ = [
    "activity",
    "aggregates",
    "annotation",
    "attribution",
    "confidence",
    "copy_number",
    "enrichment",
    "expression",
    "features",
    "histology",
    "interface",
    "kaplan_meier",
    "patterns",
    "profiles",
    "regions",
    "report",
    "rgb",
    "roc",
    "training",
    "validation",
    "view",
]
