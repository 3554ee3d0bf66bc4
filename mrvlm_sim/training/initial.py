"""The policy that a training begins as."""

from pathlib import Path
from typing import Any

from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.trained import load_trained
from mrvlm_sim.cards import differences
from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork


def initial(folder: Path | None) -> dict[str, str | None]:
    """What a recipe says of it: the folder and the hash of its weights; nothing if there is none.

    Raises:
        UserError: it holds no trained policy.
    """
    if folder is None:
        return {}
    weights = load_trained(folder).card.weights
    return {"init": str(folder), "init_sha256": weights.sha256 if weights else None}


def begin_as(network: PolicyNetwork, card: PolicyCard, folder: Path) -> None:
    """Give an arm's network the weights of a trained policy of the same arm; of its chunk of actions, the first.

    Raises:
        UserError: the policy has other eyes or another network; it says where.
    """
    policy = load_trained(folder)
    different = unlike(_shape(policy.card), _shape(card))
    if (theirs := policy.card.network.chunk) < (ours := card.network.chunk):
        different.append(f"network.chunk is {theirs} there and {ours} here")
    if different:
        raise UserError(f"--init {folder} is a policy of another arm: {'; '.join(different)}")
    given, own = policy.network.state_dict(), network.state_dict()
    last = f"action_head.layers.{len(network.action_head.layers) - 1}"
    for name in (f"{last}.weight", f"{last}.bias"):
        given[name] = given[name][: len(own[name])]
    network.load_state_dict(given)


def _shape(card: PolicyCard) -> dict[str, Any]:
    return card.model_dump(mode="json", include={"cameras": True, "network": True}, exclude={"network": {"chunk"}})


def unlike(there: Any, here: Any) -> list[str]:
    """Where what was trained elsewhere, or before, differs from what is trained here, in words."""
    return [f"{place} is {theirs!r} there and {ours!r} here" for place, theirs, ours in differences(there, here)]
