"""The model for other programs."""

import os

from jaxcodec.cli import arguments as options
from jaxcodec.cli.jobs import UsageError, check_output, explain, find_recordings, note, progress_bar, tell


def add_arguments(parser):
    """Which model, as what."""
    options.add_shared(parser, "--force", "--quiet")
    parser.add_argument("model", nargs="?", default="tokens", metavar="MODEL", help=options.MODEL + "tokens")
    options.add_output(parser, "a file, or a folder for other formats")
    parser.add_argument("--format", choices=("safetensors", "stablehlo", "onnx"), default="safetensors")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of safetensors' weights")
    parser.add_argument("--entropy_data", metavar="FOLDER", help="recordings to fit the entropy coder's tables to")


def run(arguments):
    """Writes it, with tables of the entropy coder where recordings are given."""
    from jaxcodec import export
    from jaxcodec.bitstream import entropy
    from jaxcodec.inference import files, pretrained

    if arguments.format != "safetensors" and (arguments.dtype != "float32" or arguments.entropy_data):
        raise UsageError(f"--dtype and --entropy_data are for safetensors files, not for {arguments.format}.")
    check_output(arguments.output, arguments.force, [arguments.model])
    codec, failed = pretrained.load(arguments.model), False
    if arguments.entropy_data:
        if codec.module.quantizer.codebook_size is None:
            raise UsageError("--entropy_data fits tables to codebooks, and this model has none.")
        clips, sources = [], find_recordings(arguments.entropy_data)
        with progress_bar(len(sources)) as bar:
            for encoded in files.encode_files(codec, sources):
                if encoded.error:
                    failed = True
                    tell(explain(encoded.error))
                else:
                    clips.append(encoded.codes)
                bar.update()
        codec = codec.replace(entropy=entropy.fit(clips, codec.codebook_size))
    if arguments.format == "safetensors":
        codec = pretrained.save(codec, arguments.output, arguments.dtype)
        paths = [arguments.output]
    elif arguments.format == "stablehlo":
        paths = export.export_stablehlo(codec, arguments.output)
    else:
        paths = export.export_onnx(codec, arguments.output)
    for path in paths:
        note(f"{os.fspath(path)}: {os.path.getsize(path) / 1e6:.1f} MB, of the model {codec.fingerprint.hex()}")
    return int(failed)
