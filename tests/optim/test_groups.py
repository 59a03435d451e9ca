"""Parameter groups: what decays, which tower it is of, and the bound of the logit scale."""

import pytest
from torch import nn

from clipfast.models import create_model
from clipfast.optim import parameter_groups
from clipfast.optim.groups import LOGIT_SCALE_MAXIMUM


def named_groups(model: nn.Module, **options) -> list[tuple[dict, set[str]]]:
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, 0.2, **options)
    return [(group, {names[id(p)] for p in group["params"]}) for group in groups]


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_parameter_groups_decay_all_but_gains_and_biases_of_both_towers(name):
    model = create_model(name)
    groups = named_groups(model)
    assert [group["weight_decay"] for group, _ in groups] == [0.2, 0.0, 0.2, 0.0, 0.0]
    names = {n for n, _ in model.named_parameters()}
    assert (
        sum(len(of) for _, of in groups) == len(names) == len(set().union(*(g for _, g in groups)))
    )
    decayed, exempt = (groups[0][1] | groups[2][1], groups[1][1] | groups[3][1])
    assert {"token_embedding.weight", "positional_embedding", "text_projection"} <= groups[2][1]
    assert {n for n in names if n.endswith("bias")} <= exempt
    assert all(n.endswith("bias") or ".bn" in n or "ln_" in n or "downsample" in n for n in exempt)
    assert not any(".bn" in n or "ln_" in n for n in decayed)
    assert groups[4][1] == {"logit_scale"}


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_parameter_groups_give_each_tower_its_options_and_the_scale_none(name):
    image, text = {"weights": "remainder"}, {"weights": "stochastic", "eps": 1e-6}
    groups = named_groups(create_model(name), image=image, text=text)
    for group, names in groups[:2]:
        assert all(n.startswith("visual.") for n in names)
        assert (group["weights"], group.get("eps")) == ("remainder", None)
    for group, names in groups[2:4]:
        assert not any(n.startswith("visual.") for n in names)
        assert (group["weights"], group["eps"]) == ("stochastic", 1e-6)
    scale, names = groups[4]
    assert names == {"logit_scale"}
    assert (scale["weights"], scale["maximum"]) == ("fp32", LOGIT_SCALE_MAXIMUM)


def test_parameter_groups_keep_what_belongs_to_no_tower_exact():
    model = create_model("ViT-tiny", vocab_size=500)
    model.head = nn.Linear(2, 2)
    groups = named_groups(model, image={"weights": "stochastic"}, text={"weights": "stochastic"})
    assert [n for _, n in groups[4:6]] == [{"head.weight"}, {"head.bias"}]
    assert [group["weights"] for group, _ in groups[4:]] == ["fp32"] * 3


def test_parameter_groups_leave_out_frozen_parameters():
    model = create_model("ViT-tiny", vocab_size=500)
    model.requires_grad_(False)
    assert parameter_groups(model, 0.2) == []
    model.visual.requires_grad_(True)
    assert len(parameter_groups(model, 0.2)) == 2
