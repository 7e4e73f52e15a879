"""The tests of podwire; README.md says how they are laid out and run."""
