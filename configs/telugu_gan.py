"""Adversarial fine-tuning of `telugu.py`: discriminators judge what it decodes.

Starts from the best snapshot of that run; encoder, codes and decoder move on. Two sizes:

    python train.py --config configs/telugu_gan.py --data_dir recordings/        # discriminators for two CPU cores
    python train.py --config configs/telugu_gan.py:full --data_dir recordings/   # for a GPU or TPU
"""

import ml_collections

from configs import telugu


def get_config(size: str = "small") -> ml_collections.ConfigDict:
    """The recipe of the tokens with an adversary, "small" or "full"."""
    if size not in ("small", "full"):
        raise ValueError(f'configs/telugu_gan.py comes in "small" and "full", not "{size}".')
    config = telugu.get_config()
    config.experiment_name = "telugu_gan"
    config.init_from = "checkpoints/telugu"
    config.num_epochs = 10

    config.adversarial.share = 0.3
    config.adversarial.start_step = 200
    config.optimizer.learning_rate = 5e-4
    config.optimizer.b1 = 0.8
    if size == "small":
        config.data.crop_seconds = 1.0
        config.adversarial.fft_lengths = (256, 512)
        config.adversarial.periods = (2, 5)
        config.adversarial.spectrogram_width = config.adversarial.period_width = 12
        config.adversarial.spectrogram_depth = config.adversarial.period_depth = 4
    return config
