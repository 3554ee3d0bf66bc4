"""The OpenGL back end is chosen on import, the user's choice stands, and the doctor reports instead of raising."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mrvlm_sim import doctor
from mrvlm_sim.gl import is_software
from mrvlm_sim.paths import CHECKOUT

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the back end is chosen on Linux only")


def run_python(code: str, checkout: Path = CHECKOUT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter without MUJOCO_GL, unless `variables` give it."""
    inherited = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    environment = {**inherited, "PYTHONPATH": str(checkout), **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, timeout=120)


@on_linux
def test_import_chooses_a_backend_and_loads_neither_mujoco_nor_torch() -> None:
    code = "import os, sys, mrvlm_sim; print(os.environ['MUJOCO_GL'], {'mujoco', 'torch'} & set(sys.modules))"
    assert run_python(code).stdout.split(maxsplit=1) in (["egl", "set()\n"], ["osmesa", "set()\n"])


@pytest.mark.parametrize("choice", ["glfw", "osmesa"])
def test_the_users_choice_of_backend_is_kept(choice: str) -> None:
    run = run_python("import os, mrvlm_sim; print(os.environ['MUJOCO_GL'])", MUJOCO_GL=choice)
    assert run.stdout.strip() == choice


@on_linux
def test_mujoco_may_be_imported_first() -> None:
    code = "import mujoco, mrvlm_sim; from mrvlm_sim.gl import renderer_name; print(renderer_name())"
    run = run_python(code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize(
    ("name", "software"),
    [
        ("llvmpipe (LLVM 15.0.6, 256 bits)", True),
        ("softpipe", True),
        ("NVIDIA H200/PCIe/SSE2", False),
        ("Mesa Intel(R) UHD Graphics 620 (KBL GT2)", False),
    ],
)
def test_software_renderers_are_known_by_name(name: str, software: bool) -> None:
    assert is_software(name) is software


def test_the_doctor_notes_software_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "renderer_name", lambda: "llvmpipe (LLVM 15.0.6, 256 bits)")
    finding = next(finding for finding in doctor.examine() if finding.name == "renderer")
    assert finding.status == "note"
    assert "software rendering" in finding.detail


def test_the_doctor_reports_a_backend_that_breaks_the_import_of_mujoco() -> None:
    code = "from mrvlm_sim.doctor import examine; print([f.name for f in examine() if f.status == 'missing'])"
    run = run_python(code, MUJOCO_GL="nonsense")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "['MuJoCo', 'renderer']"


def test_every_finding_that_is_not_ok_names_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    monkeypatch.chdir(tmp_path)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["runs"].status == "missing"
    assert all(finding.remedy for finding in findings.values() if finding.status != "ok")


@pytest.mark.parametrize("card", ["id = [unclosed", "task = 'pick_place'", "id = 7", "id = 'not a valid id!'"])
def test_a_malformed_card_breaks_neither_the_import_nor_the_other_environments(card: str, tmp_path: Path) -> None:
    for folder in ("mrvlm_sim", "envs"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").touch()
    bad = tmp_path / "envs" / "bad" / "env.toml"
    bad.parent.mkdir()
    bad.write_text(card)
    run = run_python("import gymnasium, mrvlm_sim; print(gymnasium.spec('mrvlm_sim/PickPlace-v0').kwargs)", tmp_path)
    assert run.stdout.strip() == "{'name': 'pick_place'}", run.stderr
    assert str(bad) in run.stderr
