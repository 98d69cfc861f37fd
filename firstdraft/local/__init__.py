"""Everything on one machine: the embedded Redis, the processes, the models, the demo."""
