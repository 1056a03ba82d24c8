"""Draws one batch of trainees after the other, as a meta-training config asks for."""

from collections.abc import Sequence

import numpy as np

from keras_learned_lr.learning.environment import TraineesEnvironment
from keras_learned_lr.learning.meta_config import MetaTrainConfig
from keras_learned_lr.learning.tasks.sampler import (
    TaskBatch,
    TaskSampler,
    draw_horizon,
    spread_offsets,
)


class TaskStream:
    """Draws training tasks.

    Args:
        config: Which tasks, from which learning rates, for how long.
        sampler: Draws a batch of a given template.
    """

    def __init__(self, config: MetaTrainConfig, sampler: TaskSampler) -> None:
        self._config = config
        self._sampler = sampler
        self._templates = config.templates("training")
        self.seed([config.seed])

    def seed(self, seed: int | Sequence[int]) -> None:
        """Starts anew: the same seed is followed by the same tasks."""
        self._rng = np.random.default_rng(seed)
        self._left: list[int] = []

    def __call__(self) -> TaskBatch:
        """Returns the next batch; each template once before one comes again."""
        config, rng = self._config, self._rng
        if not self._left:
            # The last is the first of a weighted draw without replacement
            # (Efraimidis & Spirakis 2006).
            weights = np.array([template.weight for template in self._templates])
            drawn = np.log(rng.random(len(weights))) / weights
            self._left = np.argsort(drawn).tolist()
        return self._sampler.draw(
            self._templates[self._left.pop()],
            config.tasks,
            spread_offsets(config.tasks, config.group, config.decades, rng),
            draw_horizon(config.shortest_horizon, config.longest_horizon, rng),
            rng,
        )


def make_sampler(config: MetaTrainConfig) -> TaskSampler:
    """Returns the sampler of the tasks that a config describes."""
    learner = config.learner
    return TaskSampler(
        learner.observation_spec,
        learner.action_form,
        config.shown,
        config.fewest_rows,
        config.most_wrong,
    )


def make_environment(
    config: MetaTrainConfig, stream: TaskStream | None = None
) -> TraineesEnvironment:
    """Returns the environment that a config describes.

    Args:
        config: The settings.
        stream: Draws the tasks; one that starts from the config's seed if None.

    Example:
        ```python
        from keras_learned_lr.learning import MetaTrainConfig, make_environment

        environment = make_environment(MetaTrainConfig(training=("mixtures_adam",)))
        step = environment.reset()
        while not step.is_last().all():
            step = environment.step(0.1 * np.ones(environment.batch_size))
        print(environment.score())  # the loss of each trainee
        ```
    """
    learner = config.learner
    if stream is None:
        stream = TaskStream(config, make_sampler(config))
    return TraineesEnvironment(
        stream,
        learner.reward,
        config.tasks * config.group,
        len(learner.observation_spec.names),
        privileged=learner.privileged > 0,
        baseline=config.baseline,
    )
