"""`firstdraft completion`: the shell's Tab key."""

import click
from click.shell_completion import get_completion_class

from firstdraft.cli.failures import expected_failures


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete the commands and their options.

    \b
    eval "$(firstdraft completion bash)"                               # in ~/.bashrc
    eval "$(firstdraft completion zsh)"                                # in ~/.zshrc
    firstdraft completion fish > ~/.config/fish/completions/firstdraft.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root().command
    with expected_failures():
        click.echo(kind(root, {}, "firstdraft", "_FIRSTDRAFT_COMPLETE").source())
