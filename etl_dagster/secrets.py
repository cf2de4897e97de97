"""Keeps passwords out of what Dagster shows: a literal one is refused, an environment variable is not."""

import os
import re
from collections.abc import Mapping

import dagster as dg

from etl_core.errors import ConfigError

_SECRET_NAME = re.compile("passw|secret|token", re.IGNORECASE)
# In an address also where the password is not percent-encoded; after the colon of a host stands a port.
_SECRET = re.compile(r"://[^@/?#]*:(?!\d+(?:[/?,]|$))[^@]*@|\b(?:ssl)?password\s*=", re.IGNORECASE)


def plain(value: str | None) -> str | None:
    """The value itself. Dagster puts a variable's value in its place when it runs something; a script does not."""
    if not isinstance(value, dg.EnvVar):
        return value
    found = value.get_value()
    if found is None:
        raise ConfigError(
            f"the environment variable {value.env_var_name} is not set",
            hint=f"set it where Dagster runs: in .env beside workspace.yaml, or export {value.env_var_name}=…",
        )
    return found


def holds_secret(value: str) -> bool:
    """Whether the address or URL has a password in it."""
    return _SECRET.search(value) is not None


def is_secret_name(name: str) -> bool:
    """Whether what has this name is a secret, such as libpq's `password` and `sslpassword`."""
    return _SECRET_NAME.search(name) is not None


def refuse_literal_secrets(field: str, value: object) -> None:
    """Looks for a secret in the text of a section of YAML, however wrong that is otherwise.

    Raises DagsterInvalidDefinitionError, which repeats nothing of it. Names of variables and templates are no secrets.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            refuse_literal_secrets(f"{field}.{name}", inner)
    elif isinstance(value, list):
        for inner in value:
            refuse_literal_secrets(field, inner)
    elif isinstance(value, str) and "{{" not in value:
        name = field.rpartition(".")[2]
        if holds_secret(value) or (is_secret_name(name) and not name.endswith("_env")):
            raise dg.DagsterInvalidDefinitionError(
                f"{field} holds a password, which Dagster would show on its pages: leave it out and name the"
                " environment variable that holds it (password_env), or that holds the whole address (dsn_env, url_env)"
            )


def refuse_literal_secret(field: str, value: str) -> str:
    """`value`, unless it holds a password as text. Raises ValueError, which does not repeat it."""
    # At run time Dagster builds the resource once more with what its variables hold; that is on no page.
    from_environment = isinstance(value, dg.EnvVar) or value in os.environ.values()
    if not from_environment and holds_secret(value):
        raise ValueError(
            f"{field} holds a password, which Dagster would show on its pages: leave it out and name the environment"
            f' variable that holds it (password_env), or give all of {field} as dg.EnvVar("…")'
        )
    return value
