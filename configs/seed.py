"""The original recipe to the letter, kept to measure against: batch 16, 100 epochs, learning rate 1e-5.

MSE + 0.01 perceptual + VQ with absolute errors, strided convolutions on samples, output scale 2.5 and the eight fixes.
100 frames/s x 8 codebooks x 10 bits = 8000 bit/s. Promised: 35 to 40 dB; what it gives is in the README.

    python train.py --config configs/seed.py
"""

import ml_collections

from configs import telugu_mdct


def get_config() -> ml_collections.ConfigDict:
    """The recipe of `telugu_mdct.py` with what the original notes fix put back."""
    config = telugu_mdct.get_config()
    config.experiment_name = "seed"
    config.num_epochs = 100
    config.batch_size = 16

    config.model.architecture = "seanet"
    config.model.causal = False
    config.model.latent_dim = 128
    config.model.width = 32

    config.quantizer.init = "normal"
    config.quantizer.dropout = 0.0

    config.loss.relative = False
    config.loss.error_weighting = "plain"
    config.loss.mse_weight = 1.0
    config.loss.perceptual_weight = 0.01
    config.loss.commitment_weight = 0.25  # VQ-VAE's beta (van den Oord et al. 2017)

    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.optimizer.average_decay = 0.0

    config.data.crop_seconds = 1.0
    return config
