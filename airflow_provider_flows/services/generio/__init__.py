"""Generio Flows: endpoints, and parsers of responses and templates."""
