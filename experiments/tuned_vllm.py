"""The cloud engine with a switch: how drafts are verified can be changed while it runs, to compare the ways."""

from config.settings import VerifierSettings
from workers.cloud.vllm_engine.engine import VllmEngine


class TunedVllmEngine(VllmEngine):
    """A `VllmEngine` whose verifier can be set."""

    def tune(self, verifier: VerifierSettings) -> None:
        """Verify the drafts of all orders submitted from now on with these settings. Call it with none in flight."""
        self._writer.verifier = verifier
