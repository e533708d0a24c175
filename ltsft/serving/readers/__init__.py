"""How each objective is served: an input becomes pieces, and outputs become a result."""
