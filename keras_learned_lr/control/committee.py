"""Several controllers that decide together."""

from collections.abc import Sequence

import tensorflow as tf

from keras_learned_lr.control.controller import Exportable, PolicyOutput


class Committee:
    """Takes the mean of what its members would do, each with a memory of its own.

    What one training run happened to learn wrong another did not: the errors of the
    level partly cancel (Hansen & Salamon 1990, "Neural network ensembles").

    Args:
        members: Controllers that see the same and whose actions mean the same.

    Raises:
        ValueError: If there are none, or they see or do different things.

    Attributes:
        observation_spec: What it must be shown.
        action_form: What its actions mean, and when it decides.
        variables: What the members compute with.
    """

    def __init__(self, members: Sequence[Exportable]) -> None:
        if not members:
            raise ValueError("A committee needs a member. Received: none")
        first = members[0]
        for name in ("observation_spec", "action_form"):
            kinds = [getattr(member, name) for member in members]
            if any(kind != kinds[0] for kind in kinds):
                raise ValueError(
                    f"The members of a committee must share their {name}. Train them "
                    "with the same config but for seeds and tasks, or give them one "
                    f"lift and envelope. Received: {kinds}"
                )
        self.observation_spec = first.observation_spec
        self.action_form = first.action_form
        self.variables = [v for member in members for v in member.variables]
        self._members = list(members)
        self._sizes = [len(member.initial_state(1)) for member in members]

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns the members' states before the first decision, one after another."""
        return [s for member in self._members for s in member.initial_state(batch_size)]

    @tf.autograph.experimental.do_not_convert
    def act(self, observation: tf.Tensor, state: list[tf.Tensor]) -> PolicyOutput:
        """Answers observations of shape `[batch, features]`; works inside a graph."""
        actions, states = [], []
        left = list(state)
        for member, size in zip(self._members, self._sizes, strict=True):
            own, left = left[:size], left[size:]
            output = member.act(observation, own)
            # As an action form does, lest one member outvote the others.
            actions.append(tf.clip_by_value(output.action, -1.0, 1.0))
            states.extend(output.state)
        return PolicyOutput(tf.add_n(actions) / len(actions), states)
