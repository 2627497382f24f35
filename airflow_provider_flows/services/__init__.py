"""The services that this provider supports, one module or folder each, as pure as `core`."""
