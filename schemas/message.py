"""What every message is made of. Knows nothing of how it is written down (`wire`), which clients do not need."""

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """A frozen message; unknown fields are refused, so that two versions that disagree notice it at once.

    Errors do not repeat their input: RQ keeps the traceback of a job that broke, and no prompt may end up there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null", hide_input_in_errors=True)
