"""Keeps passwords out of what Dagster shows: a literal one is refused, an environment variable is not."""

import os
import re
from collections.abc import Mapping

import dagster as dg

from etl_core.errors import ConfigError

# `credentials` and `private_key_file` are names of files; a key in their place is known by its text.
_SECRET_NAME = re.compile("passw|secret|token|private_key(?!_file$)|credential$|access_key$", re.IGNORECASE)
# In an address also where the password is not percent-encoded; after the colon of a host stands a port.
_SECRET = re.compile(r"://[^@/?#]*:(?!\d+(?:[/?,]|$))[^@]*@|\b(?:ssl)?password\s*=", re.IGNORECASE)
_KEY = re.compile(r'"private_key"\s*:|-----BEGIN [A-Z ]*PRIVATE KEY')


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


def literal(value: str | None) -> str | None:
    """The value as far as it is known when a code location loads, which reads no variable: None for a `dg.EnvVar`."""
    return None if isinstance(value, dg.EnvVar) else value


def holds_secret(value: str) -> bool:
    """Whether the address or URL has a password in it."""
    return _SECRET.search(value) is not None


def is_secret_name(name: str) -> bool:
    """Whether what has this name is a secret, such as libpq's `password` and `sslpassword`."""
    return _SECRET_NAME.search(name) is not None


def is_key(credentials: object) -> bool:
    """Whether `credentials` are a service account's key, JSON or what YAML makes of it, instead of its file's name."""
    if isinstance(credentials, str):
        text = credentials.lstrip()
        return text.startswith("{") and not text.startswith("{{")  # of a template nothing is known yet
    return isinstance(credentials, Mapping | list)


def _secret_in(name: str, text: str) -> str | None:
    """What secret the text of the field `name` holds: `a password`, `a key` or none."""
    if (name == "credentials" and is_key(text)) or _KEY.search(text):
        return "a key"
    if holds_secret(text) or (text and is_secret_name(name) and not name.endswith("_env")):
        return "a password"
    return None


def refuse_key(field: str, credentials: object) -> None:
    """Raises DagsterInvalidDefinitionError, which does not repeat it, for a key as text or as a mapping."""
    if is_key(credentials):
        raise _literal_key(field)


def _literal_key(field: str) -> dg.DagsterInvalidDefinitionError:
    return dg.DagsterInvalidDefinitionError(
        f"{field} holds a key, which Dagster would show on its pages: leave it out and name the environment variable"
        " that holds it (credentials_env), or name its file"
    )


def refuse_literal_secrets(field: str, value: object) -> None:
    """Looks for a secret in the text of a section of YAML, however wrong that is otherwise.

    Raises DagsterInvalidDefinitionError, which repeats nothing of it. Names of variables and templates are no secrets.
    """
    name = field.rpartition(".")[2]
    if name == "credentials":
        refuse_key(field, value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            refuse_literal_secrets(f"{field}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            refuse_literal_secrets(field, inner)
    elif isinstance(value, str) and "{{" not in value:
        found = _secret_in(name, value)
        if found == "a key":
            raise _literal_key(field)
        if found is not None:
            raise dg.DagsterInvalidDefinitionError(
                f"{field} holds a password, which Dagster would show on its pages: leave it out and name the"
                " environment variable that holds it (password_env), or that holds the whole address (dsn_env, url_env)"
            )


def refuse_shown_secrets(resource: dg.ConfigurableResource, within: str) -> None:
    """For a resource as a code location defines it, whose fields and those of its own resources stand on a page.

    Its validators let pass what an environment variable holds, as they run again when Dagster has put that in place of
    `dg.EnvVar`. Here nothing is in place yet: such text was read by Python. Raises DagsterInvalidDefinitionError, which
    does not repeat it.
    """
    for name in type(resource).model_fields:
        value = getattr(resource, name)
        if isinstance(value, dg.ConfigurableResource):
            refuse_shown_secrets(value, f"{within}, {name}")
        else:
            _refuse_shown(name, value, f"{within}: {name}")


def _refuse_shown(name: str, value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():  # in `settings_env` stand names of variables, as in `password_env`
            _refuse_shown(f"{key}_env" if name.endswith("_env") else str(key), inner, f"{where}.{key}")
    elif isinstance(value, list):
        for inner in value:
            _refuse_shown(name, inner, where)
    elif isinstance(value, str) and not isinstance(value, dg.EnvVar) and (found := _secret_in(name, value)):
        variable = next((variable for variable, held in os.environ.items() if held == value), "…")
        raise dg.DagsterInvalidDefinitionError(
            f"{where} holds {found} as text, which Dagster would show on its pages: give"
            f' dg.EnvVar("{variable}"), which is read when something runs'
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
