"""Where in the image attacks bite: the same attack restricted to rings around the middle, for every arm.

A ring that is further out is seen through fewer and coarser levels, which average its pixels down before the network
sees them; so three ways of making rings comparable are measured, and none of them alone is the answer.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import victim_of
from mrvlm_sim.evaluation.moments import harm, redraws
from mrvlm_sim.metrics.attacks import ATTACKS, Threat, Victim, make_mask
from mrvlm_sim.metrics.attacks.base import Moment
from mrvlm_sim.metrics.statistics import mean_interval
from mrvlm_sim.paths import make_parent, write_atomically
from mrvlm_sim.seeding import generator
from mrvlm_sim.vision import Pyramid

NORMALISATIONS = ("sensor pixels", "solid angle", "energy")
RINGS, REDRAWS = 4, 8
LOOKS = "rings-looks.csv"
APART = 0.012  # of policies in the picture, so that their intervals do not hide each other
RING = ("policy", "normalisation", "inner", "outer", "eps")
Ring = tuple[float, float]  # eccentricity in half-widths of the frame, from and to


def rings(normalisation: str, fovy: float, count: int = RINGS) -> list[Ring]:
    """Rings out to the middle of the frame's edges: of equal area on the sensor, or of equal solid angle.

    `fovy` is the camera's vertical field of view in degrees. Rings of equal energy are those of equal area, attacked
    with unequal size (`energy_scale`).
    """
    parts = np.arange(count + 1) / count
    if normalisation != "solid angle":
        edges = np.sqrt(parts)
    else:
        slope = np.tan(np.radians(fovy) / 2)
        cosines = 1 - parts * (1 - 1 / np.hypot(1, slope))
        edges = np.sqrt(1 / cosines**2 - 1) / slope
    return [(float(inner), float(outer)) for inner, outer in pairwise(edges)]


def energy_scale(pyramid: Pyramid, all_rings: Sequence[Ring]) -> np.ndarray:
    """By how much to multiply the size of an attack on each ring so that the same energy reaches the encoder, (rings,).

    A change that survives the averaging is constant over each view pixel, so the energy is the square of its size times
    the number of view pixels, of all levels, that lie in the ring. Mean square 1 over the rings.
    """
    counts = np.zeros(len(all_rings))
    for (x, y), view, size in zip(pyramid.centred().tolist(), pyramid.view_sizes, pyramid.cutout_sizes, strict=True):
        steps = (np.arange(view) + 0.5) * size / max(view, 1)
        u, v = (2 * (corner + steps) / pyramid.frame_size - 1 for corner in (x, y))
        eccentricity = np.hypot(u[None, :], v[:, None])
        counts += [((eccentricity >= inner) & (eccentricity < outer)).sum() for inner, outer in all_rings]
    scale = 1 / np.sqrt(counts)
    return scale / np.sqrt(np.mean(scale**2))


def scaled_size(eps: float, scale: float) -> float:
    """The whole sensor values nearest to a scaled size: 1 / 255 to 1."""
    return min(255, max(1, round(255 * eps * scale))) / 255


def ring_harms(
    victim: Victim, moments: Sequence[Moment], threat: Threat, ring: Ring, scale: float, seed: int, attack: str
) -> np.ndarray:
    """What an attack in one ring does to the actions in every moment, (moments,)."""
    sized = Threat(scaled_size(threat.eps, scale), threat.steps, threat.knowledge, threat.draws)
    mask, found = make_mask(f"ring@{ring[0]:g}-{ring[1]:g}"), []
    for index, moment in enumerate(moments):
        made = ATTACKS[attack](sized, victim, generator(seed, "rings", index, "attack"), mask)
        attacked = made(moment.frames, moment.observation)
        found.append(harm(victim, moment, attacked, redraws(victim, moment, REDRAWS, index)))
    return np.array(found)


def ring_looks(
    policies: Mapping[str, object],
    looks: Mapping[str, Sequence[Moment]],
    threat: Threat,
    fovy: float,
    seed: int,
    attack: str,
) -> pd.DataFrame:
    """One line per policy, normalisation, ring and look: the harm done there, a part of the actions' range."""
    lines = []
    for name, policy in policies.items():
        victim = victim_of(policy)  # type: ignore[arg-type]
        pyramid = only_camera(name, victim)
        for normalisation in NORMALISATIONS:
            found = rings(normalisation, fovy)
            scales = energy_scale(pyramid, found) if normalisation == "energy" else np.ones(len(found))
            for ring, scale in zip(found, scales.tolist(), strict=True):
                line = {"policy": name, "normalisation": normalisation, "inner": ring[0], "outer": ring[1]}
                harms = ring_harms(victim, looks[name], threat, ring, scale, seed, attack)
                lines += [
                    {**line, "eps": scaled_size(threat.eps, scale), "look": i, "harm": harm}
                    for i, harm in enumerate(harms)
                ]
    return pd.DataFrame(lines)


def ring_table(looks: pd.DataFrame) -> pd.DataFrame:
    """One line per policy, normalisation and ring: mean harm with its 95 % interval."""
    lines = []
    for names, rows in looks.groupby([*RING], sort=False):
        mean, low, high = mean_interval(rows["harm"].to_numpy())
        lines.append(dict(zip(RING, names, strict=True)) | {"harm": mean, "low": low, "high": high})
    return pd.DataFrame(lines)


def only_camera(name: str, victim: Victim) -> Pyramid:
    """
    Raises:
        UserError: the policy looks through several cameras, whose rings are not the same, or through none.
    """
    if len(victim.pyramids) != 1:
        raise UserError(f"rings are those of one camera, and {name} looks through {len(victim.pyramids)}; take another")
    return next(iter(victim.pyramids.values()))


def write_rings(folder: Path, looks: pd.DataFrame) -> pd.DataFrame:
    """Write `rings-looks.csv`, `rings.csv` and `rings.png`; returns the table."""
    make_parent(folder / LOOKS)
    table = ring_table(looks)
    write_atomically(folder / LOOKS, looks.to_csv(index=False))
    write_atomically(folder / "rings.csv", table.to_csv(index=False))
    draw_rings(table, folder / "rings.png")
    return table


def pretty_rings(table: pd.DataFrame) -> pd.DataFrame:
    """One line per normalisation and ring, one column per policy."""
    harm = [
        "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * line[n] for n in ("harm", "low", "high")))
        for line in table.to_dict("records")
    ]
    ring = [f"{inner:.2f} to {outer:.2f}" for inner, outer in table[["inner", "outer"]].to_numpy()]
    shown = table[["policy", "normalisation"]].assign(ring=ring, harm=harm)
    return shown.pivot(index=["normalisation", "ring"], columns="policy", values="harm").reset_index()


def draw_rings(table: pd.DataFrame, path: Path) -> None:
    """Harm against eccentricity, one panel for every normalisation, one line for every policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(NORMALISATIONS), 4), layout="constrained")
    axes = figure.subplots(1, len(NORMALISATIONS), sharey=True)
    for axis, normalisation in zip(axes, NORMALISATIONS, strict=True):
        for index, (policy, lines) in enumerate(
            table[table["normalisation"] == normalisation].groupby("policy", sort=False)
        ):
            beside, harms = (lines["inner"] + lines["outer"]) / 2 + APART * index, 100 * lines["harm"]
            spread = [harms - 100 * lines["low"], 100 * lines["high"] - harms]
            axis.errorbar(beside, harms, spread, marker="o", markersize=4, capsize=2, linewidth=1, label=policy)
        axis.set(xlabel="eccentricity, half-widths of the frame", ylim=(0, None))
        axis.set_title(f"equal {normalisation}", fontsize=9)
    axes[0].set_ylabel("actions moved, % of their range")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)
