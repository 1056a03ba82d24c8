"""`python -m keras_learned_lr` is the command line."""

from keras_learned_lr.cli import main

main()
