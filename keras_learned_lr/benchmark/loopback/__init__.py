"""A stand-in for TensorFlow Serving's ModelServer, on the loopback interface.

No package registry carries the server's binary. This one speaks its two APIs over the
official protos, answers from the exported SavedModel, replays warm-up requests, follows
the version folders, and refuses with the server's status codes and messages. It is for
tests and benchmarks: in Python, without batching, and bound to 127.0.0.1.
"""

from keras_learned_lr.benchmark.loopback.server import LoopbackServer

__all__ = ["LoopbackServer"]
