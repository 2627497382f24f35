"""What all triggers of one triggerer process share on its event loop."""
