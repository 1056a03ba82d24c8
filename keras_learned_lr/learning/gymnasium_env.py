"""The same trainees for RL libraries that speak Gymnasium."""

from typing import Any

import numpy as np

from keras_learned_lr.learning.meta_config import MetaTrainConfig
from keras_learned_lr.learning.task_stream import (
    TaskStream,
    make_environment,
    make_sampler,
)

try:
    import gymnasium
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ImportError(
        "The vector environment needs Gymnasium. Install it with "
        '`pip install "keras_learned_lr[gymnasium]"`.'
    ) from error


class TraineesVectorEnv(gymnasium.vector.VectorEnv):
    """A batch of trainees as a Gymnasium vector environment.

    All episodes of a batch begin and end together. After the end, the next `step`
    ignores its actions and resets (Gymnasium's `AutoresetMode.NEXT_STEP`).

    Args:
        config: Tasks, reward, observation and action form. Its `learner` is asked for
            nothing else.

    Example:
        ```python
        from keras_learned_lr.learning import MetaTrainConfig
        from keras_learned_lr.learning.gymnasium_env import TraineesVectorEnv

        envs = TraineesVectorEnv(MetaTrainConfig(training=("mixtures_adam",)))
        observations, _ = envs.reset(seed=0)
        actions = envs.action_space.sample()
        observations, rewards, terminations, truncations, _ = envs.step(actions)
        ```
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, config: MetaTrainConfig | None = None) -> None:
        config = config or MetaTrainConfig()
        self._stream = TaskStream(config, make_sampler(config))
        self._environment = make_environment(config, self._stream)
        self.num_envs = self._environment.batch_size
        # Every feature is clipped; see `Feature.limit`.
        self.single_observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, self._environment.observation_spec().shape, np.float32
        )
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = batch_space(
            self.single_observation_space, self.num_envs
        )
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draws new trainees.

        Args:
            seed: Starts the stream of tasks anew; None goes on with it.
            options: There are none.

        Returns:
            Observations `[num_envs, features]` before step 1, and an empty dict.
        """
        if seed is not None:
            self._stream.seed(seed)
        return self._environment.reset().observation, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Trains to the next decision.

        Args:
            actions: float `[num_envs, 1]`; what lies outside [-1, 1] is clipped.

        Returns:
            Observations `[num_envs, features]`, rewards, terminations and truncations
            `[num_envs]`, and a dict that holds at the end of an episode the losses on
            the scoring rows, `score`.
        """
        now = self._environment.step(np.asarray(actions, np.float32)[:, 0])
        over = now.is_last()
        info = {"score": self._environment.score()} if over.all() else {}
        return now.observation, now.reward, over, np.zeros_like(over), info
