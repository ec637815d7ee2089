"""Every recipe runs on small data in its real format, builds the head it names, and trains what it says."""

import json

import pytest
import torch
import yaml
from originals import write_cifar10, write_cifar100, write_mnist
from safetensors.torch import load_file, save_file
from test_finetune import history
from torch import nn

from edgetl.backbones import feature_extractor, full_model, load_network
from edgetl.cli.main import run
from edgetl.errors import InputError
from edgetl.finetune import open_recipe, recipe_names
from edgetl.finetune.job import Job

pytestmark = pytest.mark.slow

RECIPES = (
    "cifar10-to-cifar100", "edge", "mnist-features", "vgg16-block5", "vgg16-flatten-1024-sgd", "vgg16-gap-1024",
)  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with all four collections."""
    root = tmp_path_factory.mktemp("published")
    write_cifar10(root, each=10)
    write_cifar100(root)
    write_mnist(root)
    write_mnist(root, folder="FashionMNIST/raw", seed=70)
    return root


def weights_of(name, path):
    """A file with a backbone's random weights, as if they had been published; a head is not in it."""
    torch.manual_seed(1)
    full = full_model(name)
    kept = {id(p) for p in feature_extractor(full).state_dict(keep_vars=True).values()}
    state = {n: t for n, t in full_model_state(full).items() if id(t) in kept}
    save_file({n: t.detach().clone() for n, t in state.items()}, path)
    return path


def full_model_state(full):
    return full.state_dict(keep_vars=True)


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    return weights_of("vgg16", tmp_path_factory.mktemp("weights") / "vgg16.safetensors")


def finetuned(data, recipe, out, *options):
    assert run(["finetune", data, "--recipe", recipe, "--out", str(out), "--label-smoothing", "0", *options]) == 0
    network, _ = load_network(out / "checkpoint.safetensors")
    config = yaml.safe_load((out / "config.yaml").read_text())
    return network, config, load_file(out / "checkpoint.safetensors")


def layers(head):
    """The head's layers in the order in which they run, as text."""
    found = []
    for module in (head.pool, head.hidden, head.dropout, head.classifier):
        parts = module if isinstance(module, nn.Sequential) else [module]
        for part in parts:
            if isinstance(part, nn.Linear):
                found.append(f"Linear({part.in_features}, {part.out_features})")
            elif not isinstance(part, nn.Identity):
                found.append(type(part).__name__)
    return found


def changed(state, weights):
    """Names of the backbone's tensors that are no longer what the file holds."""
    found = set()
    for name, tensor in load_file(weights).items():
        short = name.removeprefix("features.")
        if not torch.equal(state[f"backbone.{short}"], tensor):
            found.add(short)
    return found


@pytest.fixture
def begun(monkeypatch):
    """Of each training on pictures, the network's parameters when it begins, and which of them are then trained."""
    seen = []

    def tune(job, *arguments, **named):
        seen.append({name: p.detach().clone() for name, p in job.network.named_parameters()})
        result = whole(job, *arguments, **named)
        assert all(p.requires_grad for p in job.network.parameters())
        return result

    whole = Job._tune
    monkeypatch.setattr(Job, "_tune", tune)
    return seen


def unmoved(state, before):
    """Names of the parameters that are what they were."""
    return [name for name, tensor in before.items() if torch.equal(state[name], tensor)]


VGG_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def of_vgg(*convolutions):
    return {f"{i}.{kind}" for i in convolutions for kind in ("weight", "bias")}


def test_vgg16_gap_1024(published, vgg16, tmp_path):
    network, config, state = finetuned(
        f"cifar10:{published}", "vgg16-gap-1024", tmp_path / "run", "--weights", str(vgg16), "--size", "32",
        "--epochs", "1",
    )  # fmt: skip
    assert layers(network.head) == ["AdaptiveAvgPool2d", "Linear(512, 1024)", "ReLU", "Dropout", "Linear(1024, 10)"]
    assert changed(state, vgg16) == set()
    assert config["strategy"] == "probe"
    assert state["head.classifier.weight"].any()  # it began at zero


def test_vgg16_flatten_1024_sgd(published, vgg16, tmp_path):
    network, config, state = finetuned(
        f"cifar10:{published}", "vgg16-flatten-1024-sgd", tmp_path / "run", "--weights", str(vgg16), "--size", "64",
        "--epochs", "1",
    )  # fmt: skip
    assert layers(network.head) == ["Linear(2048, 1024)", "ReLU", "Dropout", "Linear(1024, 10)"]  # 512 x 2 x 2
    assert changed(state, vgg16) == of_vgg(*VGG_CONVOLUTIONS)
    assert (config["optimizer"], config["lr"], config["momentum"]) == ("sgd", 0.001, 0.9)
    assert (config["l2"], config["weight_decay"], config["layer_decay"]) == (0.0005, 0.0, 1.0)
    assert (config["schedule"], config["warmup"], config["max_gradient_norm"]) == ("constant", 0.0, 0.0)
    assert {row["lr"] for row in history(tmp_path / "run") if row["lr"]} == {"0.001"}


def test_vgg16_block5(published, vgg16, tmp_path):
    network, config, state = finetuned(
        f"cifar10:{published}", "vgg16-block5", tmp_path / "run", "--weights", str(vgg16), "--size", "32",
        "--epochs", "2",
    )  # fmt: skip
    assert layers(network.head) == ["AdaptiveAvgPool2d", "Linear(512, 1024)", "ReLU", "Dropout", "Linear(1024, 10)"]
    assert changed(state, vgg16) == of_vgg(24, 26, 28)
    assert config["strategy"] == "last:1"


def test_edge(published, begun, tmp_path):
    weights = weights_of("timm/mobilenetv4_conv_small", tmp_path / "edge.safetensors")
    network, config, state = finetuned(
        f"cifar10:{published}", "edge", tmp_path / "run", "--weights", str(weights), "--size", "64", "--epochs", "1"
    )
    assert layers(network.head) == ["AdaptiveAvgPool2d", "Dropout", "Linear(960, 10)"]
    assert (config["backbone"], config["strategy"]) == ("timm/mobilenetv4_conv_small", "lp-ft")
    file = load_file(weights)
    [start] = begun
    body = {name: t for name, t in start.items() if name.startswith("backbone.")}
    assert len(body) == len(start) - 2 > 70  # the head has a weight and a bias
    assert all(torch.equal(t, file[name.removeprefix("backbone.body.")]) for name, t in body.items())  # the probe's end
    assert start["head.classifier.weight"].any()  # it began at zero
    assert unmoved(state, start) == []


@pytest.mark.parametrize(
    ("recipe", "data", "source", "classes"),
    [
        ("cifar10-to-cifar100", "cifar100", "airplane", 100),
        ("mnist-features", "mnist", "Ankle boot", 10),
    ],
)
def test_recipes_with_a_source_train_it_first(recipe, data, source, classes, published, begun, tmp_path, capsys):
    out = tmp_path / "run"
    network, config, state = finetuned(f"{data}:{published}", recipe, out, "--epochs", "1", "--batch-size", "16")
    assert layers(network.head) == ["AdaptiveAvgPool2d", "Dropout", f"Linear(128, {classes})"]
    began, spec = load_network(tmp_path / "run.source" / "checkpoint.safetensors")
    assert source in spec.labels
    assert config["weights"] == str(tmp_path / "run.source" / "checkpoint.safetensors")
    of_source, of_target = begun
    assert len(of_source) == 6 * 3 + 2
    assert unmoved(began.state_dict(), of_source) == []  # all of the source was trained, from random weights
    assert yaml.safe_load((tmp_path / "run.source" / "config.yaml").read_text())["strategy"] == "full"
    assert {row["stage"] for row in history(tmp_path / "run.source")} == {"tune", "final"}
    body = {name: tensor for name, tensor in of_target.items() if name.startswith("backbone.")}
    assert unmoved(began.state_dict(), body) == list(body)  # the probe left it alone
    assert of_target["head.classifier.weight"].any()  # and found this
    assert unmoved(state, of_target) == []
    rows = (out / "history.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["probe", "tune", "final"]  # extractor, tuned, evaluated
    assert json.loads((out / "metrics.json").read_text())["val"]["pictures"] in (20, 100)
    capsys.readouterr()
    again = ["finetune", f"{data}:{published}", "--recipe", recipe, "--out", str(out), "--force", "--epochs", "1"]
    assert run(again) == 0
    assert "run.source: is there already, and used" in capsys.readouterr().err.replace("\n", " ")


def test_the_targets_own_pictures_are_no_source(tmp_path, capsys):
    """Published under the same names, MNIST's files without a folder of their own pass for Fashion-MNIST's."""
    write_mnist(tmp_path, folder=".")
    assert run(["finetune", f"mnist:{tmp_path}", "--recipe", "mnist-features", "--out", str(tmp_path / "run")]) == 2
    assert "holds the same pictures as mnist:" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_typed_beside_a_recipe_take_the_place_of_its_source(published, source_run, tmp_path):
    out = tmp_path / "run"
    weights = str(source_run / "checkpoint.safetensors")
    _, config, _ = finetuned(f"mnist:{published}", "mnist-features", out, "--weights", weights, "--epochs", "1")
    assert config["weights"] == weights
    assert not (tmp_path / "run.source").exists()


def test_the_six_are_there_and_each_says_what_it_is():
    assert recipe_names() == sorted(RECIPES)
    for name in recipe_names():
        recipe = open_recipe(name)
        assert recipe.name == name
        assert 20 < len(recipe.description) < 140


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings: {epochs: 3}", "has no description"),
        ("description: x\nsettings: {epochs: 3}\nsorce: {}", 'unknown field "sorce"; known are description, '),
        ("description: x\nsettings: {epoch: 3}", 'settings: unknown setting "epoch"'),
        ("description: x\nsettings: {epochs: many}", "settings: epochs is 'many', that is not of the right type"),
        ("description: x\nsettings: {strategy: last}", '--strategy is "last"'),
        ("description: x\nsettings: {}\nsource: {data: digits}", "source: has no settings"),
        ("description: x\nsettings: {}\nsource: {data: 3, settings: {}}", "source: data must name pictures"),
        ("description: [x]\nsettings: {}", "description must be a line of text"),
        ("- a", "must hold description, settings, source"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_recipe_that_is_none_is_refused(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        open_recipe(str(path))
    assert message in str(caught.value)


def test_a_recipe_of_ones_own_is_read_and_unknown_names_list_what_there_is(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("description: my way\nsettings: {backbone: small_cnn, epochs: 3}\n")
    recipe = open_recipe(str(path))
    assert (recipe.name, recipe.settings) == ("mine", {"backbone": "small_cnn", "epochs": 3})
    with pytest.raises(InputError, match="--recipe vgg17: no such recipe or file; there are cifar10-to-cifar100, edge"):
        open_recipe("vgg17")


def test_source_pictures_are_asked_for_where_they_cannot_be_known(tmp_path):
    stage = open_recipe("cifar10-to-cifar100").source
    assert stage.data_beside("cifar100:/data") == "cifar10:/data"
    with pytest.raises(InputError, match="give --source-data cifar10:DIR"):
        stage.data_beside(str(tmp_path))
