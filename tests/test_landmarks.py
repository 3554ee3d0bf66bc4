"""What teaches a network where things are."""

import numpy as np
import pytest
import torch
from tiny import tiny_card

from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.models.network import Perception
from mrvlm_sim.training.landmarks import voting_error


class TestVoting:
    @pytest.fixture
    def network(self) -> PolicyNetwork:
        card = tiny_card(landmarks=3)
        torch.manual_seed(0)
        return PolicyNetwork(card.cameras, card.network)

    def perception(self, network: PolicyNetwork, scores: torch.Tensor, votes: torch.Tensor) -> Perception:
        return Perception(torch.zeros(1, 1), votes.mean(2), votes, scores)

    def test_only_tokens_that_show_a_landmark_are_taught(self, network: PolicyNetwork) -> None:
        """Of two landmarks in sight and one that is not: their tokens' votes and weights, and nothing else."""
        tokens, context = 48, 5
        shown = torch.zeros(1, 3, tokens, dtype=torch.bool)
        shown[0, 0, 7] = shown[0, 1, 20] = True
        true = torch.tensor([[[0.1, 0.2, 0.3], [0.0, 0.1, 0.0], [np.nan] * 3]])
        scores = torch.zeros(1, 3, context + tokens, requires_grad=True)
        votes = torch.zeros(1, 3, context + tokens, 3, requires_grad=True)
        voting_error(network, self.perception(network, scores, votes), true, {"wrist": shown}).backward()
        taught = votes.grad.abs().sum(-1)[0]
        assert taught.nonzero().tolist() == [[0, context + 7], [1, context + 20]]
        assert (scores.grad[0, 0].argmin(), scores.grad[0, 1].argmin()) == (context + 7, context + 20)
        assert (scores.grad[0, 2] == 0).all()

    def test_right_votes_that_alone_count_cost_nothing(self, network: PolicyNetwork) -> None:
        shown = torch.zeros(1, 3, 48, dtype=torch.bool)
        shown[0, :, 3] = True
        true = torch.tensor([[[0.1, 0.2, 0.3]] * 3])
        scores = torch.zeros(1, 3, 53)
        scores[..., 5 + 3] = 50
        right = self.perception(network, scores, true[:, :, None].expand(1, 3, 53, 3))
        assert voting_error(network, right, true, {"wrist": shown}) < 1e-6
        assert voting_error(network, right, true + 0.1, {"wrist": shown}) > 0.1

    def test_nothing_in_sight_teaches_nothing(self, network: PolicyNetwork) -> None:
        scores, votes = torch.zeros(1, 3, 53, requires_grad=True), torch.zeros(1, 3, 53, 3)
        shown = {"wrist": torch.zeros(1, 3, 48, dtype=torch.bool)}
        loss = voting_error(network, self.perception(network, scores, votes), torch.zeros(1, 3, 3), shown)
        loss.backward()
        assert loss == 0
        assert (scores.grad == 0).all()

    def test_cross_attention_is_taught_the_full_view_alone(self) -> None:
        card = tiny_card(landmarks=3, fusion="cross")
        network = PolicyNetwork(card.cameras, card.network)
        shown = torch.zeros(1, 3, 48, dtype=torch.bool)
        shown[0, 0, [2, 30]] = True
        votes = torch.zeros(1, 3, 5 + 16, 3, requires_grad=True)
        seen = self.perception(network, torch.zeros(1, 3, 5 + 16), votes)
        voting_error(network, seen, torch.ones(1, 3, 3), {"wrist": shown}).backward()
        assert votes.grad.abs().sum(-1)[0].nonzero().tolist() == [[0, 5 + 2]]
