"""Flagship: tokens of Telugu speech, 16 kHz mono at 8 kbit/s, 32x smaller than 16-bit PCM.

50 frames/s x 16 codebooks x 10 bits = 8000 bit/s. The first codebook has the spectral envelope, the others the spectrum
under it; the first 1, 2, 4 or 8 are codecs of 0.5 to 4 kbit/s. A ConvNeXt network that looks 20 ms ahead fills in what the
codes lack, and how much noise; 60 ms of latency.

    python train.py --config configs/telugu.py                         # the bundled sample corpus
    python train.py --config configs/telugu.py --data_dir recordings/  # your own

Presets for one rate have fewer codebooks, and none that is ever dropped:

    python train.py --config configs/telugu.py:2kbps --config.init_from=tokens --data_dir recordings/  # or 4kbps
"""

import ml_collections

CODEBOOKS = {"8kbps": 16, "4kbps": 8, "2kbps": 4}


def get_config(preset: str = "8kbps") -> ml_collections.ConfigDict:
    """The resolved recipe; every value can be overridden on the command line as --config.section.name=value."""
    if preset not in CODEBOOKS:
        raise ValueError(f'configs/telugu.py has the presets {", ".join(CODEBOOKS)}, not "{preset}".')
    config = ml_collections.ConfigDict()
    config.experiment_name = "telugu" if preset == "8kbps" else f"telugu_{preset}"
    config.checkpoint_dir = "checkpoints"
    config.init_from = ""  # a run or a file of a model of the same architecture, whose weights a new run starts from
    config.seed = 0
    config.num_epochs = 100
    config.batch_size = 16  # clips over all devices
    config.gradient_accumulation_steps = 1  # parts in which a device takes its clips: less memory, the same update
    config.steps_per_epoch = 0  # 0: one pass over the training speech, but at least min_steps_per_epoch
    config.min_steps_per_epoch = 200
    config.eval_batch_size = 8  # clips over all devices, rounded up to a multiple of them
    config.num_examples = 4  # validation clips heard and seen in TensorBoard, every epoch
    config.wandb_project = ""  # a Weights & Biases project to log to

    config.model = model = ml_collections.ConfigDict()
    model.architecture = "gain_shape"
    model.quantizer = "rvq"
    model.sample_rate = 16000
    model.latent_dim = 200 + 11 + 1  # coefficients of the spectrum, the lowest 5 kHz, bands of the envelope, the rate
    model.width = 256
    model.causal = True  # no frame sees a later one, but for the decoder's look-ahead
    model.output_scale = 2.5
    model.dtype = "float32"  # of the network's activations; or "bfloat16"

    model.gain_shape = gain_shape = ml_collections.ConfigDict()
    gain_shape.hop_length = 320  # samples a frame
    gain_shape.tilt = 0.3  # share of the envelope that the error follows: 0 for the best SNR, more for the ear
    gain_shape.encoder_depth = 3  # 0: the spectrum as it is
    gain_shape.decoder_depth = 5
    gain_shape.kernel_size = 7  # frames
    gain_shape.expansion = 3
    gain_shape.lookahead = 1  # frames the decoder sees ahead
    gain_shape.told_rate = True  # the decoder knows how many codebooks there are

    model.rvq = rvq = ml_collections.ConfigDict()
    rvq.num_codebooks = CODEBOOKS[preset]
    rvq.envelope_codebooks = 1  # of them
    rvq.codebook_size = 1024
    rvq.beams = 8  # of the search for codes, after training

    config.quantizer = quantizer = ml_collections.ConfigDict()
    quantizer.init = "normal"  # normal * 0.01, or "kmeans" on the first batches
    quantizer.decay = 0.99
    quantizer.revive_below = 0.2  # of uniform usage
    quantizer.revivals_per_step = 128  # at most, in each codebook
    quantizer.dropout = 0.5  # share of the clips decoded from a random number of codebooks
    if preset != "8kbps":
        quantizer.dropout = 0.0

    config.loss = loss = ml_collections.ConfigDict()
    loss.relative = True  # errors over the clip's energy, commitment over the latents'
    loss.error_weighting = "plain"  # or "preemphasis", "band", "steps"
    loss.preemphasis = 0.9
    loss.band_exponent = 0.5
    loss.mse_weight = 1.0
    loss.perceptual_weight = 0.01
    loss.loudness_weight = 0.3  # distance of loudness in bark bands; 0 leaves it out
    loss.few_exponent = 0.0  # weight of what is for the ear, over (codebooks / a clip's codebooks) to this power
    loss.commitment_weight = 0.3
    loss.mse_bound = 10.0
    loss.clip_bound = 1.0  # of each clip's relative error: a crop of digital silence would drown the others
    loss.perceptual_bound = 10.0
    loss.loudness_bound = 10.0
    loss.commitment_bound = 10.0

    config.fixes = fixes = ml_collections.ConfigDict()
    fixes.fp32_stft = True
    fixes.small_vq_init = True
    fixes.loss_clamping = True
    fixes.ema_residual = True
    fixes.input_clipping = True
    fixes.no_tanh = True
    fixes.learnable_scale = True
    fixes.pure_mse = True

    config.adversarial = adversarial = ml_collections.ConfigDict()
    adversarial.share = 0.0  # of the gradient at the decoded audio, beside the other terms' 1; 0 leaves it out
    adversarial.feature_weight = 2.0  # of feature matching beside the hinge
    adversarial.start_step = 0  # until then the discriminators learn alone
    adversarial.fft_lengths = (256, 512, 1024)  # of spectrogram discriminators
    adversarial.periods = (2, 3, 5, 7, 11)  # of period discriminators, samples
    adversarial.spectrogram_width = 32
    adversarial.spectrogram_depth = 5
    adversarial.period_width = 32
    adversarial.period_depth = 5
    adversarial.learning_rate = 3e-4
    adversarial.b1 = 0.8
    adversarial.b2 = 0.99
    adversarial.clip_norm = 1.0

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 2e-3
    optimizer.schedule = "cosine"  # or "constant"
    optimizer.warmup_steps = 100
    optimizer.final_fraction = 0.02  # of the learning rate, at the end of the cosine
    optimizer.b1 = 0.9
    optimizer.b2 = 0.99
    optimizer.weight_decay = 0.01
    optimizer.clip_norm = 1.0
    optimizer.average_decay = 0.999  # moving average of the weights, 0 switches it off
    optimizer.max_skipped = 10  # updates in a row whose loss or gradient is not finite; more end the run

    config.snapshots = snapshots = ml_collections.ConfigDict()
    snapshots.every_minutes = 10.0  # beside those at the end of every epoch; 0: none
    snapshots.every_steps = 0  # the same, counted in steps

    config.data = data = ml_collections.ConfigDict()
    data.source = "sample"  # the bundled corpus, "folder", or "openslr66"; data_dir implies "folder"
    data.data_dir = ""  # recordings, or a folder of prepared shards; local or gs://
    data.prepared_dir = ""  # where shards are kept; "": the tfds default
    data.crop_seconds = 2.0
    data.min_clip_seconds = 0.02
    data.max_clip_seconds = 20.0  # longer recordings are cut
    data.max_eval_seconds = 20.0
    data.max_bad_fraction = 0.5  # of the files; more bad ones end the run
    data.validation_fraction = 0.05
    data.test_fraction = 0.05
    data.gain_db = (-25.0, 3.0)  # random level of training clips, from and to
    data.backend = "auto"  # "tensorflow" or "numpy"; auto takes TensorFlow where it is installed
    data.prefetch = 4  # batches
    return config
