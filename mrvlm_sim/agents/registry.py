"""From what stands after `--policy` to a policy."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mrvlm_sim.agents.baselines import NoOpPolicy, RandomPolicy, ScriptedExpert
from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.openpi import SCHEME, OpenPiCard, OpenPiPolicy, card_of_address
from mrvlm_sim.agents.policy import CPU, Movable, Policy, check_compatible, close
from mrvlm_sim.agents.remote import RemotePolicy
from mrvlm_sim.agents.sb3 import load_sb3, sb3_identity
from mrvlm_sim.agents.trained import CARD, load_trained, sha256
from mrvlm_sim.cards import read_card
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.loading import load_object, source_file
from mrvlm_sim.paths import cards_in
from mrvlm_sim.sim.card import ExternalCard
from mrvlm_sim.sim.suite_env import SuiteEnv
from mrvlm_sim.tasks import environment_card, split_settings

PLUGINS = "mrvlm_sim.policies"  # group of entry points
SET = re.compile(r"[^\[\]]+\[[^\[\]]+\]")  # NAME[KEY=VALUE]
ADDRESSES = ("ws://", "wss://")
BASELINES: dict[str, Callable[[], Policy]] = {"expert": ScriptedExpert, "random": RandomPolicy, "noop": NoOpPolicy}
Identity = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One way to name a policy: which references are meant for it, and what follows from such a reference."""

    meant: Callable[[str], bool]
    load: Callable[[str, bool], Policy]  # with whether unpickling is allowed
    identity: Callable[[str, Policy | None], Identity]  # with the policy, if it is loaded already
    name: Callable[[str], str] = str


@runtime_checkable
class ChecksEnvironment(Protocol):
    """A policy that can say more than `Requirements` about whether an environment suits it."""

    def check_environment(self, env: SuiteEnv) -> None:
        """Raises a UserError that names both sides if it does not."""


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


def shipped_arms(environments: Sequence[str]) -> list[str]:
    """Names of the arms with weights for just these environments, or, if there are none, for these and others."""
    asked = {split_settings(environment)[0] for environment in environments}
    cards = {arm: read_card(path, PolicyCard) for arm, path in arm_cards().items()}
    known = {
        arm: {split_settings(environment)[0] for environment in card.environments}
        for arm, card in cards.items()
        if card.weights is not None
    }
    specialists = [arm for arm, knows in known.items() if knows == asked]
    return specialists or [arm for arm, knows in known.items() if knows > asked]


def fitting_baselines(environment: str) -> list[str]:
    """Names of the baselines that can act in an environment: all, but for the expert where there is none."""
    card, _ = environment_card(environment)
    blind = isinstance(card, ExternalCard) and card.expert is None
    return [name for name in BASELINES if not (blind and name == "expert")]


def plugins() -> dict[str, EntryPoint]:
    """Policies that other installed packages offer, by the names of their entry points."""
    return {point.name: point for point in entry_points(group=PLUGINS)}


def load_policy(reference: str, trust_pickle: bool = False, device: str = CPU) -> Policy:
    """A policy by what stands after `--policy`, see `KINDS`; on a torch device, if it is `Movable`.

    Raises:
        UserError: nothing of that name, or it cannot be loaded.
    """
    policy = _kind(reference).load(reference, trust_pickle)
    if device != CPU and isinstance(policy, Movable):
        try:
            policy.to(device)
        except Exception as error:
            raise UserError(f"{reference} cannot compute on {device}: {type(error).__name__}: {error}") from error
    return policy


def load_for(reference: str, env: SuiteEnv, trust_pickle: bool = False, device: str = CPU) -> Policy:
    """A policy that was compared with the environment.

    Raises:
        UserError: it cannot be loaded, or does not fit, naming both sides.
    """
    policy = load_policy(reference, trust_pickle, device)
    try:
        check_compatible(policy, env)
        if isinstance(policy, ChecksEnvironment):
            policy.check_environment(env)
    except UserError:
        close(policy)
        raise
    return policy


def policy_name(reference: str) -> str:
    """How a policy is called in tables: the arm's, folder's, file's or class's name, or its address."""
    return next((kind.name(reference) for kind in KINDS if kind.meant(reference)), _folder_name(reference))


def policy_identity(reference: str, policy: Policy | None = None) -> Identity:
    """What a policy is, as far as can be told: its card (with the weights' hash), or its file's hash.

    A remote policy tells its own when it is connected to; `policy` saves a second connection.

    Raises:
        UserError: nothing of that name, or a malformed card.
    """
    return _kind(reference).identity(reference, policy)


def short_identity(identity: Identity) -> str:
    """A short hash of what a policy is."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _kind(reference: str) -> Kind:
    for kind in KINDS:
        if kind.meant(reference):
            return kind
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


def _folder_name(reference: str) -> str:
    path, settings = _settings_apart(reference)
    folder = Path(path).resolve()
    # `train` calls its result `policy`
    return _with_settings(folder.parent.name if folder.name == "policy" else folder.name, settings)


def _settings_apart(reference: str) -> tuple[str, dict[str, Any]]:
    """An arm or a folder, and what is set of it, as in `uniform-49[execute=1]`."""
    return split_settings(reference) if SET.fullmatch(reference) and not Path(reference).exists() else (reference, {})


def _with_settings(name: str, settings: Mapping[str, Any]) -> str:
    return f"{name}[{';'.join(f'{key}={value}' for key, value in settings.items())}]" if settings else name


def _trained(reference: str) -> tuple[Path, dict[str, Any]]:
    """The folder of an arm or of another trained policy, and what is set of it."""
    name, settings = _settings_apart(reference)
    card = arm_cards().get(name)
    return card.parent if card else Path(name), settings


def _load_trained(reference: str) -> Policy:
    folder, settings = _trained(reference)
    return load_trained(folder, settings=settings)


def _card_identity(reference: str) -> Identity:
    folder, settings = _trained(reference)
    return {"card": read_card(folder / CARD, PolicyCard).with_settings(settings).model_dump(mode="json")}


def _plugin_identity(name: str) -> Identity:
    point = plugins()[name]
    return {"entry point": point.value, "version": point.dist.version if point.dist else ""}


def _openpi_identity(card: OpenPiCard, policy: Policy | None) -> Identity:
    client = policy if isinstance(policy, OpenPiPolicy) else OpenPiPolicy(card)
    return {"card": card.model_dump(mode="json"), "served": repr(client.metadata)}


def _remote_identity(address: str, policy: Policy | None) -> Identity:
    remote = policy if isinstance(policy, RemotePolicy) else RemotePolicy(address)
    return {"address": address, "served": remote.metadata.get("identity")}


KINDS = (  # the first that is meant is taken
    Kind(
        meant=lambda name: name in BASELINES,
        load=lambda name, _: BASELINES[name](),
        identity=lambda name, _: {"baseline": name},
    ),
    Kind(  # arm
        meant=lambda name: _settings_apart(name)[0] in arm_cards(),
        load=lambda name, _: _load_trained(name),
        name=lambda name: _with_settings(*_settings_apart(name)),
        identity=lambda name, _: _card_identity(name),
    ),
    Kind(
        meant=lambda name: name in plugins(),
        load=lambda name, _: _build(plugins()[name].value),
        identity=lambda name, _: _plugin_identity(name),
    ),
    Kind(
        meant=lambda address: address.startswith(ADDRESSES),
        load=lambda address, _: RemotePolicy(address),
        identity=_remote_identity,
        name=lambda address: address.partition("://")[2],
    ),
    Kind(
        meant=lambda address: address.startswith(SCHEME),
        load=lambda address, _: OpenPiPolicy(card_of_address(address)),
        identity=lambda address, policy: _openpi_identity(card_of_address(address), policy),
        name=lambda address: address.removeprefix(SCHEME),
    ),
    Kind(  # card of an openpi server
        meant=lambda path: path.endswith(".toml"),
        load=lambda path, _: OpenPiPolicy(read_card(Path(path), OpenPiCard)),
        identity=lambda path, policy: _openpi_identity(read_card(Path(path), OpenPiCard), policy),
        name=lambda path: Path(path).stem,
    ),
    Kind(  # model of stable-baselines3
        meant=lambda path: path.endswith(".zip"),
        load=lambda path, trust_pickle: load_sb3(Path(path), trust_pickle),
        identity=lambda path, _: sb3_identity(Path(path)),
        name=lambda path: Path(path).stem,
    ),
    Kind(  # module:Class, file.py:Class
        meant=lambda reference: ":" in reference,
        load=lambda reference, _: _build(reference),
        identity=lambda reference, _: {"source": sha256(source_file(reference))},
        name=lambda reference: reference.rpartition(":")[2],
    ),
    Kind(
        meant=lambda path: Path(_settings_apart(path)[0]).is_dir(),
        load=lambda path, _: _load_trained(path),
        identity=lambda path, _: _card_identity(path),
        name=_folder_name,
    ),
)
