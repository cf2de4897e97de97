"""`etl config check [FILE]`: everything that is wrong with a configuration, without a connection."""

from __future__ import annotations

from etl_core.cli.arguments import Arguments
from etl_core.cli.config_faults import find_faults
from etl_core.cli.exit_status import DONE, WRONG_USAGE
from etl_core.cli.failures import say
from etl_core.cli.texts import plural, put
from etl_core.config_yaml import read_document


def config_check(arguments: Arguments) -> int:
    """A line for each fault on stderr, as every command would say the first of them."""
    path = arguments.file or arguments.config
    config, faults = find_faults(read_document(path))
    for fault in faults:
        say(str(fault), fault.hint)
    if config is None:
        say(f"{path} has {plural(len(faults), 'fault')}")
        return WRONG_USAGE
    put(f"{path} is valid: pipeline {config.pipeline} into {config.destination.type}")
    return DONE
