"""The PromptChainer half of the emulator."""
