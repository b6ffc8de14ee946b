"""Training data to a tuned model: configuration, recipe, trainer, evaluation, gate."""
