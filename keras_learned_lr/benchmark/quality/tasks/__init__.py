"""The test tasks: none shares data or architecture with those controllers learn on."""

from keras_learned_lr.benchmark.quality.task import Task
from keras_learned_lr.benchmark.quality.tasks import images, sequences, tables, text

TASKS: dict[str, Task] = {
    task.name: task
    for task in (*images.TASKS, *text.TASKS, *sequences.TASKS, *tables.TASKS)
}
