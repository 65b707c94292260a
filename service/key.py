"""`headcount key`: a new API key. Its entry for the file of tenants goes to standard output, the key beside it."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import click
from pydantic import ValidationError

from service.api.keys import Tenant, new_key
from service.errors import ConfigError


@click.command("key")
@click.argument("name")
@click.option("--role", type=click.Choice(["user", "metrics", "admin"]), help="default: user")
@click.option("--weight", type=float, help="share of a busy engine, against others' weights; default: 1")
@click.option("--priority", type=int, help="higher goes first; default: 0")
@click.option("--requests-per-minute", type=int, help="default: no limit")
@click.option("--tokens-per-minute", type=int, help="of prompts and outputs; default: no limit")
@click.option("--concurrent", type=int, help="requests at one time; default: no limit")
def make_key(name: str, **given: Any) -> None:
    """Make an API key for the tenant NAME.

    \b
    headcount key alice --tokens-per-minute 100000 >> keys.toml
    headcount serve --api-keys-file keys.toml

    The key is shown once, on standard error; the file has its hash alone.
    """
    secret = new_key()
    values = {"keys": [sha256(secret.encode()).hexdigest()]} | {k: v for k, v in given.items() if v is not None}
    try:
        Tenant(name=name, **values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"{first['loc'][0]} is not valid: {first['msg']}.") from None
    click.echo("[[tenant]]")
    for field, value in {"name": name, **values}.items():
        click.echo(f"{field} = {json.dumps(value)}")  # of strings, numbers and lists, TOML and JSON write the same
    click.echo()
    click.echo(f"The key of {name}, shown this once: {secret}", err=True)
