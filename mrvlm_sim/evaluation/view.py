"""What an arm sees, as a picture or as a video of an expert episode."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np

from mrvlm_sim.agents.baselines import ScriptedExpert
from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.policy import EpisodeStart, batch_of_one
from mrvlm_sim.evaluation.video import EpisodeVideo, draw_boxes, enlarge, side_by_side, view_pictures
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.tasks import make_env
from mrvlm_sim.wrappers import MultiResolutionTokens

PICTURE_STEP = 7  # of the expert episode: the fingers are near the object
HEIGHT = 512


def save_view(environment: str, card: PolicyCard, seed: int, path: Path) -> None:
    """Write a PNG (step 7 of an expert episode) or, for a path that ends in .mp4, the whole episode.

    The picture shows, for every camera, the sensor frame with the boxes of all levels, then every view with its
    token grid in the colour of its box. Where the arm's policy would choose the gaze, it is straight ahead.
    """
    env = make_env(environment)
    wrapped = MultiResolutionTokens(
        env, card.cameras, source="sensor", jitter_rng=generator(seed, environment, 0, "jitter")
    )
    observation, info = wrapped.reset(seed=integer_seed(seed, environment, 0, "initial state"))
    expert = ScriptedExpert()
    expert.reset([EpisodeStart(info["instruction"], np.random.default_rng(0), env.action_size, env)])
    film = EpisodeVideo(path) if path.suffix == ".mp4" else None
    step, over = 0, False
    while not over and (film is not None or step < PICTURE_STEP):
        action = expert.act(batch_of_one(observation))[0]
        ahead = np.zeros(wrapped.action_size - len(action))
        observation, _, terminated, truncated, _ = wrapped.step(np.append(action, ahead))
        step, over = step + 1, terminated or truncated
        if film is not None:
            film.add(wrapped)
    if film is None:
        iio.imwrite(path, side_by_side([*_frames_with_boxes(wrapped), *view_pictures(wrapped, HEIGHT)]))
    else:
        film.__exit__(None, None, None)
    wrapped.close()


def _frames_with_boxes(wrapped: MultiResolutionTokens) -> list[np.ndarray]:
    pictures = []
    for camera, pyramid in wrapped.pyramids.items():
        frame = wrapped.renderer.frame(camera, pyramid.frame_size)
        pictures.append(enlarge(draw_boxes(frame, pyramid.boxes(wrapped.origins[camera])), HEIGHT))
    return pictures
