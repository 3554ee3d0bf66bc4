"""Shifts: what a policy was not trained under, on the same initial states, from severity 0 (nothing) to 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import mujoco
import numpy as np

from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.sim.camera import Decor
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.sight import ROBOT_GROUP
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv, encode_instruction
from mrvlm_sim.sim.tiles import THIN, tile_places, tiles
from mrvlm_sim.wrappers.corruptions import Blur, Brightness, Compression, Noise, Occlusion
from mrvlm_sim.wrappers.shift import Shift

Triple = tuple[float, float, float]

TILE = 0.1  # metres wide
AROUND_TASKS = (0.30, -0.40), (0.70, 0.40)  # metres, where more things may stand
CLEARANCE = 0.01  # metres between any two of them
SHAPES = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER
STRANGE = (0.55, 0.2, 0.6), (0.9, 0.45, 0.1), (0.1, 0.6, 0.65), (0.9, 0.9, 0.9), (0.08, 0.08, 0.08), (0.45, 0.25, 0.1)


class Lighting(Shift):
    """All lights up or down by up to 60 %, and their directions turned by up to 45 degrees."""

    def model(self, model: mujoco.MjModel) -> None:
        factor = 1 + 0.6 * self.severity * self.rng.choice([-1, 1])
        headlight = model.vis.headlight
        for colours in (model.light_diffuse, model.light_ambient, headlight.diffuse, headlight.ambient):
            colours[:] = np.clip(colours * factor, 0, 1)
        turn = self.rng.normal(size=model.light_dir.shape)
        model.light_dir[:] += self.severity * turn / np.linalg.norm(turn, axis=-1, keepdims=True)
        model.light_dir[:] /= np.linalg.norm(model.light_dir, axis=-1, keepdims=True)


class Colours(Shift):
    """Table, floor and sky towards random colours by up to 80 %; everything else tinted by up to 15 % of the range."""

    def model(self, model: mujoco.MjModel) -> None:
        background = (model.geom_bodyid == 0)[:, None]
        mixed = model.geom_rgba[:, :3] + 0.8 * self.severity * (
            self.rng.random((model.ngeom, 3)) - model.geom_rgba[:, :3]
        )
        tinted = model.geom_rgba[:, :3] + 0.15 * self.severity * self.rng.uniform(-1, 1, (model.ngeom, 3))
        model.geom_rgba[:, :3] = np.clip(np.where(background, mixed, tinted), 0, 1)


class Camera(Shift):
    """Every camera moved by up to 3 cm and turned by up to 8 degrees."""

    def model(self, model: mujoco.MjModel) -> None:
        for camera in range(model.ncam):
            model.cam_pos[camera] += 0.03 * self.severity * _direction(self.rng)
            turn, result = np.zeros(4), np.zeros(4)
            mujoco.mju_axisAngle2Quat(turn, _direction(self.rng), np.deg2rad(8) * self.severity)
            mujoco.mju_mulQuat(result, model.cam_quat[camera], turn)
            model.cam_quat[camera] = result


class Delay(Shift):
    """Actions are taken up to 4 control steps late; until then nothing is done."""

    def __init__(self, severity: float, rng: np.random.Generator) -> None:
        super().__init__(severity, rng)
        self._queue: list[np.ndarray] = []
        self._steps = round(4 * severity)

    def action(self, action: np.ndarray) -> np.ndarray:
        self._queue.append(action)
        return self._queue.pop(0) if len(self._queue) > self._steps else np.zeros_like(action)


class Texture(Shift):
    """The table in tiles of 10 cm, in random colours that differ from its own by up to 25 % of the range; every plain
    thing on it in two shades of its own colour, one up to half as bright: boxes checkered, balls and discs banded."""

    own_only = True

    def decor(self, env: SuiteEnv) -> list[Decor]:
        return [] if self.severity == 0 else [*self._tiles(env), *self._shades(env.model)]

    def _tiles(self, env: SuiteEnv) -> list[Decor]:
        places = tile_places(env.model, TILE)
        return tiles(places, TILE, np.array([self._near(env.model.geom("table").rgba) for _ in places]))

    def _shades(self, model: mujoco.MjModel) -> list[Decor]:
        on_table = (model.geom_bodyid > 0) & (model.geom_group != ROBOT_GROUP) & (model.geom_matid < 0)
        things = list[Decor]()
        for geom in np.flatnonzero(on_table & (model.geom_rgba[:, 3] == 1)).tolist():
            red, green, blue = (model.geom_rgba[geom, :3] * (1 - 0.5 * self.severity)).tolist()
            parts = shaded_parts(int(model.geom_type[geom]), model.geom_size[geom])
            things += [Decor(shape, size, place, (red, green, blue), geom) for shape, size, place in parts]
        return things

    def _near(self, colour: np.ndarray) -> tuple[float, float, float]:
        red, green, blue = np.clip(colour[:3] + 0.25 * self.severity * self.rng.uniform(-1, 1, 3), 0, 1).tolist()
        return red, green, blue


class Distractors(Shift):
    """Up to 10 more things on the table in colours that no instruction names; drawn only, so that nothing hits them."""

    own_only = True

    def decor(self, env: SuiteEnv) -> list[Decor]:
        taken, things = occupied(env), list[Decor]()
        for _ in range(round(10 * self.severity)):
            half = float(self.rng.uniform(0.015, 0.03))
            places = self.rng.uniform(*AROUND_TASKS, (100, 2))
            away = np.linalg.norm(places[:, None] - taken[:, :2], axis=-1) - taken[:, 2] - 2**0.5 * half
            free = places[(away > CLEARANCE).all(axis=1)]
            if len(free):
                taken = np.vstack([taken, [*free[0], 2**0.5 * half]])
                things.append(self._thing(float(free[0, 0]), float(free[0, 1]), half))
        return things

    def _thing(self, x: float, y: float, half: float) -> Decor:
        shape, colour = SHAPES[self.rng.integers(len(SHAPES))], STRANGE[self.rng.integers(len(STRANGE))]
        return Decor(shape, (half, half, half), (x, y, half), colour)


class Phrases(Shift):
    """The instruction in words that demonstrations never use, in so many episodes of all as the severity says."""

    own_only = True

    def instruction(self, env: SuiteEnv) -> str:
        if self.rng.random() >= self.severity:
            return env.instruction
        assert isinstance(env, ManipulationEnv)
        return env.task.rephrase(self.rng)


SHIFTS: dict[str, type[Shift]] = {
    "lighting": Lighting,
    "colours": Colours,
    "camera": Camera,
    "noise": Noise,
    "blur": Blur,
    "brightness": Brightness,
    "compression": Compression,
    "occlusion": Occlusion,
    "delay": Delay,
    "texture": Texture,
    "distractors": Distractors,
    "phrases": Phrases,
}
CHANGED = ("light_diffuse", "light_ambient", "light_dir", "geom_rgba", "cam_pos", "cam_quat")  # of a model


def check_shift(name: str, severity: float) -> None:
    """
    Raises:
        UserError: there is no such shift, or the severity is not between 0 and 1.
    """
    if name not in SHIFTS:
        raise unknown_name("shift", name, SHIFTS)
    if not 0 <= severity <= 1:
        raise UserError(f"the severity of a shift must be between 0 and 1, not {severity:g}")


@contextmanager
def under(env: SuiteEnv, shift: Shift | None) -> Iterator[gymnasium.Env[Observation, np.ndarray]]:
    """The environment under a shift for a while, or as it is."""
    if shift is None:
        yield env
        return
    shifted = Shifted(env, shift)
    try:
        yield shifted
    finally:
        shifted.restore()


class Shifted(gymnasium.Wrapper[Observation, np.ndarray, Observation, np.ndarray]):
    """An environment under a shift; `restore` gives the model back as it was."""

    def __init__(self, env: SuiteEnv, shift: Shift) -> None:
        super().__init__(env)
        self.suite_env, self.model, self.data, self.shift = env, env.model, env.data, shift
        headlight = self.model.vis.headlight
        arrays = [*(getattr(self.model, name) for name in CHANGED), headlight.diffuse, headlight.ambient]
        self._before = [(array, array.copy()) for array in arrays]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        observation, info = self.env.reset(seed=seed, options=options)
        self.shift.model(self.model)
        mujoco.mj_camlight(self.model, self.data)
        self.suite_env.renderer.decor = self.shift.decor(self.suite_env)
        self.suite_env.instruction = said = self.shift.instruction(self.suite_env)
        return observation | {"instruction": encode_instruction(said)}, info | {"instruction": said}

    def step(self, action: np.ndarray) -> tuple[Observation, Any, bool, bool, dict]:
        return self.env.step(self.shift.action(action))

    def restore(self) -> None:
        """Undo what the shift did to the model and to its pictures."""
        for array, before in self._before:
            array[:] = before
        self.suite_env.renderer.decor = []


def shaded_parts(shape: int, size: np.ndarray) -> list[tuple[mujoco.mjtGeom, Triple, Triple]]:
    """Shape, size and place of what, drawn over a geom, puts a pattern on it; nothing for shapes that need none."""
    (x, y, z), kinds = size.tolist(), mujoco.mjtGeom
    if shape == int(kinds.mjGEOM_BOX):  # every other eighth: a checkerboard on all faces
        octants = [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]
        eighth = x / 2 + THIN, y / 2 + THIN, z / 2 + THIN
        return [(kinds.mjGEOM_BOX, eighth, (a * x / 2, b * y / 2, c * z / 2)) for a, b, c in octants]
    if shape == int(kinds.mjGEOM_SPHERE):
        return [(kinds.mjGEOM_CYLINDER, (x + THIN, 0.3 * x, 0), (0, 0, 0))]
    if shape == int(kinds.mjGEOM_CYLINDER):
        return [(kinds.mjGEOM_CYLINDER, (0.6 * x, y + THIN, 0), (0, 0, 0))]
    return []


def occupied(env: SuiteEnv) -> np.ndarray:
    """Circles (n, 3) on the table, x, y and radius in metres, where things stand or will move by themselves."""
    model, data, circles = env.model, env.data, list[tuple[float, float, float]]()
    for geom in range(model.ngeom):
        body = model.geom_bodyid[geom]
        if body and model.body_parentid[body] == 0:
            circles.append((*data.geom_xpos[geom, :2], model.geom_rbound[geom]))
    paths = env.task.paths() if isinstance(env, ManipulationEnv) else np.empty((0, 3))
    return np.vstack([np.array(circles), paths])


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)
