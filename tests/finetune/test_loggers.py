"""MLflow and W&B hear each row once, under one run, also of a training that was interrupted.

Neither is installed where these tests run: small fakes of the two modules stand in for them, as far as Lightning's
loggers call them.
"""

import sys
import types

import pytest
from fixtures_trained import Recorder

from edgetl.errors import Interrupted
from edgetl.finetune import FinetuneConfig, finetune
from edgetl.finetune.loggers import HistoryLog
from edgetl.finetune.run_folder import RunFolder


class Server:
    """What both services know: runs by their id, each with (step, name) in the order they were told."""

    def __init__(self):
        self.runs = {}
        self.finished = 0

    def begin(self, known):
        run_id = known or f"run-{len(self.runs)}"
        self.runs.setdefault(run_id, [])
        return run_id


def module(monkeypatch, name, **members):
    fake = types.ModuleType(name)
    vars(fake).update(members)
    monkeypatch.setitem(sys.modules, name, fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch):
    server = Server()

    class MlflowClient:
        def __init__(self, uri):
            pass

        def get_run(self, run_id):
            assert run_id in server.runs
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id, experiment_id="e"))

        def get_experiment_by_name(self, name):
            return types.SimpleNamespace(experiment_id="e", lifecycle_stage="active")

        def create_run(self, experiment_id, tags):
            return self.get_run(server.begin(None))

        def log_batch(self, run_id, metrics=(), params=()):
            server.runs[run_id] += [(metric.step, metric.key) for metric in metrics]

        def set_terminated(self, run_id, status):
            server.finished += 1

    module(monkeypatch, "mlflow", set_tracking_uri=lambda uri: None)
    module(monkeypatch, "mlflow.tracking", MlflowClient=MlflowClient)
    module(monkeypatch, "mlflow.entities", Metric=types.SimpleNamespace, Param=types.SimpleNamespace)
    module(monkeypatch, "mlflow.utils")
    module(monkeypatch, "mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="name")
    module(monkeypatch, "mlflow.tracking.context")
    module(monkeypatch, "mlflow.tracking.context.registry", resolve_tags=lambda tags: tags)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    return server


@pytest.fixture
def wandb(monkeypatch):
    server = Server()

    class Run:
        def __init__(self, known):
            self.id = server.begin(known)
            self.config = types.SimpleNamespace(update=lambda *_, **__: None)

        def log(self, metrics):
            step = metrics["trainer/global_step"]
            server.runs[self.id] += [(step, name) for name in metrics if name != "trainer/global_step"]

    fake = module(monkeypatch, "wandb", run=None)

    def init(*, resume, **given):
        assert fake.run is None, "the run before was not ended"
        assert resume == "allow"
        fake.run = Run(given["id"])
        return fake.run

    def finish():
        fake.run = None
        server.finished += 1

    fake.init, fake.finish = init, finish
    module(monkeypatch, "wandb.sdk")
    module(monkeypatch, "wandb.sdk.lib", RunDisabled=type("RunDisabled", (), {}))
    module(monkeypatch, "wandb.wandb_run", Run=Run)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return server


def rows(stage, count):
    return [{"stage": stage, "epoch": n + 1, "val_top1": 0.5} for n in range(count)]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_an_interrupted_run_goes_on_under_its_id_and_hears_nothing_twice(name, digits, request, tmp_path):
    server = request.getfixturevalue(name)
    folder, config = RunFolder(tmp_path / "run"), FinetuneConfig(loggers=(name,))
    folder.begin(config, digits, resume=False, force=False)
    probe = rows("probe", 3)
    for told in (probe, [*probe, *rows("tune", 1)], [*probe, *rows("tune", 3)]):
        log = HistoryLog([name], folder, {"epochs": 10})
        log.tell(told[:2])  # the probe, repeated
        log.tell(told)
        folder.write_history(told)
        log.close()
    log.finish({"top1": 0.9})
    [heard] = server.runs.values()
    stages = ["probe"] * 3 + ["tune"] * 3
    wanted = [(n, f"{stage}/{column}") for n, stage in enumerate(stages) for column in ("epoch", "val_top1")]
    assert heard == [*wanted, (6, "final/top1")]


@pytest.mark.slow
def test_a_training_that_stops_ends_its_run_and_repeating_the_probe_shortens_no_history(digits, wandb, tmp_path):
    class Stopping(Recorder):
        def progress(self, stage, done, total, text=""):
            if stage == self.stage and done == self.step:
                raise Interrupted("stopped")

    config = FinetuneConfig(
        backbone="small_cnn", weights="none", epochs=3, batch_size=30, augment="none", loggers=("wandb",)
    )
    out = tmp_path / "run"
    for stage, step, resume in (("tune", 8, False), ("probe", 50, True)):  # in the third epoch, in the 13th
        reporter = Stopping()
        reporter.stage, reporter.step = stage, step
        with pytest.raises(Interrupted):
            finetune(digits, config, out, reporter=reporter, resume=resume)
        assert len(RunFolder(out).read_history()) == 15 + 1
    finetune(digits, config, out, reporter=Recorder(), resume=True)
    [heard] = wandb.runs.values()
    assert [step for step, name in heard if name.endswith("/train_loss")] == list(range(18))
    assert wandb.finished == 3
