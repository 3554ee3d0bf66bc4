"""A scene: the MuJoCo model and state of one environment behind named measurements."""

from pathlib import Path

import mujoco
import numpy as np

from mrvlm_sim.sim.arm import MAX_OPENING, PANDA_XML, Arm
from mrvlm_sim.sim.card import EnvironmentCard

TABLE_XML = Path(__file__).with_name("table.xml")  # what scenes have in common; they include it
STORE = np.array([-0.6, 0.0, -0.38])  # where unused bodies wait, on the floor behind the table
MOVING_PART = 0.6  # of a control step; in the rest the arm catches up with its target
GRIP_SECONDS = 0.4  # from closing the gripper to what it holds being at rest
FINGERS = ("left_finger", "right_finger")


class Scene:
    """Model, state and arm; positions are in metres in the world, whose origin is the arm's base."""

    def __init__(self, folder: Path, card: EnvironmentCard) -> None:
        xml = (folder / "scene.xml").read_text(encoding="utf-8")
        shared = {path.name: path.read_bytes() for path in (PANDA_XML, TABLE_XML)}
        pictures = {path.name: path.read_bytes() for path in folder.glob("*.png")}
        self.model = mujoco.MjModel.from_xml_string(xml, shared | pictures)
        self.data = mujoco.MjData(self.model)
        self.arm = Arm(self.model, card.action, card.workspace)
        self.substeps = round(1 / card.control_hz / self.model.opt.timestep)
        self.fingers = [self.model.geom(name).id for name in FINGERS]

    def reset(self, fingertips: np.ndarray, opening: float = MAX_OPENING) -> None:
        """Everything at rest, the fingertips at `fingertips` (3,), `opening` metres apart.

        The task then places its bodies.
        """
        mujoco.mj_resetData(self.model, self.data)
        self.arm.reset(self.data, fingertips, opening)

    def grip(self) -> None:
        """Close the gripper on what was placed between the fingertips, and let it settle; time then begins at 0."""
        self.arm.close(self.data)
        for _ in range(round(GRIP_SECONDS / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)
        self.data.time = 0.0

    def forward(self) -> None:
        """Bring every measurement up to date after bodies were placed."""
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: np.ndarray) -> None:
        """One control step: the joints move straight to the target that `action` sets, then settle there."""
        data = self.data
        start = self.arm.joint_target
        end = self.arm.command(data, action)
        for i in range(1, self.substeps + 1):
            data.ctrl[self.arm.actuator_index] = start + (end - start) * min(1.0, i / (MOVING_PART * self.substeps))
            mujoco.mj_step(self.model, data)
        self.update_poses()  # a step leaves them where they were at its beginning

    def update_poses(self) -> None:
        """Bring bodies and cameras to where the joints now put them."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    # -- placing ------------------------------------------------------------------------------------------------

    def place_object(self, name: str, position: np.ndarray, yaw: float) -> None:
        """Put a free body at rest at `position` (3,), turned by `yaw` radians."""
        start = self.model.joint(name).qposadr[0]
        self.data.qpos[start : start + 7] = [*position, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]

    def store_object(self, name: str, slot: int) -> None:
        """Put a free body away, out of every camera's view."""
        self.place_object(name, STORE + np.array([0, 0.1 * slot, 0]), 0.0)

    def place_fixture(self, name: str, position: np.ndarray, yaw: float | None = None) -> None:
        """Put a fixed body at `position` (3,) in its parent, turned by `yaw` radians if given."""
        self.model.body(name).pos[:] = position
        if yaw is not None:
            self.model.body(name).quat[:] = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]

    def place_mocap(self, name: str, position: np.ndarray) -> None:
        """Put a mocap body, which moves by itself, at `position` (3,); restored states have it in its place."""
        self.data.mocap_pos[self.model.body(name).mocapid[0]] = position

    def resize_cube(self, name: str, half_size: float) -> None:
        """Make the free cube `name` so large (half its side, in metres), of the same density; its place stays."""
        model, geom, body = self.model, self.model.geom(name), self.model.body(name)
        ratio = half_size / geom.size[0]
        if ratio == 1:
            return
        geom.size[:] = half_size
        model.geom_rbound[geom.id] *= ratio
        for bounds in (model.geom_aabb[geom.id], model.bvh_aabb[model.body_bvhadr[body.id]]):
            bounds[3:] = half_size
        body.mass[:] *= ratio**3
        body.inertia[:] *= ratio**5
        mujoco.mj_setConst(model, mujoco.MjData(model))

    def paint(self, name: str, rgb: tuple[float, float, float]) -> None:
        """Colour the geom `name`."""
        self.model.geom(name).rgba[:3] = rgb

    # -- measuring ----------------------------------------------------------------------------------------------

    def fingertips(self) -> np.ndarray:
        return self.arm.position(self.data)

    def position(self, body: str) -> np.ndarray:
        return self.data.body(body).xpos.copy()

    def yaw(self, body: str) -> float:
        rotation = self.data.body(body).xmat.reshape(3, 3)
        return float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def speed(self, body: str) -> float:
        """Linear speed of a free body in metres per second."""
        start = self.model.joint(body).dofadr[0]
        return float(np.linalg.norm(self.data.qvel[start : start + 3]))

    def fingers_touching(self, geom: str) -> int:
        """How many of the two fingers touch `geom`."""
        wanted = self.model.geom(geom).id
        pairs = self.data.contact.geom
        with_geom = pairs[(pairs == wanted).any(axis=1)]
        return sum(bool((with_geom == finger).any()) for finger in self.fingers)

    def proprioception(self) -> np.ndarray:
        """float32 (7,): fingertips x, y, z; cos and sin of yaw; opening and commanded opening (metres)."""
        arm, yaw = self.arm, self.arm.heading(self.data)
        opening = arm.finger_opening(self.data)
        return np.array([*self.fingertips(), np.cos(yaw), np.sin(yaw), opening, arm.opening], dtype=np.float32)

    def state_is_finite(self) -> bool:
        return bool(np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all())
