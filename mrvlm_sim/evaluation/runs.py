"""A run: its folder, its plan of episodes, its provenance, and the rows as they come in."""

import csv
import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mrvlm_sim.agents.policy import Policy, check_compatible
from mrvlm_sim.agents.registry import arm_cards, load_policy, policy_name
from mrvlm_sim.agents.trained import WEIGHTS, sha256
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import Condition, EpisodeRecord
from mrvlm_sim.evaluation.runner import Job
from mrvlm_sim.evaluation.tables import REFERENCE
from mrvlm_sim.gl import renderer_name
from mrvlm_sim.tasks import make_env

PACKAGES = ("mrvlm-sim", "mujoco", "gymnasium", "numpy", "torch", "safetensors", "pandas")


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

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(f"--episodes must be at least 1, not {self.episodes}")
        if self.suite_seed < 0:
            raise UserError(f"--seed must be 0 or more, not {self.suite_seed}")
        if self.videos < 0:
            raise UserError(f"--video must be 0 or more, not {self.videos}")
        if not self.policies:
            raise UserError(f"no policy was trained for {self.environment} yet; name one with --policy")
        names = [policy_name(reference) for reference in self.policies]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise UserError(f"two policies are called {', '.join(sorted(doubled))}; names must differ within a run")

    def load(self) -> tuple[dict[str, Policy], dict[str, str]]:
        """The policies that fit the environment, and what is wrong with each of the others, both by name."""
        env = make_env(self.environment)
        policies, problems = {}, {}
        for reference in self.policies:
            name = policy_name(reference)
            try:
                policies[name] = load_policy(reference)
                check_compatible(policies[name], env)
            except UserError as error:
                policies.pop(name, None)
                problems[name] = str(error)
        env.close()
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
        film = folder / "videos" / f"{name}-{condition.name}-{episode:03d}.mp4" if episode < self.videos else None
        return Job(self.environment, reference, name, condition, self.suite_seed, episode, film)


class RunFolder:
    """Writes one row per finished episode, at once, so that nothing is lost when a run is cut short."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True)
            self._file = (path / "episodes.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace")
        except FileExistsError as error:
            raise UserError(f"{path} exists already; choose another --output or move it away") from error
        except OSError as error:
            raise UserError(f"cannot write results to {path}: {error.strerror}; choose another --output") from error
        self._writer = csv.DictWriter(self._file, [field.name for field in fields(EpisodeRecord)])
        self._writer.writeheader()
        self._file.flush()

    def add(self, record: EpisodeRecord) -> None:
        self._writer.writerow(record.row())
        self._file.flush()

    def write(self, name: str, text: str) -> None:
        """Write one file of the run, atomically."""
        partial = self.path / (name + ".partial")
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.rename(self.path / name)

    def close(self, jobs: Sequence[Job]) -> pd.DataFrame:
        """Close the rows, put them in the order of the plan, whatever order they came in, and return them."""
        self._file.close()
        order = {(job.name, job.condition.name, job.episode): i for i, job in enumerate(jobs)}
        rows = read_episodes(self.path)
        keys = zip(rows["policy"], rows["condition"], rows["episode"], strict=True)
        rows = rows.iloc[np.argsort([order[key] for key in keys])]
        self.write("episodes.csv", rows.to_csv(index=False))
        return rows


def read_episodes(folder: Path) -> pd.DataFrame:
    """The episodes of a run, one row each, as `EpisodeRecord` names them (latencies as text).

    Raises:
        UserError: there is no run in that folder.
    """
    path = folder / "episodes.csv"
    if not path.is_file():
        raise UserError(f"no run in {folder}: {path} is missing")
    text = ["policy", "condition", "instruction", "error", "latency_ms", "start_hash", "frame_hash", "end_hash"]
    return pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False)


def new_run_path(base: Path, environment: str) -> Path:
    """A fresh folder name for a run that starts now."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return base / f"{environment}-{stamp}"


def provenance(plan: Plan, workers: int) -> str:
    """Everything that a run depended on, as JSON."""
    described: dict[str, Any] = {
        "command": " ".join(["mrvlm-sim", *sys.argv[1:]]),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": plan.environment,
        "policies": list(plan.policies),
        "conditions": [vars(condition) for condition in plan.conditions],
        "suite_seed": plan.suite_seed,
        "episodes": plan.episodes,
        "workers": workers,
        "renderer": renderer_name(),
        "gl_backend": os.environ.get("MUJOCO_GL", ""),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: package_version(name) for name in PACKAGES},
        "weights_sha256": {reference: digest for reference in plan.policies if (digest := _weights(reference))},
    }
    return json.dumps(described, indent=2) + "\n"


def package_version(name: str) -> str:
    """The installed version of a package, or `not installed`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _weights(reference: str) -> str | None:
    card = arm_cards().get(reference)
    path = (card.parent if card else Path(reference)) / WEIGHTS
    return sha256(path) if path.is_file() else None
