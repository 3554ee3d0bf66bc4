"""Trained policies: a folder with a card and weights; loading one never unpickles."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import tomli_w
import torch

from mrvlm_sim.agents.card import PolicyCard, Weights
from mrvlm_sim.agents.model_card import model_card
from mrvlm_sim.agents.policy import EpisodeStart, Observations, Requirements
from mrvlm_sim.cards import read_card
from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork, encode_words
from mrvlm_sim.paths import data_folder
from mrvlm_sim.sim.suite_env import Observation, decode_instruction
from mrvlm_sim.vision import cut_batch, patchify

CARD, WEIGHTS = "policy.toml", "model.safetensors"


class TrainedPolicy:
    """Runs a network in chunks: it looks once in `execute` steps and carries out what it decided in between."""

    def __init__(self, card: PolicyCard, network: PolicyNetwork, device: torch.device) -> None:
        self.card, self.network = card, network.eval().requires_grad_(False)
        self.to(device)
        self.requirements = Requirements(card.cameras, card.network.action_size, frame_interval=card.execute)

    def to(self, device: torch.device | str) -> None:
        """See `Movable`."""
        self.device = torch.device(device)
        self.network.to(self.device)

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        self._words = encode_words([episode.instruction for episode in episodes]).to(self.device)
        self._step = 0

    def act(self, observations: Observations) -> np.ndarray:
        ahead = self._step % self.card.execute
        if ahead == 0:
            self._chunk = self.decide(observations, self._words)
        self._step += 1
        return self._chunk[:, ahead]

    @torch.inference_mode()
    def decide(self, observations: Observations, words: torch.Tensor) -> np.ndarray:
        """One forward: action chunks (B, chunk, action_size) for observations and instructions (`encode_words`)."""
        tokens, boxes = {}, {}
        for camera in self.card.cameras:
            tokens[camera] = torch.from_numpy(observations[f"{camera}/tokens"]).to(self.device).float() / 255
            boxes[camera] = torch.from_numpy(observations[f"{camera}/boxes"]).to(self.device)
        proprio = torch.from_numpy(observations["proprio"]).to(self.device)
        actions, _ = self.network(tokens, boxes, proprio, words)
        return actions.clamp(-1, 1).cpu().numpy()

    def action_chunks(
        self, frames: Mapping[str, torch.Tensor], origins: Mapping[str, np.ndarray], observation: Observation
    ) -> torch.Tensor:
        """See `DifferentiablePolicy`: the same way from frame to action, without rounding."""
        return self.network(*self.inputs(frames, origins, observation))[0]

    def encodings(
        self, frames: Mapping[str, torch.Tensor], origins: Mapping[str, np.ndarray], observation: Observation
    ) -> torch.Tensor:
        """See `EncodingPolicy`."""
        return self.network.perceive(*self.inputs(frames, origins, observation)).features

    def inputs(
        self, frames: Mapping[str, torch.Tensor], origins: Mapping[str, np.ndarray], observation: Observation
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """What the network takes, differentiable from the frames to the tokens."""
        tokens, boxes = {}, {}
        for camera, pyramid in self.card.cameras.items():
            views = cut_batch(frames[camera].to(self.device), origins[camera], pyramid)
            tokens[camera] = torch.cat(patchify(views, pyramid.patch), 1)
            boxes[camera] = torch.from_numpy(pyramid.told_boxes(origins[camera])).to(self.device)
        count = max(len(each) for each in boxes.values())
        proprio = torch.from_numpy(observation["proprio"]).to(self.device).expand(count, -1)
        words = encode_words([decode_instruction(observation["instruction"])]).to(self.device).expand(count, -1)
        return tokens, boxes, proprio, words


def load_trained(
    folder: Path, device: torch.device | None = None, settings: Mapping[str, Any] = MappingProxyType({})
) -> TrainedPolicy:
    """Load a policy folder; `settings` see `PolicyCard.with_settings`.

    Raises:
        UserError: the card is malformed or untrained; the weights are missing, damaged, or not those of the card.
    """
    card = read_card(folder / CARD, PolicyCard).with_settings(settings)
    path = folder / WEIGHTS
    if card.weights is None or not path.is_file():
        raise UserError(f"{folder} has no trained weights; train them: mrvlm-sim train bc --arm {_arm_name(folder)}")
    found = sha256(path)
    if found != card.weights.sha256:
        raise UserError(f"{path}: sha256 is {found}, the card says {card.weights.sha256}; restore the file or retrain")
    network = PolicyNetwork(card.cameras, card.network)
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} does not fit the network on its card: {error}") from error
    return TrainedPolicy(card, network, device or torch.device("cpu"))


def _arm_name(folder: Path) -> str:
    base = data_folder("policies")
    return folder.relative_to(base).as_posix() if folder.is_relative_to(base) else folder.name


def save_trained(folder: Path, card: PolicyCard, network: PolicyNetwork, **made_by: Any) -> None:
    """Write card, model card and weights; `made_by` are the other fields of `Weights`. The card is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, folder / WEIGHTS)
    weights = Weights(sha256=sha256(folder / WEIGHTS), **made_by)
    complete = card.model_copy(update={"weights": weights})
    (folder / "README.md").write_text(model_card(complete), encoding="utf-8")
    partial = folder / (CARD + ".partial")
    partial.write_text(tomli_w.dumps(complete.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    partial.rename(folder / CARD)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
