"""Actor and critic of stable-baselines3: the arm's action head on what it sees, and a critic that knows the truth.

The critic is for training only, so it may see what the policy must find out (Pinto et al., "Asymmetric actor critic for
image-based robot learning", 2018).
"""

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn

from mrvlm_sim.models import PolicyNetwork


class GELU(nn.GELU):
    """As in the action head."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


class TwoStreams(nn.Module):
    """Hidden layers of the action head on the first numbers of what is observed, of the critic on the rest."""

    def __init__(self, seen: int, known: int, hidden: int) -> None:
        super().__init__()
        self.seen, self.latent_dim_pi, self.latent_dim_vf = seen, hidden, hidden
        self.policy_net, self.value_net = _hidden(seen, hidden), _hidden(known, hidden)

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(observed), self.forward_critic(observed)

    def forward_actor(self, observed: Tensor) -> Tensor:
        return self.policy_net(observed[:, : self.seen])

    def forward_critic(self, observed: Tensor) -> Tensor:
        return self.value_net(observed[:, self.seen :])


class ActorCritic(MultiInputActorCriticPolicy):
    """For the observations of `EncodedVecEnv`: `features` for the actor, `truth` for the critic."""

    def __init__(self, *args, hidden: int, **kwargs) -> None:  # type: ignore[no-untyped-def]
        self._hidden = hidden
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        sizes = [self.observation_space[name].shape[0] for name in ("features", "truth")]  # type: ignore[index]
        self.mlp_extractor = TwoStreams(sizes[0], sizes[1], self._hidden)  # type: ignore[assignment]


class Selected(BaseFeaturesExtractor):
    """One of the observations alone."""

    def __init__(self, observation_space: spaces.Dict, name: str) -> None:
        super().__init__(observation_space, observation_space[name].shape[0])  # type: ignore[index]
        self.name = name

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        return observations[self.name]


class SquashedActorCritic(SACPolicy):
    """The same for SAC."""

    def __init__(self, *args, hidden: int, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **{"net_arch": [hidden, hidden], "activation_fn": GELU, **kwargs})

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        return super().make_actor(Selected(self.observation_space, "features"))  # type: ignore[arg-type]

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        return super().make_critic(Selected(self.observation_space, "truth"))  # type: ignore[arg-type]


def _hidden(inputs: int, hidden: int) -> nn.Sequential:
    """As the action head's."""
    layers = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
    return nn.Sequential(layers[0], GELU(), layers[1], GELU())


def copy_actor_to_head(policy: BasePolicy, network: PolicyNetwork) -> None:
    """So that the network acts as the actor does."""
    _copy(_actor_layers(policy), _linear(network.action_head.layers))


def copy_head_to_actor(network: PolicyNetwork, policy: BasePolicy) -> None:
    """So that the actor acts as the network does."""
    _copy(_linear(network.action_head.layers), _actor_layers(policy))


def _actor_layers(policy: BasePolicy) -> list[nn.Linear]:
    if isinstance(policy, SquashedActorCritic):
        return [*_linear(policy.actor.latent_pi), *_linear(policy.actor.mu)]
    assert isinstance(policy, ActorCritic)
    return [*_linear(policy.mlp_extractor.policy_net), *_linear(policy.action_net)]


def _linear(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def _copy(sources: list[nn.Linear], targets: list[nn.Linear]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.weight.copy_(source.weight)
        target.bias.copy_(source.bias)
