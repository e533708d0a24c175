"""Serving: many released compositions over one resident base, and the HTTP service in front of them."""
