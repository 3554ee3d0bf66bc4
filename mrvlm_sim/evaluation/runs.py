"""What a run is to do, what it is made of, and what it depends on."""

import datetime
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mrvlm_sim.agents.policy import CPU, Policy
from mrvlm_sim.agents.registry import load_for, policy_identity, policy_name
from mrvlm_sim.agents.trained import sha256
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import digest
from mrvlm_sim.evaluation.runner import Job
from mrvlm_sim.evaluation.tables import REFERENCE
from mrvlm_sim.gl import renderer_name
from mrvlm_sim.metrics.attacks.directed import WEIGHTS
from mrvlm_sim.sim.arm import PANDA_XML
from mrvlm_sim.sim.card import ExternalCard
from mrvlm_sim.sim.scene import TABLE_XML
from mrvlm_sim.tasks import environment_card, make_env, own_card, split_settings

PACKAGES = ("mrvlm-sim", "mujoco", "gymnasium", "stable-baselines3", "numpy", "torch", "safetensors", "pandas")
DECISIVE = ("mrvlm-sim", "mujoco", "numpy", "torch")  # of these, other versions may give other episodes
MISSING = "not installed"
STANDARD_SIZE = 128  # pixels


@dataclass(frozen=True)
class Plan:
    """What a run is to do: every policy under every condition on the same episodes."""

    environment: str
    policies: tuple[str, ...]  # references for `load_policy`
    conditions: tuple[Condition, ...]
    suite_seed: int
    episodes: int
    videos: int = 0  # episodes per policy and condition that are filmed
    reference: str = REFERENCE  # the policy that the others are compared with, if it takes part
    trust_pickle: bool = False  # whether loading a policy may unpickle
    device: str = CPU  # of torch, where policies compute

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(f"--episodes must be at least 1, not {self.episodes}")
        if self.suite_seed < 0:
            raise UserError(f"--seed must be 0 or more, not {self.suite_seed}")
        if self.videos < 0:
            raise UserError(f"--video must be 0 or more, not {self.videos}")
        if not self.policies:
            raise UserError(f"no policy was trained for {self.environment} yet; name one with --policy")
        if any(condition.own_only for condition in self.conditions):
            own_card(self.environment)
        conditions = [condition.name for condition in self.conditions]
        if doubled := {name for name in conditions if conditions.count(name) > 1}:
            raise UserError(f"two conditions are called {', '.join(sorted(doubled))}; name each once")
        names = [policy_name(reference) for reference in self.policies]
        if doubled := {name for name in names if names.count(name) > 1}:
            both = ", ".join(sorted(doubled))
            raise UserError(f"two policies are called {both}; names must differ within a run: copy or rename one")

    def load(self) -> tuple[dict[str, Policy], dict[str, str]]:
        """The policies that fit the environment, and what is wrong with each of the others, both by name."""
        policies, problems = {}, {}
        with closing(make_env(self.environment)) as env:
            env.check()
            for reference in self.policies:
                name = policy_name(reference)
                try:
                    policies[name] = load_for(reference, env, self.trust_pickle, self.device)
                except UserError as error:
                    problems[name] = str(error)
        return policies, problems

    def jobs(self, folder: Path, policies: Mapping[str, Policy]) -> list[Job]:
        """All episodes of these policies, but for attacks that do not apply to them."""
        references = {policy_name(reference): reference for reference in self.policies}
        return [
            self._job(references[name], condition, episode, folder)
            for name, policy in policies.items()
            for condition in self.conditions
            if condition.applies_to(policy)
            for episode in range(self.episodes)
        ]

    def _job(self, reference: str, condition: Condition, episode: int, folder: Path) -> Job:
        name = policy_name(reference)
        title = f"{name}-{condition.name}-{episode:03d}" + (f"-seed{self.suite_seed}" if self.suite_seed else "")
        film = folder / "videos" / f"{title.replace('/', '-')}.mp4" if episode < self.videos else None
        what = self.environment, reference, name, condition, self.suite_seed, episode
        return Job(*what, film, self.trust_pickle, self.device)


def environment_identity(name: str) -> dict[str, Any]:
    """What an environment is: its card, and the hashes of the files it is built of or the version of its package."""
    card, folder = environment_card(name)
    described = {"card": card.model_dump(mode="json", exclude_unset=True)}
    if isinstance(card, ExternalCard):
        return described | {"version": package_version(card.package)}
    files = [*sorted(path for path in folder.iterdir() if path.name != "env.toml"), PANDA_XML]
    if TABLE_XML.name in (folder / "scene.xml").read_text(encoding="utf-8"):
        files.append(TABLE_XML)
    return described | {"files": {path.name: sha256(path) for path in files}}


def condition_identity(condition: Condition) -> dict[str, Any]:
    """What a condition is, with what the policy is that an attack is found on, and the adversary that directs it."""
    described = condition.described()
    if condition.surrogate is not None:
        described["surrogate_identity"] = policy_identity(condition.surrogate)
    if condition.adversary is not None:
        described["adversary_sha256"] = sha256(Path(condition.adversary) / WEIGHTS)
    return described


def run_path(base: Path, plan: Plan, policies: Mapping[str, Any]) -> Path:
    """The folder of a run that was given none: the same plan and the same identities always have the same."""
    conditions = [condition_identity(condition) for condition in plan.conditions]
    parts = [environment_identity(plan.environment), policies, conditions, plan.suite_seed]
    parts += [plan.device] if plan.device != CPU else []
    name = split_settings(plan.environment)[0].replace("/", "-")
    return base / f"{name}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]}"


def standard_frame(environment: str) -> str:
    """Hash of one frame, always of the same state: equal where rendering is equal to the bit."""
    with closing(make_env(environment)) as env:
        env.reset(seed=0)
        return digest(env.renderer.frame(env.cameras[0], STANDARD_SIZE))


def fingerprint(environment: str) -> dict[str, Any]:
    """What the frames and numbers of this process depend on."""
    return {
        "renderer": renderer_name(),
        "standard_frame": standard_frame(environment),
        "versions": {name: package_version(name) for name in PACKAGES},
    }


def check_alike(here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Compare the fingerprints of this process and of one on another node, whose episodes go under this one's.

    Raises:
        UserError: an episode might go otherwise there.
    """
    ours, theirs = here["versions"], there["versions"]
    differences = [f"{name} {theirs[name]}, not {ours[name]}" for name in DECISIVE if theirs[name] != ours[name]]
    if there["standard_frame"] != here["standard_frame"]:
        differences.append(f"another standard frame, drawn by {there['renderer']}, not {here['renderer']}")
    if differences:
        raise UserError(
            f"node {there['node']} is unlike this machine: it has {'; '.join(differences)}; give all nodes of the "
            "cluster the same versions and the same kind of renderer, or leave those out that differ"
        )


def device_name(device: str) -> str:
    """A torch device, with the model of the GPU."""
    return f"{device}: {torch.cuda.get_device_name()}" if device != CPU and torch.cuda.is_available() else device


def provenance(environment: str, workers: int | None, device: str = CPU) -> dict[str, Any]:
    """What this process is and depends on."""
    return {
        "command": " ".join(["mrvlm-sim", *sys.argv[1:]]),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "workers": workers,
        "device": device_name(device),
        "gl_backend": os.environ.get("MUJOCO_GL", ""),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        **fingerprint(environment),
    }


def package_version(name: str) -> str:
    """The installed version of a package, or that it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING
