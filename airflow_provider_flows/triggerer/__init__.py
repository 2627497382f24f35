"""What the triggers of one triggerer process share on its event loop."""
