"""Controllers behind TensorFlow Serving."""

from keras_learned_lr.control.remote.grpc_client import GrpcController
from keras_learned_lr.control.remote.rest_client import RestController

__all__ = ["GrpcController", "RestController"]
