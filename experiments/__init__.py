"""Programs: each module is one job, run with ``python -m experiments.NAME``."""
