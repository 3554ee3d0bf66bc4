"""What training draws its batches from: demonstrations through the eyes of one arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mrvlm_sim.models import encode_words
from mrvlm_sim.sim.env import Task
from mrvlm_sim.tasks import make_task, split_settings
from mrvlm_sim.training.demos import Demonstrations
from mrvlm_sim.training.views import MarginViews, kept_frames

HELD_OUT = 0.05  # of the episodes, for the curves


@dataclass(frozen=True)
class Batch:
    """One batch on the training device; `valid` (B, chunk) marks the actions before the episode's end."""

    tokens: Mapping[str, Tensor]
    boxes: dict[str, Tensor]
    proprio: Tensor
    words: Tensor
    actions: Tensor
    valid: Tensor
    landmarks: Tensor
    shown: dict[str, Tensor]  # bool (B, K, N) of every camera: which tokens show which landmark


class Dataset:
    """Demonstrations through the eyes of one arm; `gazes` (F, 2n) are the last numbers of the actions, if any."""

    def __init__(
        self,
        demos: Demonstrations,
        views: dict[str, MarginViews],
        chunk: int,
        stride: int,
        device: torch.device,
        gazes: Sequence[np.ndarray] = (),
    ) -> None:
        self.actions = np.concatenate([demos.actions, *gazes], axis=1)
        self.demos, self.views, self.chunk, self.device = demos, views, chunk, device
        self.name, _ = split_settings(demos.environment)
        self.task = make_task(demos.environment)
        self.kept = kept_frames(demos, stride)
        held_out = demos.episode[self.kept] >= np.ceil(len(demos.reset_seeds) * (1 - HELD_OUT))
        self.train_frames, self.check_frames = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        self.words = encode_words(demos.instructions.tolist())
        self.last_frame = np.searchsorted(demos.episode, demos.episode, side="right") - 1

    def sample(self, frames: np.ndarray, size: int, rng: np.random.Generator, relabelled: int = 0) -> Batch:
        """`size` frames drawn from `frames` (indices into the kept ones) with replacement, freshly jittered.

        The first `relabelled` of them get an instruction at random: they have no actions, but teach which thing
        is meant, where the gripper's whereabouts would otherwise give it away.
        """
        demos, device = self.demos, self.device
        drawn = rng.choice(frames, size)
        seen = {camera: views.look(drawn, rng) for camera, views in self.views.items()}
        chosen = self.kept[drawn]
        ahead = chosen[:, None] + np.arange(self.chunk)
        last = self.last_frame[chosen][:, None]
        valid, landmarks, words = ahead <= last, demos.landmarks[chosen], self.words[demos.episode[chosen]]
        if relabelled and not any(views.looks_for_what_is_named for views in self.views.values()):
            instructions = relabel(
                self.task, landmarks[:relabelled], {c: s.shown[:relabelled] for c, s in seen.items()}, rng
            )
            words[:relabelled] = encode_words(instructions)
            valid[:relabelled] = False
        return Batch(
            tokens={c: torch.from_numpy(look.tokens).to(device).float() / 255 for c, look in seen.items()},
            boxes={c: torch.from_numpy(look.boxes).to(device) for c, look in seen.items()},
            proprio=torch.from_numpy(demos.proprio[chosen]).to(device),
            words=words.to(device),
            actions=torch.from_numpy(self.actions[np.minimum(ahead, last)]).to(device),
            valid=torch.from_numpy(valid).to(device),
            landmarks=torch.from_numpy(landmarks).to(device),
            shown={c: torch.from_numpy(look.shown).to(device) for c, look in seen.items()},
        )


def relabel(task: Task, landmarks: np.ndarray, shown: Mapping[str, np.ndarray], rng: np.random.Generator) -> list[str]:
    """Random other instructions for B frames; landmarks (B, K, 3) and what shows them (B, K, N) are made theirs."""
    instructions, renamed = task.relabel(np.concatenate([landmarks, *shown.values()], axis=2), rng)
    parts = np.split(renamed, np.cumsum([3, *(some.shape[2] for some in shown.values())])[:-1], axis=2)
    for array, part in zip((landmarks, *shown.values()), parts, strict=True):
        array[:] = part
    return instructions


def join(batches: Sequence[Batch]) -> Batch:
    """Several batches as one."""
    cameras = batches[0].tokens

    def of_every(name: str) -> dict[str, Tensor]:
        return {camera: torch.cat([getattr(batch, name)[camera] for batch in batches]) for camera in cameras}

    def together(name: str) -> Tensor:
        return torch.cat([getattr(batch, name) for batch in batches])

    return Batch(
        tokens=of_every("tokens"),
        boxes=of_every("boxes"),
        proprio=together("proprio"),
        words=together("words"),
        actions=together("actions"),
        valid=together("valid"),
        landmarks=together("landmarks"),
        shown=of_every("shown"),
    )
