"""Eyes that turn, that are told something else, or that lack a level: geometry, wrapper, conditions, training."""

from itertools import pairwise
from pathlib import Path

import gymnasium
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import pyramids
from hypothesis import assume, example, given
from hypothesis import strategies as st
from rl import BRIEF, RECIPE, rl_card
from tiny import PYRAMID, save_tiny, tiny_card

from mrvlm_sim.agents.policy import check_compatible
from mrvlm_sim.agents.registry import arm_card, arm_cards
from mrvlm_sim.agents.trained import load_trained
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition, conditions_of
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.evaluation.evaluate import Evaluation
from mrvlm_sim.evaluation.replay import replay
from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.store import Key, read_episodes
from mrvlm_sim.evaluation.view import save_view
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.sight import landmark_places
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.training.demos import Demonstrations
from mrvlm_sim.training.rl.session import Reinforcement
from mrvlm_sim.training.session import Folders, make_trainer
from mrvlm_sim.training.views import margins, render_views
from mrvlm_sim.vision import Jitter, Pyramid, cut, shown_in, tokenise, unpatchify
from mrvlm_sim.vision.eyes import EYES, changed_eyes, gaze_size
from mrvlm_sim.wrappers import MultiResolutionTokens

pytestmark = pytest.mark.slow

STILL = PYRAMID.model_copy(update={"jitter": Jitter()})
gazes = st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(np.array)


def eyes(name: str, pyramid: Pyramid = PYRAMID) -> Pyramid:
    return changed_eyes({"wrist": pyramid}, name)["wrist"]


def looking(env: ManipulationEnv, pyramid: Pyramid, source: str = "nested") -> MultiResolutionTokens:
    return MultiResolutionTokens(env, {"wrist": pyramid}, source)  # type: ignore[arg-type]


class TestGeometry:
    @given(pyramids(gaps=True), gazes, st.integers(0, 2**32 - 1))
    def test_cutouts_lie_in_each_other_wherever_one_looks(self, pyramid: Pyramid, gaze: np.ndarray, seed: int) -> None:
        offsets = pyramid.jitter.stationary(np.random.default_rng(seed), (pyramid.levels, 2))
        origins = pyramid.place(offsets, gaze)
        sizes = np.array(pyramid.cutout_sizes)[:, None]
        assert (origins[1:] >= origins[:-1]).all()
        assert (origins[1:] + sizes[1:] <= origins[:-1] + sizes[:-1]).all()

    @given(pyramids(gaps=True), gazes)
    def test_the_gaze_is_in_every_cutout_and_in_the_middle_where_there_is_room(
        self, pyramid: Pyramid, gaze: np.ndarray
    ) -> None:
        boxes = pyramid.boxes(pyramid.place(np.zeros((pyramid.levels, 2)), gaze))
        slack = 2 * np.array(pyramid.factors) / pyramid.frame_size  # cutouts lie on whole pixels of their views
        away = np.abs(boxes[:, :2] - gaze)
        assert (away <= boxes[:, 2:] + np.cumsum(slack)[:, None]).all()
        for level in range(1, pyramid.levels):
            if (np.abs(gaze) + boxes[level, 2] <= 1).all():
                assert (away[level] <= slack[: level + 1].sum()).all()

    @given(pyramids(gaps=True), gazes, st.integers(0, 2**32 - 1))
    @example(Pyramid(frame_size=4, patch=1, grids=(1, 0), jitter=Jitter(saccade=0.125)), np.array([0.0, 0.25]), 0)
    def test_margins_are_wide_enough_for_every_gaze(self, pyramid: Pyramid, gaze: np.ndarray, seed: int) -> None:
        turning = pyramid.model_copy(update={"gaze": "random"})
        assume(all(coarse % fine == 0 for coarse, fine in pairwise(pyramid.factors[1:])))
        allowed = margins(turning)
        offsets = pyramid.jitter.stationary(np.random.default_rng(seed), (20, pyramid.levels, 2))
        middle = pyramid.place(np.zeros((pyramid.levels, 2)), gaze)
        steps, rest = np.divmod(pyramid.place(offsets, gaze) - middle, np.array(pyramid.factors)[:, None])
        assert (rest == 0).all()
        assert (np.abs(steps) <= np.array(allowed)[:, None]).all()

    def test_straight_ahead_is_the_middle(self) -> None:
        offsets = np.zeros((3, 2))
        assert (STILL.place(offsets, np.zeros(2)) == STILL.place(offsets)).all()

    def test_levels_without_tokens_leave_the_others_as_they_are(self) -> None:
        frame = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
        whole = [tokenise(cut(frame, PYRAMID.centred(), PYRAMID), PYRAMID)[part : part + 16] for part in (0, 16, 32)]
        for name, level in (("full-view", 0), ("finest-level", 2)):
            some = eyes(name)
            views = cut(frame, some.centred(), some)
            assert some.tokens == 16
            assert (tokenise(views, some) == whole[level]).all()
            assert [view.shape[0] for view in unpatchify(tokenise(views, some), some)] == list(some.view_sizes)
            assert set(some.token_boxes(some.centred())[:, 3]) == {level}

    def test_a_pyramid_without_any_tokens_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one level"):
            Pyramid(frame_size=64, patch=8, grids=(0, 0))

    @given(pyramids(gaps=True), st.integers(0, 2**32 - 1))
    def test_boxes_may_be_hidden_or_wrong(self, pyramid: Pyramid, seed: int) -> None:
        origins = pyramid.place(pyramid.jitter.stationary(np.random.default_rng(seed), (pyramid.levels, 2)))
        exact, middle = pyramid.token_boxes(origins), pyramid.token_boxes(pyramid.centred())
        told = {name: pyramid.model_copy(update={"told": name}).told_boxes(origins) for name in ("centred", "mirrored")}
        assert (pyramid.told_boxes(origins) == exact).all()
        assert (told["centred"] == middle).all()
        np.testing.assert_allclose(told["mirrored"] + exact, 2 * middle, atol=1e-6)

    def test_tokens_show_what_lies_in_their_boxes(self) -> None:
        places = np.array([[0.0625, 0.0625], [0.9, -0.9], [np.nan, 0.1], [1.2, 0.0]])
        shown = shown_in(places, STILL.token_boxes(STILL.centred()))
        assert shown.sum(axis=1).tolist() == [3, 1, 0, 0]  # in a token of every level, of the full view, of none
        assert np.flatnonzero(shown[1]).tolist() == [3]


class TestCards:
    @pytest.mark.parametrize("arm", sorted(arm_cards()))
    @pytest.mark.parametrize("name", sorted(EYES))
    def test_every_arm_has_such_eyes_or_says_why_not(self, arm: str, name: str) -> None:
        card, _ = arm_card(arm)
        if all(pyramid.levels == 1 for pyramid in card.cameras.values()) or (
            card.network.fusion == "cross" and name in ("full-view", "finest-level")
        ):
            with pytest.raises(UserError, match=name):
                card.with_eyes(name)
            return
        changed = card.with_eyes(name)
        assert type(card).model_validate(changed.model_dump()) == changed
        assert changed.network.action_size - card.network.action_size == (2 if name == "gaze-policy" else 0)

    def test_cards_of_old_stay_what_runs_have_kept_of_them(self) -> None:
        assert {"gaze", "told"}.isdisjoint(PYRAMID.model_dump())
        assert eyes("gaze-random").model_dump()["gaze"] == "random"
        bc, _ = arm_card("pyramid-48-embedded")
        assert "voting_weight" not in bc.training.model_dump()


@pytest.fixture(scope="module")
def reach() -> ManipulationEnv:
    return make_own_env("reach")


class TestTheWrapper:
    def test_an_oracle_looks_at_what_is_named(self, reach: ManipulationEnv) -> None:
        env = looking(reach, eyes("gaze-oracle", STILL))
        looked = 0
        for seed in range(6):
            env.reset(seed=seed)
            place = landmark_places(reach.scene, "wrist", reach.task.landmarks(reach.scene))[0]
            u, v, half = env.pyramids["wrist"].boxes(env.origins["wrist"])[2]
            if (np.abs(place) <= 1 - half).all():
                np.testing.assert_allclose([u, v], place, atol=4 / PYRAMID.frame_size)
                looked += 1
        assert looked >= 3

    def test_a_policy_looks_where_it_says(self, reach: ManipulationEnv) -> None:
        env = looking(reach, eyes("gaze-policy", STILL))
        assert env.action_size == 7
        env.reset(seed=0)
        assert (env.origins["wrist"] == STILL.centred()).all()
        env.step(np.array([0, 0, 0, 0, 0, 0.5, -0.25]))
        np.testing.assert_allclose(env.pyramids["wrist"].boxes(env.origins["wrist"])[2, :2], [0.5, -0.25], atol=0.02)
        env.step(np.array([0, 0, 0, 0, 0, 7.0, 0.0]))
        np.testing.assert_allclose(env.pyramids["wrist"].boxes(env.origins["wrist"])[2, :2], [0.75, 0.0], atol=0.02)
        env.reset(seed=0)
        assert (env.origins["wrist"] == STILL.centred()).all()

    def test_a_random_gaze_goes_everywhere(self, reach: ManipulationEnv) -> None:
        env = looking(reach, eyes("gaze-random"))
        env.reset(seed=0)
        places = []
        for _ in range(30):
            env.step(np.zeros(5))
            places.append(env.origins["wrist"][2])
        assert np.std(places, axis=0).min() > 20

    @pytest.mark.parametrize("name", ["gaze-oracle", "finest-level", "full-view"])
    def test_both_sources_show_the_same(self, reach: ManipulationEnv, name: str) -> None:
        seen = []
        for source in ("nested", "sensor"):
            env = looking(reach, eyes(name, STILL), source)
            seen.append(env.reset(seed=3)[0])
        assert (seen[0]["wrist/boxes"] == seen[1]["wrist/boxes"]).all()
        difference = seen[0]["wrist/tokens"].astype(float) - seen[1]["wrist/tokens"]
        assert np.abs(difference).mean() < 2

    def test_an_oracle_knows_the_suites_own_environments_only(self) -> None:
        with pytest.raises(UserError, match="own environments only"):
            MultiResolutionTokens(gymnasium.make("HalfCheetah-v5"), {"track": eyes("gaze-oracle")})


class TestConditions:
    def test_the_same_policy_through_other_eyes(self, tmp_path: Path) -> None:
        """One run of all that a trained network can look through; frames differ, initial states do not."""
        names = ("still", "boxes-hidden", "boxes-wrong", "gaze-oracle", "gaze-random")
        plan = Plan(BRIEF, (str(save_tiny(tmp_path / "tiny")), "noop"), tuple(conditions_of((), 0, 1, (), names)), 0, 2)
        evaluation = Evaluation(plan, tmp_path / "run", workers=0)
        evaluation.run(lambda _: None)
        evaluation.finish()
        rows = read_episodes(tmp_path / "run")
        own = rows[rows["policy"] == "tiny"]
        assert len(own) == 2 * 6
        assert not own["error"].any()
        assert set(rows.loc[rows["policy"] == "noop", "condition"]) == {"clean"}
        assert own.groupby("episode")["start_hash"].nunique().tolist() == [1, 1]
        assert own[own["episode"] == 0]["frame_hash"].nunique() == 6
        again = replay(tmp_path / "run", Key("tiny", "gaze-oracle", 0, 0))
        assert again.differences == ()

    @pytest.mark.parametrize("name", ["full-view", "finest-level", "gaze-policy"])
    def test_what_needs_a_network_of_its_own_is_refused(self, tmp_path: Path, name: str) -> None:
        plan = Plan("reach", (str(save_tiny(tmp_path / "tiny")),), (Condition(eyes=name),), 0, 1)
        with pytest.raises(UserError, match=f"train one with them: mrvlm-sim train bc --eyes {name}"):
            Evaluation(plan, tmp_path / "run", workers=0)

    def test_a_wrong_name_is_met_with_the_nearest(self) -> None:
        with pytest.raises(UserError, match="Did you mean 'drift'"):
            Condition(eyes="drifd")

    def test_a_single_level_beside_others_stays_as_it_is(self) -> None:
        flat = Pyramid(frame_size=64, patch=16, grids=(4,))
        cameras = {
            "wrist": PYRAMID.model_copy(update={"jitter": Jitter(tremor=0.6, drift=0.6, drift_step=0.1)}),
            "scene": flat,
        }
        drifting, looking = (changed_eyes(cameras, name) for name in ("drift", "gaze-policy"))
        assert drifting["scene"] == looking["scene"] == flat
        assert drifting["wrist"].jitter == Jitter(drift=1.0, drift_step=0.1)
        assert gaze_size(looking) == 2

    def test_an_attack_goes_with_no_other_eyes(self) -> None:
        for more in ({"eyes": "still"}, {"shift": "lighting", "severity": 0.5}):
            with pytest.raises(UserError, match="make each a condition of its own"):
                Condition("x", "sensor", "pgd", 4 / 255, **more)  # type: ignore[arg-type]

    def test_two_conditions_of_one_name_are_refused(self) -> None:
        with pytest.raises(UserError, match="two conditions are called clean"):
            Plan(BRIEF, ("random",), (Condition(), Condition()), 0, 1)

    def test_a_single_level_has_no_other_eyes(self) -> None:
        with pytest.raises(UserError, match="single level"):
            arm_card("uniform-49")[0].with_eyes("drift")


class TestPoliciesThatLook:
    def test_they_act_are_recorded_and_replayed(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "looks", eyes="gaze-policy")
        plan = Plan(BRIEF, (str(folder),), (Condition(),), 0, 1)
        evaluation = Evaluation(plan, tmp_path / "run", workers=0)
        evaluation.run(lambda _: None)
        evaluation.finish()
        row = read_episodes(tmp_path / "run").iloc[0]
        assert not row["error"]
        assert row["steps"] > 1
        assert replay(tmp_path / "run", Key("looks", "clean", 0, 0), tmp_path / "film.mp4").differences == ()

    @pytest.mark.parametrize("name", ["finest-level", "gaze-policy"])
    def test_what_an_arm_would_see_is_shown(self, tmp_path: Path, name: str) -> None:
        save_view("reach", tiny_card().with_eyes(name), 0, tmp_path / "view.png")
        height, width, _ = iio.imread(tmp_path / "view.png").shape
        pictures = 2 if name == "finest-level" else 4  # the frame, and every level with tokens
        assert pictures * height <= width < (pictures + 0.2) * height

    def test_they_can_be_attacked(self, tmp_path: Path, reach: ManipulationEnv) -> None:
        policy = load_trained(save_tiny(tmp_path / "looks", eyes="gaze-policy"))
        record = run_episode(reach, BRIEF, policy, "looks", Condition("pgd", "sensor", "pgd", 4 / 255, 1), 0, 0)
        assert not record.error
        assert record.largest_change == 4

    def test_a_policy_of_other_actions_does_not_fit(self, tmp_path: Path, reach: ManipulationEnv) -> None:
        policy = load_trained(save_tiny(tmp_path / "wrong", eyes="gaze-policy", action_size=5))
        with pytest.raises(UserError, match=r"actions of size 5, .* takes 5 and 2 for the gaze"):
            check_compatible(policy, reach)


class TestTraining:
    @pytest.mark.parametrize("name", ["gaze-policy", "gaze-oracle", "gaze-random", "finest-level", "boxes-wrong"])
    def test_cloning_with_other_eyes(self, demos: Demonstrations, tmp_path: Path, name: str) -> None:
        card = tiny_card().with_eyes(name)
        recipe = card.training.model_copy(update={"updates": 2, "batch": 8, "voting_weight": 1.0})
        folders = Folders(tmp_path, tmp_path / "demos", tmp_path / "views")
        card = card.model_copy(update={"training": recipe})
        trainer = make_trainer(card, [demos], folders, torch.device("cpu"), workers=1)
        before = {n: v.clone() for n, v in trainer.network.state_dict().items()}
        trainer.run(lambda *_: None)
        moved = [n for n, v in trainer.network.state_dict().items() if not torch.equal(v, before[n])]
        assert any("landmark_head" in n for n in moved)
        assert any("action_head" in n for n in moved)
        assert all(value.isfinite().all() for value in trainer.network.state_dict().values())

    def test_views_are_rendered_where_an_oracle_looks(self, demos: Demonstrations, tmp_path: Path) -> None:
        oracle = eyes("gaze-oracle", STILL)
        views, places = render_views(demos, "wrist", oracle, 4, tmp_path, workers=1)
        assert len(places) == len(demos.states)
        assert len(views.places) < len(places)
        look = views.look(np.arange(len(views.places)), np.random.default_rng(0))
        named = views.places[:, 0]
        inside = (np.abs(named) < 1).all(axis=1)
        finest = look.shown[inside, 0, 32:]
        assert inside.any()
        assert finest.any(axis=1).all()

    def test_who_learns_to_look_is_taught_where_the_thing_will_be(self, demos: Demonstrations, tmp_path: Path) -> None:
        card = tiny_card().with_eyes("gaze-policy")
        folders = Folders(tmp_path, tmp_path / "demos", tmp_path / "views")
        dataset = make_trainer(card, [demos], folders, torch.device("cpu"), workers=1).datasets[0]
        env = make_own_env(demos.environment)
        env.reset(seed=int(demos.reset_seeds[0]))
        demos.restore(env, 1)
        place = landmark_places(env.scene, "wrist", env.task.landmarks(env.scene))[0]
        env.close()
        np.testing.assert_allclose(dataset.actions[0, 5:], np.clip(place, -1, 1), atol=1e-4)

    def test_reinforcement_learns_to_look(self, tmp_path: Path) -> None:
        card = rl_card(RECIPE.model_copy(update={"steps": 32})).with_eyes("gaze-policy")
        training = Reinforcement(card, BRIEF, tmp_path, processes=False)
        training.run(None, lambda *_: None)
        assert training.saved == 32
        assert training.network.config.action_size == 7
