"""The command line: what people type, what they read back, and with which exit code it ends."""

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import pandas as pd
import pytest
from processes import start
from rich.console import Console
from tiny import save_tiny

from mrvlm_sim.agents.registry import BASELINES, arm_cards
from mrvlm_sim.agents.trained import CARD
from mrvlm_sim.cli import main
from mrvlm_sim.commands.evaluating import parse_fraction, parse_severities
from mrvlm_sim.console import print_table
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.store import read_episodes
from mrvlm_sim.metrics.attacks import ATTACKS
from mrvlm_sim.training.demos import Demonstrations

COMMANDS = (
    "eval",
    "demos",
    "train",
    "cost",
    "view",
    "list",
    "doctor",
    "bench",
    "merge",
    "compare",
    "replay",
    "export",
    "coverage",
)
EVAL = ("eval", "--env", "pick_place", "--workers", "0", "--no-baselines")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["mrvlm-sim", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, printed.out, printed.err)

    return call


class TestWrongInput:
    def test_it_ends_without_a_traceback(self, tmp_path: Path) -> None:
        with start("eval", "--env", "pikplace", cwd=tmp_path) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert out == ""
        assert err.startswith("error: unknown environment 'pikplace'. Did you mean 'pick_place'? Known: ")
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("eval", "--env", "pick_plase"), ["environment 'pick_plase'", "'pick_place'?"]),
            (("demos", "--env", "pick_plase"), ["environment 'pick_plase'", "'pick_place'?"]),
            ((*EVAL, "--policy", "uniform-257"), ["policy 'uniform-257'", "'uniform-256'?", "expert", *arm_cards()]),
            ((*EVAL, "--policy", "expert", "--eps", "4/255"), ["--attack, or leave it out"]),
            ((*EVAL, "--policy", "expert", "--severity", "1"), ["--shift, or leave it out"]),
            (
                (*EVAL, "--policy", "expert", "--shift", "noise", "--severity", "mild"),
                ["from 0 to 1, or all, not mild"],
            ),
            ((*EVAL, "--policy", "expert", "--shift", "noise", "--severity", "3"), ["between 0 and 1, not 3"]),
            ((*EVAL, "--policy", "expert", "--attack", "pgf"), ["attack 'pgf'", "'pgd'?", "noise, paint, pgd"]),
            (("view", "--env", "pick_place", "--arm", "uniform-48"), ["arm 'uniform-48'", "'uniform-49'?"]),
            (("view", "--env", "pikplace", "--arm", "uniform-49"), ["environment 'pikplace'", "'pick_place'?"]),
            (
                ("train", "bc", "--env", "pick_place", "--arm", "piramid"),
                ["arm 'piramid'", "Known: ", "pyramid-192-embedded"],
            ),
        ],
    )
    def test_unknown_names(self, cli: Cli, tmp_path: Path, arguments: tuple[str, ...], said: list[str]) -> None:
        ended = cli(*arguments)
        assert ended.code == 2
        assert ended.err.startswith("error: ")
        assert [word for word in said if word not in ended.err] == []
        assert "Traceback" not in ended.out + ended.err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--episodes", "0"), "--episodes must be at least 1, not 0"),
            (("--episodes", "many"), "--episodes"),
            (("--seed", "-1"), "--seed must be 0 or more, not -1"),
            (("--workers", "-1"), "--workers must be at least 0, not -1"),
            (("--timeout", "0"), "--timeout must be more than 0 seconds, not 0"),
            (("--shard", "4/4"), "--shard must be i/n with 0 <= i < n, for example 0/4, not '4/4'"),
            (("--shard", "half"), "--shard must be i/n with 0 <= i < n, for example 0/4, not 'half'"),
            (("--video", "-1"), "--video must be 0 or more, not -1"),
            (("--policy", "expert"), "two policies are called expert"),
            (("--attack", "noise", "--eps", "-1"), "--eps must lie in (0, 1], as a part of the pixel range"),
            (("--attack", "noise", "--eps", "0"), "--eps must lie in (0, 1]"),
            (("--attack", "noise", "--eps", "2"), "such as 4/255, not 2"),
            (("--attack", "noise", "--eps", "nan"), "--eps must lie in (0, 1]"),
            (("--attack", "noise", "--eps", "1/1000"), "--eps 0.001 is below 1/255"),
            (("--attack", "noise", "--eps", "abc"), "--eps must be a number or a fraction such as 4/255, not 'abc'"),
            (("--attack", "noise", "--eps", "1/0"), "not '1/0'"),
        ],
    )
    def test_values_out_of_range(self, cli: Cli, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
        ended = cli(*EVAL, "--policy", "expert", *arguments)
        assert ended.code == 2
        assert said in ended.err
        assert "Traceback" not in ended.out + ended.err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--adversarial", "pgd"), "takes both --adversarial and --eps, as --adversarial pgd --eps 4/255"),
            (("--eps", "4/255"), "takes both --adversarial and --eps"),
            (("--adversarial", "pgd", "--eps", "4"), "write 4/255 for 4 sensor values"),
        ],
    )
    def test_adversarial_training_of_no_size(
        self, cli: Cli, tmp_path: Path, arguments: tuple[str, ...], said: str
    ) -> None:
        ended = cli("train", "bc", "--env", "reach", "--arm", "uniform-49", *arguments)
        assert ended.code == 2
        assert said in ended.err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", ["view", "demos"])
    def test_negative_seeds(self, cli: Cli, command: str) -> None:
        arm = ("--arm", "uniform-49") if command == "view" else ()
        ended = cli(command, "--env", "pick_place", "--seed", "-1", *arm)
        assert ended.code == 2
        assert "0" in ended.err
        assert "--seed" in ended.err

    def test_attack_steps(self, cli: Cli, tmp_path: Path) -> None:
        save_tiny(tmp_path / "tiny")
        attack = ("--attack", "pgd", "--steps", "0")
        ended = cli(*EVAL, "--policy", "tiny", *attack, "--episodes", "1", "--output", "run")
        assert ended.code == 2
        assert "--steps must be at least 1, not 0" in ended.err
        assert not Path("run").exists()

    def test_an_output_that_holds_something_else(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.tex").touch()
        ended = cli(*EVAL, "--policy", "expert", "--output", "run")
        assert ended.code == 2
        assert "run exists already and holds no run, but thesis.tex; choose another --output" in ended.err
        assert [path.name for path in (tmp_path / "run").iterdir() if path.name[0] != "."] == ["thesis.tex"]

    @pytest.mark.parametrize(
        "arguments",
        [
            (*EVAL, "--policy", "expert", "--output", "file/run"),
            ("demos", "--env", "pick_place", "--episodes", "1", "--output", "file/x.npz"),
            ("view", "--env", "pick_place", "--arm", "uniform-49", "--output", "file/x.png"),
        ],
    )
    def test_an_output_under_a_file(self, cli: Cli, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        (tmp_path / "file").write_text("not a folder")
        ended = cli(*arguments)
        assert ended.code == 2
        assert "file" in ended.err
        assert "--output" in ended.err

    def test_a_malformed_card_is_named_by_its_file(self, cli: Cli, tmp_path: Path) -> None:
        card = save_tiny(tmp_path / "tiny") / CARD
        card.write_text(card.read_text().replace("depth = 1", 'depth = "one"'))
        ended = cli(*EVAL, "--policy", "tiny")
        assert ended.code == 2
        assert [word for word in (str(Path("tiny") / CARD), "network.depth", "'one'") if word not in ended.err] == []

    @pytest.mark.parametrize(
        ("env", "named"),
        [
            ("reech", "unknown environment 'reech'. Did you mean 'reach'?"),
            ("metaworld/reach-v3", "metaworld/reach-v3 is made by metaworld"),
        ],
    )
    def test_an_arm_is_trained_for_the_suites_own_environments(self, cli: Cli, env: str, named: str) -> None:
        ended = cli("train", "bc", "--env", "pick_place", "--env", env, "--arm", "uniform-49")
        assert ended.code == 2
        assert named in ended.err

    def test_a_picture_of_unknown_kind(self, cli: Cli) -> None:
        ended = cli("view", "--env", "pick_place", "--arm", "uniform-49", "--output", "view.gif")
        assert ended.code == 2
        assert "--output must end in .png or .mp4, not 'view.gif'" in ended.err


@pytest.mark.parametrize(("text", "value"), [("4/255", 4 / 255), ("0.0157", 0.0157), (" 1 / 2 ", 0.5), ("1e-2", 0.01)])
def test_fractions(text: str, value: float) -> None:
    assert parse_fraction(text) == value


@pytest.mark.parametrize("text", ["", "/", "/255", "4/255/2", "four", "1/0", "4:255"])
def test_what_is_no_fraction(text: str) -> None:
    with pytest.raises(UserError, match="--eps must be a number or a fraction such as 4/255") as error:
        parse_fraction(text)
    assert repr(text) in str(error.value)


def test_severities() -> None:
    assert parse_severities(["0.5", "1", "0.5"]) == [0.5, 1.0]
    assert parse_severities(["1", "all"]) == [1.0, 0.2, 0.4, 0.6, 0.8]
    with pytest.raises(UserError, match="--severity takes numbers from 0 to 1, or all, not most"):
        parse_severities(["most"])


def test_a_narrow_table_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the end of a name, by which two may differ, nor what is in brackets, which rich takes for a style."""
    narrow = Console(file=io.StringIO(), width=30, markup=False)
    monkeypatch.setattr("mrvlm_sim.console.console", narrow)
    print_table(pd.DataFrame({"policy": ["generalist/uniform-49[execute=1]"], "success": ["100.0"]}), "a [bold] title")
    shown = "".join(line.split("│")[1].strip() for line in narrow.file.getvalue().splitlines() if line.startswith("│"))
    assert shown == "generalist/uniform-49[execute=1]"
    assert "a [bold] title" in narrow.file.getvalue()


class TestWhatThereIs:
    def test_no_arguments_show_the_commands(self, cli: Cli) -> None:
        ended = cli()
        shown = ended.out + ended.err
        assert [name for name in COMMANDS if name not in shown] == []

    def test_the_version(self, cli: Cli) -> None:
        assert re.fullmatch(r"mrvlm-sim \d+\.\d+\.\d+\S*\n", cli("--version").out)

    def test_list_names_everything(self, cli: Cli) -> None:
        ended = cli("list")
        assert ended.code == 0
        assert [name for name in ("pick_place", *arm_cards(), *BASELINES, *ATTACKS) if name not in ended.out] == []

    def test_cost_names_every_arm(self, cli: Cli) -> None:
        ended = cli("cost")
        assert ended.code == 0
        lines = ended.out.splitlines()
        named = {
            name: [line for line in lines if re.search(rf"(?<![\w/-]){name}(?![\w-])", line)] for name in arm_cards()
        }
        assert {name: len(found) for name, found in named.items()} == dict.fromkeys(arm_cards(), 4)
        assert any(" 256 " in line for line in named["uniform-256"])
        assert any(" 48 " in line for line in named["pyramid-48-cross"])
        assert "nan" not in ended.out.lower()

    def test_doctor_finds_this_machine_fit(self, cli: Cli) -> None:
        ended = cli("doctor")
        assert ended.code == 0, ended.out
        assert [
            word for word in ("Python", "MuJoCo", "renderer", "torch", "environments") if word not in ended.out
        ] == []

    def test_view_writes_a_picture(self, cli: Cli) -> None:
        ended = cli("view", "--env", "pick_place", "--arm", "pyramid-48-cross", "--output", "new/what.png")
        assert ended.code == 0
        assert "new/what.png" in ended.out
        picture = iio.imread("new/what.png")
        assert picture.shape[0] == 512
        assert picture.shape[1] >= 4 * 512, "the frame and three levels"
        assert picture.std() > 10

    def test_demos_are_written(self, cli: Cli) -> None:
        ended = cli("demos", "--env", "pick_place", "--episodes", "2", "--output", "x.npz")
        assert ended.code == 0
        assert "2 episodes" in ended.out
        recorded = Demonstrations.load(Path("x.npz"))
        assert len(recorded.success) == 2
        assert f"{len(recorded.states)} frames" in ended.out


POLICIES = """
import numpy as np

class Broken:
    def __init__(self):
        raise OSError("no checkpoint")

class Raises:
    def reset(self, episodes): pass
    def act(self, observations): raise ValueError("lost my way")
"""


class TestEval:
    def test_results_and_where_they_are(self, cli: Cli) -> None:
        ended = cli(*EVAL, "--policy", "expert", "--policy", "noop", "--episodes", "2", "--output", "out/run")
        assert ended.code == 0, ended.out + ended.err
        lines = ended.out.splitlines()
        assert any("expert" in line and "(2/2)" in line for line in lines)
        assert any("noop" in line and "(0/2)" in line for line in lines)
        assert "results: out/run" in ended.out
        assert "nan" not in ended.out.lower()
        assert len(read_episodes(Path("out/run"))) == 4
        told = json.loads(Path("out/run/provenance.json").read_text())
        assert told["policy"] == {name: {"identity": {"baseline": name}, "cost": {}} for name in ("expert", "noop")}
        (session,) = told["sessions"]
        assert session["renderer"]
        assert session["command"].startswith("mrvlm-sim eval --env pick_place")

    def test_ceiling_and_floors_come_along(self, cli: Cli) -> None:
        ended = cli("eval", "--env", "pick_place", "--workers", "0", "--policy", "noop", "--episodes", "1")
        assert ended.code == 0
        (run,) = (Path("results") / "runs").iterdir()
        assert read_episodes(run)["policy"].tolist() == ["noop", "expert", "random"]

    def test_the_same_command_again_goes_on(self, cli: Cli) -> None:
        command = (*EVAL, "--policy", "noop", "--episodes", "2")
        assert "there already" not in cli(*command).out
        again = cli(*command)
        assert again.code == 0
        assert "2 episodes are there already" in again.out
        more = cli(*EVAL, "--policy", "noop", "--episodes", "3")
        assert "(0/3)" in more.out
        (run,) = (Path("results") / "runs").iterdir()
        assert read_episodes(run)["episode"].tolist() == [0, 1, 2]

    def test_shards_and_merge(self, cli: Cli) -> None:
        for part in ("0/2", "1/2"):
            ended = cli(*EVAL, "--policy", "noop", "--episodes", "3", "--shard", part, "--output", f"part{part[0]}")
            assert ended.code == 0
        ended = cli("merge", "whole", "part0", "part1")
        assert ended.code == 0, ended.err
        assert "(0/3)" in ended.out
        assert sorted(read_episodes(Path("whole"))["episode"]) == [0, 1, 2]

    def test_without_output_a_run_gets_a_folder_of_its_own(self, cli: Cli) -> None:
        assert cli(*EVAL, "--policy", "expert", "--episodes", "1").code == 0
        (run,) = (Path("results") / "runs").iterdir()
        assert run.name.startswith("pick_place-")
        assert (run / "table.md").read_text().count("expert") == 1

    def test_a_policy_that_cannot_be_loaded_is_left_out(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "bad.py").write_text(POLICIES)
        ended = cli(*EVAL, "--policy", "expert", "--policy", "bad.py:Broken", "--episodes", "2", "--output", "run")
        assert ended.code == 1
        assert "left out Broken: bad.py:Broken() failed: OSError: no checkpoint" in ended.out
        assert "(2/2)" in ended.out
        assert read_episodes(Path("run"))["policy"].tolist() == ["expert"] * 2

    def test_a_policy_that_raises_shows_its_errors(self, cli: Cli, tmp_path: Path) -> None:
        path = tmp_path / "bad.py"
        path.write_text(POLICIES)
        ended = cli(*EVAL, "--policy", f"{path}:Raises", "--policy", "expert", "--episodes", "2", "--output", "run")
        assert "Raises: ValueError: lost my way (2 episodes)" in ended.out
        assert read_episodes(Path("run"))["error"].tolist() == ["ValueError: lost my way"] * 2 + [""] * 2
        row = next(line for line in Path("run/table.md").read_text().splitlines() if "Raises" in line)
        assert [cell.strip() for cell in row.split("|")][-3:-1] == ["2", "0"]
        assert "(0/2)" in row

    def test_an_attack_stands_beside_its_clean_twin(self, cli: Cli, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "tiny")
        ended = cli(
            *EVAL, "--policy", str(folder), "--policy", "random", "--attack", "noise", "--attack", "noise",
            "--eps", "8/255", "--episodes", "1", "--output", "run",
        )  # fmt: skip
        assert ended.code == 0, ended.out + ended.err
        rows = read_episodes(Path("run")).set_index(["policy", "condition"])
        assert sorted(rows.index) == [("random", "clean"), ("tiny", "clean"), ("tiny", "noise")]
        assert rows.loc[("tiny", "noise"), "largest_change"] == 8
        assert "noise drop" in ended.out
        assert "nan" not in ended.out.lower()

    def test_a_film_is_made(self, cli: Cli) -> None:
        assert cli(*EVAL, "--policy", "expert", "--episodes", "2", "--video", "1", "--output", "run").code == 0
        assert [film.name for film in Path("run/videos").iterdir()] == ["expert-clean-000.mp4"]
