"""A neural speech codec in JAX: encoder, EMA residual vector quantizer and scaled decoder.

Shapes are written with one legend: `B` batch, `S` samples, `T` frames, `C` channels, `D` latent width, `Q` codebooks, `K`
codebook size, `F` frequency bins. Audio is (B, S), activations (B, T, C), codes (B, Q, T).
"""

__version__ = "0.1.0"
