"""Off-screen cameras with both sources of views: cut from the sensor frame, or rendered level by level.

`Renderer.views` draws every box through its own off-axis frustum.
"""

import atexit
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import mujoco
import numpy as np
from mujoco.gl_context import GLContext


@dataclass(frozen=True)
class Decor:
    """A thing that is drawn and not simulated; `size` as MuJoCo has it for the shape, metres, `colour` in [0, 1].

    It has its `place` in the world, or in the frame of the geom that it is `on` and moves with.
    """

    shape: mujoco.mjtGeom
    size: tuple[float, float, float]
    place: tuple[float, float, float]
    colour: tuple[float, float, float]
    on: int | None = None


class Renderer:
    """Renders the cameras of one simulation; images are uint8 (height, width, 3), upper row first.

    Args:
        model: what is simulated.
        state: gives what is to be drawn, whenever a picture is made.
        cameras: the model's name of each camera that can be looked through; by default all under their own names.
        turned: those of them that hang upside down; their pictures are turned by 180 degrees.
        sites: draw the model's sites, which some suites mark goals with.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        state: Callable[[], mujoco.MjData],
        cameras: Mapping[str, str] | None = None,
        turned: Collection[str] = (),
        sites: bool = False,
    ) -> None:
        self.model, self._state = model, state
        names = [model.camera(i).name for i in range(model.ncam)]
        self.cameras = dict(cameras) if cameras is not None else {name: name for name in names}
        self._turned = frozenset(turned)
        self._buffers = Buffers(model)
        weakref.finalize(self, Buffers.abandon, self._buffers).atexit = False
        self._option = mujoco.MjvOption()
        if not sites:
            self._option.sitegroup[:] = 0
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self.decor: list[Decor] = []  # drawn beside what is simulated
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def frame(self, camera: str, size: int) -> np.ndarray:
        """The whole sensor frame, uint8 (size, size, 3)."""
        return self.views(camera, np.array([[0.0, 0.0, 1.0]]), (size,))[0]

    def picture(self, camera: str, width: int, height: int) -> np.ndarray:
        """A plain rectangular picture, uint8 (height, width, 3)."""
        self._aim(camera)
        return self._upright(self._draw(width, height), camera)

    def views(self, camera: str, boxes: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
        """One square image per box (u, v, h) of the frame, each `sizes[i]` pixels wide; without pixels for 0."""
        self._aim(camera)
        half = self._scene.camera[0].frustum_top
        images = []
        for (u, v, h), size in zip(boxes, sizes, strict=True):
            if size == 0:
                images.append(np.zeros((0, 0, 3), np.uint8))
                continue
            u, v = (-u, -v) if camera in self._turned else (u, v)
            for eye in self._scene.camera:
                eye.frustum_center, eye.frustum_width = u * half, h * half
                eye.frustum_bottom, eye.frustum_top = (-v - h) * half, (-v + h) * half
            images.append(self._upright(self._draw(size, size), camera))
        return images

    @property
    def is_open(self) -> bool:
        """Whether it holds a GL context."""
        return self._buffers.is_open

    def close(self) -> None:
        """Free the GL context; the renderer can be used again and makes a new one."""
        self._buffers.free()

    def _aim(self, camera: str) -> None:
        self._camera.fixedcamid = self.model.camera(self.cameras[camera]).id
        data = self._state()
        mujoco.mjv_updateScene(
            self.model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        for thing in self.decor:
            geom = self._scene.geoms[self._scene.ngeom]
            place, axes = np.array(thing.place), np.eye(3).ravel()
            if thing.on is not None:
                axes = data.geom_xmat[thing.on]
                place = data.geom_xpos[thing.on] + axes.reshape(3, 3) @ place
            colour = np.array([*thing.colour, 1], dtype=np.float32)
            mujoco.mjv_initGeom(geom, thing.shape, np.array(thing.size), place, axes, colour)
            self._scene.ngeom += 1

    def _upright(self, image: np.ndarray, camera: str) -> np.ndarray:
        return image[::-1, ::-1] if camera in self._turned else image

    def _draw(self, width: int, height: int) -> np.ndarray:
        """The scene as it is aimed; a buffer of the very size is cleared and resolved fastest."""
        buffer = self._buffers.get(width, height)
        rect = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rect, self._scene, buffer)
        image = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, rect, buffer)
        return image[::-1]


class Buffers:
    """A GL context and, in it, what is drawn into: reading resolves the whole of a buffer, so each size has its own."""

    _abandoned: ClassVar[deque["Buffers"]] = deque()  # of renderers that were dropped unclosed, to be freed

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self._context: GLContext | None = None
        self._of_size: dict[tuple[int, int], mujoco.MjrContext] = {}

    @property
    def is_open(self) -> bool:
        """Whether there is a context."""
        return self._context is not None

    def get(self, width: int, height: int) -> mujoco.MjrContext:
        """Make the context current, with a buffer of exactly width x height to draw into."""
        while self._abandoned:
            self._abandoned.popleft().free()
        if self._context is None:
            self._context = GLContext(width, height)
            atexit.register(self.free)  # only now: it must come before MuJoCo's own, which ends the display
        self._context.make_current()
        if (width, height) not in self._of_size:
            self.model.vis.global_.offwidth, self.model.vis.global_.offheight = width, height
            self._of_size[width, height] = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        buffer = self._of_size[width, height]
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, buffer)
        return buffer

    def abandon(self) -> None:
        """Have it freed before the next picture: a garbage collection may come amidst another renderer's."""
        self._abandoned.append(self)

    def free(self) -> None:
        """Give everything back; objects left to chance would be freed in another renderer's context."""
        if self._context is not None:
            self._context.make_current()
            for buffer in self._of_size.values():
                buffer.free()
            self._of_size.clear()
            self._context.free()
            self._context = None
            atexit.unregister(self.free)
