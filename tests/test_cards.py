"""Every shipped card loads and fits; a malformed one is refused by file, key, value and rule."""

import hashlib
import shutil
from pathlib import Path

import pytest

from mrvlm_sim import paths
from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.cards import read_card
from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.sim.card import EnvironmentCard, environment_cards, is_external
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.tasks import make_env, make_task, split_settings

ENVIRONMENTS = {name: path for name, path in environment_cards().items() if not is_external(path)}
POLICIES = paths.cards_in("policies", "policy.toml")
POLICY = POLICIES["pyramid-192-embedded"]
ENVIRONMENT = ENVIRONMENTS["pick_place"]


@pytest.fixture(scope="module")
def environments() -> dict[str, ManipulationEnv]:
    return {name: make_env(name) for name in ENVIRONMENTS}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_card_is_complete(name: str) -> None:
    card = read_card(ENVIRONMENTS[name], EnvironmentCard)
    workspace = card.workspace
    assert all(low < x < high for low, x, high in zip(workspace.low, workspace.start, workspace.high, strict=True))
    assert card.hold_steps < card.max_steps
    assert card.summary


def test_environment_ids_are_unique() -> None:
    ids = [read_card(path, EnvironmentCard).id for path in ENVIRONMENTS.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_card_fits_its_environments(name: str, environments: dict[str, ManipulationEnv]) -> None:
    card = read_card(POLICIES[name], PolicyCard)
    for environment in card.environments:
        make_task(environment)
        env = environments[split_settings(environment)[0]]
        env.reset(seed=0)
        assert set(card.cameras) <= set(env.cameras)
        assert env.observation_space["proprio"].shape == (card.network.proprio_size,)
        assert env.action_space.shape == (card.network.action_size,)
        assert env.task.landmarks(env.scene).shape == (card.network.landmarks, 3)
    assert card.execute <= card.network.chunk
    assert PolicyNetwork(card.cameras, card.network).fusion is not None
    if card.weights is not None:
        weights = POLICIES[name].with_name("model.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == card.weights.sha256


def refusal(path: Path, model: type, old: str, new: str, source: Path) -> str:
    text = source.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        read_card(path, model)
    return str(error.value)


POLICY_FAULTS = {
    "unknown key": ("depth = ", "dpeth = ", ["network.dpeth", "'depth'"]),
    "unknown key of a camera": ("patch = ", "pacth = ", ["cameras.wrist.pacth", "'patch'"]),
    "unknown key of the jitter": ("tremor = ", "tremmor = ", ["cameras.wrist.jitter.tremmor", "'tremor'"]),
    "missing key": ("learning_rate = 6e-4", "", ["training.learning_rate", "missing"]),
    "word for a number": ("width = 128", 'width = "wide"', ["network.width", "'wide'", "integer"]),
    "number in quotes": ("width = 128", 'width = "128"', ["network.width", "'128'"]),
    "truth for a number": ("execute = 4", "execute = true", ["execute", "True"]),
    "fraction for a whole number": ("batch = 32", "batch = 32.5", ["training.batch", "32.5", "integer"]),
    "not a list": ("grids = [", "grids = 4 #", ["cameras.wrist.grids", "4"]),
    "out of range": ("tremor = 0.", "tremor = 7.", ["cameras.wrist.jitter.tremor", "7", "1"]),
    "infinite": ("learning_rate = 6e-4", "learning_rate = inf", ["training.learning_rate", "inf", "finite"]),
    "not one of the choices": ('method = "bc"', 'method = "bd"', ["training.method", "'bd'", "'bc'"]),
    "heads do not divide": ("heads = 4", "heads = 5", ["network", "128", "5 heads", "multiple"]),
    "executes more than it predicts": ("execute = 4", "execute = 9", ["execute", "9", "8"]),
}


@pytest.mark.parametrize("fault", POLICY_FAULTS)
def test_malformed_policy_cards_are_refused_by_name(fault: str, tmp_path: Path) -> None:
    old, new, named = POLICY_FAULTS[fault]
    path = tmp_path / "policy.toml"
    message = refusal(path, PolicyCard, old, new, POLICY)
    assert str(path) in message
    assert [word for word in named if word not in message] == []


def test_cross_fusion_needs_a_cutout(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    source = POLICIES["uniform-256"]
    message = refusal(path, PolicyCard, 'fusion = "sequence"', 'fusion = "cross"', source)
    assert str(path) in message
    assert "cross" in message


def test_a_pyramid_that_does_not_divide_is_refused_by_level(tmp_path: Path) -> None:
    message = refusal(tmp_path / "policy.toml", PolicyCard, "frame_size = 512", "frame_size = 500", POLICY)
    assert "cameras.wrist" in message
    assert "level 0" in message
    assert "500" in message


def test_what_is_not_a_card_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    with pytest.raises(UserError, match=r"policy\.toml.*PolicyCard"):
        read_card(path, PolicyCard)
    path.write_text("execute = = 4")
    with pytest.raises(UserError, match=r"policy\.toml is not valid TOML.*line 1"):
        read_card(path, PolicyCard)
    path.write_bytes(b'summary = "\xff\xfe"')
    with pytest.raises(UserError, match=r"policy\.toml is not valid TOML"):
        read_card(path, PolicyCard)


def test_several_faults_are_told_at_once(tmp_path: Path) -> None:
    new = "depth = 0\ncolour = 1"
    message = refusal(tmp_path / "policy.toml", PolicyCard, "depth = 4", new, POLICY)
    assert "network.depth" in message
    assert "network.colour" in message


@pytest.fixture
def copy_of_envs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own, whose cards a test may change; returns the folder of one environment."""
    (tmp_path / "pyproject.toml").touch()
    shutil.copytree(ENVIRONMENT.parent, tmp_path / "envs" / "mine")
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    return tmp_path / "envs" / "mine"


def test_a_new_scene_is_one_folder(copy_of_envs: Path) -> None:
    env = make_env("mine")
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space


ENVIRONMENT_FAULTS = {
    "unknown key": ("max_steps = ", "max_step = ", ["max_step", "'max_steps'"]),
    "unknown parameter": ("spacing = ", "spaceing = ", ["parameters.spaceing", "'spacing'"]),
    "parameter out of range": ("spacing = 0.10", "spacing = -0.5", ["parameters.spacing", "-0.5", "greater"]),
    "parameter of wrong type": ("max_yaw = 0.5", 'max_yaw = "half"', ["parameters.max_yaw", "'half'", "number"]),
    "parameter missing": ("start_noise = 0.03", "", ["parameters.start_noise", "missing"]),
    "fewest above most": ("objects = [2, 4]", "objects = [4, 2]", ["parameters.objects", "4", "2"]),
    "no such task": ('task = "pick_place"', 'task = "pick_plaice"', ["task", "pick_plaice", "tasks"]),
    "short vector": ("start = [0.48, 0.0, 0.22]", "start = [0.48, 0.0]", ["workspace.start", "2"]),
    "low above high": ("low = [0.30,", "low = [0.90,", ["workspace", "0.9"]),
}


@pytest.mark.parametrize("fault", ENVIRONMENT_FAULTS)
def test_malformed_environment_cards_are_refused_by_name(fault: str, copy_of_envs: Path) -> None:
    old, new, named = ENVIRONMENT_FAULTS[fault]
    path = copy_of_envs / "env.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        make_env("mine")
    message = str(error.value)
    assert str(path) in message
    assert [word for word in named if word not in message] == []


def test_an_unknown_environment_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'pick_place'"):
        make_env("pick-place")
