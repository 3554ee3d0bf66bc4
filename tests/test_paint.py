"""The table in tiles, and attacks that paint it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import PYRAMID

from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import _prepared, run_episode
from mrvlm_sim.evaluation.robustness import attack_conditions
from mrvlm_sim.metrics.attacks import Threat, Victim
from mrvlm_sim.metrics.attacks.base import Moment, tensors
from mrvlm_sim.metrics.attacks.objectives import Deviation
from mrvlm_sim.metrics.attacks.paint import Paint
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.tiles import TileMap, frame_of_tiles, tile_map, tile_places

pytestmark = pytest.mark.slow

WIDTH, SIZE = 0.05, 128


@pytest.fixture
def scene(env: ManipulationEnv) -> ManipulationEnv:
    env.reset(seed=3)
    return env


def table_colour(env: ManipulationEnv) -> np.ndarray:
    return env.model.geom("table").rgba[:3]


class TestTiles:
    def test_they_cover_the_table(self, scene: ManipulationEnv) -> None:
        places, table = tile_places(scene.model, WIDTH), scene.model.geom("table")
        assert len(places) == round(4 * table.size[0] * table.size[1] / WIDTH**2)
        assert np.allclose(places[:, :2].mean(0), table.pos[:2])

    def test_in_the_tables_own_colour_nothing_is_seen_of_them(self, scene: ManipulationEnv) -> None:
        clean = scene.renderer.frame("wrist", SIZE)
        own = np.tile(table_colour(scene), (len(tile_places(scene.model, WIDTH)), 1))
        tiled = frame_of_tiles(scene, "wrist", SIZE, WIDTH, own)
        assert (clean != tiled).mean() < 0.002
        assert (scene.renderer.frame("wrist", SIZE) == clean).all(), "and nothing is left of them"

    @pytest.mark.parametrize("camera", ["wrist", "scene"])
    def test_the_map_says_what_paint_does(self, scene: ManipulationEnv, camera: str) -> None:
        found = tile_map(scene, camera, SIZE, WIDTH)
        assert (found.tile >= 0).mean() > 0.1
        paint = np.random.default_rng(0).uniform(-0.15, 0.15, (len(tile_places(scene.model, WIDTH)), 3))
        clean = scene.renderer.frame(camera, SIZE).astype(float)
        painted = frame_of_tiles(scene, camera, SIZE, WIDTH, table_colour(scene) + paint)
        wrong = np.abs(clean + 255 * found.spread(paint) - painted).max(-1) > 3
        assert wrong.mean() < 0.2, "only where tiles meet within a pixel"
        untouched = found.tile < 0
        assert np.abs(painted - clean)[untouched].max(-1).mean() < 1

    @given(st.integers(0, 2**32 - 1))
    def test_gathering_is_the_transpose_of_spreading(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        tile = rng.integers(-1, 5, (9, 9)).astype(np.int16)
        found = TileMap(tile, np.where(tile[..., None] >= 0, rng.random((9, 9, 3)), 0).astype(np.float32))
        colours, slopes = rng.normal(size=(5, 3)), rng.normal(size=(9, 9, 3))
        assert (found.spread(colours) * slopes).sum() == pytest.approx(
            (colours * found.gather(slopes, 5)).sum(), abs=1e-4
        )


class TestPaint:
    def deviation(self, policy: TrainedPolicy, env: ManipulationEnv, paint: np.ndarray) -> float:
        """Of the actions, when the table is painted, mean over other episodes than those of `prepare`."""
        found = []
        for seed in range(100, 104):
            observation, _ = env.reset(seed=seed)
            clean = {"wrist": env.renderer.frame("wrist", SIZE)}
            painted = {"wrist": frame_of_tiles(env, "wrist", SIZE, WIDTH, np.clip(table_colour(env) + paint, 0, 1))}
            objective, origins = Deviation(Victim(policy, {"wrist": PYRAMID})), {"wrist": PYRAMID.centred()[None]}
            objective.begin(tensors(clean), origins, observation)
            found.append(float(objective.loss(tensors(painted), origins, observation)))
        return float(np.mean(found))

    def test_it_does_more_than_random_paint_on_other_episodes(self, tiny: TrainedPolicy, env: ManipulationEnv) -> None:
        eps = 32 / 255
        attack = Paint(Threat(eps, 4), Victim(tiny, {"wrist": PYRAMID}, 4, env), np.random.default_rng(0))
        moments = []
        for seed in range(6):
            observation, _ = env.reset(seed=seed)
            moments.append(Moment({"wrist": env.renderer.frame("wrist", SIZE)}, observation, attack.note(env)))
        attack.prepare(moments)
        assert np.abs(attack.paint).max() <= eps
        paint = np.zeros((len(tile_places(env.model, WIDTH)), 3))
        paint[: len(attack.paint)] = attack.paint
        noise = [
            self.deviation(tiny, env, eps * np.random.default_rng(s).choice([-1.0, 1.0], paint.shape)) for s in range(3)
        ]
        assert self.deviation(tiny, env, paint) > 1.5 * np.mean(noise)

    def test_in_an_episode_it_stays_within_the_bound(
        self, tiny: TrainedPolicy, brief_env: ManipulationEnv, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mrvlm_sim.evaluation.episode.PREPARED_ON", 2)
        condition = Condition("paint", "sensor", "paint", 24 / 255, 1)
        first = run_episode(brief_env, "pick_place", tiny, "t", condition, 0, 0)
        _prepared.cache_clear()
        again = run_episode(brief_env, "pick_place", tiny, "t", condition, 0, 0)
        clean = run_episode(brief_env, "pick_place", tiny, "t", Condition("clean", "sensor"), 0, 0)
        assert first.error == ""
        assert 8 <= first.largest_change <= 24
        assert first.end_hash == again.end_hash != clean.end_hash
        assert brief_env.renderer.decor == []

    def test_regions_of_the_frame_are_not_its(self) -> None:
        with pytest.raises(UserError, match="paint changes the table, not a region of the frame; leave out patch"):
            Condition("p", "sensor", "paint", 0.5, region="patch")
        found = attack_conditions(["paint", "pgd"], [0.5], 1, 1, regions=["frame", "patch"])
        assert [c.name for c in found[1:]] == ["paint 127.5/255", "pgd 127.5/255", "pgd patch 127.5/255"]

    def test_without_a_table_there_is_nothing_to_paint(self, tiny: TrainedPolicy) -> None:
        attack = Paint(Threat(0.5), Victim(tiny, {"wrist": PYRAMID}), np.random.default_rng(0))
        with pytest.raises(UserError, match="paints the table of the suite's own environments"):
            attack({"wrist": np.zeros((SIZE, SIZE, 3), np.uint8)}, {})
