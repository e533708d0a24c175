"""The HTTP service: routes, what stands before them, what goes over the wire, and how it is run."""
