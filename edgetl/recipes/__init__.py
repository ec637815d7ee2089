"""Recipes of `edgetl finetune --recipe NAME`, one YAML file each; read by `edgetl.finetune.open_recipe`."""

__all__: list[str] = []
