"""Our settings as vLLM's engine arguments, and what a CPU needs.

Imported only after `environment.prepare_environment`, since it imports vLLM.
"""

from typing import Any

from transformers import AutoConfig
from vllm.config.kv_events import KVEventsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

from config.settings import CloudSettings

#: The two classes that vLLM's worker processes load.
PROPOSER = "workers.cloud.vllm_engine.extension.EdgeDraftProposer"
WORKER_EXTENSION = "workers.cloud.vllm_engine.extension.WorkerExtension"
#: The backend of structured outputs: llguidance, as at the edge, so that draft and answer follow the same grammar.
STRUCTURE_BACKEND = "guidance"
#: Bytes in a GiB.
GIB = 2**30


def engine_arguments(settings: CloudSettings, model_path: str, events_endpoint: str) -> AsyncEngineArgs:
    """The arguments of the engine that verifies drafts; `cloud.model.engine_args` overrides them."""
    arguments: dict[str, Any] = {
        "disable_log_stats": True,
        "speculative_config": {
            "method": "custom_class",
            "model": PROPOSER,
            "num_speculative_tokens": settings.draft_verifier.max_proposed,
        },
        "worker_extension_cls": WORKER_EXTENSION,
    }
    if settings.kv_cache.enabled:
        arguments["kv_events_config"] = KVEventsConfig(
            enable_kv_cache_events=True, publisher="zmq", endpoint=events_endpoint
        )
    return AsyncEngineArgs(**(arguments | common_arguments(settings, model_path)))


def common_arguments(settings: CloudSettings, model_path: str) -> dict[str, Any]:
    """The arguments of any engine on this model, with or without drafts."""
    arguments: dict[str, Any] = {
        "model": model_path,
        "dtype": _dtype(settings.model.dtype),
        "max_model_len": _context_tokens(settings.model.context_tokens, model_path),
        "enforce_eager": settings.model.eager,
        "tensor_parallel_size": settings.model.tensor_parallel,
        "max_num_seqs": settings.max_in_flight,
        "enable_prefix_caching": settings.kv_cache.enabled,
        "structured_outputs_config": {"backend": STRUCTURE_BACKEND},
        "block_size": settings.kv_cache.block_size,
        "num_gpu_blocks_override": settings.kv_cache.max_blocks,
    }
    if current_platform.is_cpu():
        arguments["kv_cache_memory_bytes"] = settings.kv_cache.cpu_gib * GIB
    return arguments | settings.model.engine_args


def _dtype(wanted: str) -> str:
    """`auto` means float32 on a CPU, also on one with bfloat16 instructions.

    In 16 bits a token's logits change with the shape of the batch, so that near-ties are decided differently with a
    draft than without one, and verification would no longer be exact (docs/log.md, "The cloud engine").
    """
    return "float32" if wanted == "auto" and current_platform.is_cpu() else wanted


def _context_tokens(wanted: int, model_path: str) -> int:
    """At most what the model was trained for: vLLM refuses to start otherwise."""
    config = AutoConfig.from_pretrained(model_path)
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(wanted, trained) if trained else wanted
