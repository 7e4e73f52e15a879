"""The tool `podwire`: what people and scripts call; a runtime never does.

A failure is `error CODE:` and `hint:` on stderr and exit status 1; with --json, a JSON document on
stdout instead. A mistake in the arguments is click's usage message and status 2. Never a
traceback. The commands are in the modules `tool_*`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import get_completion_class

from cni_plugin.spec import SUPPORTED_VERSIONS, CniError
from cni_plugin.tool_agent import agent
from cni_plugin.tool_install import install, uninstall
from cni_plugin.tool_ipam import ipam
from cni_plugin.tool_lab import lab
from cni_plugin.tool_output import of_system, show_error
from cni_plugin.tool_probe import probe
from cni_plugin.tool_routes import routes
from cni_plugin.tool_status import status
from cni_plugin.version import VERSION

COMPLETE_VARIABLE = "_PODWIRE_COMPLETE"
_NAME = "podwire"
_SHELLS = ("bash", "zsh", "fish")
_INTERRUPTED = 130  # 128 + SIGINT, as shells count it


def tool(args: Sequence[str] | None = None) -> int:
    """Run the tool with `args`, those of the process when None; the exit status."""
    try:
        status = podwire.main(
            args=None if args is None else list(args),
            prog_name=_NAME,
            complete_var=COMPLETE_VARIABLE,
            standalone_mode=False,
        )
        sys.stdout.flush()
    except CniError as e:
        show_error(e)
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on. Python would complain at exit, when it flushes stdout once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as e:
        show_error(of_system(e))
    else:
        return status if isinstance(status, int) else 0
    return 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(
    VERSION, message=f"podwire {VERSION}, CNI {', '.join(SUPPORTED_VERSIONS)}", prog_name=_NAME
)
def podwire() -> None:
    """podwire: pod networking for Kubernetes, as a CNI plugin.

    A container runtime runs this file as a plugin (with CNI_COMMAND in the environment). This is
    the tool for people: how the node's network is, its routes, its addresses, and a lab of nodes
    to try it all in.

    Shell completion: eval "$(podwire completion bash)"
    """


@podwire.command()
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
def completion(shell: str | None) -> None:
    """Print the shell's completion script.

    For now: eval "$(podwire completion bash)". For good, put that line into ~/.bashrc. zsh alike;
    fish: podwire completion fish | source.
    """
    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    kind = get_completion_class(name) if name in _SHELLS else None
    if kind is None:
        raise click.UsageError(f"name the shell: one of {', '.join(_SHELLS)}")
    click.echo(kind(podwire, {}, _NAME, COMPLETE_VARIABLE).source())


for _command in (status, probe, routes, ipam, agent, lab, install, uninstall):
    podwire.add_command(_command)
