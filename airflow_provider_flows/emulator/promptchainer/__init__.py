"""The emulated PromptChainer API."""
