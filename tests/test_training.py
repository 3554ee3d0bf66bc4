"""The rendered views of demonstrations, and training that can be stopped and gone on with."""

import os
import signal
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pyramids
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import simulator_state
from mrvlm_sim.tasks import make_task
from mrvlm_sim.training.bc import Cloning, shares
from mrvlm_sim.training.dataset import Dataset, relabel
from mrvlm_sim.training.demos import Demonstrations, record
from mrvlm_sim.training.optimisation import schedule
from mrvlm_sim.training.views import MarginViews, kept_frames, margins, render_views
from mrvlm_sim.vision import Jitter, Pyramid, unpatchify

pytestmark = pytest.mark.slow

SMALL = Pyramid(frame_size=128, patch=8, grids=(4, 4, 4), jitter=Jitter(tremor=0.2, drift=0.1))
UPDATES, STRIDE = 6, 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("views")


@pytest.fixture(scope="module")
def views(demos: Demonstrations, cache: Path) -> MarginViews:
    return render_views(demos, "wrist", SMALL, STRIDE, cache, workers=1)[0]


@pytest.fixture(scope="module")
def dataset(demos: Demonstrations, views: MarginViews) -> Dataset:
    return Dataset(demos, {"wrist": views}, chunk=4, stride=STRIDE, device=torch.device("cpu"))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@pytest.fixture(scope="module")
def lived(demos: Demonstrations, env: ManipulationEnv) -> tuple[Demonstrations, list[np.ndarray]]:
    """Twenty steps as they were lived: states and proprioception, and the frames that the camera showed."""
    observation, _ = env.reset(seed=5)
    states, proprio, frames = [], [], []
    for _ in range(20):
        states.append(simulator_state(env))
        proprio.append(observation["proprio"])
        frames.append(env.renderer.frame("wrist", 128))
        observation, *_ = env.step(env.task.expert_action(env.scene))
    return replace(demos, states=np.array(states), proprio=np.array(proprio)), frames


@pytest.mark.parametrize("moment", [0, 3, 8, 13, 19])
class TestRestore:
    @pytest.fixture(autouse=True)
    def _restored(self, env: ManipulationEnv, lived: tuple, moment: int) -> None:
        env.reset(seed=5)
        lived[0].restore(env, moment)

    def test_it_brings_back_the_state(self, env: ManipulationEnv, lived: tuple, moment: int) -> None:
        assert (simulator_state(env) == lived[0].states[moment]).all()

    def test_it_brings_back_the_frame(self, env: ManipulationEnv, lived: tuple, moment: int) -> None:
        assert psnr(env.renderer.frame("wrist", 128), lived[1][moment]) >= 45

    def test_it_brings_back_the_pose(self, env: ManipulationEnv, lived: tuple, moment: int) -> None:
        assert env.scene.proprioception()[:6] == pytest.approx(lived[0].proprio[moment, :6], abs=1e-5)

    def test_it_brings_back_the_commanded_opening(self, env: ManipulationEnv, lived: tuple, moment: int) -> None:
        assert env.scene.proprioception()[6] == pytest.approx(lived[0].proprio[moment, 6], abs=1e-5)


class TestMarginViews:
    @given(pyramids(), st.integers(0, 2**32 - 1))
    @example(Pyramid(frame_size=28, patch=7, grids=(1, 1), jitter=Jitter(tremor=1.0)), 0)  # an odd view
    def test_margins_cover_every_jitter(self, pyramid: Pyramid, seed: int) -> None:
        assume(all(coarse % fine == 0 for coarse, fine in pairwise(pyramid.factors[1:])))
        offsets = pyramid.jitter.stationary(np.random.default_rng(seed), (50, pyramid.levels, 2))
        extremes = pyramid.jitter.amplitude * np.array([-1, 1])[:, None, None] * np.ones((2, pyramid.levels, 2))
        moved = pyramid.place(np.concatenate([offsets, extremes])) - pyramid.centred()
        steps, rest = np.divmod(moved, np.array(pyramid.factors)[:, None])
        assert (rest == 0).all()
        assert (np.abs(steps) <= np.array(margins(pyramid))[:, None]).all()

    def test_levels_that_move_by_parts_of_a_view_pixel_are_refused(self) -> None:
        """Their views could not be cut from a margin: level 1 moves by 48 sensor pixels, a pixel of level 2 has 18."""
        with pytest.raises(UserError, match="level 2"):
            margins(Pyramid(frame_size=288, patch=1, grids=(4, 3, 4), jitter=Jitter(tremor=1.0)))

    def test_they_show_what_nested_renders(
        self, demos: Demonstrations, views: MarginViews, env: ManipulationEnv
    ) -> None:
        rng, likeness = np.random.default_rng(2), []
        kept = kept_frames(demos, STRIDE)
        indices = rng.choice(len(kept), 12, replace=False)
        frames = kept[indices]
        tokens, boxes, _ = views.look(indices, rng)
        assert (tokens.shape, tokens.dtype) == ((12, 48, 192), np.uint8)
        assert (boxes.shape, boxes.dtype) == ((12, 48, 4), np.float32)
        first = np.cumsum([0, *np.square(SMALL.grids)])[:-1]  # the upper left token of each view
        corners = np.rint((boxes[:, first, :2] - boxes[:, first, 2:3] + 1) * SMALL.frame_size / 2).astype(int)
        assert (SMALL.token_boxes(corners) == boxes).all()
        assert len(np.unique(corners[:, 2], axis=0)) > 6
        for frame, seen, origins in zip(frames, tokens, corners, strict=True):
            env.reset(seed=int(demos.reset_seeds[demos.episode[frame]]))
            demos.restore(env, frame)
            rendered = env.renderer.views("wrist", SMALL.boxes(origins), SMALL.view_sizes)
            for ours, theirs in zip(unpatchify(seen, SMALL), rendered, strict=True):
                likeness.append(psnr(ours, theirs))
        assert min(likeness) >= 30  # rarely, an edge slips by one sample of the rasteriser's grid
        assert np.mean(np.array(likeness) >= 45) >= 0.9
        assert np.mean(np.isinf(likeness)) >= 0.8

    def test_the_cache_is_used_for_the_same_and_only_the_same(
        self, demos: Demonstrations, views: MarginViews, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class NoPool:
            def __init__(self, *_: object, **__: object) -> None:
                raise AssertionError("renders again")

        monkeypatch.setattr("mrvlm_sim.training.pool.ProcessPoolExecutor", NoPool)
        again, _ = render_views(demos, "wrist", SMALL, STRIDE, cache, workers=1)
        assert all((a == b).all() for a, b in zip(again.levels, views.levels, strict=True))
        for other in (
            (demos, "scene", SMALL),
            (demos, "wrist", Pyramid(frame_size=128, patch=8, grids=(4, 4))),
            (replace(demos, states=demos.states + 1e-9), "wrist", SMALL),
        ):
            with pytest.raises(AssertionError, match="renders again"):
                render_views(*other, STRIDE, cache, workers=1)


class TestKeptFrames:
    def test_every_episode_is_thinned_evenly(self, demos: Demonstrations) -> None:
        kept = kept_frames(demos, STRIDE)
        for episode in range(len(demos.reset_seeds)):
            frames = np.flatnonzero(demos.episode == episode)
            steps = np.flatnonzero(np.isin(frames, kept))
            assert steps[0] < STRIDE
            assert (np.diff(steps) == STRIDE).all()
            assert len(frames) - steps[-1] <= STRIDE


class TestDataset:
    def test_a_batch_is_what_was_demonstrated(self, demos: Demonstrations, dataset: Dataset) -> None:
        last = np.flatnonzero(demos.episode == 0)[-1]
        near_end = np.flatnonzero(np.isin(dataset.kept, range(last - 3, last + 1)))[:1]
        frame = dataset.kept[near_end[0]]
        left = last - frame + 1
        batch = dataset.sample(near_end, 5, np.random.default_rng(0))
        assert batch.valid.tolist() == [[step < left for step in range(4)]] * 5
        assert (batch.actions[0, :left].numpy() == demos.actions[frame : last + 1]).all()
        assert (batch.proprio[4].numpy() == demos.proprio[frame]).all()
        assert 0 <= batch.tokens["wrist"].min() < batch.tokens["wrist"].max() <= 1
        assert (batch.boxes["wrist"][0] != batch.boxes["wrist"][1]).any(), "every sample has a jitter of its own"

    def test_what_shows_a_thing_goes_with_its_name(self, dataset: Dataset) -> None:
        """Under another instruction, the tokens that show the named thing are those that show the thing it names."""
        landmarks = dataset.demos.landmarks[dataset.kept].copy()
        shown = dataset.views["wrist"].look(np.arange(len(landmarks)), np.random.default_rng(0)).shown
        before, places = landmarks.copy(), {"wrist": shown}
        relabel(dataset.task, landmarks, places, np.random.default_rng(0))
        renamed = 0
        for scene in range(len(landmarks)):
            kind = np.flatnonzero((before[scene, 2:6] == landmarks[scene, 0]).all(axis=1))
            assert len(kind) >= 1
            assert (shown[scene, 0] == shown[scene, 2 + kind[0]]).all()
            renamed += not np.array_equal(before[scene, 0], landmarks[scene, 0])
        assert renamed > 10

    def test_held_out_episodes_are_whole(self, demos: Demonstrations, views: MarginViews) -> None:
        many = replace(demos, reset_seeds=np.arange(20), instructions=np.repeat(demos.instructions[:1], 20))
        many = replace(many, episode=np.arange(len(demos.states)) * 20 // len(demos.states))
        dataset = Dataset(many, {"wrist": views}, chunk=4, stride=STRIDE, device=torch.device("cpu"))
        seen = many.episode[dataset.kept]
        trained, held_out = set(seen[dataset.train_frames]), set(seen[dataset.check_frames])
        assert trained | held_out == set(range(20))
        assert trained.isdisjoint(held_out)
        assert len(held_out) == 1


def new_trainer(dataset: Dataset, folder: Path, **changes: object) -> Cloning:
    """A trainer of a tiny network; `changes` are made to the recipe."""
    training = {
        "method": "bc", "demonstrations": 3, "demonstration_seed": 1, "updates": UPDATES, "batch": 4,
        "matrix_rate": 2e-3, "learning_rate": 1e-3, "weight_decay": 0.01, "landmark_weight": 1.0, "seed": 0,
    }  # fmt: skip
    network = {
        "fusion": "embedded", "width": 16, "depth": 1, "heads": 2, "chunk": 4, "action_size": 5, "proprio_size": 7,
        "landmarks": dataset.demos.landmarks.shape[1],
    }  # fmt: skip
    card = {
        "summary": "",
        "environments": ["pick_place"],
        "execute": 2,
        "cameras": {"wrist": SMALL},
        "network": network,
    }
    return Cloning(PolicyCard.model_validate(card | {"training": training | changes}), [dataset], folder)


def weights(trainer: Cloning) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def train(dataset: Dataset, folder: Path, stop: int = 0, **changes: object) -> tuple[Cloning, dict]:
    """Train to the end, or until `stop` updates were saved; the figures that were logged, by update."""
    trainer, logged = new_trainer(dataset, folder, **changes), {}

    def log(update: int, figures: dict[str, float]) -> None:
        logged[update] = figures
        if update == stop:
            raise KeyboardInterrupt

    try:
        trainer.run(log, log_every=1, save_every=stop or UPDATES)
    except KeyboardInterrupt:
        assert stop
    return trainer, logged


class TestTrainer:
    def test_it_trains(self, dataset: Dataset, tmp_path: Path) -> None:
        before = weights(new_trainer(dataset, tmp_path / "untrained"))
        trainer, logged = train(dataset, tmp_path)
        assert list(logged) == list(range(1, UPDATES + 1))
        assert all(np.isfinite(list(figures.values())).all() for figures in logged.values())
        assert trainer.update == UPDATES
        after = weights(trainer)
        same = [name for name in before if (before[name] == after[name]).all()]
        assert same == ["proprio_mean", "proprio_std"]

    def test_it_learns(self, dataset: Dataset, tmp_path: Path) -> None:
        _, logged = train(dataset, tmp_path, updates=200, learning_rate=5e-3, matrix_rate=2e-2, batch=16)
        for figure in ("train/action", "train/landmark"):
            losses = [figures[figure] for _, figures in sorted(logged.items())]
            assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:5]), figure

    def test_the_seed_decides(self, dataset: Dataset, tmp_path: Path) -> None:
        one, again, other = (
            weights(train(dataset, tmp_path / name, seed=seed)[0])
            for name, seed in (("one", 0), ("again", 0), ("other", 1))
        )
        assert all((one[name] == again[name]).all() for name in one)
        assert any((one[name] != other[name]).any() for name in one)

    def test_going_on_equals_never_having_stopped(self, dataset: Dataset, tmp_path: Path) -> None:
        whole, figures = train(dataset, tmp_path / "whole")
        train(dataset, tmp_path / "stopped", stop=3)
        resumed, rest = train(dataset, tmp_path / "stopped")
        assert list(rest) == [4, 5, 6]
        assert all(rest[i]["train/action"] == figures[i]["train/action"] for i in rest)
        assert resumed.seconds > 0
        ours, theirs = weights(whole), weights(resumed)
        assert all((ours[name] == theirs[name]).all() for name in ours)
        assert train(dataset, tmp_path / "stopped")[1] == {}, "a finished run has nothing left to do"

    def test_an_interrupt_ends_the_update_saves_and_comes_out(self, dataset: Dataset, tmp_path: Path) -> None:
        whole, _ = train(dataset, tmp_path / "whole")
        trainer, handler = new_trainer(dataset, tmp_path / "stopped"), signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            trainer.run(lambda update, _: os.kill(os.getpid(), signal.SIGINT) if update == 2 else None, log_every=1)
        assert signal.getsignal(signal.SIGINT) is handler
        resumed, rest = train(dataset, tmp_path / "stopped")
        assert list(rest) == [3, 4, 5, 6]
        ours, theirs = weights(whole), weights(resumed)
        assert all((ours[name] == theirs[name]).all() for name in ours)

    @pytest.mark.parametrize("kept", [0.0, 0.0001, 0.01, 0.5, 0.999])
    def test_a_truncated_checkpoint_is_refused(self, dataset: Dataset, tmp_path: Path, kept: float) -> None:
        trainer, _ = train(dataset, tmp_path, stop=3)
        content = trainer.checkpoint.read_bytes()
        trainer.checkpoint.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(UserError, match=r"checkpoint\.pt is truncated or damaged; delete it"):
            new_trainer(dataset, tmp_path)

    def test_a_file_that_is_no_checkpoint_is_refused(self, dataset: Dataset, tmp_path: Path) -> None:
        for content in (b"no checkpoint at all", bytes(300)):
            (tmp_path / "checkpoint.pt").write_bytes(content)
            with pytest.raises(UserError, match="delete it"):
                new_trainer(dataset, tmp_path)

    def test_a_checkpoint_of_another_card_is_refused(self, dataset: Dataset, tmp_path: Path) -> None:
        train(dataset, tmp_path, stop=3)
        with pytest.raises(UserError, match=r"checkpoint\.pt belongs to another card"):
            new_trainer(dataset, tmp_path, learning_rate=2e-3)

    def test_the_learning_rate_rises_and_falls_to_nothing(self) -> None:
        rates = [schedule(done) for done in np.linspace(0, 1, 101)]
        assert max(rates) <= 1.01
        assert 0 < rates[0] < 0.1
        assert rates[-1] == pytest.approx(0, abs=1e-9)
        peak = int(np.argmax(rates))
        assert 0 < peak < 15
        assert all(a <= b for a, b in pairwise(rates[: peak + 1]))
        assert all(a >= b for a, b in pairwise(rates[peak:]))


class TestSeveralEnvironments:
    @pytest.fixture
    def datasets(self, dataset: Dataset, cache: Path) -> list[Dataset]:
        demos = record("reach", 30, seed=1)
        views, _ = render_views(demos, "wrist", SMALL, STRIDE, cache, workers=1)
        return [dataset, Dataset(demos, {"wrist": views}, chunk=4, stride=STRIDE, device=torch.device("cpu"))]

    def test_every_batch_holds_equal_parts_of_each(self, datasets: list[Dataset], tmp_path: Path) -> None:
        card = new_trainer(datasets[0], tmp_path).card
        trainer = Cloning(card, datasets, tmp_path)
        batch = trainer._batch(np.random.default_rng(0))
        assert len(batch.proprio) == 4
        rng = np.random.default_rng(0)
        parts = [d.sample(d.train_frames, 2, rng, some) for d, some in zip(datasets, (1, 0), strict=True)]
        for name in ("proprio", "words", "actions", "valid", "landmarks"):
            both = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(getattr(batch, name).nan_to_num(), both.nan_to_num())
        assert torch.equal(batch.tokens["wrist"], torch.cat([part.tokens["wrist"] for part in parts]))

    def test_it_trains_and_tells_the_errors_of_each(self, datasets: list[Dataset], tmp_path: Path) -> None:
        card = new_trainer(datasets[0], tmp_path).card
        logged = {}
        Cloning(card, datasets, tmp_path).run(lambda update, figures: logged.update({update: figures}), log_every=1)
        assert np.isfinite(logged[UPDATES]["check/reach/action"])
        assert [name for name in logged[UPDATES] if name.startswith("check/pick_place/")] == [], "none is held out"

    def test_going_on_equals_never_having_stopped(self, datasets: list[Dataset], tmp_path: Path) -> None:
        card, ends = new_trainer(datasets[0], tmp_path / "none").card, []
        for stops in ((3, UPDATES), (UPDATES,)):
            for stop in stops:
                trainer = Cloning(card, datasets, tmp_path / str(len(stops)))
                trainer.recipe = card.training.model_copy(update={"updates": UPDATES})
                with suppress(KeyboardInterrupt):
                    trainer.run(lambda update, _, stop=stop: raise_at(update, stop), log_every=1, save_every=3)
            ends.append(weights(trainer))
        assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])

    def test_shares_are_as_equal_as_can_be(self) -> None:
        assert shares(32, 8) == [4] * 8
        assert shares(8, 3) == [3, 3, 2]
        assert shares(2, 3) == [1, 1, 0]

    def test_batches_too_small_and_doubled_environments_are_refused(
        self, datasets: list[Dataset], tmp_path: Path
    ) -> None:
        card = new_trainer(datasets[0], tmp_path).card
        with pytest.raises(UserError, match="a batch of 4 frames has no room for 6 environments"):
            Cloning(card, datasets * 3, tmp_path)
        with pytest.raises(UserError, match="pick_place is there twice"):
            Cloning(card, datasets[:1] * 2, tmp_path)


def raise_at(update: int, stop: int) -> None:
    if update == stop and stop != UPDATES:
        raise KeyboardInterrupt


class TestRelabelling:
    def test_other_instructions_name_what_is_there_and_their_landmarks(self, demos: Demonstrations) -> None:
        task, rng = make_task("pick_place"), np.random.default_rng(0)
        landmarks = demos.landmarks[rng.choice(len(demos.landmarks), 60)]
        instructions, relabelled = task.relabel(landmarks, rng)
        assert len(set(instructions)) > 4
        assert (np.nan_to_num(relabelled[:, 2:]) == np.nan_to_num(landmarks[:, 2:])).all()
        assert np.isfinite(relabelled[:, :2]).all()
        colours = ["red", "green", "blue", "yellow"]
        for text, before, after in zip(instructions, landmarks, relabelled, strict=True):
            thing, target = (colours.index(word) for word in text.split() if word in colours)
            assert (after[0] == before[2 + thing]).all()
            assert (after[1] == before[6 + target]).all()

    def test_relabelled_samples_teach_no_actions(self, dataset: Dataset) -> None:
        batch = dataset.sample(dataset.train_frames, 8, np.random.default_rng(0), relabelled=3)
        assert not batch.valid[:3].any()
        assert batch.valid[3:].any(dim=1).all()
