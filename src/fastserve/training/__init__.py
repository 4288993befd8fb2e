"""From a configuration to a bundle: preparation, the loop, optimizers, checkpoints, and who watches the run."""
