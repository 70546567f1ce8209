from typing import Any

from .._launch import launch
from .config import Flags, __doc__  # noqa: F401 (--help shows the docstring)

# Both import JAX: late, so that --help answers at once.


def make(**flags: Any) -> Any:
    from .settings import Config

    return Config(**flags)


def run(config: Any, workdir: Any) -> Any:
    from . import run as program

    return program.run(config, workdir)


if __name__ == "__main__":
    launch(run, Flags, make=make, distributed="units")
