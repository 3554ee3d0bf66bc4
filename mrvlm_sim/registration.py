"""Makes every environment known to `gymnasium.make` by reading two words of its card, without starting MuJoCo."""

import tomllib
import warnings

import gymnasium

from mrvlm_sim.paths import cards_in


def register_environments() -> None:
    """Register every folder of `envs/` under the id on its card; environments of other packages have theirs already.

    A card without a readable id is left out with a warning: one bad card must not take the others along.
    Everything else on a card is checked when the environment is made.
    """
    for name, path in cards_in("envs", "env.toml").items():
        try:
            card = tomllib.loads(path.read_text(encoding="utf-8"))
            if "gymnasium_id" in card:
                continue
            gymnasium.register(card["id"], entry_point="mrvlm_sim.tasks.registry:make_env", kwargs={"name": name})
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            warnings.warn(f"{path}: this environment is not registered ({problem})", stacklevel=2)
