import os

from .._launch import launch
from .run import Config, __doc__, run  # noqa: F401 (--help shows the docstring)

if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room on the same accelerator
    launch(run, Config)
