"""History for those who watch trainings elsewhere: TensorBoard, MLflow, Weights & Biases, by Lightning's loggers.

``history.csv`` is written whatever is asked for here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from edgetl.errors import MissingExtraError
from edgetl.finetune.keeper import Row
from edgetl.finetune.run_folder import RunFolder

__all__ = ["HistoryLog"]

_PROJECT = "edgetl"


class HistoryLog:
    """Tells loggers each row of a history once, also where the run was interrupted and goes on.

    Args:
        names: ``tensorboard``, ``mlflow``, ``wandb``.
        folder: Of the run; TensorBoard's files lie in it, and it keeps under which ids others know the run.
        settings: Of the run.

    Raises:
        MissingExtraError: Its package is not installed.
    """

    def __init__(self, names: Sequence[str], folder: RunFolder, settings: dict[str, Any]) -> None:
        self._told = len(folder.read_history())  # before the run was interrupted
        self._loggers = [_opened(name, folder.root, folder.resolved().get(f"{name}_id")) for name in names]
        for logger in self._loggers:
            logger.log_hyperparams({name: value for name, value in settings.items() if value is not None})
        ids = {f"{name}_id": str(logger.version) for name, logger in zip(names, self._loggers, strict=True)}
        ids.pop("tensorboard_id", None)
        if ids:
            folder.resolve(**ids)

    def tell(self, rows: Sequence[Row]) -> None:
        """Logs the rows that are new, under ``STAGE/COLUMN``, by their place in the history."""
        for place, row in enumerate(rows[self._told :], self._told):
            metrics = {f"{row['stage']}/{n}": float(v) for n, v in row.items() if isinstance(v, int | float)}
            for logger in self._loggers:
                logger.log_metrics(metrics, step=place)
        self._told = max(self._told, len(rows))

    def finish(self, metrics: dict[str, float]) -> None:
        """Logs what was reached, and completes the files."""
        for logger in self._loggers:
            logger.log_metrics({f"final/{name}": value for name, value in metrics.items()}, step=self._told)
            logger.save()
            logger.finalize("success")

    def close(self) -> None:
        """Ends what would go on with the process: W&B would take the next run of it for this one."""
        for logger in self._loggers:
            if isinstance(logger, WandbLogger):
                importlib.import_module("wandb").finish()


def _opened(name: str, run: Path, known: str | None) -> Logger:
    """Opens a logger; ``known`` is the id of an interrupted run that goes on."""
    try:
        if name == "tensorboard":
            return TensorBoardLogger(run, name="", version="tensorboard", default_hp_metric=False)
        if name == "mlflow":
            return MLFlowLogger(_PROJECT, run_name=run.name, run_id=known)
        return WandbLogger(run.name, project=_PROJECT, save_dir=run, id=known, resume="allow")
    except ModuleNotFoundError:
        raise MissingExtraError(f"{name} is not installed, and --logger {name} needs it: pip install {name}") from None
