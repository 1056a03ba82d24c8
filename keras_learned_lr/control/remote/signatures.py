"""SignatureDefs, as both APIs of TensorFlow Serving return them."""

from collections.abc import Mapping

from tensorflow.core.protobuf import meta_graph_pb2

from keras_learned_lr.control.remote.client import Signature, Tensor


def read_signatures(
    told: Mapping[str, meta_graph_pb2.SignatureDef],
) -> dict[str, Signature]:
    """Returns a model's signatures by name."""
    return {
        name: Signature(_tensors(found.inputs), _tensors(found.outputs))
        for name, found in told.items()
    }


def _tensors(told: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, Tensor]:
    return {
        name: Tensor(
            info.dtype,
            None
            if info.tensor_shape.unknown_rank
            else tuple(d.size for d in info.tensor_shape.dim),
        )
        for name, info in told.items()
    }
