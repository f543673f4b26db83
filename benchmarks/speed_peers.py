"""Neural codecs of transformers on torch, for `benchmarks/speed.py`: real architectures, random weights, 10 s of noise.

python benchmarks/speed_peers.py     # says what it can do as JSON, then for each name on stdin wall and processor seconds
"""

import json
import sys
import time


def main():
    """Answers one line after the other."""
    cases = make()
    print(json.dumps({title: seconds for title, (_, seconds) in cases.items()}), flush=True)
    for title in sys.stdin:
        start = time.perf_counter(), time.process_time()
        cases[title.strip()][0]()
        print(time.perf_counter() - start[0], time.process_time() - start[1], flush=True)


def make():
    """{title: (function, seconds of audio)}; empty without torch and transformers."""
    try:
        import torch
        import transformers
    except ImportError:
        return {}
    torch.manual_seed(0)
    cases = {}
    for name, rate, config in (
        ("Encodec", 24000, {}),
        ("Dac", 16000, dict(sampling_rate=16000, downsampling_ratios=[2, 4, 5, 8], upsampling_ratios=[8, 5, 4, 2])),
        ("Mimi", 24000, {}),
    ):
        settings = getattr(transformers, f"{name}Config")(**config)
        model = getattr(transformers, f"{name}Model")(settings).eval()
        audio = 0.05 * torch.randn(1, 1, 10 * rate)
        cases[f"peer {name} {rate // 1000} kHz, round trip, 1 x 10 s"] = round_trip(model, audio), 10
    model = transformers.EncodecModel(transformers.EncodecConfig())
    cases["peer Encodec 24 kHz, generator's train step, 4 x 1 s"] = generator_step(model, 24000), 4
    return cases


def round_trip(model, audio):
    """A function that encodes and decodes."""
    import torch

    @torch.inference_mode()
    def run():
        model(audio)

    return run


def generator_step(model, rate):
    """A function that trains encoder and decoder on 4 x 1 s by the waveform alone: no spectral loss, no discriminator."""
    import torch

    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    audio, bandwidth = 0.05 * torch.randn(4, 1, rate), 6.0  # kbit/s

    def run():
        z = model.encoder(audio)
        with torch.no_grad():
            quantized = model.quantizer.decode(model.quantizer.encode(z, bandwidth))
        decoded = model.decoder(z + (quantized - z).detach())
        loss = (decoded[..., :rate] - audio).abs().mean() + ((z - quantized) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
