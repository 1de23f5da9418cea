"""The command line, ``advjax``. Importing it, and ``--help``, loads nothing heavy."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence

COMMANDS = ("demo", "train", "sweep", "evaluate", "attack", "predict", "report")

USAGE = """\
usage: advjax COMMAND ... [--help]

Attack, harden and measure neural classifiers in JAX.

  demo               train a standard and a robust classifier on 8x8 digits, attack both,
                     print one table and write an HTML report (about a minute)
  train FILE         run an experiment file; every field of its Config is an option
  sweep FILE         run every configuration of an experiment file's grid, and show the table
  evaluate RUN       clean and robust accuracy of a trained classifier, with 95 % intervals
  attack IMAGE ...   make adversarial versions of PNG or JPEG images
  predict IMAGE ...  class and probabilities of images
  report RUN         write the run's HTML report again

examples:
  advjax demo
  advjax train experiments/mnist_fast.py --epochs 3 --run runs/short
  advjax evaluate runs/short --attack fgsm pgd --eps 0.1 0.2 0.3
  advjax attack digit.png --run runs/short --eps 0.3 --target 7
  advjax predict digit.png digit_modified.png --run runs/short --json

options:
  -h, --help         this text; advjax COMMAND --help tells the options of a command
  --version          the version of advjax
  --traceback        show where an error came from (also ADVJAX_TRACEBACK=1)

Images are in [0, 1], so eps is too; 8/255 may be written as it is. Exit codes: 0 done, 1 the work
failed (training diverged, ...), 2 bad usage or bad input, 130 interrupted, 143 terminated (a
training run is saved first and goes on when the same command is given again).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
      argv: the arguments after the program's name. Without it they are the process's own, and the
        process may start itself once more with faster settings (``process_settings``).
    """
    args = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in args or os.environ.get("ADVJAX_TRACEBACK", "0") not in ("", "0")
    args = [arg for arg in args if arg != "--traceback"]
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if args else 2
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"advjax {version('advjax')}")
        return 0
    if argv is None and not {"-h", "--help"} & set(args):
        from advjax import process_settings

        process_settings.ensure()
    with warnings.catch_warnings():
        if argv is None:
            warnings.showwarning = _show_warning
        return _run(args, traceback)


def _run(args: list[str], traceback: bool) -> int:
    from advjax.cli.parsing import UsageError

    try:
        if args[0] not in COMMANDS:
            raise UsageError(f"no command {args[0]}; taken: {', '.join(COMMANDS)}")
        importlib.import_module(f"advjax.cli.{args[0]}").main(args[1:])
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("advjax: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if traceback:
            raise
        # The library says ValueError, TypeError, ... for input it does not take.
        bad_input = isinstance(error, (UsageError, ValueError, TypeError, OSError))
        message = " ".join(str(error).split()) or type(error).__name__
        if not bad_input:
            message = f"{type(error).__name__}: {message} (--traceback shows where)"
        print(f"advjax: error: {message}", file=sys.stderr)
        return 2 if bad_input else 1


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:  # type: ignore[no-untyped-def]
    print(f"advjax: warning: {' '.join(str(message).split())}", file=sys.stderr)
