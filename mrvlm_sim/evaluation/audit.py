"""The audit: whether attacks on a policy are as strong as they should be, before their result is believed.

After Carlini et al., "On evaluating adversarial robustness" (2019) and Tramer et al., "On adaptive attacks to
adversarial example defenses" (2020). Attacks are compared on single looks of clean episodes, by how far they move the
actions (`harm`), with paired 95 % intervals. A gate fails if it is sure to; it passes only if the looks were enough to
see half of the harm.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrvlm_sim.agents.policy import Policy
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.evaluation.episode import surrogate_of, victim_of
from mrvlm_sim.evaluation.gates import BOUND, CONVERGES, NOTHING, TRANSFER, Gate, told
from mrvlm_sim.evaluation.moments import harm, redraws, sample_moments
from mrvlm_sim.evaluation.tables import signed
from mrvlm_sim.metrics.attacks import ATTACKS, Attack, DifferentiablePolicy, Threat
from mrvlm_sim.metrics.attacks.base import Moment, Origins, tensors
from mrvlm_sim.metrics.attacks.gradient import APGD, PGD, GradientAttack
from mrvlm_sim.metrics.attacks.objectives import Deviation
from mrvlm_sim.metrics.statistics import mean_interval
from mrvlm_sim.seeding import generator
from mrvlm_sim.sim.suite_env import Observation

REDRAWS = 20  # fresh jitters under which harm is measured
ENOUGH = 0.01  # of the harm: what more draws may still add
CONVERGED = 0.1  # of the harm: what a better attack may still add
AGREES = 0.05  # of the slope: what finite differences may be off by
RESTARTS = 3


@dataclass(frozen=True)
class Setting:
    """An attack with all that its harm depends on."""

    attack: str
    threat: Threat
    surrogate: str | None = None
    fresh: bool = True  # harm is measured under fresh jitter, not under that of the look


class EachJitter(Deviation):
    """The mean of what each jitter gives, not what their mean gives: scatter counts, too."""

    def loss(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> Tensor:
        return (self.outputs(frames, origins, observation) - self.clean).square().mean()


class PGDOnEach(PGD):
    """The other expectation over the jitter that PGD could climb; its own is the transfer from the mean."""

    objective_type = EachJitter


class APGDOnEach(APGD):
    """The same of APGD."""

    objective_type = EachJitter


JUDGED = ("pgd", "apgd")  # attacks that can be audited
EACH = "{} on each jitter"
PLAIN = {EACH.format(name): name for name in JUDGED}  # what it is without jitter
AUDITED: Mapping[str, type[Attack]] = {**ATTACKS, EACH.format("pgd"): PGDOnEach, EACH.format("apgd"): APGDOnEach}


def check_judged(attack: str) -> str:
    """The name of an attack that can be audited.

    Raises:
        UserError: it is none of them.
    """
    if attack not in JUDGED:
        raise unknown_name("audited attack", attack, JUDGED)
    return attack


class Audit:
    """Of one attack on one policy in one environment at one size.

    Raises:
        UserError: the policy gives no gradients, so that there is nothing to audit white-box attacks on; the attack is
            none of those that can be audited; or a surrogate is no policy that could be attacked in its place.
    """

    def __init__(
        self,
        policy: Policy,
        environment: str,
        threat: Threat,
        moments: int,
        seed: int = 0,
        attack: str = "apgd",
        surrogates: Sequence[str] = (),
    ) -> None:
        if not isinstance(policy, DifferentiablePolicy):
            name = type(policy).__name__
            raise UserError(
                f"the audit is of attacks with gradients, which {name} does not give; take an arm with weights"
            )
        self.victim, self.threat, self.seed, self.attack = victim_of(policy), threat, seed, check_judged(attack)
        self.environment, self.policy, self.count = environment, policy, moments
        self.surrogates = {name: surrogate_of(name, self.victim) for name in surrogates}
        self._harms: dict[Setting, np.ndarray] = {}
        self.excess = -255  # of the largest change over its bound, in sensor values

    @cached_property
    def still(self) -> bool:
        """Whether the policy always looks at the same places, so that all knowledge of them is the same."""
        return all(p.jitter.amplitude == 0 and p.gaze == "centre" for p in self.victim.pyramids.values())

    @cached_property
    def moments(self) -> list[Moment]:
        return sample_moments(self.policy, self.environment, self.count, self.seed)

    def harms(self, attack: str, surrogate: str | None = None, fresh: bool = True, **threat: Any) -> np.ndarray:
        """What an attack does in every moment, (moments,); measured once, of all knowledge without jitter."""
        if self.still:
            attack, fresh = PLAIN.get(attack, attack), True
            threat = {name: value for name, value in threat.items() if name not in ("knowledge", "draws")}
        setting = Setting(attack, replace(self.threat, **threat), surrogate, fresh)
        if setting not in self._harms:
            self._harms[setting] = np.array([self._harm(setting, i) for i in range(len(self.moments))])
        return self._harms[setting]

    def _harm(self, setting: Setting, index: int) -> float:
        moment, rng = self.moments[index], generator(self.seed, self.environment, index, "audit")
        attack = self._attack(setting, rng)
        attacked = attack(moment.frames, moment.observation)
        changes = [np.abs(attacked[c].astype(int) - frame).max() for c, frame in moment.frames.items()]
        self.excess = max(self.excess, *(int(change) - setting.threat.bound for change in changes))
        fresh = redraws(self.victim, moment, REDRAWS, index)
        return harm(self.victim, moment, attacked, fresh if setting.fresh else attack.placed(moment.observation))

    def _attack(self, setting: Setting, rng: np.random.Generator) -> Any:
        kind, victim = AUDITED[setting.attack], self.victim
        if setting.surrogate is None:
            return kind(setting.threat, victim, rng)
        assert issubclass(kind, GradientAttack)
        return kind(setting.threat, victim, rng, surrogate=self.surrogates[setting.surrogate])

    def run(self) -> list[Gate]:
        """All gates that need no episodes."""
        name = self.attack
        own: tuple[str, Mapping] = (name, {})
        return [
            *self.gradients(),
            self.finite_differences(),
            self.not_weaker("more steps", (name, {"steps": 2 * self.threat.steps}), own),
            self.not_weaker("more restarts", (name, {"restarts": RESTARTS}), own),
            self.not_weaker("larger eps", (name, {"eps": min(1.0, 2 * self.threat.eps)}), own),
            self.converged(),
            *(
                self.not_weaker(f"{name.upper()} over {weaker.upper()}", own, (weaker, {}))
                for weaker in ("pgd", "fgsm")
                if weaker != name
            ),
            self.not_weaker("FGSM over best-of-N noise", ("fgsm", {}), ("best-noise", {})),
            self.not_weaker("white box over black box", own, ("square", {})),
            self.not_weaker("direct over transfer, jitter off", own, (name, {"knowledge": "off"})),
            self.not_weaker("mean over jitter over each jitter", own, (EACH.format(name), {})),
            *self.transfers(),
            self.enough_draws(),
            self.redraw_gap(),
            self.nothing(),
            Gate(BOUND, self.excess <= 0, f"{self.excess:+d} sensor values over the bound"),
        ]

    def nothing(self) -> Gate:
        """An attack of size 0 is the clean frame, to the bit."""

        attack = self._attack(Setting(self.attack, self.threat), np.random.default_rng(0))
        attack.threat = copy(self.threat)
        object.__setattr__(attack.threat, "eps", 0.0)  # which no threat that is asked for may have
        same = [
            np.array_equal(attack(moment.frames, moment.observation)[camera], frame)
            for moment in self.moments
            for camera, frame in moment.frames.items()
        ]
        return Gate(NOTHING, all(same), f"{sum(same)} of {len(same)} frames")

    def transfers(self) -> list[Gate]:
        """Whether what is found on other policies does no more than what is found on this one."""
        own = (self.attack, dict[str, Any]())
        if not self.surrogates:
            return [Gate(f"{TRANSFER} others", None, "of none; name one: --surrogate")]
        return [
            self.not_weaker(f"{TRANSFER} {other}", own, (self.attack, {"surrogate": other}))
            for other in self.surrogates
        ]

    def not_weaker(self, name: str, strong: tuple[str, Mapping], weak: tuple[str, Mapping]) -> Gate:
        """Whether one attack does at least as much as another, as far as the moments can tell."""
        stronger, weaker = (self.harms(attack, **how) for attack, how in (strong, weak))
        gain = mean_interval(stronger - weaker)
        figure = f"{signed(*gain, digits=2)} % of the actions' range"
        passed = told(gain[2] < 0, -gain[1], float(stronger.mean()))
        return Gate(name, passed, f"{figure}; {100 * stronger.mean():.2f} and {100 * weaker.mean():.2f}")

    def adds_little(self, share: float, attack: str, **how: Any) -> tuple[bool | None, str]:
        """Whether an attack adds at most a share of what the audited one does, as far as moments tell; and how much."""
        taken = self.harms(self.attack)
        gain, done = mean_interval(self.harms(attack, **how) - taken), float(taken.mean())
        return told(gain[1] > share * done, gain[2], done), f"{signed(*gain, digits=2)} %"

    def converged(self) -> Gate:
        """Whether APGD, whose steps adapt, adds at most a tenth with twice as many of them."""
        passed, gain = self.adds_little(CONVERGED, "apgd", steps=2 * self.threat.steps)
        return Gate(CONVERGES, passed, f"{self._taken()} %; {gain} with it")

    def _taken(self) -> str:
        return f"{100 * self.harms(self.attack).mean():.2f}"

    def gradients(self) -> list[Gate]:
        """Of the tokens of every level by themselves: finite, and not zero."""
        policy = self.victim.policy
        if not isinstance(policy, TrainedPolicy):
            return [Gate("gradients reach every level", None, "only the tokens of trained arms can be looked into")]
        found = [self._token_gradients(policy, index, moment) for index, moment in enumerate(self.moments)]
        finite = all(bool(slope.isfinite().all()) for slopes in found for slope in slopes.values())
        gates = [Gate("gradients are finite", finite, f"{len(found)} looks")]
        for camera, pyramid in self.victim.pyramids.items():
            for level in sorted(set(pyramid.token_levels.tolist())):
                own = pyramid.token_levels == level
                share = float(np.mean([float((slopes[camera][0, own] != 0).float().mean()) for slopes in found]))
                gates.append(
                    Gate(f"gradients reach level {level} of {camera}", share > 0, f"{100 * share:.1f} % of it")
                )
        return gates

    def _token_gradients(self, policy: TrainedPolicy, index: int, moment: Moment) -> dict[str, Tensor]:
        origins = redraws(self.victim, moment, 1, index)
        seen, *others = policy.inputs(tensors(moment.frames, policy), origins, moment.observation)
        tokens = {camera: values.detach().requires_grad_() for camera, values in seen.items()}
        total = policy.network(tokens, *others)[0].square().sum()
        return dict(zip(tokens, torch.autograd.grad(total, list(tokens.values())), strict=True))

    def finite_differences(self) -> Gate:
        """The slope along the gradient, by autograd and by two looks a little apart, through jitter, cut and resize."""
        errors = [self._slope_error(index, moment) for index, moment in enumerate(self.moments)]
        usual = float(np.median(errors))
        return Gate("autograd agrees with finite differences", usual < AGREES, f"median error {100 * usual:.2f} %")

    def _slope_error(self, index: int, moment: Moment) -> float:
        objective, origins = Deviation(self.victim), redraws(self.victim, moment, 1, index)
        clean = tensors(moment.frames, self.policy)
        objective.begin(clean, origins, moment.observation)
        rng = np.random.default_rng(index)
        start = {c: f + torch.from_numpy(rng.uniform(-0.02, 0.02, f.shape)).to(f) for c, f in clean.items()}
        asked = {camera: frame.clone().requires_grad_() for camera, frame in start.items()}
        loss = objective.loss(asked, origins, moment.observation)
        slopes = dict(zip(asked, torch.autograd.grad(loss, list(asked.values())), strict=True))
        norm = sum(float(slope.square().sum()) for slope in slopes.values()) ** 0.5
        step = 0.02 / max(norm, 1e-12)

        def loss_at(distance: float) -> float:
            moved = {camera: frame + distance * slopes[camera] for camera, frame in start.items()}
            with torch.no_grad():
                return float(objective.loss(moved, origins, moment.observation))

        measured = (loss_at(step) - loss_at(-step)) / (2 * step)
        return abs(measured - norm**2) / max(norm**2, 1e-12)

    def enough_draws(self) -> Gate:
        """Whether twice and four times as many draws of the jitter add at most 1 %, as far as the moments can tell.

        Where luck settles the harm, as where a gripper may open or not, it moves by more than that from attack to
        attack, whatever the draws; so what counts is the interval of the gain.
        """
        found = {
            draws: self.adds_little(ENOUGH, self.attack, draws=draws)
            for draws in (2 * self.threat.draws, 4 * self.threat.draws)
        }
        gains = "; ".join(f"{gain} with {draws}" for draws, (_, gain) in found.items())
        figure = f"{self._taken()} % with the {self.threat.draws} that were taken; {gains}"
        passed = [passed for passed, _ in found.values()]
        worst = min(passed, key=[False, None, True].index)
        return Gate("enough draws of the jitter", worst, figure)

    def redraw_gap(self) -> Gate:
        """Whether expectation does as much under fresh jitter as an attack that took one jitter for all."""
        known, unknown = self.harms(self.attack, knowledge="known"), self.harms(self.attack)
        gain = mean_interval(unknown - known)
        figure = f"{signed(*gain, digits=2)} % over an attack that knew one jitter"
        passed = told(gain[2] < 0, -gain[1], float(unknown.mean()))
        return Gate("expectation holds under fresh jitter", passed, figure)
