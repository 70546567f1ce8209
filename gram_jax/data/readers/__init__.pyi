from . import coop

__all__ = ["coop"]
