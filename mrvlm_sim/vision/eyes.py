"""Other eyes than an arm's own: its pyramid with one thing changed, to see what that thing is good for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.vision.jitter import Jitter
from mrvlm_sim.vision.pyramid import Pyramid

AMPLITUDE = 0.1  # of jitter, where the arm has none


@dataclass(frozen=True)
class Eyes:
    """One change to a pyramid."""

    about: str
    change: Callable[[Pyramid], dict[str, Any]]


def _jitter(component: str) -> Callable[[Pyramid], dict[str, Any]]:
    return lambda pyramid: {"jitter": _one_component(pyramid.jitter, component)}


def _one_component(jitter: Jitter, component: str) -> Jitter:
    nothing = {"tremor": 0.0, "drift": 0.0, "saccade": 0.0}
    return jitter.model_copy(update=nothing | {component: min(1.0, jitter.amplitude) or AMPLITUDE})


EYES: Mapping[str, Eyes] = {
    "still": Eyes("No jitter.", lambda pyramid: {"jitter": Jitter()}),
    "tremor": Eyes("Jitter that is new in every look, as large as all of the arm's own.", _jitter("tremor")),
    "drift": Eyes("Jitter that is a slow walk, as large.", _jitter("drift")),
    "saccade": Eyes("Jitter that jumps once in 8 looks, as large.", _jitter("saccade")),
    "boxes-hidden": Eyes("The network is told the boxes without jitter and gaze.", lambda pyramid: {"told": "centred"}),
    "boxes-wrong": Eyes("It is told boxes that lie as far on the other side.", lambda pyramid: {"told": "mirrored"}),
    "full-view": Eyes(
        "The tokens of the full view alone.",
        lambda pyramid: {"grids": (pyramid.grids[0], *[0] * (pyramid.levels - 1))},
    ),
    "finest-level": Eyes(
        "The tokens of the finest level alone.",
        lambda pyramid: {"grids": (*[0] * (pyramid.levels - 1), pyramid.grids[-1])},
    ),
    "gaze-random": Eyes("Levels centred on a random point of the frame.", lambda pyramid: {"gaze": "random"}),
    "gaze-oracle": Eyes("Levels centred on the thing that is named.", lambda pyramid: {"gaze": "oracle"}),
    "gaze-policy": Eyes("Levels centred where the policy says, in its actions.", lambda pyramid: {"gaze": "policy"}),
}


def changed_eyes(cameras: Mapping[str, Pyramid], name: str, retrained: bool = True) -> dict[str, Pyramid]:
    """The pyramids of all cameras with that change.

    Raises:
        UserError: no such change; the pyramids have a single level, which none of them touches; or the network is not
            `retrained` and needs to be.
    """
    if name not in EYES:
        raise unknown_name("eyes", name, EYES)
    if all(pyramid.levels == 1 for pyramid in cameras.values()):
        raise UserError(f"eyes {name}: they change how levels lie in each other, and there is a single level")
    changed = {camera: _with(pyramid, EYES[name].change(pyramid)) for camera, pyramid in cameras.items()}
    same_tokens = all(changed[camera].grids == pyramid.grids for camera, pyramid in cameras.items())
    if not retrained and not (same_tokens and gaze_size(changed) == gaze_size(cameras)):
        raise UserError(
            f"eyes {name}: a policy that was made for others cannot look through them, as they have other tokens or "
            f"actions; train one with them: mrvlm-sim train bc --eyes {name}"
        )
    return changed


def _with(pyramid: Pyramid, changes: dict[str, Any]) -> Pyramid:
    """Made anew: a copy would keep what was computed from the fields that change. A single level stays as it is."""
    if pyramid.levels == 1:
        return pyramid
    own = {name: getattr(pyramid, name) for name in Pyramid.model_fields}
    return Pyramid.model_validate({**own, **changes})


def gaze_size(cameras: Mapping[str, Pyramid]) -> int:
    """How many numbers of an action say where to look next."""
    return 2 * sum(pyramid.gaze == "policy" for pyramid in cameras.values())
