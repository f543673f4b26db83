"""Seconds on a CPU: every mechanism of `telugu_mdct.py` at toy size, for tests and for trying an installation.

100 frames/s x 4 codebooks x 6 bits = 2400 bit/s; expect 2 to 3 dB.

    python train.py --config configs/tiny.py
"""

import ml_collections

from configs import telugu_mdct


def get_config() -> ml_collections.ConfigDict:
    """The recipe of `telugu_mdct.py` with everything made small."""
    config = telugu_mdct.get_config()
    config.experiment_name = "tiny"
    config.num_epochs = 2
    config.batch_size = 8
    config.steps_per_epoch = 10

    config.model.rvq.num_codebooks = 4
    config.model.rvq.codebook_size = 64
    config.model.latent_dim = 16
    config.model.width = 32
    config.model.mdct.encoder_depth = 1
    config.model.mdct.decoder_depth = 1

    config.quantizer.revivals_per_step = 16
    config.optimizer.warmup_steps = 2
    config.data.crop_seconds = 0.5
    return config
