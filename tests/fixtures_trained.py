"""Networks that are trained once for the whole suite: a source on digits 0-4, its transfer to 5-9, a bundle."""

from pathlib import Path

import pytest

from edgetl.dataset import Dataset, open_dataset, write_digits


class Recorder:
    """A reporter that keeps what it was told."""

    def __init__(self):
        self.stages = []
        self.notes = []
        self.reports = []
        self.tables = []

    def progress(self, stage, done, total, text=""):
        self.stages.append((stage, done, total))

    def note(self, text):
        self.notes.append(text)

    def weights(self, report):
        self.reports.append(report)

    def variants(self, variants):
        self.tables.append(list(variants))


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Keeps features and built-in data of the suite out of the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """Digits 0-4, 24 training pictures each, and 230 for validation."""
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root, only=range(5), per_class=24)
    return root


@pytest.fixture(scope="session")
def digits(digits_folder) -> Dataset:
    return open_dataset(digits_folder)


@pytest.fixture(scope="session")
def new_digits_folder(tmp_path_factory) -> Path:
    """Digits 5-9, 12 training pictures each."""
    root = tmp_path_factory.mktemp("data") / "new-digits"
    write_digits(root, only=range(5, 10), per_class=12)
    return root


@pytest.fixture(scope="session")
def new_digits(new_digits_folder) -> Dataset:
    return open_dataset(new_digits_folder)


@pytest.fixture(scope="session")
def source_run(digits, tmp_path_factory) -> Path:
    """small_cnn trained from scratch on digits 0-4."""
    from edgetl.finetune import FinetuneConfig, finetune

    config = FinetuneConfig(
        backbone="small_cnn", weights="none", strategy="full", epochs=8, batch_size=16, augment="light"
    )
    return finetune(digits, config, tmp_path_factory.mktemp("runs") / "source", reporter=Recorder()).root


@pytest.fixture(scope="session")
def transfer_config(source_run):
    """Settings of a transfer from ``source_run``; tests change single fields."""
    from edgetl.finetune import FinetuneConfig

    weights = str(source_run / "checkpoint.safetensors")
    return FinetuneConfig(backbone="small_cnn", weights=weights, epochs=3, batch_size=16, augment="light")


@pytest.fixture(scope="session")
def transfer_run(new_digits, transfer_config, tmp_path_factory) -> Path:
    """The source's backbone transferred to digits 5-9 by the default strategy."""
    from edgetl.finetune import finetune

    out = tmp_path_factory.mktemp("runs") / "transfer"
    return finetune(new_digits, transfer_config, out, reporter=Recorder()).root


@pytest.fixture(scope="session")
def bundle_path(transfer_run, new_digits, tmp_path_factory) -> Path:
    """``transfer_run`` exported with every variant."""
    from edgetl.export import ExportConfig, export_run

    out = tmp_path_factory.mktemp("bundles") / "digits.edgetl"
    config = ExportConfig(int8=True, max_drop=0.05, seconds=0.1)
    return export_run(transfer_run, new_digits, config, out, reporter=Recorder()).root
