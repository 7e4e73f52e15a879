"""The agent: a resident process that serves the plugin's calls, with everything loaded and open."""
