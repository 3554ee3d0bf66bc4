"""The scripted expert for inserting a peg; like every expert here it keeps no memory."""

from collections.abc import Sequence

import numpy as np

from mrvlm_sim.sim.arm import YAW_LIMIT
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.tasks.expert import CLOSE, OPEN, towards
from mrvlm_sim.tasks.peg_geometry import PEG, RIM, Block, tip, upright

ABOVE, CLOSE_ABOVE = 0.03, 0.004  # metres over the rim at which the tip is brought to the hole, and waits there
GENTLE = 3.0  # metres down per step and metre of clearance at most: going down sways the hand a little
FINGER_END = 0.010  # metres over the rim, below which the fingertips' point must not go: the fingers end below it
BOTTOM = 0.018  # metres below the rim to which the peg is put: deep enough, and the fingers stay above the block
GRASP, TILTED_GRASP = 0.016, 0.006  # metres above the peg's centre: fingers that close there pass over the blocks
PLUMB = 0.985  # cosine of the tilt up to which a held peg is not put down again
LOW = 0.032  # metres above the table to which a tilted peg is lowered
CLEAR = 0.09  # metres from a block's centre to bare table that a peg fits on
BARE = np.linspace(0.36, 0.62, 14), np.linspace(-0.26, 0.26, 27)  # places on the table, metres
YAW_PLAY = 40.0  # radians that a peg may be turned in its hole, per metre that it may be shifted
OVER = 0.006  # metres off the peg, sideways, at which the open fingers may go down


class PegExpert:
    """Fetches the peg if it was lost, and puts it into the hole of the first of `blocks`."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks, self.block = blocks, blocks[0]

    def action(self, scene: Scene) -> np.ndarray:
        """float32 (5,) in [-1, 1]."""
        if scene.fingers_touching(PEG) < 2:
            return self._fetch(scene)
        return self._insert(scene) if upright(scene)[2] > PLUMB else self._put_down(scene)

    def _insert(self, scene: Scene) -> np.ndarray:
        offset = scene.position(self.block.name) - tip(scene)
        turn = _turn(scene, scene.yaw(self.block.name) - _peg_yaw(scene))
        sideways = np.abs(self.block.inside(scene, tip(scene)))[:2].max()
        play = self.block.clearance / 2
        entered = offset[2] > 0.002 and sideways < play + 0.003
        if entered or (sideways < play and abs(turn) < YAW_PLAY * play):
            return self._lower(scene, offset, turn)
        far = np.linalg.norm(offset[:2]) > 0.02
        up = offset[2] + (ABOVE if far else CLOSE_ABOVE)
        if far and up > ABOVE / 2:
            offset[:2] = 0.0  # first up, so as not to run into a block
        return towards(scene, np.array([*offset[:2], up]), turn, CLOSE)

    def _lower(self, scene: Scene, offset: np.ndarray, turn: float) -> np.ndarray:
        """Gently down; where the fingers would meet the block first, the peg is let go, to be gripped higher."""
        if scene.fingertips()[2] < RIM + FINGER_END and offset[2] < BOTTOM - 0.002:
            return towards(scene, np.zeros(3), 0.0, OPEN)
        gentle = min(0.01, GENTLE * self.block.clearance)
        return towards(scene, np.array([*offset[:2], max(offset[2] - BOTTOM, -gentle)]), turn, CLOSE)

    def _put_down(self, scene: Scene) -> np.ndarray:
        """Let go of a tilted peg over the bare table, where it falls flat."""
        peg = scene.position(PEG)
        offset = self._bare_place(scene, peg[:2]) - peg[:2]
        if np.abs(offset).max() < 0.02:
            return towards(scene, np.array([0, 0, LOW - peg[2]]), 0.0, CLOSE if peg[2] > LOW + 0.006 else OPEN)
        up = min(2 * RIM + ABOVE - peg[2], 0.01)
        return towards(scene, np.array([*(offset if peg[2] > 2 * RIM else np.zeros(2)), up]), 0.0, CLOSE)

    def _bare_place(self, scene: Scene, near: np.ndarray) -> np.ndarray:
        """The place (2,) nearest to `near` that is away from all blocks."""
        places = np.stack(np.meshgrid(*BARE), axis=-1).reshape(-1, 2)
        blocks = np.array([scene.position(block.name)[:2] for block in self.blocks])
        bare = places[np.linalg.norm(places[:, None] - blocks, axis=-1).min(axis=1) > CLEAR]
        return bare[np.argmin(np.linalg.norm(bare - near, axis=1))]

    @staticmethod
    def _fetch(scene: Scene) -> np.ndarray:
        grasp = GRASP if upright(scene)[2] > PLUMB else TILTED_GRASP
        offset = scene.position(PEG) + np.array([0, 0, grasp]) - scene.fingertips()
        turn = _turn(scene, _peg_yaw(scene) - scene.arm.heading(scene.data))
        sideways = float(np.linalg.norm(offset[:2]))
        over = sideways < OVER and abs(turn) < 0.1
        if over and abs(offset[2]) < 0.004:
            return towards(scene, np.zeros(3), 0.0, CLOSE)
        if not over and sideways + abs(offset[2]) > OVER:
            offset[2] += 0.05
            if offset[2] > 0.03:
                offset[:2] = 0.0  # first up, so as not to push the peg away
        return towards(scene, offset, turn, OPEN)


def _peg_yaw(scene: Scene) -> float:
    """Yaw of the peg, whichever face is below: that of the axis that lies flattest."""
    axes = scene.data.body(PEG).xmat.reshape(3, 3)
    flattest = axes[:, np.argmin(np.abs(axes[2]))]
    return float(np.arctan2(flattest[1], flattest[0]))


def _turn(scene: Scene, angle: float) -> float:
    """Of the turns that are the same for a square, the smallest that the hand can make, in radians."""
    turns = (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4 + np.array([0, -np.pi / 2, np.pi / 2])
    beyond = np.abs(scene.arm.heading(scene.data) + turns) > YAW_LIMIT - 0.05
    return float(turns[np.argmin(np.abs(turns) + 10 * beyond)])
