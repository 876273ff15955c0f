"""A manager: takes wishes and reports, decides, publishes commands; any number run side by side."""
