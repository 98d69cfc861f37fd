"""OpenAI's options that Firstdraft does not implement: which are ignored and which refused. Pure.

Options that would change the answer are refused: an answer that silently lacks what was asked for is worse than none.
"""

from collections.abc import Mapping

from gateway.jobs.request_validation import Refused

#: Options about the user, billing, storing and caching, or for reasoning models.
IGNORED = frozenset(
    {
        "include",
        "max_tool_calls",
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
#: Values that ask for nothing special.
HARMLESS = {
    "best_of": (1,),
    "context_management": ([],),
    "modalities": (["text"],),
    "suffix": ("",),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "functions": ([],),
    "truncation": ("disabled", "auto"),
}


def check_others(options: Mapping[str, object]) -> None:
    """Raise `Refused` for an option that asks for something unknown."""
    for name, value in options.items():
        if value is not None and name not in IGNORED and value not in HARMLESS.get(name, ()):
            raise Refused(name, value, "Firstdraft has no such option, or not this value of it")
