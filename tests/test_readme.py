"""What the README shows is run as it stands."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.sim.env import ManipulationEnv

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = README + (ROOT / "results" / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_custom_policy_runs_and_is_short(tmp_path: Path, env: ManipulationEnv) -> None:
    source = next(block for block in PYTHON if "class Seeker" in block)
    assert len([line for line in source.splitlines() if line.strip()]) < 30
    path = tmp_path / "seeker.py"
    path.write_text(source, encoding="utf-8")
    record = run_episode(env, "pick_place", load_policy(f"{path}:Seeker"), "Seeker", Condition(), 0, 0)
    assert record.error == ""
    assert record.steps > 0


def test_the_wrapper_examples_run() -> None:
    source = next(block for block in PYTHON if "gymnasium.make" in block)
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    observation, _ = namespace["env"].reset(seed=0)
    assert observation["wrist/tokens"].shape == (48, 32 * 32 * 3)
    exec(next(block for block in PYTHON if "TokenFeatures" in block), namespace)
    action, _ = namespace["model"].predict(observation)
    assert action.shape == (5,)
    namespace["env"].close()


def test_the_first_table_is_the_published_one() -> None:
    assert (ROOT / "results" / "pick_place-clean" / "table.md").read_text(encoding="utf-8") in RESULTS


def test_the_suite_and_the_shifts_are_the_published_ones() -> None:
    for run in ("suite", "suite-every-step", "suite-phrases", "suite-baselines"):
        assert (ROOT / "results" / run / "suite.md").read_text(encoding="utf-8") in RESULTS
    for run in ("reach-ppo", "reach-seeds", "reach-eyes-trained", "track-eyes-trained", "reach-gaze", "track-init"):
        assert (ROOT / "results" / run / "table.md").read_text(encoding="utf-8") in RESULTS
    assert (ROOT / "results" / "reach-eyes" / "table.md").read_text(encoding="utf-8").split("\n\n")[
        1
    ].strip() in RESULTS
    assert (ROOT / "results" / "reach-attacked" / "robustness.md").read_text(encoding="utf-8") in RESULTS
    assert (ROOT / "results" / "acuity" / "thresholds.md").read_text(encoding="utf-8") in RESULTS
    assert (ROOT / "results" / "acuity-eyes" / "right.md").read_text(encoding="utf-8") in RESULTS
    runs = ("reach-hardened-stronger", "reach-adversary", "reach-unhardened", "reach-noise")
    verdicts = [f"{folder}/verdicts" for folder in (".", "hardened", "pick_place-gpu", "pick_place-hardened")]
    for table in (*verdicts, *(f"{run}/robustness" for run in runs)):
        assert (ROOT / "results" / "robustness" / f"{table}.md").read_text(encoding="utf-8") in RESULTS
    for run in ("suite-shifts", "suite-shifts-frames"):
        assert (ROOT / "results" / run / "conditions.md").read_text(encoding="utf-8") in RESULTS
    rows = pd.read_csv(ROOT / "results" / "pick_place-shifts" / "episodes.csv")
    counts = rows.pivot_table(index="condition", columns="policy", values="success", aggfunc="sum", sort=False)
    arms = ["uniform-256", "uniform-49", "pyramid-48-cross", "pyramid-48-embedded", "pyramid-48-sequence"]
    for condition, line in counts[arms].astype(int).iterrows():
        cells = " \\| ".join(rf" *{count}" for count in line)
        assert re.search(rf"\| {condition} +\| {cells} \|", RESULTS), condition


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / page).parent.joinpath(target).exists(), target
