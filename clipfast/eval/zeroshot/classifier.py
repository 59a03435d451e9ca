"""The zero-shot classifier: class names in prompts, averaged in the space of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from clipfast.eval.setencoder import SetEncoder
from clipfast.eval.sets.prompts import SLOT, USUAL_TEMPLATES, check_classnames, check_templates

# What a class name is asked as where it stands alone.
BARE = (SLOT,)
ONE_PROMPT = USUAL_TEMPLATES


def build_classifier(encoder: SetEncoder, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Weights of the classifier. A collective.

        w_c = normalised(mean_t normalised(text(template_t with name_c)))

    Args:
        encoder: of the model.
        names: C class names.
        templates: T prompts, each with the slot ``{c}``.

    Returns:
        ``[C, D]`` float32 on the CPU, rows of length 1.

    Raises:
        ValueError: no name, no prompt, an empty name, or a prompt without the slot.

    Source: Radford et al. 2021, section 3.1.4.
    """
    check_classnames(names, "class names")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise ValueError(f"class name {number} is empty: a text of it would name nothing")
    check_templates(templates, "templates")
    texts = [template.replace(SLOT, name) for name in names for template in templates]
    features = F.normalize(encoder.texts(texts), dim=-1)
    return F.normalize(features.view(len(names), len(templates), -1).mean(1), dim=-1)
