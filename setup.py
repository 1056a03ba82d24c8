"""Packaging: metadata, dependencies and the console script."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"


def read_version() -> str:
    """Return the version without importing the package (that would need Keras)."""
    text = (ROOT / "keras_learned_lr" / "_version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("no __version__ in keras_learned_lr/_version.py")
    return match.group(1)


INSTALL_REQUIRES = [
    # The callback wraps the model's `train_step` and `compute_loss`, which are only
    # half public, so the ranges are what the test suite has run against.
    # TensorFlow moves with tf-keras in the `train` extra: raise both together.
    "tensorflow>=2.21,<2.22",
    "keras>=3.15,<4",
    "numpy>=2.0,<3",
]

CLI = [
    "matplotlib>=3.9.2",
    "rich>=13.8",
    "typer>=0.15",
]

# What training a controller needs; applying one needs none of it.
TRAIN = [
    # Some of the tasks are made of its bundled data.
    "scikit-learn>=1.5.2",
    # TF-Agents is written for Keras 2.
    "tf-keras>=2.21,<2.22",
    # TensorFlow 2.21 no longer brings TensorBoard, and PPOAgent.train writes
    # summaries through it.
    "tensorboard>=2.21,<2.22",
    "tf-agents==0.19.0 ; python_version < '3.12'",
    # TF-Agents pins a pygame without wheels for Python 3.12 and later, so there
    # this extra lists what TF-Agents really needs, and TF-Agents itself is added
    # with `pip install --no-deps tf-agents==0.19.0` (as the Makefile does).
    "cloudpickle>=3 ; python_version >= '3.12'",
    "gin-config>=0.5 ; python_version >= '3.12'",
    "gym==0.23.0 ; python_version >= '3.12'",
    "pillow>=11 ; python_version >= '3.12'",
    "six>=1.16 ; python_version >= '3.12'",
    "tensorflow-probability>=0.25,<0.26 ; python_version >= '3.12'",
    "wrapt>=1.17 ; python_version >= '3.12'",
]

# The meta-training tasks as a vector environment for other RL libraries.
GYMNASIUM = ["gymnasium>=1.0,<2"]

# Controllers behind TensorFlow Serving, and warm-up requests in an export.
SERVING = [
    "grpcio>=1.74,<2",
    "httpcore>=1.0.5,<2",
    # Protos and stubs only; its TensorFlow is the one above.
    "tensorflow-serving-api>=2.21,<2.22",
]

DEMO = [
    *CLI,
    *TRAIN,
]

BENCHMARK = [
    *DEMO,
    "pillow>=11",
    # The first whose bootstrap takes `rng`.
    "scipy>=1.15",
]

DEV = [
    *BENCHMARK,
    *GYMNASIUM,
    *SERVING,
    "httpx>=0.27,<1",
    "hypothesis>=6.100",
    # The benchmark's rivals are checked against its implementations.
    "optax>=0.2.5,<0.3",
    # What a table's columns come as.
    "pandas>=2.2",
    # TF-Agents pins typing-extensions 4.5.0, which mypy 1.11 and later exclude.
    "mypy>=1.10,<1.11 ; python_version < '3.12'",
    "mypy>=1.18,<3 ; python_version >= '3.12'",
    "pytest>=8.3,<10",
    "pytest-xdist>=3.6",
    # One minor version: the formatter's style may change with the next.
    "ruff>=0.17,<0.18",
    # Certificates for the tests of TLS, expired ones among them.
    "trustme>=1.2,<2",
]

setup(
    name="keras_learned_lr",
    version=read_version(),
    description="A Keras callback in which a small trained network sets the "
    "learning rate.",
    long_description=README.read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The keras_learned_lr authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["keras_learned_lr*"]),
    package_data={
        "keras_learned_lr": [
            "control/pretrained/**",
            "learning/configs/*.toml",
            "learning/tasks/*.toml",
        ]
    },
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "cli": CLI,
        "train": TRAIN,
        "gymnasium": GYMNASIUM,
        "demo": DEMO,
        "benchmark": BENCHMARK,
        "serving": SERVING,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["keras-learned-lr = keras_learned_lr.cli:main"]},
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
