"""Tools: features, fitting, prediction, how far to trust it, what is found in it, and what becomes of patients."""

from sphistex.nn import FitParameters, SuperResolver
from sphistex.nn.histology import HistologyModel, HistologyParameters
from sphistex.tl.aggregate_by import aggregate_by
from sphistex.tl.aggregates import aggregates
from sphistex.tl.annotate import annotate
from sphistex.tl.compare_enrichment import compare_enrichment
from sphistex.tl.cross_validate import HistologyScores, cross_validate_histology
from sphistex.tl.enrich import enrich
from sphistex.tl.features import superpixel_features
from sphistex.tl.fit import fit
from sphistex.tl.fit_outcome import fit_outcome
from sphistex.tl.genes import materialise, open_genes, trusted_scale
from sphistex.tl.histology import fit_histology, predict_histology
from sphistex.tl.interface import interface
from sphistex.tl.intervals import confidence
from sphistex.tl.lattice_features import lattice_features
from sphistex.tl.markers import markers
from sphistex.tl.outcome_model import OutcomeModel
from sphistex.tl.predict import predict
from sphistex.tl.profiles import profiles
from sphistex.tl.spatial_patterns import spatial_patterns
from sphistex.tl.super_resolve import super_resolve
from sphistex.tl.transfer_annotation import transfer_annotation
from sphistex.tl.tumour_subtypes import tumour_subtypes
from sphistex.tl.validate import validate

__all__ = [
    "FitParameters",
    "HistologyModel",
    "HistologyParameters",
    "HistologyScores",
    "OutcomeModel",
    "SuperResolver",
    "aggregate_by",
    "aggregates",
    "annotate",
    "compare_enrichment",
    "confidence",
    "cross_validate_histology",
    "enrich",
    "fit",
    "fit_histology",
    "fit_outcome",
    "interface",
    "lattice_features",
    "markers",
    "materialise",
    "open_genes",
    "predict",
    "predict_histology",
    "profiles",
    "spatial_patterns",
    "super_resolve",
    "superpixel_features",
    "transfer_annotation",
    "trusted_scale",
    "tumour_subtypes",
    "validate",
]
