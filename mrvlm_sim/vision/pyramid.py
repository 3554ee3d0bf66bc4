"""The pyramid: where each view lies in the frame and how it is cut into tokens.

A frame is `frame_size` x `frame_size` sensor pixels. Level l is a square cutout of frame_size / zoom^l pixels,
averaged down by a whole factor to a view of grid x patch pixels. A uniform ViT is a pyramid of one level.
Frame coordinates are u (right) and v (down), both in [-1, 1]; a box is (u, v, h): centre and half size.
Cutouts are placed on multiples of their own factor, so a cut is a slice and down-sampling an exact area mean.
"""

from functools import cached_property
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mrvlm_sim.cards import Card
from mrvlm_sim.vision.jitter import Jitter

PositiveInt = Annotated[int, Field(ge=1)]
Gaze = Literal["centre", "random", "oracle", "policy"]
Told = Literal["exact", "centred", "mirrored"]


class Pyramid(Card):
    """Specification of the views of one camera.

    `grids` gives the tokens per side, level 0 (full view) first; a level of 0 has none and is only where the next one
    lies. `gaze` is what the levels are centred on: the middle of their parents; a point that is new with every look;
    the thing that the instruction names; or a point of the frame that is part of the policy's action. `told` says which
    boxes the network is told: where the views are, where they would be without jitter (and gaze), or those mirrored in
    that.
    """

    later = frozenset({"gaze", "told"})

    frame_size: PositiveInt
    patch: PositiveInt
    grids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    zoom: Annotated[int, Field(ge=2)] = 2
    jitter: Jitter = Jitter()
    gaze: Gaze = "centre"
    told: Told = "exact"

    @model_validator(mode="after")
    def _whole_pixels(self) -> Self:
        for level, grid in enumerate(self.grids):
            view = grid * self.patch or 1
            if self.frame_size % self.zoom**level or (self.frame_size // self.zoom**level) % view:
                raise ValueError(
                    f"level {level} must be a whole multiple of its view: frame_size {self.frame_size} / "
                    f"zoom {self.zoom}^{level} = {self.frame_size / self.zoom**level:g} pixels for a view of "
                    f"grid {grid} x patch {self.patch} = {view} pixels; change frame_size, grids or patch"
                )
        if not any(self.grids):
            raise ValueError(f"grids must give at least one level some tokens, they are {self.grids}")
        return self

    @property
    def levels(self) -> int:
        return len(self.grids)

    @property
    def tokens(self) -> int:
        return sum(grid**2 for grid in self.grids)

    @cached_property
    def cutout_sizes(self) -> tuple[int, ...]:
        """Width of each level's cutout in sensor pixels."""
        return tuple(self.frame_size // self.zoom**level for level in range(self.levels))

    @cached_property
    def view_sizes(self) -> tuple[int, ...]:
        """Width of each level's view in pixels."""
        return tuple(grid * self.patch for grid in self.grids)

    @cached_property
    def factors(self) -> tuple[int, ...]:
        """Down-sampling factor of each level: sensor pixels per view pixel and side; 1 without a view."""
        return tuple(c // v if v else 1 for c, v in zip(self.cutout_sizes, self.view_sizes, strict=True))

    @property
    def token_levels(self) -> np.ndarray:
        """Level of each token, int64 (tokens,)."""
        return np.repeat(np.arange(self.levels), np.square(self.grids))

    def place(self, offsets: np.ndarray, gaze: np.ndarray | None = None) -> np.ndarray:
        """Upper left corners of the cutouts, int64 (..., levels, 2) = (x, y) in sensor pixels.

        `offsets` (..., levels, 2) move each centre from its parent's centre, or from as near to `gaze` (..., 2),
        in frame coordinates, as it gets; in half-widths of the parent. Every cutout is kept inside its parent. The
        offset of level 0 is ignored.
        """
        origins = np.zeros(offsets.shape, dtype=np.int64)
        for level in range(1, self.levels):
            parent, size, factor = self.cutout_sizes[level - 1], self.cutout_sizes[level], self.factors[level]
            corner, room = origins[..., level - 1, :], parent - size
            start = room / 2 if gaze is None else np.clip((gaze + 1) * self.frame_size / 2 - size / 2 - corner, 0, room)
            steps = np.rint((start + offsets[..., level, :] * parent / 2) / factor).astype(np.int64)
            origins[..., level, :] = corner + factor * np.clip(steps, 0, room // factor)
        return origins

    def centred(self) -> np.ndarray:
        """Corners of the cutouts without jitter, int64 (levels, 2)."""
        return self.place(np.zeros((self.levels, 2)))

    def boxes(self, origins: np.ndarray) -> np.ndarray:
        """Boxes (u, v, h) of cutouts given by their corners: float64 (..., levels, 3)."""
        sizes = np.asarray(self.cutout_sizes)[:, None]
        centres = (2 * origins + sizes) / self.frame_size - 1
        half = np.broadcast_to(sizes / self.frame_size, (*origins.shape[:-1], 1))
        return np.concatenate([centres, half], axis=-1)

    def origins(self, boxes: np.ndarray) -> np.ndarray:
        """The inverse of `boxes`: corners in sensor pixels, int64 (..., levels, 2)."""
        corners = (boxes[..., :2] - boxes[..., 2:] + 1) * self.frame_size / 2
        return np.rint(corners).astype(np.int64)

    def token_boxes(self, origins: np.ndarray) -> np.ndarray:
        """Box and level of every token: float32 (..., tokens, 4) = u, v, h, level; row by row in each view."""
        boxes = self.boxes(origins)
        parts = []
        for level, grid in enumerate(self.grids):
            centres = (2 * np.arange(grid) + 1) / max(grid, 1) - 1
            cells = np.stack(np.meshgrid(centres, centres, indexing="xy"), axis=-1).reshape(-1, 2)
            view = boxes[..., level, None, :]
            placed = view[..., :2] + view[..., 2:] * cells
            rest = np.broadcast_to(np.array([0.0, level]), (*placed.shape[:-1], 2)).copy()
            rest[..., 0] = view[..., 2] / max(grid, 1)
            parts.append(np.concatenate([placed, rest], axis=-1))
        return np.concatenate(parts, axis=-2).astype(np.float32)

    def told_boxes(self, origins: np.ndarray) -> np.ndarray:
        """What the network is `told` of the `token_boxes`."""
        match self.told:
            case "centred":
                origins = np.broadcast_to(self.centred(), origins.shape)
            case "mirrored":
                origins = 2 * self.centred() - origins
        return self.token_boxes(origins)
