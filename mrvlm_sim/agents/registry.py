"""From what stands after `--policy` to a policy."""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mrvlm_sim.agents.baselines import NoOpPolicy, RandomPolicy, ScriptedExpert
from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.policy import Policy
from mrvlm_sim.agents.remote import RemotePolicy
from mrvlm_sim.agents.trained import CARD, load_trained, sha256
from mrvlm_sim.cards import read_card
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.loading import load_object, source_file
from mrvlm_sim.paths import cards_in

PLUGINS = "mrvlm_sim.policies"  # group of entry points
ADDRESSES = ("ws://", "wss://")
BASELINES: dict[str, Callable[[], Policy]] = {"expert": ScriptedExpert, "random": RandomPolicy, "noop": NoOpPolicy}


def arm_cards() -> dict[str, Path]:
    """Path of every arm's card by the arm's name, trained or not."""
    return cards_in("policies", CARD)


def arm_card(name: str) -> tuple[PolicyCard, Path]:
    """Card and folder of one arm.

    Raises:
        UserError: unknown arm, or malformed card.
    """
    cards = arm_cards()
    if name not in cards:
        raise unknown_name("arm", name, cards)
    return read_card(cards[name], PolicyCard), cards[name].parent


def shipped_arms(environment: str) -> list[str]:
    """Names of the arms with weights for an environment."""
    named = {name: read_card(path, PolicyCard) for name, path in arm_cards().items()}
    return [name for name, card in named.items() if card.weights is not None and card.environment == environment]


def plugins() -> dict[str, EntryPoint]:
    """Policies that other installed packages offer, by the names of their entry points."""
    return {point.name: point for point in entry_points(group=PLUGINS)}


def load_policy(reference: str) -> Policy:
    """A policy by the name of an arm, baseline or plugin, `module:Class`, `file.py:Class`, folder or `ws://` address.

    Raises:
        UserError: nothing of that name, or it cannot be loaded.
    """
    if reference in BASELINES:
        return BASELINES[reference]()
    if reference in arm_cards():
        return load_trained(arm_cards()[reference].parent)
    if reference in plugins():
        return _build(plugins()[reference].value)
    if reference.startswith(ADDRESSES):
        return RemotePolicy(reference)
    if ":" in reference:
        return _build(reference)
    if Path(reference).is_dir():
        return load_trained(Path(reference))
    raise unknown_name("policy", reference, [*arm_cards(), *BASELINES, *plugins()])


def _build(reference: str) -> Policy:
    build = load_object(reference)
    if not callable(build):
        raise UserError(f"{reference} must be a class or function that makes a policy, not {type(build).__name__}")
    try:
        return build()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{reference}() failed: {type(error).__name__}: {error}") from error


def policy_name(reference: str) -> str:
    """How a policy is called in tables: the arm's, folder's or class's name (of `train`'s `policy`, its parent's)."""
    if reference.startswith(ADDRESSES):
        return reference.partition("://")[2]
    if ":" in reference:
        return reference.rpartition(":")[2]
    folder = Path(reference).resolve()
    return folder.parent.name if folder.name == "policy" else folder.name


def policy_identity(reference: str, policy: Policy | None = None) -> dict[str, Any]:
    """What a policy is, as far as can be told: its card (with the weights' hash), or its source file's hash.

    A remote policy tells its own when it is connected to; `policy` saves a second connection.

    Raises:
        UserError: nothing of that name, or a malformed card.
    """
    if reference in BASELINES:
        return {"baseline": reference}
    if reference not in arm_cards():
        if reference in plugins():
            point = plugins()[reference]
            return {"entry point": point.value, "version": point.dist.version if point.dist else ""}
        if reference.startswith(ADDRESSES):
            remote = policy if isinstance(policy, RemotePolicy) else RemotePolicy(reference)
            return {"address": reference, "served": remote.metadata.get("identity")}
        if ":" in reference:
            return {"source": sha256(source_file(reference))}
    path = arm_cards().get(reference, Path(reference) / CARD)
    return {"card": read_card(path, PolicyCard).model_dump(mode="json")}
