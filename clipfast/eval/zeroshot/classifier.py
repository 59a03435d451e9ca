"""The zero-shot classifier: class names in prompts, averaged in the space of embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from clipfast.eval.encoding import ImageEncoder

SLOT = "{c}"
# What a class name is asked as where no prompt is given.
BARE = (SLOT,)
ONE_PROMPT = ("a photo of a {c}.",)


def build_classifier(
    encoder: ImageEncoder, names: Sequence[str], templates: Sequence[str]
) -> Tensor:
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
    check_names(names)
    check_templates(templates)
    texts = [template.replace(SLOT, name) for name in names for template in templates]
    features = F.normalize(encoder.texts(texts), dim=-1)
    return F.normalize(features.view(len(names), len(templates), -1).mean(1), dim=-1)


def check_names(names: Sequence[str]) -> None:
    """Class names that a classifier can be made of.

    Raises:
        ValueError: with what is wrong and where.
    """
    if isinstance(names, str) or not len(names):
        raise ValueError(f"class names are a list of one text at least; got {names!r}")
    for number, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"class {number} has an empty name: give it one")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"the class name {twice[0]!r} stands {Counter(names)[twice[0]]} times: two classes of "
            "one name cannot be told apart by texts; tell them apart, such as 'crane (bird)'"
        )


def check_templates(templates: Sequence[str]) -> None:
    """Prompts that class names can be put into.

    Raises:
        ValueError: with what is wrong and where.
    """
    if isinstance(templates, str) or not len(templates):
        raise ValueError(f"templates are a list of one text at least; got {templates!r}")
    for number, template in enumerate(templates):
        if SLOT not in template:
            raise ValueError(
                f"template {number} is {template!r} and has no slot {SLOT} for the class name: "
                "every class would have the same text"
            )
