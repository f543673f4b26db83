"""Decoded speech measured against the recording it comes from: a trained codec at several rates, or any other system."""

from jaxcodec.evaluation.measures import (
    MEASURES as MEASURES,
    Measure as Measure,
    installed as installed,
    score as score,
)
from jaxcodec.evaluation.scoring import (
    KBPS as KBPS,
    AtKbps as AtKbps,
    columns as columns,
    evaluate as evaluate,
    score_pairs as score_pairs,
)
from jaxcodec.evaluation.statistics import (
    bootstrap_interval as bootstrap_interval,
    codebook_usage as codebook_usage,
    summarize as summarize,
)
from jaxcodec.evaluation.tables import (
    format_groups as format_groups,
    format_table as format_table,
    format_usage as format_usage,
)
