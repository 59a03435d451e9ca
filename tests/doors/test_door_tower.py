"""An image tower from outside the package, in this one file: three layers, its own names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipfast.models import (
    CLIP,
    Architecture,
    TextConfig,
    Tower,
    catalogue,
    create_model,
    export,
    list_models,
    load_weights,
    register_model,
    register_tower,
    towers,
)
from clipfast.models.activations import activation_bytes, fastest_recompute
from clipfast.models.compile import compile_blocks
from clipfast.models.recompute import run_block
from tests.models.helpers import assert_near, random_images, random_tokens


@dataclass(frozen=True)
class MixerConfig:
    """Patches, `layers` blocks over their channels, the mean of all patches."""

    layers: int = 3
    width: int = 24
    patch_size: int = 8
    image_size: int = 32


class MixerBlock(nn.Module):
    """y = x + fc(gelu(norm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(nn.functional.gelu(self.norm(x)))


class Mixer(nn.Module):
    def __init__(self, config: MixerConfig, output_dim: int, recompute: str) -> None:
        super().__init__()
        self.recompute = recompute
        patch, cells = config.patch_size, (config.image_size // config.patch_size) ** 2
        self.stem = nn.Conv2d(3, config.width, patch, stride=patch)
        self.places = nn.Parameter(torch.empty(cells, config.width))
        self.blocks = nn.ModuleList(MixerBlock(config.width) for _ in range(config.layers))
        self.head = nn.Linear(config.width, output_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.places)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = run_block(block, x, self.recompute)
        return self.head(x.mean(dim=1))


def nearest(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Positions of a square grid without a further row."""
    old, new = round(len(table) ** 0.5), round(shape[0] ** 0.5)
    grid = table.view(1, old, old, -1).permute(0, 3, 1, 2)
    return nn.functional.interpolate(grid, size=(new, new)).permute(0, 2, 3, 1).flatten(0, 2)


@pytest.fixture(autouse=True)
def mixer() -> Iterator[None]:
    """The tower and a model with it, known for one test."""
    register_tower(
        Tower(
            MixerConfig,
            Mixer,
            first_weight="stem.weight",
            blocks=(MixerBlock,),
            positions=("places",),
            resize=nearest,
            published={"stem.": "trunk.patch_embed.", "places": "trunk.pos_embed"},
        )
    )
    register_model(Architecture("Mixer-3", 16, MixerConfig(), TextConfig(1, 32, 16, 20, 50)))
    yield
    del towers._TOWERS[MixerConfig], catalogue._MODELS["Mixer-3"]


def model_with(**overrides: object) -> CLIP:
    torch.manual_seed(0)
    return create_model("Mixer-3", **overrides)


def step(model: CLIP) -> list[Tensor]:
    """Features and all gradients of one forward and backward pass."""
    images, tokens = random_images(3, 32), random_tokens(3, 12, 50)
    u, v, scale = model(images.to(torch.float64), tokens)
    (scale * (u * v).sum()).sum().backward()
    return [u.detach(), v.detach(), *(p.grad for p in model.parameters())]


def test_a_tower_from_outside_is_created_by_name_and_overridden() -> None:
    assert list_models()[-1] == "Mixer-3"
    model = create_model("Mixer-3", vision_layers=2, vision_width=40, image_size=16)
    assert len(model.visual.blocks) == 2
    assert model.encode_image(torch.randn(5, 3, 16, 16)).shape == (5, 16)
    with pytest.raises(ValueError, match=r"reads images \[B, 3, 16, 16\]"):
        model.encode_image(torch.randn(5, 3, 32, 32))
    half = create_model("Mixer-3").to(torch.bfloat16)
    assert half.encode_image(random_images(2, 32)).dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_a_tower_from_outside_recomputes_to_the_same_bits(mode: str) -> None:
    plain, recomputing = model_with().double(), model_with(recompute=mode).double()
    calls: list[nn.Module] = []
    for block in recomputing.visual.blocks:
        block.register_forward_pre_hook(lambda m, _: calls.append(m))
    for ours, expected in zip(step(recomputing), step(plain), strict=True):
        assert torch.equal(ours, expected)
    assert len(calls) == 2 * 3


def test_a_tower_from_outside_trains_compiled_as_eager() -> None:
    torch._dynamo.reset()
    compiled = compile_blocks(model_with().double(), backend="aot_eager")
    marked = [m for m in compiled.visual.modules() if hasattr(m, "compiled_as")]
    assert marked == list(compiled.visual.blocks)
    for ours, expected in zip(step(compiled), step(model_with().double()), strict=True):
        assert_near(ours, expected, 1e-12)
    torch._dynamo.reset()


def test_a_tower_from_outside_is_counted_in_memory() -> None:
    config = catalogue.get_config("Mixer-3")
    needs = {m: activation_bytes(config, 64, torch.float32, m).kept for m in ("none", "full")}
    assert needs["full"] < needs["none"]
    assert fastest_recompute(config, 64, torch.float32, 10**12)[0] == "none"
    assert fastest_recompute(config, 64, torch.float32, 0)[0] == "full"


def test_a_tower_from_outside_goes_out_and_in_under_published_names(tmp_path: Path) -> None:
    model, other = model_with(), create_model("Mixer-3")
    path = tmp_path / "model.pt"
    export(model, path)
    names = set(torch.load(path))
    assert {"visual.trunk.patch_embed.weight", "visual.trunk.pos_embed"} <= names
    assert not any(name.startswith(("visual.stem", "visual.places")) for name in names)
    load_weights(other, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_a_tower_from_outside_interpolates_its_own_positions(tmp_path: Path) -> None:
    export(model_with(), tmp_path / "model.pt")
    larger = create_model("Mixer-3", image_size=64)
    with pytest.raises(ValueError, match=r"visual.places is \[16, 24\] in the file, \[64, 24\]"):
        load_weights(larger, tmp_path / "model.pt")
    load_weights(larger, tmp_path / "model.pt", resize_positions=True)
    grid = larger.visual.places.view(8, 8, 24)
    assert torch.equal(grid[::2, ::2].flatten(0, 1), model_with().visual.places)


def test_weights_of_another_model_name_the_tower_from_outside(tmp_path: Path) -> None:
    export(model_with(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="does not fit ViT-tiny"):
        load_weights(create_model("ViT-tiny"), tmp_path / "model.pt")


def test_register_tower_refuses_what_would_be_ambiguous() -> None:
    with pytest.raises(ValueError, match="MixerConfig has a tower already"):
        register_tower(Tower(MixerConfig, Mixer, first_weight="other.weight"))

    @dataclass(frozen=True)
    class OtherConfig(MixerConfig):
        pass

    with pytest.raises(ValueError, match=r"both begin with 'stem\.weight'"):
        register_tower(Tower(OtherConfig, Mixer, first_weight="stem.weight"))
    with pytest.raises(ValueError, match="no tower for a OtherConfig: call register_tower"):
        register_model(Architecture("Other", 16, OtherConfig()))
    with pytest.raises(ValueError, match="there is a model 'Mixer-3' already"):
        register_model(Architecture("Mixer-3", 16, MixerConfig()))
