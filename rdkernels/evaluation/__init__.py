"""What a model and a sampler are worth: scores, comparisons, tuning."""
