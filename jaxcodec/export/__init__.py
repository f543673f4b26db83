"""A trained codec for programs that do not have this package."""

from jaxcodec.export.artifacts import (
    export_onnx as export_onnx,
    export_stablehlo as export_stablehlo,
)
