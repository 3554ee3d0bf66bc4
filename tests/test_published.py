"""Runs that are published: they read as the runs that they were, and every table in results/ comes of its episodes."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from engine import carry_out, plan_of
from typer.testing import CliRunner

from mrvlm_sim.cli import app
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.merge import merge_runs
from mrvlm_sim.evaluation.published import EPISODES, PROVENANCE, publish
from mrvlm_sim.evaluation.report import run_table
from mrvlm_sim.evaluation.robustness import write_robustness
from mrvlm_sim.evaluation.store import KINDS, planned_keys, read_episodes, read_parts, read_sessions
from mrvlm_sim.evaluation.verdicts import read_audit, read_rings, write_verdicts

RESULTS = Path(__file__).parents[1] / "results"
PUBLISHED = sorted(path.parent for path in RESULTS.glob("**/provenance.json") if "runs" not in path.parts)
ATTACKED = sorted(path for path in RESULTS.glob("**/robustness.csv") if "runs" not in path.parts)
BOTH = (EPISODES, PROVENANCE)
BOTH_TASKS = ["reach", "pick_place"]


def copied(folder: Path, to: Path) -> Path:
    """Only what is published of it."""
    to.mkdir(parents=True)
    for name in BOTH:
        shutil.copy(folder / name, to / name)
    return to


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    carry_out(plan_of("noop", "expert", episodes=2), folder)
    return folder


def test_there_are_some() -> None:
    assert len(PUBLISHED) > 10
    assert len(ATTACKED) > 10


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.relative_to(RESULTS).as_posix())
def test_the_tables_come_of_the_episodes(folder: Path, tmp_path: Path) -> None:
    found, table = run_table(copied(folder, tmp_path / "run")), pd.read_csv(folder / "table.csv")
    counts = [column for column in table if column.endswith(("/k", "/n")) or column == "policy"]
    assert len(counts) >= 3
    pd.testing.assert_frame_equal(found[counts], table[counts], check_dtype=False)


@pytest.mark.parametrize("path", ATTACKED, ids=lambda path: path.relative_to(RESULTS).parent.as_posix())
def test_what_attacks_left_comes_of_the_episodes(path: Path, tmp_path: Path) -> None:
    found, table = write_robustness(copied(path.parent, tmp_path / "run")), pd.read_csv(path)
    pd.testing.assert_frame_equal(found, table, check_dtype=False)
    assert (tmp_path / "run" / "robustness.md").read_text() == path.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("folder", "runs", "audits", "reference", "policies", "control"),
    [
        (".", BOTH_TASKS, "audit-*", "generalist/uniform-49", [], "generalist/uniform-49-lowpass"),
        ("hardened", BOTH_TASKS, "audit-*-hardened-*", "hardened/uniform-49", ["hardened/pyramid-48-embedded"], None),
        ("pick_place-gpu", ["pick_place-gpu"], "audit-pick_place-uniform-49", "generalist/uniform-49", [], None),
        (
            "pick_place-hardened",
            ["pick_place-hardened"],
            "audit-pick_place-hardened-*",
            "hardened/uniform-49",
            [],
            None,
        ),
    ],
)
def test_the_verdicts_come_of_attacks_audits_and_rings(
    folder: str,
    runs: list[str],
    audits: str,
    reference: str,
    policies: list[str],
    control: str | None,
    tmp_path: Path,
) -> None:
    robustness = RESULTS / "robustness"
    attacked = [copied(robustness / name, tmp_path / name) for name in runs]
    rings = sorted(robustness.glob("rings-*"), reverse=True) if control else []
    write_verdicts(tmp_path, attacked, sorted(robustness.glob(audits)), rings, reference, control, policies)
    for name in ("verdicts.md", "verdicts.csv", "survival.csv"):
        assert (tmp_path / name).read_text() == (robustness / folder / name).read_text()


def test_it_reads_as_the_run(run: Path, tmp_path: Path) -> None:
    apart = copied(run, tmp_path / "apart")
    pd.testing.assert_frame_equal(read_episodes(apart), read_episodes(run))
    assert planned_keys(apart) == planned_keys(run)
    assert read_sessions(apart) == read_sessions(run)
    for kind in KINDS:
        assert read_parts(apart, kind) == read_parts(run, kind)


def test_it_can_be_compared(run: Path, tmp_path: Path) -> None:
    apart = copied(run, tmp_path / "apart")
    found = [
        CliRunner().invoke(app, ["compare", str(folder), "--reference", "noop"], catch_exceptions=False)
        for folder in (run, apart)
    ]
    assert [each.exit_code for each in found] == [0, 0]
    assert found[0].output == found[1].output
    assert "expert" in found[0].output


def test_it_can_be_exported(run: Path, tmp_path: Path) -> None:
    apart = copied(run, tmp_path / "apart")
    for folder in (run, apart):
        result = CliRunner().invoke(app, ["export", str(folder), "--output", str(tmp_path / f"{folder.name}.csv")])
        assert result.exit_code == 0
    assert (tmp_path / "apart.csv").read_text() == (tmp_path / "run.csv").read_text()


def test_it_cannot_be_merged_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    apart = copied(run, tmp_path / "apart")
    with pytest.raises(
        UserError, match=r"no run in .*run\.sqlite is missing; what is published .* run its command again"
    ):
        merge_runs(tmp_path / "whole", [apart])
    assert not (tmp_path / "whole").exists()


def test_one_that_was_not_finished(run: Path, tmp_path: Path) -> None:
    parts = {kind: read_parts(run, kind) for kind in KINDS}
    (tmp_path / "part").mkdir()
    publish(tmp_path / "part", read_episodes(run)[:3], {"sessions": [], **parts}, planned=4)
    with pytest.raises(UserError, match="has 3 of 4 episodes: it was written before the run was finished"):
        read_episodes(tmp_path / "part")


@pytest.mark.parametrize(
    ("name", "text"), [(PROVENANCE, "{"), (PROVENANCE, "[]"), (EPISODES, "policy\n"), (EPISODES, "policy\na,b\nc")]
)
def test_damage_is_named(name: str, text: str, run: Path, tmp_path: Path) -> None:
    apart = copied(run, tmp_path / "apart")
    (apart / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        run_table(apart)


def test_audits_of_old_that_did_not_ask_do_not_pass(tmp_path: Path) -> None:
    """From before there were these gates."""
    published = RESULTS / "robustness" / "audit-pick_place-uniform-256"
    assert read_audit(published).failed == ()
    folder = copied(published, tmp_path / "audit")
    shutil.copy(published / "ledger.csv", folder)
    lines = (published / "audit.csv").read_text().splitlines(keepends=True)
    asked = ("APGD of twice the steps", "direct over transfer from")
    (folder / "audit.csv").write_text("".join(line for line in lines if not line.startswith(asked)))
    assert read_audit(folder).failed == ("APGD of twice the steps adds little", "direct over transfer from others")


def test_what_was_left_unfinished_is_said(tmp_path: Path) -> None:
    folder = copied(RESULTS / "robustness" / "reach-hardened-stronger", tmp_path / "audit")
    (folder / "audit.csv").write_text("gate,,figure\n")
    with pytest.raises(UserError, match="was not finished; the same command again makes it whole"):
        read_audit(folder)
    (folder / "rings-looks.csv").write_text("policy,environment,steps,draws\n")
    with pytest.raises(UserError, match="do not say their identity; make them again"):
        read_rings(folder)
