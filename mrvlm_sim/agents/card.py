"""The policy card: everything needed to run a trained policy and to train it again."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mrvlm_sim.cards import Card
from mrvlm_sim.models import NetworkConfig
from mrvlm_sim.vision import Pyramid

PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]


class TrainingRecipe(Card):
    """Behaviour cloning: the budget and the optimiser's settings."""

    method: Literal["bc"]
    demonstrations: PositiveInt  # episodes of each environment
    demonstration_seed: Seed
    stride: PositiveInt = 2  # of the demonstrations' frames, one in so many is trained on
    updates: PositiveInt
    batch: PositiveInt
    matrix_rate: Positive  # peak learning rate of Muon, for the matrices of the transformer
    learning_rate: Positive  # peak learning rate of AdamW, for everything else
    weight_decay: Annotated[float, Field(ge=0)]
    landmark_weight: Annotated[float, Field(ge=0)]
    seed: Seed


class Weights(Card):
    """What is in `model.safetensors`, and what made it."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    minutes: Positive  # of training
    device: str
    versions: dict[str, str]


class PolicyCard(Card):
    """`policy.toml`; an arm that was not trained yet has no `[weights]`."""

    summary: str
    environments: Annotated[list[str], Field(min_length=1)]  # that it is trained for
    execute: PositiveInt  # actions of each chunk that are carried out before the policy looks again
    cameras: Annotated[dict[str, Pyramid], Field(min_length=1)]
    network: NetworkConfig
    training: TrainingRecipe
    weights: Weights | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.execute > self.network.chunk:
            raise ValueError(f"execute must be at most network.chunk = {self.network.chunk}, not {self.execute}")
        if self.network.fusion == "cross" and all(pyramid.levels == 1 for pyramid in self.cameras.values()):
            raise ValueError("fusion 'cross' needs a camera with at least two levels; use 'sequence' or 'embedded'")
        return self
