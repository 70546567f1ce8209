from typing import Any

from .._launch import launch
from .config import Config, __doc__  # noqa: F401 (--help shows the docstring)


def run(config: Config, workdir: Any) -> Any:
    from . import run as program  # it imports JAX: late, so that --help answers at once

    return program.run(config, workdir)


if __name__ == "__main__":
    launch(run, Config)
