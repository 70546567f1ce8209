from .card import describe
from .folder import save_folder
from .onnx_file import save_onnx
from .stablehlo import Exported, load_exported, save_stablehlo

__all__ = ["Exported", "describe", "load_exported", "save_folder", "save_onnx", "save_stablehlo"]
