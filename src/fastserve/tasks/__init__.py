"""What a network is trained for: labels to targets, targets to a loss, logits to predictions. One file a task."""
