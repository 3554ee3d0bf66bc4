"""Learning curves of several trainings side by side."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from mrvlm_sim.cli import app
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.curves import curve_table, read_curves, write_curves

pytestmark = pytest.mark.slow


def training(folder: Path, *success: float, seed: int = 0, **columns: float) -> Path:
    folder.mkdir()
    steps = [100 * (i + 1) for i in range(len(success))]
    curve = pd.DataFrame({"seed": seed, "steps": steps, "seconds": [0.6 * step for step in steps], "success": success})
    curve.assign(train_success=0.5, named_mm=20.0, **columns).to_csv(folder / "curve.csv", index=False)
    return folder


def test_seeds_of_one_run_are_put_together(tmp_path: Path) -> None:
    folders = [training(tmp_path / f"ppo-reach-mine-{seed}", 0.2, 0.4 + 0.2 * seed, seed=seed) for seed in range(3)]
    folders.append(training(tmp_path / "theirs", 0.1, 0.3, 0.5))
    curves = read_curves(folders)
    assert curves.groupby("run", sort=False)["seed"].nunique().to_dict() == {"ppo-reach-mine": 3, "theirs": 1}
    table = curve_table(curves).set_index("run")
    assert table.loc["ppo-reach-mine", "success %"] == "60 [40, 80]"
    assert table.loc["theirs", ["success %", "steps", "minutes"]].tolist() == ["50", "300", "3"]


def test_algorithms_and_arms_whose_names_end_in_numbers_stay_apart(tmp_path: Path) -> None:
    names = ("ppo-reach-mine-0", "sac-reach-mine-0", "uniform-256", "uniform-49")
    curves = read_curves([training(tmp_path / name, 0.5) for name in names])
    assert curves["run"].unique().tolist() == ["ppo-reach-mine", "sac-reach-mine", "uniform-256", "uniform-49"]


def test_tables_and_picture_are_written(tmp_path: Path) -> None:
    curves = read_curves([training(tmp_path / "a-0", 0.1, 0.9), training(tmp_path / "a-1", 0.2, 1.0, seed=1)])
    write_curves(tmp_path / "out", curves)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "curves.csv"), curves)
    assert "| a " in (tmp_path / "out" / "curves.md").read_text()
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_curve_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing/curve\.csv is missing"):
        read_curves([tmp_path / "nothing"])
    blind = training(tmp_path / "blind", 0.1)
    pd.read_csv(blind / "curve.csv").drop(columns="success").to_csv(blind / "curve.csv", index=False)
    with pytest.raises(UserError, match="--eval-episodes 0"):
        read_curves([blind])
    twice = training(tmp_path / "twice-1", 0.1, seed=1)
    with pytest.raises(UserError, match="two trainings are called twice and have seed 1"):
        read_curves([twice, twice])


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["curves", str(training(tmp_path / "mine-3", 0.5))])
    assert result.exit_code == 0
    assert "mine" in result.output
