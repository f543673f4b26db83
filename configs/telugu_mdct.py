"""The flagship before gain and shape: 100 frames/s x 8 codebooks x 10 bits = 8000 bit/s, 20 ms of latency, 12 dB.

A ConvNeXt network at frame rate behind an orthonormal MDCT; the eight fixes were put on trial with it (docs/fixes.md).

    python train.py --config configs/telugu_mdct.py
"""

import ml_collections

from configs import telugu


def get_config() -> ml_collections.ConfigDict:
    """The recipe of the flagship with another network and a plain quantizer."""
    config = telugu.get_config()
    config.experiment_name = "telugu_mdct"

    config.model.architecture = "mdct"  # or "seanet"
    config.model.latent_dim = 128
    config.model.causal = True  # no frame sees a later one: it costs nothing measurable
    del config.model.gain_shape

    config.model.mdct = mdct = ml_collections.ConfigDict()
    mdct.hop_length = 160  # samples a frame
    mdct.latent_gain = 1.0  # latents per unit of MDCT coefficient on the identity path
    mdct.encoder_depth = 4
    mdct.decoder_depth = 4
    mdct.kernel_size = 7  # frames
    mdct.identity = True

    config.model.seanet = seanet = ml_collections.ConfigDict()
    seanet.strides = (2, 4, 4, 5)  # their product is the hop length

    config.model.rvq = rvq = ml_collections.ConfigDict()
    rvq.num_codebooks = 8
    rvq.codebook_size = 1024

    config.quantizer.revive_below = 0.1
    config.quantizer.dropout = 0.25
    config.loss.loudness_weight = 0.0
    config.loss.commitment_weight = 1.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.average_decay = 0.0
    config.data.gain_db = (0.0, 0.0)
    return config
