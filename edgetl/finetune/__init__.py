"""Transfer learning: a pretrained backbone, a new head, your pictures, a checkpoint."""

from edgetl.finetune.config import FinetuneConfig
from edgetl.finetune.stage import Reporter, finetune, open_run

__all__ = ["FinetuneConfig", "Reporter", "finetune", "open_run"]
