"""The table in tiles: their places, their colours, and which pixel shows which of them how brightly."""

from itertools import product
from typing import NamedTuple

import mujoco
import numpy as np

from mrvlm_sim.sim.camera import Decor
from mrvlm_sim.sim.suite_env import SuiteEnv

THIN = 0.0001  # metres: half height of a tile
TEST = 0.5  # colour at which tiles are compared with black ones; no light makes it brighter than white
SEEN = 4 / 255  # brighter than this, a lit tile shows


class TileMap(NamedTuple):
    """What a picture (S, S) shows of the tiles."""

    tile: np.ndarray  # int16 (S, S): which one, -1 for none
    shade: np.ndarray  # float32 (S, S, 3): by how much the pixel changes with the tile's colour; 0 where there is none

    def spread(self, colours: np.ndarray) -> np.ndarray:
        """What a change of the tiles' colours (N, 3) does to the pixels: float32 (S, S, 3)."""
        return np.where(self.tile[..., None] >= 0, colours[self.tile] * self.shade, 0).astype(np.float32)

    def gather(self, slopes: np.ndarray, count: int) -> np.ndarray:
        """The slope along each of so many tiles' colours, float64 (N, 3), from that along the pixels (S, S, 3)."""
        shown, shaded = self.tile >= 0, slopes * self.shade
        return np.stack(
            [np.bincount(self.tile[shown], shaded[shown, channel], minlength=count) for channel in range(3)], axis=1
        )


def tile_places(model: mujoco.MjModel, width: float) -> np.ndarray:
    """Middles (N, 3) of square tiles that cover the table, metres."""
    table = model.geom("table")
    along = [
        np.arange(middle - half + width / 2, middle + half, width)
        for middle, half in zip(table.pos[:2], table.size[:2], strict=True)
    ]
    return np.array([(x, y, table.pos[2] + table.size[2] + THIN) for x, y in product(*along)])


def tiles(places: np.ndarray, width: float, colours: np.ndarray) -> list[Decor]:
    """Tiles (N) in colours (N, 3) in [0, 1], to be drawn over the table."""
    size = width / 2, width / 2, THIN
    return [
        Decor(mujoco.mjtGeom.mjGEOM_BOX, size, (x, y, z), (red, green, blue))
        for (x, y, z), (red, green, blue) in zip(places.tolist(), colours.tolist(), strict=True)
    ]


def tile_map(env: SuiteEnv, camera: str, size: int, width: float) -> TileMap:
    """Which tile is where in a camera's frame as it is now, by coded light: dark and bright tiles, bit by bit."""
    places = tile_places(env.model, width)
    numbers = np.arange(len(places))

    def seen(lit: np.ndarray) -> np.ndarray:
        return frame_of_tiles(env, camera, size, width, TEST * np.repeat(lit[:, None], 3, axis=1)).astype(np.int16)

    dark = seen(np.zeros(len(places)))
    bright = seen(np.ones(len(places))) - dark
    there = bright.max(axis=-1) > 255 * SEEN
    tile = np.zeros((size, size), np.int16)
    for bit in range(int(np.ceil(np.log2(len(places))))):
        tile |= (seen(numbers >> bit & 1) - dark > bright / 2).any(axis=-1).astype(np.int16) << bit
    shown = there & (tile < len(places))
    shade = np.where(shown[..., None], bright / (255 * TEST), 0)
    return TileMap(np.where(shown, tile, -1).astype(np.int16), shade.astype(np.float32))


def frame_of_tiles(env: SuiteEnv, camera: str, size: int, width: float, colours: np.ndarray) -> np.ndarray:
    """The sensor frame (S, S, 3) with tiles of those colours on the table."""
    before = env.renderer.decor
    env.renderer.decor = [*tiles(tile_places(env.model, width), width, colours), *before]
    try:
        return env.renderer.frame(camera, size)
    finally:
        env.renderer.decor = before
