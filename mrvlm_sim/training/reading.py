"""Teaching the encoder of an arm to read: which mark is on which plate, at any size and eccentricity.

Every arm gets the same scenes, the same number of updates and the same recipe. The encoder starts as that of the
policy and is trained on together with the head, which is told where the plates are. (With heads that had to find the
plates themselves, readers learned scenes by heart: after 600 updates 31 % of the marks were right there and 13 % on
other scenes, where guessing gives 12.5 %; told the places, 67 % and 50 %.)
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.models.reader import MarkReader
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.sim.sight import in_image
from mrvlm_sim.tasks import make_own_env, own_card, read_mark
from mrvlm_sim.tasks.optotypes import MARKS
from mrvlm_sim.tasks.read_mark import CAMERA, PLATES
from mrvlm_sim.training.scenes import Known, look_around, render_scenes, stack
from mrvlm_sim.training.trainer import Log, Trainer
from mrvlm_sim.training.views import MarginViews
from mrvlm_sim.vision import Pyramid

ENVIRONMENT = "read_mark"
LARGEST, SMALLEST = 10.0, 1.0  # degrees, marks that readers are taught with
NEAREST, FARTHEST = 10.0, 45.0  # degrees off the optical axis
CHECKED = 400  # scenes that are not trained on
Cell = tuple[float, float]  # size of the marks and eccentricity of the plates, degrees


@dataclass(frozen=True)
class Scenes:
    """First looks at N scenes of `read_mark`, through the eyes of one arm."""

    views: dict[str, MarginViews]
    proprio: np.ndarray  # float32 (N, P)
    marks: np.ndarray  # int64 (N, plates): which mark each plate bears, from left to right
    places: np.ndarray  # float32 (N, plates, 2): u, v of every plate's centre in the frame
    named: np.ndarray  # int64 (N,): the plate that the instruction asks for
    cells: np.ndarray  # float64 (N, 2): size and eccentricity

    def look(
        self, scenes: np.ndarray, rng: np.random.Generator, device: torch.device
    ) -> tuple[dict, dict, Tensor, Tensor]:
        """Freshly jittered tokens and boxes by camera, proprioception and places, of some of the scenes."""
        seen = {camera: views.look(scenes, rng) for camera, views in self.views.items()}
        tokens = {camera: torch.from_numpy(look.tokens).to(device).float() / 255 for camera, look in seen.items()}
        boxes = {camera: torch.from_numpy(look.boxes).to(device) for camera, look in seen.items()}
        proprio, places = (torch.from_numpy(values[scenes]).to(device) for values in (self.proprio, self.places))
        return tokens, boxes, proprio, places


def random_cells(count: int, seed: int) -> list[Cell]:
    """Eccentricities uniform; octaves of size up to the largest that fits, the more often the larger they are."""
    rng = generator(seed, ENVIRONMENT, 0, "reading cells")
    places = np.round(rng.uniform(NEAREST, FARTHEST, count), 2).tolist()
    largest = np.array([min(LARGEST, read_mark.largest_mark(place)) for place in places])
    sizes = SMALLEST * (largest / SMALLEST) ** np.sqrt(rng.random(count))
    return [*zip((np.floor(sizes * 1000) / 1000).tolist(), places, strict=True)]


def reading_scenes(cameras: dict[str, Pyramid], cells: Sequence[Cell], seed: int, workers: int) -> Scenes:
    """One scene for every cell; scene i depends on the seed, on i and on its cell alone."""
    render = partial(_render, cameras, cells, seed)
    views, known = render_scenes(cameras, len(cells), render, workers)
    return Scenes(views, cells=np.array(cells), **known)


def _render(cameras: dict[str, Pyramid], cells: Sequence[Cell], seed: int, scenes: np.ndarray) -> Known:
    known: list[Known] = []
    card, _ = own_card(ENVIRONMENT)
    with closing(make_own_env(ENVIRONMENT)) as env:
        for index in scenes.tolist():
            size, eccentricity = cells[index]
            changed = {**card.parameters, "mark_size": size, "eccentricity": eccentricity}
            env.task = task = read_mark.build(card, read_mark.Parameters.model_validate(changed))
            observation, _ = env.reset(seed=integer_seed(seed, ENVIRONMENT, index, "reading scene"))
            rng = generator(seed, ENVIRONMENT, index, "training gaze")
            seen = look_around(env.scene, env.renderer, cameras, task.landmarks(env.scene), rng)
            places = in_image(env.scene, CAMERA, np.array([env.scene.position(plate) for plate in PLATES]))
            known.append(seen | {
                "proprio": observation["proprio"],
                "marks": np.array([MARKS.index(mark) for mark in task.shown]),
                "places": places.astype(np.float32),
                "named": np.array(task.shown.index(task.words["thing"])),
            })  # fmt: skip
    return stack(known)


@dataclass(frozen=True)
class Lesson:
    """The same for every arm: how many scenes it is taught with, for how many updates, and with what seed."""

    scenes: int
    updates: int
    batch: int = 32
    seed: int = 0
    matrix_rate: float = 2e-3
    learning_rate: float = 6e-4
    weight_decay: float = 0.01


class Reading(Trainer):
    """Trains a reader by the cross-entropy of the marks on all plates; scenes are rendered when they are needed."""

    def __init__(self, policy: TrainedPolicy, lesson: Lesson, folder: Path, workers: int) -> None:
        self.card, self.lesson, self.workers = policy.card, lesson, workers
        torch.manual_seed(lesson.seed)
        self.reader = MarkReader(policy.card.cameras, policy.card.network, len(MARKS))
        self.reader.load_state_dict(self.reader.state_dict() | policy.network.state_dict())
        identity = f"{policy.card.model_dump_json()}\n{lesson}"
        super().__init__(self.reader.to(policy.device), lesson, folder, identity, muon_patches=True)

    def run(self, log: Log, log_every: int = 100, save_every: int = 500) -> None:
        """See `Trainer.run`; what is needed is rendered before the first update."""
        if self.update < self.recipe.updates:
            self.scenes  # noqa: B018
        super().run(log, log_every, save_every)

    @cached_property
    def scenes(self) -> Scenes:
        cells = random_cells(self.lesson.scenes, self.lesson.seed)
        return reading_scenes(self.card.cameras, cells, self.lesson.seed, self.workers)

    def losses(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss, right = self._judge(rng.choice(np.arange(CHECKED, len(self.scenes.marks)), self.recipe.batch), rng)
        return loss, {"loss": loss, "right": right}

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        loss, right = self._judge(np.arange(CHECKED), np.random.default_rng(0))
        return {"check/loss": loss.item(), "check/right": right.item()}

    def _judge(self, chosen: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        scores = read(self.reader, self.scenes, chosen, rng)
        marks = torch.from_numpy(self.scenes.marks[chosen]).to(self.device)
        return F.cross_entropy(scores.flatten(0, 1), marks.flatten()), (scores.argmax(-1) == marks).float().mean()


def read(reader: MarkReader, scenes: Scenes, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
    """A reader's scores (n, plates, marks) for some of the scenes, freshly jittered."""
    device = reader.proprio_mean.device
    with torch.autocast(device.type, torch.bfloat16):
        return reader.read(*scenes.look(chosen, rng, device))
