"""The demo: the main job told step by step, and the five promises checked."""
