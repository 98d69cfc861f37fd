"""vLLM as the cloud tier: the only package that imports vllm, torch or transformers.

`engine` runs one `AsyncLLM` in this process; `extension` is loaded by vLLM's own worker processes, and everything
there that vLLM calls experimental is in that one file.
"""
