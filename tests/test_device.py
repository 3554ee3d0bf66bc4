"""Policies compute where they are told to; what a GPU gives is what the CPU gives, but for the last digits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from processes import start
from tiny import save_tiny

from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.agents.trained import load_trained
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.audit import Audit
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.evaluate import Evaluation
from mrvlm_sim.evaluation.moments import sample_moments
from mrvlm_sim.evaluation.report import session_notes
from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.store import read_episodes, read_parts
from mrvlm_sim.metrics.attacks import ATTACKS, Threat, Victim
from mrvlm_sim.metrics.attacks.base import Prepared, device_of, tensors

MOVABLE = """
import numpy as np

class Mine:
    device = "nowhere"

    def to(self, device):
        self.device = device

    def reset(self, episodes):
        self.sizes = [episode.action_size for episode in episodes]

    def act(self, observations):
        return np.zeros((len(self.sizes), self.sizes[0]))
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MOVABLE)
    return f"{tmp_path / 'mine.py'}:Mine"


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> list[Victim]:
    """The same policy on both."""
    folder = save_tiny(tmp_path_factory.mktemp("policies") / "tiny")
    policies = [load_trained(folder, torch.device(device)) for device in ("cpu", "cuda")]
    return [Victim(policy, policy.card.cameras, 1) for policy in policies]


class TestWhereItIsTold:
    def test_a_policy_with_the_method_is_moved(self, mine: str) -> None:
        assert load_policy(mine, device="cuda").device == "cuda"
        assert load_policy(mine).device == "nowhere"

    def test_one_without_stays(self, tmp_path: Path) -> None:
        run = Evaluation(Plan("reach", ("random",), (Condition(),), 0, 1, device="cuda"), tmp_path / "run", 0)
        run.finish()
        assert "device" not in read_parts(tmp_path / "run", "policy")["random"]

    def test_one_that_cannot_be_moved_is_left_out(self, tmp_path: Path) -> None:
        (tmp_path / "stuck.py").write_text(MOVABLE.replace("self.device = device", "raise MemoryError('full')"))
        with pytest.raises(UserError, match=r"stuck.py:Mine cannot compute on cuda: MemoryError: full"):
            load_policy(f"{tmp_path / 'stuck.py'}:Mine", device="cuda")

    def test_attacks_are_where_the_policy_is(self) -> None:
        """`meta` is a device that every machine has."""

        class Named:
            def __init__(self, device: object) -> None:
                self.device = device

        assert device_of(torch.nn.Linear(1, 1, device="meta")) == torch.device("meta")
        assert device_of(Named(torch.device("meta"))) == torch.device("meta")
        assert {device_of(Named(other)) for other in (None, "franka0", 3)} == {torch.device("cpu")}
        frames = {"wrist": np.zeros((4, 4, 3), np.uint8)}
        assert tensors(frames, Named(torch.device("meta")))["wrist"].is_meta

    def test_readers_are_told(self) -> None:
        said = {"versions": {}, "renderer": "llvmpipe"}
        assert session_notes([said, said | {"device": "cpu"}]) == []
        assert session_notes([said, said | {"device": "cuda: X1"}]) == ["policies computed on cpu, cuda: X1"]

    def test_workers_are_told_too(self, mine: str, tmp_path: Path) -> None:
        plan = Plan("reach", (mine,), (Condition(),), 0, 1, device="cuda")
        policies, problems = plan.load()
        assert not problems
        assert policies["Mine"].device == "cuda"
        assert [job.device for job in plan.jobs(tmp_path, policies)] == ["cuda"]

    def test_a_run_is_of_one_device(self, mine: str, tmp_path: Path) -> None:
        Evaluation(Plan("reach", (mine,), (Condition(),), 0, 1), tmp_path / "run", 0).finish()
        with pytest.raises(UserError, match=r"device was None, it is 'cuda'.*choose another --output"):
            Evaluation(Plan("reach", (mine,), (Condition(),), 0, 1, device="cuda"), tmp_path / "run", 0)

    def test_a_cluster_has_cpus(self, mine: str) -> None:
        with pytest.raises(UserError, match="on its CPUs, not on cuda; leave one of them out"):
            Evaluation(Plan("reach", (mine,), (Condition(),), 0, 1, device="cuda"), None, cluster="local")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that is to be missing")
    @pytest.mark.parametrize("command", ["eval --env reach", "attack --env reach --policy random", "bench"])
    def test_a_machine_without_says_so(self, command: str, tmp_path: Path) -> None:
        with start(*command.split(), "--device", "cuda", cwd=tmp_path) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert out == ""
        assert "this torch sees no CUDA device; use --device cpu" in err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGPU:
    @pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"targeted", "paint"}))
    def test_attacks_are_the_same(self, name: str, victims: list[Victim]) -> None:
        """From the same random numbers, up to gradients whose sign the last digits decide."""
        moments = sample_moments(victims[0].policy, "reach", 2, 0)
        frames, found = moments[0].frames, []
        for victim in victims:
            attack = ATTACKS[name](Threat(8 / 255, 3), victim, np.random.default_rng(0))
            if isinstance(attack, Prepared):
                attack.prepare(moments)
            found.append({c: f.astype(int) for c, f in attack(frames, moments[0].observation).items()})
        here, there = found
        for camera in frames:
            assert np.abs(there[camera] - frames[camera]).max() <= 8
            assert np.mean(here[camera] != there[camera]) < 0.05

    def test_an_audit_says_the_same(self, victims: list[Victim]) -> None:
        gates = [
            {gate.name: gate.passed for gate in Audit(victim.policy, "reach", Threat(8 / 255, 3), 4).gradients()}
            for victim in victims
        ]
        assert gates[0] == gates[1]

    def test_episodes_run_in_processes(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "tiny")
        conditions = (Condition("clean", "sensor"), Condition("pgd", "sensor", "pgd", eps=8 / 255, steps=2))
        plan = Plan("reach", (str(folder),), conditions, 0, 2, device="cuda")
        run = Evaluation(plan, tmp_path / "run", 2)
        run.run(lambda record: None)
        run.finish()
        rows = read_episodes(tmp_path / "run")
        assert len(rows) == 4
        assert not rows["error"].any()
        assert (rows.loc[rows["condition"] == "pgd", "largest_change"] == 8).all()
