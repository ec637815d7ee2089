"""Transfer learning: a pretrained backbone, a new head, your pictures, a checkpoint."""

from edgetl.finetune.config import FinetuneConfig
from edgetl.finetune.download import fetch_original
from edgetl.finetune.features import compute_features
from edgetl.finetune.launch import node_rank
from edgetl.finetune.recipe import Recipe, SourceStage, open_recipe, recipe_names
from edgetl.finetune.ridge import fit_ridge
from edgetl.finetune.stage import Reporter, finetune, finetune_source, open_run, take_part

__all__ = [
    "FinetuneConfig",
    "Recipe",
    "Reporter",
    "SourceStage",
    "compute_features",
    "fetch_original",
    "finetune",
    "finetune_source",
    "fit_ridge",
    "node_rank",
    "open_recipe",
    "open_run",
    "recipe_names",
    "take_part",
]
