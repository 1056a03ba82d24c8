"""The tasks that controllers are trained and chosen on.

A family is a file with a function that draws a data set; import it here and name it in
`split.toml`.
"""

from keras_learned_lr.learning.tasks import (  # noqa: F401
    clicks,
    digits,
    friedman,
    gaussian_mixtures,
    plateaus,
    recommenders,
    reconstruction,
    sequences,
    tables,
    teacher_networks,
    text,
    textures,
    topics,
    units,
)
from keras_learned_lr.learning.tasks.models import MODELS
from keras_learned_lr.learning.tasks.split import TaskTemplate, read_split
from keras_learned_lr.learning.tasks.task_family import (
    FAMILIES,
    Data,
    TaskFamily,
    family,
)

__all__ = [
    "FAMILIES",
    "MODELS",
    "Data",
    "TaskFamily",
    "TaskTemplate",
    "family",
    "read_split",
]
