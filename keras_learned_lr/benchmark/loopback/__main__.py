"""`python -m keras_learned_lr.benchmark.loopback`."""

from keras_learned_lr.benchmark.loopback.server import main

main()
