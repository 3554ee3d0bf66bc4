"""The built wheel works away from the checkout: it carries the cards, the scenes and the robot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PROBE = """
import json, mujoco, mrvlm_sim
from mrvlm_sim.paths import cards_in
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.tasks.registry import environment_card
card, folder = environment_card("pick_place")
print(json.dumps({
    "package": mrvlm_sim.__file__,
    "version": mrvlm_sim.__version__,
    "policies": sorted(cards_in("policies", "policy.toml")),
    "environments": sorted(cards_in("envs", "env.toml")),
    "joints": Scene(folder, card).model.njnt,
}))
"""


def run(*command: str, cwd: Path, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing in it but the installed wheel."""
    dist, target = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("target")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist), cwd=ROOT)
    [wheel] = dist.glob("mrvlm_sim-*.whl")
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--target", str(target)]
    run(sys.executable, "-m", "pip", "install", "-q", *options, str(wheel), cwd=dist)
    return target


def test_the_wheel_carries_cards_and_scenes(installed: Path, tmp_path: Path) -> None:
    found = json.loads(run(sys.executable, "-c", PROBE, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert Path(found["package"]).is_relative_to(installed)
    assert found["version"] == "0.1.0"
    for folder, file, names in (("envs", "env.toml", "environments"), ("policies", "policy.toml", "policies")):
        there = (path.parent.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob(file))
        assert found[names] == sorted(there)
    assert found["joints"] > 7


def test_the_wheel_installs_one_package_and_one_command(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"mrvlm_sim", "bin"}
    assert (installed / "bin" / "mrvlm-sim").is_file()
    assert (installed / "mrvlm_sim" / "py.typed").is_file()
