"""The tools whose files are converted, a file each."""

from finetune.conversion.base import Tool
from finetune.conversion.tools import (
    automodel,
    axolotl,
    litgpt,
    llamafactory,
    llamafactory_v1,
    mlx_lm,
    oumi,
    peft,
    swift,
    torchtune,
    trl,
)

TOOLS: tuple[Tool, ...] = (
    llamafactory.TOOL,
    llamafactory_v1.TOOL,
    axolotl.TOOL,
    trl.TOOL,
    trl.HANDBOOK,
    torchtune.TOOL,
    litgpt.TOOL,
    automodel.TOOL,
    oumi.TOOL,
    mlx_lm.TOOL,
    swift.TOOL,
    peft.TOOL,
)
