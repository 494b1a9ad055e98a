"""The policy: a base model with adapters and heads, its chat format, exact log-probabilities, its files."""
