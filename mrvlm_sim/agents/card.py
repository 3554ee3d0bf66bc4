"""The policy card: everything needed to run a trained policy and to train it again."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mrvlm_sim.cards import Card
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.models import NetworkConfig
from mrvlm_sim.vision import Pyramid
from mrvlm_sim.vision.eyes import changed_eyes, gaze_size

PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
SETTINGS = ("execute",)  # what may change on a card without training


class AdversarialTraining(Card):
    """What attacks every batch before it is learned from; see `training.adversarial`."""

    eps: Annotated[float, Field(gt=0, le=1)]  # as a part of the pixel range
    steps: PositiveInt = 3  # of PGD; 1 is the fast gradient sign method from a random start (Wong et al., 2020)
    warm_up: Annotated[float, Field(gt=0, le=1)] = 0.3  # part of all updates over which eps grows from nothing


class CloningRecipe(Card):
    """Behaviour cloning: the budget and the optimiser's settings."""

    later = frozenset({"voting_weight", "adversary", "init", "init_sha256"})

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
    voting_weight: Annotated[float, Field(ge=0)] = 0.0  # times landmark_weight; see `training.landmarks.voting_error`
    seed: Seed
    adversary: AdversarialTraining | None = None
    init: str | None = None  # the policy it began as, and the hash of its weights
    init_sha256: str | None = None


class ReinforcementRecipe(Card):
    """What all algorithms of stable-baselines3 need; a value that is not its default says where it comes from."""

    method: str
    steps: PositiveInt = 65_536  # of all environments together
    environments: PositiveInt = 8  # side by side
    rollout: PositiveInt = 128  # steps of each after which the encoder learns
    segment: PositiveInt = 8  # rollouts between checkpoints; every one begins with new episodes
    batch: PositiveInt = 256
    discount: Annotated[float, Field(gt=0, le=1)] = 0.9  # measured, see `PPORecipe`
    pretraining_scenes: PositiveInt = 16_000  # of which one frame each is seen
    pretraining_updates: Annotated[int, Field(ge=0)] = 3000  # of the encoder on them, before the first rollout
    encoder_updates: PositiveInt = 16  # after each rollout, half on its frames and half on those scenes
    encoder_batch: Annotated[int, Field(ge=4)] = 32
    voting_weight: Annotated[float, Field(ge=0)] = 1.0  # see `training.landmarks.voting_error`
    matrix_rate: Positive = 2e-3  # of the encoder, as in cloning
    learning_rate: Positive = 6e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    init: str | None = None  # the policy it began as, and the hash of its weights
    init_sha256: str | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _whole_segments(self) -> Self:
        frames = self.environments * self.rollout * self.segment
        if self.steps % frames:
            raise ValueError(
                f"steps must be a multiple of environments x rollout x segment = {frames}, not {self.steps}"
            )
        return self


class PPORecipe(ReinforcementRecipe):
    """Proximal policy optimisation (Schulman et al., 2017).

    "Measured" is on `reach` from true landmarks: all of the last 100 episodes succeeded after 16,000 steps with the
    four values so marked, 42 % after 24,000 with a rate of 3e-4, discount and lambda of 0.95 and a log_std of -0.5.
    Batches of 256 lose nothing against 64 (Andrychowicz et al., "What matters in on-policy RL?", 2021).
    """

    method: Literal["ppo"] = "ppo"
    epochs: PositiveInt = 10
    policy_rate: Positive = 1e-3  # Adam's learning rate; measured
    gae_lambda: Annotated[float, Field(gt=0, le=1)] = 0.9  # measured
    clip_range: Positive = 0.2
    entropy: Annotated[float, Field(ge=0)] = 0.0
    log_std: float = -1.0  # of the exploration's noise at the start, per unit of action; measured

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if (frames := self.environments * self.rollout) % self.batch:
            raise ValueError(f"batch must divide environments x rollout = {frames}, not {self.batch}")
        return self


class SACRecipe(ReinforcementRecipe):
    """Soft actor-critic (Haarnoja et al., 2018)."""

    method: Literal["sac"] = "sac"
    policy_rate: Positive = 3e-4  # Adam's learning rate
    replay: PositiveInt = 50_000  # steps that are kept: all, at these budgets
    learning_starts: PositiveInt = 1000  # steps at random before anything is learned; ten times the default
    gradient_steps: PositiveInt = 8  # after a step of every environment: as many as there are of these


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
    training: Annotated[CloningRecipe | PPORecipe | SACRecipe, Field(discriminator="method")]
    weights: Weights | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.execute > self.network.chunk:
            raise ValueError(f"execute must be at most network.chunk = {self.network.chunk}, not {self.execute}")
        if self.network.squashed != (self.training.method == "sac"):
            raise ValueError("network.squashed must be true for SAC, whose actions are, and false for others")
        if self.network.fusion == "cross":
            shown = {level for pyramid in self.cameras.values() for level, grid in enumerate(pyramid.grids) if grid}
            if 0 not in shown or len(shown) == 1:
                raise ValueError("fusion 'cross' needs tokens of the full view and of others; use 'embedded'")
        return self

    def with_eyes(self, name: str | None) -> Self:
        """The arm with other eyes, as `EYES` names them, and a network that fits them; untrained. None: its own.

        Raises:
            UserError: no such eyes, or they do not fit the arm.
        """
        if name is None:
            return self
        cameras = changed_eyes(self.cameras, name)
        more = gaze_size(cameras) - gaze_size(self.cameras)
        network = self.network.model_copy(update={"action_size": self.network.action_size + more})
        changed = {"cameras": cameras, "network": network, "weights": None}
        try:
            return type(self).model_validate({**dict(self), **changed, "summary": f"{self.summary} Eyes: {name}."})
        except ValidationError as error:
            raise UserError(f"eyes {name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """The same weights with another value of what may change without training: `SETTINGS`.

        Raises:
            UserError: no such setting, or a value that does not fit the arm.
        """
        if not settings:
            return self
        for name in settings:
            if name not in SETTINGS:
                raise unknown_name("setting of a policy", name, SETTINGS)
        try:
            return type(self).model_validate({**dict(self), **settings}, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            said = f"{', '.join(f'{name}={value}' for name, value in settings.items())}: {problem['msg']}"
            raise UserError(said.replace("Value error, ", "")) from error

    def with_recipe(self, **changed: AdversarialTraining | int | str | None) -> Self:
        """The arm with other values in its recipe of cloning; untrained. None is left as it is on the card.

        Raises:
            UserError: its recipe is not one of cloning.
        """
        given = {name: value for name, value in changed.items() if value is not None}
        if not given:
            return self
        recipe = self.cloning.model_copy(update=given)
        said = [self.summary]
        if isinstance(adversary := given.get("adversary"), AdversarialTraining):
            said.append(f"Attacked while it learned, up to {255 * adversary.eps:g}/255.")
        if "init" in given:
            said.append(f"Begun as {given['init']}.")
        return self.model_copy(update={"training": recipe, "weights": None, "summary": " ".join(said)})

    @property
    def cloning(self) -> CloningRecipe:
        """The recipe, if it is one of cloning.

        Raises:
            UserError: it is another.
        """
        if not isinstance(self.training, CloningRecipe):
            raise UserError(
                f"the arm's card has a recipe of {self.training.method}, not of cloning; take mrvlm-sim train rl"
            )
        return self.training
