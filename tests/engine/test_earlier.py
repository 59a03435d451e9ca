"""Files that DeepSpeed wrote for an earlier version, and that end too soon."""

import pytest
import torch

from clipfast.checkpoint.fragments import Unfit
from clipfast.engine.deepspeed.earlier import EarlierTensors


@pytest.mark.parametrize("key", ["weight", "exp_avg", None])
@pytest.mark.parametrize("stage", [0, 1])
def test_a_tensor_that_ends_too_soon_is_refused(tmp_path, stage, key):
    sizes = dict.fromkeys(("weight", "exp_avg", "exp_avg_sq"), 512) | ({key: 300} if key else {})
    held = {name: torch.ones(size) for name, size in sizes.items()}
    weight = held.pop("weight")
    state = {"state": {0: {"step": 1.0, **held}}}
    model = {
        "dp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": stage}},
        "module": {"w": torch.ones(512)},
        "buffer_names": [],
        "param_shapes": [{"w": torch.Size([512])}],
        "optimizer": {"fp32_groups": [[weight]], "optimizer_state_dict": state},
    }
    torch.save(model, tmp_path / "mp_rank_00_model_states.pt")
    flat = {"single_partition_of_fp32_groups": [weight], "base_optimizer_state": state}
    torch.save(
        {"optimizer_state_dict": flat}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    )
    saved = EarlierTensors(tmp_path, [["w"]])
    if key:
        with pytest.raises(Unfit, match=rf"{key} of w has 300 of the elements 0 to 512"):
            list(saved.read("w", 0, 512))
    else:
        (found,) = saved.read("w", 0, 512)
        assert found.start == 0
        assert len(found.tensors["weight"]) == 512
