"""What .jxc files and models say about themselves, and whether the checksums of files are right."""

import json

from jaxcodec.cli.jobs import about, read_bytes, tell


def add_arguments(parser):
    """What to look at."""
    parser.add_argument("inputs", nargs="*", metavar="FILE", help=".jxc files or models; default: the bundled models")
    parser.add_argument("--json", action="store_true", help="for programs: a list of objects")


def run(arguments):
    """Prints it."""
    from jaxcodec import bundled

    described, failed = [], False
    for name in arguments.inputs or bundled.BUNDLED:
        try:
            described.append(_describe(name))
        except (ValueError, OSError) as error:
            failed = True
            tell(about(name, error))
        else:
            if damage := described[-1].get("damage"):
                failed = True
                tell(f"{name}: {damage}")
    if arguments.json:
        print(json.dumps(described, indent=2))
    elif described:
        print("\n\n".join(_format_description(description) for description in described))
    return int(failed)


def _describe(name):
    """Of a .jxc file or a model, as a dict."""
    from etils import epath

    from jaxcodec import bitstream, bundled

    if name in bundled.BUNDLED or (path := epath.Path(name)).is_dir() or path.suffix == ".safetensors":
        return _describe_model(name)
    data = read_bytes(name)
    header = bitstream.read_header(data)
    return dict(
        file=name,
        seconds=header.seconds,
        bytes=len(data),
        kbps=8e-3 * len(data) / header.seconds if header.seconds else None,
        nominal_kbps=_kilo(header.bits_per_second),
        sample_rate=header.sample_rate,
        num_samples=header.num_samples,
        frame_rate=header.sample_rate / header.hop_length,
        num_frames=header.num_frames,
        quantizer=header.kind,
        **_codes(header.num_codebooks, header.codebook_size, header.bits_per_second),
        entropy_coded=header.entropy_digest is not None,
        fast=header.coding == bitstream.checkerboard.CheckerboardModel.coding,
        version=header.version,
        model=header.fingerprint.hex(),
        bundled=bundled.names().get(header.fingerprint),
        damage=_damage(data, header),
    )


def _damage(data, header):
    """What the checksums of a file's blocks say is wrong, None for nothing; `verify` decodes them too."""
    from jaxcodec import bitstream

    try:
        found = bitstream.damaged_blocks(data, errors="raise")
    except bitstream.BitstreamError as error:
        return str(error)
    frames = header.sample_rate / header.hop_length
    places = ", ".join(f"{e.start_frame / frames:.2f} to {e.stop_frame / frames:.2f} s" for e in found)
    return f"damaged at {places}" if found else None


def _describe_model(name):
    import jax

    from jaxcodec import bundled
    from jaxcodec.inference import pretrained

    codec = pretrained.load(name)
    return dict(
        file=bundled.BUNDLED.get(name, name),
        model=codec.fingerprint.hex(),
        bundled=bundled.names().get(codec.fingerprint),
        nominal_kbps=_kilo(codec.bits_per_second),
        sample_rate=codec.sample_rate,
        frame_rate=codec.frame_rate,
        quantizer=codec.config.model.quantizer,
        **_codes(codec.num_codebooks, codec.codebook_size, codec.bits_per_second),
        causal=codec.causal,
        latency_seconds=codec.latency,
        entropy_coder=codec.entropy is not None,
        fast_files=codec.fast_entropy is not None,
        parameters=sum(array.size for array in jax.tree.leaves(codec.params)),
    )


def _codes(number, size, bits_per_second):
    """What a frame has: codebooks, or codes of which entropy coding alone says what they cost."""
    if bits_per_second is None:
        return dict(codes_per_frame=number)
    return dict(num_codebooks=number, codebook_size=size)


def _format_description(description):
    def text(value):
        if value is None or isinstance(value, bool):
            return {None: "none", True: "yes", False: "no"}[value]
        return f"{value:g}" if isinstance(value, float) else str(value)

    description = dict(description)
    if (bundled := description.pop("bundled")) is not None:
        description["model"] += f" ({bundled})"
    width = max(map(len, description))
    return "\n".join(f"{name.replace('_', ' '):{width}}  {text(value)}" for name, value in description.items())


def _kilo(bits_per_second):
    return None if bits_per_second is None else bits_per_second / 1000
