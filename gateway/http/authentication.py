"""Authentication: API keys, their scopes, and the owner that each request acts for.

Where no keys are required (a gateway on the loopback) everybody is `NOBODY`, who may do everything.
"""

from ipaddress import ip_address

from flask import Flask, g, has_request_context, request

from broker.api_keys import KEY_PREFIX, ApiKeys
from config.settings import GatewaySettings
from schemas.owners import NOBODY, Owner, Scope

#: Paths without a key: they say nothing about anyone.
OPEN_PATHS = ("/healthz", "/readyz", "/openapi")
#: Paths about the whole system, for admins.
ADMIN_PATHS = ("/v1/stats", "/v1/cache")


class Unauthorised(Exception):
    """The request has no key, or an unknown one."""


class Forbidden(Exception):
    """The key lacks the scope for this."""


def keys_are_required(settings: GatewaySettings) -> bool:
    """Whether requests need a key: by the settings, or because others than this machine can reach the gateway."""
    return settings.require_api_keys or not _is_loopback(settings.host)


def add_authentication(app: Flask, api_keys: ApiKeys, *, required: bool) -> None:
    """Find out the owner of every request before its view is called."""

    def authenticate() -> None:
        g.owner, g.key_id = NOBODY, ""
        token = _bearer_token()
        if request.path.startswith(OPEN_PATHS) or (not required and not token.startswith(f"{KEY_PREFIX}_")):
            return  # OpenAI's clients always send some key
        key = api_keys.find(token)
        if key is None:
            raise Unauthorised
        g.owner, g.key_id = key.owner, key.key_id
        check_scope(_scope_needed())

    app.before_request(authenticate)


def asking_owner() -> Owner | None:
    """The owner whose key the current request has; None outside of a request, where the gateway itself acts."""
    if not has_request_context():
        return None
    owner: Owner = g.get("owner", NOBODY)
    return owner


def asking_key() -> str:
    """The id of the current request's API key; empty if it has none."""
    key_id: str = g.get("key_id", "")
    return key_id


def check_scope(needed: Scope) -> None:
    """Raise `Forbidden` unless the caller has the scope, or is an admin."""
    asking = asking_owner()
    if asking is not None and needed not in asking.scopes and Scope.ADMIN not in asking.scopes:
        raise Forbidden(f"The key has no scope {needed.value!r}.")


def may_see(owner: str) -> bool:
    """Whether the caller may see and cancel what the owner has."""
    asking = asking_owner()
    return asking is None or asking.name == owner or Scope.ADMIN in asking.scopes


def seen_owner() -> str | None:
    """The owner whose files and batches the caller may list; None for everybody's."""
    asking = asking_owner()
    return None if asking is None or Scope.ADMIN in asking.scopes else asking.name


def _scope_needed() -> Scope:
    if request.path.startswith(ADMIN_PATHS):
        return Scope.ADMIN
    return Scope.READ if request.method in {"GET", "HEAD", "OPTIONS"} else Scope.SUBMIT


def _bearer_token() -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
