"""Off-screen cameras with both sources of views: cut from the sensor frame, or rendered level by level.

`Renderer.views` draws every box through its own off-axis frustum.
"""

import sys
from collections.abc import Sequence

import mujoco
import numpy as np
from mujoco.gl_context import GLContext


class Renderer:
    """Renders any camera of one model; images are uint8 (height, width, 3), upper row first."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self._context: GLContext | None = None
        self._buffers: dict[tuple[int, int], mujoco.MjrContext] = {}  # reading resolves the whole of one, so: no larger
        self._option = mujoco.MjvOption()
        self._option.sitegroup[:] = 0
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def frame(self, data: mujoco.MjData, camera: str, size: int) -> np.ndarray:
        """The whole sensor frame, uint8 (size, size, 3)."""
        return self.views(data, camera, np.array([[0.0, 0.0, 1.0]]), (size,))[0]

    def picture(self, data: mujoco.MjData, camera: str, width: int, height: int) -> np.ndarray:
        """A plain rectangular picture, uint8 (height, width, 3)."""
        self._aim(data, camera)
        return self._draw(width, height)

    def views(self, data: mujoco.MjData, camera: str, boxes: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
        """One square image per box (u, v, h) of the frame, each `sizes[i]` pixels wide."""
        self._aim(data, camera)
        half = self._scene.camera[0].frustum_top
        images = []
        for (u, v, h), size in zip(boxes, sizes, strict=True):
            for eye in self._scene.camera:
                eye.frustum_center, eye.frustum_width = u * half, h * half
                eye.frustum_bottom, eye.frustum_top = (-v - h) * half, (-v + h) * half
            images.append(self._draw(size, size))
        return images

    def close(self) -> None:
        """Free the GL context; the renderer can be used again and makes a new one."""
        if self._context is not None:
            self._context.make_current()
            for buffer in self._buffers.values():
                buffer.free()
            self._buffers.clear()
            self._context.free()
            self._context = None

    def __del__(self) -> None:
        # Left to chance, OpenGL objects would be freed in whatever context is current then: another renderer's.
        if not sys.is_finalizing():
            self.close()

    def _aim(self, data: mujoco.MjData, camera: str) -> None:
        self._camera.fixedcamid = self.model.camera(camera).id
        mujoco.mjv_updateScene(
            self.model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )

    def _prepare(self, width: int, height: int) -> None:
        """Make this renderer's context current, with a buffer of exactly width x height."""
        if self._context is None:
            self._context = GLContext(width, height)
        self._context.make_current()
        if (width, height) not in self._buffers:
            self.model.vis.global_.offwidth, self.model.vis.global_.offheight = width, height
            self._buffers[width, height] = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._gl = self._buffers[width, height]
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._gl)

    def _draw(self, width: int, height: int) -> np.ndarray:
        """The scene as it is aimed; a buffer of the very size is cleared and resolved fastest."""
        self._prepare(width, height)
        rect = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rect, self._scene, self._gl)
        image = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, rect, self._gl)
        return image[::-1]
