"""The methods that are compared: the controller, its rivals and its controls."""

from keras_learned_lr.benchmark.quality.methods import learned, schedules
from keras_learned_lr.benchmark.quality.methods.d_adaptation import d_adaptation
from keras_learned_lr.benchmark.quality.methods.dog import dog
from keras_learned_lr.benchmark.quality.methods.hypergradient import hypergradient
from keras_learned_lr.benchmark.quality.methods.method import Method
from keras_learned_lr.benchmark.quality.methods.prodigy import prodigy
from keras_learned_lr.benchmark.quality.methods.schedule_free import schedule_free

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "cosine",
            schedules.cosine,
            swept=True,
            variants=({"warmup": 0.0},),
        ),
        Method("constant", schedules.constant, swept=True),
        Method("step", schedules.step_decay),
        Method("1cycle", schedules.one_cycle),
        Method("plateau", schedules.reduce_on_plateau),
        Method("hypergradient", hypergradient),
        # They bring an optimizer of their own, with the default of its authors.
        Method("schedule_free", schedule_free, default=0.0025),
        Method("prodigy", prodigy, default=1.0),
        Method("d_adaptation", d_adaptation, default=1.0),
        Method("dog", dog, default=1.0),
        Method(
            "learned",
            learned.learned,
            tuned=False,
            swept=True,
            needs_controller=True,
        ),
        Method(
            "untrained",
            learned.untrained,
            tuned=False,
            needs_controller=True,
        ),
        Method(
            "open_loop",
            learned.open_loop,
            tuned=False,
            swept=True,
            needs_controller=True,
            needs_averages=True,
        ),
        Method(
            "replayed",
            learned.replayed,
            tuned=False,
            swept=True,
            needs_controller=True,
            needs_averages=True,
        ),
    )
}
