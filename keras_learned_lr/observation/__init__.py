"""What a controller sees: statistics, the probe that measures them, features."""
