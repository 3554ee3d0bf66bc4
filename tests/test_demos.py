"""Demonstrations: what is recorded, kept in files, and refused."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import decode_instruction, simulator_state
from mrvlm_sim.training.demos import Demonstrations, record

pytestmark = pytest.mark.slow


class TestDemonstrations:
    def test_what_is_recorded(self, demos: Demonstrations, env: ManipulationEnv) -> None:
        frames = len(demos.states)
        assert demos.states.dtype == np.float64
        assert {len(part) for part in (demos.proprio, demos.actions, demos.landmarks, demos.episode)} == {frames}
        assert {len(part) for part in (demos.reset_seeds, demos.instructions, demos.success)} == {3}
        assert demos.success.all()
        assert (np.unique(demos.episode) == [0, 1, 2]).all()
        assert np.abs(demos.actions).max() <= 1
        for episode in range(3):
            observation, _ = env.reset(seed=int(demos.reset_seeds[episode]))
            first = np.flatnonzero(demos.episode == episode)[0]
            assert (simulator_state(env) == demos.states[first]).all()
            assert decode_instruction(observation["instruction"]) == demos.instructions[episode]
            assert np.array_equal(env.task.landmarks(env.scene), demos.landmarks[first], equal_nan=True)

    def test_an_episode_does_not_depend_on_how_many_are_recorded(self, demos: Demonstrations) -> None:
        fewer = record("pick_place", 1, seed=1)
        assert (fewer.states == demos.states[demos.episode == 0]).all()
        assert (record("pick_place", 1, seed=2).reset_seeds != fewer.reset_seeds).all()

    def test_pushes_lead_off_the_experts_way(self, demos: Demonstrations, env: ManipulationEnv) -> None:
        pushed = []
        for episode, seed in enumerate(demos.reset_seeds.tolist()):
            env.reset(seed=seed)
            recorded = demos.states[demos.episode == episode]
            for _ in range(len(recorded) - 1):
                env.step(env.task.expert_action(env.scene))
            pushed.append((simulator_state(env) != recorded[-1]).any())
        assert any(pushed)

    def test_save_and_load(self, demos: Demonstrations, tmp_path: Path) -> None:
        path = tmp_path / "new" / "demos.npz"
        demos.save(path)
        again = Demonstrations.load(path)
        for field in fields(Demonstrations):
            ours, theirs = np.asarray(getattr(demos, field.name)), np.asarray(getattr(again, field.name))
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")
        assert [entry.name for entry in path.parent.iterdir()] == ["demos.npz"]

    @pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
    def test_a_truncated_file_is_refused(self, demos: Demonstrations, tmp_path: Path, kept: float) -> None:
        path = tmp_path / "demos.npz"
        demos.save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(UserError, match=r"demos\.npz is not a complete file.*record it again"):
            Demonstrations.load(path)

    def test_a_damaged_file_is_refused(self, demos: Demonstrations, tmp_path: Path) -> None:
        path = tmp_path / "demos.npz"
        demos.save(path)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 200] = bytes(200)
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"demos\.npz is not a complete file"):
            Demonstrations.load(path)

    def test_what_is_not_there_or_is_another_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no demonstrations at .*demos\.npz"):
            Demonstrations.load(tmp_path / "demos.npz")
        np.savez(tmp_path / "demos.npz", states=np.zeros(3))
        with pytest.raises(UserError, match="not a complete file"):
            Demonstrations.load(tmp_path / "demos.npz")
        with pytest.raises(UserError, match="at least 1, not 0"):
            record("pick_place", 0, seed=0)

    def test_knobs_change_the_words_and_not_the_episodes(self, demos: Demonstrations) -> None:
        told = record("pick_place[paraphrases=true]", 2, seed=1)
        assert (told.states == demos.states[demos.episode < 2]).all()
        assert (told.instructions != demos.instructions[:2]).any()
