"""One server for the tests that only ask it."""

import sys
from pathlib import Path

import pytest

# `import servers` works here as `import helpers` does everywhere.
sys.path.insert(0, str(Path(__file__).parent))

from servers import export  # noqa: E402

from keras_learned_lr.benchmark.loopback import LoopbackServer  # noqa: E402


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with two served models, `mlp` and `recurrent`, and what is in them."""
    folder = tmp_path_factory.mktemp("models")
    return folder, {kind: export(folder / kind, kind) for kind in ("mlp", "recurrent")}


@pytest.fixture(scope="session")
def server(base):
    """Serves both."""
    folder, kinds = base
    config = "".join(
        f"config {{ name: '{kind}' base_path: '{folder / kind}' }}" for kind in kinds
    )
    with LoopbackServer(config=f"model_config_list {{ {config} }}") as running:
        yield running
