"""Which cloud engine there is: the one place that knows both."""

from config.settings import CloudSettings
from workers.cloud.answer_order import CloudEngine


def build_engine(settings: CloudSettings, model_path: str) -> CloudEngine:
    """The engine that `cloud.engine` names, not started. Only the `vllm` engine ever imports vLLM."""
    if settings.engine == "openai":
        from workers.cloud.remote import RemoteEngine  # noqa: PLC0415 - no HTTP client where none is wanted

        return RemoteEngine(settings)
    from workers.cloud.vllm_engine.engine import VllmEngine  # noqa: PLC0415 - vLLM is an extra

    return VllmEngine(settings, model_path)
