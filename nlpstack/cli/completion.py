"""`nlpstack completion`: what a shell needs to complete our commands, and what it is offered."""

import click
from click.shell_completion import get_completion_class

from nlpstack.cli.options import echo, output_options

INSTALL = {
    "bash": "echo 'eval \"$(nlpstack completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(nlpstack completion zsh)\"' >> ~/.zshrc",
    "fish": "nlpstack completion fish > ~/.config/fish/completions/nlpstack.fish",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(INSTALL)))
@output_options
@click.pass_context
def completion_command(context: click.Context, shell: str, as_json: bool, quiet: bool, debug: bool) -> None:
    """Print the script that lets a SHELL complete commands, options, recipes and folders; its last line installs it.

    \b
    Example:
      nlpstack completion bash
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, "nlpstack", "_NLPSTACK_COMPLETE").source().strip()
    plain = f"{script}\n\n# To have it in every {shell}: {INSTALL[shell]}"
    echo({"shell": shell, "script": script, "install": INSTALL[shell]}, plain, as_json=as_json)
