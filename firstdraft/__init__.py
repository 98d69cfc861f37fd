"""What a user imports and types: the Python client, the command line.

from firstdraft import Client

with Client("http://127.0.0.1:8400") as client:
print(client.infer("What is the capital of France?").text)
"""

from firstdraft.client.answers import Inference
from firstdraft.client.asynchronous import AsyncClient
from firstdraft.client.errors import (
    APIError,
    Busy,
    FirstdraftError,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotAllowed,
    NotFound,
    NotInTime,
    Unreachable,
)
from firstdraft.client.retries import RetryRule
from firstdraft.client.statistics import ClientStatistics
from firstdraft.client.sync import Client

__all__ = [
    "APIError",
    "AsyncClient",
    "Busy",
    "Client",
    "ClientStatistics",
    "FirstdraftError",
    "Inference",
    "InvalidRequest",
    "JobCancelled",
    "JobFailed",
    "NotAllowed",
    "NotFound",
    "NotInTime",
    "RetryRule",
    "Unreachable",
]
