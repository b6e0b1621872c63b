"""The ``edgellm`` command: its sub-commands, loaded only when they run, and how errors are shown."""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
from importlib import import_module

import click

from edgellm.cli.console import NoticeHandler, one_line
from edgellm.errors import EdgeLLMError

# Where each command is, and its line in --help: with it here, --help imports none of them.
COMMANDS = {
    "chat": ("edgellm.cli.chat", "Talk to a model in the terminal."),
    "generate": ("edgellm.cli.generate", "Continue a text."),
    "transcribe": ("edgellm.cli.transcribe", "Turn speech in sound files into text."),
    "listen": ("edgellm.cli.listen", "Turn speech into text live, from the microphone or a pipe."),
    "tokenize": ("edgellm.cli.tokenize", "Show the tokens of a text."),
    "pull": ("edgellm.cli.models", "Download a model."),
    "list": ("edgellm.cli.models", "List the models on this machine."),
    "show": ("edgellm.cli.show", "Tell what is in a model file."),
    "inspect": ("edgellm.cli.inspect", "Print the keys, tensors and hashes of a model file."),
    "split": ("edgellm.cli.split", "Cut a model file into shards."),
    "join": ("edgellm.cli.split", "Put the shards of a model together."),
    "convert": ("edgellm.cli.convert", "Convert a model or adapter from Hugging Face into a GGUF file."),
    "quantize": ("edgellm.cli.quantize", "Quantize a model file."),
    "imatrix": ("edgellm.cli.imatrix", "Find which weights matter most, from a text, for quantize."),
    "merge": ("edgellm.cli.merge", "Merge LoRA adapters into a model file."),
    "rm": ("edgellm.cli.models", "Delete a downloaded model."),
    "diarize": ("edgellm.cli.diarize", "Tell who speaks when in sound files."),
    "voices": ("edgellm.cli.voices", "Add, list and remove known voices."),
    "der": ("edgellm.cli.der", "Score who spoke when against the truth."),
    "doctor": ("edgellm.cli.doctor", "Tell what this machine offers and what is missing."),
    "bench": ("edgellm.cli.bench", "Measure how fast a model runs on this machine."),
    "perplexity": ("edgellm.cli.perplexity", "Measure how well a model predicts a text."),
    "kl": ("edgellm.cli.perplexity", "Measure how far a model is from the one it was made from."),
    "choices": ("edgellm.cli.choices", "Measure how often a model prefers the right ending of texts."),
    "fit": ("edgellm.cli.fit", "Tell which type of a model fits into memory."),
    "warmup": ("edgellm.cli.warmup", "Compile the kernels for a model beforehand."),
}

INTERRUPTED = 130


class ShownError(click.ClickException):
    """An error of edgellm as the command line shows it: one line on stderr, exit code 1."""

    exit_code = 1

    def __init__(self, error: BaseException) -> None:
        super().__init__(one_line(str(error)) or type(error).__name__)

    def show(self, file: object = None) -> None:
        click.echo(f"error: {self.message}", err=True)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are first needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name][0]), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; errors that are the user's business become one line, Ctrl-C becomes exit code 130."""
        try:
            return super().invoke(ctx)
        except EdgeLLMError as error:
            raise ShownError(error) from error
        except (UnicodeEncodeError, UnicodeDecodeError) as error:
            raise ShownError(
                EdgeLLMError(f"a text is not valid Unicode: {error.reason}", "give it as UTF-8")
            ) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read the output has gone: click ends quietly
                raise
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise ShownError(EdgeLLMError(what)) from error
        except MemoryError as error:
            raise ShownError(MemoryError("out of memory; use a smaller model or a smaller --context")) from error
        except (KeyboardInterrupt, click.Abort):
            raise click.exceptions.Exit(INTERRUPTED) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgellm")
@click.option("-v", "--verbose", is_flag=True, help="Say more about what happens.")
def edgellm(verbose: bool) -> None:
    """Language and speech models on the device you have.

    A model is named by an alias (smollm2), a .gguf path, hf:owner/repo[:quant], pypi:package[==version]
    or ollama:name[:tag].
    """
    logger = logging.getLogger("edgellm")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("edgellm.hub").setLevel(logging.INFO)  # whoever waits for a download should know what for
    if not any(isinstance(handler, NoticeHandler) for handler in logger.handlers):
        logger.addHandler(NoticeHandler())


def main() -> None:
    """Entry point of the ``edgellm`` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal whose encoding lacks a character shows a question mark rather than failing.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    edgellm()
