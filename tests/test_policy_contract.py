"""What the suite holds policies to, and how a trained one behaves."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BRIEF_STEPS
from tiny import PYRAMID

from mrvlm_sim.agents.policy import EpisodeStart, Requirements, batch_of_one, check_compatible
from mrvlm_sim.agents.trained import CARD, WEIGHTS, TrainedPolicy, load_trained, save_trained
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord, run_episode
from mrvlm_sim.models import encode_words
from mrvlm_sim.seeding import generator
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import Observation
from mrvlm_sim.wrappers import MultiResolutionTokens


def episode_start(env: ManipulationEnv, instruction: str = "put it there", seed: int = 0) -> EpisodeStart:
    return EpisodeStart(instruction, np.random.default_rng(seed), env.action_size, env)


def looks(env: ManipulationEnv, count: int, source: str = "nested") -> list[Observation]:
    """Observations of several episodes, as a batch of one each."""
    wrapped = MultiResolutionTokens(env, {"wrist": PYRAMID}, source, jitter_rng=np.random.default_rng(0))  # type: ignore[arg-type]
    return [batch_of_one(wrapped.reset(seed=seed)[0]) for seed in range(count)]


def stacked(observations: Sequence[Observation]) -> dict[str, Any]:
    names = [name for name in observations[0] if name != "instruction"]
    batch: dict[str, Any] = {name: np.concatenate([o[name] for o in observations]) for name in names}
    return batch | {"instruction": [o["instruction"][0] for o in observations]}


class TestTrainedPolicy:
    def test_saved_and_loaded_it_acts_the_same(self, tiny: TrainedPolicy, tmp_path: Path, env: ManipulationEnv) -> None:
        made_by = {"minutes": 2.5, "device": "cpu", "versions": {"torch": "2"}}
        save_trained(tmp_path / "again", tiny.card, tiny.network, **made_by)
        again = load_trained(tmp_path / "again")
        assert again.card.weights is not None
        assert again.card.weights.minutes == 2.5
        assert again.card.model_dump(exclude={"weights"}) == tiny.card.model_dump(exclude={"weights"})
        for observation in looks(env, 3):
            words = encode_words(observation["instruction"])
            assert (again.decide(observation, words) == tiny.decide(observation, words)).all()
        assert {entry.name for entry in (tmp_path / "again").iterdir()} == {CARD, WEIGHTS, "README.md"}

    def test_cards_can_be_compared_after_use(self, tiny: TrainedPolicy, tiny_folder: Path) -> None:
        assert load_trained(tiny_folder).card == tiny.card

    def test_loading_never_unpickles(self, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbidden(*_: object, **__: object) -> None:
            raise AssertionError("unpickles")

        for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
            monkeypatch.setattr(module, name, forbidden)
        load_trained(tiny_folder)

    def test_it_looks_once_and_acts_on_it_execute_times(
        self, tiny: TrainedPolicy, brief_env: ManipulationEnv, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decided: list[np.ndarray] = []
        decide = tiny.decide

        def counted(*arguments: Any) -> np.ndarray:
            decided.append(decide(*arguments))
            return decided[-1]

        monkeypatch.setattr(tiny, "decide", counted)
        record = run_episode(brief_env, "pick_place", tiny, "tiny", Condition(), 0, 0)
        assert (record.error, record.steps, tiny.card.execute) == ("", BRIEF_STEPS, 4)
        assert len(decided) == 3
        assert all(chunk.shape == (1, tiny.card.network.chunk, 5) for chunk in decided)
        assert (decided[0] != decided[1]).any()

    def test_it_carries_out_its_chunk_in_order(self, tiny: TrainedPolicy, env: ManipulationEnv) -> None:
        first, second = looks(env, 2)
        start = episode_start(env, first["instruction"][0])
        tiny.reset([start])
        words = encode_words(first["instruction"])
        acted = [tiny.act(first), tiny.act(second), tiny.act(second), tiny.act(second), tiny.act(second)]
        chunk, next_chunk = tiny.decide(first, words), tiny.decide(second, words)
        assert (np.stack(acted[:4], axis=1) == chunk[:, :4]).all()
        assert (acted[4] == next_chunk[:, 0]).all()
        tiny.reset([start])
        assert (tiny.act(first) == chunk[:, 0]).all(), "a new episode begins with a new look"

    def test_a_batch_acts_as_its_episodes_do_alone(self, tiny: TrainedPolicy, env: ManipulationEnv) -> None:
        observations = looks(env, 2)
        starts = [episode_start(env, o["instruction"][0]) for o in observations]
        tiny.reset(starts)
        together = np.stack([tiny.act(stacked(observations)) for _ in range(4)], axis=1)
        assert together.shape == (2, 4, 5)
        assert np.abs(together[0] - together[1]).max() > 1e-3
        for index, (observation, start) in enumerate(zip(observations, starts, strict=True)):
            tiny.reset([start])
            alone = np.stack([tiny.act(observation)[0] for _ in range(4)])
            assert together[index] == pytest.approx(alone, abs=1e-4)

    def test_the_differentiable_way_gives_the_same_chunks(self, tiny: TrainedPolicy, env: ManipulationEnv) -> None:
        jitter = np.random.default_rng(3)
        wrapped = MultiResolutionTokens(env, {"wrist": PYRAMID}, "sensor", jitter_rng=jitter)
        for seed in range(3):
            observation, _ = wrapped.reset(seed=seed)
            batch = batch_of_one(observation)
            decided = tiny.decide(batch, encode_words(batch["instruction"]))
            frame = torch.from_numpy(env.renderer.frame("wrist", PYRAMID.frame_size) / 255.0).float()
            origins = {"wrist": wrapped.origins["wrist"][None]}
            frames = {"wrist": frame.requires_grad_()}
            chunks = tiny.action_chunks(frames, origins, observation)
            assert chunks.shape == (1, *decided.shape[1:])
            assert chunks.detach().clamp(-1, 1).numpy() == pytest.approx(decided, abs=5e-3)
            (gradient,) = torch.autograd.grad(chunks.square().sum(), [frame])
            assert gradient.abs().max() > 0


class Still:
    """Does nothing; what it asks for is set by each test."""

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        self.batch = len(episodes)

    def act(self, observations: Any) -> Any:
        return np.zeros((self.batch, 5))


class TestCompatibility:
    @pytest.mark.parametrize(
        ("requirements", "named"),
        [
            (Requirements({"wirst": PYRAMID}), ["Still", "mrvlm_sim/PickPlace-v0", "'wirst'", "'wrist'", "scene"]),
            (Requirements(action_size=7), ["Still", "7", "mrvlm_sim/PickPlace-v0", "5"]),
            (Requirements({"wrist": (4, 4, 4)}), ["Still", "'wrist'", "(4, 4, 4)", "Pyramid"]),  # type: ignore[dict-item]
            (Requirements(frame_interval=0), ["Still", "frame_interval", "0", "at least 1"]),
            ({"cameras": {}}, ["Still", "requirements", "Requirements", "{'cameras': {}}"]),
            (Requirements(["wrist"]), ["Still", "cameras", "['wrist']"]),  # type: ignore[arg-type]
        ],
    )
    def test_a_mismatch_names_both_sides(self, requirements: Any, named: list[str], env: ManipulationEnv) -> None:
        policy = Still()
        policy.requirements = requirements  # type: ignore[attr-defined]
        with pytest.raises(UserError) as error:
            check_compatible(policy, env)
        assert [word for word in named if word not in str(error.value)] == []

    def test_requirements_that_cannot_be_told_are_refused(self, env: ManipulationEnv) -> None:
        class Undecided(Still):
            @property
            def requirements(self) -> Requirements:
                raise RuntimeError("ask me later")

        with pytest.raises(UserError, match=r"Undecided\.requirements.*ask me later"):
            check_compatible(Undecided(), env)

    def test_what_cannot_act_is_refused(self, env: ManipulationEnv) -> None:
        with pytest.raises(UserError, match="reset and act; object has no reset"):
            check_compatible(object(), env)  # type: ignore[arg-type]

    def test_without_requirements_it_gets_body_and_instruction_only(self, brief_env: ManipulationEnv) -> None:
        seen: set[str] = set()

        class Curious(Still):
            def act(self, observations: Any) -> Any:
                seen.update(observations)
                return super().act(observations)

        assert run(Curious(), brief_env).error == ""
        assert seen == {"proprio", "instruction"}

    def test_it_is_told_the_instruction_as_text(self, brief_env: ManipulationEnv) -> None:
        told: list[str] = []

        class Listener(Still):
            def reset(self, episodes: Sequence[EpisodeStart]) -> None:
                super().reset(episodes)
                told.append(episodes[0].instruction)

            def act(self, observations: Any) -> Any:
                told.extend(observations["instruction"])
                return super().act(observations)

        record = run(Listener(), brief_env)
        assert set(told) == {record.instruction}
        assert record.instruction == record.instruction.strip("\0")


def run(policy: Any, env: ManipulationEnv) -> EpisodeRecord:
    return run_episode(env, "pick_place", policy, "mine", Condition(), 0, 0)


def raising() -> Any:
    raise RuntimeError("out of ideas")


def raising_an_error_of_the_suite() -> Any:
    raise UserError("no card at goal.toml")


def leaving() -> Any:
    raise SystemExit("no licence")


MISBEHAVIOUR: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "no batch axis": (lambda: np.zeros(5), ["ValueError", "shape (1, 5)", "returned (5,)"]),
    "too few numbers": (lambda: np.zeros((1, 4)), ["shape (1, 5)", "returned (1, 4)"]),
    "another batch": (lambda: np.zeros((2, 5)), ["shape (1, 5)", "returned (2, 5)"]),
    "nothing": (lambda: None, ["shape (1, 5)", "returned ()"]),
    "not a number": (lambda: np.array([[0, 0, np.nan, 0, 0]]), ["finite", "nan"]),
    "infinite": (lambda: np.full((1, 5), np.inf), ["finite", "inf"]),
    "text": (lambda: [["a"] * 5], ["finite numbers", "'a'"]),
    "beyond the range": (lambda: np.array([[0, 1.5, 0, 0, 0]]), ["[-1, 1]", "1.5"]),
    "beyond the range, below": (lambda: np.full((1, 5), -1.01), ["[-1, 1]", "-1.01"]),
    "raises": (raising, ["RuntimeError", "out of ideas"]),
    "raises an error of the suite": (raising_an_error_of_the_suite, ["UserError", "no card at goal.toml"]),
    "leaves the process": (leaving, ["SystemExit", "no licence"]),
}


class TestMisbehaviour:
    @pytest.mark.parametrize("fault", MISBEHAVIOUR)
    def test_it_becomes_a_failed_episode_that_says_why(self, fault: str, brief_env: ManipulationEnv) -> None:
        answer, named = MISBEHAVIOUR[fault]

        class Faulty(Still):
            steps = 0

            def act(self, observations: Any) -> Any:
                self.steps += 1
                return answer() if self.steps == 4 else super().act(observations)

        record = run(Faulty(), brief_env)
        assert [word for word in named if word not in record.error] == []
        assert (record.success, record.steps) == (False, 3)
        assert record.start_hash
        assert record.instruction

    def test_a_fault_in_reset_too(self, brief_env: ManipulationEnv) -> None:
        class Faulty(Still):
            def reset(self, episodes: Sequence[EpisodeStart]) -> None:
                raise KeyError("no such goal")

        record = run(Faulty(), brief_env)
        assert "no such goal" in record.error
        assert (record.success, record.steps) == (False, 0)

    def test_the_next_episode_is_not_touched(self, brief_env: ManipulationEnv) -> None:
        class Faulty(Still):
            def act(self, observations: Any) -> Any:
                raise ValueError("now")

        untouched = run(Still(), brief_env)
        run(Faulty(), brief_env)
        again = run(Still(), brief_env)
        assert (again.end_hash, again.error) == (untouched.end_hash, "")

    @pytest.mark.parametrize("edge", [1.0, -1.0, 1 + 5e-7])
    def test_the_edge_of_the_range_is_allowed(self, edge: float, brief_env: ManipulationEnv) -> None:
        class Edge(Still):
            def act(self, observations: Any) -> Any:
                return torch.full((1, 5), edge, dtype=torch.float64)

        record = run(Edge(), brief_env)
        assert (record.error, record.steps) == ("", BRIEF_STEPS)


def test_a_policys_randomness_is_named_by_its_episode(brief_env: ManipulationEnv) -> None:
    drawn: list[float] = []

    class Drawing(Still):
        def reset(self, episodes: Sequence[EpisodeStart]) -> None:
            super().reset(episodes)
            drawn.append(episodes[0].rng.random())

    for seed, episode in ((0, 0), (0, 1), (1, 0), (0, 0)):
        run_episode(brief_env, "pick_place", Drawing(), "mine", Condition(), seed, episode)
    assert drawn[0] == drawn[3] == generator(0, "pick_place", 0, "policy").random()
    assert len(set(drawn)) == 3
