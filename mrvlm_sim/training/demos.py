"""Demonstrations: expert episodes kept as simulator states, so that any arm can look at them with its own eyes.

Short bursts of a constant push knock the arm off its way; the label is always the expert's answer to the present
state, so that recoveries are seen (in the spirit of DART, Laskey et al., 2017).
"""

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from mrvlm_sim.errors import UserError
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import set_state, simulator_state
from mrvlm_sim.tasks import make_own_env

BURST_PROBABILITY = 0.06  # per step
BURST_STEPS = 3  # at most
SLIP_PROBABILITY = 0.5  # per burst: the gripper does the opposite, which shows lost and missed grasps


@dataclass(frozen=True)
class Demonstrations:
    """Arrays over F frames of E episodes; `episode` tells which frame belongs to which."""

    environment: str
    seed: int
    states: np.ndarray  # float64 (F, n): MuJoCo's integration state
    proprio: np.ndarray  # float32 (F, P)
    actions: np.ndarray  # float32 (F, A): the expert's label
    landmarks: np.ndarray  # float32 (F, K, 3): metres from the fingertips
    episode: np.ndarray  # int64 (F,)
    reset_seeds: np.ndarray  # int64 (E,)
    instructions: np.ndarray  # str (E,)
    success: np.ndarray  # bool (E,)

    def save(self, path: Path) -> None:
        """Write all arrays to one `.npz`, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **{field.name: getattr(self, field.name) for field in fields(self)})
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Demonstrations":
        """Read what `save` wrote.

        Raises:
            UserError: there is no such file, or it is not a complete file of demonstrations.
        """
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                values = {field.name: file[field.name] for field in fields(cls)}
        except FileNotFoundError as error:
            raise UserError(f"no demonstrations at {path}; record them with `mrvlm-sim demos`") from error
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is not a complete file of demonstrations ({error}); record it again") from error
        return cls(**{**values, "environment": str(values["environment"]), "seed": int(values["seed"])})

    def restore(self, env: ManipulationEnv, frame: int) -> None:
        """Put the simulator into the state of one frame (colours and fixtures: reset the episode first)."""
        set_state(env.model, env.data, self.states[frame])
        env.scene.forward()
        env.scene.arm.restore(env.scene.data)


def record(
    environment: str, episodes: int, seed: int, progress: Callable[[int], None] = lambda done: None
) -> Demonstrations:
    """Run the expert for `episodes` successful or failed episodes with pushes.

    Raises:
        UserError: unknown environment, or less than one episode.
    """
    if episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {episodes}")
    env = make_own_env(environment)
    rows: dict[str, list] = {name: [] for name in ("states", "proprio", "actions", "landmarks", "episode")}
    starts, instructions, success = [], [], []
    for episode in range(episodes):
        starts.append(integer_seed(seed, environment, episode, "demonstration state"))
        rng = generator(seed, environment, episode, "demonstration pushes")
        success.append(_record_episode(env, starts[-1], rng, episode, rows))
        instructions.append(env.instruction)
        progress(episode + 1)
    env.close()
    arrays = {name: np.array(values) for name, values in rows.items()}
    return Demonstrations(
        environment, seed, **arrays,
        reset_seeds=np.array(starts), instructions=np.array(instructions), success=np.array(success),
    )  # fmt: skip


def _record_episode(
    env: ManipulationEnv, seed: int, rng: np.random.Generator, episode: int, rows: dict[str, list]
) -> bool:
    observation, _ = env.reset(seed=seed)
    over, terminated, push_left = False, False, 0
    while not over:
        label = env.expert_action()
        rows["states"].append(simulator_state(env))
        rows["proprio"].append(observation["proprio"])
        rows["actions"].append(label)
        rows["landmarks"].append(env.task.landmarks(env.scene))
        rows["episode"].append(episode)
        if push_left == 0 and rng.random() < BURST_PROBABILITY:
            push_left = int(rng.integers(1, BURST_STEPS + 1))
            push, slip = rng.uniform(-1, 1, 4), rng.random() < SLIP_PROBABILITY
        action = label.copy()
        if push_left > 0:
            action[:4], push_left = push, push_left - 1
            action[4] = -label[4] if slip else label[4]
        observation, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    return terminated
