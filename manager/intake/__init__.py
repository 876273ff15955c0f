"""Door 2: what agents tell, by hello and by the report streams."""
