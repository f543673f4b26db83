"""Files: an entropy-coded spectrum, one model for every rate; 16 kHz mono.

Scalar codes of an MDCT at 50 frames/s, at steps that follow the spectral envelope, with a learned prior and a decoder that
fills in what was rounded away. The rate follows the speech and the quality that is asked for.

    python train.py --config configs/telugu_vbr.py
"""

import ml_collections

from configs import telugu_mdct


def get_config() -> ml_collections.ConfigDict:
    """The recipe of `telugu_mdct.py` with another transform, quantizer and balance."""
    config = telugu_mdct.get_config()
    config.experiment_name = "telugu_vbr"
    config.batch_size = 12

    config.model.architecture = "transform"
    config.model.quantizer = "scalar"
    config.model.latent_dim = 320 + 13  # coefficients, eleven levels of the envelope, quality and shaping

    config.model.width = 240  # of the decoder
    config.model.transform = transform = ml_collections.ConfigDict()
    transform.hop_length = 320  # samples a frame
    transform.depth = 5
    transform.kernel_size = 7  # frames
    transform.expansion = 3
    transform.lookahead = 1  # frames the decoder sees ahead

    config.model.scalar = scalar = ml_collections.ConfigDict()
    scalar.width = 192  # of the prior
    scalar.depth = 3

    config.quantizer.quality_range = (-17.0, 14.0)  # dB around what suits a clip's level: some 2 to 40 kbit/s

    config.loss.error_weighting = "steps"
    config.loss.clip_bound = 1e5  # an error in steps is not over the clip's energy: silence cannot make it large
    config.loss.mse_weight = 20.0
    config.loss.perceptual_weight = 0.2
    config.loss.loudness_weight = 8.0
    config.loss.rate_weight = 0.003  # a bit a frame
    config.loss.rate_bound = 1e5

    config.optimizer.learning_rate = 2e-3
    config.optimizer.average_decay = 0.999
    config.data.gain_db = (-25.0, 3.0)
    return config
