"""Speech to batches: recordings are prepared once as shards (tfds builders), and read at random."""

from jaxcodec.data.batches import (
    SAMPLE_RATE as SAMPLE_RATE,
    PatientReader as PatientReader,
    Source as Source,
    bucket_lengths as bucket_lengths,
    clips_of_batch as clips_of_batch,
    crops_per_pass as crops_per_pass,
    eval_batches as eval_batches,
    resolve_backend as resolve_backend,
    train_batches as train_batches,
)
from jaxcodec.data.prepared import (
    PreparedSpeech as PreparedSpeech,
    open_split as open_split,
    prepare as prepare,
)
