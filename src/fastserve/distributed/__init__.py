"""Several processes as one: the world of workers, the strategies that share a training run, launch, checkpoints."""
