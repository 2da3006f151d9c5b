"""Other tools' configurations into recipes: `finetune convert`."""

from finetune.conversion.back import convert_back
from finetune.conversion.draft import Line
from finetune.conversion.forward import Conversion, convert_file
from finetune.conversion.given import ConvertError

__all__ = ["Conversion", "ConvertError", "Line", "convert_back", "convert_file"]
