"""Models that stable-baselines3 or sb3-contrib saved: `--policy model.zip`. Loading one takes trust: it unpickles."""

import inspect
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field

from mrvlm_sim.agents.policy import EpisodeStart, Observations, Requirements
from mrvlm_sim.agents.trained import sha256
from mrvlm_sim.cards import Card, read_card
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.loading import search_current_folder
from mrvlm_sim.sim.suite_env import SuiteEnv, encode_instruction
from mrvlm_sim.vision import Pyramid
from mrvlm_sim.wrappers import MultiResolutionTokens

if TYPE_CHECKING:
    from stable_baselines3.common.policies import BasePolicy

# All that a network is built from. Algorithms differ in the rest, which only training needs: optimisers' settings,
# schedules, buffers as large as those of the training. So it does not matter here which algorithm it was.
PARTS = ("policy_class", "observation_space", "action_space", "policy_kwargs", "use_sde")
WEIGHTS = "policy.pth"
VECTORS = ("state", "proprio")  # what a model without a Dict may see: an environment's own observation comes first


class SB3Card(Card):
    """`model.toml` beside `model.zip`: the eyes that the model was trained with; one without eyes needs none."""

    cameras: dict[str, Pyramid] = {}
    frame_interval: Annotated[int, Field(ge=1)] = 1  # of the `MultiResolutionTokens` that it was trained in


class SB3Policy:
    """Acts with the network of a saved model, without noise."""

    def __init__(self, network: "BasePolicy", card: SB3Card, path: Path) -> None:
        self.network, self.card, self.path = network, card, path
        space = network.observation_space
        self._seen = dict(space.spaces) if isinstance(space, spaces.Dict) else None
        _check_eyes(self._seen or {}, card, path)
        self.requirements = Requirements(card.cameras, _action_size(network.action_space, path), card.frame_interval)

    def to(self, device: str) -> None:
        """See `Movable`."""
        self.network.to(device)

    def check_environment(self, env: SuiteEnv) -> None:
        """Compare what the model sees with what the environment shows.

        Raises:
            UserError: naming both sides.
        """
        shown: spaces.Dict = MultiResolutionTokens(env, self.card.cameras).observation_space  # type: ignore[assignment]
        wanted = self._wanted({key: space.shape for key, space in shown.items()})
        for key, space in wanted.items():
            if key not in shown.spaces:
                raise unknown_name(f"observation, asked for by {self.path},", key, shown)
            if _kind(space) != _kind(shown[key]):
                raise UserError(
                    f"{self.path} sees {key} as {_words(space)}, the environment shows {_words(shown[key])}; "
                    "evaluate it where it was trained, with the same wrappers"
                )

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        self._memory: tuple[np.ndarray, ...] | None = None  # of recurrent policies
        self._begins = np.ones(len(episodes), dtype=bool)

    def act(self, observations: Observations) -> np.ndarray:
        texts = observations["instruction"]
        arrays = {**observations, "instruction": np.stack([encode_instruction(text) for text in texts])}
        keys = list(self._wanted({key: array.shape[1:] for key, array in arrays.items()}))
        seen = {key: arrays[key] for key in keys} if self._seen is not None else arrays[keys[0]]
        actions, self._memory = self.network.predict(seen, self._memory, self._begins, deterministic=True)
        self._begins = np.zeros_like(self._begins)
        return actions

    def _wanted(self, shapes: Mapping[str, Any]) -> Mapping[str, spaces.Space]:
        """What the model sees, by the keys of observations of these shapes.

        Raises:
            UserError: a model without keys fits none of them.
        """
        if self._seen is not None:
            return self._seen
        space = self.network.observation_space
        for key in VECTORS:
            if shapes.get(key) == space.shape:
                return {key: space}
        known = ", ".join(f"{key} {shapes[key]}" for key in VECTORS if key in shapes)
        raise UserError(f"{self.path} sees {_words(space)}, the environment shows {known}; none of them fits")


def load_sb3(path: Path, trust_pickle: bool) -> SB3Policy:
    """Load a saved model, and its card if it has one.

    Raises:
        UserError: it is no such model, or unpickling was not allowed, or fails.
    """
    stored = _inspect(path)
    if not trust_pickle:
        raise UserError(
            f"{path} is a model of stable-baselines3. Loading one unpickles, and that can run any code that whoever "
            "made the file has put there; if you trust them, say so: --trust-pickle"
        )
    return SB3Policy(_unpickle(path, stored), _card(path), path)


def sb3_identity(path: Path) -> dict[str, Any]:
    """The model's hash and its card."""
    return {"model": sha256(path), "card": _card(path).model_dump(mode="json")}


def _card_path(path: Path) -> Path:
    return path.with_suffix(".toml")


def _card(path: Path) -> SB3Card:
    card = _card_path(path)
    return read_card(card, SB3Card) if card.exists() else SB3Card()


def _inspect(path: Path) -> dict[str, Any]:
    """The model's attributes as they are stored, JSON with pickles as text; nothing is unpickled.

    Raises:
        UserError: no such file, or no such model.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = json.loads(archive.read("data"))
            archive.getinfo(WEIGHTS)
            missing = [part for part in PARTS if part not in stored and part != "use_sde"]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive has many ways to say so
        raise UserError(f"{path} is no model that stable-baselines3 saved, or is damaged: {error}") from error
    if missing:
        raise UserError(f"{path} is no model that stable-baselines3 saved: its data has no {', '.join(missing)}")
    return stored


def _unpickle(path: Path, stored: Mapping[str, Any]) -> "BasePolicy":
    """The network of a saved model, as every algorithm would build it.

    Raises:
        UserError: a class that it is made of cannot be imported here, or the weights do not fit.
    """
    from stable_baselines3.common.save_util import json_to_data

    search_current_folder()  # for networks of the user's own
    unneeded = {key: None for key in stored if key not in PARTS}
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        try:
            network = _build(json_to_data(json.dumps(stored), custom_objects=unneeded))
            with zipfile.ZipFile(path) as archive, archive.open(WEIGHTS) as weights:
                network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (Exception, SystemExit) as error:
            reasons = [f"{type(error).__name__}: {error}", *(str(doubt.message) for doubt in doubts)]
            raise UserError(f"{path} cannot be loaded here: {'; '.join(reasons)}") from error
    return network


def _build(parts: Mapping[str, Any]) -> "BasePolicy":
    policy_class, options = parts["policy_class"], dict(parts["policy_kwargs"])
    takes = inspect.signature(policy_class).parameters.values()
    positional: list[Any] = [parts["observation_space"], parts["action_space"]]
    if any(p.name == "lr_schedule" or p.kind is p.VAR_POSITIONAL for p in takes):  # random search (ARS) has none
        positional.append(lambda _: 0.0)
    if parts.get("use_sde"):
        options["use_sde"] = True
    return policy_class(*positional, **options)


def _check_eyes(seen: Mapping[str, spaces.Space], card: SB3Card, path: Path) -> None:
    """Compare the cameras whose tokens the model sees with those on its card."""
    suffixes = ("/tokens", "/boxes")
    looked_through = {key.rpartition("/")[0]: key for key in seen if key.endswith(suffixes)}
    for camera in sorted(looked_through.keys() - card.cameras.keys()):
        tokens = seen.get(f"{camera}/tokens")
        patch = isqrt(tokens.shape[-1] // 3) if isinstance(tokens, spaces.Box) else 32
        raise UserError(
            f"{path} looks through the camera {camera}, and how is for {_card_path(path)} to say, for example:\n"
            f"[cameras.{camera}]\nframe_size = 512\npatch = {patch}\ngrids = [4, 4, 4]\nzoom = 2\n"
            f"[cameras.{camera}.jitter]\ntremor = 0.1"
        )
    for camera in sorted(card.cameras.keys() - looked_through.keys()):
        raise UserError(
            f"{_card_path(path)} has a camera {camera}, and the model does not look through it, but sees "
            f"{', '.join(seen) or 'no Dict'}; take it off the card"
        )


def _action_size(space: spaces.Space, path: Path) -> int:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise UserError(
            f"{path} acts in {space}; actions here are vectors in [-1, 1]: "
            "train with an algorithm for continuous actions, such as PPO, SAC or TD3"
        )
    if (space.low != -1).any() or (space.high != 1).any():
        raise UserError(
            f"{path} acts between {space.low.tolist()} and {space.high.tolist()}; actions here are in [-1, 1]: "
            "train in gymnasium.wrappers.RescaleAction(env, -1, 1)"
        )
    return space.shape[0]


def _kind(space: spaces.Space) -> tuple[Any, str]:
    """What must be equal for a network to understand: shape, and whether it is integers or not."""
    return space.shape, np.dtype(space.dtype).kind


def _words(space: spaces.Space) -> str:
    return f"{space.dtype} {space.shape}"
