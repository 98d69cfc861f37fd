import inspect

import pytest

from firstdraft import AsyncClient, Client

METHODS = sorted(name for name in dir(Client) if not name.startswith("_"))


def parameters(cls, method):
    return [(one.name, one.kind, one.default) for one in inspect.signature(getattr(cls, method)).parameters.values()]


def test_both_clients_have_the_same_methods():
    assert sorted(name for name in dir(AsyncClient) if not name.startswith("_")) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_the_same_in_both_clients(method):
    assert parameters(AsyncClient, method) == parameters(Client, method)
