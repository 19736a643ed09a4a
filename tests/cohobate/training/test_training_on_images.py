"""Training of a model that sees: it learns from pictures, and a resumed run repeats the whole."""

from pathlib import Path

import pytest
import torch

from cohobate.data.examples import examples_of
from cohobate.data.records import IMAGES, Row
from cohobate.data.tokenized import encode_all
from cohobate.losses.divergences import Hard
from cohobate.students.seeing import choose_image_token, with_vision
from cohobate.students.vision_tower import VisionTower
from cohobate.training import Hyperparameters, checkpointing, fit
from tests import tiny_models
from tests.tiny_pictures import picture

VISION = VisionTower(image_size=16, patch_size=8, layers=1, width=16, heads=2)


def student():
    tokenizer = tiny_models.make_tokenizer()
    text = tiny_models.make_model(tokenizer, layers=2)
    return with_vision(text, tokenizer, VISION, choose_image_token(tokenizer), 0), tokenizer


def rows() -> list[Row]:
    kinds = ["animal", "plant", "person"]
    made = []
    for n in range(12):
        picture(IMAGES / f"{n}.png", kinds[n % 3], n)
        made.append(Row(id=str(n), prompt="C:", images=(f"{n}.png",), answer=f" {kinds[n % 3]}"))
    return made


def train(settings: Hyperparameters):
    model, tokenizer = student()
    examples = examples_of(rows(), encode_all(tokenizer, rows()))
    with checkpointing.resumable("seen", "key"):
        history = fit(model, examples, [Hard()], settings, seed=1)
    return model, history


def test_it_learns_what_only_the_pictures_say_and_resumes_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Hyperparameters(
        updates=40, batch_size=6, learning_rate=1e-2, checkpoint_every=10, precision="float32"
    )
    model, history = train(settings)
    # three answers are equally frequent, and the end follows each: without the pictures the mean
    # loss stays at half of log 3, which is 0.55
    assert history[-1].loss < 0.4
    whole = {name: weight.clone() for name, weight in model.state_dict().items()}
    checkpointing.delete_checkpoints("seen")
    monkeypatch.setattr(
        "cohobate.training.callbacks.CheckpointCallback.on_step_end", _killed_at(31)
    )
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    resumed, _ = train(settings)
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, whole[name]), name


def _killed_at(update: int):
    from cohobate.training.callbacks import CheckpointCallback

    own = CheckpointCallback.on_step_end

    def on_step_end(self, args, state, *rest, **options):
        if state.global_step == update:
            raise KeyboardInterrupt
        return own(self, args, state, *rest, **options)

    return on_step_end
