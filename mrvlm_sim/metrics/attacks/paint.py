"""A texture in the scene: the table painted, and seen by the same cameras, light and perspective as everything else."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.attacks.base import Moment, Prepared, TensorFrames
from mrvlm_sim.metrics.attacks.gradient import GradientAttack
from mrvlm_sim.metrics.attacks.universal import PASSES
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv
from mrvlm_sim.sim.tiles import TileMap, frame_of_tiles, tile_map, tile_places
from mrvlm_sim.wrappers.tokens import Frames

TILE = 0.05  # metres wide


class Paint(GradientAttack, Prepared):
    """The table in squares of 5 cm, each up to eps from the table's own colour, found on looks from other episodes.

    Pixels change linearly with the paint, so its gradient is that of the pixels, gathered by square; what the policy
    then sees is rendered. After Athalye et al., "Synthesizing robust adversarial examples" (2018).

    Raises:
        UserError: the environment is not one of the suite's own, when it is first seen.
    """

    knows = ("off", "unknown")
    own_only = True
    paint: np.ndarray  # (squares, 3): the change of their colours

    def note(self, env: SuiteEnv) -> dict[str, TileMap]:
        _own(env)
        return {camera: tile_map(env, camera, p.frame_size, TILE) for camera, p in self.victim.pyramids.items()}

    def prepare(self, moments: Sequence[Moment]) -> None:
        """Find the paint."""
        maps: list[dict[str, TileMap]] = [moment.noted for moment in moments]
        count = 1 + max(int(each.tile.max()) for noted in maps for each in noted.values())
        most = self.threat.eps / max(1.0, *(float(each.shade.max()) for noted in maps for each in noted.values()))
        paint, steps = self.rng.uniform(-most, most, (count, 3)), PASSES * self.threat.steps
        for step in range(steps):
            index = int(self.rng.integers(len(moments)))
            self.begin(moments[index].frames, moments[index].observation)
            slope = self._slope(maps[index], paint)
            paint = np.clip(paint + most * (1 - step / steps) * np.sign(slope), -most, most)
        self.paint = paint

    def _slope(self, noted: dict[str, TileMap], paint: np.ndarray) -> np.ndarray:
        change: TensorFrames = {
            camera: torch.from_numpy(each.spread(paint)).to(self.clean[camera].device) for camera, each in noted.items()
        }
        _, slopes = self.gradient(self.within(change))
        return sum(
            (each.gather(slopes[c].cpu().numpy(), len(paint)) for c, each in noted.items()), np.zeros_like(paint)
        )

    def take_over(self, other: Self) -> None:
        self.paint = other.paint

    def propose(self, frames: Frames, observation: Observation) -> Frames:
        env: Any = self.victim.env
        _own(env)
        own = env.model.geom("table").rgba[:3]
        colours = np.clip(np.tile(own, (len(tile_places(env.model, TILE)), 1)), 0, 1)
        colours[: len(self.paint)] = np.clip(own + self.paint, 0, 1)
        painted = {c: frame_of_tiles(env, c, frame.shape[0], TILE, colours) / 255 for c, frame in frames.items()}
        eps = self.threat.eps  # light may fall brighter on a square than it did on any that was prepared on
        return {c: frame / 255 + np.clip(painted[c] - frame / 255, -eps, eps) for c, frame in frames.items()}


def _own(env: SuiteEnv | None) -> None:
    if env is None or "table" not in [env.model.geom(geom).name for geom in range(env.model.ngeom)]:
        name = "this environment" if env is None else env.name
        raise UserError(f"attack paint paints the table of the suite's own environments, and {name} has none")
