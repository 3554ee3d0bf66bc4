"""Training on attacked batches: what the attacker may do, when, and that it can be gone on with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_tiny, tiny_card
from torch import Tensor

from mrvlm_sim.agents.card import AdversarialTraining, PolicyCard
from mrvlm_sim.agents.model_card import model_card
from mrvlm_sim.agents.registry import arm_card
from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.training.adversarial import attacked
from mrvlm_sim.training.bc import Cloning
from mrvlm_sim.training.dataset import Dataset
from mrvlm_sim.training.demos import Demonstrations
from mrvlm_sim.training.initial import initial
from mrvlm_sim.training.session import finish, write_policy
from mrvlm_sim.training.views import render_views

CLEAN = {"wrist": torch.rand(2, 5, 12, generator=torch.Generator().manual_seed(0))}
SLOPE = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
EPS = 8 / 255


def linear(tokens: dict[str, Tensor]) -> Tensor:
    return (SLOPE * tokens["wrist"]).sum()


def changed(done: float = 1.0, seed: int = 0, **adversary: float) -> Tensor:
    card = AdversarialTraining.model_validate({"eps": EPS} | adversary)
    return attacked(CLEAN, linear, card, done, np.random.default_rng(seed))["wrist"]


class TestAttacked:
    @pytest.mark.parametrize("steps", [1, 3, 7])
    def test_it_finds_the_worst_there_is_of_a_linear_loss(self, steps: int) -> None:
        worst = (CLEAN["wrist"] + EPS * SLOPE.sign()).clamp(0, 1)
        reached = (linear({"wrist": changed(steps=steps)}) - linear(CLEAN)) / (linear({"wrist": worst}) - linear(CLEAN))
        assert reached > (0.99 if steps > 1 else 0.6), "one step of eps from a random start does not reach all corners"

    @given(st.floats(1 / 255, 1), st.integers(1, 5), st.floats(0, 1), st.floats(0.01, 1))
    def test_it_stays_within_bound_and_range(self, eps: float, steps: int, done: float, warm_up: float) -> None:
        tokens = changed(done, eps=eps, steps=steps, warm_up=warm_up)
        assert (tokens - CLEAN["wrist"]).abs().max() <= eps * min(1, done / warm_up) + 1e-6
        assert tokens.min() >= 0
        assert tokens.max() <= 1

    def test_it_begins_with_nothing_and_is_whole_after_the_warm_up(self) -> None:
        assert torch.equal(changed(done=0.0), CLEAN["wrist"])
        assert (changed(done=0.15) - CLEAN["wrist"]).abs().max() == pytest.approx(EPS / 2, rel=1e-4)
        assert (changed(done=0.3) - CLEAN["wrist"]).abs().max() == pytest.approx(EPS, rel=1e-4)

    def test_it_is_a_function_of_the_seed(self) -> None:
        assert torch.equal(changed(steps=1), changed(steps=1))
        assert not torch.equal(changed(steps=1), changed(steps=1, seed=1))


class TestCards:
    def test_an_arm_is_hardened_and_says_so(self) -> None:
        card, _ = arm_card("pyramid-48-embedded")
        hardened = card.with_recipe(adversary=AdversarialTraining(eps=4 / 255))
        assert hardened.cloning.adversary is not None
        assert hardened.weights is None
        assert "4/255" in hardened.summary
        again = PolicyCard.model_validate_json(hardened.model_dump_json())
        assert again == hardened
        assert card.with_recipe(adversary=None) is card
        weighted = hardened.model_copy(update={"weights": card.weights})
        assert "attacked by up to 4/255" in model_card(weighted)
        assert "undefended against adversarial frames" in model_card(card)

    def test_a_card_without_one_is_dumped_as_it_always_was(self) -> None:
        card, _ = arm_card("pyramid-48-embedded")
        assert "adversary" not in card.model_dump_json()

    def test_reinforcement_is_refused(self) -> None:
        card, _ = arm_card("ppo/uniform-49")
        with pytest.raises(UserError, match="recipe of ppo, not of cloning"):
            card.with_recipe(adversary=AdversarialTraining(eps=4 / 255))


@pytest.fixture(scope="module")
def dataset(demos: Demonstrations, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    card, cache = tiny_card(), tmp_path_factory.mktemp("views")
    views = render_views(demos, "wrist", card.cameras["wrist"], 2, cache, workers=1)[0]
    return Dataset(demos, {"wrist": views}, card.network.chunk, 2, torch.device("cpu"))


@pytest.mark.slow
class TestTraining:
    def trainer(self, dataset: Dataset, folder: Path, updates: int = 4, eps: float | None = EPS) -> Cloning:
        card = tiny_card().with_recipe(adversary=AdversarialTraining(eps=eps, warm_up=0.5) if eps else None)
        few = {"updates": updates, "batch": 4}
        return Cloning(card.model_copy(update={"training": card.cloning.model_copy(update=few)}), [dataset], folder)

    def test_attacked_batches_cost_more_loss_than_clean_ones(self, dataset: Dataset, tmp_path: Path) -> None:
        def last_loss(eps: float | None) -> float:
            trainer = self.trainer(dataset, tmp_path / str(eps), eps=eps)
            trainer.update = 3
            return trainer.losses(np.random.default_rng(3))[0].item()

        assert last_loss(0.5) > last_loss(EPS) > last_loss(None)

    def test_it_can_begin_as_a_trained_policy(self, dataset: Dataset, tmp_path: Path) -> None:
        first = self.trainer(dataset, tmp_path / "first")
        first._step()
        folder = finish(first)
        card = first.card.with_recipe(**initial(folder), updates=2)
        begun = Cloning(card, [dataset], tmp_path / "second")
        for name, values in first.network.state_dict().items():
            assert torch.equal(begun.network.state_dict()[name], values), name
        assert begun.card.summary.endswith(f"Begun as {folder}.")
        assert begun.recipe.updates == 2

    def test_it_cannot_begin_as_a_policy_of_another_shape(self, dataset: Dataset, tmp_path: Path) -> None:
        wide = save_tiny(tmp_path / "wide", width=32)
        with pytest.raises(UserError, match=r"network\.width is 32 there and 16 here"):
            Cloning(tiny_card().with_recipe(**initial(wide)), [dataset], tmp_path / "other")

    def test_it_cannot_begin_as_a_policy_of_shorter_chunks(self, dataset: Dataset, tmp_path: Path) -> None:
        card = tiny_card()
        short = card.model_copy(
            update={"execute": 1, "network": card.network.model_copy(update={"chunk": 1}), "weights": None}
        )
        folder = write_policy(tmp_path / "short", short, PolicyNetwork(short.cameras, short.network), 1.0)
        with pytest.raises(UserError, match=r"network\.chunk is 1 there and \d+ here"):
            Cloning(card.with_recipe(**initial(folder)), [dataset], tmp_path / "other")

    def test_going_on_equals_never_having_stopped(self, dataset: Dataset, tmp_path: Path) -> None:
        whole, parted = self.trainer(dataset, tmp_path / "whole"), self.trainer(dataset, tmp_path / "parted")
        whole.run(lambda *_: None)
        parted._step()
        parted._step()
        parted.save()
        resumed = self.trainer(dataset, tmp_path / "parted")
        assert resumed.update == 2
        resumed.run(lambda *_: None)
        ours, theirs = whole.network.state_dict(), resumed.network.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_a_checkpoint_of_clean_training_is_refused(self, dataset: Dataset, tmp_path: Path) -> None:
        self.trainer(dataset, tmp_path, eps=None).save()
        with pytest.raises(UserError, match="belongs to another card or recipe"):
            self.trainer(dataset, tmp_path)
