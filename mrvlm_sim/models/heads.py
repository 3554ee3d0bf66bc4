"""Heads: the landmarks by votes of the tokens, the actions from landmarks, mean token and proprioception."""

from torch import Tensor, nn

from mrvlm_sim.models.config import NetworkConfig

LANDMARK_SCALE = 0.1  # metres per unit of the landmark head
KEY_SIZE = 32  # channels in which an instruction finds the tokens it speaks of


class LandmarkHead(nn.Module):
    """Every token votes for the place of every landmark; the instruction weighs the votes.

    Voting (PVNet: Peng et al., 2019) with weights that are a softmax over the tokens (spatial softmax: Levine et al.,
    2016), whose queries come from the instruction.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.width, config.landmarks * KEY_SIZE)
        self.key = nn.Linear(config.width, KEY_SIZE)
        self.vote = nn.Linear(config.width, 3 * config.landmarks)

    def forward(self, tokens: Tensor, instruction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, M, D) and one summary of the instruction (B, D) to landmarks (B, K, 3) in LANDMARK_SCALE.

        With the votes that they are means of (B, K, M, 3), and the votes' weights before the softmax (B, K, M).
        """
        query = self.query(instruction).unflatten(1, (-1, KEY_SIZE))
        scores = query @ self.key(tokens).mT / KEY_SIZE**0.5
        votes = self.vote(tokens).unflatten(2, (-1, 3)).transpose(1, 2)
        return (scores.softmax(dim=-1)[:, :, None] @ votes).squeeze(2), votes, scores


def feature_size(config: NetworkConfig) -> int:
    """How many numbers the action head reads: mean token, landmarks, proprioception."""
    return config.width + 3 * config.landmarks + config.proprio_size


class ActionHead(nn.Module):
    """Two hidden layers: with one, even cloning from true landmarks got stuck in front of the object."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        hidden = 2 * config.width
        self.layers = nn.Sequential(
            nn.Linear(feature_size(config), hidden),
            nn.GELU(approximate="tanh"),
            nn.Linear(hidden, hidden),
            nn.GELU(approximate="tanh"),
            nn.Linear(hidden, config.chunk * config.action_size),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, feature_size) to (B, chunk * actions)."""
        return self.layers(features)
