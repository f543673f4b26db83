"""Tokens that hold what the ear needs: 50 frames/s x 16 codebooks x 10 bits = 8000 bit/s, 16 kHz mono.

The first codebook has the spectral envelope, the others the spectrum under it; the first 1, 2, 4 or 8 are codecs of 0.5 to
4 kbit/s. A ConvNeXt network that looks 20 ms ahead fills in what the codes lack; 60 ms of latency.

    python train.py --config configs/telugu_tokens.py
"""

import ml_collections

from configs import telugu


def get_config() -> ml_collections.ConfigDict:
    """The recipe of the flagship with another transform, quantizer and balance."""
    config = telugu.get_config()
    config.experiment_name = "telugu_tokens"

    config.model.architecture = "gain_shape"
    config.model.latent_dim = 200 + 11  # coefficients of the spectrum, the lowest 5 kHz, and bands of the envelope
    config.model.gain_shape = gain_shape = ml_collections.ConfigDict()
    gain_shape.hop_length = 320  # samples a frame
    gain_shape.tilt = 0.3  # share of the envelope that the error follows: 0 for the best SNR, more for the ear
    gain_shape.encoder_depth = 3  # 0: the spectrum as it is
    gain_shape.decoder_depth = 5
    gain_shape.kernel_size = 7  # frames
    gain_shape.expansion = 3
    gain_shape.lookahead = 1  # frames the decoder sees ahead

    config.model.rvq.num_codebooks = 16
    config.model.rvq.envelope_codebooks = 1  # of them
    config.model.rvq.beams = 8  # of the search for codes, after training

    config.quantizer.dropout = 0.4
    config.loss.loudness_weight = 0.2
    config.loss.commitment_weight = 0.3
    config.optimizer.learning_rate = 2e-3
    config.optimizer.average_decay = 0.999
    config.data.gain_db = (-25.0, 3.0)
    return config
