"""Where points of the world appear to a camera, from its true pose and field of view."""

import mujoco
import numpy as np

from mrvlm_sim.sim.scene import Scene

ROBOT_GROUP = 2  # of geoms, in panda.xml


def in_image(scene: Scene, camera: str, points: np.ndarray) -> np.ndarray:
    """Frame coordinates (..., 2) of points (..., 3): u right, v down, the frame from -1 to 1; NaN behind the camera."""
    x, y, depth = np.moveaxis(_from_camera(scene, camera, points), -1, 0)
    half = np.tan(np.radians(scene.model.camera(camera).fovy[0]) / 2)
    ahead = np.where(depth > 0, depth, np.nan)
    return np.stack([x, -y], axis=-1) / (half * ahead)[..., None]


def landmark_places(scene: Scene, camera: str, landmarks: np.ndarray) -> np.ndarray:
    """Where landmarks (K, 3), which count from the fingertips, appear: float32 (K, 2), NaN where there is none."""
    return in_image(scene, camera, landmarks + scene.fingertips()).astype(np.float32)


def eccentricity(scene: Scene, camera: str, points: np.ndarray) -> np.ndarray:
    """Degrees of visual angle (...) between points (..., 3) and the camera's optical axis."""
    x, y, depth = np.moveaxis(_from_camera(scene, camera, points), -1, 0)
    return np.degrees(np.arctan2(np.hypot(x, y), depth))


def behind_robot(scene: Scene, camera: str, points: np.ndarray) -> bool:
    """Whether the robot hides any of the points (n, 3) from the camera."""
    eye, group, geom = scene.data.camera(camera).xpos, np.zeros(6, np.uint8), np.zeros(1, np.int32)
    group[ROBOT_GROUP] = 1
    model, data = scene.model, scene.data
    return any(0 <= mujoco.mj_ray(model, data, eye, point - eye, group, 1, -1, geom) < 1 for point in points)


def _from_camera(scene: Scene, camera: str, points: np.ndarray) -> np.ndarray:
    """The same points (..., 3) as right, up and ahead of the camera, in metres."""
    view = scene.data.camera(camera)
    return (points - view.xpos) @ view.xmat.reshape(3, 3) * np.array([1.0, 1.0, -1.0])
