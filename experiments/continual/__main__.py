from .._launch import launch
from .run import Config, __doc__, run  # noqa: F401 (--help shows the docstring)

if __name__ == "__main__":
    launch(run, Config)
