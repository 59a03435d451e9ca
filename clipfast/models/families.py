"""Models that are none of those here, told by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The first that matches is the one.
_FAMILIES: tuple[tuple[str, str], ...] = (
    (r"\.lora_[AB]\.|\.lora_(up|down)\.", "LoRA adapters: merge them into their model first"),
    (r"\.(SCB|absmax|quant_map|qweight|qzeros)$", "a quantised model: take its weights of before"),
    (r"(^|\.)model\.diffusion_model\.|(^|\.)down_blocks\.", "a diffusion model"),
    (r"(^|\.)text_decoder\.", "a CoCa (it has a text decoder)"),
    (r"(^|\.)vision_model\.head\.probe$", "a SigLIP of Hugging Face"),
    (r"^visual\.trunk\.attn_pool\.", "a SigLIP of OpenCLIP (its image tower is timm's)"),
    (r"^visual\.trunk\.", "an OpenCLIP model whose image tower is timm's"),
    (r"^visual\.(rope|blocks\.)", "an EVA-CLIP"),
    (r"^text\.transformer\.(embeddings|encoder|shared|wte)\b", "an OpenCLIP model whose text tower "
     "is Hugging Face's"),
    (r"^(visual_encoder|text_encoder)\.", "a BLIP or ALBEF"),
    (r"^(vision_model|text_model)\.", "a model of transformers with other towers, or one tower"),
    (r"^text\.", "an OpenCLIP CustomTextCLIP with another text tower"),
    (r"^(blocks|patch_embed|cls_token)\b", "an image model of timm, without a text tower"),
    (r"^layer1\.0\.conv1\.weight$", "an image model of torchvision, without a text tower"),
    (r"^(conv1|class_embedding|ln_pre|layer1)\b", "one tower alone"),
)  # fmt: skip


def family_of(names: Iterable[str], own: Iterable[str] = ()) -> str | None:
    """What a state dict is of, where that is no model here.

    Args:
        names: of its tensors.
        own: of the model that it does not fit; what they look like, it is not.

    Returns:
        A phrase; None where the names tell nothing.
    """
    names, own = list(names), list(own)
    for pattern, family in _FAMILIES:
        if _any(pattern, names) and not _any(pattern, own):
            return family
    return None


def _any(pattern: str, names: list[str]) -> bool:
    return any(re.search(pattern, name[:300]) for name in names)
