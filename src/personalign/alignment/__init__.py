"""How a policy learns from feedback (survey, section 4.3): stages that train adapters and heads."""
