"""The ``edgetl`` command; the one place that turns an error into a line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from edgetl import __version__
from edgetl.cli.bench import bench
from edgetl.cli.bundle import bundle
from edgetl.cli.compare import compare
from edgetl.cli.compile import compile_
from edgetl.cli.demo import demo
from edgetl.cli.doctor import doctor
from edgetl.cli.export import export
from edgetl.cli.finetune import finetune
from edgetl.cli.history import history
from edgetl.cli.inspect import inspect
from edgetl.cli.predict import predict
from edgetl.cli.select import select
from edgetl.errors import EdgetlError, missing_extra

__all__ = ["cli", "main", "run"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgetl")
def cli() -> None:
    """From a folder of pictures to a small, fast, proven classifier on a Jetson, a GPU or a CPU.

    \b
      edgetl demo                                          see it work, on built-in data
      edgetl select photos/ --latency-budget 5ms           which backbone, before training
      edgetl finetune photos/ --out runs/parts             your pictures, a pretrained backbone
      edgetl export runs/parts --int8 --out parts.edgetl   ONNX, FP16 and INT8, with proof
      edgetl compile parts.edgetl                          TensorRT plans, the faster one is kept
      edgetl bench parts.edgetl --data photos/             accuracy and latency of each variant
      edgetl bench parts.edgetl --against HEAD~1:parts.edgetl --max-regression 5%   a gate for CI
      edgetl predict parts.edgetl bolt.jpg                 what the device app does
      edgetl bundle sign parts.edgetl --key release.key    devices take only what you signed
    """  # noqa: D301 (click wants the character itself)


for _command in (select, finetune, export, compile_, bench, compare, history, predict, inspect, bundle, doctor, demo):
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 ok, 1 a gate failed, 2 wrong input, 130 interrupted.

    Exceptions that are not edgetl's own pass through with their traceback.
    """
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="edgetl", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("edgetl: interrupted", err=True)
        return 130
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        click.echo(f"edgetl: {missing}", err=True)
        return missing.exit_code
    except EdgetlError as error:
        click.echo(f"edgetl: {_one_line(error)}", err=True)
        return error.exit_code
    return 0


def _one_line(error: EdgetlError) -> str:
    """Returns the message; from a data loader's process it comes behind that process's traceback."""
    last = str(error).strip().splitlines()[-1]
    return last.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
