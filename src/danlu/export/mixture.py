"""Which type each matrix of a K-quant file takes: the choices of llama.cpp's `llama-quantize`, for dense models.

A K-quant is a mixture: the head, the value projections and `ffn_down` of some layers keep more bits than the rest.
The rules are those of `llama_tensor_get_type` in llama.cpp's llama-quant.cpp, held to its tool by a test. A row whose
length is not a multiple of 256 takes a type in blocks of 32 instead, and f16 where it is no multiple of 32 either.
Not covered: importance matrices, mixtures of experts, per-tensor wishes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

_K = GGMLQuantizationType
K_QUANTS: dict[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "q6_k": (_K.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "q5_k_m": (_K.Q5_K, LlamaFileType.MOSTLY_Q5_K_M),
    "q5_k_s": (_K.Q5_K, LlamaFileType.MOSTLY_Q5_K_S),
    "q4_k_m": (_K.Q4_K, LlamaFileType.MOSTLY_Q4_K_M),
    "q4_k_s": (_K.Q4_K, LlamaFileType.MOSTLY_Q4_K_S),
    "q3_k_m": (_K.Q3_K, LlamaFileType.MOSTLY_Q3_K_M),
    "q2_k": (_K.Q2_K, LlamaFileType.MOSTLY_Q2_K),
}
SMALLER_BLOCKS = {_K.Q2_K: _K.Q4_0, _K.Q3_K: _K.Q4_0, _K.Q4_K: _K.Q5_0, _K.Q5_K: _K.Q5_1, _K.Q6_K: _K.Q8_0}


@dataclass(frozen=True, slots=True)
class Network:
    """What the rules ask of a network: layers, query heads for each key head, whether the embedding is the head."""

    layers: int
    group: int
    tied: bool


def k_type(name: str, columns: int, quant: str, network: Network) -> GGMLQuantizationType:
    """The type of matrix `name` with rows of `columns` values in a file of `quant`."""
    kind = K_QUANTS[quant][0]
    if name == ("token_embd.weight" if network.tied else "output.weight"):
        wanted = _K.Q8_0 if columns % GGML_QUANT_SIZES[kind][0] else _K.Q6_K
    else:
        wanted = _wanted(name, kind, quant, network)
    return fitting(wanted, columns)


def fitting(kind: GGMLQuantizationType, columns: int) -> GGMLQuantizationType:
    """`kind`, or what stands in for it where rows of `columns` values do not divide into its blocks."""
    if columns % GGML_QUANT_SIZES[kind][0]:
        kind = SMALLER_BLOCKS.get(kind, kind)
    return _K.F16 if columns % GGML_QUANT_SIZES[kind][0] else kind


def _wanted(name: str, kind: GGMLQuantizationType, quant: str, network: Network) -> GGMLQuantizationType:
    found = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down|attn_output)\.weight", name)
    if not found:
        return kind
    layer, part, layers = int(found[1]), found[2], network.layers
    eighth = layers // 8
    more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    if part == "attn_output":
        return {"q2_k": _K.Q3_K, "q3_k_m": _K.Q4_K}.get(quant, kind)
    if quant in ("q4_k_m", "q5_k_m") and more:
        return _K.Q6_K
    if part == "ffn_down":
        if quant == "q3_k_m":
            return _K.Q5_K if layer < layers // 16 else _K.Q4_K
        return {"q2_k": _K.Q3_K, "q4_k_s": _K.Q5_K if layer < eighth else kind}.get(quant, kind)
    if quant == "q2_k":
        kind = _K.Q4_K if network.group >= 4 else _K.Q3_K
    elif quant == "q3_k_m":
        kind = _K.Q5_K if layer < 2 else _K.Q4_K
    elif quant == "q4_k_s" and layer < 4:
        kind = _K.Q5_K
    # with 80 layers (70B) the value projection is small against the rest
    return _K.Q5_K if layers == 80 and kind in (_K.Q3_K, _K.Q4_K) else kind
