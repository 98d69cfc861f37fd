"""Which model name means which policy (docs/http-api.md shows the table). Pure."""

from collections.abc import Iterable, Mapping

from gateway.jobs.request_validation import Refused
from schemas.openai_models import Model, ModelList

#: The model name that means the default policy, and the prefix of all others but aliases.
NAME = "firstdraft"
OWNER = "firstdraft"


class ModelTable:
    """Policies by model name. The constructor raises ValueError for an alias of an unknown policy."""

    def __init__(self, policies: Iterable[str], aliases: Mapping[str, str]) -> None:
        known = sorted(policies)
        self._policies: dict[str, str | None] = {NAME: None, **{f"{NAME}:{policy}": policy for policy in known}}
        for alias, policy in aliases.items():
            if policy not in known:
                raise ValueError(f"gateway.model_aliases.{alias} is {policy!r}; known policies are {', '.join(known)}")
            self._policies[alias] = policy

    def policy(self, model: str) -> str | None:
        """The policy's name; None for the default policy. Raises `UnknownModel`."""
        if model not in self._policies:
            raise UnknownModel("model", model, f"there are {', '.join(self._policies)}")
        return self._policies[model]

    def model(self, name: str) -> Model:
        """One model. Raises `UnknownModel`."""
        self.policy(name)
        return Model(id=name, owned_by=OWNER)

    def listed(self) -> ModelList:
        """All models."""
        return ModelList(data=tuple(Model(id=name, owned_by=OWNER) for name in self._policies))


class UnknownModel(Refused):
    """No such model."""
