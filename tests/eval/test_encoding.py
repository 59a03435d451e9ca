"""A model and its pixels outside a run."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipfast.checkpoint.fragments import fragment_name
from clipfast.checkpoint.manifest import Entry, Manifest
from clipfast.checkpoint.tensor_file import dump_tensors
from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.models import load_model
from clipfast.eval.pillow import PillowDecoder
from clipfast.models import CLIP, create_model
from clipfast.preprocessing import Preprocessing
from clipfast.tokenizer import tokenize
from tests.eval.tiny import SIZE, picture, tiny_model, tiny_weights
from tests.peers import import_open_clip

need_dali = pytest.mark.needs("nvidia.dali")


@dataclass
class Files:
    files: list[bytes]
    name: str = "files"

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, i: int) -> bytes:
        return self.files[i]


def some_files(count: int = 7) -> Files:
    return Files([picture(i, 40 + 9 * i, 45, "JPEG" if i % 2 else "PNG") for i in range(count)])


def encoder(model=None, batch_size=3, **options) -> ImageEncoder:
    return ImageEncoder(model or tiny_model(), Preprocessing(SIZE), batch_size, **options)


@need_dali
def test_images_do_not_depend_on_the_batch():
    files = some_files()
    one, three = encoder(batch_size=1).images(files), encoder(batch_size=3).images(files)
    assert one.shape == (7, 256)
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)
    assert (one[0] - one[1]).abs().max() > 1e-3


@need_dali
def test_images_equal_those_of_the_evaluation_loader(tmp_path):
    from clipfast.data import EvalLoader

    files = some_files()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, data in enumerate(files.files):
            for suffix, content in (("png" if data[:1] == b"\x89" else "jpg", data), ("txt", b"a")):
                member = tarfile.TarInfo(f"{i:02}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    model = tiny_model()
    loader = EvalLoader(str(tmp_path / "a.tar"), SIZE, 7)
    with torch.no_grad():
        expected = model.encode_image(next(iter(loader)).images)
    torch.testing.assert_close(encoder(model, 7).images(files), expected, rtol=1e-5, atol=1e-6)


@need_dali
@pytest.mark.parametrize("place", [0, 3, 6])
def test_images_that_do_not_decode_are_named_and_nan(place, caplog):
    files = some_files()
    whole = encoder().images(files)
    # One is refused before the decoder, one by it.
    for broken in (b"no image", files.files[place][: len(files.files[place]) // 2]):
        with_fault = Files([*files.files[:place], broken, *files.files[place + 1 :]])
        one = encoder()
        found = one.images(with_fault)
        assert list(one.unreadable) == [place]
        assert f"1 of 7 images do not decode and are left out: image {place}:" in caplog.text
        assert found.isnan().all(1).nonzero().flatten().tolist() == [place]
        kept = [i for i in range(7) if i != place]
        torch.testing.assert_close(found[kept], whole[kept], rtol=1e-4, atol=1e-5)


def test_pillows_squares_are_those_of_open_clips_transform():
    # Its first two: resize and crop.
    steps = import_open_clip().transform.image_transform(SIZE, is_train=False).transforms[:2]
    sizes = [(67, 45), (45, 67), (32, 32), (33, 32), (9, 7), (200, 33), (41, 300), (64, 64)]
    files = [picture(i, *size) for i, size in enumerate(sizes)]
    found = torch.cat(list(PillowDecoder(Files(files), range(len(files)), 3, SIZE, 2)))
    for file, square in zip(files, found, strict=True):
        expected = steps[1](steps[0](Image.open(io.BytesIO(file))))
        np.testing.assert_array_equal(square, np.array(expected))


@need_dali
def test_images_by_pillow_differ_little_and_name_what_is_broken():
    files = some_files()
    files.files[4] = files.files[4][:300]
    model = tiny_model()
    exact, pillow = encoder(model), encoder(model, resize="pillow")
    found = pillow.images(files)
    kept = [0, 1, 2, 3, 5, 6]
    cosines = torch.cosine_similarity(found[kept], exact.images(files)[kept])
    assert cosines.min() > 0.99
    assert list(pillow.unreadable) == list(exact.unreadable) == [4]
    assert found[4].isnan().all()


def test_images_of_an_empty_set_are_refused():
    with pytest.raises(ValueError, match="files holds no image"):
        encoder().images(Files([]))


@need_dali
def test_penultimate_of_a_vit_comes_before_the_projection():
    model, files = tiny_model(), some_files()
    before = encoder(model).images(files, "penultimate")
    assert before.shape == (7, model.config.vision.width)
    torch.testing.assert_close(
        before @ model.visual.proj.detach(), encoder(model).images(files), rtol=1e-4, atol=1e-5
    )


@need_dali
def test_penultimate_of_a_resnet_comes_before_the_projection():
    model, files = tiny_model("RN-tiny"), some_files()
    before = encoder(model).images(files, "penultimate")
    assert before.shape == (7, 32 * model.config.vision.width)
    with torch.no_grad():
        after = model.visual.attnpool.c_proj(before)
    torch.testing.assert_close(after, encoder(model).images(files), rtol=1e-4, atol=1e-5)


def test_penultimate_leaves_no_hook_behind():
    model = tiny_model()
    encoder(model).pixels(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8), "penultimate")
    assert not model.visual.ln_post._forward_hooks


def test_texts_equal_the_models_and_repeat():
    model = tiny_model()
    texts = ["a cat", "a photo of a fire truck.", "a cat", "dog", "a cat"]
    with torch.no_grad():
        expected = model.encode_text(tokenize(texts))
    found = encoder(model, 2).texts(texts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("interpolation", "bilinear", "interpolation 'bilinear'"),
        ("resize_mode", "squash", "resize_mode 'squash'"),
        ("image_size", 64, "prepared at 64 pixels, and the model reads 32"),
    ],
)
def test_pixels_that_the_decoder_does_not_make_are_refused(field, value, words):
    with pytest.raises(ValueError, match=words):
        ImageEncoder(tiny_model(), Preprocessing(**{"image_size": SIZE, field: value}))


def test_pixels_are_normalised_as_the_weights_tell():
    model = tiny_model()
    crops = torch.full((1, SIZE, SIZE, 3), 100, dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    images = (torch.full((3,), 100 / 255) - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        expected = model.encode_image(images[None, :, None, None].expand(1, 3, SIZE, SIZE))
    found = ImageEncoder(model, Preprocessing(SIZE, mean, std)).pixels(crops)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_load_model_from_a_file_and_from_a_runs_folder(tmp_path):
    path = tiny_weights(tmp_path, seed=3)
    expected = tiny_model(seed=3).state_dict()
    run = tmp_path / "run"
    run.mkdir()
    path.rename(run / "final.safetensors")
    for weights in (run / "final.safetensors", run):
        loaded = load_model(None, weights)
        assert loaded.name == "ViT-tiny"
        assert loaded.preprocessing == Preprocessing(SIZE)
        assert not loaded.model.training
        for name, value in loaded.model.state_dict().items():
            assert torch.equal(value, expected[name])


def test_load_model_of_another_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ViT-tiny"):
        load_model("RN-tiny", tiny_weights(tmp_path))


def test_models_of_half_precision_compute_under_autocast():
    model = tiny_model()
    rng = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8, generator=rng)
    exact = encoder(model).pixels(crops)
    half = encoder(model, dtype=torch.bfloat16).pixels(crops)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() / exact.abs().max() < 0.05
    assert next(model.parameters()).dtype == torch.float32


def write_checkpoint(folder: Path, model: CLIP, step: int) -> Path:
    path = folder / f"step{step:08}"
    path.mkdir(parents=True)
    tensors = {
        fragment_name("weight", name, 0, value.numel()): value.detach().flatten()
        for name, value in model.named_parameters()
    }
    with open(path / "rank00000.safetensors", "wb") as file:
        dump_tensors(tensors, file)
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    files = {"rank00000.safetensors": Entry((path / "rank00000.safetensors").stat().st_size, "")}
    config = {"model": {"name": "ViT-tiny", "activation": "gelu"}}
    Manifest(
        run="r",
        counter=step,
        step=step,
        layout={},
        state={"engine": {"shapes": shapes}, "config": config},
        files=files,
    ).write(path)
    return path


def test_load_model_from_a_checkpoint_and_the_newest_of_a_run(tmp_path):
    older, newer = (create_model("ViT-tiny", activation="gelu") for _ in range(2))
    first = write_checkpoint(tmp_path / "run" / "checkpoints", older, 1)
    write_checkpoint(tmp_path / "run" / "checkpoints", newer, 2)
    for weights, model in ((first, older), (tmp_path / "run", newer)):
        loaded = load_model(None, weights)
        assert loaded.model.config.activation == "gelu"
        assert loaded.weights == str(weights)
        for name, value in model.named_parameters():
            assert torch.equal(loaded.model.get_parameter(name), value)
    with pytest.raises(ValueError, match=r"step00000001"):
        load_model("RN-tiny", first)


def test_load_model_from_a_damaged_checkpoint_names_it(tmp_path):
    path = write_checkpoint(tmp_path, create_model("ViT-tiny"), 1)
    (path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json.*Name an earlier checkpoint's folder"):
        load_model(None, path)
